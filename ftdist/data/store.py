"""Writing one set: tokens go to files as they come, only a few numbers for each document stay in memory."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

from ftdist.data.encode import Encoded


class SetWriter:
    """Appends documents to ``<folder>/tokens.i32`` and ``trained.u8``; finish writes the indexes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._tokens = (folder / "tokens.i32").open("wb")
        self._trained = (folder / "trained.u8").open("wb")
        self._columns: Dict[str, List[np.ndarray]] = {
            name: [] for name in ("lengths", "num_trained", "hashes", "stops", "source")
        }
        self._left_out = np.empty(0, dtype=np.int64)

    def append(self, encoded: Encoded, source: int) -> None:
        encoded.ids.astype("<i4").tofile(self._tokens)
        encoded.trained.tofile(self._trained)
        for name in ("lengths", "num_trained", "hashes", "stops"):
            self._columns[name].append(getattr(encoded, name))
        self._columns["source"].append(np.full(len(encoded.lengths), source, dtype=np.int32))

    def column(self, name: str) -> np.ndarray:
        """One number for each document: lengths, num_trained, hashes, stops or source."""
        parts = self._columns[name]
        self._columns[name] = [np.concatenate(parts)] if parts else [np.empty(0, dtype=np.int64)]
        return self._columns[name][0]

    def read(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(tokens, trained, offsets)`` of what was appended so far, the first two memory-mapped."""
        self._tokens.flush()
        self._trained.flush()
        offsets = np.concatenate([[0], np.cumsum(self.column("lengths"))]).astype("<i8")
        if offsets[-1] == 0:
            return np.empty(0, "<i4"), np.empty(0, "u1"), offsets
        tokens = np.memmap(self.folder / "tokens.i32", dtype="<i4", mode="r")
        return tokens, np.memmap(self.folder / "trained.u8", dtype="u1", mode="r"), offsets

    def documents(self, numbers: np.ndarray) -> Iterator[Encoded]:
        """Documents one by one, as they were appended."""
        tokens, trained, offsets = self.read()
        columns = {name: self.column(name) for name in ("lengths", "num_trained", "hashes", "stops")}
        for number in numbers.tolist():
            span = slice(offsets[number], offsets[number + 1])
            one: Dict[str, Any] = {name: column[number : number + 1] for name, column in columns.items()}
            yield Encoded(ids=tokens[span], trained=trained[span], **one)

    def leave_out(self, numbers: np.ndarray) -> None:
        """Documents that were written but belong to no row."""
        self._left_out = numbers

    def kept(self) -> np.ndarray:
        """Numbers of the documents that are not left out, [documents] int64."""
        return np.setdiff1d(np.arange(len(self.column("lengths"))), self._left_out)

    def finish(self, row_docs: np.ndarray, row_offsets: np.ndarray) -> None:
        offsets = self.read()[2]
        offsets.tofile(self.folder / "offsets.i64")
        row_docs.astype("<i8").tofile(self.folder / "row_docs.i64")
        row_offsets.astype("<i8").tofile(self.folder / "row_offsets.i64")

    def close(self) -> None:
        self._tokens.close()
        self._trained.close()


def split_encoded(encoded: Encoded, keep: np.ndarray) -> Encoded:
    """The documents of a chunk where ``keep`` ([documents] bool) is true."""
    if keep.all():
        return encoded
    tokens = np.repeat(keep, encoded.lengths)
    return Encoded(
        encoded.ids[tokens],
        encoded.trained[tokens],
        encoded.lengths[keep],
        encoded.num_trained[keep],
        encoded.hashes[keep],
        encoded.stops[keep],
    )
