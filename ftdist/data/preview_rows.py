"""The rows that a preview shows: documents, and the text and loss of each token."""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Optional

import numpy as np

from ftdist.base.counts import count
from ftdist.config.schema import RunConfig
from ftdist.data.loader import open_set
from ftdist.data.row_order import row_ids
from ftdist.data.token_text import split_tokens
from ftdist.data.tokenizer import load_tokenizer

TokenLosses = Callable[[np.ndarray], np.ndarray]
"""Maps the token ids [n] of one document to the losses [n] of its tokens, in nats. The loss of the first token is nan,
because nothing predicts it."""


@dataclass(frozen=True)
class TextPiece:
    """The text of one token, or of several tokens that form one character only together."""

    text: str
    trained: bool
    num_tokens: int
    loss: Optional[float]
    """Sum of the base model's losses of these tokens in nats. None if losses were not computed, or for the first token
    of a document."""


@dataclass(frozen=True)
class ShownDocument:
    pieces: List[TextPiece]
    num_tokens: int
    num_trained: int

    @property
    def loss(self) -> Optional[float]:
        """Mean loss of the trained tokens in nats, or None if losses were not computed."""
        losses = [piece.loss for piece in self.pieces if piece.trained and piece.loss is not None]
        return sum(losses) / self.num_trained if losses else None

    def describe(self) -> str:
        counts = f"{count(self.num_tokens, 'token')}, {self.num_trained} trained"
        return counts if self.loss is None else f"{counts}, base model loss {self.loss:.2f} nats per trained token"


@dataclass(frozen=True)
class ShownRow:
    number: int
    """Number of the row in the training set."""
    documents: List[ShownDocument]

    @property
    def num_tokens(self) -> int:
        return sum(document.num_tokens for document in self.documents)


def collect_rows(
    config: RunConfig, folder: Path, num_rows: int, losses: Optional[TokenLosses] = None
) -> List[ShownRow]:
    """Read the rows that a run would train first.

    Args:
        folder: Folder of the prepared data.
        num_rows: Number of rows. Fewer are returned if the training set is smaller.
        losses: Computes the loss of each token. None omits the losses.
    """
    tokenizer, train = load_tokenizer(config), open_set(folder, "train")
    shown = []
    for row in row_ids(config.seed, train.num_rows, 0, min(num_rows, train.num_rows)).tolist():
        documents = []
        for ids, trained in train.row(row):
            token_losses = losses(ids) if losses else np.full(len(ids), np.nan)
            pieces = [
                TextPiece(text, bool(flag), span.stop - span.start, _sum(token_losses[span]))
                for text, flag, span in split_tokens(tokenizer, ids, trained)
            ]
            documents.append(ShownDocument(pieces, len(ids), int(trained.sum())))
        shown.append(ShownRow(row, documents))
    return shown


def _sum(losses: np.ndarray) -> Optional[float]:
    return None if np.isnan(losses).any() else float(losses.sum())
