"""The load of the experts of a mixture: how many tokens of a step the routers send to each expert.

The numbers of the chosen experts are read where a layer uses them. So they include the effect of what a router does
with its scores before it chooses: the biases of DeepSeek-V3, groups of experts. Padding is not counted. Passes without
gradients and the recomputation of gradient checkpointing are not counted either.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch

ENTROPY, LARGEST = "experts/entropy", "experts/largest_share"
"""Names of the metrics. For each layer, the entropy is that of the experts' shares of the tokens, divided by its
maximum: 1 if all shares are equal. The metric is its mean over the layers. The largest share is that of any expert of
any layer, as a multiple of the mean share."""
CHOICES = ("top_k_index", "router_indices")
"""Names of the argument that holds the numbers of the chosen experts, in the expert modules of transformers."""
NUMBERS = ("num_experts", "num_routed_experts")
"""Names of the attribute with the number of experts of a module. A router of LongCat can also choose this number
or a larger one, which stands for no expert."""
ROUTERS = {"Llama4Router": 1, "JetMoeTopKGating": 4}
"""Routers whose experts do not get the numbers of the chosen experts: the class, and the position of the logits in the
tuple that the router returns. These routers choose the experts with the highest logits."""


class ExpertLoad:
    """Counts the tokens of each expert of each layer in the training forwards of a step."""

    def __init__(self, causal_lm: torch.nn.Module) -> None:
        self._counts: List[torch.Tensor] = []  # of each layer: [experts + 1], the last one for no expert of the layer
        self._real: Optional[torch.Tensor] = None
        self._complete = True
        for module in causal_lm.modules():
            place, router = _choice(module), ROUTERS.get(type(module).__name__)
            if place is not None:
                module.register_forward_pre_hook(self._from_argument(len(self._counts), *place), with_kwargs=True)
            elif router is not None:
                module.register_forward_hook(self._from_logits(len(self._counts), router))
            else:
                continue
            self._counts.append(torch.zeros(_number(module) + 1, dtype=torch.int64))

    def __bool__(self) -> bool:
        """Whether the model has experts whose tokens can be counted."""
        return bool(self._counts)

    @contextmanager
    def counting(self, real: torch.Tensor) -> Iterator[None]:
        """Count the tokens of a forward pass inside a ``with`` block, if the pass computes gradients.

        Args:
            real: [rows, length] bool: False for padding.
        """
        self._real = real.reshape(-1) if torch.is_grad_enabled() else None
        try:
            yield
        finally:
            self._real = None

    def reset(self) -> None:
        """Forget the counts of the last step."""
        self._counts, self._complete = [counts.zero_() for counts in self._counts], True

    def metrics(self, total: Callable[[Sequence[float]], List[float]]) -> Dict[str, float]:
        """Return the metrics of the step over all ranks. Every rank must call it.

        Args:
            total: Returns the sums of some values over all ranks.
        """
        sizes = [len(counts) - 1 for counts in self._counts]
        missing, *values = total([float(not self._complete), *torch.cat([c[:-1] for c in self._counts]).tolist()])
        layers = [layer for layer in torch.tensor(values, dtype=torch.float64).split(sizes) if layer.sum()]
        if missing or not layers:
            return {}
        shares = [layer / layer.sum() for layer in layers]
        entropies = [-float(torch.special.xlogy(s, s).sum()) / math.log(max(len(s), 2)) for s in shares]
        return {ENTROPY: sum(entropies) / len(shares), LARGEST: max(float(s.max()) * len(s) for s in shares)}

    def _from_argument(self, layer: int, name: str, position: int) -> Callable[..., None]:
        def count(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self._add(layer, kwargs[name] if name in kwargs else args[position])

        return count

    def _from_logits(self, layer: int, place: int) -> Callable[..., None]:
        def count(module: Any, args: Any, outputs: Any) -> None:
            self._add(layer, outputs[place].detach().topk(module.top_k, dim=-1).indices)

        return count

    @torch.no_grad()
    def _add(self, layer: int, chosen: torch.Tensor) -> None:
        """Count the chosen experts of each token, [..., experts for each token]."""
        if self._real is None:
            return
        chosen = chosen.reshape(-1, chosen.shape[-1])
        if len(chosen) != len(self._real):  # the model adds or removes tokens, so the padding is not known
            self._complete = False
            return
        counts = self._counts[layer] = self._counts[layer].to(chosen.device)
        once = self._real[:, None].expand_as(chosen).reshape(-1).to(counts.dtype)
        counts.index_add_(0, chosen.reshape(-1).clamp(max=len(counts) - 1), once)


def _number(module: torch.nn.Module) -> int:
    """Return the number of experts of a module; 0 if it has none."""
    return int(next((getattr(module, name) for name in NUMBERS if hasattr(module, name)), 0))


def _choice(module: torch.nn.Module) -> Optional[tuple[str, int]]:
    """Return the name and position of the argument of a module that has the chosen experts. None: there is none."""
    names = list(inspect.signature(module.forward).parameters) if _number(module) else []
    return next(((name, names.index(name)) for name in CHOICES if name in names), None)
