"""The page of one run, made from the facts of its report only."""

import json
from typing import Any, Dict, List

from ftdist.base.counts import count
from ftdist.base.terminal import format_seconds
from ftdist.report.charts import Series, Words, bar_chart, heat_map, xy_chart
from ftdist.report.documents import SHOWN
from ftdist.report.page import charts, details, document, figure, numbers, pairs, paragraph, section, shown, table
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
    rarity_rows,
    role_rows,
    step_rows,
    task_rows,
    tensor_rows,
    waiting_text,
    word_rows,
    word_text,
)
from ftdist.report.summary import gains_of, headline, sentences
from ftdist.report.texts import drawable, number, percent

LOG_FACTOR = 20.0
"""Losses that differ by a larger factor have a logarithmic axis."""
MAX_LINES = 12
"""Number of held-out sets, or runs, whose losses are drawn."""
MOST_MOVED = 20
"""Number of tensors that are listed. The JSON file has all."""

Report = Dict[str, Any]


def run_page(report: Report) -> str:
    """Return the page of a run."""
    head = f"<header>\n<h1>{shown(report['run'])}</h1>\n{paragraph(str(report['folder']), 'soft')}\n</header>"
    return document(f"{report['run']}: report", [
        head, _summary(report), _curves(report), _words(report), _samples(report), _tasks(report), _data(report),
        _moved(report), _goodput(report), _cost(report), _settings(report), _faults(report), _commands(report),
    ])  # fmt: skip


def gain_words(report: Report) -> List[str]:
    """Return the gain and what it means, for a box."""
    gain = headline(report)["gain"]
    if gain is None:
        known = 0 in gains_of(report)[1]
        return ["not finite", "the held-out loss"] if known else ["not measured", "no held-out loss before and after"]
    return [f"{gain:+.4f}", f"nats per token less loss on {gains_of(report)[0]}"]


def _summary(report: Report) -> str:
    main, goodput = headline(report), report["goodput"]
    lost = main["forgetting"]
    unknown = "not finite" if report["forgetting"] else "not measured"
    price = "" if main["cost"] is None else f", a price of {number(main['cost'])}"
    boxes = {
        "gain": gain_words(report),
        "forgetting": [unknown, ""] if lost is None else [f"{lost:.4f}", "nats per token from the base model"],
        "goodput": ["not known", ""] if main["goodput"] is None else [percent(main["goodput"]),
                    f"of {format_seconds(goodput['total_s'])} in steps that count"],
        "cost": [number(main["device_hours"]), f"device-hours{price}"],
    }  # fmt: skip
    if report["moved"]:
        boxes["moved"] = [percent(report["moved"]["relative"]), "‖ΔW‖/‖W‖ of the trained weights"]
    return section("Summary", [numbers(boxes), paragraph(" ".join(sentences(report)))], "summary")


def loss_chart(key: str, lines: Dict[str, List[List[Any]]], title: str, train: str = "") -> str:
    """Return losses over steps, as a drawing.

    Args:
        lines: (step, loss) by name.
        train: The name of the line without marks.
    """
    series = [Series(name, [(float(step), drawable(loss)) for step, loss in points], marks=name != train)
              for name, points in lines.items()]  # fmt: skip
    known = [y for one in series for _, y in one.points if y > 0]
    log = bool(known) and max(known) > LOG_FACTOR * min(known)
    ends = "; ".join(f"{one.name} goes from {one.points[0][1]:.4g} at step {one.points[0][0]:g} to "
                     f"{one.points[-1][1]:.4g} at step {one.points[-1][0]:g}"
                     for one in series if one.points)  # fmt: skip
    words = Words(key, title, f"{title}: {ends or 'no numbers'}.", "step", "nats per token")
    return xy_chart(words, series, log)


def _curves(report: Report) -> str:
    general = {f"general text: {name}": points for name, points in report["general_losses"].items()}
    evaluated = {**report["heldout"], **general}
    more = len(evaluated) - MAX_LINES
    losses = {**dict(list(evaluated.items())[:MAX_LINES]), **({"training": report["train"]} if report["train"] else {})}
    forgetting, figures = report["forgetting"], []
    if losses:
        left_out = f" {count(more, 'more set is', 'more sets are')} in the table." if more > 0 else ""
        figures.append(figure(loss_chart("loss", losses, "Loss over steps", "training"),
                              f"Loss of training, of the held-out sets, and of general texts.{left_out}"))  # fmt: skip
    if forgetting:
        figures += [_forgetting_curve(forgetting), _trade(report)]
    missing = "" if forgetting else "Forgetting: not measured."
    numbers = table("All evaluations", EVALUATION_HEAD, evaluation_rows(report))
    about = numbers and numbers + paragraph(EVALUATION_TEXT, "soft")
    parts = [charts(figures), paragraph(missing, "soft"), details("all evaluations as a table", about)]
    return section("Curves", [*parts, _gains(report)], "curves")


def _forgetting_curve(forgetting: Dict[str, Any]) -> str:
    points = [(float(step), drawable(kl)) for step, kl, _ in forgetting["curve"]]
    errors = [drawable(error) for *_, error in forgetting["curve"]]
    words = Words("forgetting", "Forgetting over steps", f"KL(base ‖ now) is {points[-1][1]:.4g} nats per token at "
                  f"step {points[-1][0]:g}.", "step", "nats per token")  # fmt: skip
    return figure(xy_chart(words, [Series("KL(base ‖ now)", points, errors)], zero=True),
                  "Forgetting: how far the model is from the base model on texts that the base model wrote. Bars: one "
                  "standard error.")  # fmt: skip


def _trade(report: Report) -> str:
    """Return gain against forgetting, a point for each evaluation."""
    name, gains = gains_of(report)
    steps = [(step, drawable(kl)) for step, kl, _ in report["forgetting"]["curve"] if step in gains]
    if len(steps) < 2:
        return ""
    points = [(kl, gains[step]) for step, kl in steps]
    words = Words("trade", "Gain against forgetting", f"{len(points)} evaluations; at the last one the gain is "
                  f"{points[-1][1]:.4g} and the forgetting {points[-1][0]:.4g} nats per token.",
                  "forgetting (nats per token)", "gain (nats per token)")  # fmt: skip
    chart = xy_chart(words, [Series(name, points, labels=[f"step {step}" for step, _ in steps])], zero=True)
    return figure(chart, "Gain against forgetting at each evaluation. Further up and further left is better.")


def _tasks(report: Report) -> str:
    if not report["tasks"]:
        return ""
    rows = table("Tasks before and after", TASK_HEAD, task_rows(report["tasks"]))
    return section("Tasks before and after", [rows, paragraph(TASK_TEXT, "soft")], "tasks")


def _gains(report: Report) -> str:
    found = ""
    for title, gain, about in (("Gain with intervals", report["gain"], GAIN_TEXT),
                               ("General texts", report["general"], f"{GENERAL_TEXT} {GAIN_TEXT}")):  # fmt: skip
        rows = gain_rows(gain)
        found += table(title, GAIN_HEAD, rows) + (paragraph(about, "soft") if rows else "")
    for kind, title in DOCUMENT_TITLES.items():
        changed = document_rows(report["documents"], kind, SHOWN)
        found += details(f"{title} (nats per token)", table(title, DOCUMENT_HEAD, changed))
    return found


def _words(report: Report) -> str:
    words = report["words"]
    lists = [details(title, table(title, WORD_HEAD, word_rows(words, kind, SHOWN)))
             for kind, title in WORD_TITLES.items()]  # fmt: skip
    rarity = table(RARITY_TITLE, RARITY_HEAD, rarity_rows(words))
    roles = table(ROLE_TITLE, ROLE_HEAD, role_rows(words))
    return section("Words", [roles, rarity, *lists, paragraph(word_text(words), "soft")], "words")


def _samples(report: Report) -> str:
    parts = [
        f"<article>\n<h3>{shown(row['question'])}</h3>\n"
        + pairs({"base model": row["before"], "trained model": row["after"], "reference": row["reference"]})
        + "\n</article>"
        for row in report["answers"]
    ]
    return section("Answers before and after", parts, "answers")


def _data(report: Report) -> str:
    data = report.get("data")
    if not data:
        return ""
    sample = "".join(f"<mark>{shown(text)}</mark>" if trained else shown(text) for text, trained in data["sample"])
    parts = [
        table("Sources of data", DATA_HEAD, data_rows(data)),
        *(paragraph(f"Warning: {warning}") for warning in data["warnings"]),
        '<p class="soft">A sample. The model is trained on the tokens that are underlined.</p>\n'
        f'<div class="tokens">{sample}</div>' if sample else "",
    ]  # fmt: skip
    return section("Data", parts, "data")


def _moved(report: Report) -> str:
    moved = report["moved"]
    if moved is None:
        return section("What moved", [paragraph("Not compared: ftdist report RUN_DIR compares the newest checkpoint "
                                                "with the base model.")], "moved")  # fmt: skip
    grid, figures = moved["map"], []
    layers = [str(layer) for layer in grid["layers"]]
    turned = [[_share(row[column]) for row in grid["values"]] for column in range(len(grid["modules"]))]
    if layers and grid["modules"]:
        words = Words("map", "What moved, by layer and module", "The change of each matrix relative to its norm. The "
                      "numbers are in the table below.", "layer")  # fmt: skip
        figures.append(figure(heat_map(words, grid["modules"], layers, turned),
                              "‖ΔW‖/‖W‖ of the matrices. Deeper: moved more."))  # fmt: skip
    cells = [[layer, *map(percent, values)] for layer, values in zip(layers, grid["values"], strict=True)]
    tokens = [[json.dumps(one["text"], ensure_ascii=False), percent(one["moved"]),
               *(", ".join(json.dumps(text, ensure_ascii=False) for text in one[f"nearest_{when}"])
                 for when in ("before", "after"))] for one in moved["tokens"]]  # fmt: skip
    kinds = [[KINDS[kind], percent(value)] for kind, value in moved["kinds"].items()]
    return section("What moved", [
        paragraph(f"{moved['checkpoint']} against the base model: ‖ΔW‖/‖W‖ is {percent(moved['relative'])}."),
        charts(figures), table("Kinds of tensors", ["tensors", "‖ΔW‖/‖W‖"], kinds),
        details("by layer and module as a table", table("By layer and module", ["layer", *grid["modules"]], cells)),
        details("the tensors that moved most", table("The tensors that moved most", ["tensor", "‖ΔW‖/‖W‖", "‖ΔW‖",
                "rank of ΔW (99 %)"], tensor_rows(moved, MOST_MOVED))),
        details("the tokens whose embeddings moved most", table("Tokens", ["token", "‖Δe‖/‖e‖", "nearest before",
                "nearest after"], tokens)),
    ], "moved")  # fmt: skip


def _goodput(report: Report) -> str:
    goodput = report["goodput"]
    if goodput["goodput"] is None:
        return section("Where the time went", [paragraph("Not known: the run was started by a version of ftdist that "
                                                         "recorded no times.")], "time")  # fmt: skip
    total, seconds, lost = goodput["total_s"], goodput["seconds"], goodput["lost_steps"]
    parts = "; ".join(f"{phase} {percent(value / total)}" for phase, value in seconds.items())
    chart = bar_chart(Words("goodput", "Where the time went", f"Shares of {format_seconds(total)}: {parts}."), seconds)
    again = f" {count(lost, 'step was', 'steps were')} done again or not saved." if lost else ""
    return section("Where the time went", [
        figure(chart, f"Goodput {percent(goodput['goodput'])}: the share of {format_seconds(total)} in steps that "
                      f"count.{again}"),
        table("Attempts", ATTEMPT_HEAD, attempt_rows(goodput)),
        paragraph(waiting_text(goodput).replace("`", "")) if goodput["waiting_s"] is not None else "",
        details("phases of a step on rank 0 (mean)", table("Phases of a step", ["phase", "time", "share"],
                step_rows(report["step_times"]))),
    ], "time")  # fmt: skip


def _cost(report: Report) -> str:
    cost = report["cost"]
    head = ["", "this run", "this model from zero"]
    return section("What it cost", [table("Cost", head, cost_rows(cost)), paragraph(cost_text(cost))], "cost")


def _settings(report: Report) -> str:
    rows = [[one["key"], json.dumps(one["value"], ensure_ascii=False), json.dumps(one["default"], ensure_ascii=False)]
            for one in report["settings"]]  # fmt: skip
    found = table("Settings", ["setting", "value", "default"], rows)
    return section("Settings without their default", [found], "settings")


def _faults(report: Report) -> str:
    lines = "".join(f"<li>{shown(fault)}</li>\n" for fault in report["faults"])
    return section("Faults and resumes", [f"<ul>\n{lines}</ul>" if lines else "<p>None.</p>"], "faults")


def _commands(report: Report) -> str:
    commands = report["commands"]
    git, packages = commands.get("git"), commands.get("packages") or {}
    about = [["folder", commands["folder"]]] if commands["folder"] else []
    about += [["commit", f"{git['commit']}, {git['changed_files']} changed files"]] if git else []
    about += [[name, version] for name, version in packages.items()]
    return section("Again", [
        f"<h3>Repeat the run</h3>\n<pre>{shown(commands['repeat'])}</pre>" if commands["repeat"] else "",
        f"<h3>Go on from it</h3>\n<pre>{shown(commands['continue'])}</pre>" if commands["continue"] else "",
        details("where, and with which versions", table("Versions", ["", ""], about)),
    ], "again")  # fmt: skip


def _share(value: Any) -> Any:
    """Return a value of the map for the drawing; None if there is none."""
    return None if value is None else drawable(value)
