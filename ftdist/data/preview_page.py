"""Write a preview as one HTML file that needs no scripts and no network."""

from html import escape
from typing import List, Sequence

from ftdist.data.preview_answers import AnswerGroup, SourceAnswers
from ftdist.data.preview_rows import ShownDocument, ShownRow, TextPiece
from ftdist.run.sample import printable

MAX_SHADED_LOSS = 8.0
"""Loss with the deepest background color, in nats."""

STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
.document { border: 1px solid #bbb; border-radius: 6px; padding: .6rem .8rem; margin: .6rem 0; }
.document > p { margin: 0 0 .4rem; color: #666; font-size: .85rem; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.7 ui-monospace, monospace; }
.t { color: #0a5c2b; font-weight: 600; border-bottom: 2px solid #2a9d55; }
.c { color: #777; }
""".strip()


def html_page(name: str, rows: List[ShownRow], max_seq_len: int, answers: Sequence[SourceAnswers] = ()) -> str:
    """Return the page as HTML.

    Trained text is green and underlined. A redder background means a higher loss of the base model.

    Args:
        name: Name of the run.
        rows: The rows to show.
        max_seq_len: Length of a row in tokens.
        answers: How the answers of each source are trained.
    """
    has_losses = any(piece.loss is not None for row in rows for document in row.documents for piece in document.pieces)
    hard = f", <span {_shade(MAX_SHADED_LOSS)}>high loss of the base model</span> (point at a token to see its loss)"
    body = "\n".join([*(_row(row, max_seq_len) for row in rows), *map(_answers, answers)])
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(name)}: preview</title>\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{escape(name)}</h1>\n"
        f'<p><span class="t">trained</span>, <span class="c">not trained</span>{hard if has_losses else ""}. '
        f"Each frame is one document. Documents in a row do not see each other.</p>\n{body}\n</body>\n</html>\n"
    )


def _row(row: ShownRow, max_seq_len: int) -> str:
    documents = "\n".join(_document(document) for document in row.documents)
    return f"<section>\n<h2>row {row.number}: {row.num_tokens} of {max_seq_len} tokens</h2>\n{documents}\n</section>"


def _answers(answers: SourceAnswers) -> str:
    rules = "<br>\n".join(f"{'✓' if holds else '✗'} {escape(text)}" for holds, text in answers.rules())
    examples = "\n".join(_example(group) for group in answers.groups() if not group.is_plain)
    return f"<section>\n<h2>{escape(answers.title())}</h2>\n<p>{rules}</p>\n{examples}\n</section>"


def _example(group: AnswerGroup) -> str:
    remarks = "".join(f"<br>{escape(printable(remark))}" for remark in group.remarks())
    texts = "".join(
        f'<p>{label}:</p><div class="tokens"><span class="c">{escape(text)}</span>'
        f'<span class="t">{escape(trained)}</span></div>'
        for label, text, trained in group.texts()
    )
    return f'<div class="document"><p>{escape(printable(group.title()))}{remarks}</p>{texts}</div>'


def _document(document: ShownDocument) -> str:
    tokens = "".join(_token(piece) for piece in document.pieces)
    return f'<div class="document"><p>{document.describe()}</p><div class="tokens">{tokens}</div></div>'


def _token(piece: TextPiece) -> str:
    loss = "" if piece.loss is None else f' title="{piece.loss:.2f} nats" {_shade(piece.loss)}'
    return f'<span class="{"t" if piece.trained else "c"}"{loss}>{escape(printable(piece.text))}</span>'


def _shade(loss: float) -> str:
    return f'style="background: rgba(220, 60, 40, {min(loss / MAX_SHADED_LOSS, 1.0) * 0.6:.2f})"'
