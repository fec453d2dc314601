"""Random weights of a model that has only a config. They depend on the config and the seed alone.

transformers draws them one after another. With ZeRO-3 it draws them in another order, and on a GPU or in bf16 it draws
other numbers. So the matrices are drawn again, each by its name. The vectors of most models are ones and zeros, which
stay as they are. Those that transformers draws (in Mamba and in image encoders) are drawn again too, by the code of the
model, on a copy that holds nothing but vectors.
"""

import copy
import hashlib
from typing import Any, Dict, Iterator, Tuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.model.parts import auto_class
from ftdist.model.vocabulary import gathered, whole_shape


@torch.no_grad()
def draw_weights(model: PreTrainedModel, seed: int, vectors: Dict[str, torch.Tensor]) -> None:
    """Draw each matrix with the standard deviation that transformers uses, and put the drawn vectors in.

    Args:
        vectors: What ``drawn_vectors`` returns.
    """
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    for name, weight in model.named_parameters():
        shape = whole_shape(weight)
        if len(shape) > 1 or name in vectors:
            with gathered([weight]):
                if weight.shape[0]:
                    draw = torch.Generator().manual_seed(_number(f"{seed}/{name}"))
                    new = vectors.get(name)
                    weight.copy_(torch.empty(shape).normal_(0.0, std, generator=draw) if new is None else new)


@torch.no_grad()
def drawn_vectors(arch: PretrainedConfig, seed: int) -> Dict[str, torch.Tensor]:
    """Return those vectors of a random model whose values transformers draws, by name, in fp32.

    Before the call, sharding by transformers must be off (``ftdist.model.load.build_whole``).
    """
    with torch.device("meta"), torch.random.fork_rng([]):
        model = auto_class(arch).from_config(copy.deepcopy(arch), dtype=torch.float32)
    first, second = (_initial_vectors(model, f"{seed}/{again}") for again in range(2))
    return {name: vector for name, vector in first.items() if not vector.equal(second[name])}


def _initial_vectors(model: PreTrainedModel, seed: str) -> Dict[str, torch.Tensor]:
    """Let transformers initialize the vectors of a model. The numbers of a module depend on its name only."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() < 2:
                module._parameters[name] = torch.nn.Parameter(torch.zeros(parameter.shape))
    with torch.random.fork_rng([]):
        for name, module, owner in _children_first("", model, model):
            torch.default_generator.manual_seed(_number(f"{seed}/{name}"))
            owner._init_weights(module)
    return {name: p.detach() for name, p in model.named_parameters() if p.device.type == "cpu"}


def _children_first(name: str, module: Any, owner: Any) -> Iterator[Tuple[str, Any, Any]]:
    """Yield each module with its name and the model that initializes it, in the order of transformers."""
    for child_name, child in module.named_children():
        yield from _children_first(
            f"{name}.{child_name}", child, child if isinstance(child, PreTrainedModel) else owner
        )
    yield name, module, owner


def _number(text: str) -> int:
    """Return a seed that follows from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@torch.no_grad()
def draw_like_trained(model: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """Draw each matrix so that its outputs are about as large as its inputs, and return all weights.

    With the initial weights of transformers, all scores of attention are close to 0. Errors in positions or masks would
    then hardly change the numbers.
    """
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.copy_(torch.randn(weight.shape, generator=draw) * max(weight.shape[-1], 1) ** -0.5)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
