"""Gradient checkpointing: what a layer keeps for the backward pass, and what the backward pass computes again.

transformers runs each layer through ``torch.utils.checkpoint``: only the inputs of the layer are kept, and its forward
runs again when the backward pass needs the rest. Here the outputs of attention may be kept too, only every n-th layer
may be recomputed, and what is kept may wait in host memory (``ftdist.model.host_copies``).
"""

from collections import deque
from contextlib import AbstractContextManager
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Recompute, TrainConfig
from ftdist.model.attention import DOCUMENTS, VARLEN
from ftdist.model.attention_plan import AttentionPlan
from ftdist.model.host_copies import HostCopies

ATTENTION = {
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn",
}  # fmt: skip
"""The operators that compute attention. Their backward needs their inputs, which are recomputed, and their outputs."""
KEEPING = (DOCUMENTS, VARLEN, "sdpa")
"""Implementations of attention that call these operators."""


def set_recomputation(model: PreTrainedModel, settings: TrainConfig, plan: AttentionPlan) -> None:
    """Set what the layers of a model keep in training.

    Args:
        plan: How documents run through the model.

    Raises:
        ConfigError: The layers of the model cannot be recomputed one by one.
    """
    if settings.gradient_checkpointing is Recompute.none:
        return
    copies = HostCopies() if settings.offload_activations else None
    arguments: Dict[str, Any] = {"use_reentrant": False}
    if keeps_attention(settings, plan):
        arguments["context_fn"] = lambda: _keep_attention(copies)
    model.gradient_checkpointing_enable(arguments)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if settings.recompute_every > 1 and not layers:
        raise ConfigError(f"train.recompute_every={settings.recompute_every}, but {model.config.model_type} recomputes "
                          "all layers or none", "a model whose layers transformers can recompute one by one",
                          "train.recompute_every=1")  # fmt: skip
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % settings.recompute_every == 0
    if copies:
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = _with_inputs_in(copies, module._gradient_checkpointing_func)


def keeps_attention(settings: TrainConfig, plan: AttentionPlan) -> bool:
    """Return whether recomputed layers keep the outputs of their attention."""
    return settings.gradient_checkpointing is Recompute.selective and plan.implementation in KEEPING


def _with_inputs_in(copies: HostCopies, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        copies.begin_layer()
        # Inside, checkpoint has hooks of its own for what the layer saves. These hooks get the inputs of the layer.
        with torch.autograd.graph.saved_tensors_hooks(copies.pack, copies.unpack):
            return checkpoint(*args, **kwargs)

    return run


def _keep_attention(copies: Optional[HostCopies]) -> Tuple[AbstractContextManager, AbstractContextManager]:
    """Return the contexts for the forward of a layer and for its recomputation.

    PyTorch's ``create_selective_checkpoint_contexts`` does the same, but it counts every operator, and expects the same
    ones in the recomputation. With ZeRO-3 they differ, because parameters are gathered at other moments.
    """
    kept: Deque[List[Any]] = deque()
    return _Keep(kept, copies), _Replay(kept, copies)


class _BesideCompiled(TorchDispatchMode):
    """A dispatch mode that lets PyTorch compile layers inside it (``ftdist.model.compiled``). Other modes do not."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


class _Keep(_BesideCompiled):
    """Keeps what attention returns."""

    def __init__(self, kept: Deque[List[Any]], copies: Optional[HostCopies]) -> None:
        super().__init__()
        self._kept, self._copies = kept, copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if is_kept(func, args, kwargs or {}):
            self._kept.append([self._pack(output) for output in outputs])
        return outputs

    def _pack(self, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            return output
        alias = output.detach()  # autograd will write to the tensor that is returned
        return self._copies.pack(alias) if self._copies else alias


class _Replay(_BesideCompiled):
    """Returns what was kept in place of computing attention again."""

    def __init__(self, kept: Deque[List[Any]], copies: Optional[HostCopies]) -> None:
        super().__init__()
        self._kept, self._copies = kept, copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_kept(func, args, kwargs or {}):
            return func(*args, **(kwargs or {}))
        outputs = self._kept.popleft()
        return tuple(self._copies.unpack(output) if self._copies else output for output in outputs)


def is_kept(func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> bool:
    """Return whether the outputs of an operator are kept.

    The outputs of attention with dropout are not kept. The recomputation must run such attention again, so that later
    operators of the layer draw the same random numbers as in the forward pass.
    """
    schema = func._schema
    if schema.name not in ATTENTION:
        return False
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    return not given.get("dropout_p")
