"""The folder of a sweep: an index, and a run directory for each trial.

```
SWEEP_DIR/
  sweep.json        the request: overrides, config folder, working directory
  index.jsonl       number and overrides of each trial, one line each, written before it starts
  objectives.json   the objectives that the sweeper was given, by number of the trial
  rungs.jsonl       which trials continued after each rung
  status.json       state of the sweep as a whole, and the process that runs it
  000/ 001/ …       the trials: ordinary run directories
```
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json, read_records, write_json
from ftdist.base.temporary import temporary_path
from ftdist.config.frozen import load_config
from ftdist.config.sweep import SweepConfig
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
        self.rungs = self.path / "rungs.jsonl"

    @property
    def exists(self) -> bool:
        """Whether the folder is that of a sweep."""
        return self.request.is_file()

    def trial(self, number: int, overrides: List[str]) -> Trial:
        return Trial(number, overrides, RunDir(self.path / f"{number:03d}"))

    def trials(self) -> List[Trial]:
        """Return every trial that was proposed so far. A last line that is incomplete after a crash is left out.

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
        _write_lines(
            self.index, [{"number": trial.number, "overrides": trial.overrides} for trial in [*known, *trials]]
        )

    def read_objectives(self) -> Dict[int, float]:
        """Return the objectives that the sweeper was given, by number of the trial.

        Raises:
            ConfigError: The file is not one that ftdist writes.
        """
        try:
            found = read_json(self.objectives) if self.objectives.is_file() else {}
            return {int(number): float(objective) for number, objective in found.items()}
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.objectives} is damaged: {error}", "the numbers that ftdist wrote",
                              "restore the file, or start a new sweep") from error  # fmt: skip

    def add_objectives(self, objectives: Dict[int, float]) -> None:
        """Record objectives that the sweeper is given."""
        write_json(self.objectives, {**self.read_objectives(), **objectives})

    def read_promoted(self, rung: Optional[int], trials: List[Trial]) -> Optional[List[Trial]]:
        """Return which of the given trials continued after a rung. None if they have not been chosen yet.

        Args:
            rung: the step, or None for the end of the run, where nothing is decided.
        """
        for record in read_records(self.rungs):
            if record.get("rung") == rung and record.get("trials") == [trial.number for trial in trials]:
                return [trial for trial in trials if trial.number in record["promoted"]]
        return None

    def add_promoted(self, rung: int, trials: List[Trial], promoted: List[Trial]) -> None:
        """Record which trials continue after a rung."""
        record = {"rung": rung, "trials": [t.number for t in trials], "promoted": [t.number for t in promoted]}
        _write_lines(self.rungs, [*read_records(self.rungs), record])

    def settings(self) -> SweepConfig:
        """Return the section ``sweep`` of the first frozen trial, or the defaults if no trial is frozen yet."""
        first = next((trial.run.config for trial in self.trials() if trial.run.config.is_file()), None)
        return SweepConfig() if first is None else load_config(first).sweep


def _write_lines(path: Path, records: List[Dict[str, Any]]) -> None:
    temporary = temporary_path(path)
    with temporary.open("x", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
    temporary.replace(path)
