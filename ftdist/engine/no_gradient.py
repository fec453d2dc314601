"""Parameters that get no gradient stay exactly as they are: weight decay does not apply to them.

Some models have parameters that their loss does not depend on, for instance the cross-attention of a decoder without
its encoder. PyTorch's optimizers skip a parameter without a gradient. DeepSpeed gives every parameter a gradient, zeros
if there is no other, and weight decay would then shrink the parameter at each step.
"""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List

import torch
import torch.distributed as dist

from ftdist.base.counts import count
from ftdist.engine.expert_groups import part_of
from ftdist.engine.shards import held_slices

SHOWN = 6
"""Maximum number of names in the log. A checkpoint lists all names."""


class NoGradient:
    """The trained parameters that have not received a gradient so far, in any micro-step of any rank."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        """
        Args:
            device: Device of the tensors that ranks exchange.
        """
        self._device = device
        # Of a parameter that is divided into groups of experts, all groups get a gradient, or none does.
        self._trained = {part_of(name, p).name: p for name, p in model.named_parameters() if p.requires_grad}
        self._hooks: Dict[str, Any] = {}
        self.names: List[str] = []
        """Their names, in the order of the model. They are the same on all ranks."""
        self.reset(self._trained)

    def reset(self, names: Iterable[str]) -> None:
        """Start again with the parameters ``names``, for instance those of a checkpoint."""
        wanted = set(names)
        self.names = [name for name in self._trained if name in wanted]
        for name in self.names:
            if name not in self._hooks:
                self._hooks[name] = self._trained[name].register_hook(self._seen(name))

    def _seen(self, name: str) -> Callable[[torch.Tensor], None]:
        def forget(gradient: torch.Tensor) -> None:
            if name in self._hooks:
                self._hooks.pop(name).remove()

        return forget

    def agree(self) -> None:
        """Remove the parameters that have received a gradient on any rank. Every rank must call it."""
        if self.names:
            here = [name not in self._hooks for name in self.names]
            seen = torch.tensor(here, dtype=torch.int32, device=self._device)
            dist.all_reduce(seen, dist.ReduceOp.MAX)
            self.reset([name for name, one in zip(self.names, seen.tolist(), strict=True) if not one])

    def describe(self) -> str:
        """Return one sentence that names the parameters."""
        rest = len(self.names) - SHOWN
        shown = ", ".join(self.names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
        what = ("tensor gets no gradient and stays as it is", "tensors get no gradient and stay as they are")
        return f"{count(len(self.names), *what)}: {shown}"

    @contextmanager
    def unchanged(self, engine: Any) -> Iterator[None]:
        """Restore the master weights of these parameters after an update inside a ``with`` block.

        DeepSpeed may update one group of parameters at a time, so only what is updated now is copied.

        Args:
            engine: The engine of DeepSpeed, which has no types.
        """
        kept = []
        if self.names:
            names = set(self.names)
            updated = {id(flat) for group in engine.optimizer.param_groups for flat in group["params"]}
            parts = [part for part in held_slices(engine) if part.name in names and id(part.flat) in updated]
            kept = [part.of(part.flat) for part in parts]
        before = [weights.clone() for weights in kept]
        yield
        with torch.no_grad():
            for weights, value in zip(kept, before, strict=True):
                weights.copy_(value)
