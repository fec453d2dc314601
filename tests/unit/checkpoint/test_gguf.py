"""GGUF files of every family are read by transformers as the model they were written from. Broken ones are refused."""

import copy
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import pytest
from transformers import AutoConfig, GemmaTokenizer, LlamaTokenizer

from ftdist.base.errors import CheckpointError, ConfigError
from ftdist.checkpoint import gguf_export
from ftdist.checkpoint.gguf_check import (
    check_settings,
    check_tensors,
    check_tokens,
    compare_logits,
    probe_ids,
    read_logits,
)
from ftdist.checkpoint.gguf_family import FAMILIES, family_of
from ftdist.checkpoint.gguf_types import TYPES
from ftdist.checkpoint.gguf_vocabulary import Vocabulary, read_vocabulary
from ftdist.checkpoint.gguf_write import logits_of, special_tokens, write_gguf
from ftdist.config.schema import RunConfig
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.model.opened import open_exported
from tests.helpers.tiny import save_tiny_model
from tests.helpers.tokenizers import TURNS, byte_level, sentencepiece

GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "hidden_size": 64,
         "tie_word_embeddings": True}  # fmt: skip
SIX = {"num_hidden_layers": 6}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
MODELS: Dict[str, Tuple[Dict[str, Any], Callable[[], Any]]] = {
    "llama2": ({"model_type": "llama"}, lambda: sentencepiece(LlamaTokenizer)),
    "llama3": (
        {"model_type": "llama", "rope_parameters": LLAMA3_ROPE, "head_dim": 32},
        lambda: byte_level("llama-bpe"),
    ),
    "smollm2": ({"model_type": "llama", "tie_word_embeddings": True}, lambda: byte_level("smollm")),
    "smollm3": ({"model_type": "smollm3", "num_hidden_layers": 4}, lambda: byte_level("llama-bpe")),
    "mistral": ({"model_type": "mistral", "sliding_window": None}, lambda: byte_level("tekken")),
    "qwen2": ({"model_type": "qwen2", "rope_parameters": YARN}, lambda: byte_level("qwen2")),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32}, lambda: byte_level("qwen2")),
    "gemma": (
        {"model_type": "gemma", "head_dim": 16, "tie_word_embeddings": True},
        lambda: sentencepiece(GemmaTokenizer),
    ),
    "gemma2": ({"model_type": "gemma2", **GEMMA}, lambda: sentencepiece(GemmaTokenizer)),
    "gemma3": ({"model_type": "gemma3_text", **GEMMA, **SIX}, lambda: sentencepiece(GemmaTokenizer)),
}


def saved(folder: Path, name: str, **changes: Any) -> Path:
    """Save a model and its tokenizer as an export is saved."""
    fields, make = MODELS[name]
    tokenizer = make()
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    save_tiny_model(folder, **{"vocab_size": len(tokenizer) + 3, **ids, **fields, **changes})
    tokenizer.save_pretrained(folder)
    return folder


def exported(folder: Path, out: Path, name: str = "F32") -> str:
    """Write a GGUF file beside the folder as an export does. Returns what was measured."""
    config, kind = RunConfig(), TYPES[name]
    family = family_of(AutoConfig.from_pretrained(folder), "")
    lines = gguf_export._write_and_check(folder, out / f"model-{name}.gguf", config, family, kind, "")
    return "\n".join(lines)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.thorough
def test_every_family_is_read_as_the_same_model(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "hf", name)
    text = exported(folder, tmp_path)
    assert "relative error of at most 0.0e+00" in text or MODELS[name][0]["model_type"].startswith("gemma")
    read = FAMILIES[MODELS[name][0]["model_type"]].read
    assert ("transformers' reader" in text) == read and ("gguf's reader" in text) != read
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./model-F32.gguf\nTEMPLATE")
    facts = metadata(tmp_path / "model-F32.gguf")
    assert facts["general.file_type"] == 0
    assert facts["tokenizer.ggml.add_bos_token"] == (facts["tokenizer.ggml.model"] == "llama")
    if facts["tokenizer.ggml.model"] == "llama":  # the chat begins with BOS, and no space is put after it
        assert facts["tokenizer.ggml.add_space_prefix"] is False
    if name == "llama3":
        assert facts["tensors"]["rope_freqs.weight"] == [16]
    if name == "qwen2":
        assert (facts["qwen2.rope.scaling.type"], facts["qwen2.rope.scaling.factor"]) == ("yarn", 4.0)
        assert facts["qwen2.rope.scaling.original_context_length"] == 128
    if name == "gemma2":
        assert facts["gemma2.attn_logit_softcapping"] == 50.0 and facts["gemma2.final_logit_softcapping"] == 30.0
    assert ("output.weight" in facts["tensors"]) == (name not in ("smollm2", "gemma", "gemma2", "gemma3"))


def metadata(file: Path) -> Dict[str, Any]:
    """Return what a file says, and the shapes of its tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    facts = {key: field.contents() for key, field in reader.fields.items() if "tokens" not in key}
    return {**facts, "tensors": {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("gguf") / "hf", "llama3", hidden_size=128, intermediate_size=112)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_stays_within_its_tolerance(name: str, llama: Path, tmp_path: Path) -> None:
    """The rows of down_proj, 112 numbers, do not fill blocks."""
    from gguf import GGUFReader

    text = exported(llama, tmp_path, name)
    assert f"allowed: {TYPES[name].weights:g}" in text and f"allowed: {TYPES[name].logits:g}" in text
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / f"model-{name}.gguf").tensors}
    block = name.startswith("Q")
    assert types["blk.1.attn_k.weight"] == name and types["output_norm.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == ("F16" if block else name)
    assert types["token_embd.weight"] == types["output.weight"] == ("Q8_0" if block else name)


def broken(folder: Path, file: Path, change: Callable[[Dict[str, Any]], None]) -> None:
    """Write a file in which something is wrong, and run the checks of an export."""
    tokenizer = MODELS["llama2" if "llama2" in folder.name else "llama3"][1]()
    model, kind = open_exported(folder), TYPES["F32"]
    family = family_of(model.config, "")
    parts: Dict[str, Any] = {
        "model": copy.deepcopy(model), "family": family, "special": special_tokens(tokenizer, []),
        "vocabulary": read_vocabulary(tokenizer, model.config.vocab_size, ""),
    }  # fmt: skip
    vocabulary = parts["vocabulary"]
    change(parts)
    write_gguf(file, parts["model"], parts["vocabulary"], parts["special"], parts["family"], kind, "broken")
    check_tokens(file, tokenizer, vocabulary)
    check_settings(file, model.config, family)
    check_tensors(file, model, family, kind)
    ids = probe_ids(tokenizer, model.config, family)
    compare_logits(logits_of(model, ids), read_logits(file, model, family, ids), kind, file)


def _unpermuted(parts: Dict[str, Any]) -> None:
    parts["family"] = type(parts["family"])("llama", permuted=False)


def _permuted_in_both(parts: Dict[str, Any]) -> None:
    """The rows are already in another order before they are written: only the logits can show it."""
    weight = parts["model"].model.layers[0].self_attn.q_proj.weight.data
    weight.copy_(weight.flip(0))


def _other_theta(parts: Dict[str, Any]) -> None:
    parts["model"].config.rope_parameters["rope_theta"] = 1e4


def _one_layer_lost(parts: Dict[str, Any]) -> None:
    parts["model"].model.layers[1].mlp.up_proj.weight.data.zero_()


def _vocabulary(**changes: Callable[[Vocabulary], Any]) -> Callable[[Dict[str, Any]], None]:
    def change(parts: Dict[str, Any]) -> None:
        old = parts["vocabulary"]
        new = {name: make(old) for name, make in changes.items()}
        parts["vocabulary"] = Vocabulary(**{**vars(old), **new})

    return change


def _template(parts: Dict[str, Any]) -> None:
    parts["special"]["chat_template"] += " "


BROKEN = {
    "nothing": ("llama3", lambda parts: None, ""),
    "rows of q and k in the order of transformers": ("llama3", _unpermuted, "has a relative error of"),
    "rows of q in a third order": ("llama3", _permuted_in_both, "'blk.0.attn_q.weight' has a relative error"),
    "another base of the rotary embedding": ("llama3", _other_theta, "reads rope_theta as 10000"),
    "a layer of zeros": ("llama3", _one_layer_lost, "'blk.1.ffn_up.weight' has a relative error of 1.0e"),
    "merges lost": ("llama3", _vocabulary(merges=lambda v: v.merges[:5]), "other token ids than"),
    "merges in reverse": ("llama3", _vocabulary(merges=lambda v: v.merges[::-1]), "other token ids than"),
    "added tokens lost": ("llama3", _vocabulary(types=lambda v: [1] * len(v.types)), "other token ids than"),
    "scores in reverse": ("llama2", _vocabulary(scores=lambda v: [-s for s in v.scores]), "other token ids than"),
    "another chat template": ("llama3", _template, "renders a chat in another way"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str, tmp_path: Path, llama: Path) -> None:
    family, change, message = BROKEN[name]
    folder = llama if family == "llama3" else saved(tmp_path / "llama2", family)
    if not message:
        return broken(folder, tmp_path / "good.gguf", change)
    with pytest.raises(CheckpointError, match=message):
        broken(folder, tmp_path / "broken.gguf", change)


def test_a_wrong_permutation_is_seen_in_the_logits(llama: Path, tmp_path: Path) -> None:
    """A mistake that writer and comparison of tensors share: transformers' reader does not share it."""
    model, tokenizer = open_exported(llama), MODELS["llama3"][1]()
    wrong, kind = type(FAMILIES["llama"])("llama", permuted=False), TYPES["Q4_0"]
    vocabulary = read_vocabulary(tokenizer, model.config.vocab_size, "")
    file = tmp_path / "model.gguf"
    write_gguf(file, model, vocabulary, special_tokens(tokenizer, []), wrong, kind, "wrong")
    check_tensors(file, model, wrong, kind)
    ids = probe_ids(tokenizer, model.config, wrong)
    with pytest.raises(CheckpointError, match="the logits differ by"):
        compare_logits(logits_of(model, ids), read_logits(file, model, wrong, ids), TYPES["F32"], file)


REFUSED = {
    "phi3": ({"model_type": "phi3"}, "does not write GGUF files of phi3 models"),
    "mixtral": ({"model_type": "mixtral"}, "does not write GGUF files of mixtral models"),
    "activation": ({"model_type": "llama", "hidden_act": "gelu"}, "the activation is gelu"),
    "rope": ({"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
             "the rotary embedding is of type dynamic"),
    "llama3 rope": ({"model_type": "qwen2", "rope_parameters": LLAMA3_ROPE}, "of type llama3"),
    "layers": ({"model_type": "gemma3_text", **GEMMA}, None),
    "other layers": ({"model_type": "gemma3_text", **GEMMA, "layer_types": ["full_attention"] * 2}, "every 6th layer"),
    "scale": ({"model_type": "gemma2", **GEMMA, "query_pre_attn_scalar": 99}, "is 99; llama.cpp uses 16"),
    "rope layers": ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "without a rotary embedding"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_compute_in_another_way_is_refused(name: str) -> None:
    fields, message = REFUSED[name]
    base = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **fields}
    arch = AutoConfig.for_model(base.pop("model_type"), **base)
    if message is None:
        assert family_of(arch, "")
        return
    with pytest.raises(ConfigError, match=message) as error:
        family_of(arch, "use these commands")
    if "does not write" in message:
        assert error.value.fix == "use these commands"


def test_a_window_limits_the_context(tmp_path: Path) -> None:
    folder = saved(tmp_path / "hf", "mistral", sliding_window=64)
    assert "context limited to 64 tokens, the attention window" in exported(folder, tmp_path)
    assert metadata(tmp_path / "model-F32.gguf")["llama.context_length"] == 64


def test_the_commands_for_llama_cpp() -> None:
    one = gguf_export.llama_cpp_commands(Path("runs/a"), True, TYPES["Q8_0"])
    assert one == ("with llama.cpp: ftdist export runs/a --merged && python convert_hf_to_gguf.py runs/a/export-merged "
                   "--outtype q8_0 --outfile model.gguf")  # fmt: skip
    two = gguf_export.llama_cpp_commands(Path("runs/a"), False, TYPES["Q4_0"])
    assert two.endswith("--outtype f16 --outfile f16.gguf && llama-quantize f16.gguf model.gguf Q4_0")
    with pytest.raises(ConfigError, match="of type BPE with 0 merges") as error:
        read_vocabulary(bytes_tokenizer(), 320, two)
    assert error.value.fix.startswith("leave out --gguf"), "llama.cpp does not know such a tokenizer"


@pytest.mark.parametrize(("template", "prefix"), [(None, True), ("hi {{ messages[0].content }}", True), (TURNS, False)])
def test_a_space_is_put_before_text_where_the_trained_chat_has_one(template: Any, prefix: bool) -> None:
    tokenizer = sentencepiece(LlamaTokenizer)
    tokenizer.chat_template = template
    assert read_vocabulary(tokenizer, len(tokenizer), "").add_space_prefix is prefix
