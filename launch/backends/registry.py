"""The backend of each ``launch.kind``."""

from typing import Dict

from ftdist.config.launch import LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.base import Backend, Status
from ftdist.launch.backends.deepspeed import DeepspeedBackend
from ftdist.launch.backends.local import LocalBackend
from ftdist.launch.backends.nodes import NodesBackend
from ftdist.launch.backends.slurm.backend import SlurmBackend

BACKENDS: Dict[LaunchKind, Backend] = {
    LaunchKind.local: LocalBackend(),
    LaunchKind.nodes: NodesBackend(),
    LaunchKind.deepspeed: DeepspeedBackend(),
    LaunchKind.slurm: SlurmBackend(),
}


def backend_of(config: RunConfig) -> Backend:
    """Return the backend that starts the run of a config."""
    return BACKENDS[config.launch.kind]


def backend_of_status(status: Status) -> Backend:
    """Return the backend that started the newest attempt of a run or sweep, by its status.json.

    A status without the name of a backend was written by an older version or by a sweep. If such a status has the id of
    a job, the run belongs to Slurm.
    """
    if status.get("backend") in LaunchKind.__members__:
        return BACKENDS[LaunchKind[str(status["backend"])]]
    return BACKENDS[LaunchKind.slurm if status.get("job_id") else LaunchKind.local]
