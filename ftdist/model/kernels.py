"""Replace parts of a model by Liger's kernels (``model.kernels=liger``): norms, the MLP, rotary embeddings.

Liger's own functions patch a model. They replace the forward pass of its norms and MLPs. Rotary embeddings are a
function of the Python module of the model class, which all models of this class in the process share, so Liger replaces
the function there. Here the original functions are put back at once, and only the attention modules of this model
call Liger's function. So a reference model in the same process still runs plain transformers.

Before training, the kernels are compared with plain transformers on a stand-in (``ftdist.model.exactness``).
"""

import inspect
import logging
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from types import FunctionType
from typing import Any, Callable, Dict, List, Optional

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.config.schema import Kernels, RunConfig
from ftdist.model.attention_plan import AttentionPlan
from ftdist.model.exactness import ROUGH, Tolerance, Trial
from ftdist.model.interpreted_kernels import prepare_interpreter
from ftdist.model.load import build_whole
from ftdist.model.plan_choice import standin_fields
from ftdist.model.reasons import reason_of
from ftdist.model.routers import has_experts
from ftdist.model.standin import Unfit
from ftdist.plan.kernels import check_kernels, interpreted

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Liger's losses are not used: the loss is that of ``ftdist.objective``."""
EXPERTS = "swiglu"
"""Liger's name for MLPs and experts. Experts stay as they are: ZeRO-3 may gather them in groups."""
CLOSE = Tolerance(loss=1e-2, gradient=1e-1)
"""Largest relative differences in bf16. Where a model has experts, ``ROUGH``: a token may go to another expert."""
ROTARY = "rotary embeddings"


@dataclass(frozen=True)
class Proof:
    """The differences between a stand-in with the kernels and plain transformers, in fp32."""

    loss: float
    """Relative difference of the loss."""
    gradient: float
    """Largest relative difference of a parameter's gradient."""


def use_kernels(model: PreTrainedModel) -> None:
    """Make a model use Liger's kernels, and leave every other model as it is.

    ``ftdist_kernels`` of the model is then the number of modules that use each kernel.

    Raises:
        ConfigError: Liger is not installed, does not know the model, or does not fit its class.
    """
    patch = _function_of(model.config.model_type)
    off = (*LOSSES, EXPERTS) if has_experts(model.config) else LOSSES
    known = inspect.signature(patch).parameters
    # The first call imports the Python modules that the second one changes.
    patch(**{name: False for name, one in known.items() if isinstance(one.default, bool)})
    before = {name: dict(vars(sys.modules[name])) for name in _model_code()}
    try:
        patch(model=model, **{name: False for name in off if name in known})
    except Exception as error:  # a version of transformers that Liger does not know
        found = f"Liger cannot patch a {model.config.model_type} model: {type(error).__name__}: {error}"
        raise ConfigError(found.splitlines()[0][:200], "a version of liger-kernel for this version of transformers",
                          "model.kernels=none") from error  # fmt: skip
    finally:
        changed = {name: _restore(name, own) for name, own in before.items()}
    used = Counter(module._get_name() for module in model.modules() if "_get_name" in vars(module))
    used[ROTARY] = sum(_call_instead(module, changed.get(type(module).__module__, {})) for module in model.modules())
    if not used.total():
        raise ConfigError(f"model.kernels=liger, but Liger replaces nothing in a {model.config.model_type} model",
                          "a model with parts that Liger replaces", "model.kernels=none")  # fmt: skip
    model.ftdist_kernels = dict(+used)


def prove_kernels(
    config: RunConfig, arch: PretrainedConfig, plan: AttentionPlan, device: torch.device, dtype: torch.dtype,
    one_document: bool,
) -> Optional[Proof]:  # fmt: skip
    """Compare the kernels with plain transformers on a small stand-in: the loss and the gradient of each parameter.

    Returns None if the run uses none.

    Args:
        arch: Config of the model.
        plan: How documents run through the model.
        device: Device that the model is trained on.
        dtype: Type of the weights.
        one_document: A micro-batch never contains more than one document.

    Raises:
        ConfigError: The kernels cannot be used here, or they give other numbers.
    """
    if config.model.kernels is Kernels.none:
        return None
    check_kernels(config.model.kernels, device.type)
    _function_of(arch.model_type)
    build_whole()  # only one rank builds the stand-in, so it must not be sharded
    try:
        trial = Trial(standin_fields(config, arch)[0], device, one_document, arch)
        rough = ROUGH if has_experts(arch) else CLOSE
        loss, gradient, problem = trial.measure_changed(plan, dtype, use_kernels, rough)
    except ConfigError:
        raise
    except Exception as error:  # the stand-in is of no use, or a kernel does not run on this device
        reason = f"this {error.reason}" if isinstance(error, Unfit) else reason_of(error)
        raise ConfigError("model.kernels=liger, but its numbers cannot be compared with plain transformers on a small "
                          f"{arch.model_type} model: {reason}",
                          "a model and a device with which Liger's kernels run",
                          "model.kernels=none") from error  # fmt: skip
    if problem:
        raise ConfigError(f"with model.kernels=liger, a small {arch.model_type} model does not give the numbers of "
                          f"plain transformers: {problem}", "numbers that differ by rounding only",
                          "model.kernels=none")  # fmt: skip
    return Proof(loss, gradient)


def describe_kernels(model: Any, proof: Optional[Proof]) -> List[str]:
    """Return the line that says what is replaced, and what the comparison measured; none if nothing is replaced."""
    if proof is None:
        return []
    used: Dict[str, int] = model.ftdist_kernels
    parts = ", ".join(f"{number} × {name}" for name, number in used.items() if name != ROTARY)
    rotary = f"{ROTARY} in {count(used[ROTARY], 'layer')}" if ROTARY in used else ""
    return [f"kernels: Liger {version('liger-kernel')}: {', '.join(filter(None, [parts, rotary]))}; on a stand-in in "
            f"fp32 the loss is off by {proof.loss:.1g}, a gradient by {proof.gradient:.1g}"]  # fmt: skip


def _function_of(model_type: str) -> Callable[..., None]:
    """Return Liger's function for a family of models."""
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as functions
    except Exception as error:  # a library that does not fit the machine raises several kinds
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"model.kernels=liger needs liger-kernel: {reason}", "liger-kernel 0.8",
                          "pip install 'ftdist[liger]', or model.kernels=none") from error  # fmt: skip
    if model_type not in functions:
        raise ConfigError(f"model.kernels=liger, but Liger has no kernels for {model_type}",
                          f"one of {', '.join(sorted(functions))}", "model.kernels=none")  # fmt: skip
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns about kernels for other hardware
    if interpreted():
        prepare_interpreter()
    found: Callable[..., None] = functions[model_type]
    return found


def _model_code() -> List[str]:
    """Return the names of the Python modules with model classes that are imported."""
    return [name for name in sys.modules if name.startswith("transformers.models.") and ".modeling_" in name]


def _restore(name: str, own: Dict[str, Any]) -> Dict[str, Any]:
    """Give a Python module its own values back. Returns the functions that were in their place, by name."""
    module = vars(sys.modules[name])
    changed = {key: value for key, value in module.items() if own.get(key) is not value}
    for key in changed:
        if key in own:
            module[key] = own[key]
        else:
            del module[key]
    return {key: value for key, value in changed.items() if not isinstance(value, type) and callable(value)}


def _call_instead(module: torch.nn.Module, functions: Dict[str, Any]) -> bool:
    """Make the forward pass of a module call other functions in place of those of its Python module.

    Returns whether it calls one of them.
    """
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or not functions.keys() & set(forward.__code__.co_names):
        return False
    values = {**forward.__globals__, **functions}
    copy = FunctionType(forward.__code__, values, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__, copy.__annotations__ = forward.__kwdefaults__, forward.__annotations__
    module.forward = copy.__get__(module)  # type: ignore[method-assign]
    return True
