"""Checkpoints: published whole or not at all, verified before anything is loaded from them.

```
step-00000500/
  rank-00000.safetensors  what rank 0 held: slices of fp32 masters and moments, its random states
  hf/                     model config, generation config, tokenizer, chat template: what an export needs
  state.json              step, tokens, losses so far, the tracker's run id
  manifest.json           step, number of ranks, stage, config hash, versions; size and sha256 of every file; its own
  pinned                  (where a user made it) never deleted
```

Every rank writes its own file into ``.tmp-step-…``; when all agree that all is on the disk, rank 0 has the run's record
there too, writes the manifest, renames the folder and has the rename on the disk. A checkpoint that is replaced waits
as ``.old-step-…`` until the new one is in place, one that is deleted becomes ``.gone-step-…`` first: whatever moment a
crash picks, ``tidy`` finds the old state or the new one.
"""

import contextlib
import errno
import json
import os
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist

from ftdist.base.errors import CheckpointError
from ftdist.checkpoint import durable
from ftdist.checkpoint.tensors import encode
from ftdist.plan.disk import size_text
from ftdist.run.rundir import (
    BAD_PREFIX,
    MANIFEST,
    PINNED,
    RunDir,
    checkpoint_step,
    manifest_text,
    read_manifest,
    was_due,
)

FORMAT = 1
HF, STATE = "hf", "state.json"
TEMPORARY, REPLACED, DELETED = ".tmp-", ".old-", ".gone-"


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


class Together:
    """The ranks of a run, agreeing about checkpoints in a process group of their own, so that a save can run beside
    training. Its timeout is long: a slow disk is not a fault, and a rank that is gone closes the connection."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1), group_desc="checkpoints")

    def gather(self, value: Any) -> List[Any]:
        """The value of every rank. Nobody goes on before all have come here."""
        everyone: List[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, value, group=self._group)
        return everyone

    def attempt(self, action: Callable[[], Any]) -> Tuple[List[Any], str]:
        """What ``action`` returned on every rank, and the first error of any: no rank waits for one that failed."""
        result, problem = None, ""
        try:
            result = action()
        except Exception as error:
            problem = f"rank {self.rank}: {_described(error)}"
        everyone = self.gather((result, problem))
        return [value for value, _ in everyone], next((text for _, text in everyone if text), "")


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({Path(error.filename).name})" if error.filename else "")
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Contents:
    """One checkpoint, before it is written."""

    step: int
    size: int
    """Bytes that it will take, over all ranks."""
    tensors: Dict[str, torch.Tensor]
    """This rank's, by entry."""
    files: Dict[str, bytes]
    """Small files, the same on every rank; rank 0 writes them."""
    manifest: Dict[str, Any]
    """All of it but the files."""


def save_checkpoint(run: RunDir, contents: Contents, together: Together, keep: int) -> Tuple[str, str]:
    """``write_checkpoint``, and where it is published, and only then, ``prune``.

    Returns:
        What went wrong with the one and with the other; "" is nothing.
    """
    problem = write_checkpoint(run, contents, together)
    if not problem and together.rank == 0:
        try:
            prune(run, contents.step, keep)
        except OSError as error:
            return "", f"older checkpoints could not be deleted: {_described(error)}"
    return problem, ""


def write_checkpoint(run: RunDir, contents: Contents, together: Together) -> str:
    """Write and publish a checkpoint; every rank calls it.

    Returns:
        "" where it is published, else what went wrong on which rank: the same text on every rank. Then nothing that was
        published has been touched and nothing of it is left.
    """
    target = run.checkpoint(contents.step)
    temporary = target.with_name(TEMPORARY + target.name)
    first = together.rank == 0
    _, problem = together.attempt(lambda: _begin(run, temporary, contents) if first else None)
    if not problem:
        parts, problem = together.attempt(lambda: _write_files(temporary, contents, together.rank))
    if not problem:
        files = {name: entry for part in parts for name, entry in part.items()}
        _, problem = together.attempt(lambda: _publish(run, temporary, contents, files) if first else None)
    if problem and first:
        with contextlib.suppress(OSError):
            tidy(run)
    return problem


def _folders(temporary: Path, contents: Contents) -> List[Path]:
    return sorted({temporary, *(temporary / parent for name in contents.files for parent in Path(name).parents)})


def _begin(run: RunDir, temporary: Path, contents: Contents) -> None:
    if not run.checkpoints.is_dir():
        durable.make_folder(run.checkpoints)
    tidy(run)
    free = shutil.disk_usage(run.checkpoints).free
    if free < contents.size:
        raise OSError(errno.ENOSPC, f"no space: it takes {size_text(contents.size)}, {size_text(free)} are free")
    for folder in _folders(temporary, contents):
        durable.make_folder(folder)


def _write_files(temporary: Path, contents: Contents, rank: int) -> Dict[str, Any]:
    written = {rank_file(rank): durable.write_file(temporary / rank_file(rank), encode(contents.tensors))}
    if rank == 0:
        for name, data in contents.files.items():
            written[name] = durable.write_file(temporary / name, [data])
    return written


def _publish(run: RunDir, temporary: Path, contents: Contents, files: Dict[str, Any]) -> None:
    target = run.checkpoint(contents.step)
    for record in (run.metrics, run.samples):  # a resume goes on behind what they say of the steps up to here
        if record.is_file() and not record.is_symlink():
            durable.sync(record)
    durable.sync(run.path)
    manifest = {**contents.manifest, "files": dict(sorted(files.items()))}
    durable.write_file(temporary / MANIFEST, [manifest_text(manifest).encode()])
    if (target / PINNED).exists():
        durable.write_file(temporary / PINNED, [])
    for folder in reversed(_folders(temporary, contents)):
        durable.sync(folder)
    replaced = target.with_name(REPLACED + target.name)
    if os.path.lexists(target):  # that of a run that stopped before its evaluation, or what is no checkpoint
        durable.rename(target, replaced)
    durable.rename(temporary, target)
    durable.sync(target.parent)
    durable.remove(replaced)


def tidy(run: RunDir) -> None:
    """Rank 0: finish or undo what a crash has cut. Afterwards there are published checkpoints only. A link or a file
    of such a name is not ours: it goes, and what a link leads to stays."""
    for rest in sorted(run.checkpoints.glob(f"{REPLACED}*")):
        target = rest.with_name(rest.name.removeprefix(REPLACED))
        if os.path.lexists(target) or rest.is_symlink() or not rest.is_dir():
            durable.remove(rest)
        else:
            durable.rename(rest, target)
    for rest in sorted([*run.checkpoints.glob(f"{TEMPORARY}*"), *run.checkpoints.glob(f"{DELETED}*")]):
        durable.remove(rest)


def prune(run: RunDir, step: int, keep: int) -> None:
    """Rank 0, after the checkpoint of ``step`` was published: of those up to it delete all but the newest ``keep`` that
    were due, this one, the best by held-out loss and the pinned ones. A later one was found bad and could not be set
    aside, or is of steps that the run has gone back behind: it counts for nothing."""
    published = [path for path in run.published_checkpoints() if checkpoint_step(path) <= step]
    kept = [*[path for path in published if was_due(path)][-keep:], published[-1], run.best_checkpoint()]
    doomed = [path for path in published if path not in kept and not (path / PINNED).exists()]
    for folder in doomed:
        # Renamed first: a crash in the middle leaves nothing that looks like a checkpoint.
        gone = folder.with_name(DELETED + folder.name)
        durable.rename(folder, gone)
        durable.remove(gone)


def verify_checkpoint(folder: Path, rank: int = 0, world_size: int = 1) -> Optional[str]:
    """None if every file is as it was written, else what is wrong with which. Of several ranks each reads its share."""
    try:
        manifest = read_manifest(folder)
        files, format_ = manifest["files"], manifest["format"]
    except CheckpointError as error:
        return str(error)
    except KeyError as error:
        return f"{MANIFEST} lacks {error}"
    if format_ != FORMAT:
        return f"it has format {format_}, this version of ftdist reads {FORMAT}"
    if outside := next((name for name in files if Path(name).is_absolute() or ".." in Path(name).parts), None):
        return f"{MANIFEST} lists {outside}, which is not in the checkpoint"
    needed = {STATE, *(rank_file(number) for number in range(manifest["world_size"]))}
    if not needed <= files.keys():
        return f"{MANIFEST} does not list {min(needed - files.keys())}"
    for name in sorted(files)[rank::world_size]:
        if problem := _verify_file(folder, name, files[name]):
            owner = f"{name} of rank {int(name[5:10])}" if name.startswith("rank-") else name
            return f"{owner} {problem}"
    return None


def _verify_file(folder: Path, name: str, expected: Dict[str, Any]) -> Optional[str]:
    path = folder / name
    try:
        if any(place.is_symlink() for place in (path, *path.parents) if folder in place.parents):
            return "is a link, or lies in one: what is loaded lies in the checkpoint itself"
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != expected["size"]:
            return f"has {path.stat().st_size} bytes, not {expected['size']}"
        if durable.sha256_of(path) != expected["sha256"]:
            return "does not have the hash that was written"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def find_newest(run: RunDir, together: Together, note: Callable[[str], None], due: bool = False) -> Optional[Path]:
    """The newest checkpoint of which every file is as it was written; None where there has been none at all. Bad ones
    are named and set aside, so that the run comes to their steps again. Every rank calls it.

    Args:
        due: those that only a stop has made come after all others.

    Raises:
        CheckpointError: there are checkpoints, or bad ones that were set aside, and none is good: a run that had come
            so far must not begin again by itself.
    """
    first = together.rank == 0
    found, problem = together.attempt(lambda: _names(run, due) if first else None)
    if problem:
        raise CheckpointError(f"cannot look for checkpoints in {run.checkpoints}: {problem}")
    names, set_aside = found[0]
    worst = ""
    for name in reversed(names):
        folder = run.checkpoints / name
        verdicts = together.gather(verify_checkpoint(folder, together.rank, together.world_size))
        bad = next((text for text in verdicts if text), None)
        if bad is None:
            return folder
        worst = worst or f"{name}: {bad}"
        if first:
            note(f"checkpoint {name}: {bad}: {_set_aside(folder)}, falling back to an older one")
    if worst or set_aside:
        worst = worst or f"{set_aside[-1]} was set aside, and there is no other"
        raise CheckpointError(f"no checkpoint of {run.path} can be trusted: {worst}",
                              "one whose files are as they were written",
                              f"start a new run, or begin this one again: rm -r {run.checkpoints}")  # fmt: skip
    return None


def _names(run: RunDir, due: bool) -> Tuple[List[str], List[str]]:
    """Names of the checkpoints, that to take last, also of one that has lost its manifest; and of those set aside."""
    if run.checkpoints.is_dir():
        with contextlib.suppress(OSError):  # a read-only disk can still be read; a save will say that it is
            tidy(run)
    folders = run.checkpoint_folders()
    if due:
        folders.sort(key=was_due)  # those of a kind stay in their order
    return [path.name for path in folders], run.bad_checkpoints()


def _set_aside(folder: Path) -> str:
    place = folder.with_name(BAD_PREFIX + folder.name)
    try:
        durable.remove(place)
        durable.rename(folder, place)
    except OSError as error:
        return f"it cannot be set aside ({error.strerror})"
    return f"set aside as {place.name}"


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
