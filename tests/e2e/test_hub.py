"""The hub goes away after ``ftdist prepare``: a machine without a network runs what was fetched."""

from pathlib import Path

import pytest

from tests.helpers.cli import ftdist, succeed
from tests.helpers.hub import COMMIT, FROM_HUB, serve_tiny
from tests.helpers.runs import BARE, SMOKE

WORDS = (*SMOKE, *BARE, *FROM_HUB, "train.max_steps=2", "train.eval_every=null", "run_dir=run")


def test_what_was_fetched_runs_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = serve_tiny(tmp_path / "hub")
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "FTDIST_CACHE": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    refused = ftdist("prepare", *WORDS, "model.hub=org/none", cwd=tmp_path)
    assert refused.code == 2 and "error: model.hub=org/none: " in refused.text and "hf auth login" in refused.text
    said = succeed("prepare", *WORDS, cwd=tmp_path).out
    assert f"model      org/tiny at {COMMIT}: " in said and "fetched in" in said and "prepared in" in said
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    hub.stop()
    done = succeed("train", *WORDS, cwd=tmp_path)
    assert "org/tiny: found in " in done.out and "the hub did not answer" in done.out and "step 2/2" in done.out
    assert f"revision: {COMMIT}" in (tmp_path / "run" / "run.yaml").read_text()
    gone = ftdist("train", *WORDS, "run_dir=other", f"cache_dir={tmp_path / 'new'}", "model.hub=org/new", cwd=tmp_path)
    assert gone.code == 2 and "model.hub=org/new is not in the cache of the hub" in gone.text
    assert "run ftdist prepare with these settings" in gone.text
