"""The whole benchmark of ``make bench-gpu`` at toy sizes on a CPU, without the packages that a GPU machine may lack."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from tests.bench.gpu.cells import FULL_SIZE, REHEARSAL, Cell, cells
from tests.bench.gpu.page import markdown
from tests.helpers.alone import FAILED, OK, SKIPPED, STOPPED, Outcome, Skip, run_alone

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

MISSING = ("wandb", "datasets", "pyarrow", "pandas", "hydra", "bitsandbytes", "gguf")
find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in MISSING else find(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
sys.argv[0] = "bench-gpu"
runpy.run_module("tests.bench.gpu", run_name="__main__")
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-c", WITHOUT, "--rehearse", "--out", str(folder), "--limit", "500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    logs = [path.read_text(errors="replace")[-2000:] for path in sorted((folder / "logs").glob("*"))[:1]]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr[-3000:], *logs])
    return folder


@pytest.mark.timeout(600)
def test_every_cell_is_measured(rehearsed: Path) -> None:
    found = json.loads((rehearsed / "bench-gpu.json").read_text())
    assert [cell["name"] for cell in found["cells"]] == [cell.name for cell in cells()]
    assert {cell["status"] for cell in found["cells"]} == {OK}
    trained = [cell["figures"] for cell in found["cells"] if cell["kind"] == "training"]
    assert all(figures["tokens_per_s"] > 0 and figures["mfu"] > 0 for figures in trained)
    assert all(figures["guard"]["loss"] < 1e-3 and figures["guard"]["gradient"] < 0.1 for figures in trained)
    assert all((figures["compiled"] is not None) == ("compiled" in cell["name"]) for figures, cell in zip(
        trained, [cell for cell in found["cells"] if cell["kind"] == "training"], strict=True))  # fmt: skip


@pytest.mark.timeout(600)
def test_the_page_has_a_table_for_each_subject(rehearsed: Path) -> None:
    page = (rehearsed / "bench-gpu.md").read_text()
    assert all(f"## {subject} (attention: " in page for subject in REHEARSAL.subjects)
    assert "## Loss head: 96 tokens × 512 × 64" in page and "## Saving" in page
    assert "## Not measured" not in page and "## Wrong numbers" not in page


def _wrong(device: str, folder: Path) -> Dict[str, Any]:
    """Measure a cell of a ftdist whose documents see each other."""
    from ftdist.model import attention
    from tests.bench.gpu.measure import run_cell

    chosen = {cell.kind: cell for cell in reversed(cells()) if cell.subject == "1.5B, 8k"}
    run_alone(run_cell, folder / "reference.log", 100.0, "fork", chosen["reference"], REHEARSAL, folder, device)
    right = attention.pairwise
    attention.pairwise = lambda limits: [(limits[0], limits[-1])]
    outcome = run_alone(run_cell, folder / "cell.log", 100.0, "fork", chosen["training"], REHEARSAL, folder, device)
    attention.pairwise = right
    return {"status": outcome.status, "why": outcome.why, **outcome.figures}


def test_a_wrong_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial that chooses the attention would refuse this one, so it is left out."""
    from tests.helpers.ranks import preload

    preload()
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("CUDA_VISIBLE_DEVICES", "")):
        monkeypatch.setenv(name, value)
    from ftdist.model.attention_plan import BY_DOCUMENT
    from ftdist.model.exactness import Choice
    from tests.bench.gpu import subject

    monkeypatch.setattr(subject, "choose_plan", lambda *_: Choice(BY_DOCUMENT))
    found = _wrong("cpu", tmp_path)
    assert found["status"] == OK, found["why"]
    assert "gradient off by" in found["wrong"]


def test_the_largest_cells_are_expected_to_fit_80_gb(tmp_path: Path) -> None:
    import torch

    from tests.bench.gpu.measure import MARGIN, prediction
    from tests.bench.gpu.subject import config_of

    needed = {}
    for cell in cells():
        if cell.name.endswith("recompute none"):
            subject = FULL_SIZE.subjects[cell.subject]
            config = config_of(cell, subject, tmp_path, torch.device("cuda"))
            needed[cell.name] = prediction(config, subject)["total_bytes"] + MARGIN
    assert len(needed) == len(FULL_SIZE.subjects) and max(needed.values()) < 75e9, needed
    assert needed["1.5B, 8k: recompute none"] > 1.54e9 * 16  # its model states


def _return(value: int) -> Dict[str, Any]:
    return {"value": value}


def _skip() -> Dict[str, Any]:
    raise Skip("does not fit")


def _fail() -> Dict[str, Any]:
    raise RuntimeError("CUDA error: an illegal memory access\nand more")


def _crash() -> Dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is full
    return {}


def _hang() -> Dict[str, Any]:
    subprocess.Popen(["sleep", "60"])  # as PyTorch's compiler does; the test fails if it is left
    time.sleep(60)
    return {}


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_cell_that_ends_badly_ends_alone(tmp_path: Path, start: str) -> None:
    log = tmp_path / "cell.log"
    assert run_alone(_return, log, 60.0, start, 3).figures == {"value": 3}
    for function, status, why in (
        (_skip, SKIPPED, "does not fit"), (_fail, FAILED, "RuntimeError: CUDA error: an illegal memory access"),
        (_crash, FAILED, "its process ended with -9, see cell.log"), (_hang, STOPPED, "took longer than 2 s"),
    ):  # fmt: skip
        folder = tmp_path / function.__name__
        folder.mkdir()
        found = run_alone(function, folder / "cell.log", 2.0 if status is STOPPED else 60.0, start)
        assert (found.status, found.why) == (status, why)


def test_the_page_names_what_was_not_measured_and_what_is_wrong() -> None:
    here = {"system": "Linux", "cpu": "a CPU", "cores": 2, "python": "3.12"}
    way = {"seconds": {"median": 1.0, "low": 1.0, "high": 1.0, "count": 1}, "peak_bytes": None}
    found = {
        "ways": {"bare products": way},
        "tokens": 1,
        "vocabulary": 2,
        "hidden": 3,
        "wrong": "ftdist: loss off by 2",
    }
    results = [(Cell("head", "head", 1.0), Outcome(OK, figures=found)),
               (Cell("8B", "training", 1.0), Outcome(SKIPPED, "does not fit"))]  # fmt: skip
    page = markdown(here, REHEARSAL, results, 1.0, 2)
    assert "## Wrong numbers\n\n- head: ftdist: loss off" in page
    assert "## Not measured\n\n- 8B: skipped, does not fit" in page
