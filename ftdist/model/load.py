"""Load a causal language model from a folder or the hub, or create one with random weights from a config.

With ZeRO-3, parameters are sharded while they are created.
"""

import pickle
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention, Precision, RunConfig
from ftdist.config.zero import ModelState
from ftdist.model.adapter import fold_adapter
from ftdist.model.attention_plan import AttentionPlan, Layout
from ftdist.model.config_values import shown_field, unknown_type
from ftdist.model.finite import check_finite
from ftdist.model.forward import set_plan
from ftdist.model.parts import auto_class, build, unread_weights
from ftdist.model.random_weights import draw_weights, drawn_vectors
from ftdist.model.reasons import pickle_reason, reason_of
from ftdist.model.recompute import set_recomputation
from ftdist.model.sharded_load import whole_shapes, whole_values
from ftdist.model.weights_fit import check_loaded, other_shapes, size_mismatch
from ftdist.plan.communication import without_sizes
from ftdist.run.base_model import base_identity
from ftdist.run.locations import model_location

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}
"""Type of weights and activations for each ``train.precision``."""

_AS_IT_IS = AttentionPlan(Attention.rows, None, Layout.alone)
_UNFIT = (ValueError, IndexError, TypeError, KeyError, AttributeError)
"""Errors of model classes that read the shape of a weight while the model is created. With ZeRO-3 this shape is [0]."""

# transformers keeps only a weak reference to HfDeepSpeedConfig, so it must stay alive here during from_pretrained.
_zero3_registration: Optional[Any] = None


def model_config(config: RunConfig) -> PretrainedConfig:
    """Return the transformers config of the run's model.

    Raises:
        ConfigError: transformers does not know the model type, rejects a value of ``model.config``, or cannot read the
            folder or hub repository.
    """
    model = config.model
    try:
        if model.config:
            fields = dict(model.config)
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
        arch = AutoConfig.from_pretrained(
            model_location(config), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # the validation of transformers raises many kinds of exceptions
        reason, location = reason_of(error), model_location(config)
        if "does not recognize this architecture" in str(error):
            raise unknown_type(config) from error
        if "trust_remote_code" in str(error):
            raise ConfigError(f"{location}: Python code in this folder or repository builds the model",
                              "a model that transformers builds",
                              "model.trust_remote_code=true, if you trust the author") from error  # fmt: skip
        if not model.config and (isinstance(error, (OSError, ImportError)) or model.trust_remote_code):
            raise ConfigError(f"{location}: {reason}", "a model that transformers can load",
                              "check model.path or model.hub") from error  # fmt: skip
        place = "model.config" if model.config else f"{location}/config.json"
        fix = "correct model.config" if model.config else "correct config.json in a local copy of the model"
        raise ConfigError(f"{place}: {reason}{shown_field(config, reason)}", "values that the model type supports",
                          fix) from error  # fmt: skip
    if not model.trust_remote_code and hasattr(arch, "auto_map"):
        del arch.auto_map  # names of classes in files that are not read
    return arch


def load_model(
    config: RunConfig, arch: PretrainedConfig, plan: AttentionPlan, zero_settings: Dict[str, Any],
    load_options: Optional[Dict[str, Any]] = None,
) -> PreTrainedModel:  # fmt: skip
    """Return the run's model in its precision, in training mode, with gradient checkpointing as configured.

    With ZeRO-3, no rank ever holds the whole model: parameters are sharded as they are created, and each tensor is read
    by one rank.

    Args:
        arch: Config of the model, from ``model_config``.
        plan: How documents run through the model, from ``ftdist.model.exactness.choose_plan``.
        zero_settings: The dict that DeepSpeed is initialized with.
        load_options: Further arguments of ``from_pretrained``, from the method.

    Raises:
        ConfigError: Weights are missing from the folder or are not finite, or a weights file is damaged or contains
            more than tensors.
    """
    _register_zero3(zero_settings)
    torch.manual_seed(config.seed)
    try:
        model = _build_or_read(config, arch, plan, load_options or {})
    except _UNFIT as error:
        if "does not support an attention implementation" in str(error):
            raise ConfigError(f"{arch.model_type} does not support the attention {plan.describe()}",
                              "an attention that the model has", "model.attention=auto") from error  # fmt: skip
        if not ModelState.parameters.is_sharded(zero_settings["zero_optimization"]["stage"]):
            raise
        found = f"transformers cannot load a {arch.model_type} model with ZeRO-3: {reason_of(error, 160)}"
        raise ConfigError(found, "a model that can be sharded while it is created",
                          "zero.stage=2") from error  # fmt: skip
    return ready_to_train(model, config, plan)


def ready_to_train(model: PreTrainedModel, config: RunConfig, plan: AttentionPlan) -> PreTrainedModel:
    """Return a model in training mode that runs documents as ``plan`` says, with gradient checkpointing as configured.

    Its attention implementation must be that of the plan.
    """
    model.config.use_cache = False
    set_plan(model, plan)
    set_recomputation(model, config.train, plan)
    trained: PreTrainedModel = model.train()
    return trained


def load_whole(config: RunConfig) -> PreTrainedModel:
    """Return the run's model in its precision, whole in this process, as transformers runs it.

    Raises:
        ConfigError: See ``load_model``.
    """
    build_whole()
    return _build_or_read(config, model_config(config), _AS_IT_IS, {})


def _build_or_read(
    config: RunConfig, arch: PretrainedConfig, plan: AttentionPlan, load_options: Dict[str, Any]
) -> PreTrainedModel:
    """Return the model with random weights, or with the weights of its folder or hub repository.

    An adapter that ``model.adapter`` names is added to them.
    """
    dtype = DTYPES[config.train.precision]
    if config.model.config:
        vectors = _drawn_vectors(arch, config.seed)
        model = build(arch, dtype=dtype, attn_implementation=plan.implementation)
        draw_weights(model, config.seed, vectors)
        return _with_adapter(model, config)
    try:
        with whole_shapes(), whole_values(), unread_weights() as unread:
            model, report = auto_class(arch).from_pretrained(
                model_location(config), config=arch, dtype=dtype, attn_implementation=plan.implementation,
                revision=config.model.revision, trust_remote_code=config.model.trust_remote_code,
                output_loading_info=True, ignore_mismatched_sizes=True, **load_options,
            )  # fmt: skip
    except RuntimeError as error:
        if (detail := size_mismatch(error)) is None:
            raise
        raise other_shapes(config, detail) from error
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename or error} does not exist, but an index of weights names it",
                          "every weights file of the model", "use a complete model folder") from error  # fmt: skip
    except (pickle.UnpicklingError, SafetensorError) as error:
        found = f"a weights file of {model_location(config)} is damaged or contains more than tensors: "
        raise ConfigError(found + pickle_reason(error), "*.safetensors, or a *.bin that contains tensors only",
                          "use another model") from error  # fmt: skip
    check_loaded(config, model, report, unread)
    check_finite(model, model_location(config))
    model.ftdist_unread = unread
    _freeze_fixed(model, config, arch)
    return _with_adapter(model, config)


def identity_of_base(config: RunConfig, first: bool = False) -> str:
    """Return the identity of the base model of a run (see ``ftdist.run.base_model.base_identity``)."""
    drawn = bool(config.model.config) and bool(_drawn_vectors(model_config(config), config.seed))
    return base_identity(config, first=first, drawn=drawn)


def _drawn_vectors(arch: PretrainedConfig, seed: int) -> Dict[str, torch.Tensor]:
    """Return the result of ``drawn_vectors``. Meanwhile transformers builds models without sharding."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        return drawn_vectors(arch, seed)
    finally:
        if _zero3_registration is not None:
            set_hf_deepspeed_config(_zero3_registration)


def _with_adapter(model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
    if config.model.adapter:
        fold_adapter(model, Path(config.model.adapter))
    return model


def _freeze_fixed(model: PreTrainedModel, config: RunConfig, arch: PretrainedConfig) -> None:
    """Freeze the parameters that the model class itself does not train (see ``ftdist.model.fixed``).

    transformers makes them trainable when it reads weights, except with ZeRO-3. Checkpoints must not depend on that.
    """
    if hasattr(next(model.parameters()), "ds_id"):
        return
    with torch.device("meta"):
        plain = build(arch)
    fixed = {name for name, parameter in plain.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in fixed:
            parameter.requires_grad_(False)


def _register_zero3(settings: Dict[str, Any]) -> None:
    global _zero3_registration
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    build_whole()
    if ModelState.parameters.is_sharded(settings["zero_optimization"]["stage"]):
        _zero3_registration = HfDeepSpeedConfig(without_sizes(settings))


def build_whole() -> None:
    """Make transformers build models without sharding again, after a model was loaded with ZeRO-3."""
    global _zero3_registration
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    _zero3_registration = None
