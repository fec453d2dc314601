"""A run that is resumed with fewer ranks at another ZeRO stage, from the command line."""

from pathlib import Path

import pytest

from ftdist.base.errors import EXIT_PREEMPTED, EXIT_USAGE
from ftdist.config.schema import load_config
from ftdist.run.rundir import RunDir
from tests.e2e.cli import SMOKE, finished_run, ftdist, interrupt, newest_step, start, succeed, wait_until

SETTINGS = (*SMOKE, "train.precision=fp32", "zero.stage=3", "train.max_steps=8", "train.eval_every=null",
            "train.checkpoint_every=2", "track=disabled", "train.export=false", "launch.nproc_per_node=2",
            "batch.global_batch_size=4")  # fmt: skip


def test_a_run_goes_on_with_other_ranks_and_another_stage(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    process = start("train", *SETTINGS, f"run_dir={run.path}")
    wait_until(process, lambda: newest_step(run) >= 3)
    assert interrupt(process).code == EXIT_PREEMPTED
    before = newest_step(run)

    refused = ftdist("resume", run.path, "launch.nproc_per_node=3")
    assert refused.code == EXIT_USAGE and "(launch.nproc_per_node=4)" in refused.err
    assert load_config(run.config).launch.nproc_per_node == 2

    done = succeed("resume", run.path, "launch.nproc_per_node=1", "zero.stage=1")
    assert "was saved by 2 ranks with ZeRO-3; the run continues with 1 rank with ZeRO-1" in done.out
    assert f"resumed after step {before}\n" in done.out and "× 4 accumulation × 1 ranks" in done.out
    steps = [record for record in run.read_metrics() if "train/loss" in record]
    expected = [record for record in finished_run(*SETTINGS).read_metrics() if "train/loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    for name in ("train/tokens_seen", "train/trained_tokens", "train/lr"):
        assert [record[name] for record in steps] == [record[name] for record in expected]
    assert steps[before]["train/loss"] == pytest.approx(expected[before]["train/loss"], rel=1e-6)
    for one, other in zip(steps, expected, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
    assert load_config(run.path / "run.attempt-0.yaml").launch.nproc_per_node == 2
    assert load_config(run.config).zero.stage == 1
