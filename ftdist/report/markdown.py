"""The report of a run in Markdown. Texts from data, names and tokens are shown as text."""

import html
import json
import re
from typing import Any, Dict, Iterable, List, Optional

from ftdist.base.terminal import format_seconds

MOST_MOVED = 10
"""Number of tensors that are listed. The JSON file has all."""
KINDS = {"matrix": "matrices", "embedding": "embeddings", "head": "head", "norm": "norms", "vector": "biases"}


def as_markdown(report: Dict[str, Any]) -> str:
    """Return the text of report.md."""
    lines = [f"# {plain(report['run'])}", "", *moved_lines(report["moved"]), *goodput_lines(report["goodput"])]
    return "\n".join(lines).rstrip("\n") + "\n"


def moved_lines(moved: Dict[str, Any]) -> List[str]:
    """Return the lines about what training moved."""
    tensors = sorted(moved["tensors"], key=lambda one: one["relative"] or 0.0, reverse=True)
    lines = [
        "## What moved", "",
        f"In {plain(moved['checkpoint'])} the {len(tensors)} trained tensors together differ from the base model by "
        f"{percent(moved['relative'])} of its norm (‖ΔW‖/‖W‖).", "",
        *table(["tensors", "‖ΔW‖/‖W‖"], [[KINDS[kind], percent(value)] for kind, value in moved["kinds"].items()]),
        "The tensors that moved most. Rank: the smallest rank that holds 99 % of ‖ΔW‖².", "",
        *table(["tensor", "‖ΔW‖/‖W‖", "‖ΔW‖", "rank of ΔW"],
               [[plain(one["name"]), percent(one["relative"]), f"{one['norm']:.3g}", _rank(one)]
                for one in tensors[:MOST_MOVED]]),
    ]  # fmt: skip
    grid = moved["map"]
    if grid["layers"]:
        rows = [
            [str(layer), *map(percent, values)] for layer, values in zip(grid["layers"], grid["values"], strict=True)
        ]
        lines += ["‖ΔW‖/‖W‖ of the matrices by layer and module:", "",
                  *table(["layer", *map(plain, grid["modules"])], rows)]  # fmt: skip
    if moved["tokens"]:
        rows = [
            [
                quoted(one["text"]),
                percent(one["moved"]),
                *(_texts(one[f"nearest_{when}"]) for when in ("before", "after")),
            ]
            for one in moved["tokens"]
        ]
        lines += ["The tokens whose embeddings moved most, and the tokens with the most similar embeddings:", "",
                  *table(["token", "‖Δe‖/‖e‖", "nearest before", "nearest after"], rows)]  # fmt: skip
    return lines


def goodput_lines(goodput: Dict[str, Any]) -> List[str]:
    """Return the lines about where the wall time went."""
    lines, attempts, total = ["## Where the time went", ""], goodput["attempts"], goodput["total_s"]
    if goodput["goodput"] is None:
        return [*lines, "Not known: the run was started by a version of ftdist that recorded no times.", ""]
    lost = f"; {goodput['lost_steps']} steps were done again or not saved" if goodput["lost_steps"] else ""
    several = "s" if len(attempts) > 1 else ""
    rows = [[phase, format_seconds(seconds), percent(seconds / total)] for phase, seconds in goodput["seconds"].items()]
    return [
        *lines,
        f"Goodput: {percent(goodput['goodput'])} of {format_seconds(total)} went into steps that count, in "
        f"{len(attempts)} attempt{several}{lost}.", "",
        *table(["phase", "time", "share"], rows),
        *table(["attempt", "ranks", "steps", "time", "end"], map(_attempt, attempts)),
    ]  # fmt: skip


def _attempt(attempt: Dict[str, Any]) -> List[str]:
    steps = "" if attempt["first_step"] is None else f"{attempt['first_step']} to {attempt['last_step']}"
    time = format_seconds(sum(attempt["seconds"].values()))
    return [str(attempt["number"]), str(attempt["ranks"] or "?"), steps, time, attempt["state"] or "not known"]


def table(head: List[str], rows: Iterable[List[str]]) -> List[str]:
    """Return the lines of a table, and an empty line after it. All cells are Markdown already."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows), ""]


def plain(text: str) -> str:
    """Return Markdown that shows a text as it is: no markup, no HTML, one line."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", html.escape(re.sub(r"\s+", " ", text), quote=False))


def quoted(text: str) -> str:
    """Return Markdown that shows a token with its spaces and line breaks, as JSON writes them."""
    return plain(json.dumps(text, ensure_ascii=not text.isprintable()))


def percent(value: Optional[float]) -> str:
    """Return a share as text; "new" if there was nothing before."""
    if not value:
        return "new" if value is None else "0"
    return f"{100 * value:.3g} %" if value < 10 else f"{100 * value:,.0f} %"


def _row(cells: List[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rank(tensor: Dict[str, Any]) -> str:
    return "" if tensor["rank"] is None else f"> {tensor['rank']}" if tensor["rank_exceeds"] else str(tensor["rank"])


def _texts(texts: List[str]) -> str:
    return ", ".join(map(quoted, texts))
