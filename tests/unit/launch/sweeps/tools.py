"""Stand-ins for the trials of a sweep: run directories without ranks."""

import json
from functools import cache
from typing import Any, List, Optional

from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.launch.sweeps.folder import SweepDir, Trial


@cache
def default_config() -> str:
    return dump_config(RunConfig())


def make_trial(folder: SweepDir, number: int, losses: List[Any], state: str, overrides: Optional[List[str]] = None,
               **status: Any) -> Trial:  # fmt: skip
    """Make a trial with a held-out loss at each step from 0."""
    found = folder.trial(number, ["experiment=smoke", f"optim.lr=0.{number}"] if overrides is None else overrides)
    found.run.logs.mkdir(parents=True)
    found.run.config.write_text(default_config())
    found.run.write_status(state=state, **status)
    lines = [json.dumps({"step": step, "eval/a/loss": loss}) + "\n" for step, loss in enumerate(losses)]
    found.run.metrics.write_text("".join(lines))
    return found
