"""Opening prepared data, and micro-batches."""

from pathlib import Path

import numpy as np
import pytest

from ftdist.base.errors import DataError
from ftdist.data.loader import PreparedSet, micro_batch, open_set
from ftdist.data.prepare import prepare
from tests.unit.data_tools import chat, data_config, write_jsonl


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedSet:
    path = write_jsonl(tmp_path / "a.jsonl", [chat("q", "a" * (1 + 7 * number)) for number in range(12)])
    return open_set(prepare(data_config(tmp_path, f"data.sources.a.path={path}", "data.packing=false")), "train")


def test_a_packed_micro_batch_has_the_right_shapes_positions_and_labels(dataset: PreparedSet) -> None:
    batch = micro_batch(dataset, [3, 0], packing=True, pad_id=258)
    lengths = [len(dataset.row(row)[0][0]) for row in (3, 0)]
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, sum(lengths))
    assert batch.cu_seqlens.tolist() == [0, lengths[0], sum(lengths)]
    assert str(batch.cu_seqlens.dtype) == "torch.int32"
    assert str(batch.input_ids.dtype) == str(batch.labels.dtype) == str(batch.position_ids.dtype) == "torch.int64"
    assert batch.position_ids[0].tolist() == [*range(lengths[0]), *range(lengths[1])]
    assert batch.max_seqlen == max(lengths)
    assert batch.num_tokens == sum(lengths)
    trained = np.concatenate([dataset.row(row)[0][1] for row in (3, 0)])
    assert batch.num_trained == trained.sum() == (batch.labels != -100).sum()
    assert (batch.labels[0].numpy() != -100).tolist() == (trained == 1).tolist()
    assert (batch.labels == batch.input_ids)[batch.labels != -100].all()


def test_the_padding_of_a_row_is_a_separate_segment(dataset: PreparedSet) -> None:
    short, long = (len(dataset.row(row)[0][0]) for row in (0, 3))
    batch = micro_batch(dataset, [0, 3], packing=False, pad_id=258)
    assert batch.cu_seqlens.tolist() == [0, short, long, 2 * long]
    assert batch.input_ids[0, short:long].tolist() == [258] * (long - short)
    assert batch.labels[0, short:long].tolist() == [-100] * (long - short)
    assert batch.position_ids[0, short:long].tolist() == list(range(long - short))
    assert batch.num_tokens == short + long


def test_the_stop_token_has_a_label_even_if_it_is_the_padding_token(dataset: PreparedSet) -> None:
    batch = micro_batch(dataset, [0, 3], packing=False, pad_id=257)
    assert (batch.labels == 257).sum() == 2


def test_the_first_token_of_a_document_never_has_a_label(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 30}] * 9)
    packed = open_set(prepare(data_config(tmp_path, f"data.sources.a.path={path}")), "train")
    batch = micro_batch(packed, list(range(packed.num_rows)), packing=True, pad_id=0)
    assert len(batch.cu_seqlens) == 10
    assert (batch.labels[0, batch.cu_seqlens[:-1].long()] == -100).all()
    assert batch.num_trained == 9 * 30


def test_the_first_token_has_no_label_even_if_the_file_marks_it_as_trained() -> None:
    ids, trained, offsets = np.arange(6, dtype=np.int32), np.ones(6, dtype=np.uint8), np.array([0, 3, 6])
    marked = PreparedSet(ids, trained, offsets, row_docs=np.array([0, 1]), row_offsets=np.array([0, 2]))
    assert micro_batch(marked, [0], packing=True, pad_id=0).labels[0].tolist() == [-100, 1, 2, -100, 4, 5]


def test_opening_data_or_a_set_that_does_not_exist_is_refused(tmp_path: Path, dataset: PreparedSet) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        open_set(tmp_path, "train")
    [folder] = (tmp_path / "cache" / "data").iterdir()
    with pytest.raises(DataError, match="has no set 'dev'"):
        open_set(folder, "dev")
