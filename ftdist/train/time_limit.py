"""Stop early enough before a time limit: the margin grows with the time that a save of this run takes."""

import contextlib
from typing import Any, Dict, List

from ftdist.run.rundir import RunDir

SAVES = 2.0
"""Number of saves that fit into the margin. It is more than 1, because a save may take longer than earlier ones."""
RESERVE_S = 30.0
"""Seconds that are added to the margin, in which the ranks end and the job requeues itself."""
READ_EVERY_S = 5.0
"""Seconds between two reads of the file that holds the end of the job."""


class TimeLimit:
    """Tells rank 0 whether a run must stop now so that its checkpoint is complete before its job ends.

    ``RUN_DIR/deadline`` holds the time at which the job ends, if there is one. A separate process keeps it up to date,
    because the limit of a job may be changed while it runs.
    """

    def __init__(self, run: RunDir, stop_before_s: float) -> None:
        """
        Args:
            stop_before_s: The minimum margin, in seconds.
        """
        self._run, self._stop_before_s = run, stop_before_s
        self._asked_at: List[float] = []  # times of the last two calls
        self._longest_gap_s = 0.0
        self._end = float("inf")
        self._read_at = float("-inf")

    def why_stop(self, status: Dict[str, Any], now: float) -> str:
        """Return why the run must stop now, or an empty text. Called at each point where a run can stop.

        Args:
            status: The content of status.json. ``save_s`` is the longest time that a save has taken.
            now: Seconds since 1970.
        """
        # The time between the first two calls is left out, because the first step may compile kernels.
        if len(self._asked_at) == 2:
            self._longest_gap_s = max(self._longest_gap_s, now - self._asked_at[1])
        self._asked_at = [*self._asked_at[-1:], now]
        if now - self._read_at >= READ_EVERY_S:
            self._read_at, self._end = now, self._read_end()
        save_s = float(status.get("save_s") or 0.0)
        margin_s = max(self._stop_before_s, SAVES * save_s + self._longest_gap_s + RESERVE_S)
        if now + margin_s < self._end:
            return ""
        return f"the job ends in {max(0.0, self._end - now):.0f} s, and a save has taken {save_s:.0f} s"

    def _read_end(self) -> float:
        with contextlib.suppress(OSError, ValueError):
            return float(self._run.deadline.read_text(encoding="utf-8"))
        return float("inf")
