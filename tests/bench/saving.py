"""Save stall: how long training waits for a checkpoint, and for which part of it."""

import hashlib
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List

from ftdist.config import RunConfig
from tests.bench.figures import Section, Spread, spread
from tests.bench.subject import assemble_run, make_subject, num_ranks, parameter_count, start_rank
from tests.bench.tax import at_stage
from tests.spawn import run_ranks

PARTS = ("writing", "hashing", "syncing")

ABOUT = """\
What the loop's own save takes, from the end of a step until training goes on: a Llama of {parameters:.1f} M
parameters with optimizer states, {ranks} ranks, {precision}, saved after each of {saves} steps, the older checkpoints
pruned. `writing` is DeepSpeed's save_checkpoint, `hashing` the sha256 of every file, `syncing` fsync; each is that of
the slowest rank, so they need not add up to the stall."""


def measure(folder: Path, quick: bool) -> Section:
    saves = 2 if quick else 12
    config = make_subject(folder, quick)
    stages = {}
    for stage in (2, 3):
        per_rank = run_ranks(_on_rank, num_ranks(), at_stage(config, stage), folder, saves, timeout_s=1800)
        stages[f"zero{stage}"] = _figures(per_rank)
    rows = [_row(name.replace("zero", "ZeRO-"), figures) for name, figures in stages.items()]
    precision = config.train.precision.name
    about = ABOUT.format(
        parameters=per_rank[0]["parameters"] / 1e6, ranks=num_ranks(), precision=precision, saves=saves
    )
    header = ["", "checkpoint", "stall", *PARTS, "speed", "a step, to compare"]
    return Section("saving", "Save stall", about, header, rows, stages)


class Stopwatch:
    """Adds up the seconds that wrapped functions take."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def wrap(self, owner: Any, function: str, part: str) -> None:
        original: Callable[..., Any] = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - started

        setattr(owner, function, timed)


def _on_rank(config: RunConfig, folder: Path, saves: int) -> Dict[str, Any]:
    """Each save: its seconds and those of its parts. Timed from outside, at names that are not ftdist's own."""
    import torch.distributed as dist

    from ftdist.train import loop

    ranks = start_rank(config)
    training = assemble_run(config, folder / f"saved-zero{config.zero.stage}", ranks)
    watch = Stopwatch()
    watch.wrap(training.engine, "save_checkpoint", "writing")
    watch.wrap(os, "fsync", "syncing")
    if hasattr(hashlib, "file_digest"):  # not in Python 3.10
        watch.wrap(hashlib, "file_digest", "hashing")
    measured: List[Dict[str, float]] = []
    for index in range(saves + 1):
        started = time.perf_counter()
        loop.train_step(training, index)
        training.done.step += 1
        step_s = time.perf_counter() - started
        dist.barrier()
        watch.seconds = dict.fromkeys(PARTS, 0.0)
        started = time.perf_counter()
        path = loop._save(training)
        measured.append({"stall": time.perf_counter() - started, "step": step_s, **watch.seconds})
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"saves": measured[1:], "bytes": size, "parameters": parameter_count(training.engine)}


def _figures(per_rank: List[Dict[str, Any]]) -> Dict[str, Any]:
    names = ("stall", *PARTS, "step")
    slowest = [{name: max(save[name] for save in saves) for name in names}
               for saves in zip(*(rank["saves"] for rank in per_rank), strict=True)]  # fmt: skip
    figures: Dict[str, Any] = {f"{name}_s": asdict(spread([save[name] for save in slowest])) for name in names}
    return {**figures, "bytes": per_rank[0]["bytes"], "parameters": per_rank[0]["parameters"]}


def _row(stage: str, figures: Dict[str, Any]) -> List[str]:
    parts = [Spread(**figures[f"{part}_s"]).show("s") for part in ("stall", *PARTS)]
    speed = f"{figures['bytes'] / figures['stall_s']['median'] / 1e6:.0f} MB/s"
    step = Spread(**figures["step_s"]).show("s")
    return [stage, f"{figures['bytes'] / 1e6:.0f} MB", *parts, speed, step]
