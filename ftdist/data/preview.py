"""Rows as they would be trained: in the terminal, and as a page to share."""

import copy
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Callable, List, Optional

import numpy as np
from rich.console import Console
from rich.text import Text

from ftdist.config.schema import RunConfig
from ftdist.data.loader import open_set, row_ids
from ftdist.data.page import page
from ftdist.data.prepare import build
from ftdist.data.stats import token_pieces
from ftdist.data.tokenizer import load_tokenizer
from ftdist.run.prepared import data_folder, is_ready, read_meta
from ftdist.run.sample import TRAINED, print_left_out, print_legend, print_table, print_tokens, printable, shown_parts

PREVIEW_DOCUMENTS = 200

Losses = Callable[[np.ndarray], np.ndarray]
"""Token ids [n] of one document → the loss of each [n], nats; nan of the first, which nothing predicts."""


@dataclass(frozen=True)
class Piece:
    """A token, or tokens that only together make a character."""

    text: str
    trained: bool
    num_tokens: int
    loss: Optional[float]
    """Of the base model, in nats; None where it was not asked for, or nothing comes before."""


@dataclass(frozen=True)
class ShownDocument:
    pieces: List[Piece]
    num_tokens: int
    num_trained: int

    @property
    def loss(self) -> Optional[float]:
        """Mean over the trained pieces' tokens."""
        losses = [piece.loss for piece in self.pieces if piece.trained and piece.loss is not None]
        return sum(losses) / self.num_trained if losses else None

    def describe(self) -> str:
        words = f"{self.num_tokens} tokens, {self.num_trained} trained"
        return words if self.loss is None else f"{words}, base model's loss {self.loss:.2f} a trained token"


@dataclass(frozen=True)
class ShownRow:
    number: int
    documents: List[ShownDocument]


def preview(config: RunConfig, num_rows: int, html: Optional[Path] = None, losses: Optional[Losses] = None) -> None:
    """Show the first rows of a run. Data that is not prepared yet is shown from its first documents."""
    folder = data_folder(config)
    if is_ready(folder):
        _show(config, folder, num_rows, html, losses)
        return
    few = copy.deepcopy(config)
    few.data.num_workers = 1
    for source in [*few.data.sources.values(), *few.data.heldout.values()]:
        source.max_documents = min(source.max_documents or PREVIEW_DOCUMENTS, PREVIEW_DOCUMENTS)
    with tempfile.TemporaryDirectory() as temporary:
        build(few, Path(temporary) / "data")
        print(f"of the first {PREVIEW_DOCUMENTS} documents of each source:")
        _show(few, Path(temporary) / "data", num_rows, html, losses)


def _show(config: RunConfig, folder: Path, num_rows: int, html: Optional[Path], losses: Optional[Losses]) -> None:
    rows, console = collect_rows(config, folder, num_rows, losses), Console()
    if html is not None:
        html.write_text(page(config.name, rows, config.data.max_seq_len), encoding="utf-8")
        print(f"preview of {len(rows)} rows written to {html}")
        return
    print_legend(console)
    for row in rows:
        used = sum(document.num_tokens for document in row.documents)
        many = "document" if len(row.documents) == 1 else "documents"
        console.rule(f"row {row.number}: {len(row.documents)} {many}, {used:,} of {config.data.max_seq_len:,} tokens")
        for number, document in enumerate(row.documents, 1):
            console.print(f"— document {number}: {document.describe()}", style="cyan")
            first, last = shown_parts(len(document.pieces))
            between = document.pieces[first.stop : last.start]
            _print_pieces(document.pieces[first], console, losses is not None)
            print_left_out(sum(piece.num_tokens for piece in between),
                           sum(piece.num_tokens for piece in between if piece.trained), console)  # fmt: skip
            _print_pieces(document.pieces[last], console, losses is not None)
    console.rule()
    print_table(read_meta(folder), console)


def collect_rows(config: RunConfig, folder: Path, num_rows: int, losses: Optional[Losses] = None) -> List[ShownRow]:
    """The first rows of the run's order, in pieces of text."""
    tokenizer, train = load_tokenizer(config), open_set(folder, "train")
    shown = []
    for row in row_ids(config.seed, train.num_rows, 0, min(num_rows, train.num_rows)).tolist():
        documents = []
        for ids, trained in train.row(row):
            of_each = losses(ids) if losses else np.full(len(ids), np.nan)
            pieces = [
                Piece(text, bool(flag), span.stop - span.start, _sum(of_each[span]))
                for text, flag, span in token_pieces(tokenizer, ids, trained)
            ]
            documents.append(ShownDocument(pieces, len(ids), int(trained.sum())))
        shown.append(ShownRow(row, documents))
    return shown


def _sum(losses: np.ndarray) -> Optional[float]:
    return None if np.isnan(losses).any() else float(losses.sum())


def _print_pieces(pieces: List[Piece], console: Console, with_losses: bool) -> None:
    if not pieces:
        return
    if with_losses:
        console.print(_with_losses(pieces, not console.is_terminal), soft_wrap=True)
    else:
        print_tokens([[piece.text, piece.trained] for piece in pieces], console)


def _with_losses(pieces: List[Piece], marks: bool) -> Text:
    """Each token and its loss, ``text⟨1.23⟩``; what is trained stands out, by [[ ]] where there are no colours."""
    text = Text()
    for trained, run in groupby(pieces, key=lambda piece: piece.trained):
        text.append("[[" if marks and trained else "")
        for piece in run:
            text.append(printable(piece.text), style=TRAINED if trained else "")
            text.append("" if piece.loss is None else f"⟨{piece.loss:.2f}⟩", style="dim")
        text.append("]]" if marks and trained else "")
    return text
