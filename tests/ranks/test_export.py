"""Exports of every model family hold the trained weights. transformers saves some weights under other names."""

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.helpers.exports import open_plainly
from tests.helpers.families import FAMILIES, GROUPED, OTHER_FAMILIES, QWEN3_VL, QWEN3_VL_MOE
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.tokenizers import byte_level
from tests.helpers.training import assemble, each_training, start

RENAMED = {"qwen3_moe": {"model_type": "qwen3_moe", **GROUPED, "head_dim": 16, "moe_intermediate_size": 16,
                         "num_experts": 4, "num_experts_per_tok": 2},
           "gemma3_images": OTHER_FAMILIES["gemma3_images"], "qwen3_vl": QWEN3_VL,
           "qwen3_vl_moe": QWEN3_VL_MOE, "gpt2": FAMILIES["gpt2"]}  # fmt: skip
"""Models whose weights have other names or shapes in files, or that have parts for images."""
OTHERS = {name: fields for name, fields in FAMILIES.items() if name not in RENAMED}
GROUPS = [pytest.param(RENAMED, id="renamed"), pytest.param(OTHERS, id="others", marks=pytest.mark.slow)]

PROCESSOR = "preprocessor_config.json"


def _trained_and_exported(configs: List[Any], folder: Path) -> Dict[str, List[str]]:
    """Train and export each config. Returns, by model type, the weights that ``from_pretrained`` reads differently."""
    from ftdist.checkpoint.export import export_checkpoint
    from ftdist.engine.whole import whole_weights
    from ftdist.model.parts import auto_class, is_multimodal, other_parts
    from ftdist.train.loop import train

    found = {}
    for config, training in zip(configs, each_training(configs, folder), strict=True):
        train(training)
        training.tracker.finish(0)
        weights, run = whole_weights(training.engine), training.run
        if training.ranks.first:
            export_checkpoint(run.find_checkpoint("last"), run.export, config)
            kind = auto_class(training.engine.module.config)
            model = kind.from_pretrained(run.export, dtype="auto")
            if is_multimodal(model.config):
                _check_other_parts(other_parts(model), other_parts(kind.from_pretrained(config.model.path)))
                assert (run.export / PROCESSOR).read_text() == "{}"
            read = dict(model.named_parameters())
            assert read.keys() == weights.keys()
            other = [name for name, weight in read.items() if not weight.equal(weights[name].to(weight.dtype))]
            found[model.config.model_type] = other
    return found


def _check_other_parts(exported: Any, original: Any) -> None:
    """The parts that text does not use are those of the original, in the run's precision."""
    assert exported.keys() == original.keys() and exported
    for name, tensors in exported.items():
        assert all(a.equal(b.to(a.dtype)) for a, b in zip(tensors, original[name], strict=True)), name


@pytest.mark.parametrize("models", GROUPS)
def test_every_family_exports_the_trained_weights(models: Dict[str, Any], tmp_path: Path) -> None:
    configs = []
    for name, fields in models.items():
        model = save_tiny_model(tmp_path / name, **fields)
        (model / PROCESSOR).write_text("{}")
        configs.append(tiny_config(
            tmp_path, f"model.path={model}", "zero.stage=3", "train.precision=bf16", "train.max_steps=1",
            "optim.lr=1e-2", "data.heldout_share=0", "data.max_heldout_documents=null", "train.num_samples=0",
        ))  # fmt: skip
    freeze_tiny(configs[0], tmp_path / "prepared", 2)
    found = run_ranks(_trained_and_exported, 2, configs, tmp_path, timeout_s=300)[0]
    assert found == {fields["model_type"]: [] for fields in models.values()}


def _adapters_in_both_formats(config: Any, folder: Path) -> List[str]:
    """Train adapters, and export them merged and as a GGUF file. Returns what the second export has measured."""
    from ftdist.checkpoint.export import export_checkpoint
    from ftdist.checkpoint.gguf_export import export_gguf
    from ftdist.train.loop import train

    training = assemble(config, folder / "run", start(config))
    train(training)
    training.tracker.finish(0)
    checkpoint = training.run.find_checkpoint("last")
    export_checkpoint(checkpoint, folder / "merged", config, merged=True)
    export_gguf(checkpoint, folder / "gguf", config, "q8_0")
    return export_gguf(checkpoint, folder / "gguf", config, "f32")


def test_a_gguf_export_of_adapters_opens_without_ftdist_as_the_merged_model(tmp_path: Path) -> None:
    tokenizer = byte_level("smollm")
    fields = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    model = save_tiny_model(tmp_path / "model", vocab_size=len(tokenizer), **fields)
    tokenizer.save_pretrained(model)
    config = tiny_config(
        tmp_path,
        "model.tokenizer=null",
        "method.kind=lora",
        "optim.lr=1e-2",
        "train.max_steps=1",
        "train.num_samples=0",
        "data.heldout_share=0",
        "data.max_heldout_documents=null",
    )
    freeze_tiny(config, tmp_path / "prepared", 1)
    measured = run_ranks(_adapters_in_both_formats, 1, config, tmp_path, timeout_s=120)[0]
    assert any("read with transformers' reader" in line for line in measured)
    kept = {"model-F32.gguf", "model-Q8_0.gguf"}
    assert {path.name for path in (tmp_path / "gguf").glob("*.gguf")} == kept, "types of one checkpoint are kept"
    card = (tmp_path / "gguf" / "README.md").read_text()
    assert all(card.count(f"\n| GGUF | {name}: tensors have") == 1 for name in kept)
    kinds = [tmp_path / "merged", tmp_path / "gguf" / "model-F32.gguf", model]
    merged, file, base = open_plainly(kinds).values()
    assert file == merged != base, "the same answer and the same chat"


def test_a_generation_config_that_transformers_refuses_to_write_is_exported_as_it_came(tmp_path: Path) -> None:
    """Such models exist: a temperature beside ``do_sample=false``. The refusal ended a run in its ranks."""
    found = run_ranks(_exported_generation, 1, tmp_path, timeout_s=120)[0]
    assert found == {"temperature": 0.7, "top_p": 0.9, "do_sample": None, "sentencepiece": "pieces"}


def _exported_generation(folder: Path) -> Dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from ftdist.checkpoint.saver import hf_files
    from ftdist.data.tokenizer import bytes_tokenizer
    from ftdist.model.save import save_model

    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(folder / "model"))
    model.generation_config.temperature, model.generation_config.top_p = 0.7, 0.9
    (out := folder / "export").mkdir()
    (folder / "spiece.model").write_text("pieces")
    tokenizer = bytes_tokenizer()
    tokenizer.sentencepiece_file = str(folder / "spiece.model")  # as load_tokenizer sets it
    for name, content in hf_files(model, tokenizer).items():
        (out / Path(name).name).write_bytes(content)
    save_model({name: torch.clone(p) for name, p in model.named_parameters()}, model.config, out, False)
    written = json.loads((out / "generation_config.json").read_text())
    found = {name: written.get(name) for name in ("temperature", "top_p", "do_sample")}
    return {**found, "sentencepiece": (out / "tokenizer.model").read_text()}
