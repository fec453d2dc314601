"""A sweep is N run directories and an index. What lies in its folder, and the verb ``sweep``: its trials, best first.

```
SWEEP_DIR/
  sweep.json        what was asked for: overrides, config folder, working directory
  index.jsonl       one line a trial, written before it starts: number, overrides
  objectives.json   what the sweeper was told, by trial's number
  status.json       state of the sweep as a whole, and who runs it
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
    number: int
    overrides: List[str]
    run: RunDir

    @property
    def state(self) -> str:
        return str(self.run.read_status().get("state", "not started"))


class SweepDir(RunDir):
    """Names of what lies in a sweep's folder. Its status and requests to stop are files as in a run directory."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.request = self.path / SWEEP_REQUEST
        self.index = self.path / "index.jsonl"
        self.objectives = self.path / "objectives.json"

    @property
    def exists(self) -> bool:
        return self.request.is_file()

    def trial(self, number: int, overrides: List[str]) -> Trial:
        return Trial(number, overrides, RunDir(self.path / f"{number:03d}"))

    def trials(self) -> List[Trial]:
        """Every trial that was proposed so far; a last line cut by a crash is left out.

        Raises:
            ConfigError: the index is not what a sweep writes.
        """
        known: List[Trial] = []
        for record in read_records(self.index):
            number, words = record.get("number"), record.get("overrides")
            if not isinstance(number, int) or not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                found = f"{self.index} holds {json.dumps(record)[:100]}"
                raise ConfigError(found, "number and overrides of each trial")
            known.append(self.trial(number, words))
        return known

    def add(self, trials: List[Trial]) -> None:
        known = self.trials()
        lines = [{"number": trial.number, "overrides": trial.overrides} for trial in [*known, *trials]]
        temporary = temporary_path(self.index)
        with temporary.open("x", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        temporary.replace(self.index)

    def told(self) -> Dict[int, float]:
        """Objectives that the sweeper was told."""
        found = read_json(self.objectives) if self.objectives.is_file() else {}
        return {int(number): float(objective) for number, objective in found.items()}

    def tell(self, objectives: Dict[int, float]) -> None:
        write_json(self.objectives, {**self.told(), **objectives})


def best_loss(run: RunDir) -> Optional[float]:
    """The lowest held-out loss, a mean over the held-out sets; None before the first evaluation."""
    losses = []
    for record in run.read_metrics():
        found = [value for name, value in record.items() if name.startswith("eval/") and name.endswith("/loss")]
        if found and all(isinstance(value, (int, float)) for value in found):
            losses.append(sum(found) / len(found))
    return min(losses, default=None)


def objective(run: RunDir) -> float:
    """What a sweeper makes smaller: the best held-out loss of a run that is done; infinite for any other."""
    loss = best_loss(run) if run.read_status().get("state") == "done" else None
    return math.inf if loss is None else loss
