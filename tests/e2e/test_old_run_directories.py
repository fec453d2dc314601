"""Run directories that an older ftdist wrote and did not finish are resumed, bit for bit. See old_runs/README.md."""

import json
import re
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ftdist.run.rundir import RunDir, checkpoint_step
from tests.helpers.group import ftdist_with_forked_ranks

OLD_RUNS = Path(__file__).parent / "old_runs"
CASES = ("zero0-bf16-padded", "zero1-fp32-epochs-spike-wsd", "zero2-fp32-packed", "zero3-bf16-recompute")
COMPARED = re.compile(r"step|train/(loss|grad_norm|lr|trained_tokens|bad_rows)|eval/.*/loss")
ROUNDED = re.compile(r"train/(loss|grad_norm|lr)|eval/")
FP64 = 1e-6
"""Relative tolerance of held-out losses: these runs added the losses of a micro-batch's tokens in fp32."""
OTHER_CPU = 2e-3
"""Relative tolerance on another CPU or PyTorch, whose kernels sum in another order. Measured in bf16: 4e-5 in a loss,
6e-4 in a norm."""


@pytest.mark.parametrize("case", CASES)
def test_an_old_run_directory_resumes_bit_for_bit(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = unpack(case, tmp_path)
    before, expected = compared(run.read_metrics()), records(tmp_path / "expected.jsonl")
    step = checkpoint_step(run.find_checkpoint("last"))
    assert before[-1]["step"] == step < expected[-1]["step"]

    assert ftdist_with_forked_ranks("resume", run.path) == 0

    assert f"resumed after step {step}\n" in capfd.readouterr().out
    assert run.read_status()["state"] == "done"
    found = compared(run.read_metrics())
    assert found[: len(before)] == before, "what was recorded before has changed"
    assert [(record["step"], sorted(record)) for record in found] == [(r["step"], sorted(r)) for r in expected]
    same = json.loads((tmp_path / "machine.json").read_text()) == machine()
    for one, other in zip(found[len(before) :], expected[len(before) :], strict=True):
        for name, value in other.items():
            allowed = OTHER_CPU if not same and ROUNDED.match(name) else FP64 if name.startswith("eval/") else 0.0
            assert one[name] == (pytest.approx(value, rel=allowed) if allowed else value), f"step {one['step']}: {name}"


def unpack(case: str, folder: Path) -> RunDir:
    """Unpack a run in a new place, with a cache that holds its data."""
    with tarfile.open(OLD_RUNS / f"{case}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    run = RunDir(folder / "run")
    text = run.config.read_text()
    for old, new in ((f"/old/runs/{case}", run.path), ("/old/runs", folder), ("/old/cache", folder / "cache")):
        assert old in text
        text = text.replace(old, str(new))
    run.config.chmod(0o644)
    run.config.write_text(text)
    run.config.chmod(0o444)
    return run


def compared(found: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    return [{name: value for name, value in record.items() if COMPARED.fullmatch(name)} for record in found]


def records(path: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def machine() -> Dict[str, str]:
    """Return what decides which kernels run, and so the last bits of a result."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    first = dict(re.findall(r"^(vendor_id|cpu family|model|flags)\s*: (.*)$", text.partition("\n\n")[0], re.M))
    vectors = sorted(flag for flag in first.pop("flags", "").split() if re.match("avx|amx|fma", flag))
    return {**first, "vectors": " ".join(vectors), "torch": version("torch")}
