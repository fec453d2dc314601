"""Prepared rows → micro-batches. Rows are read from memory-mapped files, so opening a set costs nothing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch

from ftdist.base.errors import DataError
from ftdist.data.order import row_ids, train_rows
from ftdist.run.prepared import is_ready, read_meta

__all__ = ["MicroBatch", "PreparedSet", "micro_batch", "open_set", "row_ids", "train_rows"]

IGNORED = -100


@dataclass(frozen=True)
class PreparedSet:
    """One set of prepared data; the arrays are memory-mapped (layout: ``docs/design.md``)."""

    tokens: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    row_docs: np.ndarray
    row_offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    def row(self, row: int) -> List[Tuple[np.ndarray, np.ndarray]]:
        """The documents of a row: ``(ids [n] int32, trained [n] uint8)`` each."""
        docs = self.row_docs[self.row_offsets[row] : self.row_offsets[row + 1]]
        spans = [slice(int(self.offsets[doc]), int(self.offsets[doc + 1])) for doc in docs]
        return [(self.tokens[span], self.trained[span]) for span in spans]


@dataclass(frozen=True)
class MicroBatch:
    """Rows laid end to end. T is the number of tokens, n the number of segments (documents and paddings)."""

    input_ids: torch.Tensor
    """[1, T] int64."""
    labels: torch.Tensor
    """[1, T] int64, aligned with input_ids; −100 is not trained, and never is the first token of a document."""
    position_ids: torch.Tensor
    """[1, T] int64, from 0 in each segment."""
    cu_seqlens: torch.Tensor
    """[n + 1] int32: segment i is ``[cu_seqlens[i], cu_seqlens[i + 1])``."""
    max_seqlen: int
    """Tokens of the longest segment."""
    num_trained: int
    """Tokens with a label."""
    num_tokens: int
    """Tokens that are no padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        moved: Dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def open_set(folder: Path, name: str) -> PreparedSet:
    """Open ``train`` or a held-out set of prepared data.

    Raises:
        DataError: the data is not prepared, has no such set, or its files do not belong together.
    """
    if not is_ready(folder):
        raise DataError(f"{folder} holds no prepared data", "prepared data", "prepare it with this config")
    sets = read_meta(folder)["sets"]
    if name not in sets:
        raise DataError(f"{folder} has no set '{name}'", f"one of {', '.join(sets)}")
    files = (
        ("tokens.i32", "<i4"),
        ("trained.u8", "u1"),
        ("offsets.i64", "<i8"),
        ("row_docs.i64", "<i8"),
        ("row_offsets.i64", "<i8"),
    )
    try:
        opened = PreparedSet(*(np.memmap(folder / name / file, dtype=dtype, mode="r") for file, dtype in files))
        whole = len(opened.tokens) == len(opened.trained) == opened.offsets[-1]
        whole &= len(opened.row_docs) == opened.row_offsets[-1] and len(opened.row_offsets) == sets[name]["rows"] + 1
    except (OSError, ValueError, LookupError) as error:
        raise _damaged(folder, name, str(error)) from error
    if not whole:
        raise _damaged(folder, name, "their sizes do not fit each other")
    return opened


def _damaged(folder: Path, name: str, problem: str) -> DataError:
    return DataError(f"the files of {folder / name} are not what ftdist writes: {problem}", "prepared data",
                     f"rm -r {folder}: it is prepared again")  # fmt: skip


def micro_batch(dataset: PreparedSet, row_ids: Sequence[int], packing: bool, pad_id: int) -> MicroBatch:
    """Lay rows end to end; without packing, each is padded to the longest of them by a segment of its own."""
    rows = [dataset.row(int(row)) for row in row_ids]
    widths = [sum(len(ids) for ids, _ in row) for row in rows]
    ids: List[np.ndarray] = []
    labels: List[np.ndarray] = []
    for row, width in zip(rows, widths, strict=True):
        for tokens, trained in row:
            ids.append(tokens.astype(np.int64))
            label = np.where(trained == 1, ids[-1], IGNORED)
            label[0] = IGNORED
            labels.append(label)
        padding = 0 if packing else max(widths) - width
        if padding:
            ids.append(np.full(padding, pad_id, dtype=np.int64))
            labels.append(np.full(padding, IGNORED, dtype=np.int64))
    lengths = [len(segment) for segment in ids]
    all_labels = np.concatenate(labels)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(ids))[None],
        labels=torch.from_numpy(all_labels)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
        max_seqlen=max(lengths),
        num_trained=int((all_labels != IGNORED).sum()),
        num_tokens=sum(widths),
    )
