"""The interface of a sink: one place that receives the metrics and sample answers of a run."""

from typing import Any, Dict, List, Mapping, Protocol


class Sink(Protocol):
    """Receives what rank 0 reports about a run.

    The first sink of a run is its record (``track/jsonl.py``). The others are views of the record: they may read it,
    and they may lack records that it has. The record is written before the other sinks are called.

    A sink must not stop or slow down training. When it fails, it tells the user in one line and continues.
    """

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of one optimizer step. The values are numbers, texts or lists."""

    def samples(self, step: int, rows: List[Dict[str, Any]]) -> None:
        """Log sample answers, each with ``set``, ``index``, ``question``, ``prompt``, ``answer``, ``reference``."""

    def report(self, files: Mapping[str, str], numbers: Mapping[str, float]) -> None:
        """Receive the part of the report of the run that may be published.

        Args:
            files: The text of each file, by name.
            numbers: The main numbers of the run, by name: those of ``gain``, ``forgetting``, ``goodput``,
                ``device_hours`` and ``cost`` that are known.
        """

    def rewind(self, step: int, evaluated: bool) -> None:
        """Remove what was logged after ``step``, because the run goes back to it and repeats the later steps.

        A sink that cannot remove anything does nothing.

        Args:
            step: Optimizer steps that are done.
            evaluated: Whether the evaluation at ``step`` is kept. If false, the run repeats it.
        """

    def finish(self, exit_code: int) -> None:
        """Write or send all waiting records, and close the sink. Returns within a bounded time."""
