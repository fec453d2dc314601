"""The report of a run in Markdown. Texts from data, names and tokens are shown as text."""

import html
import json
import re
from itertools import chain
from typing import Any, Dict, Iterable, List, Optional, Sequence

from ftdist.base.counts import count
from ftdist.base.terminal import format_seconds
from ftdist.report.compare import COMPARED_TEXT, HEAD, best_trade_offs, compared, different_settings
from ftdist.report.rows import (
    ATTEMPT_HEAD,
    DATA_HEAD,
    DOCUMENT_HEAD,
    DOCUMENT_TITLES,
    EVALUATION_HEAD,
    EVALUATION_TEXT,
    GAIN_HEAD,
    GAIN_TEXT,
    GENERAL_TEXT,
    KINDS,
    RARITY_HEAD,
    RARITY_TITLE,
    ROLE_HEAD,
    ROLE_TITLE,
    TASK_HEAD,
    TASK_TEXT,
    WORD_HEAD,
    WORD_TITLES,
    attempt_rows,
    cost_rows,
    cost_text,
    data_rows,
    document_rows,
    evaluation_rows,
    gain_rows,
    phase_rows,
    rarity_rows,
    role_rows,
    step_rows,
    task_rows,
    tensor_rows,
    waiting_text,
    word_rows,
    word_text,
)
from ftdist.report.summary import sentences
from ftdist.report.texts import percent
from ftdist.run.sample import printable

MOST_CHANGED = 5
"""Number of documents and of words of a set that are listed of those that gained most, and of those that lost most."""
MOST_MOVED = 10
"""Number of tensors that are listed. The JSON file has all."""


def as_markdown(report: Dict[str, Any]) -> str:
    """Return the text of report.md."""
    parts = (moved_lines(report["moved"]), cost_lines(report["cost"]), goodput_lines(report))
    lines = [f"# {plain(report['run'])}", "", *fact_lines(report), *task_lines(report["tasks"]),
             *data_lines(report["data"]), *chain.from_iterable(parts), *origin_lines(report)]  # fmt: skip
    return "\n".join(lines).rstrip("\n") + "\n"


def comparison_as_markdown(title: str, reports: Sequence[Dict[str, Any]], names: Sequence[str]) -> str:
    """Return the text of the comparison of several runs.

    Args:
        names: What each run is called.
    """
    settings = [[plain(cell) for cell in row] for row in different_settings(reports)]
    best = ", ".join(plain(names[number]) for number in best_trade_offs(reports))
    return "\n".join([
        f"# {plain(title)}: {len(reports)} runs", "",
        *table(HEAD, [[plain(cell) for cell in row] for row in compared(reports, names)]), COMPARED_TEXT, "",
        *([f"No other run beats these in both gain and forgetting: {best}.", ""] if best else []),
        *(["## Settings that differ", "", *table(["setting", *map(plain, names)], settings)] if settings else []),
    ]).rstrip("\n") + "\n"  # fmt: skip


def fact_lines(report: Dict[str, Any]) -> List[str]:
    """Return the summary, the held-out losses and the answers."""
    lines = [" ".join(sentences(report, plain)), ""]
    if rows := [[plain(name), *cells] for name, *cells in evaluation_rows(report)]:
        lines += ["## Evaluations", "", EVALUATION_TEXT, "", *table(EVALUATION_HEAD, rows)]
    if report["gain"]:
        rows = [[plain(name), *cells] for name, *cells in gain_rows(report["gain"])]
        lines += ["## Gain", "", GAIN_TEXT, "", *table(GAIN_HEAD, rows)]
    if report["forgetting"]:
        rows = [[str(step), f"{float(kl):.4f}", f"{float(error):.4f}"] for step, kl, error in
                report["forgetting"]["curve"]]  # fmt: skip
        lines += ["## Forgetting", "", *table(["step", "KL(base ‖ now) (nats per token)", "standard error"], rows)]
    if report["general"]:
        rows = [[plain(name), *cells] for name, *cells in gain_rows(report["general"])]
        lines += ["## General texts", "", GENERAL_TEXT, GAIN_TEXT, "", *table(GAIN_HEAD, rows)]
    for kind, title in DOCUMENT_TITLES.items():
        if rows := document_rows(report["documents"], kind, MOST_CHANGED):
            shown = [[plain(name), plain(text), *cells] for name, text, *cells in rows]
            lines += [f"## {title}", "", *table(DOCUMENT_HEAD, shown)]
    lines += word_lines(report["words"])
    if report["answers"]:
        rows = [
            [plain(str(row[key])) for key in ("question", "before", "after", "reference")] for row in report["answers"]
        ]
        lines += [
            "## Answers before and after",
            "",
            *table(["question", "base model", "trained model", "reference"], rows),
        ]
    return lines


def word_lines(words: Dict[str, Any]) -> List[str]:
    """Return the lines about the words whose loss changed most."""
    lines = ["## Words", "", plain(word_text(words)), ""]
    for kind, title in WORD_TITLES.items():
        if rows := word_rows(words, kind, MOST_CHANGED):
            shown = [[plain(name), plain(text), *cells] for name, text, *cells in rows]
            lines += [f"{title}:", "", *table(WORD_HEAD, shown)]
    rarity, roles = (RARITY_TITLE, RARITY_HEAD, rarity_rows(words)), (ROLE_TITLE, ROLE_HEAD, role_rows(words))
    for title, head, rows in (roles, rarity):
        if rows:
            lines += [f"{title}:", "", *table(head, [[plain(name), *cells] for name, *cells in rows])]
    return lines


def task_lines(tasks: List[Dict[str, Any]]) -> List[str]:
    """Return the lines about the tasks before and after."""
    if not tasks:
        return []
    rows = [[plain(name), *numbers] for name, *numbers in task_rows(tasks)]
    return ["## Tasks before and after", "", *table(TASK_HEAD, rows), TASK_TEXT, ""]


def data_lines(data: Optional[Dict[str, Any]]) -> List[str]:
    """Return the lines about the prepared data, with one sample."""
    if not data:
        return []
    rows = [[plain(name), *cells] for name, *cells in data_rows(data)]
    pieces = [["yes" if trained else "no", quoted(text)] for text, trained in data["sample"]]
    sample = ["A sample, in pieces:", "", *table(["trained", "text"], pieces)] if pieces else []
    warnings = [f"- Warning: {plain(warning)}" for warning in data["warnings"]]
    return ["## Data", "", *table(DATA_HEAD, rows), *warnings, *[""][: len(warnings)], *sample]


def origin_lines(report: Dict[str, Any]) -> List[str]:
    """Return the faults, the settings and the commands."""
    settings = [[plain(one["key"]), quoted(one["value"]), quoted(one["default"])] for one in report["settings"]]
    commands, lines = report["commands"], []
    if report["faults"]:
        lines += ["## Faults and resumes", "", *(f"- {plain(fault)}" for fault in report["faults"]), ""]
    lines += ["## Settings without their default", "", *table(["setting", "value", "default"], settings)]
    git = commands.get("git")
    where = [f"folder: {plain(str(commands['folder']))}"] if commands["folder"] else []
    where += [f"commit: {plain(git['commit'])}, {git['changed_files']} changed files"] if git else []
    where += [f"{plain(name)} {plain(str(version))}" for name, version in (commands.get("packages") or {}).items()]
    given = "\n".join(printable(text) for text in (commands["repeat"], commands["continue"]) if text)
    fence = "`" * (1 + max(2, *map(len, re.findall("`*", given))))  # longer than any inside
    return [*lines, "## Again", "", *[f"- {line}" for line in where], "", fence, *given.splitlines(), fence, ""]


def cost_lines(cost: Dict[str, Any]) -> List[str]:
    """Return the lines about what the run cost."""
    head = ["", "this run", "this model from zero"]
    return ["## What it cost", "", *table(head, cost_rows(cost)), cost_text(cost), ""]


def moved_lines(moved: Optional[Dict[str, Any]]) -> List[str]:
    """Return the lines about what training moved."""
    if moved is None:
        return []
    matrices = f", the matrices by {percent(moved['kinds']['matrix'])}" if "matrix" in moved["kinds"] else ""
    lines = [
        "## What moved", "",
        f"In {plain(moved['checkpoint'])} the {len(moved['tensors'])} trained tensors together differ from the base "
        f"model by {percent(moved['relative'])} of its norm (‖ΔW‖/‖W‖){matrices}.", "",
        *table(["tensors", "‖ΔW‖/‖W‖"], [[KINDS[kind], percent(value)] for kind, value in moved["kinds"].items()]),
        "The tensors that moved most. Rank: the smallest rank that holds 99 % of ‖ΔW‖².", "",
        *table(["tensor", "‖ΔW‖/‖W‖", "‖ΔW‖", "rank of ΔW"],
               [[plain(name), *cells] for name, *cells in tensor_rows(moved, MOST_MOVED)]),
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


def goodput_lines(report: Dict[str, Any]) -> List[str]:
    """Return the lines about where the wall time went."""
    goodput = report["goodput"]
    lines, attempts, total = ["## Where the time went", ""], goodput["attempts"], goodput["total_s"]
    if goodput["goodput"] is None:
        return [*lines, "Not known: the run was started by a version of ftdist that recorded no times.", ""]
    again = count(goodput["lost_steps"] or 0, "step was", "steps were")
    lost = f"; {again} done again or not saved" if goodput["lost_steps"] else ""
    several = "s" if len(attempts) > 1 else ""
    return [
        *lines,
        f"Goodput: {percent(goodput['goodput'])} of {format_seconds(total)} went into steps that count, in "
        f"{len(attempts)} attempt{several}{lost}.", "",
        *table(["phase", "time", "share"], phase_rows(goodput)),
        *table(ATTEMPT_HEAD, attempt_rows(goodput)),
        *([waiting_text(goodput), ""] if goodput["waiting_s"] is not None else []),
        *_step_lines(report["step_times"]),
    ]  # fmt: skip


def _step_lines(step_times: Dict[str, float]) -> List[str]:
    """Return the lines about where the time of a step went."""
    rows = step_rows(step_times)
    if not rows:
        return []
    return [
        f"A step takes {step_times['step_s']:.3g} s on rank 0 (mean).", "",
        *table(["phase of a step", "time", "share"], rows),
    ]  # fmt: skip


def table(head: List[str], rows: Iterable[List[str]]) -> List[str]:
    """Return the lines of a table, and an empty line after it. All cells are Markdown already."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows), ""]


def plain(text: str) -> str:
    """Return Markdown that shows a text as it is: no markup, no HTML, one line. Control characters are
    shown as escapes."""
    line = printable(re.sub(r"\s+", " ", text))
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", html.escape(line, quote=False))


def quoted(value: Any) -> str:
    """Return Markdown that shows a value as JSON writes it: a text with its spaces and line breaks."""
    return plain(json.dumps(value, ensure_ascii=False))


def _row(cells: List[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _texts(texts: List[str]) -> str:
    return ", ".join(map(quoted, texts))
