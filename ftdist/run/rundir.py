"""The run directory: the interface between what launches a run and the ranks that run it. [light]

Both also read the cache, see ``ftdist.run.prepared``, ``ftdist.run.model_facts`` and ``ftdist.run.locations``.
"""

import hashlib
import json
import math
import re
import stat
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import CheckpointError, ConfigError
from ftdist.base.json_files import read_json, read_records, write_json
from ftdist.base.names import near_paths

CHECKPOINT_PREFIX = "step-"
CHECKPOINT_NAME = re.compile(CHECKPOINT_PREFIX + r"\d+")
BAD = "bad-"
"""Before the name of a checkpoint that was found not to be as it was written, and set aside."""
MANIFEST = "manifest.json"
PINNED = "pinned"
"""A file of this name in a checkpoint's folder (``touch`` it) keeps the checkpoint for good."""
STOPPED = "stopped"
"""The exit reason of a run whose state is preempted because its user asked for it."""
NUMBER = (int, float)
STATUS_TYPES: Dict[str, Any] = {
    "state": str, "host": str, "job_id": str, "nodes": str, "exit_reason": str,
    "step": int, "max_steps": int, "last_checkpoint_step": int, "attempt": int, "pid": int, "requeues": int,
    "exit_code": int, "time": NUMBER, "last_checkpoint_time": NUMBER, "loss": NUMBER, "tokens_per_s": NUMBER,
}  # fmt: skip
"""What the fields of status.json hold where they are not null."""


SWEEP_REQUEST = "sweep.json"
"""In the folder of a sweep: what was asked for."""


def refuse_sweep(place: Path) -> None:
    """
    Raises:
        ConfigError: it is the folder of a sweep.
    """
    if (place / SWEEP_REQUEST).is_file():
        raise ConfigError(f"{place} is a sweep", "one of its runs", f"ftdist sweep {place} lists them, best first")


class RunDir:
    """Names of what lies in a run directory, and its small files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "run.yaml"
        self.deepspeed = self.path / "deepspeed.json"
        self.provenance = self.path / "provenance.json"
        self.submit = self.path / "submit.sbatch"
        self.preempt = self.path / "preempt"
        self.cancel = self.path / "cancel"
        self.attempt = self.path / "attempt"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.wandb = self.path / "wandb"

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """An existing run.

        Raises:
            ConfigError: there is no run at ``path``, or a sweep of many.
        """
        run = cls(path)
        refuse_sweep(run.path)
        if not run.config.is_file():
            found = "does not exist" if not run.path.exists() else "holds no run.yaml"
            near = [place for place in near_paths(str(path)) if cls(place).config.is_file()]
            fix = " or ".join(near) or "ftdist status lists the runs in ./runs"
            raise ConfigError(f"{path} {found}", "a run directory", fix)
        return run

    def error_file(self, rank: int, attempt: int) -> Path:
        """Where a rank that fails leaves ``{"rank", "host", "time", "message", "traceback",
        "known", "exit_code"}``; known is an error that its message explains."""
        return self.logs / f"rank-{rank:05d}.attempt-{attempt}.error.json"

    def stacks_file(self, rank: int, attempt: int) -> Path:
        """Where a rank leaves its Python stacks when the run fails."""
        return self.logs / f"rank-{rank:05d}.attempt-{attempt}.stacks.txt"

    def log_file(self, rank: int, attempt: int) -> Path:
        return self.logs / f"rank-{rank:05d}.attempt-{attempt}.log"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{CHECKPOINT_PREFIX}{step:08d}"

    def job_log(self, job: str) -> Path:
        """What the batch script and rank 0 of a Slurm job print."""
        return self.logs / f"slurm-{job}.out"

    def published_checkpoints(self) -> List[Path]:
        """Checkpoints that were published (renamed into place with a manifest), oldest first.

        Raises:
            CheckpointError: one is a link.
        """
        return [path for path in self.checkpoint_folders() if (path / MANIFEST).is_file()]

    def checkpoint_folders(self) -> List[Path]:
        """Whatever has the name of a checkpoint, oldest first: also one that has lost its manifest, no user's copy.

        Raises:
            CheckpointError: one is a link. What is loaded lies in the run directory itself.
        """
        if not self.checkpoints.is_dir():
            return []
        found = [p for p in self.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir()]
        for link in (p for p in found if p.is_symlink()):
            raise CheckpointError(f"{link} is a link to {link.resolve()}", "a folder in the run directory",
                                  "move the checkpoint there (all of checkpoints/ may be a link)")  # fmt: skip
        return sorted(found, key=checkpoint_step)

    def bad_checkpoints(self) -> List[str]:
        """Names of those that were set aside, oldest first."""
        return sorted(path.name for path in self.checkpoints.glob(f"{BAD}*"))

    def find_checkpoint(self, name: str) -> Path:
        """``last``, ``best``, or a step number.

        Raises:
            ConfigError: there is none of that name; says which there are.
        """
        published = self.published_checkpoints()
        chosen: Optional[Path] = None
        if name == "last":
            chosen = published[-1] if published else None
        elif name == "best":
            chosen = self.best_checkpoint()
        else:
            steps = {str(checkpoint_step(p)): p for p in published}
            chosen = steps.get(name.removeprefix(CHECKPOINT_PREFIX).lstrip("0") or "0")
        if chosen is None:
            have = ", ".join(str(checkpoint_step(p)) for p in published) or "none"
            raise ConfigError(f"no checkpoint '{name}' in {self.path}", f"last, best or a step of: {have}")
        return chosen

    def best_checkpoint(self) -> Optional[Path]:
        """That with the lowest held-out loss, the newest of equals; None where none was evaluated at its step."""
        scored = []
        for path in self.published_checkpoints():
            try:
                loss = read_manifest(path)["eval_loss"]
            except CheckpointError:  # damaged: found out when it is loaded
                continue
            if loss is not None and math.isfinite(loss):
                scored.append((loss, -checkpoint_step(path), path))
        return min(scored)[2] if scored else None

    def read_status(self) -> Dict[str, Any]:
        """What status.json holds; nothing where there is none.

        Raises:
            ConfigError: it is not JSON, or a field has the wrong type.
        """
        mend = f"rm {self.status}: a run goes on without it"
        try:
            found = read_json(self.status) if self.status.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{self.status}: {error}", "a status that ftdist wrote", mend) from error
        for name, value in found.items():
            if value is not None and not isinstance(value, STATUS_TYPES.get(name, object)):
                raise ConfigError(f"{self.status} holds {name}={value!r}", "a status that ftdist wrote", mend)
        return found

    def write_status(self, **changes: Any) -> None:
        """Change some fields of status.json: state (frozen, queued, starting, running, done, failed, preempted), step,
        max_steps, loss, tokens_per_s, last_checkpoint_step, last_checkpoint_time, exit_reason, attempt; of a run on
        this machine pid and host, of a Slurm job job_id, nodes and requeues. One writer at a time."""
        # Not fsynced at every logged step: it could wait for all of a checkpoint that is written beside training.
        write_json(self.status, {**self.read_status(), **changes, "time": time.time()}, durable=False)

    def read_metrics(self) -> List[Dict[str, Any]]:
        """Every record of metrics.jsonl; a last line cut by a crash is left out."""
        return read_records(self.metrics)


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix(CHECKPOINT_PREFIX))


def was_due(checkpoint: Path) -> bool:
    """Not made only because the run was asked to stop: what another run of these settings would have too."""
    try:
        return bool(read_manifest(checkpoint).get("due", True))
    except CheckpointError:  # damaged: found out when it is loaded
        return True


def manifest_text(manifest: Dict[str, Any]) -> str:
    """The text of a manifest.json, which holds its own hash: that of the text with an empty one in its place."""
    bare = json.dumps({**manifest, "sha256": ""}, indent=1)
    return json.dumps({**manifest, "sha256": hashlib.sha256(bare.encode()).hexdigest()}, indent=1) + "\n"


def read_manifest(checkpoint: Path) -> Dict[str, Any]:
    """What a checkpoint consists of: step, world_size, zero_stage … and size and sha256 of every file.

    Raises:
        CheckpointError: it cannot be read, or is not byte for byte as it was written.
    """
    path = checkpoint / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a link leads elsewhere, a pipe would be waited for
            raise ValueError("it is a link, a pipe or the like, not a file of its own")
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        if manifest_text(manifest) == text:
            return manifest
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} of {checkpoint.name} cannot be read: {error}") from error
    raise CheckpointError(f"{MANIFEST} of {checkpoint.name} does not have the hash that was written")
