"""The micro-batches of each step. Those of the next step are read while the device works on this one."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

from ftdist.config.schema import RunConfig
from ftdist.data.loader import MicroBatch, PreparedSet, micro_batch
from ftdist.data.row_order import row_ids, train_rows
from ftdist.parallel.mesh import Mesh
from ftdist.plan.batch import BatchPlan


@dataclass(frozen=True)
class StepBatches:
    """What one rank reads for one optimizer step."""

    index: int
    """Index of the global batch in the data order."""
    micro_batches: Sequence[MicroBatch]
    """On the host; in pinned memory if the device is a GPU."""
    counts: List[float]
    """Sums over these micro-batches: the weight of the objective, trained tokens, tokens without padding, and the
    squares of the lengths of documents."""


class BatchReader:
    """Reads the rows of this rank. What it returns depends on the index only, not on what was read before."""

    def __init__(
        self, config: RunConfig, train_set: PreparedSet, plan: BatchPlan, mesh: Mesh, pad_id: int,
        weight: Callable[[MicroBatch], int],
    ) -> None:  # fmt: skip
        """
        Args:
            pad_id: Token id of the padding.
            weight: Returns the weight of a micro-batch in the loss.
        """
        self._config, self._set, self._plan, self._mesh = config, train_set, plan, mesh
        self._pad_id, self._weight = pad_id, weight
        self._thread: Optional[ThreadPoolExecutor] = None
        self._next: Optional[Tuple[int, Future[StepBatches]]] = None
        self._totals: Optional[Tuple[int, List[float]]] = None

    def read(self, index: int) -> StepBatches:
        """Return the micro-batches of a global batch. They may have been read already."""
        ahead, self._next = self._next, None
        return ahead[1].result() if ahead and ahead[0] == index else self._read(index)

    def begin(self, index: int) -> None:
        """Begin to read the next global batch in a thread."""
        self._thread = self._thread or ThreadPoolExecutor(1, "ftdist-batches")
        self._next = index, self._thread.submit(self._read, index)

    def counts_ahead(self) -> List[float]:
        """Return the counts of the global batch that ``begin`` has named; empty if there is none."""
        return self._next[1].result().counts if self._next else []

    def keep_totals(self, totals: List[float]) -> None:
        """Keep the sums of ``counts_ahead`` over all ranks."""
        self._totals = (self._next[0], totals) if self._next else None

    def totals(self, step: StepBatches) -> List[float]:
        """Return the counts of a global batch over all ranks. Every rank must call it.

        If the step before has summed them already, the ranks do not wait for each other.
        """
        known, self._totals = self._totals, None
        return known[1] if known and known[0] == step.index else self._mesh.sum(step.counts)

    def _read(self, index: int) -> StepBatches:
        batches = [self._micro_batch(index, micro_step) for micro_step in range(self._plan.grad_accum_steps)]
        counts = [(self._weight(batch), batch.num_trained, batch.num_tokens, batch.squares) for batch in batches]
        return StepBatches(index, batches, [float(sum(column)) for column in zip(*counts, strict=True)])

    def _micro_batch(self, index: int, micro_step: int) -> MicroBatch:
        """Return this rank's rows of a micro-step. They are a slice of the global data order of the run."""
        start, count = train_rows(index, micro_step, self._mesh.data_rank, self._plan)
        rows = row_ids(self._config.seed, self._set.num_rows, start, count)
        batch = micro_batch(self._set, rows.tolist(), self._config.data.packing, self._pad_id)
        return batch.pinned() if self._mesh.device.type == "cuda" else batch
