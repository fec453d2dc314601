"""Show rows as they would be trained, in the terminal or as an HTML page."""

import copy
import tempfile
from itertools import groupby
from pathlib import Path
from typing import List, Optional

from rich.console import Console
from rich.text import Text

from ftdist.base.counts import count
from ftdist.config.data import named_sources
from ftdist.config.schema import RunConfig
from ftdist.data.prepare import build
from ftdist.data.preview_answers import SourceAnswers, collect_answers
from ftdist.data.preview_page import html_page
from ftdist.data.preview_rows import ShownRow, TextPiece, TokenLosses, collect_rows
from ftdist.data.tokenizer import load_tokenizer
from ftdist.run.prepared import data_folder, is_ready, read_meta
from ftdist.run.sample import TRAINED, print_left_out, print_legend, print_table, print_tokens, printable, shown_parts

PREVIEW_DOCUMENTS = 200
"""Number of documents of each source that are read for a preview if the data is not prepared yet."""


def preview(
    config: RunConfig, num_rows: int, html: Optional[Path] = None, losses: Optional[TokenLosses] = None
) -> None:
    """Show the rows that a run would train first.

    If the data is not prepared yet, the first documents of each source are prepared in a temporary folder.

    Args:
        html: Write an HTML page to this file instead of printing the rows.
        losses: Computes the base model's loss of each token, which is then shown too.
    """
    folder = data_folder(config)
    if is_ready(folder):
        _show(config, folder, num_rows, html, losses)
        return
    few = copy.deepcopy(config)
    few.data.num_workers = 1
    for source in named_sources(few.data).values():
        source.max_documents = min(source.max_documents or PREVIEW_DOCUMENTS, PREVIEW_DOCUMENTS)
    with tempfile.TemporaryDirectory() as temporary:
        build(few, Path(temporary) / "data")
        print(f"preview of the first {PREVIEW_DOCUMENTS} documents of each source:")
        _show(few, Path(temporary) / "data", num_rows, html, losses)


def _show(config: RunConfig, folder: Path, num_rows: int, html: Optional[Path], losses: Optional[TokenLosses]) -> None:
    rows, console = collect_rows(config, folder, num_rows, losses), Console()
    answers = list(collect_answers(config, load_tokenizer(config), PREVIEW_DOCUMENTS))
    if html is not None:
        html.write_text(html_page(config.name, rows, config.data.max_seq_len, answers), encoding="utf-8")
        print(f"preview of {count(len(rows), 'row')} written to {html}")
        return
    print_legend(console)
    for row in rows:
        _print_row(row, config.data.max_seq_len, losses is not None, console)
    for one in answers:
        _print_answers(one, console)
    console.rule()
    print_table(read_meta(folder), console)


def _print_row(row: ShownRow, max_seq_len: int, with_losses: bool, console: Console) -> None:
    count = f"{len(row.documents)} {'document' if len(row.documents) == 1 else 'documents'}"
    console.rule(f"row {row.number}: {count}, {row.num_tokens:,} of {max_seq_len:,} tokens")
    for number, document in enumerate(row.documents, 1):
        console.print(f"— document {number}: {document.describe()}", style="cyan")
        first, last = shown_parts(len(document.pieces))
        between = document.pieces[first.stop : last.start]
        _print_pieces(document.pieces[first], with_losses, console)
        print_left_out(sum(piece.num_tokens for piece in between),
                       sum(piece.num_tokens for piece in between if piece.trained), console)  # fmt: skip
        _print_pieces(document.pieces[last], with_losses, console)


def _print_answers(answers: SourceAnswers, console: Console) -> None:
    """Print the rules that hold, and an example of each way in which answers are trained."""
    console.rule(Text(answers.title()))
    for holds, text in answers.rules():
        style = "green" if holds else "bold red"
        console.print(Text(f"{'✓' if holds else '✗'} {text}", style=style), soft_wrap=True)
    for group in answers.groups():
        if group.is_plain:
            continue
        console.print(Text(f"— {group.title()}", style="cyan"), soft_wrap=True)
        for remark in group.remarks():
            console.print(Text(remark, style="yellow"), soft_wrap=True)
        for label, text, trained in group.texts():
            console.print(Text(f"{label}:", style="cyan"))
            print_tokens([[text, 0], *([[trained, 1]] if trained else [])], console)


def _print_pieces(pieces: List[TextPiece], with_losses: bool, console: Console) -> None:
    if not pieces:
        return
    if with_losses:
        console.print(_text_with_losses(pieces, not console.is_terminal), soft_wrap=True)
    else:
        print_tokens([[piece.text, piece.trained] for piece in pieces], console)


def _text_with_losses(pieces: List[TextPiece], with_brackets: bool) -> Text:
    """Return the text with the loss after each token, as ``text⟨1.23⟩``.

    Trained text is green. If there are no colors, it is in ``[[ ]]``.
    """
    text = Text()
    for trained, run in groupby(pieces, key=lambda piece: piece.trained):
        text.append("[[" if with_brackets and trained else "")
        for piece in run:
            text.append(printable(piece.text), style=TRAINED if trained else "")
            text.append("" if piece.loss is None else f"⟨{piece.loss:.2f}⟩", style="dim")
        text.append("]]" if with_brackets and trained else "")
    return text
