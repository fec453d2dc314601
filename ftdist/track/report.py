"""The report at the end of a run: held-out losses and sample answers before and after, and where the results are."""

import struct
import zlib
from contextlib import suppress
from math import exp, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Dict, List, Sequence, Tuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftdist.base.json_files import read_records
from ftdist.base.output import quoted_path, short_path
from ftdist.base.tables import plain_table, show, show_table
from ftdist.base.terminal import format_seconds
from ftdist.plan.goodput import goodput_of
from ftdist.run.file_names import ADAPTER_CONFIG
from ftdist.run.prepared import GENERAL
from ftdist.run.rundir import RunDir
from ftdist.track.gain import gain_of

SHOWN_ANSWERS = 2
"""Number of questions whose answers are printed. samples.jsonl has all questions."""
SHOWN_CHARACTERS = 400
"""Maximum number of characters of an answer that are printed. samples.jsonl has the whole answer."""
LABEL_WIDTH = 13
ANSWER_TYPES = {"step": int, "set": str, "index": int, "answer": str}
"""Fields that a record of samples.jsonl must have to be shown, and their types."""
TRUNCATION_MARK = "…"
"""Ends an answer that was cut off because it reached its maximum number of tokens."""

FORGETTING_TIME = "perf/forgetting_seconds"
"""The metric with the time that an evaluation took to measure forgetting: on general texts and on the texts of the base
model. In the first evaluation it includes the time in which the base model wrote its texts."""

WANDB_MAGIC = b":W&B"
RECORD_HEADER = struct.Struct("<3xIHB")
"""The bytes after ``WANDB_MAGIC``: the other 3 bytes of the file's header, then checksum, length and kind of the first
record."""

Losses = Dict[str, List[Tuple[int, float]]]
"""(optimizer step, loss in nats per token) of every evaluation, by held-out set."""


def final_report(run: RunDir, console: Console, summary: Sequence[str] = ()) -> None:
    """Print held-out losses and answers of the base model and the trained model, and where the results are.

    Args:
        summary: Sentences about the run.
    """
    losses = heldout_losses(run)
    if losses:
        _print_losses(losses, console)
    if gain := gain_of(run, losses):
        _print_gain(gain, console)
    curve, general = forgetting_curve(run), general_gain(run)
    if curve or general:
        _print_forgetting(curve, general, forgetting_time(run), console)
    if times := step_times(run):
        _print_times(times, console)
    samples = answers(run)
    for number, sample in enumerate(samples[:SHOWN_ANSWERS], 1):
        console.print()
        _print_text(console, f"question {number}", str(sample.get("question", "")), "bold")
        _print_text(console, "base model", sample["before"], "yellow")
        _print_text(console, "trained model", sample["after"], "green")
        _print_text(console, "reference", str(sample.get("reference", "")), "bright_black")
    console.print()
    if summary:
        for sentence in summary:
            console.print(Text(sentence), soft_wrap=True)
        console.print()
    for label, value in places(run):
        # Do not wrap: users copy the path.
        console.print(Text(f"{label:{LABEL_WIDTH}} {value}"), soft_wrap=True)


def general_gain(run: RunDir) -> Dict[str, Dict[str, Any]]:
    """Return the change of each general set by its name, as ``gain_of`` does for held-out sets."""
    losses = {f"{GENERAL}/{name}": points for name, points in heldout_losses(run, GENERAL).items()}
    return {name.split("/", 1)[1]: found for name, found in gain_of(run, losses).items()}


def heldout_losses(run: RunDir, kind: str = "eval") -> Losses:
    """Return the step and the loss of every evaluation, by held-out set; with ``general`` those of general sets."""
    found: Losses = {}
    for record in read_records(run.metrics):
        for key, value in record.items():
            if key.startswith(f"{kind}/") and key.endswith("/loss") and isinstance(record.get("step"), int):
                with suppress(TypeError, ValueError):  # the tracker did not write this value
                    found.setdefault(key[len(f"{kind}/") : -len("/loss")], []).append((record["step"], float(value)))
    return found


def forgetting_curve(run: RunDir) -> List[Tuple[int, float, float]]:
    """Return the step, KL(base ‖ now) in nats per token, and its standard error, of every evaluation."""
    found = []
    for record in read_records(run.metrics):
        if {"forgetting/kl", "forgetting/kl_error"} <= record.keys() and isinstance(record.get("step"), int):
            with suppress(TypeError, ValueError):  # the tracker did not write this value
                found.append((record["step"], float(record["forgetting/kl"]), float(record["forgetting/kl_error"])))
    return found


def gain_curve(run: RunDir) -> List[Tuple[int, float]]:
    """Return the step and ``gain/loss``, the fall of the held-out loss in nats per token, of every evaluation."""
    found = []
    for record in read_records(run.metrics):
        if "gain/loss" in record and isinstance(record.get("step"), int):
            with suppress(TypeError, ValueError):  # the tracker did not write this value
                found.append((record["step"], float(record["gain/loss"])))
    return found


def forgetting_time(run: RunDir) -> Tuple[float, float]:
    """Return the seconds in which forgetting was measured (``FORGETTING_TIME``), and their share of the run."""
    found = [record[FORGETTING_TIME] for record in read_records(run.metrics) if FORGETTING_TIME in record]
    seconds = sum(float(value) for value in found if isinstance(value, (int, float)))
    total = goodput_of(run, alive=True).total_s
    return seconds, seconds / total if total else 0.0


def step_times(run: RunDir) -> Dict[str, float]:
    """Return the mean of each ``perf/`` metric over all records of steps, without the prefix; empty without records.
    Those of evaluations do not count.

    The first step is left out if there are others, because it takes longer.
    """
    found: Dict[str, List[float]] = {}
    for record in read_records(run.metrics):
        for key, value in record.items() if "perf/step_s" in record else ():
            if key.startswith("perf/") and isinstance(value, (int, float)):
                found.setdefault(key[len("perf/") :], []).append(float(value))
    return {name: fmean(values[1:] or values) for name, values in found.items()}


def answers(run: RunDir) -> List[Dict[str, Any]]:
    """Return the questions that were answered both before the first step and at the last evaluation.

    Returns:
        A record of samples.jsonl for each question, with the two answers added as ``before`` and ``after``. The list is
        empty if no question was answered after the first step.
    """
    rows = [row for row in read_records(run.samples) if _is_answer(row)]
    last = max((row["step"] for row in rows), default=0)
    if last == 0:
        return []
    before = {(row["set"], row["index"]): row["answer"] for row in rows if row["step"] == 0}
    after = {(row["set"], row["index"]): row for row in rows if row["step"] == last}
    return [{**row, "before": before[key], "after": row["answer"]} for key, row in after.items() if key in before]


def _is_answer(row: Dict[str, Any]) -> bool:
    return all(isinstance(row.get(key), expected) for key, expected in ANSWER_TYPES.items())


def places(run: RunDir) -> List[Tuple[str, str]]:
    """Return labels and paths of the results that exist."""
    found = [("run", short_path(run.path))]
    if run.export.is_dir():
        adapter = (run.export / ADAPTER_CONFIG).is_file()
        found.append(("adapter" if adapter else "model", short_path(run.export)))
    # Every attempt has a folder. All belong to the same W&B run.
    folders = sorted(run.wandb.glob("offline-run-*"))
    good = [folder for folder in folders if has_record(folder)]
    if good:
        names = f"{quoted_path(run.wandb)}/offline-run-*" if good == folders else " ".join(map(quoted_path, good))
        found.append(("W&B", f"offline; upload it with: wandb sync {names}"))
    elif folders:
        found.append(("W&B", "the offline record is empty or damaged; metrics.jsonl is complete"))
    return found


def has_record(folder: Path) -> bool:
    """Return whether W&B's offline folder holds a file that begins with a whole record, so that it can be uploaded.

    The file is a log of LevelDB with its own first bytes, and with zlib's CRC-32 of kind and data as its checksums:
    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    for path in folder.glob("run-*.wandb"):
        with suppress(OSError), path.open("rb") as file:
            start = file.read(len(WANDB_MAGIC) + RECORD_HEADER.size)
            if len(start) == len(WANDB_MAGIC) + RECORD_HEADER.size and start.startswith(WANDB_MAGIC):
                checksum, length, kind = RECORD_HEADER.unpack(start[len(WANDB_MAGIC) :])
                data = file.read(length)
                whole = kind in (1, 2) and len(data) == length > 0  # a whole record, or its first part
                return whole and zlib.crc32(data, zlib.crc32(bytes([kind]))) == checksum
    return False


def _print_losses(losses: Losses, console: Console) -> None:
    table = plain_table("held-out loss", "before", "after", "change", "perplexity")
    for name, points in losses.items():
        (first_step, before), (_, after) = points[0], points[-1]
        if first_step == 0 and len(points) > 1:
            change = f"{100 * (after - before) / before:+.1f} %" if before else "?"
            row = [f"{before:.4f}", f"{after:.4f}", change, f"{perplexity(before)} → {perplexity(after)}"]
        else:
            row = ["", f"{after:.4f}", "", perplexity(after)]
        table.add_row(Text(name), *row)
    show_table(console, table)


def _print_gain(gain: Dict[str, Dict[str, Any]], console: Console) -> None:
    table = plain_table("change (nats per token)", "loss", "95 % interval", "documents")
    for name, found in gain.items():
        change = found["change"]
        ends = _ends(change["low"], change["high"], ".4f")
        table.add_row(Text(name), f"{change['value']:+.4f}", ends, f"{found['documents']:,}")
    show_table(console, table)
    known = {name: found["metrics"]["accuracy"] for name, found in gain.items() if "accuracy" in found["metrics"]}
    table = plain_table("token accuracy", "before", "after", "change", "95 % interval")
    for name, accuracy in known.items():
        before, after = (f"{100 * accuracy[when]['value']:.1f} %" for when in ("before", "after"))
        value, low, high = (100 * accuracy["change"][part] for part in ("value", "low", "high"))
        table.add_row(Text(name), before, after, f"{value:+.2f}", _ends(low, high, ".2f"))
    if known:
        show_table(console, table)


def _ends(low: float, high: float, digits: str) -> str:
    """Return the ends of the interval of a change as text."""
    return f"{low:+{digits}} to {high:+{digits}}" if isfinite(low) and isfinite(high) else "not known"


def _print_forgetting(
    curve: List[Tuple[int, float, float]], general: Dict[str, Dict[str, Any]], time: Tuple[float, float],
    console: Console,
) -> None:  # fmt: skip
    table = plain_table("forgetting (nats per token)", "before", "after")
    if curve:
        (first_step, before, _), (_, after, error) = curve[0], curve[-1]
        table.add_row("KL(base ‖ now)", f"{before:.4f}" if first_step == 0 else "", f"{after:.4f} ± {error:.4f}")
    for name, found in general.items():
        change = _ends(found["change"]["low"], found["change"]["high"], ".4f")
        after_and_change = f"{found['after']['value']:.4f} (change {change})"
        table.add_row(Text(f"loss on general text: {name}"), f"{found['before']['value']:.4f}", after_and_change)
    if time[0]:
        table.add_row("time to measure it", "", f"{format_seconds(time[0])}, {time[1]:.1%} of the run")
    show_table(console, table)


def _print_times(times: Dict[str, float], console: Console) -> None:
    """Print where the time of a step goes.

    Phases that take less than a thousandth of it are left out, except the wait for data.
    """
    whole = times.get("step_s", 0.0)
    phases = {
        name[: -len("_s")]: seconds for name, seconds in times.items() if name.endswith("_s") and name != "step_s"
    }
    if not whole or not phases:
        return
    phases["other"] = max(0.0, whole - sum(phases.values()))
    table = plain_table("time of a step", "seconds", "share")
    for name, seconds in phases.items():
        if name == "data" or seconds >= whole / 1000:
            table.add_row(name, f"{seconds:.3f}", f"{seconds / whole:.1%}")
    utilization = f"MFU {times['mfu']:.1%}" if "mfu" in times else ""
    table.add_row("all", f"{whole:.3f}", utilization)
    show_table(console, table)


def perplexity(loss: float) -> str:
    """Return exp(loss) as text, with two decimals below 100 and none above."""
    if not loss < 30:  # true for NaN, too
        return "∞" if loss >= 30 else "nan"
    return f"{exp(loss):.2f}" if loss < 4.6 else f"{exp(loss):,.0f}"


def _print_text(console: Console, label: str, text: str, style: str) -> None:
    """Print a label, and beside it a text with all lines indented. ``text`` is not interpreted as markup."""
    text = text.strip() or "(nothing)"
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS].rstrip() + " …"
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=LABEL_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style="bright_black"), Text(text, style=style))
    show(console, grid)
