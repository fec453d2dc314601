"""Several runs compared: a row for each run and held-out set, the best trade-offs, and the settings that differ."""

import json
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ftdist.report.facts import first_and_last
from ftdist.report.summary import headline
from ftdist.report.texts import drawable, finite, number, percent

HEAD = ["run", "state", "held-out set", "before", "after", "change", "forgetting", "moved", "goodput", "device-hours"]
"""The columns of the comparison."""
COMPARED_TEXT = ("Losses and forgetting in nats per token. In brackets: the 95 % interval of the change over documents."
                 " Forgetting: ± one standard error.")  # fmt: skip
ABSENT = "–"

Report = Dict[str, Any]


def compared(reports: Sequence[Report], names: Sequence[str]) -> List[List[str]]:
    """Return the rows of the comparison, as texts: one for each run and held-out set. A run
    without held-out sets has one row.

    Args:
        names: What each run is called.
    """
    rows = []
    for report, name in zip(reports, names, strict=True):
        moved, goodput = (report["moved"] or {}).get("relative"), report["goodput"]["goodput"]
        shared = [_forgetting(report), *(ABSENT if value is None else percent(value) for value in (moved, goodput)),
                  number(report["cost"]["device_hours"])]  # fmt: skip
        found = [[heldout, *first_and_last(points)] for heldout, points in report["heldout"].items()]
        for heldout, before, after, change in found or [[ABSENT] * 4]:
            rows.append([name, str(report["state"]), heldout, before, after, change + _interval(report, heldout),
                         *shared])  # fmt: skip
    return rows


def trade_offs(reports: Sequence[Report]) -> List[Optional[Tuple[float, float]]]:
    """Return forgetting and gain of each run (see ``headline``); None if one of them was not measured."""
    found = [headline(report) for report in reports]
    pairs = [(one["forgetting"], one["gain"]) for one in found]
    return [None if lost is None or gain is None else (lost, gain) for lost, gain in pairs]


def pareto(points: Sequence[Optional[Tuple[float, float]]]) -> List[int]:
    """Return the numbers of the points that no other point beats by less forgetting and more gain. The point with the
    least forgetting comes first.

    Args:
        points: Forgetting and gain.
    """
    known = sorted((lost, -gain, number) for number, (lost, gain) in
                   ((number, point) for number, point in enumerate(points) if point is not None))  # fmt: skip
    found: List[int] = []
    best = float("inf")
    for _, loss, which in known:
        if loss < best:
            best = loss
            found.append(which)
    return found


def best_trade_offs(reports: Sequence[Report]) -> List[int]:
    """Return the numbers of the runs on the line of the best trade-offs, see ``pareto``."""
    points = trade_offs(reports)
    return [number for number in pareto(points) if points[number]]


def comparison(reports: Sequence[Report], names: Sequence[str]) -> Dict[str, Any]:
    """Return the comparison as a value that JSON can hold.

    Returns:
        ``runs``: for each one its name, state, the numbers of ``headline``, ``forgetting_error``, and the intervals of
        ``gain``. ``best_trade_offs``: the names of runs that no other one beats. ``settings``: those that differ, each
        with its value in every run.
    """
    runs = [{"name": name, "state": report["state"], **headline(report),
             "forgetting_error": finite(forgetting_error(report)), "heldout": report["gain"]}
            for report, name in zip(reports, names, strict=True)]  # fmt: skip
    settings = {key: [json.loads(value) for value in values] for key, *values in different_settings(reports)}
    return {"runs": runs, "best_trade_offs": [names[number] for number in best_trade_offs(reports)],
            "settings": settings}  # fmt: skip


def different_settings(reports: Sequence[Report]) -> List[List[str]]:
    """Return the settings that are not the same in all runs: the name, then the value of each run as JSON."""
    values = [{one["key"]: one["value"] for one in report["settings"]} for report in reports]
    defaults = {one["key"]: one["default"] for report in reports for one in report["settings"]}
    rows = [[key, *(json.dumps(one.get(key, default), ensure_ascii=False) for one in values)]
            for key, default in defaults.items() if key != "name"]  # fmt: skip
    return [row for row in rows if len(set(row[1:])) > 1]


def forgetting_error(report: Report) -> float:
    """Return the standard error of the forgetting at the last evaluation; nan if there is none."""
    curve = (report["forgetting"] or {}).get("curve") or []
    return drawable(curve[-1][2]) if curve else float("nan")


def _forgetting(report: Report) -> str:
    lost = headline(report)["forgetting"]
    return ABSENT if lost is None else f"{lost:.4f} ± {forgetting_error(report):.4f}"


def _interval(report: Report, name: str) -> str:
    """Return the interval of the change of a loss in percent of the loss before; empty if there is none."""
    found = report["gain"].get(name)
    if not found:
        return ""
    before, low, high = finite(found["before"]["value"]), *(finite(found["change"][end]) for end in ("low", "high"))
    if not before or low is None or high is None:
        return ""
    return f" ({100 * low / before:+.1f} to {100 * high / before:+.1f} %)"
