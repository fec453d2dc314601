"""Checkpoints of a few numbers, written without an engine."""

import hashlib
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from ftdist.base.json_files import read_json
from ftdist.checkpoint.protocol import FORMAT, Contents, rank_file, to_json
from ftdist.checkpoint.tensors import Stored, key_of
from ftdist.run.rundir import RunDir, read_manifest

LENGTH = 40


class Alone:
    """A stand-in for ``RankAgreement`` with one rank."""

    rank, world_size = 0, 1

    def gather(self, value: Any) -> List[Any]:
        return [value]

    def attempt(self, action: Callable[[], Any]) -> Tuple[List[Any], str]:
        try:
            return [action()], ""
        except Exception as error:
            return [None], f"rank 0: {error}"


def contents(
    step: int, value: float = 0.0, rank: int = 0, world_size: int = 1, eval_loss: Optional[float] = None,
    length: int = LENGTH, size: int = 10_000, due: bool = True,
) -> Contents:  # fmt: skip
    """Return this rank's part of a checkpoint. All contents follow from ``step`` and ``value``."""
    tensors = {key_of("master", rank * length, "w"): torch.full((length,), step + value)}
    return Contents(
        step=step, size=size, tensors=tensors,
        files={"hf/a.json": b"{}", "hf/more/b.txt": b"text", "state.json": to_json({"step": step, "value": value})},
        manifest={"format": FORMAT, "step": step, "due": due, "eval_loss": eval_loss, "world_size": world_size},
    )  # fmt: skip


def what_is_in(checkpoint: Path) -> Tuple[int, float]:
    """Return step and value of a checkpoint, after checking that all its files agree on them."""
    manifest, state = read_manifest(checkpoint), read_json(checkpoint / "state.json")
    world_size = manifest["world_size"]
    stored = Stored([checkpoint / rank_file(rank) for rank in range(world_size)])
    numbers = stored.read("master", "w", 0, world_size * LENGTH)
    assert set(numbers.tolist()) == {state["step"] + state["value"]} and manifest["step"] == state["step"]
    return state["step"], state["value"]


def contained(run: RunDir) -> List[Tuple[int, float]]:
    return [what_is_in(path) for path in run.published_checkpoints()]


def hashes(folder: Path) -> Dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip_one_bit(path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw, data = random.Random(seed), bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
