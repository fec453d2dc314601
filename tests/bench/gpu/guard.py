"""The guard of the cells that train: their first steps are compared with plain transformers in plain PyTorch."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List

import torch

from ftdist.engine.whole import ReceivedGradients
from ftdist.train.loop import train_step
from ftdist.verify.compare import ALLOWED, largest_difference
from ftdist.verify.reference import Reference, row_order
from ftdist.verify.reference_method import apply_plainly, own_names
from tests.bench.gpu.cells import Cell, Subject
from tests.bench.gpu.subject import apply_method, config_of, random_model, random_rows, start
from tests.helpers.alone import Skip

STEPS = 2
SAMPLE = 16384
"""Numbers of each gradient that are compared."""
GRADIENT = 0.1
"""Largest relative difference of the gradients of all parameters together. In bf16, layers add up their rounding."""


@dataclass(frozen=True)
class Deviation:
    """Relative differences between a cell and the reference."""

    loss: float
    """The largest one of the first steps."""
    gradient: float
    """Of the gradients of the first step, all parameters together."""

    def beyond(self, precision: Any) -> str:
        """Return what is larger than rounding explains, as text; "" for nothing."""
        limits = {"loss": ALLOWED[precision].loss, "gradient": GRADIENT}
        wrong = [name for name, limit in limits.items() if not getattr(self, name) <= limit]
        return "; ".join(f"{name} off by {getattr(self, name):.2g} (limit {limits[name]:.0e})" for name in wrong)


def file_of(folder: Path, subject: str) -> Path:
    return folder / f"reference-{''.join(filter(str.isalnum, subject))}.pt"


def reference(cell: Cell, subject: Subject, own: Path, folder: Path, device: torch.device) -> Dict[str, Any]:
    """Run the first steps in plain PyTorch, and write what they give for the cells that train the same subject."""
    config = config_of(cell, subject, own, device)
    start(config)
    model = random_model(config, "sdpa", device)
    adapters: Dict[str, torch.Tensor] = {}
    if subject.method != "full":  # PEFT would draw other adapters
        adapters = {name: p.detach().clone() for name, p in _with_method(model, config).items() if p.requires_grad}
        model = random_model(config, "sdpa", device)
    plain = apply_plainly(model, config.method)
    with torch.no_grad():
        for name, value in adapters.items():
            own_names(plain)[name].copy_(value)
    data, count = random_rows(subject), subject.rows
    order = row_order(config.seed, data.num_rows, STEPS * count)
    running = Reference(plain, config.optim, STEPS)
    losses, gradients = [], {}
    for index in range(STEPS):
        documents = [document for row in order[index * count : (index + 1) * count] for document in data.row(row)]
        losses.append(running.step(index, documents)["loss"])
        gradients = gradients or sample(running.gradients)
    torch.save({"losses": losses, "gradients": gradients}, file_of(folder, cell.subject))
    return {"losses": losses}


def _with_method(model: Any, config: Any) -> Dict[str, torch.nn.Parameter]:
    from ftdist.model.attention_plan import BY_DOCUMENT

    return dict(apply_method(model, config, BY_DOCUMENT).named_parameters())


def compare(training: Any, cell: Cell, folder: Path) -> Deviation:
    """Take the first steps with the engine, and compare them with the reference.

    Raises:
        Skip: There is no reference.
    """
    try:
        expected = torch.load(file_of(folder, cell.subject))
    except OSError as error:
        raise Skip("there is no reference to compare it with") from error
    received = ReceivedGradients(training.engine)
    losses: List[float] = []
    gradients: Dict[str, torch.Tensor] = {}
    for index in range(STEPS):
        losses.append(train_step(training, index).loss)
        gradients = gradients or sample(received.take())
        training.engine.gate.before_update = lambda: None  # the others are not copied
    assert gradients.keys() == expected["gradients"].keys(), "other parameters have gradients than in the reference"
    missed = sum(float((gradients[name] - g).double().pow(2).sum()) for name, g in expected["gradients"].items())
    whole = sum(float(g.double().pow(2).sum()) for g in expected["gradients"].values())
    return Deviation(largest_difference(losses, expected["losses"]), math.sqrt(missed / whole))


def as_figures(deviation: Deviation, precision: Any) -> Dict[str, Any]:
    return {"guard": asdict(deviation), "wrong": deviation.beyond(precision)}


def sample(gradients: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Return some numbers of each gradient, on the host."""
    return {name: g.view(-1)[:: max(1, g.numel() // SAMPLE)].cpu() for name, g in gradients.items()}
