"""Compare the first steps of an engine with the reference: the loss, the gradient of every parameter, the update.

The engine runs the steps with the training loop's own ``train_step``, and the gradients that its optimizer receives are
copied. So the comparison covers everything between the files of the prepared data and the weights after a step.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, FrozenSet, Iterable, List, Optional, Tuple

import torch

from ftdist.config.schema import Precision
from ftdist.engine.whole import ReceivedGradients, Tensors, whole_weights
from ftdist.train.evaluate import evaluate
from ftdist.train.loop import train_step
from ftdist.train.state import Training
from ftdist.verify.reference import Document, Reference, Rows, mean_loss
from ftdist.verify.reference_optimizer import PlainOptimizer

SMALL_GRADIENT = {Precision.fp32: 1e-3, Precision.bf16: 1e-1}
"""The difference of a parameter's gradient is divided by the norm of this gradient. A norm smaller than this share of
the norm of the whole gradient is replaced by the share, because such a gradient may consist of rounding only. The exact
gradient of the bias of keys, for instance, is zero.
In bf16 the gradient of every bias is a small sum of many terms that cancel each other, and each term is rounded to 8
bits."""
FP32_ROUNDING = 2.0**-23
UPDATES = 2
"""Number of first steps whose update is compared."""


@dataclass(frozen=True)
class Expected:
    """The results of the reference."""

    losses: List[float]
    """Loss of each step."""
    grad_norms: List[float]
    """Gradient norm of each step, before clipping."""
    gradients: Tensors
    """Gradients of the first step, after clipping."""
    heldout: float
    """Held-out loss after the last step. 0 if there is no held-out data."""
    untouched: List[FrozenSet[str]] = field(default_factory=list)
    """For each step, the names of the parameters that had not received a gradient so far."""
    outer: FrozenSet[str] = frozenset()
    """Names of the embeddings and the output head."""


@dataclass(frozen=True)
class Allowed:
    """Largest relative differences that rounding may cause."""

    loss: float
    grad_norm: float
    gradient: float
    update: float
    heldout: float


# A bf16 number has 8 significant bits, so each rounding changes it by up to 0.4 %. The reference runs in bf16 too, but
# adds the gradients of documents in fp32. A micro-batch adds them in bf16 and in another order. The measured
# differences are in docs/correctness.md.
ALLOWED = {
    Precision.fp32: Allowed(loss=1e-6, grad_norm=1e-5, gradient=1e-5, update=1e-6, heldout=1e-6),
    Precision.bf16: Allowed(loss=1e-3, grad_norm=1e-2, gradient=5e-2, update=1e-6, heldout=1e-3),
}


def allowed_with(config: Any, allowed: Allowed) -> Allowed:
    """Return the limits for the optimizer of a config. Some compute with fewer bits.

    Muon rounds to 8 significant bits, so the rounding of a gradient may change a bit of the update. The 8-bit states of
    a flat part have other blocks, and so other scales, than those of the whole tensors of the reference.
    """
    optimizer = config.optim.optimizer.name
    if optimizer == "muon":
        return replace(allowed, loss=max(allowed.loss, 1e-5))
    if optimizer == "adamw_8bit" and config.zero.stage:
        return replace(allowed, update=5e-2, loss=max(allowed.loss, 1e-4), heldout=max(allowed.heldout, 1e-4))
    return allowed


@dataclass(frozen=True)
class Deviation:
    """Largest relative differences between the engine and the reference."""

    loss: float
    """Over all steps."""
    grad_norm: float
    """Over all steps."""
    gradient: float
    """Norm of the difference / norm of the gradient, in the first step, for the parameter with the largest value."""
    parameter: str
    """Name of this parameter."""
    update: float
    """Norm of the difference / norm of the update, after the first updates with the same gradients. Differences within
    the rounding of fp32 are not counted."""
    heldout: float

    def beyond(self, allowed: Allowed) -> List[str]:
        """Describe each value that is larger than allowed, or nan."""
        return [
            f"{name} differs by {getattr(self, name):.2g}; the limit is {limit:.0e}"
            + (f" ({self.parameter})" if name == "gradient" else "")
            for name, limit in vars(allowed).items()
            if not getattr(self, name) <= limit
        ]


def run_reference(
    model: torch.nn.Module, config: Any, rows: Rows, order: List[int], steps: int, heldout: List[Document],
    vocab_size: Optional[int] = None, balance: float = 0.0, training: bool = True,
) -> Expected:  # fmt: skip
    """Run the reference for some steps, from the current weights of the model.

    Args:
        rows: All rows of the training set.
        order: Indices of the rows in the order of the run.
        steps: Number of steps to run.
        vocab_size: Number of rows of the embedding that are real tokens; None for all.
        balance: Coefficient of the balance loss of a mixture of experts. 0: none.
        training: Whether the model is in training mode. If not, it is in evaluation mode.
    """
    reference = Reference(model, config.optim, config.train.max_steps, vocab_size, balance, training)
    size, results, untouched = config.batch.global_batch_size, [], []
    gradients: Tensors = {}
    for step in range(steps):
        documents = [document for row in order[step * size : (step + 1) * size] for document in rows[row]]
        results.append(reference.step(step, documents))
        gradients = gradients or reference.gradients
        untouched.append(frozenset(reference.untouched))
    return Expected(
        [result["loss"] for result in results], [result["grad_norm"] for result in results], gradients,
        mean_loss(model, heldout, vocab_size) if heldout else 0.0, untouched, reference.outer,
    )  # fmt: skip


def measure_deviation(training: Training, expected: Optional[Expected], steps: int) -> Optional[Deviation]:
    """Run the first steps with the engine and compare them with the reference. Every rank must call it.

    Args:
        expected: The results of the reference on rank 0, None on the other ranks.

    Returns:
        The deviation on rank 0, None on the other ranks.
    """
    config, received = training.config, ReceivedGradients(training.engine)
    weights, gradients, results = [whole_weights(training.engine)], [], []
    for index in range(steps):
        results.append(train_step(training, index))
        if index < UPDATES:
            after, taken = whole_weights(training.engine), received.take()
            if expected is not None:
                weights.append(after)
                gradients.append(taken)
    heldout = _heldout_loss(training)
    if expected is None:
        return None
    updates = [{name: g for name, g in found.items() if name not in untouched}
               for found, untouched in zip(gradients, expected.untouched, strict=False)]  # fmt: skip
    gradient, parameter = worst_gradient(gradients[0], expected.gradients, SMALL_GRADIENT[config.train.precision])
    return Deviation(
        loss=largest_difference([r.loss for r in results], expected.losses),
        grad_norm=largest_difference([r.grad_norm for r in results], expected.grad_norms),
        gradient=gradient, parameter=parameter,
        update=_update_deviation(weights, updates, config.optim, [result.lr for result in results], expected.outer),
        heldout=largest_difference([heldout], [expected.heldout]),
    )  # fmt: skip


def _heldout_loss(training: Training) -> float:
    """Return the loss over all held-out sets together, in nats per token. 0 if there is no held-out data."""
    config, total, tokens = training.config, 0.0, 0
    for dataset in training.heldout.values():
        measured = evaluate(
            training.engine, training.objective, dataset, training.mesh, training.plan.micro_batch_size,
            config.data.packing, training.tokenizer.pad_token_id,
        )  # fmt: skip
        assert measured is not None
        total, tokens = total + measured.loss, tokens + measured.weight
    return total / tokens if tokens else 0.0


def largest(numbers: Iterable[float]) -> float:
    """Return the largest number, or nan if one of them is nan. (``max`` may ignore a nan.)"""
    values = list(numbers)
    return math.nan if any(map(math.isnan, values)) else max(values)


def largest_difference(found: List[float], expected: List[float]) -> float:
    """Return the largest relative difference of two lists of the same length."""
    return largest(abs(a - b) / abs(b) if a != b else 0.0 for a, b in zip(found, expected, strict=True))


def worst_gradient(found: Tensors, expected: Tensors, small: float) -> Tuple[float, str]:
    """Find the parameter whose gradient differs most.

    Args:
        small: Smallest divisor, as a share of the norm of the whole gradient (see ``SMALL_GRADIENT``).

    Returns:
        Norm of the difference / norm of the gradient, and the name of the parameter.
    """
    assert found.keys() == expected.keys(), "the engine and the reference have different parameters"
    norms = {name: float(g.norm()) for name, g in expected.items()}
    least = small * sum(n**2 for n in norms.values()) ** 0.5
    differences = {n: float((found[n].to(g.device) - g).norm()) / max(norms[n], least) for n, g in expected.items()}
    worst = max(differences, key=lambda name: (math.isnan(differences[name]), differences[name]))
    return largest(differences.values()), worst


def _update_deviation(
    weights: List[Tensors], gradients: List[Tensors], optim: Any, lrs: List[float], outer: FrozenSet[str]
) -> float:
    """Compare the updates with those of the reference's optimizer, given the engine's own gradients. Weights without a
    gradient must not change.

    More than one update is compared, because the first one does not depend on the states. The weights are fp32. A
    difference of one rounding for each step is allowed: it can be a large share of an update that is small compared
    with the weight.
    """
    updated = {name: weights[0][name].clone() for name in gradients[0]}  # only what is trained
    optimizer, deviation = PlainOptimizer(updated, optim, outer), 0.0
    for number, gradient in enumerate(gradients, 1):
        optimizer.step(gradient, lrs[number - 1])
        missed = moved = 0.0
        for name, weight in updated.items():
            allowed = number * FP32_ROUNDING * weight.abs()
            difference = ((weights[number][name] - weight).abs() - allowed).clamp(min=0)
            missed += float(difference.double().pow(2).sum())
            moved += float((weight - weights[0][name]).double().pow(2).sum())
        deviation = largest([deviation, (missed / moved) ** 0.5 if moved else 0.0])
    return deviation
