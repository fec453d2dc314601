"""What a training run is made of, and how far it has come."""

from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, List, Optional

from ftdist.checkpoint.saver import Saver
from ftdist.config.schema import RunConfig
from ftdist.engine.engine import Engine
from ftdist.objective.base import Objective
from ftdist.parallel.mesh import Mesh
from ftdist.parallel.ranks import Ranks
from ftdist.plan.batch import BatchPlan
from ftdist.run.rundir import RunDir
from ftdist.track.progress import Progress
from ftdist.track.tracker import Tracker
from ftdist.train.preempt import Preemption


@dataclass
class Done:
    """How far the run has come: the loader's whole state is the step."""

    step: int = 0
    """Optimizer steps done."""
    tokens_seen: int = 0
    """Input tokens so far, without padding, over all ranks."""
    trained_tokens: int = 0
    """Tokens with a label so far, over all ranks."""
    eval_loss: Optional[float] = None
    """Newest held-out loss over all held-out sets together, nats a token."""
    evaluated_step: Optional[int] = None
    """Step of the newest evaluation."""
    bad_in_a_row: int = 0
    """Newest steps whose update was left out."""
    skipped: List[List[int]] = field(default_factory=list)
    """``[step, batches]`` of each roll-back: from that step on, the data order is ahead by so many batches."""
    rollbacks: int = 0
    """Times that the run has gone back to a checkpoint."""
    grad_norms: List[float] = field(default_factory=list)
    """Newest gradient norms that were updated with; kept only where train.grad_spike_z is set."""

    def batch_index(self, step: int) -> int:
        """Place in the run's data order of the global batch that optimizer step ``step`` (0 is the first) takes."""
        return step + sum(batches for at, batches in self.skipped if at <= step)

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)


@dataclass
class Training:
    """The parts of a run, wired together in main."""

    config: RunConfig
    run: RunDir
    ranks: Ranks
    plan: BatchPlan
    mesh: Mesh
    engine: Engine
    objective: Objective
    tokenizer: Any
    vocab_size: int
    """Rows of the embedding that are real tokens."""
    train_set: Any
    heldout: Dict[str, Any]
    """Held-out sets by name."""
    prompts: Dict[str, Any]
    """Held-out prompts to answer, by set."""
    max_steps: int
    tracker: Tracker
    progress: Progress
    preemption: Preemption
    saver: Saver
    done: Done = field(default_factory=Done)
    busy: Callable[[str], None] = lambda doing: None
    """Tells the other ranks that this one does what may take long; "" ends that."""
