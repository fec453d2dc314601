"""Read rows of prepared data and build micro-batches from them.

The files of a set are memory-mapped: opening a set reads no tokens, and a row is read when it is used.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from ftdist.base.errors import DataError
from ftdist.base.output import quoted_path
from ftdist.base.permissions import explain_os_error
from ftdist.run.prepared import GENERAL, ROLES_FILE, is_ready, read_meta

IGNORED = -100
"""Label of a token that is not trained (``ignore_index`` of PyTorch's cross-entropy)."""


@dataclass(frozen=True)
class PreparedSet:
    """One set of prepared data: ``train`` or a held-out set. The arrays are memory-mapped files."""

    tokens: np.ndarray
    """[tokens] int32: token ids of all documents, one document after another."""
    trained: np.ndarray
    """[tokens] uint8: 1 for trained tokens."""
    offsets: np.ndarray
    """[documents + 1] int64: document d is ``tokens[offsets[d]:offsets[d + 1]]``."""
    row_docs: np.ndarray
    """[documents in rows] int64: document numbers in row order. A document can be in several rows, or in none."""
    row_offsets: np.ndarray
    """[rows + 1] int64: row r consists of the documents ``row_docs[row_offsets[r]:row_offsets[r + 1]]``."""
    roles: Optional[np.ndarray] = None
    """[tokens] uint8: roles of the tokens (``ftdist.data.roles.ROLES``). None if they were not kept: only held-out sets
    have them, and earlier versions did not write them."""

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    def document_lengths(self) -> np.ndarray:
        """Return the number of tokens of each document in the rows: [documents in rows] float64."""
        lengths: np.ndarray = np.diff(self.offsets).astype(np.float64)[self.row_docs]
        return lengths

    def row(self, row: int) -> List[Tuple[np.ndarray, np.ndarray]]:
        """Return the documents of a row as pairs ``(ids, trained)``: [n] int32 and [n] uint8."""
        docs = self.row_docs[self.row_offsets[row] : self.row_offsets[row + 1]]
        spans = [slice(int(self.offsets[doc]), int(self.offsets[doc + 1])) for doc in docs]
        return [(self.tokens[span], self.trained[span]) for span in spans]


@dataclass(frozen=True)
class MicroBatch:
    """Some rows as one sequence, one row after another.

    A segment is a document or the padding of a row. T is the number of tokens including padding, n the number of
    segments.
    """

    input_ids: torch.Tensor
    """[1, T] int64."""
    labels: torch.Tensor
    """[1, T] int64, aligned with ``input_ids``. IGNORED marks tokens that are not trained, such as the first token of
    each document."""
    position_ids: torch.Tensor
    """[1, T] int64: positions start at 0 in each segment."""
    cu_seqlens: torch.Tensor
    """[n + 1] int32: segment i consists of the tokens ``cu_seqlens[i]`` to ``cu_seqlens[i + 1] - 1``."""
    limits: List[int]
    """The numbers of ``cu_seqlens`` as a list on the host."""
    max_seqlen: int
    """Length of the longest segment, in tokens."""
    num_trained: int
    """Number of trained tokens."""
    num_tokens: int
    """Number of tokens without padding."""
    squares: int
    """Sum of the squares of the lengths of the documents. Attention takes time in proportion to it."""
    real: Optional[torch.Tensor] = None
    """[1, T] bool: False for padding. None: there is no padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Return a copy with all tensors on ``device``. From pinned memory, they are copied while the host goes on."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        """Return a copy with all tensors in pinned memory of the host."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        changed: Dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)


def open_set(folder: Path, name: str) -> PreparedSet:
    """Open one set of prepared data.

    Args:
        folder: Folder of the prepared data in the cache.
        name: ``train``, the name of a held-out set, or ``general/`` and the name of a general set.

    Raises:
        DataError: The folder contains no prepared data, the set does not exist, or its files are damaged.
        AccessError: This user may not read them.
    """
    if not is_ready(folder):
        raise DataError(f"{folder} holds no prepared data", "a folder of prepared data", "run ftdist prepare")
    meta = read_meta(folder)
    sets = {**meta["sets"], **{f"{GENERAL}/{one}": stats for one, stats in meta.get(GENERAL, {}).items()}}
    if name not in sets:
        key = name.replace("/", ".") if name.startswith(f"{GENERAL}/") else f"heldout.{name}"
        raise DataError(f"{folder} has no set '{name}'", f"one of {', '.join(sets)}", f"add data.{key}")
    files = (
        ("tokens.i32", "<i4"),
        ("trained.u8", "u1"),
        ("offsets.i64", "<i8"),
        ("row_docs.i64", "<i8"),
        ("row_offsets.i64", "<i8"),
    )
    try:
        opened = PreparedSet(*(np.memmap(folder / name / file, dtype=dtype, mode="r") for file, dtype in files))
        if (roles := folder / name / ROLES_FILE).is_file():
            opened = replace(opened, roles=np.memmap(roles, dtype="u1", mode="r"))
        sizes_match = len(opened.tokens) == len(opened.trained) == opened.offsets[-1]
        sizes_match &= opened.roles is None or len(opened.roles) == len(opened.tokens)
        sizes_match &= (
            len(opened.row_docs) == opened.row_offsets[-1] and len(opened.row_offsets) == sets[name]["rows"] + 1
        )
    except PermissionError as error:
        raise explain_os_error(error) from error
    except (OSError, ValueError, LookupError) as error:
        raise _damaged(folder, name, str(error)) from error
    if not sizes_match:
        raise _damaged(folder, name, "their sizes do not match")
    return opened


def _damaged(folder: Path, name: str, problem: str) -> DataError:
    return DataError(f"the files of {folder / name} are not what ftdist writes: {problem}",
                     "the files that ftdist prepare wrote",
                     f"delete it, then the data is prepared again: rm -r {quoted_path(folder)}")  # fmt: skip


def micro_batch(dataset: PreparedSet, row_ids: Sequence[int], packing: bool, pad_id: int) -> MicroBatch:
    """Build a micro-batch from rows of a set.

    Args:
        dataset: The set.
        row_ids: Numbers of the rows, in order.
        packing: If False, each row is padded to the length of the longest one. The padding is a separate segment.
        pad_id: Token id of the padding.
    """
    rows = [dataset.row(int(row)) for row in row_ids]
    widths = [sum(len(ids) for ids, _ in row) for row in rows]
    ids: List[np.ndarray] = []
    real: List[np.ndarray] = []
    labels: List[np.ndarray] = []
    for row, width in zip(rows, widths, strict=True):
        for tokens, trained in row:
            ids.append(tokens.astype(np.int64))
            label = np.where(trained == 1, ids[-1], IGNORED)
            label[0] = IGNORED
            labels.append(label)
        padding = 0 if packing else max(widths) - width
        real += [np.ones(width, dtype=bool), np.zeros(padding, dtype=bool)]
        if padding:
            ids.append(np.full(padding, pad_id, dtype=np.int64))
            labels.append(np.full(padding, IGNORED, dtype=np.int64))
    lengths = [len(segment) for segment in ids]
    limits = np.cumsum([0, *lengths])
    all_labels = np.concatenate(labels)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(ids))[None],
        labels=torch.from_numpy(all_labels)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        cu_seqlens=torch.from_numpy(limits.astype(np.int32)),
        limits=limits.tolist(),
        max_seqlen=max(lengths),
        num_trained=int((all_labels != IGNORED).sum()),
        num_tokens=sum(widths),
        squares=sum(len(tokens) ** 2 for row in rows for tokens, _ in row),
        real=None if packing else torch.from_numpy(np.concatenate(real))[None],
    )
