"""Write one set of prepared data. Tokens go to files at once; memory holds only a few numbers for each document."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

from ftdist.data.encode import Encoded
from ftdist.run.prepared import ROLES_FILE


class SetWriter:
    """Writer of one set in a new folder.

    ``append`` writes tokens to ``tokens.i32`` and ``trained.u8``; ``finish`` writes the other files.
    ``ftdist.data.loader.PreparedSet`` describes their content. Documents are numbered from 0 in the order in which they
    are appended.
    """

    def __init__(self, folder: Path, with_roles: bool = False) -> None:
        """
        Args:
            with_roles: Write the roles of the tokens too, to ``roles.u8``.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        self._roles = (folder / ROLES_FILE).open("wb") if with_roles else None
        self._tokens = (folder / "tokens.i32").open("wb")
        self._trained = (folder / "trained.u8").open("wb")
        self._columns: Dict[str, List[np.ndarray]] = {
            name: [] for name in ("lengths", "num_trained", "hashes", "stops", "source")
        }
        self._excluded = np.empty(0, dtype=np.int64)

    def append(self, encoded: Encoded, source: int) -> None:
        """Append documents.

        Args:
            source: Number of the source that they come from.
        """
        encoded.ids.astype("<i4").tofile(self._tokens)
        encoded.trained.tofile(self._trained)
        if self._roles is not None:
            encoded.roles.tofile(self._roles)
        for name in ("lengths", "num_trained", "hashes", "stops"):
            self._columns[name].append(getattr(encoded, name))
        self._columns["source"].append(np.full(len(encoded.lengths), source, dtype=np.int32))

    def column(self, name: str) -> np.ndarray:
        """Return one number for each document, [documents].

        Args:
            name: ``lengths``, ``num_trained``, ``hashes``, ``stops`` (see ``Encoded``) or ``source``.
        """
        parts = self._columns[name]
        self._columns[name] = [np.concatenate(parts)] if parts else [np.empty(0, dtype=np.int64)]
        return self._columns[name][0]

    def read(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the arrays ``tokens``, ``trained`` and ``offsets`` of all documents that were appended so far.

        The first two are memory-mapped. ``PreparedSet`` describes the arrays.
        """
        self._tokens.flush()
        self._trained.flush()
        offsets = np.concatenate([[0], np.cumsum(self.column("lengths"))]).astype("<i8")
        if offsets[-1] == 0:
            return np.empty(0, "<i4"), np.empty(0, "u1"), offsets
        tokens = np.memmap(self.folder / "tokens.i32", dtype="<i4", mode="r")
        return tokens, np.memmap(self.folder / "trained.u8", dtype="u1", mode="r"), offsets

    def documents(self, numbers: np.ndarray) -> Iterator[Encoded]:
        """Yield the documents with these numbers, one at a time, without their roles."""
        tokens, trained, offsets = self.read()
        columns = {name: self.column(name) for name in ("lengths", "num_trained", "hashes", "stops")}
        for number in numbers.tolist():
            span = slice(offsets[number], offsets[number + 1])
            one: Dict[str, Any] = {name: column[number : number + 1] for name, column in columns.items()}
            unknown = np.zeros(offsets[number + 1] - offsets[number], dtype=np.uint8)
            yield Encoded(ids=tokens[span], trained=trained[span], roles=unknown, **one)

    def exclude(self, numbers: np.ndarray) -> None:
        """Exclude these documents from the rows of the set. Their tokens stay in the files."""
        self._excluded = numbers

    def kept(self) -> np.ndarray:
        """Return the numbers of the documents that are not excluded, [documents] int64."""
        return np.setdiff1d(np.arange(len(self.column("lengths"))), self._excluded)

    def finish(self, row_docs: np.ndarray, row_offsets: np.ndarray) -> None:
        """Write the index of documents and rows.

        Args:
            row_docs: Numbers of the documents in row order.
            row_offsets: [rows + 1] row r consists of ``row_docs[row_offsets[r]:row_offsets[r + 1]]``.
        """
        offsets = self.read()[2]
        offsets.tofile(self.folder / "offsets.i64")
        row_docs.astype("<i8").tofile(self.folder / "row_docs.i64")
        row_offsets.astype("<i8").tofile(self.folder / "row_offsets.i64")

    def close(self) -> None:
        self._tokens.close()
        self._trained.close()
        if self._roles is not None:
            self._roles.close()


def select_documents(encoded: Encoded, keep: np.ndarray) -> Encoded:
    """Return the documents for which ``keep`` ([documents] bool) is true. Only the arrays of the result are valid."""
    if keep.all():
        return encoded
    tokens = np.repeat(keep, encoded.lengths)
    return Encoded(
        encoded.ids[tokens],
        encoded.trained[tokens],
        encoded.roles[tokens],
        encoded.lengths[keep],
        encoded.num_trained[keep],
        encoded.hashes[keep],
        encoded.stops[keep],
    )
