"""Compute nodes without a network: what is submitted has been fetched, and the job asks the hub nothing."""

from pathlib import Path

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import finish
from tests.helpers.hub import COMMIT, FROM_HUB, serve_tiny
from tests.slurm.cluster import Cluster
from tests.slurm.test_runs import RUN, SHORT

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_hub_goes_away_after_the_submission(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, run = serve_tiny(tmp_path / "hub"), RunDir(tmp_path / "run")
    places = {"HF_HOME": str(tmp_path / "home"), "FTDIST_CACHE": str(tmp_path / "cache")}
    for name, value in {"HF_ENDPOINT": hub.url, **places}.items():
        monkeypatch.setitem(slurm.env, name, value)
    monkeypatch.delitem(slurm.env, "HF_HUB_OFFLINE", raising=False)
    words = [word for word in RUN if not word.startswith("data.sources.")]
    said = finish(slurm.ftdist("train", *words, *SHORT, *FROM_HUB, "launch=slurm", "launch.nproc_per_node=2",
                               f"run_dir={run.path}"))  # fmt: skip
    asked = len(hub.asked)
    hub.stop()
    assert f"model      org/tiny at {COMMIT}: " in said and "submitted job" in said
    assert "export HF_HUB_OFFLINE=1" in run.submit.read_text()
    slurm.wait(lambda: run.read_status().get("state") in ("done", "failed", "preempted"), 240, "the job")
    assert run.read_status()["state"] == "done", run.job_log(run.read_status()["job_id"]).read_text()
    assert len(hub.asked) == asked
