"""How far an engine's first steps are from the reference's: loss, every parameter's gradient, the update.

The engine takes its steps through the loop's own ``train_step``; what its optimizer was given is read from Adam's first
moment. So whatever lies between the files of the prepared data and the weights after a step is compared.
"""

import math
from dataclasses import dataclass
from typing import Any, Iterable, List, Optional, Tuple

import torch

from ftdist.config.schema import Precision
from ftdist.engine.whole import Tensors, first_moments, whole_weights
from ftdist.train.evaluate import evaluate
from ftdist.train.loop import train_step
from ftdist.train.state import Training
from ftdist.verify.reference import Document, Reference, Rows, adamw, adamw_step, mean_loss

SMALL_GRADIENT = {Precision.fp32: 1e-3, Precision.bf16: 1e-1}
"""A parameter whose gradient is a smaller share of the whole gradient than this is measured against this share. The
gradient of a key's bias, for one, is exactly zero: rounding is all that is left of it. In bf16 every bias is small
beside the many terms that cancel in it, each rounded to 8 bits."""
FP32_ROUNDING = 2.0**-23
UPDATES = 2
"""First steps whose update is compared."""


@dataclass(frozen=True)
class Expected:
    """What the reference came to."""

    losses: List[float]
    grad_norms: List[float]
    gradients: Tensors
    """Of the first step, after clipping."""
    heldout: float
    """Held-out loss after the last step; 0 where nothing is held out."""


@dataclass(frozen=True)
class Allowed:
    """Largest relative differences that rounding may make."""

    loss: float
    grad_norm: float
    gradient: float
    update: float
    heldout: float


# bf16 keeps 8 bits: each rounding is off by up to 0.4 %. The reference runs in bf16 too, but sums the gradients of
# documents in fp32, where a micro-batch sums them in bf16 and in another order. What is measured: docs/correctness.md.
ALLOWED = {
    Precision.fp32: Allowed(loss=1e-6, grad_norm=1e-5, gradient=1e-5, update=1e-6, heldout=1e-6),
    Precision.bf16: Allowed(loss=1e-3, grad_norm=1e-2, gradient=5e-2, update=1e-6, heldout=1e-3),
}


@dataclass(frozen=True)
class Deviation:
    """Largest relative differences from the reference."""

    loss: float
    """Over all steps."""
    grad_norm: float
    gradient: float
    """Of the parameter that is furthest off, in the first step: norm of the difference / norm."""
    parameter: str
    """Which one that is."""
    update: float
    """The first updates, given the same gradients: norm of the difference / norm of the update, beyond rounding."""
    heldout: float

    def beyond(self, allowed: Allowed) -> List[str]:
        """What is further off than it may be (nan is)."""
        return [
            f"{name} is off by {getattr(self, name):.2g}, allowed {limit:.0e}"
            + (f" ({self.parameter})" if name == "gradient" else "")
            for name, limit in vars(allowed).items()
            if not getattr(self, name) <= limit
        ]


def expect(
    model: torch.nn.Module, config: Any, rows: Rows, order: List[int], steps: int, heldout: List[Document],
    vocab_size: Optional[int] = None,
) -> Expected:  # fmt: skip
    """Run the reference for ``steps`` steps, from the model's weights as they are."""
    reference = Reference(model, config.optim, config.train.max_steps, vocab_size)
    size, history = config.batch.global_batch_size, []
    gradients: Tensors = {}
    for step in range(steps):
        documents = [document for row in order[step * size : (step + 1) * size] for document in rows[row]]
        history.append(reference.step(step, documents))
        gradients = gradients or reference.gradients
    return Expected(
        [record["loss"] for record in history], [record["grad_norm"] for record in history], gradients,
        mean_loss(model, heldout, vocab_size) if heldout else 0.0,
    )  # fmt: skip


def deviate(training: Training, expected: Optional[Expected], steps: int) -> Optional[Deviation]:
    """Take the same steps with the engine, from its beginning, and compare. Every rank calls it; only the first needs
    what is expected, and has a result."""
    config = training.config
    weights, moments, results = [whole_weights(training.engine)], [], []
    for index in range(steps):
        results.append(train_step(training, index))
        if index < UPDATES:
            after, moment = whole_weights(training.engine), first_moments(training.engine)
            if expected is not None:
                weights.append(after)
                moments.append(moment)
    heldout = _heldout(training)
    if expected is None:
        return None
    gradients = given_gradients(moments, config.optim.beta1)
    gradient, parameter = worst_gradient(gradients[0], expected.gradients, SMALL_GRADIENT[config.train.precision])
    return Deviation(
        loss=relative([r.loss for r in results], expected.losses),
        grad_norm=relative([r.grad_norm for r in results], expected.grad_norms),
        gradient=gradient, parameter=parameter,
        update=_update_deviation(weights, gradients, config.optim, [result.lr for result in results]),
        heldout=relative([heldout], [expected.heldout]),
    )  # fmt: skip


def _heldout(training: Training) -> float:
    config, total, tokens = training.config, 0.0, 0
    for dataset in training.heldout.values():
        measured = evaluate(
            training.engine, training.objective, dataset, training.mesh, training.plan.micro_batch_size,
            config.data.packing, training.tokenizer.pad_token_id,
        )  # fmt: skip
        assert measured is not None
        total, tokens = total + measured[0], tokens + measured[1]
    return total / tokens if tokens else 0.0


def largest(numbers: Iterable[float]) -> float:
    """The largest; nan if one is nan, which ``max`` passes over."""
    found = list(numbers)
    return math.nan if any(map(math.isnan, found)) else max(found)


def relative(found: List[float], expected: List[float]) -> float:
    """Largest relative difference."""
    return largest(abs(a - b) / abs(b) if a != b else 0.0 for a, b in zip(found, expected, strict=True))


def worst_gradient(found: Tensors, expected: Tensors, small: float) -> Tuple[float, str]:
    """(norm of the difference / norm, name) of the parameter that is furthest off; ``small``: see SMALL_GRADIENT."""
    assert found.keys() == expected.keys(), "other parameters"
    norms = {name: float(g.norm()) for name, g in expected.items()}
    least = small * sum(n**2 for n in norms.values()) ** 0.5
    off = {n: float((found[n].to(g.device) - g).norm()) / max(norms[n], least) for n, g in expected.items()}
    return largest(off.values()), max(off, key=lambda name: (math.isnan(off[name]), off[name]))


def given_gradients(moments: List[Tensors], beta1: float) -> List[Tensors]:
    """What the optimizer was given at each step, after every reduction and clipping, from its first moments after them:
    m = beta1 · (m before) + (1 - beta1) · g."""
    before = [{name: torch.zeros_like(moment) for name, moment in moments[0].items()}, *moments]
    return [{name: (moment - beta1 * old[name]) / (1 - beta1) for name, moment in now.items()}
            for old, now in zip(before, moments, strict=False)]  # fmt: skip


def _update_deviation(weights: List[Tensors], gradients: List[Tensors], optim: Any, lrs: List[float]) -> float:
    """The reference's AdamW, given the engine's own gradients: a first update says nothing about the second moment's
    decay. Weights are fp32: a difference of one rounding a step is allowed, which is much where an update is small
    beside the weight."""
    updated = {name: weight.clone() for name, weight in weights[0].items()}
    optimizer, off = adamw(updated, optim), 0.0
    for number, gradient in enumerate(gradients, 1):
        adamw_step(optimizer, updated, gradient, lrs[number - 1])
        missed = moved = 0.0
        for name, weight in updated.items():
            allowed = number * FP32_ROUNDING * weight.abs()
            difference = ((weights[number][name] - weight).abs() - allowed).clamp(min=0)
            missed += float(difference.double().pow(2).sum())
            moved += float((weight - weights[0][name]).double().pow(2).sum())
        off = largest([off, (missed / moved) ** 0.5 if moved else 0.0])
    return off
