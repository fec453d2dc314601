"""Load a causal language model: from a folder, the hub, or random from a config; under ZeRO-3 shard by shard."""

import hashlib
import pickle
from typing import Any, Dict, Optional

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention, Precision, RunConfig
from ftdist.model.attention import implementation
from ftdist.model.vocabulary import whole
from ftdist.run.locations import model_location

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}

# HfDeepSpeedConfig must outlive from_pretrained: transformers holds it by a weak reference.
_zero3_registration: Optional[Any] = None


def model_config(config: RunConfig) -> PretrainedConfig:
    """
    Raises:
        ConfigError: transformers does not know the model type, or cannot read the folder or hub repository.
    """
    model = config.model
    try:
        if model.config:
            fields = dict(model.config)
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
        return AutoConfig.from_pretrained(
            model_location(config), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # transformers' own validation raises many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if model.config:  # a validator's complaint has its reason in the last line
            raise ConfigError(f"model.config: {lines[-1].strip()[:200]}", "values that the model type takes",
                              "mend model.config") from error  # fmt: skip
        raise ConfigError(f"{model_location(config)}: {lines[0][:200]}", "a model that transformers can load",
                          "check model.path or model.hub") from error  # fmt: skip


def load_model(
    config: RunConfig, arch: PretrainedConfig, backend: Attention, zero_settings: Dict[str, Any],
    load_options: Optional[Dict[str, Any]] = None,
) -> PreTrainedModel:  # fmt: skip
    """The model in the run's precision, in training mode, gradient checkpointing set. With ZeRO-3 no rank ever holds
    the whole model: parameters are sharded as they are created and each tensor is read by one rank.

    Args:
        load_options: Further arguments of ``from_pretrained``, from the method.

    Raises:
        ConfigError: weights are missing from the folder, or a weights file does not hold tensors alone.
    """
    _register_zero3(zero_settings)
    torch.manual_seed(config.seed)
    dtype = DTYPES[config.train.precision]
    attention = implementation(backend, arch)
    if config.model.config:
        model = AutoModelForCausalLM.from_config(arch, dtype=dtype, attn_implementation=attention)
        _draw_weights(model, config.seed)
    else:
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                model_location(config), config=arch, dtype=dtype, attn_implementation=attention,
                revision=config.model.revision, trust_remote_code=config.model.trust_remote_code,
                output_loading_info=True, **(load_options or {}),
            )  # fmt: skip
        except (pickle.UnpicklingError, SafetensorError) as error:
            found = f"a weights file of {model_location(config)} does not hold tensors alone: {_reason(error)}"
            raise ConfigError(found, "*.safetensors, or a *.bin that holds nothing else", "another model") from error
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise ConfigError(f"{model_location(config)} lacks {len(report['missing_keys'])} weights ({some} …)",
                              "every weight of the model", "use a complete model folder")  # fmt: skip
    model.config.use_cache = False
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _reason(error: Exception) -> str:
    """The line that names what the file wanted to call; the rest of torch's text is how to let it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "GLOBAL" in line), lines[0])[:200]


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw each matrix anew from (seed, its name), with the standard deviation that transformers uses: the same weights
    however the model is sharded. Under ZeRO-3 transformers' own initialisation depends on the order of creation."""
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    for name, weight in model.named_parameters():
        shape = getattr(weight, "ds_shape", weight.shape)
        if len(shape) > 1:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            with whole([weight]):
                if weight.shape[0]:
                    weight.copy_(torch.empty(shape).normal_(0.0, std, generator=draw))


def _register_zero3(settings: Dict[str, Any]) -> None:
    global _zero3_registration
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    build_whole()
    if settings["zero_optimization"]["stage"] == 3:
        _zero3_registration = HfDeepSpeedConfig(settings)


def build_whole() -> None:
    """From here on transformers builds models whole again, after a run with ZeRO-3."""
    global _zero3_registration
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    _zero3_registration = None
