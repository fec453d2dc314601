"""The losses that ``ftdist preview --loss`` shows."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from ftdist.verify import preview
from ftdist.verify.reference import token_losses
from tests.helpers.tiny import save_tiny_model
from tests.unit.data_tools import data_config

IDS = np.array([70, 71, 72, 258, 9, 9, 100], dtype=np.int32)


def _losses(folder: Path) -> np.ndarray:
    config = data_config(folder, f"model.path={folder / 'model'}", "train.precision=fp32")
    config.model.config = {}
    return preview.base_losses(config)(IDS)


def test_they_are_those_of_plain_transformers_with_and_without_the_chunked_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model(tmp_path / "model")
    plain = token_losses(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), IDS, 259).detach().numpy()
    calls = []
    compute = preview.target_logprobs
    monkeypatch.setattr(preview, "target_logprobs", lambda *given: calls.append("chunked") or compute(*given))
    chunked = _losses(tmp_path)
    assert np.isnan(chunked[0]) and chunked[1:] == pytest.approx(plain, rel=1e-5)
    assert calls == ["chunked"]
    monkeypatch.setattr(preview, "find_head", lambda *_: "its head is not known")
    assert _losses(tmp_path)[1:] == pytest.approx(plain, rel=1e-5) and calls == ["chunked"]
