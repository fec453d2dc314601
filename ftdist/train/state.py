"""The parts of a training run, and how far the run has come."""

from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, List, Optional

from ftdist.checkpoint.saver import Saver
from ftdist.config.schema import RunConfig
from ftdist.engine.engine import Engine
from ftdist.objective.base import Objective
from ftdist.parallel.mesh import Mesh
from ftdist.parallel.ranks import Ranks, on_rank_0
from ftdist.plan.batch import BatchPlan
from ftdist.run.model_facts import longest_text
from ftdist.run.prepared import GENERAL
from ftdist.run.rundir import RunDir
from ftdist.track.progress import Progress
from ftdist.track.tracker import Tracker
from ftdist.train.batches import BatchReader
from ftdist.train.forgetting import Forgetting
from ftdist.train.phases import PhaseClock
from ftdist.train.preempt import Preemption
from ftdist.train.timeline import TrainingTimeline

HELDOUT = "eval/"
"""Prefix of the names of metrics of held-out sets."""


@dataclass
class TrainState:
    """How far the run has come. A checkpoint stores it in ``state.json``.

    The position in the data follows from ``step`` and ``skipped``, so the data loader has no state of its own.
    """

    step: int = 0
    """Number of optimizer steps done."""
    tokens_seen: int = 0
    """Number of input tokens so far over all ranks, without padding."""
    trained_tokens: int = 0
    """Number of tokens with a label so far, over all ranks."""
    eval_loss: Optional[float] = None
    """Held-out loss of the newest evaluation in nats per token, by which checkpoints are compared (``train.best``)."""
    evaluated_step: Optional[int] = None
    """Step of the newest evaluation."""
    first_loss: Optional[float] = None
    """``eval_loss`` before the first step."""
    best_loss: Optional[float] = None
    """The lowest ``eval_loss`` so far."""
    best_step: Optional[int] = None
    """Step of the evaluation with ``best_loss``."""
    since_best: int = 0
    """Number of evaluations since then."""
    stop_reason: str = ""
    """Why the run ends before its last step (``train.stop_when``). Empty: the run goes on."""
    bad_in_a_row: int = 0
    """Number of bad steps since the last good one. The update of a bad step is left out."""
    skipped: List[List[int]] = field(default_factory=list)
    """One ``[step, batches]`` for each rollback that still applies: after step ``step``, the run skipped ``batches``
    global batches."""
    rollbacks: int = 0
    """Number of times that the run has rolled back to a checkpoint."""
    grad_norms: List[float] = field(default_factory=list)
    """Gradient norms of the last good steps. They are only kept if ``train.grad_spike_z`` is set."""

    def batch_index(self, step: int) -> int:
        """Return the index in the data order of the global batch that optimizer step ``step`` (0 is the first) uses."""
        return step + sum(batches for at, batches in self.skipped if at <= step)

    def as_dict(self) -> Dict[str, Any]:
        """Return the fields as plain values for ``state.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Dict[str, Any]) -> "TrainState":
        """Return the state that ``state.json`` holds. Fields that it lacks have their default; others are ignored."""
        return cls(**{name: saved[name] for name in cls().as_dict() if name in saved})


@dataclass
class Training:
    """The parts of a run. ``ftdist.train.main`` builds them."""

    config: RunConfig
    run: RunDir
    ranks: Ranks
    plan: BatchPlan
    mesh: Mesh
    engine: Engine
    objective: Objective
    tokenizer: Any
    vocab_size: int
    """Number of rows of the embedding that are real tokens."""
    train_set: Any
    heldout: Dict[str, Any]
    """Held-out sets by name."""
    prompts: Dict[str, Any]
    """Prompts that the model answers at each evaluation, by held-out set."""
    general: Dict[str, Any]
    """General texts by name. They show what the model forgets."""
    max_steps: int
    """Number of optimizer steps of the whole run."""
    tracker: Tracker
    progress: Progress
    preemption: Preemption
    saver: Saver
    state: TrainState = field(default_factory=TrainState)
    busy: Callable[[str], None] = lambda activity: None
    """Tells the other ranks that this rank starts an activity that may take long. "" ends the activity."""
    clock: PhaseClock = field(init=False)
    """Measures the phases of the steps."""
    timeline: TrainingTimeline = field(init=False)
    """Records the phases of the run."""
    batches: BatchReader = field(init=False)
    """Reads the micro-batches of the steps."""
    forgetting: Forgetting = field(init=False)
    """Measures forgetting at evaluations."""
    longest_text: Optional[int] = field(init=False)
    """Number of tokens of the longest text that the model can read. None: no limit is known."""

    def evaluated_sets(self) -> Dict[str, Any]:
        """Return the sets of an evaluation by the names of their metrics: ``eval/<name>`` and ``general/<name>``."""
        heldout = {f"{HELDOUT}{name}": dataset for name, dataset in self.heldout.items()}
        return {**heldout, **{f"{GENERAL}/{name}": dataset for name, dataset in self.general.items()}}

    def __post_init__(self) -> None:
        self.clock = PhaseClock(self.mesh.device)
        self.timeline = TrainingTimeline(self.run, self.ranks.first)
        self.forgetting = Forgetting(self)
        self.longest_text = on_rank_0(self.ranks, lambda: longest_text(self.config))  # others may not have its cache
        self.batches = BatchReader(self.config, self.train_set, self.plan, self.mesh, self.tokenizer.pad_token_id,
                                   lambda batch: self.objective.weight(batch))  # fmt: skip
