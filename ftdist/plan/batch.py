"""The batch algebra: micro_batch_size × grad_accum_steps × dp_world_size = global_batch_size, in rows."""

from dataclasses import dataclass

from ftdist.base.errors import ConfigError
from ftdist.config.schema import BatchConfig


@dataclass(frozen=True)
class BatchPlan:
    micro_batch_size: int
    grad_accum_steps: int
    dp_world_size: int
    max_seq_len: int

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.grad_accum_steps * self.dp_world_size

    @property
    def tokens_per_step(self) -> int:
        """Input tokens of one optimizer step, padding included."""
        return self.global_batch_size * self.max_seq_len

    def describe(self) -> str:
        return (
            f"{self.micro_batch_size} rows a rank × {self.grad_accum_steps} accumulation × {self.dp_world_size} ranks"
            f" = {self.global_batch_size} rows × {self.max_seq_len} tokens = {self.tokens_per_step:,} tokens a step"
        )


def plan_batch(batch: BatchConfig, dp_world_size: int, max_seq_len: int) -> BatchPlan:
    """Derive grad_accum_steps from the global batch size.

    Raises:
        ConfigError: the global batch size is not divisible, or contradicts a given grad_accum_steps.
    """
    per_micro_step = batch.micro_batch_size * dp_world_size
    accum, rest = divmod(batch.global_batch_size, per_micro_step)
    if rest or accum == 0:
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
            f"batch.grad_accum_steps={batch.grad_accum_steps}, but {batch.global_batch_size} rows / "
            f"({batch.micro_batch_size} × {dp_world_size} ranks) = {accum}",
            "micro_batch_size × grad_accum_steps × ranks = global_batch_size",
            f"batch.grad_accum_steps={accum}, or leave it out",
        )
    return BatchPlan(batch.micro_batch_size, accum, dp_world_size, max_seq_len)


def plan_resumed(batch: BatchConfig, dp_world_size: int, max_seq_len: int) -> BatchPlan:
    """The plan of a run that may go on with other ranks than before: its global batch stays, the accumulation follows.

    Raises:
        ConfigError: the rows cannot be dealt to these ranks; names the nearest choice that can be.
    """
    rows, micro = batch.global_batch_size, batch.micro_batch_size
    if rows % (micro * dp_world_size) == 0:
        return BatchPlan(micro, rows // (micro * dp_world_size), dp_world_size, max_seq_len)
    smaller = [size for size in range(1, micro) if rows % (size * dp_world_size) == 0]
    divides = max(size for size in range(1, micro + 1) if rows % size == 0)
    counts = [count for count in range(1, rows // divides + 1) if rows % (divides * count) == 0]
    nearest = min(counts, key=lambda count: (abs(count - dp_world_size), -count))
    choices = [f"batch.micro_batch_size={size}" for size in smaller[-1:]]
    if divides == micro or not smaller:  # else no number of ranks mends it alone
        with_size = "" if divides == micro else f" with batch.micro_batch_size={divides}"
        choices.append(f"{nearest} rank{'s' if nearest > 1 else ''} (launch.nproc_per_node={nearest}){with_size}")
    raise ConfigError(
        f"the {rows} rows of a step, which a resume keeps, cannot be dealt to {dp_world_size} ranks × {micro} rows",
        f"micro_batch_size × ranks that divides {rows}",
        ", or ".join(choices),
    )
