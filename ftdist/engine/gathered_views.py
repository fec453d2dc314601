"""Keep autograd from holding gathered weights of ZeRO-3 between the forward and the backward pass.

DeepSpeed frees the gathered weights of a module at the end of its forward, and gathers them again for its backward. But
transformers multiplies with views of the fused weights of experts (transposed, or the slice of one expert), and
autograd saves such a view with its memory. Without gradient checkpointing, the whole experts of all layers would be in
memory at the end of the forward. Here autograd saves which part of which parameter a view is, and the backward takes
this part of the weights that are gathered then.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch

from ftdist.model.vocabulary import whole_shape


class _Part(NamedTuple):
    """A view of a parameter."""

    parameter: torch.nn.Parameter
    size: Tuple[int, ...]
    stride: Tuple[int, ...]
    offset: int
    """Distance from the first element of the parameter, in elements."""


def save_no_views(model: torch.nn.Module) -> List[torch.nn.Module]:
    """Keep autograd from saving views in the modules with fused weights. Returns these modules."""
    found = fused_modules(model)
    for module in found:
        module.forward = _without_views(module, module.forward)  # type: ignore[method-assign]
    return found


def fused_modules(model: torch.nn.Module) -> List[torch.nn.Module]:
    """Return the modules that have parameters of three dimensions, such as the weights of all experts of a layer."""
    return [
        module for module in model.modules() if any(len(whole_shape(p)) > 2 for p in module.parameters(recurse=False))
    ]


def _without_views(module: torch.nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        starts: Dict[int, torch.nn.Parameter] = {p.data_ptr(): p for p in module.parameters(recurse=False) if p.numel()}

        def pack(tensor: torch.Tensor) -> Any:
            for start, parameter in starts.items():
                distance = tensor.data_ptr() - start
                if 0 <= distance < parameter.numel() * parameter.element_size() and tensor.dtype is parameter.dtype:
                    return _Part(parameter, tuple(tensor.shape), tensor.stride(), distance // tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            return forward(*args, **kwargs)

    return run


def _unpack(saved: Any) -> torch.Tensor:
    if not isinstance(saved, _Part):
        return saved
    weights = saved.parameter.data
    assert weights.numel(), "the weights of a module are not gathered in its backward"
    return weights.as_strided(saved.size, saved.stride, weights.storage_offset() + saved.offset)
