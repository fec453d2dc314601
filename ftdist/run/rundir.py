"""The run directory: the interface between the control plane, which launches a run, and the ranks that execute it.

Both also read the cache of prepared data and model facts, see ``run/prepared.py``.
"""

import hashlib
import json
import math
import re
import stat
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import CheckpointError, ConfigError, FtdistError
from ftdist.base.json_files import read_json, read_records, write_json
from ftdist.base.names import near_paths, require_utf8
from ftdist.base.output import quoted_path
from ftdist.base.permissions import explain_os_error, require_access
from ftdist.run.timeline import ENDED, PHASE_OF_STATE, QUEUE
from ftdist.run.timeline import append as append_phase

CHECKPOINT_PREFIX = "step-"
CHECKPOINT_NAME = re.compile(CHECKPOINT_PREFIX + r"\d+")
BAD_PREFIX = "bad-"
"""Added before the name of a checkpoint that failed verification and was set aside."""
MANIFEST = "manifest.json"
PINNED = "pinned"
"""Name of an empty file that a user creates in the folder of a checkpoint, so that the checkpoint is never removed."""
STOPPED = "stopped"
"""Exit reason that a run writes to status.json when it stops because it was asked to. Its state is "preempted"."""
NEAR_LIMIT = "near the time limit"
"""Exit reason of a run that stops because the time limit of its job is near."""
PAUSED = "paused"
"""State of a trial of a sweep that waits at a rung. The sweep decides whether it continues."""
NUMBER = (int, float)
STATUS_TYPES: Dict[str, Any] = {
    "state": str, "backend": str, "host": str, "job_id": str, "nodes": str, "exit_reason": str,
    "step": int, "max_steps": int, "last_checkpoint_step": int, "attempt": int, "pid": int, "requeues": int,
    "idle": int, "begun_after": int, "exit_code": int,
    "time": NUMBER, "last_checkpoint_time": NUMBER, "loss": NUMBER, "tokens_per_s": NUMBER, "save_s": NUMBER,
}  # fmt: skip
"""Types of the fields of status.json. Every field may also be null."""

RUN_CONFIG = "run.yaml"
"""The frozen config of a run. It marks a folder as a run directory."""
SUBMIT = "submit.sbatch"
"""The batch script of a run."""
SWEEP_REQUEST = "sweep.json"
"""File in the folder of a sweep that holds its settings. It marks the folder as a sweep."""


def refuse_sweep(place: Path) -> None:
    """Refuse a path that is the folder of a sweep.

    Raises:
        ConfigError: The path is the folder of a sweep.
    """
    if (place / SWEEP_REQUEST).is_file():
        raise ConfigError(
            f"{place} is a sweep",
            "one of its runs",
            f"run ftdist sweep {quoted_path(place)}, which lists them, best first",
        )


class RunDir:
    """A run directory: the paths of its files, its checkpoints, and its status.

    The folder does not have to exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / RUN_CONFIG
        self.deepspeed = self.path / "deepspeed.json"
        self.provenance = self.path / "provenance.json"
        self.inputs = self.path / "inputs.json"
        self.submit = self.path / SUBMIT
        self.preempt = self.path / "preempt"
        self.deadline = self.path / "deadline"
        self.cancel = self.path / "cancel"
        self.attempt = self.path / "attempt"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.base_texts = self.path / "base_texts.npz"
        self.evaluations = self.path / "evaluations"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.merged = self.path / "export-merged"
        self.gguf = self.path / "export-gguf"
        self.report = self.path / "report"
        self.report_page = self.report / "report.html"
        self.tasks = self.path / "eval"
        self.energy = self.path / "energy"
        self.timeline = self.path / "timeline.jsonl"
        self.wandb = self.path / "wandb"

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """Return the run directory at ``path``, which must hold a run.

        Raises:
            ConfigError: There is no run at ``path``, or it is the folder of a sweep.
        """
        run = cls(path)
        require_access(run.config)
        refuse_sweep(run.path)
        if not run.config.is_file():
            found = "does not exist" if not run.path.exists() else "holds no run.yaml"
            near = [quoted_path(place) for place in near_paths(str(path)) if cls(place).config.is_file()]
            fix = " or ".join(near) or "run ftdist status, which lists the runs in ./runs"
            raise ConfigError(f"{path} {found}", "a run directory", fix)
        require_utf8("the name of the run directory", run.path.absolute())
        return run

    def error_file(self, rank: int, attempt: int) -> Path:
        """Return the path of the JSON file that a rank writes when it fails.

        Its fields are rank, host, time, message, traceback, known and exit_code. ``known`` tells whether the message
        alone explains the error to the user. If another rank's watchdog writes it, it also has reported_by and stalled.
        """
        return self.logs / f"rank-{rank:05d}.attempt-{attempt}.error.json"

    def stacks_file(self, rank: int, attempt: int) -> Path:
        """Return the path of the file to which a rank writes its Python stacks when the run fails."""
        return self.logs / f"rank-{rank:05d}.attempt-{attempt}.stacks.txt"

    def log_file(self, rank: int, attempt: int) -> Path:
        """Return the path of the log of one rank in one attempt."""
        return self.logs / f"rank-{rank:05d}.attempt-{attempt}.log"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.checkpoints / f"{CHECKPOINT_PREFIX}{step:08d}"

    def job_log(self, job: str) -> Path:
        """Return the path of the output of a Slurm job: of its batch script and of rank 0."""
        return self.logs / f"slurm-{job}.out"

    def published_checkpoints(self) -> List[Path]:
        """Return the folders of all published checkpoints, oldest first.

        A checkpoint is published when its complete folder, with a manifest, is renamed to its final name.

        Raises:
            CheckpointError: One of them is a link.
        """
        return [path for path in self.checkpoint_folders() if (path / MANIFEST).is_file()]

    def checkpoint_folders(self) -> List[Path]:
        """Return all folders that have the name of a checkpoint, oldest first, with or without a manifest.

        Copies that a user made under another name, such as ``step-00000010.bak``, are left out.

        Raises:
            CheckpointError: One of them is a link. Checkpoints are loaded from the run directory itself only.
        """
        if not self.checkpoints.is_dir():
            return []
        found = [p for p in self.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir()]
        for link in (p for p in found if p.is_symlink()):
            raise CheckpointError(f"{link} is a link to {link.resolve()}", "a folder in the run directory",
                                  "move the checkpoint there (all of checkpoints/ may be a link)")  # fmt: skip
        return sorted(found, key=checkpoint_step)

    def bad_checkpoints(self) -> List[str]:
        """Return the names of the checkpoints that were set aside, oldest first."""
        return sorted(path.name for path in self.checkpoints.glob(f"{BAD_PREFIX}*"))

    def find_checkpoint(self, name: str) -> Path:
        """Return the folder of a published checkpoint.

        Args:
            name: ``last``, ``best``, a step, or the name of the checkpoint's folder.

        Raises:
            ConfigError: There is no such checkpoint. The message lists the steps that exist.
        """
        published = self.published_checkpoints()
        chosen: Optional[Path] = None
        if name == "last":
            chosen = published[-1] if published else None
        elif name == "best":
            for path in published:  # the best one may be among those that cannot be read
                require_access(path / MANIFEST)
            chosen = self.best_checkpoint()
        else:
            steps = {str(checkpoint_step(p)): p for p in published}
            chosen = steps.get(name.removeprefix(CHECKPOINT_PREFIX).lstrip("0") or "0")
        if chosen is None:
            have = ", ".join(str(checkpoint_step(p)) for p in published) or "none"
            raise ConfigError(f"no checkpoint '{name}' in {self.path}", f"last, best or a step of: {have}",
                              "--checkpoint last" if published else "train until a checkpoint is saved")  # fmt: skip
        return chosen

    def best_checkpoint(self) -> Optional[Path]:
        """Return the checkpoint with the lowest held-out loss. If two have the same loss, the newer one is returned.

        Returns None if no checkpoint was evaluated at its own step.
        """
        scored = []
        for path in self.published_checkpoints():
            try:
                loss = read_manifest(path)["eval_loss"]
            except FtdistError:  # it is damaged or not readable, which is reported when it is loaded
                continue
            if loss is not None and math.isfinite(loss):
                scored.append((loss, -checkpoint_step(path), path))
        return min(scored)[2] if scored else None

    def read_status(self) -> Dict[str, Any]:
        """Return the fields of status.json, or an empty dictionary if the file does not exist.

        Raises:
            ConfigError: The file is not JSON, or a field has the wrong type.
        """
        fix = f"rm {quoted_path(self.status)} (the run continues without it)"
        try:
            found = read_json(self.status) if self.status.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{self.status}: {error}", "a status that ftdist wrote", fix) from error
        for name, value in found.items():
            if value is not None and not isinstance(value, STATUS_TYPES.get(name, object)):
                raise ConfigError(f"{self.status} holds {name}={value!r}", "a status that ftdist wrote", fix)
        return found

    def write_status(self, **changes: Any) -> None:
        """Change some fields of status.json. Only one process may write it at a time.

        Args:
            changes: ``state`` (frozen, queued, starting, running, done, failed, preempted or paused), ``step``,
                ``max_steps``, ``loss``, ``tokens_per_s``, ``last_checkpoint_step``, ``last_checkpoint_time``,
                ``save_s`` (the longest time that a save has taken), ``exit_reason``, ``attempt``, ``backend`` (the
                launcher). A run on this machine also has ``pid`` and ``host``; a Slurm job has ``job_id``, ``nodes``,
                ``requeues``, ``begun_after`` (the step of the newest checkpoint when its attempt began), ``idle``
                (attempts in a row that saved no newer checkpoint) and ``exit_code``.
        """
        before = self.read_status()
        after = {**before, **changes, "time": time.time()}
        # An fsync here could wait until a checkpoint that is written in the background has reached the disk.
        write_json(self.status, after, durable=False)
        self._record_state(before, after)

    def _record_state(self, before: Dict[str, Any], after: Dict[str, Any]) -> None:
        """Add a new state, or the same state of a new attempt, to the timeline."""
        phase, attempt = PHASE_OF_STATE.get(after.get("state", "")), int(after.get("attempt") or 0)
        if phase is None or (before.get("state"), before.get("attempt")) == (after["state"], after.get("attempt")):
            return
        attempt += phase == QUEUE  # the attempt that begins after it
        ended = {"state": after["state"]} if phase == ENDED else {}
        again = int(after.get("requeues") or 0) > int(before.get("requeues") or 0)
        append_phase(self.timeline, phase, attempt, **ended, **({"requeued": True} if again else {}))

    def record_phase(self, phase: str, attempt: Optional[int] = None, **fields: Any) -> None:
        """Add a phase to the timeline. See ``ftdist.run.timeline``.

        Args:
            attempt: Number of the attempt. By default that of status.json.
        """
        number = int(self.read_status().get("attempt") or 0) if attempt is None else attempt
        append_phase(self.timeline, phase, number, **fields)

    def read_provenance(self) -> Dict[str, Any]:
        """Return the content of provenance.json. It is empty if the file is missing or damaged, because no program
        depends on it."""
        try:
            return read_json(self.provenance)
        except (FileNotFoundError, ValueError):
            return {}

    def read_metrics(self) -> List[Dict[str, Any]]:
        """Return the records of metrics.jsonl. A last line that a crash has cut off is left out."""
        return read_records(self.metrics)


def checkpoint_step(path: Path) -> int:
    """Return the step of a checkpoint from the name of its folder."""
    return int(path.name.removeprefix(CHECKPOINT_PREFIX))


def was_due(checkpoint: Path) -> bool:
    """Return whether the settings of the run ask for a checkpoint at this step. If not, it was saved only because the
    run was asked to stop. An uninterrupted run would not have it.
    """
    try:
        return bool(read_manifest(checkpoint).get("due", True))
    except FtdistError:  # it is damaged or not readable, which is reported when it is loaded
        return True


def manifest_text(manifest: Dict[str, Any]) -> str:
    """Return the text of a manifest.json, which holds its own hash.

    The hash is the SHA-256 of the text with an empty hash.
    """
    bare = json.dumps({**manifest, "sha256": ""}, indent=1)
    return json.dumps({**manifest, "sha256": hashlib.sha256(bare.encode()).hexdigest()}, indent=1) + "\n"


def read_manifest(checkpoint: Path) -> Dict[str, Any]:
    """Return the manifest of a checkpoint: step, world_size, zero_stage …, and the size and SHA-256 of every file.

    Raises:
        AccessError: This user may not read the manifest.
        CheckpointError: The manifest cannot be read, or its hash is wrong.
    """
    path = checkpoint / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a link may lead elsewhere, and reading a pipe would block
            raise ValueError("it is not a regular file")
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        if manifest_text(manifest) == text:
            return manifest
    except PermissionError as error:
        raise explain_os_error(error) from error
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{MANIFEST} of {checkpoint.name} cannot be read: {error}", "", "use another checkpoint"
        ) from error
    found = f"{MANIFEST} of {checkpoint.name} does not have the hash that was written"
    raise CheckpointError(found, "an undamaged file", "use another checkpoint")
