"""The run config: one typed tree that holds names, types, defaults and units. Its checks are in ``checks.py``.

YAML in ``conf/`` holds only values that differ from the defaults here. The text under a field is its documentation:
the configuration reference is generated from it.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, List, Optional

from ftdist.config.launch import Device as Device  # a part of the tree that is written down elsewhere
from ftdist.config.launch import LaunchConfig as LaunchConfig
from ftdist.config.launch import LaunchKind as LaunchKind


class Precision(Enum):
    bf16 = "bf16"
    fp32 = "fp32"


class Format(Enum):
    auto = "auto"
    text = "text"
    messages = "messages"
    prompt_completion = "prompt_completion"
    alpaca = "alpaca"
    sharegpt = "sharegpt"


class TrainOn(Enum):
    auto = "auto"
    assistant = "assistant"
    completion = "completion"
    last = "last"
    all = "all"


class LongDocuments(Enum):
    truncate = "truncate"
    split = "split"
    drop = "drop"


class Attention(Enum):
    auto = "auto"
    documents = "documents"
    varlen = "varlen"
    flex = "flex"
    mask = "mask"


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"


class Offload(Enum):
    none = "none"
    cpu = "cpu"


class Wandb(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"  # not "off": YAML reads that as false


class MethodKind(Enum):
    full = "full"


class ObjectiveKind(Enum):
    sft = "sft"


class OptimizerKind(Enum):
    adamw = "adamw"


@dataclass
class SourceConfig:
    path: Optional[str] = None
    """A local file (.jsonl .json .csv .parquet .txt .arrow, or a glob of them) or a folder made by
    ``datasets.save_to_disk``. Exactly one of path, hub and builtin is set."""
    hub: Optional[str] = None
    """A data set on the Hugging Face hub, ``org/name``."""
    builtin: Optional[str] = None
    """``stdlib_docs`` (questions and answers from the Python standard library's docstrings) or ``fake``
    (generated chats of random words, variable length)."""
    subset: Optional[str] = None
    """Hub data set configuration name."""
    split: str = "train"
    """Split of a hub data set or of a saved DatasetDict."""
    revision: Optional[str] = None
    """Hub commit, branch or tag. Give a commit for a run that can be repeated."""
    format: Format = Format.auto
    """How a record is read; ``auto`` recognises it from its fields."""
    weight: float = 1.0
    """Passes over this source in one epoch: 2 takes every document twice, 0.5 a seeded half of them."""
    max_documents: Optional[int] = None
    """Read at most this many documents (for ``fake``: how many to generate)."""


@dataclass
class DataConfig:
    sources: Dict[str, SourceConfig] = field(default_factory=dict)
    """Training sources by a name of your choice."""
    heldout: Dict[str, SourceConfig] = field(default_factory=dict)
    """Held-out sources by name; each is evaluated on its own as ``eval/<name>/loss``."""
    heldout_share: float = 0.0
    """Share (0 to 0.5) of the documents of ``sources`` held out as ``eval/heldout/loss``. A document is chosen by a
    hash of its content, so equal documents are never on both sides and the choice does not depend on order."""
    max_heldout_documents: Optional[int] = None
    """Keep at most this many held-out documents per held-out set."""
    train_on: TrainOn = TrainOn.auto
    """Which tokens are trained. ``auto``: assistant turns of chats, completions of prompt/completion records, all of
    plain text. ``last``: the last assistant turn only."""
    chat_template: Optional[str] = None
    """Chat template: a name that ftdist ships (``chatml``) or a path of a Jinja file; default the tokenizer's own."""
    max_seq_len: int = 2048
    """Tokens in one row."""
    packing: bool = True
    """Pack whole documents into rows, isolated from each other; false puts one document in a row and pads."""
    long_documents: LongDocuments = LongDocuments.truncate
    """What to do with a document longer than max_seq_len: cut its end off, split it into several, or drop it."""
    num_workers: Optional[int] = None
    """Processes that tokenise; default one per core."""


@dataclass
class ModelConfig:
    path: Optional[str] = None
    """A local Hugging Face model folder or a .gguf file. Exactly one of path, hub, builtin and config is set."""
    hub: Optional[str] = None
    """A model on the Hugging Face hub, ``org/name``."""
    builtin: Optional[str] = None
    """``smollm2-135m-instruct``: real weights that arrive as a Python package."""
    config: Dict[str, Any] = field(default_factory=dict)
    """A transformers model config (``model_type`` and its fields): the weights are initialised at random."""
    revision: Optional[str] = None
    """Hub commit, branch or tag."""
    tokenizer: Optional[str] = None
    """Tokenizer folder or hub name, or ``bytes`` for a built-in byte-level one; default the model's own."""
    new_special_tokens: List[str] = field(default_factory=list)
    """Tokens added to the vocabulary; their embeddings start as the mean of the existing ones."""
    pad_vocab_to_multiple_of: int = 1
    """Pad the embedding's first dim to a multiple of this (64 suits tensor cores); padded ids are never produced."""
    attention: Attention = Attention.auto
    """How packed documents are isolated. ``documents``: SDPA per document (any device); ``varlen``: PyTorch's
    variable-length kernel (CUDA); ``flex``: flex attention (CUDA); ``mask``: a block-diagonal mask, quadratic in the
    row. ``auto``: varlen on CUDA, documents on CPU. Proven isolating at the start of every run."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""


@dataclass
class MethodConfig:
    kind: MethodKind = MethodKind.full
    """Which parameters are trained. ``full``: all of them."""


@dataclass
class ObjectiveConfig:
    kind: ObjectiveKind = ObjectiveKind.sft
    """What is minimised. ``sft`` (supervised fine-tuning): the cross-entropy of the trained tokens."""


@dataclass
class BatchConfig:
    global_batch_size: int = 8
    """Rows per optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: int = 1
    """Rows that one rank puts through the model at a time."""
    grad_accum_steps: Optional[int] = None
    """Micro-steps per optimizer step; derived from global_batch_size where not given."""


@dataclass
class OptimConfig:
    optimizer: OptimizerKind = OptimizerKind.adamw
    """The optimizer. ``adamw``: Adam with decoupled weight decay, with fp32 states."""
    lr: float = 1.0e-5
    """Peak learning rate of AdamW."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    eps: float = 1.0e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Decoupled weight decay on matrices; norms and biases have none."""
    max_grad_norm: float = 1.0
    """The global gradient norm is clipped to this; 0 does not clip."""
    schedule: Schedule = Schedule.cosine
    """Learning rate after warm-up: constant, linear or cosine down to min_lr_ratio at the end, or wsd
    (warmup-stable-decay: constant, then linear over the last decay_steps)."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up from 0."""
    warmup_ratio: Optional[float] = None
    """Warm-up as a share (0 to 1) of the run's optimizer steps, rounded up. Set it instead of ``warmup_steps``; it is
    replaced by ``warmup_steps`` when the number of steps is known."""
    shorten_warmup: bool = False
    """If the warm-up does not fit into the run, shorten it to at most a tenth of the run. Otherwise such a run is
    refused. Set to true when the warm-up comes from a file of this group, such as ``optim=cosine``."""
    decay_steps: int = 0
    """Optimizer steps of the final decay of ``wsd``."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end, as a share of lr."""


@dataclass
class ZeroConfig:
    stage: int = 2
    """What is sharded over ranks. 0: nothing; 1: optimizer states; 2: gradients too; 3: parameters too."""
    offload_optimizer: Offload = Offload.none
    """Keep optimizer states (and run the optimizer) in host memory. Stages 1 to 3."""
    offload_param: Offload = Offload.none
    """Keep sharded parameters in host memory. Stage 3."""
    deepspeed: Dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed keys, merged into the generated config. A key that ftdist owns is refused."""


@dataclass
class TrainConfig:
    epochs: Optional[float] = None
    """Passes over the packed training rows. Exactly one of epochs and max_steps is set."""
    max_steps: Optional[int] = None
    """Optimizer steps of the run."""
    precision: Precision = Precision.bf16
    """bf16: weights and activations in bfloat16, master weights and optimizer states in fp32. fp32: all fp32."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    log_every: int = 1
    """Optimizer steps between two metric records."""
    eval_every: Optional[int] = None
    """Optimizer steps between evaluations; default only before the first and after the last step."""
    checkpoint_every: Optional[int] = None
    """Optimizer steps between checkpoints; default only after the last step."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the best one by held-out loss, that of a stop until the next is due, and pinned ones
    (``touch CHECKPOINT/pinned``) besides."""
    async_checkpoint: bool = True
    """Copy a checkpoint to host memory (12 bytes for each parameter that a rank holds) and write it while training goes
    on; false waits until it is written."""
    max_bad_steps: int = 5
    """Steps in a row whose loss or gradient norm is not finite, after which the run goes back to its last checkpoint
    and leaves out the data that it has had since. Each such step is itself left out: no weight or moment changes."""
    max_rollbacks: int = 2
    """Times that a run may go back so; then it stops and says where."""
    grad_spike_z: Optional[float] = None
    """Leave out a step too whose gradient norm is more than this many robust standard deviations (1.4826 · the median
    absolute deviation) above the median of the last grad_spike_window norms; default never. 10 is a careful choice."""
    grad_spike_window: int = 64
    """Gradient norms that a spike is measured against; before there are so many, none is."""
    num_samples: int = 2
    """Held-out prompts answered at every evaluation (greedy); 0 for none."""
    sample_tokens: int = 64
    """Longest sampled answer, in tokens."""
    export: bool = True
    """Write the trained model in Hugging Face format to ``export/`` at the end."""


@dataclass
class TrackConfig:
    wandb: Wandb = Wandb.auto
    """auto: online where you are logged in, else offline; nothing is ever asked."""
    project: str = "ftdist"
    """W&B project."""
    entity: Optional[str] = None
    """W&B team or user; default your own."""
    group: Optional[str] = None
    """W&B group, e.g. of a sweep."""
    job_type: str = "train"
    """W&B job type."""
    tags: List[str] = field(default_factory=list)
    """W&B tags."""
    run_id: Optional[str] = None
    """W&B run id; made when the run is frozen, so that a resume continues the same W&B run."""


@dataclass
class DebugConfig:
    deterministic: bool = False
    """Only deterministic kernels (slower on GPUs); an operation that has none is an error."""
    detect_anomaly: bool = False
    """Name the forward operation whose backward made a NaN (several times slower)."""


@dataclass
class RunConfig:
    name: str = "run"
    """Name of the run: part of its directory and its W&B name."""
    runs_dir: str = "runs"
    """Folder in which run directories are made."""
    run_dir: Optional[str] = None
    """This run's directory; default ``runs_dir/<date>-<time>-<name>``."""
    cache_dir: Optional[str] = None
    """Where prepared data and converted models are kept; default ``$FTDIST_CACHE`` or ``~/.cache/ftdist``."""
    seed: int = 0
    """Seeds the data order, the weights that are initialised at random, and dropout."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)


ADDED_LATER: Dict[str, Any] = {
    "objective": {"kind": ObjectiveKind.sft}, "optim.optimizer": OptimizerKind.adamw, "optim.warmup_ratio": None,
    "optim.shorten_warmup": False,
}  # fmt: skip
"""Settings that were added after the first release, each with the value that means the old behaviour.

A ``run.yaml`` that lacks such a setting gets this value. While a setting holds this value, it is left out of the config
hash, so that older checkpoints still fit. A whole section is given as a dict of all its fields. Such a section must not
be the last field of RunConfig, because a file that was cut off there would look like an old one.
"""
