"""The section ``train.stop_when`` of the run config."""

from dataclasses import dataclass
from typing import Collection, Optional

from ftdist.base.errors import ConfigError


@dataclass
class StopWhenConfig:
    patience: Optional[int] = None
    """End the run after this many evaluations in a row without a new lowest held-out loss (see ``train.best``). The
    evaluation before the first step counts. The run is then done, and its best checkpoint is exported. null: never."""
    max_forgetting: Optional[float] = None
    """End the run in the same way after an evaluation in which KL(base ‖ now) is larger than this, in nats per token.
    The checkpoint of such an evaluation is never the best one. null: never."""


def check_stop_when(
    stop: StopWhenConfig, best: Optional[str], heldout: Collection[str], texts: int, eval_every: Optional[int],
    checkpoint_every: Optional[int],
) -> None:  # fmt: skip
    """Check that a run can decide when it ends, and that its best checkpoint is there then.

    Args:
        best: ``train.best``.
        heldout: Names of the held-out sets.
        texts: ``report.forgetting.texts``.

    Raises:
        ConfigError: A setting that the decision needs is missing, or names no held-out set of the run.
    """
    if best is not None and best not in heldout:
        found = ", ".join(heldout) or "there is none"
        raise ConfigError(f"train.best={best} is not a held-out set", f"one of the held-out sets: {found}",
                          "train.best=null, or add the set to data.heldout")  # fmt: skip
    if stop.patience is not None and stop.patience < 1:
        raise ConfigError(f"train.stop_when.patience={stop.patience}", "at least 1", "train.stop_when.patience=3")
    if stop != StopWhenConfig() and not heldout:
        raise ConfigError("train.stop_when is set, but there is no held-out data",
                          "held-out documents, whose loss tells which checkpoint is the best one",
                          "data.heldout_share=0.05, or leave out train.stop_when")  # fmt: skip
    if stop.max_forgetting is not None and not stop.max_forgetting > 0:
        raise ConfigError(f"train.stop_when.max_forgetting={stop.max_forgetting:g}", "more than 0",
                          "train.stop_when.max_forgetting=0.1")  # fmt: skip
    if stop.max_forgetting is not None and not texts:
        raise ConfigError("train.stop_when.max_forgetting is set, but forgetting is not measured",
                          "texts of the base model, on which forgetting is measured",
                          "report.forgetting.texts=32, or train.stop_when.max_forgetting=null")  # fmt: skip
    if stop == StopWhenConfig():
        return
    if eval_every is None:
        raise ConfigError("train.stop_when is set, but train.eval_every is not", "evaluations during the run",
                          "train.eval_every=50")  # fmt: skip
    if checkpoint_every is None or eval_every % checkpoint_every:
        found = f"train.checkpoint_every={'null' if checkpoint_every is None else checkpoint_every}"
        raise ConfigError(f"train.stop_when needs a checkpoint at every evaluation (train.eval_every={eval_every}), so "
                          f"that the best one is kept, but {found}", "a divisor of train.eval_every",
                          f"train.checkpoint_every={eval_every}")  # fmt: skip
