"""``python -m tests.bench.gpu``: measure ftdist on one GPU. ``--rehearse`` runs it on a CPU at toy sizes."""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

for _name in ("MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(_name, None)
os.environ |= {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",  # each cell is a run of one rank
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # so that looking for a GPU does not start CUDA in the process that forks
}  # fmt: skip

from tests.bench.gpu import page  # noqa: E402
from tests.bench.gpu.cells import FULL_SIZE, REHEARSAL, Sizes, cells  # noqa: E402
from tests.bench.report import machine  # noqa: E402
from tests.helpers.alone import FAILED, OK, SKIPPED, Outcome, run_alone  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 480.0
LAST_S = 10.0
"""No cell begins with less time than this."""


def main(argv: Optional[List[str]] = None) -> int:
    """Returns 0 if no cell failed and all numbers were right. A cell that was left out does not count."""
    given = _parse(argv)
    ends = time.monotonic() + given.limit
    if given.rehearse:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    here, sizes = machine(), REHEARSAL if given.rehearse else FULL_SIZE
    if not (here["gpus"] or given.rehearse):
        print("There is no GPU here. To try the benchmark out on a CPU: make bench-gpu ARGS=--rehearse")
        return 1
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the cleanup below runs
    folder = Path(tempfile.mkdtemp(prefix="ftdist-bench-gpu-"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # what one cell compiles, others reuse
    try:
        results = _measure(given, here, sizes, folder, ends)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{given.out / page.NAME}.md")
    wrong = [cell.name for cell, outcome in results if outcome.status == FAILED or outcome.figures.get("wrong")]
    if wrong:
        print(f"failed or wrong: {'; '.join(wrong)}")
    return 1 if wrong else 0


def _measure(given: argparse.Namespace, here: Dict[str, Any], sizes: Sizes, folder: Path, ends: float) -> page.Results:
    """Measure one cell after another, and write the page after each, so that it holds what is finished."""
    # The processes that are forked need not import them again.
    from tests.bench.gpu import measure

    with contextlib.suppress(ImportError):
        import peft  # noqa: F401

    begun, start, results = ends - given.limit, "fork", []
    device, patience = ("cpu", 5.0) if given.rehearse else ("cuda", 1.0)  # a rehearsal may share its CPU with others
    for cell in cells():
        if given.only and cell.kind != "device" and not any(text in cell.name for text in given.only):
            continue
        log = folder / f"{len(results):02d}.log"
        arguments = cell, sizes, folder, device
        outcome = _run(measure.run_cell, cell.budget_s * patience, log, start, ends, arguments)
        if cell.kind == "device" and outcome.status == FAILED:  # CUDA may not work in a forked process
            start = "spawn"
            log = log.with_name(f"again-{log.name}")
            outcome = _run(measure.run_cell, cell.budget_s, log, start, ends, arguments)
        results.append((cell, outcome))
        wrong = outcome.figures.get("wrong", "")
        print(f"{outcome.seconds:5.0f} s  {cell.name}: {'; '.join(filter(None, [outcome.status, outcome.why, wrong]))}",
              flush=True)  # fmt: skip
        if log.exists() and (wrong or outcome.status not in (OK, SKIPPED)):
            (given.out / "logs").mkdir(parents=True, exist_ok=True)
            shutil.copy(log, given.out / "logs" / f"{''.join(c if c.isalnum() else '-' for c in cell.name)}.log")
        page.write(given.out, here, sizes, results, time.monotonic() - begun, measure.guard.STEPS)
    return results


def _run(
    function: Callable[..., Dict[str, Any]], budget_s: float, log: Path, start: str, ends: float, arguments: Any
) -> Outcome:
    left = ends - time.monotonic()
    if left < LAST_S:
        return Outcome(SKIPPED, "there was no time left")
    return run_alone(function, log, min(left, budget_s), start, *arguments)


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-gpu", description="Measure ftdist on one GPU.")
    parser.add_argument("--rehearse", action="store_true", help="run everything on a CPU at toy sizes")
    parser.add_argument("--only", action="append", metavar="TEXT", help="cells with this text in their name")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="end after this time")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / page.NAME, help="folder for the page")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
