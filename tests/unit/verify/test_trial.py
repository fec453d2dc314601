"""Which model ``ftdist verify`` checks: the real one, or a small stand-in."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from ftdist.config.schema import RunConfig
from ftdist.plan import disk
from ftdist.verify.trial import Trial, _real_model_fits


def test_the_memory_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    monkeypatch.setattr(disk, "CGROUP", tmp_path)
    assert _real_model_fits(arch, 1, Trial(RunConfig(), RunConfig()))

    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    (tmp_path / "memory.current").write_text("0\n")
    trial = Trial(RunConfig(), RunConfig())
    assert not _real_model_fits(arch, 1, trial)
    assert "0.0 GiB are free" in trial.notes[0]
