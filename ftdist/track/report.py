"""The last page of a run: what was gained, shown by numbers and by answers, and where everything is."""

from contextlib import suppress
from math import exp
from typing import Any, Dict, List, Tuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftdist.base.json_files import read_records
from ftdist.base.output import quoted_path, short_path
from ftdist.base.tables import plain_table, show, show_table
from ftdist.run.rundir import RunDir

SHOWN_ANSWERS = 2
"""Questions whose answers are printed; samples.jsonl has the others."""
SHOWN_CHARACTERS = 400
"""Of an answer; samples.jsonl has the rest."""
LABEL_WIDTH = 11
ANSWER = {"step": int, "set": str, "index": int, "answer": str}
"""What a line of samples.jsonl must hold to be shown."""
CUT = "…"
"""At the end of an answer that reached its limit of tokens before its own end."""

Scores = Dict[str, List[Tuple[int, float]]]


def final_report(run: RunDir, console: Console) -> None:
    """Print held-out loss before and after, answers of base model and expert, and where the results are."""
    scores = heldout_losses(run)
    if scores:
        _print_losses(scores, console)
    samples = answers(run)
    for number, sample in enumerate(samples[:SHOWN_ANSWERS], 1):
        console.print()
        _print_text(console, f"question {number}", str(sample.get("question", "")), "bold")
        _print_text(console, "base model", sample["before"], "yellow")
        _print_text(console, "expert", sample["after"], "green")
        _print_text(console, "reference", str(sample.get("reference", "")), "bright_black")
    console.print()
    for label, value in places(run):
        # Not wrapped: a path is there to be copied.
        console.print(Text(f"{label:{LABEL_WIDTH}} {value}"), soft_wrap=True)


def heldout_losses(run: RunDir) -> Scores:
    """(step, loss) of every evaluation, by held-out set."""
    found: Scores = {}
    for record in read_records(run.metrics):
        for key, value in record.items():
            if key.startswith("eval/") and key.endswith("/loss") and isinstance(record.get("step"), int):
                with suppress(TypeError, ValueError):  # not what the tracker writes
                    found.setdefault(key[len("eval/") : -len("/loss")], []).append((record["step"], float(value)))
    return found


def answers(run: RunDir) -> List[Dict[str, Any]]:
    """The held-out questions answered before the first step and at the last evaluation: a row each, with ``before`` and
    ``after``."""
    rows = [row for row in read_records(run.samples) if all(isinstance(row.get(key), ANSWER[key]) for key in ANSWER)]
    last = max((row["step"] for row in rows), default=0)
    if last == 0:
        return []
    before = {(row["set"], row["index"]): row["answer"] for row in rows if row["step"] == 0}
    after = {(row["set"], row["index"]): row for row in rows if row["step"] == last}
    return [{**row, "before": before[key], "after": row["answer"]} for key, row in after.items() if key in before]


def places(run: RunDir) -> List[Tuple[str, str]]:
    """Where the results of a run lie, those that are there."""
    found = [("run", short_path(run.path))]
    if run.export.is_dir():
        found.append(("model", short_path(run.export)))
    if any(run.wandb.glob("offline-run-*")):
        # One for each attempt, all of the same W&B run.
        found.append(("W&B", f"offline; upload it with: wandb sync {quoted_path(run.wandb)}/offline-run-*"))
    return found


def _print_losses(scores: Scores, console: Console) -> None:
    table = plain_table("held-out loss", "before", "after", "change", "perplexity")
    for name, points in scores.items():
        (first_step, before), (_, after) = points[0], points[-1]
        if first_step == 0 and len(points) > 1:
            change = f"{100 * (after - before) / before:+.1f} %" if before else "?"
            row = [f"{before:.4f}", f"{after:.4f}", change, f"{perplexity(before)} → {perplexity(after)}"]
        else:
            row = ["", f"{after:.4f}", "", perplexity(after)]
        table.add_row(Text(name), *row)
    show_table(console, table)


def perplexity(loss: float) -> str:
    """exp(loss), as many digits as say something."""
    if not loss < 30:  # also NaN
        return "∞" if loss >= 30 else "nan"
    return f"{exp(loss):.2f}" if loss < 4.6 else f"{exp(loss):,.0f}"


def _print_text(console: Console, label: str, text: str, style: str) -> None:
    """A label and a text that wraps under itself. ``text`` is never read as markup."""
    text = text.strip() or "(nothing)"
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS].rstrip() + " …"
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=LABEL_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style="bright_black"), Text(text, style=style))
    show(console, grid)
