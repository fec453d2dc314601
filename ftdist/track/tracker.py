"""Tracking of a run: rank 0 reports to the tracker, which passes everything on to the sinks of the run."""

import logging
from typing import Any, Callable, Dict, List, Mapping, Optional

from ftdist.config.schema import RunConfig, Wandb
from ftdist.run.rundir import RunDir
from ftdist.track.base import Sink
from ftdist.track.jsonl import RunRecord, rewind_record
from ftdist.track.wandb import WandbRun

log = logging.getLogger(__name__)


class Tracker:
    """Passes the reports of rank 0 to every sink, the record first. On other ranks its methods do nothing.

    A full disk or a failure of W&B never stops a run. The user is told in one line.
    """

    def __init__(
        self, config: RunConfig, run: RunDir, rank: int, resumed: bool, note: Optional[Callable[[str], None]] = None
    ) -> None:
        """
        Args:
            config: The config of the run. ``config.track`` chooses the sinks.
            run: The run directory.
            rank: Rank of this process. Only rank 0 tracks.
            resumed: Whether the run continues from a checkpoint. If false, an existing record is emptied.
            note: Prints one line for the user, for example ``Progress.note``. By default the line is logged.
        """
        self._sinks: List[Sink] = []
        if rank != 0:
            return
        if not resumed:
            rewind_record(run, -1)  # an attempt that ended before its first checkpoint is repeated from the start
        self._sinks = _open_sinks(config, run, note or log.warning)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of one optimizer step. Texts and lists are kept in metrics.jsonl only."""
        for sink in self._sinks:
            sink.log(step, metrics)

    def samples(self, step: int, rows: List[Dict[str, Any]]) -> None:
        """Log sample answers, each with ``set``, ``index``, ``question``, ``prompt``, ``answer``, ``reference``."""
        for sink in self._sinks:
            sink.samples(step, rows)

    def report(self, files: Mapping[str, str], numbers: Mapping[str, float]) -> None:
        """Pass on the report of the run. See ``Sink.report``."""
        for sink in self._sinks:
            sink.report(files, numbers)

    def rewind(self, step: int, evaluated: bool) -> None:
        """Remove what was logged after ``step``, because the run goes back to it. See ``Sink.rewind``."""
        for sink in self._sinks:
            sink.rewind(step, evaluated)

    def finish(self, exit_code: int) -> None:
        """Close every sink. Call it before the process ends, also before ``os._exit``."""
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            sink.finish(exit_code)


def _open_sinks(config: RunConfig, run: RunDir, note: Callable[[str], None]) -> List[Sink]:
    """Open the sinks that the config asks for. The record must be the first: the other sinks read it."""
    sinks: List[Sink] = [RunRecord(run, note)]
    if config.track.wandb is not Wandb.disabled:
        sinks.append(WandbRun(config, run, note))
    return sinks
