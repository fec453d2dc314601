"""The report of a run as one HTML page: no scripts, nothing from the network, every text from outside shown as text."""

import base64
import hashlib
from html import escape
from typing import Any, Dict, Iterable, List, Sequence

from ftdist.report.page_style import STYLE
from ftdist.run.sample import printable

SHORT = 28
"""Number of characters up to which a cell of a table stays on one line."""


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole page.

    The page may load nothing, and its one style is named by its hash. So even a text that was not escaped could not run
    a script, load an address, or set a style.

    Args:
        title: As text.
        parts: The content, as HTML.
    """
    style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{shown(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def shown(text: Any) -> str:
    """Return HTML that shows a text as it is. Characters that control are shown as their escapes."""
    return escape(printable(str(text)))


def section(title: str, parts: Iterable[str], key: str) -> str:
    """Return a section; empty if it has no content.

    Args:
        title: As HTML. parts: As HTML.
        key: Its name in addresses.
    """
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{key}">\n<h2 id="{key}">{title}</h2>\n{body}\n</section>' if body else ""


def paragraph(text: str, style: str = "") -> str:
    """Return a paragraph of a text. An empty text gives none."""
    return f"<p{_class(style)}>{shown(text)}</p>" if text else ""


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of texts whose first column names the rows; empty without rows.

    On a narrow screen it scrolls in its frame, which the keyboard can reach.

    Args:
        title: What the table shows, for readers who cannot see it.
    """
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in head)
    lines = "".join(f'<tr><th scope="row">{shown(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>\n' for row in rows)
    return (f'<div class="wrap" tabindex="0" role="region" aria-label="{shown(title)}">\n<table>\n<thead><tr>{heads}'
            f"</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n</div>")  # fmt: skip


def figure(chart: str, caption: str) -> str:
    """Return a chart with its caption, which is a text."""
    return f"<figure>\n{chart}\n<figcaption>{shown(caption)}</figcaption>\n</figure>"


def charts(figures: Iterable[str]) -> str:
    """Return charts side by side where there is room."""
    found = [one for one in figures if one]
    return '<div class="charts">\n' + "\n".join(found) + "\n</div>" if found else ""


def details(title: str, content: str) -> str:
    """Return content that is shown on demand; empty without content."""
    return f"<details>\n<summary>{shown(title)}</summary>\n{content}\n</details>" if content else ""


def numbers(found: Dict[str, List[str]]) -> str:
    """Return a box for each number: by name, the number and what it means."""
    boxes = "".join(f"<div><dt>{shown(name)}</dt><dd>{shown(value)}<small>{shown(meaning)}</small></dd></div>\n"
                    for name, (value, meaning) in found.items())  # fmt: skip
    return f'<dl class="numbers">\n{boxes}</dl>'


def pairs(found: Dict[str, Any]) -> str:
    """Return texts side by side, each under its name."""
    boxes = "".join(f"<div><dt>{shown(name)}</dt><dd>{shown(text)}</dd></div>\n" for name, text in found.items())
    return f'<dl class="pair">\n{boxes}</dl>'


def _cell(content: Any) -> str:
    return f"<td{_class('short' if len(str(content)) <= SHORT else '')}>{shown(content)}</td>"


def _class(style: str) -> str:
    return f' class="{style}"' if style else ""
