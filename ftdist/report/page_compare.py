"""The page that compares several runs, made from the facts of their reports only."""

from typing import Any, Dict, Sequence
from urllib.parse import quote

from ftdist.base.counts import count
from ftdist.report.charts import Series, Words, xy_chart
from ftdist.report.compare import (
    COMPARED_TEXT,
    HEAD,
    best_trade_offs,
    compared,
    different_settings,
    forgetting_error,
    trade_offs,
)
from ftdist.report.page import charts, document, figure, paragraph, section, shown, table
from ftdist.report.page_run import MAX_LINES, loss_chart

Report = Dict[str, Any]


def compare_page(title: str, reports: Sequence[Report], names: Sequence[str], pages: Sequence[str]) -> str:
    """Return the page.

    Args:
        names: What each run is called.
        pages: The address of the page of each run, relative to this one.
    """
    links = "".join(f'<li><a href="{shown(quote(page))}">{shown(name)}</a>: {shown(report["state"])}</li>\n'
                    for report, name, page in zip(reports, names, pages, strict=True))  # fmt: skip
    rows = compared(reports, names)
    settings = different_settings(reports)
    return document(f"{title}: {len(reports)} runs", [
        f"<header>\n<h1>{shown(title)}: {len(reports)} runs</h1>\n</header>",
        section("Runs", [table("Runs compared", HEAD, rows), paragraph(COMPARED_TEXT, "soft"),
                f"<ul>\n{links}</ul>"], "runs"),
        section("Charts", [charts([_trade(reports, names), *_losses(reports, names)])], "charts"),
        section("Settings that differ", [table("Settings that differ", ["setting", *names], settings) or
                "<p>None.</p>"], "settings"),
    ])  # fmt: skip


def _trade(reports: Sequence[Report], names: Sequence[str]) -> str:
    """Return gain against forgetting, a point for each run, with the front of the best trade-offs as a line."""
    points = trade_offs(reports)
    if not any(points):
        return paragraph("Gain against forgetting: not measured.", "soft")
    front = best_trade_offs(reports)
    nan = float("nan")
    found = [point or (nan, nan) for point in points]
    others = [number for number in range(len(points)) if number not in front]
    series = [
        Series("best trade-offs", [found[number] for number in front], labels=[names[number] for number in front]),
        Series("other runs", [found[number] for number in others], labels=[names[number] for number in others],
               line=False),
    ]  # fmt: skip
    said = "; ".join(
        f"{names[number]}: gain {found[number][1]:.4g}, forgetting {found[number][0]:.4g}" for number in front
    )
    words = Words("trade", "Gain against forgetting", f"The best trade-offs: {said}.", "forgetting (nats per token)",
                  "gain (nats per token)")  # fmt: skip
    errors = [error for error in map(forgetting_error, reports) if error == error]
    about = f" The standard error of a forgetting is at most {max(errors):.2g}." if errors else ""
    return figure(xy_chart(words, [one for one in series if one.points], zero=True), "Gain against forgetting. Further "
                  f"up and further left is better. No other run beats those on the line in both.{about}")  # fmt: skip


def _losses(reports: Sequence[Report], names: Sequence[str]) -> Sequence[str]:
    """Return the losses of the first held-out set that the first run has."""
    heldout = next((name for report in reports for name in report["heldout"]), None)
    lines = {name: report["heldout"][heldout] for report, name in zip(reports, names, strict=True)
             if heldout in report["heldout"]}  # fmt: skip
    more, lines = len(lines) - MAX_LINES, dict(list(lines.items())[:MAX_LINES])
    left_out = f" {count(more, 'more run is', 'more runs are')} in the table." if more > 0 else ""
    return [figure(loss_chart("loss", lines, f"Held-out loss of {heldout}"),
                   f"Held-out loss of {heldout} over steps.{left_out}")] if lines else []  # fmt: skip
