"""Check before a run whether its model can be fine-tuned (``ftdist.method.check`` is the program).

The model is built on the meta device, where it has shapes but no weights, so this takes seconds for any size. A model
is refused if it cannot be built, is not a causal language model, reads text in both directions, or cannot be exported
(``ftdist.model.export_trial``). The facts about an accepted model are stored in the cache (``ftdist.run.model_facts``).
"""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from ftdist.base.errors import ConfigError
from ftdist.base.names import nearest
from ftdist.base.permissions import require_access
from ftdist.config.schema import RunConfig
from ftdist.model.config_values import (
    OddValue,
    correction,
    odd_value_error,
    possible_cause,
    refuse_odd_values,
    with_cause,
)
from ftdist.model.export_trial import prove_export
from ftdist.model.forward import position_padding
from ftdist.model.load import model_config
from ftdist.model.parts import build, is_multimodal, other_parts, runs_own_code
from ftdist.model.plan_choice import prove_trainable
from ftdist.model.reasons import reason_of
from ftdist.model.standin import MAX_TRIAL_PARAMETERS, Unfit
from ftdist.model.text_only import why_not_text_only
from ftdist.model.weights_fit import check_stored_weights
from ftdist.run.file_names import GENERATION_CONFIG
from ftdist.run.hub import model_folder
from ftdist.run.locations import model_location
from ftdist.run.model_facts import ModelFacts

EXPECTED_MODEL = "a decoder-only language model, for example llama, qwen3 or gpt2"
MIN_SIMILARITY = 0.8
"""The message suggests a known key if its similarity to the unknown one is at least this (0 to 1)."""
TRIAL_TOKENS, WINDOW = 8, "sliding_window"
"""A small model also runs one forward on this many tokens."""
DIRECTIONS = (("is_decoder", False, True), ("causal", False, True), ("attn_type", "bi", "uni"))
"""Fields with which models read text in both directions (BERT, XLM, XLNet), and their value for one direction."""
MPT_LENGTH = "max_seq_len"
"""Field with the number of positions of MPT, whose code adds biases of this length to all attention scores."""
MAX_EXTRA_POSITIONS = 8
"""A position table can have this many more rows than the model has positions (OPT has 2 more)."""


def check_model(config: RunConfig) -> ModelFacts:
    """Check that the model of a config can be fine-tuned, and return the facts about it.

    Raises:
        ConfigError: The model cannot be loaded or built, its generation config cannot be read, ``model.config`` has an
            unknown key, its weights are quantized or do not fit it, the model is not a causal language model, or it
            cannot be exported.
    """
    if config.model.config:
        _check_model_type(config)
    refuse_odd_values(config)
    arch = model_config(config)
    known = type(arch) in MODEL_FOR_CAUSAL_LM_MAPPING or is_multimodal(arch)
    if not known and not runs_own_code(arch):
        raise ConfigError(f"{_where(config)}: transformers has no causal language model of the type {arch.model_type}",
                          EXPECTED_MODEL, "use another model")  # fmt: skip
    _check_generation(config)
    model = _build(config, arch, "meta")
    _check_window(config, arch)
    _check_quantized(config, arch)
    check_stored_weights(config, model)
    if is_multimodal(arch):
        _check_text_only(config, arch)
    _check_direction(config, model)
    _check_layers_run(config, model)
    facts = _facts(arch, model)
    try:
        prove_export(config, arch)
    except ConfigError as error:
        raise with_cause(config, error) from error
    if config.model.config:  # the config of a trained model is known to be valid
        _check_keys(config, arch, model)
        if facts.parameters <= MAX_TRIAL_PARAMETERS:
            _run_forward(config, arch)
    return dataclasses.replace(facts, longest_row=prove_trainable(config, arch))


def _check_model_type(config: RunConfig) -> None:
    model_type = config.model.config.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    near = [] if model_type is None else nearest(str(model_type), CONFIG_MAPPING)
    found = "model.config.model_type is not set"
    if model_type is not None:
        found = f"model.config.model_type={model_type} is not a model type that transformers knows"
    raise ConfigError(found, EXPECTED_MODEL, f"model.config.model_type={near[0] if near else 'llama'}")


def _check_direction(config: RunConfig, model: PreTrainedModel) -> None:
    """Refuse a model that reads text in both directions, as its config and one of its modules say.

    The config alone is not enough. GPT-NeoX has ``is_decoder`` too, but none of its layers reads it.
    """
    for name, both, forward in DIRECTIONS:
        values = [getattr(one, name, None) for one in (model.config, *model.modules())]
        same = [type(value) is type(both) and value == both for value in values]
        if same[0] and any(same[1:]):
            setting = f"{name}={str(forward).lower()}"
            raise ConfigError(
                f"{_where(config)}: {model.config.model_type} reads text in both directions", EXPECTED_MODEL,
                f"model.config.{setting}, or use another model" if config.model.config
                else f"use another model, or a copy with {setting} in its config.json",
            )  # fmt: skip


def _check_layers_run(config: RunConfig, model: PreTrainedModel) -> None:
    """Refuse a model that skips whole layers at random in training.

    With ZeRO-3 all ranks must run the same layers, and DeepSpeed 0.19 would use the gradient of an earlier step for a
    layer that was skipped.
    """
    trained = model.get_decoder() if is_multimodal(model.config) else model
    share = max((getattr(module, "layerdrop", None) or 0.0 for module in trained.modules()), default=0.0)
    if share:
        name = "decoder_layerdrop" if hasattr(model.config, "decoder_layerdrop") else "layerdrop"
        raise ConfigError(
            f"{_where(config)}: {name}={share}, so {model.config.model_type} skips layers at random in training",
            "a model whose layers all run in every step",
            f"model.config.{name}=0.0" if config.model.config else f"set {name} to 0 in config.json of a local copy",
        )  # fmt: skip


def _check_quantized(config: RunConfig, arch: PretrainedConfig) -> None:
    """Refuse a model whose files have quantized weights. transformers would compute with these weights, or would fail
    after the launch because a library or a tensor that they need is missing."""
    for part in (arch, arch.get_text_config()):
        how = getattr(part, "quantization_config", None)
        if how is not None:
            method = how.get("quant_method") if isinstance(how, dict) else getattr(how, "quant_method", None)
            raise ConfigError(f"the weights of {_where(config)} are quantized ({method or 'quantization_config'})",
                              "weights in bf16, fp16 or fp32",
                              "use a copy of the model whose weights are not quantized")  # fmt: skip


def _check_generation(config: RunConfig) -> None:
    """Refuse a generation config that transformers cannot read. Otherwise the ranks would fail when they load the
    model, or transformers would silently use another generation config."""
    folder = model_folder(config)
    if folder is None or not (folder / GENERATION_CONFIG).is_file():
        return
    file, fix = folder / GENERATION_CONFIG, f"correct or remove {GENERATION_CONFIG}"
    require_access(file)
    try:
        GenerationConfig.from_pretrained(folder)
    except OSError as error:
        raise ConfigError(f"{file} is not JSON: {_not_json(file)}", "an object in JSON", fix) from error
    except Exception as error:  # invalid values raise many kinds of exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{file}: {reason[:200]}", "values that transformers accepts", fix) from error


def _not_json(file: Path) -> str:
    """Return why a file is not JSON."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return str(error)[:200]
    return "transformers cannot read it"


def _check_window(config: RunConfig, arch: PretrainedConfig) -> None:
    """Refuse a sliding window in which no token sees any token."""
    text = arch.get_text_config()
    declared = {field.name for field in dataclasses.fields(type(text))}
    window, kinds = getattr(text, WINDOW, None), getattr(text, "layer_types", None)
    slides = WINDOW in declared and (not kinds or any("sliding" in str(kind) for kind in kinds))
    if slides and isinstance(window, (int, float)) and window <= 0:
        place = "" if text is arch else "text_config."
        raise odd_value_error(config, OddValue(f"{place}{WINDOW}", window, "a number greater than 0, or null for a "
                                               "model whose layers see all earlier tokens"))  # fmt: skip


def _check_text_only(config: RunConfig, arch: PretrainedConfig) -> None:
    """Refuse a model with images or sound that cannot be trained on text alone.

    That is a model whose text goes into an encoder, or a model that computes nothing from text alone. A stand-in (a
    small model of the same architecture) shows whether the second is the case.
    """
    try:
        problem = "its text goes into an encoder" if arch.is_encoder_decoder else why_not_text_only(arch)
    except Unfit as error:
        raise ConfigError(f"{_where(config)}: ftdist cannot find out whether {arch.model_type} can be fine-tuned on "
                          f"text alone: the small stand-in that it makes of the model {error.reason}",
                          "a stand-in that can be built, because the model itself is too large to be tried",
                          "use another model, or report the config.json of this one to the developers of "
                          "ftdist") from error  # fmt: skip
    if problem:
        raise ConfigError(f"{_where(config)}: {arch.model_type} cannot be fine-tuned on text alone: {problem}",
                          "a model with a language part that reads text alone",
                          "use another model, or its language part as a model of its own")  # fmt: skip


def _check_keys(config: RunConfig, arch: PretrainedConfig, model: PreTrainedModel) -> None:
    """Refuse unknown keys. transformers accepts any key, and stores unknown ones as attributes that nothing reads.

    The code of many models reads a field that their config class does not declare (``head_dim``).
    """
    given = config.model.config
    known = {field.name for field in dataclasses.fields(type(arch))} | set(arch.attribute_map)
    unread = [key for key in given if key not in known and key in vars(arch) and not _reads(model, key)]
    if unread:
        near = nearest(unread[0], known, MIN_SIMILARITY)
        raise ConfigError(
            f"model.config.{unread[0]} is not a field of a {arch.model_type} config", "fields that the model reads",
            f"model.config.{near[0]}={given[unread[0]]}" if near else f"remove model.config.{unread[0]}",
        )  # fmt: skip


def _reads(model: PreTrainedModel, key: str) -> bool:
    """Return whether the code of a model reads a field of its config."""
    code = inspect.getsource(sys.modules[type(model).__module__])
    return re.search(rf'config(, "|\.){re.escape(key)}\b', code) is not None


def build_on_meta(config: RunConfig) -> PreTrainedModel:
    """Return the model of a config without weights.

    Raises:
        ConfigError: The model cannot be built.
    """
    return _build(config, model_config(config), "meta")


def _build(config: RunConfig, arch: PretrainedConfig, device: str,
           dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:  # fmt: skip
    try:
        with torch.device(device):
            model: PreTrainedModel = build(arch, dtype=dtype)
            return model
    except Exception as error:  # invalid values raise many kinds of exceptions
        raise _cannot_build(config, error) from error


@torch.no_grad()
def _run_forward(config: RunConfig, arch: PretrainedConfig) -> None:
    """Run one forward in fp32: some sizes that contradict each other cause an error only here."""
    model = _build(config, arch, "cpu", torch.float32)
    try:
        model.eval()(input_ids=torch.zeros(1, TRIAL_TOKENS, dtype=torch.long), use_cache=False)
    except Exception as error:
        raise _cannot_build(config, error) from error


def _cannot_build(config: RunConfig, error: Exception) -> ConfigError:
    if isinstance(error, ImportError):
        reason = (str(error).strip().splitlines() or [""])[0][:200].split(" You can install it")[0]
        command = re.search("`(pip install [^`]+)`", str(error))
        return ConfigError(f"{_where(config)}: the code of the model needs a library that is not installed: {reason}",
                           "every library that the code of the model imports",
                           command[1] if command else "install the library")  # fmt: skip
    reason = reason_of(error)
    found = f"cannot build a model from {_where(config)}: {reason}"
    if cause := possible_cause(config, reason):
        return ConfigError(f"{found} ({cause.describe()} may be the cause)", cause.expected, correction(config, cause))
    return ConfigError(found, "consistent sizes (the heads divide hidden_size, no size is 0)",
                       "correct model.config" if config.model.config else "use another model")  # fmt: skip


def _where(config: RunConfig) -> str:
    return "model.config" if config.model.config else model_location(config)


def _facts(arch: PretrainedConfig, model: PreTrainedModel) -> ModelFacts:
    text = arch.get_text_config()
    limit = getattr(text, "max_position_embeddings", getattr(text, MPT_LENGTH, None))
    limit = limit if isinstance(limit, int) and limit > 0 else None
    padding = position_padding(model)
    if limit is not None and padding is not None:
        limit -= padding + 1  # no token uses the first rows of its position table
    parameters = sum(parameter.numel() for parameter in model.parameters())
    others = sum(parameter.numel() for part in other_parts(model).values() for parameter in part)
    return ModelFacts(
        model_type=arch.model_type,
        parameters=parameters,
        max_positions=limit,
        has_position_table=limit is not None and (arch.model_type == "mpt" or _has_position_table(model, limit)),
        recomputes=bool(model.supports_gradient_checkpointing),
        trained=parameters - others if others else None,
    )


def _has_position_table(model: PreTrainedModel, limit: int) -> bool:
    """Whether positions are rows of a table: a weight or buffer with a matching name and length."""
    others = {id(parameter) for part in other_parts(model).values() for parameter in part}
    tensors = [*((n, p) for n, p in model.named_parameters() if id(p) not in others), *model.named_buffers()]
    return any(
        ("pos" in name or "wpe" in name)
        and tensor.dim() == 2
        and limit <= tensor.shape[0] <= limit + MAX_EXTRA_POSITIONS
        for name, tensor in tensors
    )
