"""Packing, the order of rows, and micro-batches."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ftdist.base.errors import DataError
from ftdist.data.loader import PreparedSet, micro_batch, open_set, row_ids, train_rows
from ftdist.data.pack import one_per_row, pack
from ftdist.data.prepare import prepare
from ftdist.data.row_order import permutation
from ftdist.plan.batch import BatchPlan
from tests.unit.data_tools import chat, data_config, write_jsonl


def chat_lengths(count: int, longest: int) -> np.ndarray:
    """Lengths as chats have them: log-normal, mean of some hundred tokens, cut at the longest."""
    lengths = np.random.default_rng(0).lognormal(5.5, 0.9, count).astype(np.int64)
    return np.clip(lengths, 8, longest)


def test_packing_holds_every_document_once_fits_and_fills() -> None:
    lengths = chat_lengths(20_000, 2048)
    items, offsets = pack(lengths, 2048)
    assert sorted(items.tolist()) == list(range(20_000))
    used = np.add.reduceat(lengths[items], offsets[:-1])
    assert used.max() <= 2048
    assert lengths.sum() / (2048 * len(used)) >= 0.99


def test_packing_is_best_fit_decreasing() -> None:
    lengths = np.array([2, 6, 5, 4, 3])
    items, offsets = pack(lengths, 10)
    rows = [sorted(items[a:b].tolist()) for a, b in pairwise(offsets)]
    assert rows == [[1, 3], [0, 2, 4]]  # 6+4 and 5+3+2


def test_packing_is_quick_and_repeats_itself() -> None:
    lengths = chat_lengths(200_000, 2048)
    started = time.process_time()
    first = pack(lengths, 2048)
    assert time.process_time() - started < 6
    assert all(np.array_equal(a, b) for a, b in zip(first, pack(lengths, 2048), strict=True))


def test_packing_of_nothing_and_of_whole_rows() -> None:
    assert [part.tolist() for part in pack(np.array([], dtype=np.int64), 8)] == [[], [0]]
    assert [part.tolist() for part in pack(np.array([8, 8]), 8)] == [[0, 1], [0, 1, 2]]
    assert [part.tolist() for part in one_per_row(np.array([3, 8]))] == [[0, 1], [0, 1, 2]]


def test_every_epoch_is_a_permutation_of_its_own_and_any_cut_gives_the_same_order() -> None:
    whole = row_ids(7, 10, 0, 35)
    assert [sorted(whole[a : a + 10].tolist()) for a in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10].tolist() != whole[10:20].tolist()
    for start in range(35):
        assert row_ids(7, 10, start, 5).tolist() == whole[start : start + 5].tolist() or start > 30
    assert row_ids(8, 10, 0, 10).tolist() != whole[:10].tolist()
    assert row_ids(7, 10, 10_000_000, 3).tolist() == permutation(7, 1_000_000, 10)[:3].tolist()


def test_the_permutation_is_this_one_for_good() -> None:
    """A resumed run must see the order it was started with, whatever NumPy is installed by then."""
    assert permutation(0, 0, 8).tolist() == FROZEN


FROZEN = [3, 2, 1, 6, 0, 7, 4, 5]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 4), (2, 2), (4, 3), (8, 1), (12, 2)])
def test_the_rows_of_a_step_do_not_depend_on_ranks(ranks: int, micro: int) -> None:
    accumulation = 24 // (ranks * micro)
    plan = BatchPlan(micro, accumulation, ranks, 128)
    for step in (0, 1, 5):
        taken = [
            row
            for m in range(accumulation)
            for rank in range(ranks)
            for row in row_ids(3, 50, *train_rows(step, m, rank, plan)).tolist()
        ]
        assert taken == row_ids(3, 50, step * 24, 24).tolist()


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedSet:
    path = write_jsonl(tmp_path / "a.jsonl", [chat("q", "a" * (1 + 7 * number)) for number in range(12)])
    return open_set(prepare(data_config(tmp_path, f"data.sources.a.path={path}", "data.packing=false")), "train")


def test_a_packed_micro_batch(dataset: PreparedSet) -> None:
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


def test_a_padded_micro_batch_has_its_padding_in_a_segment_of_its_own(dataset: PreparedSet) -> None:
    short, long = (len(dataset.row(row)[0][0]) for row in (0, 3))
    batch = micro_batch(dataset, [0, 3], packing=False, pad_id=258)
    assert batch.cu_seqlens.tolist() == [0, short, long, 2 * long]
    assert batch.input_ids[0, short:long].tolist() == [258] * (long - short)
    assert batch.labels[0, short:long].tolist() == [-100] * (long - short)
    assert batch.position_ids[0, short:long].tolist() == list(range(long - short))
    assert batch.num_tokens == short + long


def test_the_stop_is_a_label_where_padding_is_the_same_token(dataset: PreparedSet) -> None:
    batch = micro_batch(dataset, [0, 3], packing=False, pad_id=257)
    assert (batch.labels == 257).sum() == 2


def test_the_first_token_of_a_document_is_never_a_label(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 30}] * 9)
    packed = open_set(prepare(data_config(tmp_path, f"data.sources.a.path={path}")), "train")
    batch = micro_batch(packed, list(range(packed.num_rows)), packing=True, pad_id=0)
    assert len(batch.cu_seqlens) == 10
    assert (batch.labels[0, batch.cu_seqlens[:-1].long()] == -100).all()
    assert batch.num_trained == 9 * 30


def test_the_first_token_is_no_label_even_where_it_is_marked() -> None:
    ids, marks, ends = np.arange(6, dtype=np.int32), np.ones(6, dtype=np.uint8), np.array([0, 3, 6])
    marked = PreparedSet(ids, marks, offsets=ends, row_docs=np.array([0, 1]), row_offsets=np.array([0, 2]))
    assert micro_batch(marked, [0], packing=True, pad_id=0).labels[0].tolist() == [-100, 1, 2, -100, 4, 5]


def test_opening_what_is_not_there(tmp_path: Path, dataset: PreparedSet) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        open_set(tmp_path, "train")
    [folder] = (tmp_path / "cache" / "data").iterdir()
    with pytest.raises(DataError, match="has no set 'dev'"):
        open_set(folder, "dev")
