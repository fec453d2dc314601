"""Build the report of a run from its parts, and write it in each format."""

import json
from pathlib import Path
from typing import Any, Dict, Optional

from ftdist.base.json_files import write_json
from ftdist.base.redact import redact
from ftdist.base.terminal import task
from ftdist.config.frozen import load_config
from ftdist.plan.energy import energy_of
from ftdist.plan.goodput import goodput_of
from ftdist.report.cost import run_cost
from ftdist.report.facts import facts_of, resumes_of, tokens_until, waiting_s
from ftdist.report.markdown import as_markdown
from ftdist.report.moved import what_moved
from ftdist.report.page_run import run_page
from ftdist.run.rundir import RunDir
from ftdist.track.jsonl import to_json

JSON, MARKDOWN = "report.json", "report.md"
KILLED = "killed"
"""The state in the report of an attempt whose end nobody recorded."""
DEAD = "dead"
"""The state in the report of a run that has not ended, but is not under way: its processes were killed."""


def build_report(
    run: RunDir, which: str = "last", price: Optional[float] = None, quick: bool = False, ending: str = "",
    reason: str = "",
) -> Dict[str, Any]:  # fmt: skip
    """Return the report of a run as a value that JSON can hold.

    Args:
        which: The checkpoint that is compared with the base model: ``last``, ``best`` or a step.
        price: Price of a device for an hour. None: that of the config.
        quick: Leave out what moved, which reads the whole model.
        ending: The state that the run is about to have, or ``DEAD``. Empty: the one that it has written.
        reason: Why the run has this state.

    Raises:
        CheckpointError: See ``what_moved``.
        ConfigError: There is no such checkpoint, or the config cannot be read. Without ``quick``, also: the model
            cannot be read.
    """
    alive = ending != DEAD if ending else None
    config, goodput, moved = load_config(run.config), goodput_of(run, alive, ending == "failed"), None
    facts = facts_of(run, config, ending, reason)
    for attempt in goodput.attempts[:-1]:
        attempt.state = attempt.state or KILLED
    for attempt in goodput.attempts[-1:] if ending else []:
        attempt.state = ending
    facts["faults"] += resumes_of(goodput.attempts)
    if not quick and (which != "last" or run.published_checkpoints()):
        checkpoint = run.find_checkpoint(which)
        with task(f"comparing {checkpoint.name} with the base model"):
            moved = what_moved(run, checkpoint, config)
    counted = tokens_until(run, goodput.saved_step)  # as the time in steps that count
    cost = run_cost(run, config, goodput, counted or 0, price)
    cost["energy"] = energy_of(run.energy, goodput)
    times = {**goodput.as_dict(), "waiting_s": waiting_s(facts["step_times"], goodput)}
    return dict(to_json({**facts, "moved": moved, "goodput": times, "cost": cost}))


def write_report(run: RunDir, report: Dict[str, Any]) -> Path:
    """Write the report in each format, and return the path of the page."""
    run.report.mkdir(exist_ok=True)
    write_json(run.report / JSON, report)
    (run.report / MARKDOWN).write_text(as_markdown(report), encoding="utf-8", errors="backslashreplace")
    run.report_page.write_text(run_page(report), encoding="utf-8")
    return run.report_page


def public_files(run: RunDir, report: Dict[str, Any]) -> Dict[str, str]:
    """Return the files of a report that may be published, by name.

    They have no paths, commands and texts of the data: a command line can hold anything, and the data is private.
    """
    commands = {**report["commands"], "repeat": None, "folder": None, "continue": None}
    data = {**report["data"], "sample": []} if report["data"] else None
    public = {
        **report,
        "documents": {},
        "tasks": [{**task, "file": None} for task in report["tasks"]],
        "words": {**report["words"], "sets": {}, "missing": "the words of the data are not published"},
        "folder": "",
        "commands": commands,
        "data": data,
        "faults": list(map(redact, report["faults"])),
    }
    return {run.report_page.name: run_page(public), JSON: json.dumps(public, indent=2) + "\n"}
