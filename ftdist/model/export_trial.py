"""Proof before a run that its model can be exported: a small stand-in is saved, read again and compared.

The stand-in is written by the code that writes exports, in the type that will be written. It has every part of the
model, including parts for images and sound. The result is kept in the cache.
"""

import copy
import hashlib
import json
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from transformers import AutoConfig, PretrainedConfig

from ftdist.base.errors import CheckpointError, ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.config.schema import RunConfig
from ftdist.model.attention_plan import BOTH_WAYS
from ftdist.model.load import DTYPES, build_whole
from ftdist.model.parts import auto_class, build, runs_own_code, save_config
from ftdist.model.reasons import reason_of
from ftdist.model.save import save_model
from ftdist.model.standin import config_of_standin, own_sizes, whole_standin_config
from ftdist.model.vocabulary import fit_vocabulary, padded_rows
from ftdist.run.file_names import GENERATION_CONFIG
from ftdist.run.locations import cache_root

FORMAT_VERSION = 4
"""Increased when the trial or the way of saving changes."""
VOCABULARY, TOKENS, FIRST_TOKEN = 300, 24, 10
NEW_TOKENS, MULTIPLE = 5, 64
"""If the embedding of the model gets new rows, a stand-in gets this many new tokens, and padding rows up to a multiple
of this."""
DISAGREE = "its logits with eager attention, which training is compared with, differ from those with its default one"
LOOKS_AHEAD = "with its default attention tokens see later tokens, and with eager attention they do not"
MAX_PARAMETERS = 50_000_000
"""Larger stand-ins are not tried: they have a part whose sizes are not known."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Largest difference of logits, relative to the largest logit, by the type of the weights. Both are computed in fp32
from equal weights, but tables of positions are made in the type of the weights."""


def prove_export(config: RunConfig, arch: PretrainedConfig, num_tokens: int = 0) -> None:
    """Check that a model of this architecture is the same after it has been exported and read again.

    Args:
        arch: Config of the model.
        num_tokens: Number of tokens of the tokenizer. If the embedding gets new rows for it, the embedding of the
            stand-in does too.

    Raises:
        ConfigError: The model is not the same, or it does not work with new rows.
    """
    try:
        fields = whole_standin_config(arch, VOCABULARY)
    except Exception:  # the stand-in of an unknown architecture can fail in many ways
        return
    dtype, old = DTYPES[config.train.precision], getattr(arch.get_text_config(), "vocab_size", num_tokens)
    new, rows = num_tokens > old, padded_rows(max(old, num_tokens), config.model.pad_vocab_to_multiple_of)
    tokens = VOCABULARY + (NEW_TOKENS if new else 0)
    multiple = MULTIPLE if rows > max(old, num_tokens) else 1
    key = {"version": FORMAT_VERSION, "transformers": version("transformers"), "torch": version("torch"),
           "fields": fields, "dtype": str(dtype)}  # fmt: skip
    problem = _tried(config, key, arch, fields, dtype)
    name = config.train.precision.name
    if problem == LOOKS_AHEAD:
        raise _reads_both_ways(config, arch)
    if problem == DISAGREE:
        raise ConfigError(f"transformers computes {arch.model_type} in two ways: {problem}",
                          "a model whose logits do not depend on the attention implementation",
                          "use another model")  # fmt: skip
    if problem:
        what = f"a small {arch.model_type} model, the stand-in that ftdist makes of this one,"
        if real := own_sizes(arch, MAX_PARAMETERS):  # the sizes of the stand-in may be the reason
            problem = _tried(config, {**key, "fields": real}, arch, real, dtype)
            what = f"a {arch.model_type} model with these sizes"
    if problem:
        raise ConfigError(f"transformers cannot save {what} in {name} and read it again: {problem}",
                          "a model that is the same after it has been exported", "use another model")  # fmt: skip
    larger = {**key, "rows": (tokens, multiple)}
    if rows > old and (problem := _tried(config, larger, arch, fields, dtype, tokens, multiple)):
        raise ConfigError(
            f"the embedding of a {arch.model_type} model cannot be enlarged from {old} to {rows} rows: {problem}",
            f"no more than {old} tokens" if new else f"{old} rows",
            _fewer_tokens(config) if new else "model.pad_vocab_to_multiple_of=1",
        )


def _reads_both_ways(config: RunConfig, arch: PretrainedConfig) -> ConfigError:
    """Return the error for a model in whose default attention tokens see later tokens."""
    text, fix = arch.get_text_config(), "use another model"
    found = f"{arch.model_type} reads text in both directions: {LOOKS_AHEAD}"
    if getattr(text, BOTH_WAYS, False):
        found += f" ({BOTH_WAYS}=true)"
        part = "" if text is arch else "text_config."
        fix = f"model.config.{part}{BOTH_WAYS}=false, or use another model" if config.model.config else (
            f"use another model, or a copy with {part}{BOTH_WAYS}=false in its config.json")  # fmt: skip
    return ConfigError(found, "a model in which no token sees a later one", fix)


def _fewer_tokens(config: RunConfig) -> str:
    if config.model.new_special_tokens:
        return "remove model.new_special_tokens"
    return "use the tokenizer of the model (model.tokenizer)" if config.model.tokenizer else "use another model"


def _tried(config: RunConfig, key: Dict[str, Any], arch: PretrainedConfig, fields: Dict[str, Any],
           dtype: torch.dtype, tokens: int = VOCABULARY, multiple: int = 1) -> str:  # fmt: skip
    """Return the result of ``try_export``, or "" if the cache says that the trial has passed before.

    A failure is not kept in the cache, because its cause can be the machine: a full disk, too little memory.
    """
    if runs_own_code(arch):  # the code may change, so nothing is kept
        return try_export(fields, dtype, tokens, multiple, arch)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
    file = cache_root(config) / "checked" / f"export-{digest}.json"
    if _passed(file):
        return ""
    problem = try_export(fields, dtype, tokens, multiple)
    if not problem:
        with suppress(OSError):  # without the cache, the export is tried again at the next start
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"problem": ""})
    return problem


def _passed(file: Path) -> bool:
    # There is no file, or an earlier version wrote it.
    with suppress(OSError, ValueError, KeyError):
        return read_json(file)["problem"] == ""
    return False


def try_export(fields: Dict[str, Any], dtype: torch.dtype, tokens: int = VOCABULARY, multiple: int = 1,
               like: Optional[PretrainedConfig] = None) -> str:  # fmt: skip
    """Save and read a random stand-in. Returns what is wrong, or "" if nothing is.

    Args:
        fields: Config of the stand-in, with ``model_type``.
        dtype: Type of the weights in the files.
        tokens: Number of tokens after the embedding has got new rows.
        multiple: The number of rows is then rounded up to a multiple of this.
        like: Config of the real model, whose own code, if it has any, builds the stand-in.
    """
    build_whole()
    try:
        arch = config_of_standin(fields, like)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build(arch).parameters())
        if parameters > MAX_PARAMETERS:
            return ""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # the trial must not depend on what was drawn before it
            model = build(arch, dtype=dtype).eval()
    except Exception:  # the sizes of the stand-in do not fit together, which says nothing about the model
        return ""
    _draw(model, dtype)
    larger = tokens > VOCABULARY or multiple > 1
    with tempfile.TemporaryDirectory(prefix="ftdist-export-") as folder:
        try:
            expected = _logits(model, VOCABULARY)
        except Exception:
            expected = None  # only the weights are compared
        if expected is not None and not larger and _disagree(model, expected):
            return LOOKS_AHEAD if _looks_ahead(model, expected) else DISAGREE
        if larger and expected is not None:
            try:
                fit_vocabulary(model, VOCABULARY, tokens, multiple)
                expected = _logits(model, tokens)
            except Exception as error:  # another part of the model depends on the number of tokens
                return reason_of(error)
            if expected.shape[-1] < tokens:
                return f"it computes {expected.shape[-1]} logits for {tokens} tokens"
        try:
            return _save_and_compare(model, dtype, expected, Path(folder), tokens)
        except CheckpointError as error:
            return error.found.replace(f"{folder}: ", "")
        except Exception as error:  # transformers cannot read what it has written
            return reason_of(error)


def _disagree(model: Any, expected: torch.Tensor) -> bool:
    """Return whether a model computes other logits than ``expected`` with eager attention."""
    try:
        with torch.random.fork_rng([]):
            eager = build(copy.deepcopy(model.config), attn_implementation="eager")
        eager.float().load_state_dict(model.state_dict())
        found = _logits(eager.eval(), VOCABULARY)
    except Exception:  # the model does not support eager attention
        return False
    return bool((found - expected).abs().max() > ROUNDING[torch.bfloat16] * expected.abs().max())


def _looks_ahead(model: Any, expected: torch.Tensor) -> bool:
    """Return whether the last token of a text changes the logits before it."""
    moved = (_logits(model, VOCABULARY, last=FIRST_TOKEN) - expected)[:, :-1].abs().max()
    return bool(moved > ROUNDING[torch.float32] * expected.abs().max())


def _save_and_compare(model: Any, dtype: torch.dtype, expected: Optional[torch.Tensor], out: Path, tokens: int) -> str:
    saved = model.state_dict().keys()
    weights = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
    weights |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    save_config(model, out)
    trust = runs_own_code(model.config)
    (out / GENERATION_CONFIG).write_text(model.generation_config.to_json_string(), encoding="utf-8")
    save_model(weights, AutoConfig.from_pretrained(out, trust_remote_code=trust), out, trust)
    if expected is None:
        return ""
    read = auto_class(model.config).from_pretrained(out, dtype="auto", trust_remote_code=trust)
    found = _logits(read.eval(), tokens)
    off = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    return "" if off <= ROUNDING[dtype] else f"the logits differ by {off:.1g} although the weights are equal"


@torch.no_grad()
def _draw(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Draw every weight and saved buffer. If an export loses one of them, it has another value after reading.

    Weights are rounded to the type in the files, including those that transformers keeps in fp32. Values of buffers
    that are not 0 are not changed: they are constants, which some models compute again when they are read."""
    draw, buffers = torch.Generator().manual_seed(1), {name for name, _ in model.named_buffers()}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            scale = max(tensor.shape[-1], 1) ** -0.5 if tensor.dim() > 1 else 0.1  # a size can be 0
            noise = torch.randn(tensor.shape, generator=draw) * scale
            if name in buffers:
                tensor += noise * (tensor == 0)
            else:
                tensor.copy_((noise if tensor.dim() > 1 else tensor + noise).to(dtype))


@torch.no_grad()
def _logits(model: Any, tokens: int, last: Optional[int] = None) -> torch.Tensor:
    """Return the logits of a text. If there are new tokens, it contains them.

    Args:
        last: The last token. By default it is a random one.
    """
    known = min(VOCABULARY, getattr(model.config.get_text_config(), "vocab_size", VOCABULARY))
    ids = torch.randint(min(FIRST_TOKEN, known - 1), known, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    ids[0, 1 : 1 + tokens - VOCABULARY] = torch.arange(VOCABULARY, tokens)
    if last is not None:
        ids[0, -1] = last
    logits: torch.Tensor = copy.deepcopy(model).float()(input_ids=ids, use_cache=False).logits
    return logits
