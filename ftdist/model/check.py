"""Whether a model can be fine-tuned, before anything starts: ``python -m ftdist.model.check -`` (config on stdin).

The model is built on the meta device, where it has shapes and no weights, so this takes seconds for any size. What
cannot be built, is no causal language model or reads in both directions is refused here; what is found is kept in the
cache (``ftdist.run.model_facts``).
"""

import dataclasses
import sys
from typing import List

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from ftdist.base.errors import ConfigError, FtdistError
from ftdist.base.names import nearest
from ftdist.config.frozen import parse_config
from ftdist.config.schema import RunConfig
from ftdist.model.load import model_config
from ftdist.run.locations import model_location
from ftdist.run.model_facts import ModelFacts, write_facts

CAUSAL = "a decoder-only language model, e.g. llama, qwen3, gpt2"
NEAR = 0.8
TRIED_PARAMETERS, TRIED_TOKENS = 100_000_000, 8
OFFSET_ROWS = 8
"""A table of positions may have a few rows more than positions (OPT: 2)."""


def check_model(config: RunConfig) -> ModelFacts:
    """
    Raises:
        ConfigError: ``model.config`` has a key or value that makes no model, or the model is not a causal one.
    """
    if config.model.config:
        _check_model_type(config)
    arch = model_config(config)
    own_code = getattr(arch, "auto_map", None) or {}
    if type(arch) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code:
        raise ConfigError(f"{_where(config)}: transformers has no causal language model of the type {arch.model_type}",
                          CAUSAL, "another model")  # fmt: skip
    model = _build(config, arch, "meta")
    _check_direction(config, model)
    facts = _facts(arch, model)
    if config.model.config:  # what others have trained has run before
        _check_keys(config, arch)
        if facts.parameters <= TRIED_PARAMETERS:
            _try_forward(config, arch)
    return facts


def _check_model_type(config: RunConfig) -> None:
    model_type = config.model.config.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    near = nearest(str(model_type), CONFIG_MAPPING)
    found = "model.config.model_type is not set"
    if model_type is not None:
        found = f"model.config.model_type={model_type} is not one that transformers knows"
    raise ConfigError(found, CAUSAL, f"model.config.model_type={near[0] if near else 'llama'}")


def _check_direction(config: RunConfig, model: PreTrainedModel) -> None:
    """Encoders can be made decoders by ``is_decoder``. GPT-NeoX has the field too, and no layer that reads it."""
    layers_read_it = any(getattr(module, "is_decoder", None) is False for module in model.modules())
    if layers_read_it and getattr(model.config, "is_decoder", None) is False:
        raise ConfigError(
            f"{_where(config)}: {model.config.model_type} reads a text in both directions", CAUSAL,
            "model.config.is_decoder=true, or another model" if config.model.config else "another model",
        )  # fmt: skip


def _check_keys(config: RunConfig, arch: PretrainedConfig) -> None:
    """transformers takes any key, and keeps those that it does not know as attributes that nothing reads."""
    given = config.model.config
    known = {field.name for field in dataclasses.fields(type(arch))} | set(arch.attribute_map)
    unread = [key for key in given if key not in known and key in vars(arch)]
    if unread:
        near = nearest(unread[0], known, NEAR)
        raise ConfigError(
            f"model.config.{unread[0]} is not a field of a {arch.model_type} config", "fields that the model reads",
            f"model.config.{near[0]}={given[unread[0]]}" if near else f"remove model.config.{unread[0]}",
        )  # fmt: skip


def _build(config: RunConfig, arch: PretrainedConfig, device: str) -> PreTrainedModel:
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(
                arch, dtype=torch.bfloat16, trust_remote_code=config.model.trust_remote_code
            )
    except Exception as error:  # wrong values raise whatever they run into
        raise _no_model(config, error) from error


@torch.no_grad()
def _try_forward(config: RunConfig, arch: PretrainedConfig) -> None:
    """Sizes that do not fit each other show only when the model runs."""
    model = _build(config, arch, "cpu")
    try:
        model.eval()(input_ids=torch.zeros(1, TRIED_TOKENS, dtype=torch.long), use_cache=False)
    except Exception as error:
        raise _no_model(config, error) from error


def _no_model(config: RunConfig, error: Exception) -> ConfigError:
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return ConfigError(f"{_where(config)} makes no model: {type(error).__name__}: {said}",
                       "sizes that fit each other (heads divide hidden_size, nothing is 0)",
                       "mend model.config" if config.model.config else "another model")  # fmt: skip


def _where(config: RunConfig) -> str:
    return "model.config" if config.model.config else model_location(config)


def _facts(arch: PretrainedConfig, model: PreTrainedModel) -> ModelFacts:
    limit = getattr(arch.get_text_config(), "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) and limit > 0 else None
    return ModelFacts(
        model_type=arch.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        max_positions=limit,
        has_position_table=limit is not None and _has_position_table(model, limit),
        recomputes=bool(model.supports_gradient_checkpointing),
    )


def _has_position_table(model: PreTrainedModel, limit: int) -> bool:
    """A weight or buffer of a row for each position, by its name and length."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return any(
        ("pos" in name or "wpe" in name) and tensor.dim() == 2 and limit <= tensor.shape[0] <= limit + OFFSET_ROWS
        for name, tensor in tensors
    )


def main(argv: List[str]) -> int:
    import transformers

    assert argv == ["-"], "the config comes on standard input"
    transformers.logging.set_verbosity_error()
    try:
        config = parse_config(sys.stdin.read(), "standard input")
        write_facts(config, check_model(config))
    except FtdistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
