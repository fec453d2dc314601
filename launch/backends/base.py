"""The interface of a backend: one way to start the ranks of a run, to watch them and to stop them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Sequence

from ftdist.config.launch import LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.run.rundir import RunDir

STOPPING = "stopping"
"""State of a run whose ranks have ended, while its job still ends or is about to be requeued."""
ALIVE = ("queued", "starting", "running", STOPPING)
"""States of a run that is under way."""
DEAD = "dead?"
"""State of a run that has not ended according to its status.json, although nothing runs it any more."""

Status = Dict[str, Any]
"""The content of a status.json."""


@dataclass(frozen=True)
class Seen:
    """The state of a run, as far as it can be seen from this machine."""

    state: str
    """A state from status.json, STOPPING, or DEAD."""
    detail: str = ""
    """What a scheduler reports about the job of a run that is under way or should be."""


class Backend(Protocol):
    """One way to start the ranks of a run: what ``launch.kind`` selects.

    A backend is what other tools call a launcher. In ftdist, the launcher is the process ``ftdist train`` or ``ftdist
    resume`` that uses a backend.

    To add a backend, add a member of ``LaunchKind`` and its settings (``ftdist/config/launch.py``), a class with these
    methods, a line in ``registry.py``, and a file in ``conf/launch/``. ``docs/design.md`` lists all steps.
    """

    kind: LaunchKind
    on_this_machine: bool
    """Whether all ranks run on the machine of the launcher."""
    uses_scheduler: bool
    """Whether the ranks run in a job of a scheduler. The job then prepares the model and the data, and ``launch.wait``
    decides whether the launcher waits for it."""

    def resolve(self, config: RunConfig) -> None:
        """Fill in the device, the number of machines, the ranks of each machine and the threads of each rank, in place.

        Raises:
            ConfigError: the ranks cannot be started with these settings. The message says what to change.
        """

    def check_start(self, config: RunConfig) -> None:
        """Check what only a start needs and a dry run does not, before anything is prepared or written.

        Raises:
            ConfigError: the libraries of this environment cannot run the ranks.
        """

    def files(self, config: RunConfig) -> Dict[str, str]:
        """Return the texts of files that are written into the run directory, by name.

        Raises:
            ConfigError: a value cannot be written into one of them.
        """

    def dry_run(self, config: RunConfig, run: RunDir, changed: bool = False) -> str:
        """Return what ``start`` would start, as text.

        Args:
            changed: the config is not the one in the run directory, into which nothing is written.
        """

    def start(self, config: RunConfig, run: RunDir) -> int:
        """Start or resume a run. Returns its exit code, or 0 if a job was submitted and the launcher does not wait for
        it.

        Raises:
            LaunchError: the run could not be started, or it failed. The message is the error of the rank that failed
            first.
        """

    def states(self, statuses: Sequence[Status]) -> List[Seen]:
        """Return the states of runs that this backend started, in the order of ``statuses``."""

    def stop(self, run: RunDir, now: bool = False) -> str:
        """Ask a run to save and end, or end it immediately. Returns what was done, for the user.

        Args:
            now: end the run without a checkpoint.

        Raises:
            ConfigError: the run can only be ended from another machine.
        """

    def log(self, run: RunDir) -> Optional[Path]:
        """Return the newest log of the whole run, or None if there is none yet."""


def newest_rank_log(run: RunDir, rank: int) -> Optional[Path]:
    """Return the log of a rank in its newest attempt, or None if there is none yet."""
    found = list(run.logs.glob(f"rank-{rank:05d}.attempt-*.log"))
    return max(found, key=lambda path: int(path.stem.rsplit("-", 1)[1]), default=None)
