"""Start-up: from the command to the first optimizer step, with an empty cache and with a full one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List

from ftdist.run.rundir import RunDir
from tests.bench.figures import Section, Spread, spread
from tests.bench.processes import run_ftdist

PARTS = {
    "frozen": "run directory written",
    "evaluated": "first evaluation done",
    "first_step": "first optimizer step done",
    "whole": "whole command (6 steps)",
}

ABOUT = """\
`ftdist train experiment=smoke` (tiny model, 2 ranks on CPU, W&B offline), seconds from the command. Cold: an empty
`FTDIST_CACHE`; warm: the same command again. Cold and warm runs alternate. The operating system's file cache is warm in
both. Times are those that the run itself recorded."""


def measure(folder: Path, quick: bool) -> Section:
    kinds: Dict[str, List[Dict[str, float]]] = {"cold": [], "warm": []}
    run_ftdist(folder, folder / "cache-first", ["--version"])
    for number in range(1 if quick else 7):
        for kind, runs in kinds.items():
            runs.append(_start(folder, folder / f"cache-{number}", f"{kind}-{number}"))
    figures = {
        kind: {part: asdict(spread([run[part] for run in runs])) for part in PARTS} for kind, runs in kinds.items()
    }
    rows = [[kind, *(Spread(**parts[part]).show("s", digits=1) for part in PARTS)] for kind, parts in figures.items()]
    return Section("startup", "Start-up", ABOUT, ["", *PARTS.values()], rows, figures)


def _start(folder: Path, cache: Path, name: str) -> Dict[str, float]:
    run = RunDir(folder / name)
    ran = run_ftdist(folder, cache, ["train", "experiment=smoke", f"run_dir={run.path}"])
    records: List[Dict[str, Any]] = run.read_metrics()
    evaluated = next(record["time"] for record in records if "eval/heldout/loss" in record)
    first_step = next(record["time"] for record in records if "train/loss" in record)
    return {
        "frozen": run.config.stat().st_mtime - ran.started,
        "evaluated": evaluated - ran.started,
        "first_step": first_step - ran.started,
        "whole": ran.seconds,
    }
