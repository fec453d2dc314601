"""``ftdist resume`` of a run with fewer ranks and another ZeRO stage."""

from pathlib import Path

import pytest

from ftdist.base.errors import EXIT_PREEMPTED, EXIT_USAGE
from ftdist.config.frozen import load_config
from ftdist.run.rundir import RunDir
from tests.helpers.cli import ftdist, interrupt, start, wait_until
from tests.helpers.group import ftdist_with_forked_ranks
from tests.helpers.runs import PADDED_ZERO3, finished_run, newest_step


@pytest.mark.slow  # tests/ranks/test_resume.py continues runs on other ranks and stages
def test_resume_with_fewer_ranks_and_another_zero_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "run")
    process = start("train", *PADDED_ZERO3, f"run_dir={run.path}")
    wait_until(process, lambda: newest_step(run) >= 2)
    assert interrupt(process).code == EXIT_PREEMPTED
    before = newest_step(run)

    refused = ftdist("resume", run.path, "launch.nproc_per_node=3")
    assert refused.code == EXIT_USAGE and "(launch.nproc_per_node=4)" in refused.err
    assert load_config(run.config).launch.nproc_per_node == 2

    assert ftdist_with_forked_ranks("resume", run.path, "launch.nproc_per_node=1", "zero.stage=1") == 0
    printed = capfd.readouterr().out
    assert "was saved by 2 ranks with ZeRO-3; the run continues with 1 rank with ZeRO-1" in printed
    assert f"resumed after step {before}\n" in printed and "× 4 accumulation steps × 1 rank)" in printed
    steps = [record for record in run.read_metrics() if "train/loss" in record]
    expected = [record for record in finished_run(*PADDED_ZERO3).read_metrics() if "train/loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 7))
    for name in ("train/tokens_seen", "train/trained_tokens", "train/lr"):
        assert [record[name] for record in steps] == [record[name] for record in expected]
    assert steps[before]["train/loss"] == pytest.approx(expected[before]["train/loss"], rel=1e-6)
    for one, other in zip(steps, expected, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
    assert load_config(run.path / "run.attempt-0.yaml").launch.nproc_per_node == 2
    assert load_config(run.config).zero.stage == 1
