"""Check that all weights of a model are finite numbers.

Finite logits do not prove this. With NaN or infinity in one weight, the logits of most tokens can still be finite, and
attention can turn NaN into zeros.
"""

from typing import Any

import torch
import torch.distributed as dist

from ftdist.base.errors import ConfigError


@torch.no_grad()
def check_finite(model: Any, location: str) -> None:
    """Refuse a model with a weight that holds NaN or infinity.

    With ZeRO-3 each rank checks its own parts, and all ranks must call this together.

    Args:
        location: What the weights were read from, for the message.

    Raises:
        ConfigError: A weight is not finite. All ranks name the same one.
    """
    named = list(model.named_parameters())
    bad = (index for index, (_, parameter) in enumerate(named) if not _is_finite(_held(parameter)))
    first = next(bad, len(named))
    if any(hasattr(parameter, "ds_tensor") for _, parameter in named):
        least = torch.tensor(first, device=named[0][1].device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        first = int(least)
    if first < len(named):
        raise ConfigError(f"{named[first][0]} holds NaN or infinity in the files of {location}",
                          "weights that are finite numbers",
                          "use another copy of the model: its files may be damaged")  # fmt: skip


def _held(parameter: Any) -> torch.Tensor:
    """Return the part of a parameter that this rank holds, without the padding at the end of the last shard."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    size = parameter.partition_numel()
    rank = dist.get_rank(parameter.ds_process_group)
    return parameter.ds_tensor.detach().view(-1)[: max(0, min(size, parameter.ds_numel - rank * size))]


def _is_finite(part: torch.Tensor) -> bool:
    """Return whether all numbers are finite. The sum is checked first: it needs no memory for a second tensor."""
    return bool(part.sum(dtype=torch.float32).isfinite()) or bool(part.isfinite().all())
