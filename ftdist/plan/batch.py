"""The batch arithmetic: micro_batch_size × grad_accum_steps × dp_world_size = global_batch_size, in rows."""

from dataclasses import dataclass
from typing import List

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.config.schema import BatchConfig, RunConfig


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of one optimizer step are divided over ranks and micro-steps."""

    micro_batch_size: int
    """Rows that one rank processes in one micro-step."""
    grad_accum_steps: int
    """Micro-steps of an optimizer step."""
    dp_world_size: int
    """Data parallel ranks."""
    max_seq_len: int
    """Tokens of a row, padding included."""

    @property
    def global_batch_size(self) -> int:
        """Rows of one optimizer step, over all ranks."""
        return self.micro_batch_size * self.grad_accum_steps * self.dp_world_size

    @property
    def tokens_per_step(self) -> int:
        """Input tokens of one optimizer step, padding included."""
        return self.global_batch_size * self.max_seq_len

    def describe(self) -> str:
        """Return the arithmetic as one line for the banner."""
        return (
            f"{count(self.global_batch_size, 'row')} a step ({self.micro_batch_size} per rank × "
            f"{count(self.grad_accum_steps, 'accumulation step')} × {count(self.dp_world_size, 'rank')}) × "
            f"{self.max_seq_len} tokens = {count(self.tokens_per_step, 'token')} a step"
        )


def plan_batch(batch: BatchConfig, dp_world_size: int, max_seq_len: int) -> BatchPlan:
    """Derive ``grad_accum_steps`` of a new run from its global batch size.

    Raises:
        ConfigError: the global batch size is not divisible, or contradicts the ``grad_accum_steps`` that is set.
    """
    per_micro_step = batch.micro_batch_size * dp_world_size
    accum, remainder = divmod(batch.global_batch_size, per_micro_step)
    if remainder or accum == 0:
        below = max(accum, 1) * per_micro_step
        near = f"{below}" if accum == 0 else f"{below} or {below + per_micro_step}"
        raise ConfigError(
            f"batch.global_batch_size={batch.global_batch_size} is not divisible by micro_batch_size × ranks = "
            f"{batch.micro_batch_size} × {dp_world_size} = {per_micro_step}",
            f"a multiple of {per_micro_step}",
            f"batch.global_batch_size={near}",
        )
    if batch.grad_accum_steps not in (None, accum):
        raise ConfigError(
            f"batch.grad_accum_steps={batch.grad_accum_steps}, but {count(batch.global_batch_size, 'row')} / "
            f"({batch.micro_batch_size} × {count(dp_world_size, 'rank')}) = {accum}",
            "micro_batch_size × grad_accum_steps × ranks = global_batch_size",
            f"batch.grad_accum_steps={accum}, or leave it out",
        )
    return BatchPlan(batch.micro_batch_size, accum, dp_world_size, max_seq_len)


def plan_resumed(batch: BatchConfig, dp_world_size: int, max_seq_len: int, nnodes: int = 1) -> BatchPlan:
    """Derive ``grad_accum_steps`` of a run that may continue on another number of ranks than before.

    The global batch size stays the same, whatever ``grad_accum_steps`` was.

    Args:
        nnodes: number of machines on which the ranks are, for the settings that an error names.

    Raises:
        ConfigError: the rows of a step cannot be divided over these ranks. The message has the nearest settings that
            work.
    """
    rows, micro = batch.global_batch_size, batch.micro_batch_size
    if rows % (micro * dp_world_size) == 0:
        return BatchPlan(micro, rows // (micro * dp_world_size), dp_world_size, max_seq_len)
    raise ConfigError(
        f"a resumed run keeps batch.global_batch_size={rows}, which is not divisible by micro_batch_size × ranks = "
        f"{micro} × {dp_world_size} = {micro * dp_world_size}",
        f"a micro_batch_size and a number of ranks whose product divides {rows}",
        ", or ".join(_nearest_choices(rows, micro, dp_world_size, nnodes)),
    )


def _nearest_choices(rows: int, micro: int, dp_world_size: int, nnodes: int) -> List[str]:
    """Return the closest settings with which ``rows`` can be divided: a smaller micro-batch on the same ranks, and
    another number of ranks."""
    smaller = [size for size in range(1, micro) if rows % (size * dp_world_size) == 0]
    choices = [f"batch.micro_batch_size={size}" for size in smaller[-1:]]
    divisor = max(size for size in range(1, micro + 1) if rows % size == 0)
    if divisor == micro or not smaller:  # otherwise another number of ranks alone is not enough
        counts = [count for count in range(1, rows // divisor + 1) if rows % (divisor * count) == 0]
        on_all = [count for count in counts if count % nnodes == 0]
        if on_all:
            nearest = min(on_all, key=lambda count: (abs(count - dp_world_size), -count))
            setting = f"launch.nproc_per_node={nearest // nnodes}"
        else:  # the ranks of one machine, because a machine has no room for those of all
            nearest = min(counts, key=lambda count: (abs(count - dp_world_size // nnodes), -count))
            setting = f"launch.nnodes=1 launch.nproc_per_node={nearest}"
        with_size = "" if divisor == micro else f" with batch.micro_batch_size={divisor}"
        choices.append(f"{count(nearest, 'rank')} ({setting}){with_size}")
    return choices


def never_two_documents(config: RunConfig) -> bool:
    """Return whether a micro-batch never holds more than one document."""
    return not config.data.packing and config.batch.micro_batch_size == 1
