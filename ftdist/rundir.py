"""The run directory: the only interface between what launches a run and the ranks that run it."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.errors import CheckpointError, ConfigError

CHECKPOINT_PREFIX = "step-"
MANIFEST = "manifest.json"
PINNED = "pinned"
"""A file of this name in a checkpoint's folder (``touch`` it) keeps the checkpoint for good."""


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
            ConfigError: there is no run at ``path``.
        """
        run = cls(path)
        if not run.config.is_file():
            found = "does not exist" if not run.path.exists() else "holds no run.yaml"
            raise ConfigError(f"{path} {found}", "a run directory", "ftdist status lists the runs in ./runs")
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
        """Checkpoints that were published (renamed into place with a manifest), oldest first."""
        if not self.checkpoints.is_dir():
            return []
        found = [p for p in self.checkpoints.glob(f"{CHECKPOINT_PREFIX}[0-9]*") if (p / MANIFEST).is_file()]
        return sorted(found, key=checkpoint_step)

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
            if loss is not None:
                scored.append((loss, -checkpoint_step(path), path))
        return min(scored)[2] if scored else None

    def read_status(self) -> Dict[str, Any]:
        return read_json(self.status) if self.status.is_file() else {}

    def write_status(self, **changes: Any) -> None:
        """Change some fields of status.json: state (frozen, queued, starting, running, done, failed, preempted), step,
        max_steps, loss, tokens_per_s, last_checkpoint_step, last_checkpoint_time, exit_reason, attempt; of a run on
        this machine pid and host, of a Slurm job job_id, nodes and requeues. One writer at a time."""
        write_json(self.status, {**self.read_status(), **changes, "time": time.time()})

    def read_metrics(self) -> List[Dict[str, Any]]:
        """Every whole line of metrics.jsonl; a last line cut by a crash is left out."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                records.append(json.loads(line))
        return records


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix(CHECKPOINT_PREFIX))


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
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        if manifest_text(manifest) == text:
            return manifest
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} of {checkpoint.name} cannot be read: {error}") from error
    raise CheckpointError(f"{MANIFEST} of {checkpoint.name} does not have the hash that was written")


def read_json(path: Path) -> Dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a file in one step, so that a reader never sees a half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:  # a full disk
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
