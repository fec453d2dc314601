"""The folder of a sweep: an index, and a run directory for each trial.

```
SWEEP_DIR/
  sweep.json        the request: overrides, config folder, working directory
  index.jsonl       number and overrides of each trial, one line each, written before it starts
  objectives.json   the objectives that the sweeper was given, by number of the trial
  status.json       state of the sweep as a whole, and the process that runs it
  000/ 001/ …       the trials: ordinary run directories
```
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json, read_records, write_json
from ftdist.base.temporary import temporary_path
from ftdist.run.rundir import SWEEP_REQUEST, RunDir


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    number: int
    overrides: List[str]
    run: RunDir

    @property
    def state(self) -> str:
        return str(self.run.read_status().get("state", "not started"))


class SweepDir(RunDir):
    """The files of a sweep's folder. Its status and requests to stop are files as in a run directory."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.request = self.path / SWEEP_REQUEST
        self.index = self.path / "index.jsonl"
        self.objectives = self.path / "objectives.json"

    @property
    def exists(self) -> bool:
        """Whether the folder is that of a sweep."""
        return self.request.is_file()

    def trial(self, number: int, overrides: List[str]) -> Trial:
        return Trial(number, overrides, RunDir(self.path / f"{number:03d}"))

    def trials(self) -> List[Trial]:
        """Return every trial that was proposed so far. A last line that a crash has cut is left out.

        Raises:
            ConfigError: the index is not what a sweep writes.
        """
        known: List[Trial] = []
        for record in read_records(self.index):
            number, words = record.get("number"), record.get("overrides")
            if not isinstance(number, int) or not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                found = f"{self.index} holds {json.dumps(record)[:100]}"
                raise ConfigError(found, "number and overrides of each trial",
                                  "restore the file, or start a new sweep")  # fmt: skip
            known.append(self.trial(number, words))
        return known

    def add_trials(self, trials: List[Trial]) -> None:
        """Add trials to the index."""
        known = self.trials()
        lines = [{"number": trial.number, "overrides": trial.overrides} for trial in [*known, *trials]]
        temporary = temporary_path(self.index)
        with temporary.open("x", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        temporary.replace(self.index)

    def read_objectives(self) -> Dict[int, float]:
        """Return the objectives that the sweeper was given, by number of the trial."""
        found = read_json(self.objectives) if self.objectives.is_file() else {}
        return {int(number): float(objective) for number, objective in found.items()}

    def add_objectives(self, objectives: Dict[int, float]) -> None:
        """Write down objectives that the sweeper is given."""
        write_json(self.objectives, {**self.read_objectives(), **objectives})


def best_loss(run: RunDir) -> Optional[float]:
    """Return the lowest held-out loss after at least one step, a mean over the held-out sets. None before the first.

    The evaluation before the first step says nothing about the trial's settings. A loss that is not finite is no loss.
    """
    losses = []
    for record in run.read_metrics():
        if int(record.get("step", 0)) < 1:
            continue
        found = [value for name, value in record.items() if name.startswith("eval/") and name.endswith("/loss")]
        if found and all(isinstance(value, (int, float)) and math.isfinite(value) for value in found):
            losses.append(sum(found) / len(found))
    return min(losses, default=None)


def objective(run: RunDir) -> float:
    """Return what a sweeper minimises: the best held-out loss of a run that is done, infinity for any other run."""
    loss = best_loss(run) if run.read_status().get("state") == "done" else None
    return math.inf if loss is None else loss
