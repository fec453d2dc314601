"""The loss head: the log-probabilities of trained tokens, without whole logits where the head of the model is known.

A causal language model of transformers ends with ``logits = f(head(hidden))``: ``head`` is a linear layer, and ``f``
scales or caps each number (Gemma, Cohere, Granite, Falcon-H1). ``find_head`` finds out what ``f`` is: it lets the head
return known numbers, and looks at the logits that the model makes of them. While a loss is computed, the forward of the
head is replaced with ``token_logprobs``, which reads the hidden states. It runs inside the model's forward, because
with ZeRO-3 the weight of the head can only be read there.

If the head of a model cannot be found, or does something else, the loss is computed from the model's own logits.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F

from ftdist.model.exactness import micro_batch
from ftdist.model.forward import Batch, Index, evaluation_mode, forward, without_engine
from ftdist.model.isolation import ROUNDING
from ftdist.model.routers import RouterLogits
from ftdist.objective.chunked import LogitTransform, token_logprobs, token_scores

SAME = 1e-5
"""Largest relative difference of logits that are equal up to rounding in fp32."""
PROBES = (1e-2, 1.0, 1e9)
"""Outputs of the head for which the logits tell the slope at 0, the scale and the cap."""
LARGE = 1e6
"""No cap is as large as this."""
TEXT = (5, 3, 8, 2, 7, 4)
"""Token ids of a short text with which the model is probed."""

Factors = List[Tuple[torch.Tensor, torch.Tensor]]
"""Pairs of hidden states [n, k] and a weight [rows, k]. The outputs of the head are the sum of their products."""


@dataclass(frozen=True)
class Head:
    """The output layer of a model (a linear layer), and what the model does with its outputs."""

    module: torch.nn.Module
    transform: LogitTransform

    def factors(self, hidden: torch.Tensor) -> Factors:
        """Return the factors of the outputs.

        Args:
            hidden: [n, hidden size].
        """
        layer: Any = self.module
        if type(layer) is torch.nn.Linear:
            return [(hidden, layer.weight)]
        if layer.disable_adapters:  # a LoRA layer of PEFT
            return [(hidden, layer.base_layer.weight)]
        [name] = layer.active_adapters
        below = layer.lora_dropout[name](hidden.to(layer.lora_A[name].weight.dtype))
        inner = F.linear(below, layer.lora_A[name].weight) * layer.scaling[name]
        return [(hidden, layer.base_layer.weight), (inner, layer.lora_B[name].weight)]

    @property
    def bias(self) -> Optional[torch.Tensor]:
        bias: Optional[torch.Tensor] = self._linear.bias
        return bias

    @property
    def _linear(self) -> Any:
        return getattr(self.module, "base_layer", self.module)

    @property
    def hidden_size(self) -> int:
        return int(self._linear.in_features)

    @property
    def trained(self) -> bool:
        """Whether its weight is trained. A LoRA layer does not count: it is small."""
        return bool(self._linear.weight.requires_grad)

    @property
    def device_type(self) -> str:
        return str(self._linear.weight.device.type)


def target_logprobs(
    model: Any,
    batch: Batch,
    positions: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    head: Head,
    equal: bool = False,
    routers: Optional[RouterLogits] = None,
) -> torch.Tensor:
    """Run the model, and return the log-probability of each target in nats, [n] in fp32.

    Args:
        model: The model, or an engine.
        batch: The micro-batch of T tokens.
        positions: [n] positions between 0 and T - 1, in ascending order.
        targets: [n] ids of the tokens after these positions.
        vocab_size: Number of rows of the embedding that are real tokens.
        head: The head of the model.
        equal: The loss depends on the results only through their sum.
        routers: Collects the logits of the routers of a mixture of experts.
    """

    def compute(factors: Factors, bias: Optional[torch.Tensor], which: Index) -> torch.Tensor:
        return token_logprobs(factors, bias, targets[which], vocab_size, head.transform, equal)

    return _from_hidden_states(model, batch, positions, head, compute, routers)


def target_scores(
    model: Any, batch: Batch, positions: torch.Tensor, targets: torch.Tensor, vocab_size: int, head: Head
) -> torch.Tensor:
    """Run the model without gradients, and return the ``SCORES`` of each target, [n, 3] in fp32.

    See ``target_logprobs`` for the arguments.
    """

    def compute(factors: Factors, bias: Optional[torch.Tensor], which: Index) -> torch.Tensor:
        return token_scores(factors, bias, targets[which], vocab_size, head.transform)

    return _from_hidden_states(model, batch, positions, head, compute)


def _from_hidden_states(
    model: Any, batch: Batch, positions: torch.Tensor, head: Head,
    compute: Callable[[Factors, Optional[torch.Tensor], Index], torch.Tensor], routers: Optional[RouterLogits] = None,
) -> torch.Tensor:  # fmt: skip
    """Run the model, and compute something in the place of its head.

    Args:
        compute: Gets the factors and the bias of the head, and which of the positions they belong to.
    """

    def read(run: Callable[[], Any], place: Tuple[Index, Index], which: Index) -> torch.Tensor:
        found: List[torch.Tensor] = []

        def instead(hidden: torch.Tensor) -> torch.Tensor:
            found.append(compute(head.factors(hidden[place]), head.bias, which))
            # With ZeRO-3 the backward pass of what the head returns gathers its weight. The loss must depend on it.
            return (found[0].sum() * 0.0).to(hidden.dtype).expand(*hidden.shape[:-1], 1)

        with _replaced(head.module, instead):
            outputs = run()
        result: torch.Tensor = found[0] + outputs.logits.sum().float() * 0.0
        return result

    return forward(model, batch, positions, read, routers)


@torch.no_grad()
def find_head(model: Any, vocab_size: int, device: torch.device) -> Union[Head, str]:
    """Return the head of a model, or why its loss must be computed from the model's own logits.

    All ranks must call this together, because ZeRO-3 gathers parameters in the forward.

    Args:
        model: The model, or an engine.
        vocab_size: Number of rows of the embedding that are real tokens.
    """
    causal_lm = without_engine(model)
    module = causal_lm.get_output_embeddings()
    if not _is_known(module):
        return f"its head is not a linear layer ({type(module).__name__})"
    row = micro_batch([torch.tensor(TEXT, device=device) % vocab_size])
    last = torch.tensor([len(TEXT) - 1], device=device)

    def logits_with(instead: Callable[[torch.Tensor, Tuple[Index, Index]], torch.Tensor]) -> torch.Tensor:
        def read(run: Callable[[], Any], place: Tuple[Index, Index], which: Index) -> torch.Tensor:
            with _replaced(module, lambda hidden: instead(hidden, place)):
                outputs = run()
            logits: torch.Tensor = outputs.logits[place][0]
            return logits

        with evaluation_mode(causal_lm):
            return forward(model, row, last, read)

    own, expected = module.forward, []
    numbers = torch.linspace(-60.0, 60.0, module.out_features, device=device)
    numbers[: len(PROBES)] = torch.tensor(PROBES, device=device)
    made = logits_with(lambda hidden, place: numbers.expand(*hidden.shape[:-1], -1))
    transform = _fit(numbers, made) if len(made) >= vocab_size else None
    if transform is None:
        return "its forward changes the outputs of the head in a way that is not known"
    head = Head(module, transform)

    def both(hidden: torch.Tensor, place: Tuple[Index, Index]) -> torch.Tensor:
        if hidden.dim() == len(place) + 1:  # ProphetNet's head gets several hidden states of each token
            products = [F.linear(inputs, weight).float() for inputs, weight in head.factors(hidden[place])]
            bias = [] if head.bias is None else [head.bias.float()]
            outputs = functools.reduce(torch.add, [*products, *bias])
            expected.append(head.transform.apply_(outputs)[0])
        result: torch.Tensor = own(hidden)
        return result

    made = logits_with(both)
    if not expected:
        return "its head gets several hidden states of each token"
    if len(expected) != 1:
        return f"its head is called {len(expected)} times"
    difference = (made.float() - expected[0][: len(made)]).abs().max() / made.abs().max().clamp(min=1e-12)
    if not difference <= ROUNDING[causal_lm.dtype]:
        return f"its head computes other logits: they differ by {float(difference):.2g}"
    return head


def _is_known(module: Any) -> bool:
    if type(module) is torch.nn.Linear:
        return True
    is_lora = type(getattr(module, "base_layer", None)) is torch.nn.Linear and hasattr(module, "lora_A")
    return is_lora and len(module.active_adapters) == 1 and not any(module.use_dora.values())


def _fit(numbers: torch.Tensor, made: torch.Tensor) -> Optional[LogitTransform]:
    """Return the transform that gives ``made`` for these outputs of the head; None if there is none."""
    numbers, made = numbers[: len(made)].double(), made.double()
    small, one, large = (float(value) for value in made[: len(PROBES)])
    linear = LogitTransform(_rounded(one))
    cap = large
    slope = small / PROBES[0]
    capped = LogitTransform(_rounded(slope), cap) if 0 < cap < LARGE else linear
    for transform in (linear, capped):
        expected = transform.apply_(numbers.clone())
        if bool(((expected - made).abs() <= SAME * expected.abs().clamp(min=1.0)).all()):
            return transform
    return None


def _rounded(scale: float) -> float:
    return 1.0 if abs(scale - 1.0) < SAME else scale


@contextmanager
def _replaced(module: torch.nn.Module, instead: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let a module compute something else inside a ``with`` block. Its hooks still run around it."""
    before = vars(module).get("forward")  # another library may have replaced it too
    module.forward = instead  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
