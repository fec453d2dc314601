"""Display of prepared data before training: a rendered sample, and tables of statistics. Both come from meta.json."""

from itertools import groupby
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from rich.console import Console
from rich.text import Text

from ftdist.base.counts import count
from ftdist.base.tables import plain_table, show_table
from ftdist.run.prepared import GENERAL, read_meta

TRAINED, CONTEXT = "bold green", "dim"
SHOWN_FIRST, SHOWN_LAST = 120, 60
"""Number of tokens at the beginning and at the end of a long document that a preview shows."""


def print_sample(folder: Path, console: Optional[Console] = None) -> None:
    """Print the sample of prepared data and its warnings. A run prints them also if its data was prepared earlier."""
    console, meta = console or Console(), read_meta(folder)
    print_legend(console)
    print_tokens(meta["sample"], console)
    print_warnings(meta, console)


def shown_parts(length: int) -> Tuple[slice, slice]:
    """Return the tokens of a document that a preview shows, as two slices: its beginning and its end.

    For a short document the two slices together hold every token.
    """
    whole = length <= SHOWN_FIRST + SHOWN_LAST
    first, last = (length, length) if whole else (SHOWN_FIRST, length - SHOWN_LAST)
    return slice(0, first), slice(last, length)


def print_left_out(tokens: int, trained: int, console: Console) -> None:
    """Print how many tokens a preview does not show, and how many of them are trained."""
    if tokens:
        console.print(Text(f"… {count(tokens, 'token')} not shown ({_n(trained)} of them are trained) …", style="cyan"))


def print_legend(console: Console) -> None:
    """Print how trained tokens and other tokens are marked."""
    if console.is_terminal:
        console.print(Text("trained", style=TRAINED), Text("not trained", style=CONTEXT))
    else:
        print("[[ trained ]]  not trained", file=console.file)


def print_tokens(tokens: List[List[Any]], console: Console) -> None:
    """Print tokens. Trained tokens are colored on a terminal, and enclosed in ``[[ ]]`` elsewhere.

    Args:
        tokens: ``[text, trained]`` for each token.
        console: Where to print.
    """
    if console.is_terminal:
        parts = Text()
        for text, trained in joined(tokens):
            parts.append(text, style=TRAINED if trained else CONTEXT)
        console.print(parts)
    else:
        print(plain_tokens(tokens), file=console.file)


def plain_tokens(tokens: List[List[Any]]) -> str:
    """Return tokens as plain text, with ``[[`` and ``]]`` around consecutive trained tokens."""
    return "".join(f"[[{text}]]" if trained else text for text, trained in joined(tokens))


def joined(tokens: List[List[Any]]) -> Iterator[Tuple[str, bool]]:
    """Yield the text of consecutive tokens that are all trained or all not trained, and which of the two it is."""
    for trained, group in groupby(tokens, key=lambda token: bool(token[1])):
        text = "".join(text for text, _ in group)
        yield printable(text), trained


def printable(text: str) -> str:
    """Return a text in which control characters are replaced by their escape sequences, such as ``\\x1b``.

    Text of a model or of data must not control the terminal.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def describe_data(meta: Dict[str, Any]) -> str:
    """Return one line that describes prepared data, for the banner at the start of a run."""
    train, *heldout = meta["sets"].values()
    names = ", ".join(meta["sources"])
    sizes = f"{count(train['rows'], 'row')}, {count(train['tokens'], 'token')}"
    counts = f"{sizes}, {_n(train['trained_tokens'])} of them trained"
    out = sum(stats["documents"] for stats in heldout)
    return f"{names}: {counts}; {count(out, 'document') if out else 'no documents'} held out"


def print_table(meta: Dict[str, Any], console: Optional[Console] = None) -> None:
    """Print statistics of every source and of every set, and the warnings."""
    console = console or Console()
    sources = plain_table("source", "documents", "tokens", "trained", "truncated", "split", "dropped", "share")
    rows = {**meta["sources"], **{f"{name} (held out)": stats for name, stats in meta["heldout_sources"].items()}}
    for name, stats in rows.items():
        dropped = ", ".join(f"{count:,} {why}" for why, count in stats["dropped"].items()) or "0"
        share = f"{stats['share']:.1%}" if name in meta["sources"] else "–"
        sources.add_row(
            name,
            _n(stats["documents"]),
            _n(stats["tokens"]),
            _n(stats["trained_tokens"]),
            _n(stats["truncated"]),
            _n(stats["split"]),
            dropped,
            share,
        )
    sets = plain_table("set", "rows", "documents", "tokens", "trained", "rows filled", "stop token")
    general = {f"{GENERAL}/{name}": stats for name, stats in meta.get(GENERAL, {}).items()}
    for name, stats in {**meta["sets"], **general}.items():
        sets.add_row(
            name,
            _n(stats["rows"]),
            _n(stats["documents"]),
            _n(stats["tokens"]),
            _n(stats["trained_tokens"]),
            f"{stats['packing_efficiency']:.1%}",
            Text(stats["stop_token"] or "none"),
        )
    show_table(console, sources)
    for name, stats in rows.items():
        if stats["split_chats"]:
            chats = count(stats["split_chats"], "chat")
            console.print(f"{name}: {chats} became "
                          f"{count(stats['documents_of_split_chats'], 'document')}, with "
                          f"{count(stats['tokens_of_split_chats'], 'more token')}, because the chat template shows "
                          "answers differently when more messages follow (data.turns)")  # fmt: skip
    console.print()
    show_table(console, sets)
    print_warnings(meta, console)


def print_warnings(meta: Dict[str, Any], console: Console) -> None:
    """Print the warnings of prepared data, in a file or a pipe each on one line."""
    for warning in meta["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=not console.is_terminal)


def _n(number: int) -> str:
    return f"{number:,}"
