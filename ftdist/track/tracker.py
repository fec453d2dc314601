"""The record of a run: metrics.jsonl and samples.jsonl, with W&B as a view of them."""

import logging
import time
from typing import Any, Callable, Dict, List, Mapping, Optional

from ftdist.base.json_files import read_records
from ftdist.config.schema import RunConfig, Wandb
from ftdist.run.rundir import RunDir
from ftdist.track.jsonl import JsonLines, cut_records
from ftdist.track.wandb import WandbRun

log = logging.getLogger(__name__)


class Tracker:
    """Writes what rank 0 reports; on every other rank nothing happens.

    A full disk or a broken W&B never stops a run, which is worth more than its record: it is said in one line.
    """

    def __init__(
        self, config: RunConfig, run: RunDir, rank: int, resumed: bool, note: Optional[Callable[[str], None]] = None
    ) -> None:
        """``note`` prints one line for the user (for instance ``Progress.note``); default the log."""
        self._note = note or log.warning
        self._run = run
        self._metrics = JsonLines(run.metrics)
        self._samples = JsonLines(run.samples)
        self._active = rank == 0
        self._said = False
        self._wandb: Optional[WandbRun] = None
        if self._active and not resumed:
            rewind(run, -1)  # an attempt that died before its first checkpoint is done again from the start
        if self._active and config.track.wandb is not Wandb.disabled:
            self._wandb = WandbRun(config, run, self._note)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. Non-finite values are the strings "nan", "inf" and "-inf". Texts and lists
        are for metrics.jsonl alone."""
        if not self._active:
            return
        self._append(self._metrics, {"step": step, "time": time.time(), **metrics})
        if self._wandb is not None:
            numbers = {name: v for name, v in metrics.items() if not isinstance(v, (str, list))}
            values = {name: v if isinstance(v, int) else float(v) for name, v in numbers.items()}
            self._wandb.log(step, values)

    def samples(self, step: int, rows: List[Dict[str, Any]]) -> None:
        """Append one line a row to samples.jsonl. Rows hold set, index, question, prompt, answer, reference."""
        if not self._active:
            return
        for row in rows:
            self._append(self._samples, {"step": step, "time": time.time(), **row})
        if self._wandb is not None:
            # Each table also holds the base model's answers, so that the newest one shows what was learnt.
            base = [row for row in read_records(self._run.samples) if row.get("step") == 0] if step else []
            self._wandb.samples(step, base + [{"step": step, **row} for row in rows])

    def rewind(self, step: int, evaluated: bool) -> None:
        """Forget what was recorded after ``step``, to which the run has gone back. W&B takes no step twice: it shows
        the steps that are done again only from where the run had come to."""
        if self._active:
            for file in (self._metrics, self._samples):
                file.cut(_until(step, evaluated))

    def finish(self, exit_code: int) -> None:
        """Close the record. Call it before the process ends, by ``os._exit`` too; waits for W&B, but not for ever."""
        if not self._active:
            return
        self._active = False
        for file in (self._metrics, self._samples):
            file.close()
        if lost := self._metrics.lost + self._samples.lost:
            self._note(f"{lost} records could not be written to the run directory")
        if self._wandb is not None:
            self._wandb.finish(exit_code)

    def _append(self, file: JsonLines, record: Dict[str, Any]) -> None:
        if not file.append(record) and not self._said:
            self._said = True
            self._note(f"a record could not be written ({file.error}); it is tried again with the next one")


def rewind(run: RunDir, step: int, evaluated: bool = True) -> None:
    """Forget what was recorded after ``step``: a run that resumes there does those steps again. ``evaluated`` is false
    where it will also evaluate at ``step``, which an attempt may have done that saved nothing after it."""
    for path in (run.metrics, run.samples):
        cut_records(path, _until(step, evaluated))


def record_gap(run: RunDir, step: int, log_every: int) -> str:
    """What metrics.jsonl lacks of a run that goes on after ``step``, in one line; "" where nothing is seen to."""
    steps = [record["step"] for record in run.read_metrics() if "train/loss" in record and "step" in record]
    newest = max(steps, default=0)
    if newest >= step - step % log_every:
        return ""
    return f"{run.metrics.name} ends at step {newest}, the checkpoint is of step {step}: what is between stays missing"


def _until(step: int, evaluated: bool) -> Callable[[Dict[str, Any]], bool]:
    """Which records a run that stands at ``step`` keeps."""

    def kept(record: Dict[str, Any]) -> bool:
        at = record.get("step", 0)
        return bool(at < step or (at == step and (evaluated or "train/loss" in record)))

    return kept
