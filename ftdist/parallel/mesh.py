"""The place of this rank among the ranks that read different rows, and sums over all ranks."""

from dataclasses import dataclass
from typing import List, Sequence, Union

import numpy as np
import torch
import torch.distributed as dist

from ftdist.parallel.ranks import Ranks


@dataclass(frozen=True)
class Mesh:
    """The position of this rank in the run. All ranks are data parallel: each one reads its own rows of a step."""

    data_rank: int
    """Index of this rank among the ranks that read different rows, from 0."""
    data_size: int
    """Number of ranks that read different rows."""
    device: torch.device

    def sum(self, values: Sequence[Union[float, torch.Tensor]]) -> List[float]:
        """Return the sum of each value over all ranks, in float64.

        Every rank must call it with the same number of values. A value may be a scalar on the device. All sums are read
        from the device at once.
        """
        on_host = [0.0 if isinstance(value, torch.Tensor) else value for value in values]
        tensor = torch.tensor(on_host, dtype=torch.float64, device=self.device)
        for place, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                tensor[place] = value
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of an array of float64 over all ranks. Every rank must call it."""
        tensor = torch.from_numpy(values).to(self.device, copy=True)
        dist.all_reduce(tensor)
        summed: np.ndarray = tensor.cpu().numpy()
        return summed


def data_parallel(ranks: Ranks) -> Mesh:
    """Return the mesh in which every rank reads its own rows."""
    return Mesh(ranks.rank, ranks.world_size, ranks.device)
