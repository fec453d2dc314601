"""Save stall: how long training waits for a checkpoint, and the shares of hashing and fsync."""

import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, List

from ftdist.config.schema import RunConfig
from tests.bench.figures import Section, Spread, spread
from tests.bench.subject import assemble_run, make_subject, num_ranks, parameter_count, start_rank
from tests.bench.tax import at_stage
from tests.helpers.ranks import run_ranks

WAYS = ("beside training", "while it waits", "DeepSpeed's save_checkpoint")
PARTS = ("stall", "published", "hashing", "syncing", "step", "step beside")

ABOUT = """\
`stall` is the time from the end of a step until training continues, `published` until the checkpoint is on the disk.
A Llama of {parameters:.1f} M parameters with optimizer states, {ranks} ranks, {precision}, {saves} saves. `beside
training` is the default, `while it waits` is `train.async_checkpoint=false`. DeepSpeed's own save_checkpoint neither
hashes nor syncs, and is not atomic. `hashing` is one sha256 of a rank's files, `syncing` is fsync; `step` is a step
alone, `step beside` is one during which a checkpoint is written. All values are those of the slowest rank."""


def measure(folder: Path, quick: bool) -> Section:
    saves = 2 if quick else 10
    config = make_subject(folder, quick)
    figures: Dict[str, Any] = {}
    for stage in (2, 3):
        for way in WAYS:
            asked = at_stage(config, stage)
            asked = replace(asked, train=replace(asked.train, async_checkpoint=way == WAYS[0]))
            per_rank = run_ranks(_on_rank, num_ranks(), asked, folder, saves, way, timeout_s=1800)
            figures[f"zero{stage} {way}"] = _figures(per_rank)
    about = ABOUT.format(parameters=per_rank[0]["parameters"] / 1e6, ranks=num_ranks(),
                         precision=config.train.precision.name, saves=saves)  # fmt: skip
    header = ["", "checkpoint", *PARTS]
    rows = [_row(name.replace("zero", "ZeRO-"), found) for name, found in figures.items()]
    return Section("saving", "Save stall", about, header, rows, figures)


class Stopwatch:
    """Sums the seconds that a wrapped function takes."""

    def __init__(self, owner: Any, function: str) -> None:
        self.seconds, original = 0.0, getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        setattr(owner, function, timed)


def _on_rank(config: RunConfig, folder: Path, saves: int, way: str) -> Dict[str, Any]:
    """Return the seconds of each save and of its parts."""
    import torch.distributed as dist

    from ftdist.train import loop

    ranks = start_rank(config)
    training = assemble_run(config, folder / f"{way.split()[0]}-zero{config.zero.stage}", ranks)
    fsync, measured = Stopwatch(os, "fsync"), []

    def step() -> float:
        dist.barrier()
        started = time.perf_counter()
        loop.train_step(training, training.state.step)
        training.state.step += 1
        return time.perf_counter() - started

    for _ in range(saves + 1):
        seconds = {"step": step()}
        dist.barrier()
        fsync.seconds, started = 0.0, time.perf_counter()
        path = (_deepspeed_save if way == WAYS[2] else _own_save)(training)
        seconds["stall"] = time.perf_counter() - started
        seconds["step beside"] = step()
        training.saver.finish()
        when = training.saver.published[1] - time.time() + time.perf_counter() if training.saver.published else None
        seconds |= {"published": when - started if when else seconds["stall"], "syncing": fsync.seconds}
        dist.barrier()
        started = time.perf_counter()
        for file in sorted(path.rglob("*"))[ranks.rank :: ranks.world_size] if path.is_dir() else []:
            _hash(file)
        seconds["hashing"] = time.perf_counter() - started
        measured.append(seconds)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"saves": measured[1:], "bytes": size, "parameters": parameter_count(training.engine)}


def _own_save(training: Any) -> Path:
    from ftdist.train import loop

    loop._save(training)
    return training.run.checkpoint(training.state.step)


def _deepspeed_save(training: Any) -> Path:
    place = training.run.checkpoints / "deepspeed"
    if training.ranks.first:
        shutil.rmtree(place, ignore_errors=True)
    training.engine._wrapped.save_checkpoint(str(place), tag="tag", save_latest=False)
    return place


def _hash(file: Path) -> None:
    from ftdist.checkpoint.durable import sha256_of

    if file.is_file():
        sha256_of(file)


def _figures(per_rank: List[Dict[str, Any]]) -> Dict[str, Any]:
    slowest: List[Dict[str, float]] = [
        {name: max(save[name] for save in saves) for name in PARTS}
        for saves in zip(*(rank["saves"] for rank in per_rank), strict=True)
    ]
    figures: Dict[str, Any] = {f"{name}_s": asdict(spread([save[name] for save in slowest])) for name in PARTS}
    return {**figures, "bytes": per_rank[0]["bytes"], "parameters": per_rank[0]["parameters"]}


def _row(name: str, figures: Dict[str, Any]) -> List[str]:
    show: Callable[[str], str] = lambda part: Spread(**figures[f"{part}_s"]).show("s")  # noqa: E731
    shown = [show(part) for part in PARTS]
    if name.endswith(WAYS[2]):
        shown[PARTS.index("syncing")] = shown[PARTS.index("hashing")] = "none"
    return [name, f"{figures['bytes'] / 1e6:.0f} MB", *shown]
