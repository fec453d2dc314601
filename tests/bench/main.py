"""``make bench``: measure ftdist on this machine and write the figures as JSON and Markdown.

No figure passes or fails: it depends on the machine and on its other load.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # this file is started by its path and imports tests.helpers
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from ftdist.launch.attempt.machine import visible_gpus  # noqa: E402
from tests.bench import beside_trl, forgetting, methods, preparation, saving, startup, tax  # noqa: E402
from tests.bench.figures import Section  # noqa: E402
from tests.bench.report import machine, read_sections, write_report  # noqa: E402

BENCHMARKS: Dict[str, Callable[[Path, bool], Section]] = {
    "tax": tax.measure,
    "methods": methods.measure,
    "preparation": preparation.measure,
    "startup": startup.measure,
    "saving": saving.measure,
    "forgetting": forgetting.measure,
    "trl": beside_trl.measure,
}
LONG = ("forgetting", "trl")
"""Those that run only if they are named."""


def main(argv: Optional[List[str]] = None) -> int:
    given = _parse(argv)
    if not visible_gpus():
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # as the launcher does for CPU ranks
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the cleanup below runs
    here = machine()
    sections = read_sections(given.out, here) if given.out else {}
    for name in given.only or [name for name in BENCHMARKS if name not in LONG]:
        started = time.monotonic()
        print(f"{name} …", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="ftdist-bench-"))
        try:
            sections[name] = BENCHMARKS[name](folder, given.quick)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{sections[name].markdown()}\n({time.monotonic() - started:.0f} s)\n", flush=True)
        if given.out:  # after each, so that finished measurements are kept
            write_report(given.out, here, [sections[known] for known in BENCHMARKS if known in sections])
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measure ftdist on this machine.")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="this one (may be given repeatedly)")
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute in all: to try it out")
    parser.add_argument(
        "--out", type=Path, help="folder for benchmarks.md and benchmarks.json; default docs, with --quick none"
    )
    given = parser.parse_args(argv)
    if given.out is None and not given.quick:
        given.out = ROOT / "docs"
    return given


if __name__ == "__main__":
    sys.exit(main())
