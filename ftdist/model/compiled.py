"""Compile the layers of a model with PyTorch's compiler (``train.compile=layers``).

Each layer is compiled below its hooks and below gradient checkpointing. A hook of the layer gathers the weights of
ZeRO-3 before the compiled code runs, so that the code never sees a sharded parameter. For this, ZeRO-3 must gather a
layer as a whole (``ftdist.engine.engine`` asks for it). Gradient checkpointing runs the compiled code again.

Only training runs the compiled code. Evaluation and sampling run the layer as it is.
"""

import time
from collections import Counter
from functools import wraps
from typing import Any, Callable, Dict, List, Optional, Type

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ftdist.base import counts
from ftdist.base.errors import ConfigError
from ftdist.model.attention import DOCUMENTS, documents_attention
from ftdist.model.attention_plan import Layout
from ftdist.model.forward import plan_of
from ftdist.model.quantized import is_quantized
from ftdist.model.vocabulary import whole_shape

BACKEND = "inductor"
RECOMPILE_LIMIT = 64
"""How often PyTorch compiles one function before it gives up and runs it as it is. Its own limit of 8 is too small for
models whose layers are of several kinds."""


class Compiled:
    """The compiled layers of a model, and the time that it took to compile them."""

    def __init__(self) -> None:
        self.layers: List[torch.nn.Module] = []
        self.left_out: Dict[str, int] = Counter()
        """Number of layers that are not compiled, by reason."""
        self.count, self.seconds = 0, 0.0
        """Compilations so far, and their time."""
        self._started, self._said = 0.0, (0, 0.0)

    def news(self) -> str:
        """Return what was compiled since the last call, as text; "" for nothing."""
        count, seconds = self.count - self._said[0], self.seconds - self._said[1]
        self._said = self.count, self.seconds
        return f"compiled {counts.count(count, 'part')} of layers in {seconds:.1f} s" if count else ""

    def begin(self, *_: Any) -> None:
        """Note that PyTorch begins to compile a part of a layer."""
        self._started = time.perf_counter()

    def end(self, about: Any) -> None:
        """Note that PyTorch has compiled a part. Its backward pass may be compiled later, and is no part of its own."""
        self.count += about.callback_trigger.name == "DYNAMO"
        self.seconds += time.perf_counter() - self._started


def compile_layers(model: PreTrainedModel, sharded: bool = False) -> Compiled:
    """Make a model run its layers compiled in training. They are compiled when they first run.

    Args:
        sharded: Whether ZeRO-3 shards the parameters.

    Raises:
        ConfigError: The model has no such layers, there is no compiler on this machine, or the parameters are sharded
            and documents run in one forward pass each.
    """
    _require_compiler()
    if sharded and plan_of(model).layout is Layout.alone:
        # If a module is gathered as a whole, DeepSpeed reduces its gradients after its first backward pass of a step.
        raise ConfigError("train.compile=layers at zero.stage=3: each document of this model needs a forward pass of "
                          "its own, and a layer that ZeRO-3 gathers as a whole can run only once in a step",
                          "zero.stage up to 2, or layers that are not compiled", "train.compile=none")  # fmt: skip
    compiled, classes = Compiled(), {}
    for layer in outermost_layers(model):
        if why := _why_not(layer):
            compiled.left_out[why] += 1
            continue
        kind = type(layer)
        if kind not in classes:
            classes[kind] = _compiled_class(kind)
        layer.__class__ = classes[kind]
        compiled.layers.append(layer)
    if not compiled.layers:
        why = "; ".join(compiled.left_out) or "transformers does not run its layers one by one"
        raise ConfigError(f"train.compile=layers, but no layer of {model.config.model_type} can be compiled: {why}",
                          "a model with such layers", "train.compile=none")  # fmt: skip
    from torch._dynamo import callback, config

    # The loop over documents in this function would be compiled again for each number of documents.
    AttentionInterface.register(DOCUMENTS, torch.compiler.disable(documents_attention))
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    callback.on_compile_start(compiled.begin)
    callback.on_compile_end(compiled.end)
    return compiled


def outermost_layers(model: torch.nn.Module) -> List[torch.nn.Module]:
    """Return the layers of a model, without layers that are inside others."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if id(layer) not in inside]


def _why_not(layer: torch.nn.Module) -> Optional[str]:
    """Return why a layer is not compiled; None if it is."""
    if any(len(whole_shape(p)) > 2 for p in layer.parameters()):
        return "the number of tokens of an expert changes"
    if any(is_quantized(p) for p in layer.parameters()):
        return "its weights are quantized"
    return None


def _compiled_class(kind: Type[torch.nn.Module]) -> Type[torch.nn.Module]:
    """Return the class of a layer with a compiled forward. Its base adds gradient checkpointing around it."""
    plain = kind.forward
    while plain.__code__.co_name == "forward_with_checkpointing":
        plain = plain.__wrapped__  # type: ignore[attr-defined]
    run: Callable[..., Any] = torch.compile(plain, dynamic=True, backend=BACKEND)

    @wraps(plain)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        training = self.training and torch.is_grad_enabled()
        return (run if training else plain)(self, *args, **kwargs)

    names = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


def _require_compiler() -> None:
    if torch.cuda.is_available():  # there, PyTorch compiles with Triton
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError("train.compile=layers, but there is no C++ compiler on this machine",
                          "a compiler such as g++", "install g++, or train.compile=none") from error  # fmt: skip
