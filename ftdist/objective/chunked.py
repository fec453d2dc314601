"""Log-probabilities of tokens straight from hidden states. The logits of all tokens are never in memory together.

Logits are computed for one chunk of tokens at a time. A chunk needs two tensors of ``tokens × vocabulary`` numbers in
fp32, whatever the length of the row is. The gradient of the head's weight is summed over the chunks in fp32: in bf16
the sum would lose small terms.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F

from ftdist.plan.loss_head import chunk_size, most_tokens

SCORES = ("log-probability", "correct", "entropy")
"""What ``token_scores`` returns of each target token: its log-probability in nats; 1 if it has the largest logit (of
several equal ones, the smallest id has it, as in greedy decoding), else 0; and the entropy of the model's distribution
at its place in nats."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does with the outputs x of its head: ``scale · x``, or ``cap · tanh(scale · x / cap)``."""

    scale: float = 1.0
    cap: Optional[float] = None

    def apply_(self, outputs: torch.Tensor) -> torch.Tensor:
        """Replace outputs of the head with logits, in place."""
        if self.cap is None:
            return outputs if self.scale == 1.0 else outputs.mul_(self.scale)
        return outputs.mul_(self.scale / self.cap).tanh_().mul_(self.cap)

    def backward_(self, gradient: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Replace the gradient of logits with that of the outputs of the head, in place. ``logits`` is overwritten."""
        if self.cap is not None:
            gradient.mul_(logits.div_(self.cap).square_().neg_().add_(1.0))  # the derivative of tanh is 1 - tanh²
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def token_logprobs(
    factors: Sequence[Tuple[torch.Tensor, torch.Tensor]],
    bias: Optional[torch.Tensor],
    targets: torch.Tensor,
    vocab_size: int,
    transform: LogitTransform = LogitTransform(),
    equal: bool = False,
    chunk: Optional[int] = None,
) -> torch.Tensor:
    """Return the log-probability of each target token in nats, [n] in fp32 (in fp64 for inputs in fp64).

    The outputs of the head are the sum of ``hidden @ weight.T`` over the factors, plus the bias. A plain head has one
    factor; a head with a LoRA layer has a second one of low rank. The products are computed in the type of the inputs,
    as the model's own head does it; everything else in fp32.

    Args:
        factors: Pairs of hidden states [n, k] and a weight [rows, k].
        bias: [rows], or None.
        targets: [n] ids smaller than ``vocab_size``.
        vocab_size: Number of rows that are real tokens. The other rows are padding, and have no probability.
        transform: What the model does with the outputs of its head.
        equal: The loss depends on the results only through their sum. Then the gradients are computed together with the
            results, and the logits are not computed a second time, which saves a quarter of the products.
        chunk: Number of tokens of a chunk. By default as many as ``ftdist.plan.loss_head`` allows.
    """
    chunk = most_tokens(targets.device.type, vocab_size) if chunk is None else chunk
    flat = [tensor for pair in factors for tensor in pair]
    equal = equal and torch.is_grad_enabled()
    result: torch.Tensor = _TokenLogProbs.apply(targets, vocab_size, transform, equal, chunk, bias, *flat)
    return result


def token_scores(
    factors: Sequence[Tuple[torch.Tensor, torch.Tensor]],
    bias: Optional[torch.Tensor],
    targets: torch.Tensor,
    vocab_size: int,
    transform: LogitTransform = LogitTransform(),
    chunk: Optional[int] = None,
) -> torch.Tensor:
    """Return what an evaluation needs to know about each target token, without gradients: ``SCORES``.

    See ``token_logprobs`` for the arguments and the type. The logits of a chunk are computed once.

    Returns:
        [n, 3].
    """
    hidden, weights = [h for h, _ in factors], [w for _, w in factors]
    exact = torch.float64 if hidden[0].dtype == torch.float64 else torch.float32

    def logits(part: slice) -> torch.Tensor:
        return _logits([h[part] for h in hidden], weights, bias, vocab_size, transform, exact)

    return _scores(logits, targets, most_tokens(targets.device.type, vocab_size) if chunk is None else chunk)


def scores_of_logits(logits: torch.Tensor, targets: torch.Tensor, chunk: Optional[int] = None) -> torch.Tensor:
    """Return the scores from whole logits [n, vocab_size], which are copied to fp32 one chunk at a time. See
    ``token_scores``.
    """
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    most = most_tokens(targets.device.type, logits.shape[1]) if chunk is None else chunk
    return _scores(lambda part: logits[part].to(exact, copy=True), targets, most)


@torch.no_grad()
def _scores(logits: Callable[[slice], torch.Tensor], targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return the scores of all targets.

    Args:
        logits: Returns the logits of a part of the tokens, in a tensor of their own.
    """
    found: List[torch.Tensor] = []
    for part in _chunks(len(targets), chunk):
        ours, wanted = logits(part), targets[part][:, None]
        correct = ours.argmax(-1, keepdim=True) == wanted
        logprobs = ours.log_softmax(-1)
        of_target = logprobs.gather(1, wanted)
        probabilities = torch.exp(logprobs, out=ours)
        entropies = torch.special.entr(probabilities, out=logprobs).sum(-1, keepdim=True)
        found.append(torch.cat([of_target, correct.to(of_target.dtype), entropies], 1))
    return torch.cat(found)


class _Gradients:
    """The gradients of the inputs, summed chunk by chunk."""

    def __init__(
        self, hidden: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], bias: Optional[torch.Tensor],
        needed: Sequence[bool], dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """
        Args:
            needed: Whether the bias, and the hidden states and the weight of each factor, need a gradient.
            dtype: Type in which the gradients of weights are summed.
        """
        self._weights = weights
        self.hidden = [torch.empty_like(h) if need else None for h, need in zip(hidden, needed[1::2], strict=True)]
        self.weights = [torch.zeros(w.shape, dtype=dtype, device=w.device) if need else None
                        for w, need in zip(weights, needed[2::2], strict=True)]  # fmt: skip
        self.bias = None
        if bias is not None and needed[0]:
            self.bias = torch.zeros(bias.shape, dtype=dtype, device=bias.device)

    def add(self, part: slice, outputs: torch.Tensor, hidden: Sequence[torch.Tensor]) -> None:
        """Add the gradients of one chunk.

        Args:
            part: The tokens of the chunk.
            outputs: Gradient of the outputs of the head, [tokens, vocab_size].
            hidden: Hidden states of these tokens, one tensor for each factor.
        """
        rows = outputs.shape[1]
        if self.bias is not None:
            self.bias[:rows] += outputs.sum(0)
        rounded = outputs.to(hidden[0].dtype)
        for own, weight, d_own, d_weight in zip(hidden, self._weights, self.hidden, self.weights, strict=True):
            if d_own is not None:
                torch.mm(rounded, weight[:rows], out=d_own[part])
            if d_weight is not None:
                d_weight[:rows] += rounded.t() @ own

    def scaled(self, factor: torch.Tensor, types: Sequence[torch.dtype]) -> List[Optional[torch.Tensor]]:
        """Return the gradients times ``factor``, in these types: the bias, then hidden states and weight of each
        factor."""
        pairs = [gradient for pair in zip(self.hidden, self.weights, strict=True) for gradient in pair]
        return [None if gradient is None else gradient.mul_(factor).to(dtype)
                for gradient, dtype in zip([self.bias, *pairs], types, strict=True)]  # fmt: skip


class _TokenLogProbs(torch.autograd.Function):
    """Computes the logits again in the backward pass; with ``equal`` it keeps the gradients instead."""

    @staticmethod
    def forward(
        ctx: Any, targets: torch.Tensor, vocab_size: int, transform: LogitTransform, equal: bool, chunk: int,
        bias: Optional[torch.Tensor], *factors: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        hidden, weights = factors[0::2], factors[1::2]
        exact = torch.float64 if hidden[0].dtype == torch.float64 else torch.float32
        result = torch.empty(len(targets), dtype=exact, device=targets.device)
        needed = ctx.needs_input_grad[5:]
        gradients = _Gradients(hidden, weights, bias, needed, exact) if equal and any(needed) else None
        for part in _chunks(len(targets), chunk):
            inputs = [h[part] for h in hidden]
            logits = _logits(inputs, weights, bias, vocab_size, transform, exact)
            logprobs = logits.log_softmax(-1)
            result[part] = logprobs.gather(1, targets[part][:, None])[:, 0]
            if gradients:
                d_logits = _d_logits(logprobs, targets[part], torch.ones_like(result[part]))
                gradients.add(part, transform.backward_(d_logits, logits), inputs)
                del d_logits
            del logits, logprobs  # otherwise these logits are still in memory when those of the next chunk are computed
        ctx.gradients, ctx.types = gradients, [None if bias is None else bias.dtype, *(f.dtype for f in factors)]
        if gradients is None:
            ctx.save_for_backward(targets, *hidden)
            # With ZeRO-3 the storage of a weight is freed after the forward pass and filled again before the backward
            # pass. The parameters themselves are kept, so that the backward pass reads what they hold then.
            ctx.weights, ctx.bias, ctx.needed = weights, bias, needed
            ctx.constants = vocab_size, transform, chunk, exact
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:  # type: ignore[override]
        nothing = (None,) * 5
        if ctx.gradients is not None:
            kept, ctx.gradients = ctx.gradients, None  # as long as the loss exists, so does ``ctx``
            return (*nothing, *kept.scaled(gradient[0], ctx.types))
        targets, *hidden = ctx.saved_tensors
        vocab_size, transform, chunk, exact = ctx.constants
        gradients = _Gradients(hidden, ctx.weights, ctx.bias, ctx.needed, exact)
        for part in _chunks(len(targets), chunk):
            inputs = [h[part] for h in hidden]
            logits = _logits(inputs, ctx.weights, ctx.bias, vocab_size, transform, exact)
            d_logits = _d_logits(logits.log_softmax(-1), targets[part], gradient[part].to(exact))
            gradients.add(part, transform.backward_(d_logits, logits), inputs)
            del logits, d_logits
        return (*nothing, *gradients.scaled(torch.ones_like(gradient[0]), ctx.types))


def _d_logits(logprobs: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the logits. For log p(target), it is 1 at the target, minus all probabilities.

    Args:
        logprobs: [tokens, vocab_size]. They are overwritten.
        gradient: Gradient of the log-probabilities of the targets, [tokens].
    """
    return logprobs.exp_().mul_(-gradient[:, None]).scatter_add_(1, targets[:, None], gradient[:, None])


def _chunks(tokens: int, most: int) -> Iterator[slice]:
    """Iterate over parts of at most ``most`` tokens, as equal as possible."""
    size = chunk_size(tokens, most)
    for start, end in pairwise([*range(0, tokens, size), tokens]):
        yield slice(start, end)


def _logits(
    hidden: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], bias: Optional[torch.Tensor], vocab_size: int,
    transform: LogitTransform, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Return the logits of some tokens, [tokens, vocab_size], in a tensor of their own."""
    outputs = F.linear(hidden[0], weights[0][:vocab_size], None if bias is None else bias[:vocab_size]).to(dtype)
    for own, weight in zip(hidden[1:], weights[1:], strict=True):
        outputs += F.linear(own, weight[:vocab_size])
    return transform.apply_(outputs)
