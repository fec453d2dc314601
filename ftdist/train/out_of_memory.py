"""When memory is full: what fills it, and the one change of the config that would free the most."""

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

import torch

from ftdist.base.errors import TrainError
from ftdist.config.schema import Offload, Precision, RunConfig
from ftdist.engine.optimizers import parameter_shape
from ftdist.parallel.device_memory import peak_memory_gib
from ftdist.parallel.ranks import Ranks
from ftdist.run.model_facts import read_facts

GIB = 2**30
SHORTEST_ROW = 256
"""Rows are not proposed to be shorter than this many tokens."""
RECOMPUTED_SHARE = 0.7
"""Of the activations, what gradient checkpointing typically frees."""


@dataclass(frozen=True)
class Account:
    """Bytes that one rank holds on its device, by the formula of docs/step.md; activations are what remains of the
    peak that was measured."""

    parameters: float
    gradients: float
    optimizer_states: float
    activations: float

    def __str__(self) -> str:
        parts = {"parameters": self.parameters, "gradients": self.gradients, "optimizer states": self.optimizer_states,
                 "activations and the rest": self.activations}  # fmt: skip
        return ", ".join(f"{size / GIB:.1f} {name}" for name, size in parts.items() if size)


def explained(error: BaseException, config: RunConfig, ranks: Ranks, training: Any) -> BaseException:
    """The error itself; where memory ran out, one that says what filled it. ``training`` is None while loading."""
    if not out_of_memory(error):
        return error
    cuda, first_line = ranks.device.type == "cuda", str(error).splitlines()[0] if str(error) else "MemoryError"
    account: Optional[Account] = None
    if training is None:
        what = "while the model was loaded"
        if (facts := read_facts(config)) is not None:
            account = account_for(config, facts.parameters, ranks.world_size, 0.0, cuda)
            what += f", which takes in GiB about {account} a rank"
    else:
        numbers = [parameter_shape(p).numel() for p in training.engine.module.parameters()]
        peak = peak_memory_gib(ranks.device) * GIB
        account = account_for(config, sum(numbers), ranks.world_size, peak, cuda)
        what = f"at step {training.done.step + 1}; of {peak / GIB:.1f} GiB at the peak about {account}"
    change, saved = best_change(config, ranks.world_size, account, cuda)
    helped = f" (frees about {saved / GIB:.1f} GiB)" if account else ""
    explained = TrainError(f"memory ran out {what}: {first_line}", "a model, its states and activations that fit",
                           f"{change}{helped}")  # fmt: skip
    explained.__cause__ = error
    return explained


def out_of_memory(error: BaseException) -> bool:
    cpu = isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
    return cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def account_for(config: RunConfig, parameters: int, world_size: int, peak: float, cuda: bool) -> Account:
    """What fills a rank's memory, in bytes. Offloaded states lie in host memory: none of the device's."""
    bf16 = config.train.precision is Precision.bf16
    width, states = (2, 12) if bf16 else (4, 8)
    zero = config.zero
    weights = parameters * width / (world_size if zero.stage >= 3 else 1)
    gradients = parameters * width / (world_size if zero.stage >= 2 else 1)
    optimizer = parameters * states / (world_size if zero.stage >= 1 else 1)
    if cuda and zero.offload_param is not Offload.none:
        weights = 0.0
    if cuda and zero.offload_optimizer is not Offload.none:
        gradients, optimizer = 0.0, 0.0
    return Account(weights, gradients, optimizer, max(0.0, peak - weights - gradients - optimizer))


def best_change(config: RunConfig, world_size: int, account: Optional[Account], cuda: bool) -> Tuple[str, float]:
    """The change that frees the most, as it is typed, and the bytes it frees; without an account, by the usual shares
    of a model that is being loaded."""
    account = account or Account(2.0, 2.0, 12.0, 0.0)
    found = sorted(_changes(config, world_size, account, cuda), key=lambda change: -change[1])
    return found[0] if found and found[0][1] > 0 else ("more memory, more ranks, or a smaller model", 0.0)


def _changes(config: RunConfig, world_size: int, account: Account, cuda: bool) -> List[Tuple[str, float]]:
    changes: List[Tuple[str, float]] = []
    stage, sharded = config.zero.stage, 1 - 1 / world_size
    freed = 0.0
    for higher, part in ((1, account.optimizer_states), (2, account.gradients), (3, account.parameters)):
        if higher > stage:
            freed += part * sharded
            changes.append((f"zero.stage={higher}", freed))
    if cuda and config.zero.offload_optimizer is Offload.none:
        stage_too = "" if stage else "zero.stage=1 "
        changes.append((f"{stage_too}zero.offload_optimizer=cpu", account.optimizer_states + account.gradients))
    if cuda and stage == 3 and config.zero.offload_param is Offload.none:
        changes.append(("zero.offload_param=cpu", account.parameters))
    rows, tokens = config.batch.micro_batch_size, config.data.max_seq_len
    if not config.train.gradient_checkpointing:
        changes.append(("train.gradient_checkpointing=true", account.activations * RECOMPUTED_SHARE))
    elif rows > 1:
        changes.append((f"batch.micro_batch_size={rows // 2}", account.activations / 2))
    elif tokens > SHORTEST_ROW:
        changes.append((f"data.max_seq_len={tokens // 2}", account.activations / 2))
    return changes
