"""Checkpoints: published whole or not at all, verified before they are loaded.

All ranks write into a temporary folder beside the target; every file is hashed and fsynced; when all ranks agree that
all is written, rank 0 writes the manifest and renames the folder into place. DeepSpeed's own ``latest`` is not used: it
is written before the last rank is done.

```
step-00000500/
  deepspeed/        what engine.save_checkpoint writes
  rng/rank-00000.pt random states of each rank
  hf/               model config, generation config, tokenizer, chat template: what an export needs
  state.json        step, tokens, losses so far
  manifest.json     step, world size, stage, versions, and size and sha256 of every file
```
"""

import hashlib
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
import torch.distributed as dist

from ftdist.errors import CheckpointError
from ftdist.rundir import MANIFEST, RunDir, checkpoint_step, read_json, write_json

TAG = "deepspeed"


def save_checkpoint(
    engine: Any, run: RunDir, step: int, state: Dict[str, Any], save_hf: Callable[[Path], None]
) -> Path:
    """Save after optimizer step ``step``; every rank calls it. ``save_hf`` writes the small Hugging Face files, on
    rank 0.

    Raises:
        CheckpointError: on every rank, if any rank could not write. Nothing published is touched.
    """
    rank, target = dist.get_rank(), run.checkpoint(step)
    if _saved_before(target, {"step": step, **state}):
        return target
    temporary = target.with_name(f".tmp-{target.name}")
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "rng").mkdir(parents=True)
    dist.barrier()
    error, digests = "", {}
    try:
        engine.save_checkpoint(str(temporary), tag=TAG, save_latest=False)
        torch.save(_rng_state(), temporary / "rng" / f"rank-{rank:05d}.pt")
        if rank == 0:
            save_hf(temporary / "hf")
            write_json(temporary / "state.json", {"step": step, **state})
        dist.barrier()
        digests = _digest_share(temporary, rank, dist.get_world_size())
    except (OSError, RuntimeError) as caught:
        error = f"rank {rank}: {caught}"
    _agree(error, temporary, step)
    everyone: List[Dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, digests)
    if rank == 0:
        _publish(temporary, target, engine, step, state, {k: v for part in everyone for k, v in part.items()})
    dist.barrier()
    return target


def _saved_before(target: Path, state: Dict[str, Any]) -> bool:
    """Whether the run was interrupted after this checkpoint: resumed, it comes to the same. Not the same where it was
    stopped before an evaluation that it has made up for now: which checkpoint is the best depends on that."""
    same = [dist.get_rank() == 0 and (target / MANIFEST).is_file() and read_json(target / "state.json") == state]
    dist.broadcast_object_list(same)
    return same[0]


def _agree(error: str, temporary: Path, step: int) -> None:
    errors: List[str] = ["" for _ in range(dist.get_world_size())]
    dist.all_gather_object(errors, error)
    failed = [e for e in errors if e]
    if failed:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the checkpoint of step {step} could not be written: {failed[0]}",
                              "space and write permission in the run directory",
                              "make room, then: ftdist resume RUN_DIR")  # fmt: skip


def _publish(
    temporary: Path, target: Path, engine: Any, step: int, state: Dict[str, Any], files: Dict[str, Any]
) -> None:
    manifest = {
        "step": step,
        "eval_loss": state.get("eval_loss"),
        "world_size": dist.get_world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "bf16": bool(engine.bfloat16_enabled()),
        "versions": {name: version(name) for name in ("ftdist", "torch", "deepspeed", "transformers")},
        "files": dict(sorted(files.items())),
    }
    write_json(temporary / MANIFEST, manifest)
    _fsync(temporary / MANIFEST)
    for folder in (temporary / TAG, temporary / "rng", temporary / "hf", temporary):
        _fsync(folder)
    replaced = target.with_name(f".old-{target.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():  # an unpublished rest, or one from before its evaluation
        target.rename(replaced)
    temporary.rename(target)
    _fsync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _rng_state() -> Dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _digest_share(folder: Path, rank: int, world_size: int) -> Dict[str, Any]:
    """Hash and fsync every world_size-th file: all ranks together cover all of them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": _sha256(p, sync=True)}
        for p in files[rank::world_size]
    }


def _sha256(path: Path, sync: bool = False) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)
        if sync:
            os.fsync(file.fileno())
    return digest


def _slow(file: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_checkpoint(folder: Path) -> Optional[str]:
    """None if every file is as the manifest says, else what is wrong with which file."""
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if _sha256(path) != expected["sha256"]:
            return f"{name} does not have the hash that was written"
    return None


def load_newest(engine: Any, run: RunDir, note: Callable[[str], None]) -> Optional[Dict[str, Any]]:
    """Load the newest checkpoint that verifies; every rank calls it. Older ones are tried in turn, each bad one named.

    Returns:
        The checkpoint's state (``step`` …), or None where there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints and none verifies, or it was saved on another number of ranks or stage.
    """
    choice: List[Any] = [None]
    if dist.get_rank() == 0:
        choice = [_choose(run)]
    dist.broadcast_object_list(choice)
    found, bad = choice[0]
    for problem in bad:
        note(f"checkpoint {problem}: set aside as bad-…, falling back to an older one")
    if found is None:
        if bad:
            raise CheckpointError(f"no checkpoint of {run.path} can be trusted: {bad[0]}",
                                  "one whose files are as they were written",
                                  "start a new run")  # fmt: skip
        return None
    folder, manifest = Path(found), read_json(Path(found) / MANIFEST)
    here = {"world_size": dist.get_world_size(), "zero_stage": engine.zero_optimization_stage(),
            "bf16": bool(engine.bfloat16_enabled())}  # fmt: skip
    for name, value in here.items():
        if manifest[name] != value:
            raise CheckpointError(f"{folder.name} was saved with {name} {manifest[name]}, this run has {value}",
                                  f"{name} {manifest[name]}", "resume with the run's own settings")  # fmt: skip
    # DeepSpeed unpickles its files: they are ours, inside the run directory, and their hashes were just verified.
    engine.load_checkpoint(str(folder), tag=TAG)
    rng = torch.load(folder / "rng" / f"rank-{dist.get_rank():05d}.pt", weights_only=True)
    torch.set_rng_state(rng["cpu"])
    if "cuda" in rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(rng["cuda"])
    return read_json(folder / "state.json")


def _choose(run: RunDir) -> Any:
    bad: List[str] = []
    for folder in reversed(run.published_checkpoints()):
        problem = verify_checkpoint(folder)
        if problem is None:
            return str(folder), bad
        bad.append(f"{folder.name}: {problem}")
        folder.rename(folder.with_name(f"bad-{folder.name}"))  # the run will come to this step again
    return None, bad


def prune(run: RunDir, keep: int) -> None:
    """Rank 0: delete all but the newest ``keep`` checkpoints and the best by held-out loss."""
    published = run.published_checkpoints()
    scored = [(loss, p) for p in published if (loss := read_json(p / MANIFEST).get("eval_loss")) is not None]
    best = min(scored, key=lambda pair: (pair[0], -checkpoint_step(pair[1])))[1] if scored else None
    for folder in published[:-keep]:
        if folder != best:
            # Renamed first: a crash in the middle leaves nothing that looks like a checkpoint.
            doomed = folder.with_name(f".old-{folder.name}")
            folder.rename(doomed)
            shutil.rmtree(doomed)
    for rest in [*run.checkpoints.glob(".old-*"), *run.checkpoints.glob(".tmp-*")]:
        shutil.rmtree(rest, ignore_errors=True)
