"""The loss head alone, forward and backward, beside plain PyTorch and the bare matrix products."""

from typing import Any, Callable, Dict

import torch
import torch.nn.functional as F

from ftdist.objective.chunked import token_logprobs
from tests.bench.gpu.cells import Sizes
from tests.bench.gpu.clock import timed
from tests.bench.gpu.guard import sample

LIMITS = {"loss": 1e-3, "d_hidden": 2e-2, "d_weight": 2e-2}
"""Largest relative differences from plain PyTorch."""


def measure_head(sizes: Sizes, device: torch.device) -> Dict[str, Any]:
    count, vocabulary, width = sizes.head
    draw = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(count, width, device=device, dtype=torch.bfloat16, generator=draw)
    weight = torch.randn(vocabulary, width, device=device, dtype=torch.bfloat16, generator=draw).mul_(0.02)
    targets = torch.randint(vocabulary, (count,), device=device, generator=draw)

    def products() -> None:
        outputs = F.linear(hidden, weight)
        outputs @ weight, outputs.t() @ hidden

    found: Dict[str, Any] = {"bare products": timed(products, sizes.steps, device)}
    hidden.requires_grad_()
    weight.requires_grad_()

    def plain() -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    def own(equal: bool) -> Callable[[], torch.Tensor]:
        return lambda: -token_logprobs([(hidden, weight)], None, targets, vocabulary, equal=equal).sum()

    ways = {"plain PyTorch": plain, "ftdist": own(True), "ftdist, logits computed again": own(False)}
    expected: Dict[str, torch.Tensor] = {}
    for name, loss in ways.items():
        try:
            found[name] = _one_way(loss, hidden, weight, sizes.steps, expected)
        except torch.OutOfMemoryError as error:
            found[name] = {"why": str(error).splitlines()[0][:200]}
        hidden.grad = weight.grad = None
    wrong = "; ".join(f"{name}: {way['wrong']}" for name, way in found.items() if way.get("wrong"))
    return {"tokens": count, "vocabulary": vocabulary, "hidden": width, "ways": found, "wrong": wrong}


def _one_way(
    loss: Callable[[], torch.Tensor], hidden: torch.Tensor, weight: torch.Tensor, steps: int,
    expected: Dict[str, torch.Tensor],
) -> Dict[str, Any]:  # fmt: skip
    """Measure one way to compute the loss.

    Args:
        expected: The results of the first way, which the others are compared with. The first way writes them.
    """

    def both() -> torch.Tensor:
        hidden.grad = weight.grad = None
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    value = both()
    assert hidden.grad is not None and weight.grad is not None
    results = {"loss": value[None], **sample({"d_hidden": hidden.grad, "d_weight": weight.grad})}
    results = {name: result.double().cpu() for name, result in results.items()}
    for name, result in results.items():
        expected.setdefault(name, result)
    off = {name: float((results[name] - e).norm() / e.norm()) for name, e in expected.items()}
    wrong = [f"{name} off by {value:.2g}" for name, value in off.items() if not value <= LIMITS[name]]
    return {**timed(both, steps, hidden.device), "guard": off, "wrong": ", ".join(wrong)}
