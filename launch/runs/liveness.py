"""Whether runs are under way: what status.json says, checked against the machine or the scheduler that runs them."""

from typing import Dict, List, Sequence

from ftdist.launch.backends.base import Backend, Seen, Status
from ftdist.launch.backends.registry import backend_of_status
from ftdist.run.rundir import STOPPED


def observe(statuses: Sequence[Status]) -> List[Seen]:
    """Return the states of runs, in the order of ``statuses``. Each backend is asked once for all of its runs."""
    places: Dict[Backend, List[int]] = {}
    for place, status in enumerate(statuses):
        places.setdefault(backend_of_status(status), []).append(place)
    found: Dict[int, Seen] = {}
    for backend, mine in places.items():
        found |= zip(mine, backend.states([statuses[place] for place in mine]), strict=True)
    return [found[place] for place in range(len(statuses))]


def liveness(status: Status) -> str:
    """Return the state that status.json holds, or ``dead?`` if the run should be under way and nothing runs it."""
    return observe([status])[0].state


def shown_state(status: Status, seen: Seen) -> str:
    """Return the state for a table. A run that its user stopped is not called preempted."""
    return STOPPED if seen.state == "preempted" and status.get("exit_reason") == STOPPED else seen.state
