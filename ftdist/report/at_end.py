"""The report at the end of a run, written by rank 0 before it closes the tracker.

The model is compared with its base only by ``ftdist report``, which needs the memory of a whole model.
"""

import threading
from typing import List

from ftdist.base.output import quoted_path
from ftdist.base.redact import redact
from ftdist.model.load import build_whole
from ftdist.report.build import build_report, public_files, write_report
from ftdist.report.summary import headline, sentences
from ftdist.run.rundir import RunDir
from ftdist.track.tracker import Tracker

FAILED_LIMIT_S = 20.0
"""Longest time that the report of a run that has failed may take. It must not keep the launcher from saying so."""


def report_failure(run: RunDir, tracker: Tracker, error: BaseException) -> None:
    """Write the report of a run that has failed, and pass it to the tracker. Only rank 0 calls it.

    This takes at most ``FAILED_LIMIT_S`` and raises nothing.
    """
    reason = redact(next(iter(str(error).splitlines()), "") or type(error).__name__)
    work = threading.Thread(target=report_at_end, args=(run, tracker, reason, "failed"), daemon=True)
    work.start()
    work.join(FAILED_LIMIT_S)


def report_at_end(run: RunDir, tracker: Tracker, reason: str = "", ending: str = "done") -> List[str]:
    """Write the report of a run that is about to end, and pass it to the tracker. Only rank 0 calls it.

    Args:
        reason: Why the run ends before its last step, if it does.
        ending: The state that the run is about to have.

    Nothing that goes wrong here changes how the run ends: the user is told in one line.

    Returns:
        The summary, or the reason why there is no report.
    """
    try:
        build_whole()  # the cost needs the sizes of the model
        report = build_report(run, quick=True, ending=ending, reason=reason)
        write_report(run, report)
        numbers = {name: value for name, value in headline(report).items() if value is not None}
        tracker.report(public_files(run, report), numbers)
        return sentences(report)
    except Exception as error:
        words = next(iter(str(error).splitlines()), "") or type(error).__name__
        return [f"no report: {redact(words)[:200]}; to write it: ftdist report {quoted_path(run.path)}"]
