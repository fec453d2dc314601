"""A description of the machine, and the files ``benchmarks.json`` and ``benchmarks.md``."""

import json
import os
import platform
from pathlib import Path
from typing import Any, Dict, List

import psutil

from ftdist.launch.attempt.machine import cpu_cores, package_versions, visible_gpus
from tests.bench.figures import Section

NAME = "benchmarks"

INTRODUCTION = """\
# Benchmarks

Written by `make bench` (`ARGS="--only tax"` runs one benchmark, `ARGS=--quick` is a trial with small sizes). Each
figure is a median, followed by the quartiles in brackets, or by the smallest and the largest value if there are fewer
than eight. Figures of different machines cannot be compared. The numbers as JSON: [benchmarks.json](benchmarks.json).
"""


def machine() -> Dict[str, Any]:
    """Describe the machine. ``load`` is the average of the last minute; an idle machine has 0."""
    return {
        "cpu": _cpu_model(),
        "cores": cpu_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": visible_gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": package_versions(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def read_sections(folder: Path, here: Dict[str, Any]) -> Dict[str, Section]:
    """Read the sections of an earlier report of this machine and these versions, to keep those that do not run now."""
    try:
        before = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
        if {**before["machine"], "load": None} != {**here, "load": None}:
            return {}
        return {section["name"]: Section(**section) for section in before["benchmarks"]}
    except (OSError, ValueError, KeyError, TypeError):  # no report, or one of another version of this script
        return {}


def write_report(folder: Path, here: Dict[str, Any], sections: List[Section]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    value = {"machine": here, "benchmarks": [section.as_dict() for section in sections]}
    (folder / f"{NAME}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    pages = [f"{section.markdown()}\n\nMeasured {section.date}.\n" for section in sections]
    text = "\n".join([INTRODUCTION, _machine_table(here), *pages])
    (folder / f"{NAME}.md").write_text(text, encoding="utf-8")


def _machine_table(here: Dict[str, Any]) -> str:
    gpus = ", ".join(f"{here['gpus'].count(name)} × {name}" for name in dict.fromkeys(here["gpus"]))
    rows = [
        ("CPU", f"{here['cpu']}, {here['cores']} cores"),
        ("memory", f"{here['memory_gib']} GiB"),
        ("GPU", gpus or "none"),
        ("system", f"{here['system']}, Python {here['python']}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in here["versions"].items())),
        ("load before", f"{here['load']} (an idle machine has 0)"),
    ]
    return "\n".join(["| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])
