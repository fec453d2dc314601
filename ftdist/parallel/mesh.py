"""How the ranks of a run share its work: which of them read which rows, and sums over all of them."""

from dataclasses import dataclass
from typing import List, Sequence

import torch
import torch.distributed as dist

from ftdist.parallel.ranks import Ranks


@dataclass(frozen=True)
class Mesh:
    """The place of this rank among those that share a step. All ranks are data parallel: each reads rows of its own."""

    data_rank: int
    """Number of this rank among those that read different rows, from 0."""
    data_size: int
    """Number of ranks that read different rows."""
    device: torch.device

    def sum(self, values: Sequence[float]) -> List[float]:
        """Return the sum of each value over all ranks, in float64. Every rank must call it, with as many values."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()


def data_parallel(ranks: Ranks) -> Mesh:
    """Return the mesh in which every rank reads rows of its own."""
    return Mesh(ranks.rank, ranks.world_size, ranks.device)
