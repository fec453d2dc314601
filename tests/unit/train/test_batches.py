"""The micro-batches of a step are the same if they were read ahead, and their counts are summed over the ranks once."""

from pathlib import Path
from typing import Any, List

import pytest
import torch

from ftdist.data.loader import open_set
from ftdist.data.prepare import prepare
from ftdist.parallel.mesh import Mesh
from ftdist.plan.batch import plan_batch
from ftdist.train.batches import BatchReader, StepBatches
from tests.unit.data_tools import chat, data_config, write_jsonl


class ThreeRanks(Mesh):
    """Three ranks that all have the same values. It counts how often they wait for each other."""

    waits = 0

    def sum(self, values: Any) -> List[float]:
        type(self).waits += 1
        return [3 * float(value) for value in values]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BatchReader:
    monkeypatch.setattr(ThreeRanks, "waits", 0)
    path = write_jsonl(tmp_path / "a.jsonl", [chat("q", "a" * (1 + 7 * number)) for number in range(12)])
    config = data_config(tmp_path, f"data.sources.a.path={path}", "data.packing=false", "batch.global_batch_size=12")
    plan, train_set = plan_batch(config.batch, 3, config.data.max_seq_len), open_set(prepare(config), "train")
    assert plan.grad_accum_steps == 4
    mesh = ThreeRanks(data_rank=1, data_size=3, device=torch.device("cpu"))
    return BatchReader(config, train_set, plan, mesh, 258, lambda batch: 10 * batch.num_trained)


def _ids(step: StepBatches) -> List[List[int]]:
    return [batch.input_ids[0].tolist() for batch in step.micro_batches]


def test_what_was_read_ahead_is_what_is_read_now(reader: BatchReader) -> None:
    plain = [_ids(reader.read(index)) for index in range(3)]
    assert plain[0] != plain[1] != plain[2]
    for index in (1, 2, 0):
        reader.begin(index)
        assert _ids(reader.read(index)) == plain[index]
    reader.begin(1)
    assert _ids(reader.read(2)) == plain[2], "after a rollback another batch is asked for"


def test_the_step_before_sums_the_counts(reader: BatchReader) -> None:
    first = reader.read(0)
    trained = sum(batch.num_trained for batch in first.micro_batches)
    tokens, squares = (sum(getattr(one, name) for one in first.micro_batches) for name in ("num_tokens", "squares"))
    assert first.counts == [10 * trained, trained, tokens, squares] and tokens < squares < tokens**2
    assert reader.totals(first) == [3 * count for count in first.counts] and ThreeRanks.waits == 1
    reader.begin(1)
    reader.keep_totals([7 * count for count in reader.counts_ahead()])
    second = reader.read(1)
    assert reader.totals(second) == [7 * count for count in second.counts] and ThreeRanks.waits == 1
    assert reader.totals(second) == [3 * count for count in second.counts] and ThreeRanks.waits == 2


def test_counts_of_another_batch_are_not_used(reader: BatchReader) -> None:
    reader.begin(1)
    reader.keep_totals(reader.counts_ahead())
    other = reader.read(2)
    assert reader.totals(other) == [3 * count for count in other.counts]
    assert reader.counts_ahead() == [], "nothing is read ahead after the last step"
