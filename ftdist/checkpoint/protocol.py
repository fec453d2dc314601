"""How a checkpoint is written, published, verified, found and deleted.

A checkpoint is published completely or not at all. It is verified before anything is loaded from it.

```
step-00000500/
  rank-00000.safetensors  the state of rank 0: slices of fp32 master weights and moments, random states
  hf/                     model config, generation config, tokenizer and chat template, which an export needs
  state.json              step, tokens, losses so far, the run id of the tracker
  manifest.json           step, number of ranks, ZeRO stage, config hash, versions; size and SHA-256 of every file
  pinned                  if the user created it, the checkpoint is never deleted
```

Every rank writes its own file into ``.tmp-step-…``. When all files of all ranks are on the disk, rank 0 syncs the
metrics of the run, writes the manifest, renames the folder and syncs the rename. If a checkpoint of the same step
exists, it is kept as ``.old-step-…`` until the new one is in place. A checkpoint that is deleted is first renamed to
``.gone-step-…``. After a crash at any point, ``clean_up`` restores either the state before the save or the state after
it.
"""

import contextlib
import errno
import json
import os
import shutil
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist

from ftdist.base.errors import CheckpointError, FtdistError, error_text
from ftdist.base.output import quoted_path
from ftdist.base.permissions import require_readable_folder
from ftdist.checkpoint import durable
from ftdist.checkpoint.tensors import encode
from ftdist.parallel.collectives import BACKGROUND_GROUP
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
    """Return the name of the tensor file of a rank."""
    return f"rank-{rank:05d}.safetensors"


class RankAgreement:
    """Collective decisions of all ranks about checkpoints.

    They use their own process group, so that a save can run in the background of training. The timeout of the group is
    long, because a slow disk is not an error. If another rank ends, its connection is closed and the call fails at
    once.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1), group_desc=BACKGROUND_GROUP)

    def gather(self, value: Any) -> List[Any]:
        """Return the values of all ranks, in the order of the ranks. Every rank must call it."""
        everyone: List[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, value, group=self._group)
        return everyone

    def attempt(self, action: Callable[[], Any]) -> Tuple[List[Any], str]:
        """Run ``action`` on every rank and collect the results. An error on one rank is reported to all ranks, so that
        no rank waits for another one that has failed.

        Returns:
            The results of all ranks (None for a rank that failed), and the first error as text, "" if there was none.
        """
        result, problem = None, ""
        try:
            result = action()
        except Exception as error:
            problem = f"rank {self.rank}: {error_text(error)}"
        everyone = self.gather((result, problem))
        return [value for value, _ in everyone], next((text for _, text in everyone if text), "")


@dataclass(frozen=True)
class Contents:
    """The content of one checkpoint, before it is written."""

    step: int
    size: int
    """Size of the whole checkpoint in bytes, over all ranks."""
    tensors: Dict[str, torch.Tensor]
    """The tensors of this rank, by the key of their entry."""
    files: Dict[str, bytes]
    """The small files. They are the same on every rank, and rank 0 writes them."""
    manifest: Dict[str, Any]
    """The manifest without its list of files."""


def save_checkpoint(run: RunDir, contents: Contents, together: RankAgreement, keep: int) -> Tuple[str, str]:
    """Write and publish a checkpoint; if that succeeds, delete older ones. Every rank must call it.

    Args:
        keep: Number of the newest checkpoints to keep, see ``prune``.

    Returns:
        Why the checkpoint could not be written, and why older ones could not be deleted. "" stands for no problem.
    """
    problem = write_checkpoint(run, contents, together)
    if not problem and together.rank == 0:
        try:
            prune(run, contents.step, keep)
        except OSError as error:
            return "", f"older checkpoints could not be deleted: {error_text(error)}"
    return problem, ""


def write_checkpoint(run: RunDir, contents: Contents, together: RankAgreement) -> str:
    """Write and publish a checkpoint. Every rank must call it.

    Returns:
        "" if the checkpoint is published. Otherwise the first error and its rank, the same text on every rank. All
        checkpoints that were published before are then unchanged, and the files of the new one are removed.
    """
    target = run.checkpoint(contents.step)
    temporary = target.with_name(TEMPORARY + target.name)
    first = together.rank == 0
    _, problem = together.attempt(lambda: _make_folders(run, temporary, contents) if first else None)
    if not problem:
        parts, problem = together.attempt(lambda: _write_files(temporary, contents, together.rank))
    if not problem:
        files = {name: entry for part in parts for name, entry in part.items()}
        _, problem = together.attempt(lambda: _publish(run, temporary, contents, files) if first else None)
    if problem and first:
        with contextlib.suppress(OSError):
            clean_up(run)
    return problem


def _folders(temporary: Path, contents: Contents) -> List[Path]:
    return sorted({temporary, *(temporary / parent for name in contents.files for parent in Path(name).parents)})


def _make_folders(run: RunDir, temporary: Path, contents: Contents) -> None:
    if not run.checkpoints.is_dir():
        durable.make_folder(run.checkpoints)
    clean_up(run)
    free = shutil.disk_usage(run.checkpoints).free
    if free < contents.size:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk space: the checkpoint needs {size_text(contents.size)}, and {size_text(free)} are free",
        )
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
    # A resume appends to the metrics. They must be on the disk up to the step of the checkpoint.
    for record in (run.metrics, run.samples):
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
    # The target can exist already: the run was stopped after this save and before the evaluation, or a user created
    # this path.
    if os.path.lexists(target):
        durable.rename(target, replaced)
    durable.rename(temporary, target)
    durable.sync(target.parent)
    durable.remove(replaced)


def clean_up(run: RunDir) -> None:
    """Finish or undo the save that a crash has interrupted, so that only published checkpoints remain.

    Only rank 0 calls this function.

    A symbolic link or a file with a temporary name was not written by ftdist. It is removed; the target of a link
    stays.
    """
    for leftover in sorted(run.checkpoints.glob(f"{REPLACED}*")):
        target = leftover.with_name(leftover.name.removeprefix(REPLACED))
        if os.path.lexists(target) or leftover.is_symlink() or not leftover.is_dir():
            durable.remove(leftover)
        else:
            durable.rename(leftover, target)
    for leftover in sorted([*run.checkpoints.glob(f"{TEMPORARY}*"), *run.checkpoints.glob(f"{DELETED}*")]):
        durable.remove(leftover)


def prune(run: RunDir, step: int, keep: int) -> None:
    """Delete older checkpoints, after the checkpoint of ``step`` was published. Only rank 0 calls this function.

    The following checkpoints are kept: the newest ``keep`` checkpoints that were due, the checkpoint of ``step``, the
    one with the lowest held-out loss, and those that are pinned. Checkpoints after ``step`` are ignored: either they
    are damaged and could not be set aside, or the run has rolled back past them.
    """
    published = [path for path in run.published_checkpoints() if checkpoint_step(path) <= step]
    kept = [*[path for path in published if was_due(path)][-keep:], published[-1], run.best_checkpoint()]
    deleted = [path for path in published if path not in kept and not (path / PINNED).exists()]
    for folder in deleted:
        # A crash during the deletion must not leave a folder that looks like a checkpoint.
        renamed = folder.with_name(DELETED + folder.name)
        durable.rename(folder, renamed)
        durable.remove(renamed)


def verify_checkpoint(folder: Path, rank: int = 0, world_size: int = 1) -> Optional[str]:
    """Compare the files of a checkpoint with its manifest. Each of several ranks reads a share of the files.

    Returns:
        None if every file is unchanged since it was written. Otherwise which file is wrong, and how.
    """
    try:
        manifest = read_manifest(folder)
        files, format_ = manifest["files"], manifest["format"]
    except FtdistError as error:
        return error.found
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
            return "is a symbolic link or is in a linked folder; files must be in the checkpoint itself"
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != expected["size"]:
            return f"has {path.stat().st_size} bytes instead of {expected['size']}"
        if durable.sha256_of(path) != expected["sha256"]:
            return f"does not match its SHA-256 in {MANIFEST}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def find_newest(run: RunDir, together: RankAgreement, note: Callable[[str], None], due: bool = False) -> Optional[Path]:
    """Find the newest checkpoint whose files are all unchanged since they were written. Every rank must call it.

    Damaged checkpoints are reported and set aside, so that the run can save their steps again.

    Args:
        note: Prints one line for the user.
        due: Prefer checkpoints that were due (every ``train.checkpoint_every`` steps) over those that were saved only
            because the run was stopped.

    Returns:
        The folder of the checkpoint, or None if the run has never saved one.

    Raises:
        CheckpointError: Every checkpoint is damaged, including those that were set aside. A run that has made progress
            must not start again from the beginning without the user's decision.
    """
    first = together.rank == 0
    found, problem = together.attempt(lambda: _list_checkpoints(run, due) if first else None)
    if problem:
        raise CheckpointError(
            f"cannot look for checkpoints in {run.checkpoints}: {problem}",
            "a folder that can be read",
            "check the owner and mode of the folder and the disk, then run ftdist resume",
        )
    names, set_aside = found[0]
    newest_problem = ""
    for name in reversed(names):
        folder = run.checkpoints / name
        _, problem = together.attempt(partial(require_readable_folder, folder))
        if problem:  # it may be good, so it must not be set aside
            raise CheckpointError(problem, "a checkpoint that you may read", "resume as the owner of the checkpoint")
        verdicts = together.gather(verify_checkpoint(folder, together.rank, together.world_size))
        damage = next((text for text in verdicts if text), None)
        if damage is None:
            return folder
        newest_problem = newest_problem or f"{name}: {damage}"
        if first:
            note(f"checkpoint {name} is damaged ({damage}). {_set_aside(folder)}; looking for an older checkpoint")
    if newest_problem or set_aside:
        newest_problem = newest_problem or f"{set_aside[-1]} was set aside, and there is no other checkpoint"
        raise CheckpointError(f"no checkpoint of {run.path} can be trusted: {newest_problem}",
                              "a checkpoint whose files are unchanged since they were written",
                              "start a new run. Or delete all checkpoints and restart this run from step 0: "
                              f"rm -r {quoted_path(run.checkpoints)}")  # fmt: skip
    return None


def _list_checkpoints(run: RunDir, due: bool) -> Tuple[List[str], List[str]]:
    """Return the names of the checkpoints, the preferred one last, and the names of those that were set aside."""
    if run.checkpoints.is_dir():
        with contextlib.suppress(OSError):  # a read-only disk can still be read; the next save reports the problem
            clean_up(run)
    folders = run.checkpoint_folders()
    if due:
        folders.sort(key=was_due)  # the sort is stable, so each group stays in the order of the steps
    return [path.name for path in folders], run.bad_checkpoints()


def _set_aside(folder: Path) -> str:
    renamed = folder.with_name(BAD_PREFIX + folder.name)
    try:
        durable.remove(renamed)
        durable.rename(folder, renamed)
    except OSError as error:
        return f"It cannot be renamed ({error.strerror})"
    return f"It was renamed to {renamed.name}"


def to_json(value: Any) -> bytes:
    """Return ``value`` as the content of a JSON file."""
    return (json.dumps(value, indent=1) + "\n").encode()
