"""The error message when memory runs out: what fills it, and the one change of the config that would free the most."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, List, Optional, Tuple

import torch

from ftdist.base.errors import TrainError
from ftdist.config.optim import OPTIMIZERS
from ftdist.config.schema import Offload, Recompute, RunConfig, ZeroConfig
from ftdist.config.zero import ModelState
from ftdist.model.forward import plan_of
from ftdist.model.vocabulary import whole_shape
from ftdist.parallel.device_memory import peak_memory_gib
from ftdist.parallel.ranks import Ranks
from ftdist.plan.activations import recomputes_all
from ftdist.plan.layout import Layout
from ftdist.plan.memory import States, loading_bytes, memory_of, numbers_saved
from ftdist.run.model_facts import read_facts
from ftdist.train.describe import eager_bytes

GIB = 2**30
SHORTEST_ROW = 256
"""Rows shorter than this many tokens are not proposed."""
RECOMPUTED_SHARE = 0.7
"""Share of the activations that gradient checkpointing is assumed to free."""
Scores = Callable[[RunConfig], float]
"""Returns the bytes of the scores of eager attention that a rank keeps with a config."""


def _no_scores(config: RunConfig) -> float:
    return 0.0


@dataclass(frozen=True)
class Account:
    """What one rank holds in memory, in bytes.

    The model states are computed by the formula of docs/step.md ("What ZeRO shards"). The activations are the rest of
    the measured peak.
    """

    states: States
    activations: float
    scores: float = 0.0
    """The part of the activations that are scores of eager attention."""
    exchange: float = 0.0
    """The part that DeepSpeed has for communication: its buffers, and weights that are gathered."""

    def with_exchange(self, size: int) -> "Account":
        """Return the account with the bytes of communication as an item of their own."""
        return replace(self, exchange=min(self.activations - self.scores, size))

    def __str__(self) -> str:
        parts = {"parameters": self.states.parameters, "gradients": self.states.gradients,
                 "optimizer states": self.states.optimizer_states,
                 "communication": self.exchange, "the scores of eager attention": self.scores,
                 "activations and the rest": self.activations - self.scores - self.exchange}  # fmt: skip
        return ", ".join(f"{size / GIB:.1f} GiB for {name}" for name, size in parts.items() if size)


def explain_out_of_memory(error: BaseException, config: RunConfig, ranks: Ranks, training: Any) -> BaseException:
    """Return an error that says what filled the memory, if memory ran out. Otherwise return ``error`` itself.

    Args:
        training: The parts of the run, or None if they are not built yet.
    """
    if not is_out_of_memory(error):
        return error
    cuda, first_line = ranks.device.type == "cuda", str(error).splitlines()[0] if str(error) else "MemoryError"
    layout, peak = Layout.of_world(ranks.world_size), 0.0
    scores: Scores = _no_scores
    if training is None:
        facts = read_facts(config)
        parameters, when, held = facts.parameters + facts.added if facts else 0, "while the model was loaded", ""
        parameters -= numbers_saved(facts.quantized, config.train.precision) if facts else 0
        trained = facts.trained if facts else None
        if facts:
            held = f". A rank needs about {account_for(config, parameters, layout, peak, cuda, trained=trained)}"
        if facts and facts.quantized:
            loaded = loading_bytes(config, facts.parameters, layout) / GIB
            held += (
                f". While the model is loaded, before its matrices get 4 bits, a rank holds {loaded:.1f} GiB of weights"
            )
    else:
        numbers = [(whole_shape(p).numel(), p.requires_grad) for p in training.engine.module.parameters()]
        parameters = sum(count for count, _ in numbers)
        trained = sum(count for count, is_trained in numbers if is_trained)
        peak = peak_memory_gib(ranks.device) * GIB
        engine = training.engine
        scores = partial(eager_bytes, arch=engine.module.config, plan=plan_of(engine))
        when = f"at step {training.state.step + 1}"
        account = account_for(config, parameters, layout, peak, cuda, scores, trained)
        if cuda:  # in host memory, only those pages of a buffer take memory that were written
            account = account.with_exchange(engine.exchange_bytes(config.train.precision))
        held = f". At its peak of {peak / GIB:.1f} GiB the rank used about {account}"
    change, freed = best_change(config, parameters or 1, layout, peak, cuda, scores, trained)
    frees = f" (frees about {freed / GIB:.1f} GiB)" if parameters else ""
    explained = TrainError(f"memory ran out {when}: {first_line.rstrip('.')}{held}",
                           "enough memory for the model, the optimizer states and the activations",
                           f"{change}{frees}")  # fmt: skip
    explained.__cause__ = error
    return explained


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that GPU or host memory is full."""
    cpu = isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
    return cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def account_for(
    config: RunConfig, parameters: int, layout: Layout, peak: float, cuda: bool, scores: Scores = _no_scores,
    trained: Optional[int] = None,
) -> Account:  # fmt: skip
    """Return what fills the memory of a rank: the memory of its GPU, or on CPU the host memory with offloaded states.

    Args:
        parameters: Number of parameters of the whole model.
        peak: Measured peak memory of the rank in bytes.
        scores: Returns the bytes of the scores of eager attention with a config.
        trained: Number of trained parameters; None for all.
    """
    states = _held(config, config.zero, parameters, layout, cuda, trained)
    activations = max(0.0, peak - states.total)
    return Account(states, activations, min(activations, scores(config)))


def best_change(
    config: RunConfig, parameters: int, layout: Layout, peak: float, cuda: bool, scores: Scores = _no_scores,
    trained: Optional[int] = None,
) -> Tuple[str, float]:  # fmt: skip
    """Return the change that frees the most memory as a config override, and the bytes that it frees."""
    found = sorted(_changes(config, parameters, layout, peak, cuda, scores, trained), key=lambda change: -change[1])
    return (
        found[0]
        if found and found[0][1] > 0
        else ("use more ranks, more memory for each rank, or a smaller model", 0.0)
    )


def _held(
    config: RunConfig, zero: ZeroConfig, parameters: int, layout: Layout, cuda: bool, trained: Optional[int]
) -> States:
    """Return the model states that a rank holds in this memory with the settings ``zero``."""
    memory = memory_of(replace(config, zero=zero), parameters, layout, trained)
    return memory.device if cuda else memory.device + memory.host


def _changes(
    config: RunConfig, parameters: int, layout: Layout, peak: float, cuda: bool, scores: Scores,
    trained: Optional[int],
) -> List[Tuple[str, float]]:  # fmt: skip
    """Return the possible changes of the config as overrides, each with the bytes that it frees."""
    zero = config.zero
    now = account_for(config, parameters, layout, peak, cuda, scores, trained)
    settings: List[Tuple[str, ZeroConfig]] = []
    whole = bool(OPTIMIZERS[config.optim.optimizer].whole)  # such an optimizer works at stage 0 only
    for stage in range(zero.stage + 1, 1 if whole else 4):
        settings.append((f"zero.stage={stage}", replace(zero, stage=stage)))
    if cuda and zero.offload_optimizer is Offload.none and not whole and not config.optim.paged:
        stage = max(zero.stage, 1)
        changed = replace(zero, stage=stage, offload_optimizer=Offload.cpu)
        stage_too = "" if stage == zero.stage else f"zero.stage={stage} "
        settings.append((f"{stage_too}zero.offload_optimizer=cpu", changed))
    if cuda and ModelState.parameters.is_sharded(zero.stage) and zero.offload_param is Offload.none:
        settings.append(("zero.offload_param=cpu", replace(zero, offload_param=Offload.cpu)))
    changes = [
        (override, now.states.total - _held(config, changed, parameters, layout, cuda, trained).total)
        for override, changed in settings
    ]
    rows, tokens, rest = config.batch.micro_batch_size, config.data.max_seq_len, now.activations - now.scores

    def less(changed: RunConfig, share: float) -> float:
        return rest * share + max(0.0, now.scores - scores(changed))

    if not recomputes_all(config.train):
        every = config.train.recompute_every
        all_layers = replace(config.train, gradient_checkpointing=Recompute.full, recompute_every=1)
        # The layers that are recomputed already free nothing more.
        share = RECOMPUTED_SHARE * (1 - 1 / every if every > 1 else 1)
        changes.append(("train.gradient_checkpointing=full" + (" train.recompute_every=1" if every > 1 else ""),
                        less(replace(config, train=all_layers), share)))  # fmt: skip
    elif rows > 1:
        fewer = replace(config, batch=replace(config.batch, micro_batch_size=rows // 2))
        changes.append((f"batch.micro_batch_size={rows // 2}", less(fewer, 1 / 2)))
    elif tokens > SHORTEST_ROW:
        shorter = replace(config, data=replace(config.data, max_seq_len=tokens // 2))
        changes.append((f"data.max_seq_len={tokens // 2}", less(shorter, 1 / 2)))
    return changes
