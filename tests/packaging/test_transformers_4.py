"""An export gives the same ids and logits in transformers 4.57 as here, with the torch of this environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftdist.checkpoint.compatibility import READ_BY_4, write_old_fields
from tests.models.alone import save_tiny

VERSIONS = ["transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2", "sentencepiece==0.2.1"]
SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 100000.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0}
LONG = {"rope_type": "longrope", "rope_theta": 20000.0, "partial_rotary_factor": 1.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3],
        "original_max_position_embeddings": 32}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": PLAIN},
    "llama 3.1": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama linear": {"model_type": "llama", "rope_parameters": LINEAR},
    "qwen2 yarn": {"model_type": "qwen2", "rope_parameters": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "rope_parameters": PLAIN},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4,
                  "num_experts_per_tok": 2, "rope_parameters": PLAIN},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": PLAIN},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8,
               "rope_parameters": PLAIN},
    "mistral": {"model_type": "mistral", "sliding_window": None, "rope_parameters": PLAIN},
    "olmo2": {"model_type": "olmo2", "rope_parameters": PLAIN},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8,
               "layer_types": ["sliding_attention", "full_attention"],
               "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 300000.0, "factor": 8.0},
                                   "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}},
    "phi3": {"model_type": "phi3", "rope_parameters": {**PLAIN, "partial_rotary_factor": 1.0}},
    "phi3 longrope": {"model_type": "phi3", "rope_parameters": LONG, "original_max_position_embeddings": 32},
    "gpt_neox": {"model_type": "gpt_neox", "rope_parameters": {"rope_type": "default", "rope_theta": 30000.0,
                                                               "partial_rotary_factor": 0.5}},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip
"""Models whose numbers all differ from the defaults of version 4, so that a lost field changes the logits."""

READ = """
import json, sys, torch, transformers
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.logging.set_verbosity_error()
found = {"version": transformers.__version__}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        # version 4 leaves out the soft cap of Gemma 2 in every other attention
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "two words é"}], tokenize=True)
        ids = list(ids["input_ids"] if hasattr(ids, "keys") else ids)
        logits = model(input_ids=torch.arange(48)[None] % 300).logits
        found[folder.name] = {"ids": ids, "logits": logits[0, 1::5, :64].flatten().tolist(), "type": str(model.dtype),
                              "special": tokenizer.convert_tokens_to_ids("<|im_start|>")}
    except Exception as error:
        found[folder.name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with transformers 4.57 and SentencePiece."""
    installed = os.environ.get("FTDIST_TRANSFORMERS_4")  # a folder where they are already
    if installed:
        return installed
    folder = str(tmp_path_factory.mktemp("four"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *VERSIONS], check=True
    )
    return folder


def run(code: str, folder: Path, *path: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(folder: Path, *path: str) -> dict[str, Any]:
    return dict(json.loads(run(READ, folder, *path).splitlines()[-1]))


MAKE = """
import json, random, sys
from pathlib import Path
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GemmaTokenizerFast, LlamaTokenizerFast
out = Path(sys.argv[1])
random.seed(1)
words = "the quick brown fox jumps over lazy dogs while wizards hop near old bridges größe éclair 中文 12 345".split()
text = [" ".join(random.choices(words, k=9)) for _ in range(2000)]
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_prefix=str(out / "pieces"), vocab_size=400,
    model_type="bpe", byte_fallback=True, pad_id=-1, hard_vocab_limit=False, minloglevel=2)
marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
def pieces(name, kind, fast=None, **fields):
    (folder := out / "sources" / name).mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes((out / "pieces.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **marks, **fields}))
    if fast:
        fast.from_pretrained(folder).save_pretrained(folder)
pieces("llama", "LlamaTokenizer", LlamaTokenizerFast, legacy=False, add_bos_token=True)
pieces("llama legacy", "LlamaTokenizer", LlamaTokenizerFast, legacy=True)
pieces("llama without a space", "LlamaTokenizer", LlamaTokenizerFast, legacy=False, add_prefix_space=False)
pieces("llama slow", "LlamaTokenizer", legacy=False)
pieces("gemma", "GemmaTokenizer", GemmaTokenizerFast, pad_token="</s>")
pieces("gemma slow", "GemmaTokenizer", pad_token="</s>")
marks = {"bos_token": "<|start|>", "eos_token": "<|end|>", "unk_token": "<|start|>", "pad_token": "<|end|>"}
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=500, special_tokens=["<|start|>", "<|end|>"],
                                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
for kind in ("GPT2Tokenizer", "Qwen2Tokenizer", "Qwen3_5Tokenizer", "GPTNeoXTokenizerFast", "CohereTokenizerFast",
             "PreTrainedTokenizerFast", "TokenizersBackend"):
    for slow in (True, False) if kind in ("GPT2Tokenizer", "Qwen2Tokenizer") else (False,):
        (folder := out / "sources" / (kind + " slow" * slow)).mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **marks}))
        bpe.model.save(str(folder)) if slow else bpe.save(str(folder / "tokenizer.json"))
"""
"""Writes tokenizers as they are on the hub, with version 4 and SentencePiece."""

EXPORT = """
import json, sys
from pathlib import Path
from ftdist.checkpoint.compatibility import write_old_fields
from ftdist.config.schema import RunConfig
from ftdist.data.tokenizer import load_tokenizer
found = {}
for source in sorted((Path(sys.argv[1]) / "sources").iterdir()):
    config = RunConfig()
    config.model.path, config.data.chat_template, config.model.new_special_tokens = str(source), "chatml", ["<new>"]
    tokenizer = load_tokenizer(config)
    tokenizer.save_pretrained(folder := Path(sys.argv[1]) / "exports" / source.name)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    write_old_fields(folder)
    found[source.name] = known(tokenizer)
print(json.dumps(found))
"""

KNOWN = """
def known(tokenizer):
    texts = ["the quick", " two  spaces\\n\\nnew", "größe 中文 🙂", "a</s>b <s> c<|end|> d", "  ", "<new>hop <new> x"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "fox <new>"}], tokenize=True, return_dict=False)
    return {"ids": [tokenizer(text)["input_ids"] for text in texts], "chat": list(chat),
            "plain": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
            "text": tokenizer.decode(tokenizer(texts[0])["input_ids"]), "inputs": sorted(tokenizer(texts[0])),
            "special": sorted(tokenizer.all_special_tokens),
            "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]}
"""
"""What a tokenizer is for a user. ``inputs`` are the arguments of ``generate``."""

REREAD = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
found = {}
for folder in (Path(sys.argv[1]) / "exports").iterdir():
    try:
        found[folder.name] = known(AutoTokenizer.from_pretrained(folder))
    except Exception as error:
        found[folder.name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def unusual(folder: Path) -> None:
    """Give the rotary embeddings of a model another base than the default of its type, so that a lost field shows."""
    config = json.loads((folder / "config.json").read_text())

    def change(part: Any) -> None:
        for name, value in part.items() if isinstance(part, dict) else ():
            part[name] = 3 * value if name == "rope_theta" and value else value
            change(value)

    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_type_that_a_card_names_is_the_same_in_transformers_4(four: str, tmp_path: Path) -> None:
    from ftdist.data.tokenizer import bytes_tokenizer

    for name in READ_BY_4:
        save_tiny(name, folder := tmp_path / name)
        unusual(folder)
        bytes_tokenizer().save_pretrained(folder)
        write_old_fields(folder)
    now, old = read(tmp_path), read(tmp_path, four)
    different = {}
    for name in READ_BY_4:
        one, other = now[name], old[name]
        if isinstance(one, str) or isinstance(other, str):
            different[name] = [found for found in (one, other) if isinstance(found, str)]
        elif other["ids"] != one["ids"] or other["logits"] != pytest.approx(one["logits"], abs=2e-4):
            different[name] = "other logits or ids"
    assert different == {}


@pytest.mark.slow
def test_an_exported_tokenizer_gives_the_ids_of_the_training_in_both_versions(four: str, tmp_path: Path) -> None:
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    for found in Path(four).glob("sentencepiece*"):  # version 5 reads files without a tokenizer.json with it too
        (pieces / found.name).symlink_to(found)
    run(MAKE, tmp_path, four)
    trained = json.loads(run(KNOWN + EXPORT, tmp_path, str(pieces)).splitlines()[-1])
    assert len(trained) == 15
    for paths in ([], [four]):
        assert json.loads(run(KNOWN + REREAD, tmp_path, *paths).splitlines()[-1]) == trained


@pytest.mark.slow
def test_an_export_is_the_same_model_in_transformers_4(four: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ftdist.data.tokenizer import bytes_tokenizer

    for name, fields in FAMILIES.items():
        torch.manual_seed(1)
        fields = {**SIZES, **fields}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(tmp_path / "models" / name)
        bytes_tokenizer().save_pretrained(tmp_path / "models" / name)
    before = read(tmp_path / "models")
    for name in FAMILIES:
        write_old_fields(tmp_path / "models" / name)
    now, old = read(tmp_path / "models"), read(tmp_path / "models", four)
    assert before["version"] == now["version"] and old["version"] == "4.57.6"
    different = {}
    for name in FAMILIES:
        for what, found in (("5", now[name]), ("4", old[name])):
            if isinstance(found, str) or any(found[key] != before[name][key] for key in ("ids", "type", "special")):
                different[name, what] = found if isinstance(found, str) else "other ids"
            elif found["logits"] != pytest.approx(before[name]["logits"], abs=2e-4):
                different[name, what] = "other logits"
    assert different == {}
