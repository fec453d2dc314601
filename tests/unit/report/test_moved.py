"""What training moved: nothing at first, planted changes with their norm and rank, and never against another base."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from ftdist.base.errors import CheckpointError
from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.method.adapters import ADAPTER
from ftdist.model.adapter import MAGNITUDE
from ftdist.model.load import load_whole
from ftdist.report.moved import what_moved
from ftdist.run.base_model import base_identity
from ftdist.run.identity import record_inputs
from ftdist.run.rundir import RunDir
from tests.helpers.checkpoints import write_checkpoint_of
from tests.helpers.tiny import save_tiny_model, tiny_config

Q1 = "model.layers.1.self_attn.q_proj"
LORA = ("method.kind=lora", "method.r=4", "method.lora_alpha=8", "method.target_modules=[q_proj]")


def _run(folder: Path, *overrides: str, **model: Any) -> tuple[RunDir, RunConfig]:
    save_tiny_model(folder / "model", **model)
    config = tiny_config(folder, *overrides)
    run = RunDir(folder / "run")
    run.path.mkdir()
    run.config.write_text(dump_config(config))
    record_inputs(run, config, None)
    return run, config


def _base(config: RunConfig) -> Dict[str, torch.Tensor]:
    return {name: parameter.detach().float().clone() for name, parameter in load_whole(config).named_parameters()}


def _moved(run: RunDir, config: RunConfig, weights: Dict[str, torch.Tensor], **manifest: Any) -> Dict[str, Any]:
    return what_moved(run, write_checkpoint_of(run, config, weights, 1, **manifest), config)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_before_the_first_step_nothing_has_moved(tmp_path: Path, precision: str) -> None:
    run, config = _run(tmp_path, f"train.precision={precision}")
    found = _moved(run, config, _base(config))
    assert found["relative"] == 0 and set(found["kinds"].values()) == {0} and found["tokens"] == []
    assert {one["rank"] for one in found["tensors"]} == {0, None}
    assert set(found["kinds"]) == {"matrix", "embedding", "head", "norm"}


def test_a_planted_change_is_found_where_it_is(tmp_path: Path) -> None:
    run, config = _run(tmp_path, tie_word_embeddings=True)
    weights = _base(config)
    draw = torch.Generator().manual_seed(0)
    change = torch.randn(64, 3, generator=draw) @ torch.randn(3, 64, generator=draw) / 100
    base, embedding = weights[f"{Q1}.weight"].clone(), weights["model.embed_tokens.weight"]
    weights[f"{Q1}.weight"] += change
    weights["model.norm.weight"] *= 1.5
    similar = embedding[66].clone()
    embedding[65] = similar  # the token A is now used like the token B
    found = _moved(run, config, weights)
    tensors = {one["name"]: one for one in found["tensors"]}
    expected = float(change.norm() / base.norm())
    assert tensors[f"{Q1}.weight"]["relative"] == pytest.approx(expected, rel=1e-5)
    assert tensors[f"{Q1}.weight"]["norm"] == pytest.approx(float(change.norm()), rel=1e-5)
    assert tensors[f"{Q1}.weight"]["rank"] in (2, 3) and not tensors[f"{Q1}.weight"]["rank_exceeds"]
    assert found["kinds"]["norm"] == pytest.approx(0.5 / 5**0.5)  # one of five norms of ones has grown by a half
    assert tensors["model.norm.weight"]["rank"] is None
    grid = found["map"]
    assert grid["layers"] == [0, 1] and grid["values"][1][grid["modules"].index("self_attn.q_proj")] == pytest.approx(
        expected, rel=1e-5
    )
    assert sum(value for row in grid["values"] for value in row) == pytest.approx(expected, rel=1e-5)
    [token] = found["tokens"]
    assert (token["id"], token["text"]) == (65, "A") and token["nearest_after"][0] == "B"
    assert "head" not in found["kinds"], "it is tied to the embedding"


def test_rows_that_only_pad_the_embedding_do_not_count(tmp_path: Path) -> None:
    run, config = _run(tmp_path, "model.pad_vocab_to_multiple_of=32")
    weights = _base(config)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.full((288 - 259, 64), 7.0)])
    assert _moved(run, config, weights)["relative"] == 0


@pytest.mark.parametrize("how", ["another model", "a damaged checkpoint"])
def test_another_base_or_a_damaged_checkpoint_is_refused(tmp_path: Path, how: str) -> None:
    run, config = _run(tmp_path)
    folder = write_checkpoint_of(run, config, _base(config), 1)
    if how == "another model":
        save_tiny_model(tmp_path / "model", initializer_range=0.03)
    else:
        file = folder / "rank-00001.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="model" if how == "another model" else "rank-00001"):
        what_moved(run, folder, config)


def _adapter(seed: int) -> Dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for layer in (0, 1):
        module = f"model.layers.{layer}.self_attn.q_proj"
        found[f"{module}.lora_A.{ADAPTER}.weight"] = torch.randn(4, 64, generator=draw)
        found[f"{module}.lora_B.{ADAPTER}.weight"] = torch.zeros(64, 4)
    return found


def test_an_adapter_moves_its_layers_by_scale_times_b_times_a(tmp_path: Path) -> None:
    run, config = _run(tmp_path, *LORA)
    weights, base = _adapter(1), _base(config)
    identity = base_identity(config)
    weights[f"{Q1}.lora_B.{ADAPTER}.weight"][:, 1] = 0.01
    found = _moved(run, config, weights, base=identity)
    first, second = found["tensors"]
    assert (first["relative"], first["rank"], second["rank"]) == (0, 0, 1)
    product = 8 / 4 * weights[f"{Q1}.lora_B.{ADAPTER}.weight"] @ weights[f"{Q1}.lora_A.{ADAPTER}.weight"]
    assert second["name"] == f"{Q1}.weight"
    assert second["relative"] == pytest.approx(float(product.norm() / base[f"{Q1}.weight"].norm()), rel=1e-5)
    assert found["map"]["layers"] == [0, 1] and found["kinds"].keys() == {"matrix"}
    with pytest.raises(CheckpointError, match="base model"):
        what_moved(run, write_checkpoint_of(run, config, weights, 2, base="0" * 64), config)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_dora_the_length_of_the_rows_moves_too(tmp_path: Path, precision: str) -> None:
    """The magnitudes start at the lengths of the rows in the precision of the run."""
    run, config = _run(tmp_path, *LORA, "method.use_dora=true", f"train.precision={precision}")
    base, weights = _base(config), _adapter(1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    for layer, factor in ((0, 1.0), (1, 1.25)):
        module = f"model.layers.{layer}.self_attn.q_proj"
        start = base[f"{module}.weight"].to(dtype).norm(dim=1).float()
        weights[f"{module}.{MAGNITUDE}.{ADAPTER}.weight"] = factor * start
    first, second = _moved(run, config, weights, base=base_identity(config))["tensors"]
    assert first["relative"] < 1e-6 and second["relative"] == pytest.approx(0.25, rel=1e-5)
