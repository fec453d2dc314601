"""The run config: a typed tree with the name, type, default and unit of every setting. ``checks.py`` checks its values.

The YAML files in ``conf/`` hold only values that differ from the defaults here. The text under a field is its
documentation: docs/configuration.md is generated from it.
"""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Collection, Dict, List, Optional

from ftdist.config.data import BadRecords, DataConfig, HeldoutBy, Reasoning, Turns
from ftdist.config.debug import DebugConfig
from ftdist.config.launch import GpuOption, LaunchConfig
from ftdist.config.method import MethodConfig
from ftdist.config.optim import OptimConfig
from ftdist.config.report import ReportConfig
from ftdist.config.stop_when import StopWhenConfig
from ftdist.config.sweep import Direction, SweepConfig


class Precision(Enum):
    bf16 = "bf16"
    fp32 = "fp32"


class Attention(Enum):
    auto = "auto"
    documents = "documents"
    varlen = "varlen"
    flex = "flex"
    mask = "mask"
    rows = "rows"


class Offload(Enum):
    none = "none"
    cpu = "cpu"


class Recompute(Enum):
    none = "none"
    full = "full"
    selective = "selective"


class Kernels(Enum):
    none = "none"
    liger = "liger"


class Compile(Enum):
    none = "none"
    layers = "layers"


class Wandb(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"  # not "off": YAML reads that as false


class ObjectiveKind(Enum):
    sft = "sft"


class LossHead(Enum):
    chunked = "chunked"
    logits = "logits"


@dataclass
class ModelConfig:
    path: Optional[str] = None
    """A local Hugging Face model folder or a .gguf file. Exactly one of path, hub, builtin and config is set."""
    hub: Optional[str] = None
    """A model on the Hugging Face hub: ``org/name``."""
    builtin: Optional[str] = None
    """``smollm2-135m-instruct``: pretrained weights that are installed as a Python package."""
    config: Dict[str, Any] = field(default_factory=dict)
    """A transformers model config (``model_type`` and its fields). The weights are initialized at random."""
    revision: Optional[str] = None
    """Commit, branch or tag on the hub."""
    adapter: Optional[str] = None
    """An adapter that is added to the weights before training: a folder in PEFT's format, or a run whose export is one.
    The sum is computed in fp32 and rounded once."""
    tokenizer: Optional[str] = None
    """Tokenizer folder or hub name, or ``bytes`` for a built-in byte-level tokenizer. null: the model's own."""
    tokenizer_revision: Optional[str] = None
    """Commit, branch or tag of ``model.tokenizer`` on the hub. The start of a run replaces a branch by its commit."""
    new_special_tokens: List[str] = field(default_factory=list)
    """Tokens that are added to the vocabulary. Their embeddings start as the mean of the existing ones."""
    pad_vocab_to_multiple_of: int = 1
    """Pad the number of embedding rows to a multiple of this; 64 suits tensor cores. The model never produces the added
    ids."""
    attention: Attention = Attention.auto
    """How the documents of a packed row are isolated from each other. ``documents``: SDPA on each document.
    ``varlen``: PyTorch's variable-length kernel (CUDA). ``flex``: flex attention (CUDA). ``mask``: a block-diagonal
    mask, whose size is quadratic in the row length. ``rows``: each document is a row of its own; this is slow and works
    with every causal model. ``auto``: the first of varlen, documents, mask, flex and rows that runs on this device and
    gives the loss and the gradients of plain transformers on a small stand-in of the model. The isolation is tested
    again on the model itself at the start of every run."""
    kernels: Kernels = Kernels.none
    """``liger``: train with Liger's kernels for norms, the MLP and rotary embeddings (``pip install ftdist[liger]``),
    on CUDA. At the start of a run they are compared with plain transformers on a small stand-in of the model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you trust the author. If this code builds the
    model, each document is a row of its own, and checkpoints and exports contain the code."""


@dataclass
class ObjectiveConfig:
    kind: ObjectiveKind = ObjectiveKind.sft
    """What is minimized. ``sft`` (supervised fine-tuning): the cross-entropy of the trained tokens."""
    router_aux_loss: Optional[float] = None
    """Coefficient of the balance loss of a mixture of experts, which is added to the loss. null: the model's own
    (``router_aux_loss_coef``) if ``output_router_logits`` is true in its config, else none. 0: none."""
    loss_head: LossHead = LossHead.chunked
    """How the log-probabilities of the trained tokens are computed. ``chunked``: from the hidden states, for one chunk
    of tokens at a time, so that the logits of all tokens are never in memory together. A model whose head is not known
    uses its own logits, and a line says so. ``logits``: from the logits that the model computes."""


@dataclass
class BatchConfig:
    global_batch_size: int = 8
    """Rows in each optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: int = 1
    """Rows that one rank processes at a time."""
    grad_accum_steps: Optional[int] = None
    """Micro-steps in each optimizer step. null: derived from global_batch_size."""


@dataclass
class ZeroConfig:
    stage: int = 2
    """What is sharded over the ranks. 0: nothing. 1: optimizer states. 2: also gradients. 3: also parameters."""
    offload_optimizer: Offload = Offload.none
    """``cpu``: keep the optimizer states in host memory, and run the optimizer on the CPU. Stages 1 to 3."""
    offload_param: Offload = Offload.none
    """``cpu``: keep the sharded parameters in host memory. Stage 3."""
    expert_groups: int = 1
    """Number of groups into which the experts of each layer are divided. Each group is gathered on its own, so that a
    rank needs less memory and sends more messages. Stage 3, and mixtures of experts only."""
    deepspeed: Dict[str, Any] = field(default_factory=dict)
    """Additional DeepSpeed settings, merged into the generated DeepSpeed config. Keys that ftdist generates from other
    sections cannot be set here."""


@dataclass
class TrainConfig:
    epochs: Optional[float] = None
    """Passes over the packed training rows. Set epochs or max_steps. If both are set, the more specific one is used:
    the command line before an experiment, and an experiment before a group such as ``train=one_epoch``."""
    max_steps: Optional[int] = None
    """Number of optimizer steps of the run, instead of epochs."""
    precision: Precision = Precision.bf16
    """``bf16``: weights and activations in bfloat16, master weights and optimizer states in fp32. ``fp32``: everything
    in fp32."""
    gradient_checkpointing: Recompute = Recompute.full
    """Which activations of a layer are computed again in the backward pass. ``none``: all of them are kept. ``full``:
    only the inputs of a layer are kept. This needs less memory, but about one third more computation. ``selective``:
    the outputs of attention are kept too, which saves the part of the computation that grows with the square of the
    length of documents. Eager and flex attention cannot keep them."""
    recompute_every: int = 1
    """Recompute every n-th layer only. The other layers keep all their activations."""
    offload_activations: bool = False
    """Move the activations that recomputed layers keep for the backward pass to host memory. They are copied while the
    GPU computes. Without a GPU this saves no memory."""
    compile: Compile = Compile.none
    """``layers``: compile each layer with PyTorch's compiler. The first step takes longer, and needs a C++ compiler on
    a machine without a GPU. Evaluation and sampling run the layers as they are."""
    log_every: int = 1
    """Optimizer steps between two metric records."""
    eval_every: Optional[int] = None
    """Optimizer steps between evaluations. null: only before the first and after the last step."""
    checkpoint_every: Optional[int] = None
    """Optimizer steps between checkpoints. null: only after the last step."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that are kept. Besides them, ftdist keeps the best one by held-out loss, one that
    was saved at a stop (until the next regular one), and pinned ones (``touch CHECKPOINT/pinned``)."""
    async_checkpoint: bool = True
    """Copy a checkpoint to host memory (with AdamW, 12 bytes for each parameter that a rank holds), and write it while
    training continues. false: training waits until the checkpoint is written."""
    max_bad_steps: int = 5
    """Number of consecutive bad steps after which the run goes back to its last checkpoint and skips the data that it
    has used since. A step is bad if its loss or gradient norm is not finite. The update of a bad step is skipped: no
    weight and no moment changes."""
    max_rollbacks: int = 2
    """Maximum number of rollbacks. After that the run fails and names the steps."""
    grad_spike_z: Optional[float] = None
    """Also treat a step as bad if its gradient norm is more than this many robust standard deviations (1.4826 · the
    median absolute deviation) above the median of the last grad_spike_window norms. 10 is a cautious choice. null:
    never."""
    grad_spike_window: int = 64
    """Number of gradient norms that a new one is compared with. Until this many norms are recorded, no step is
    treated as a spike."""
    num_samples: int = 2
    """Number of held-out prompts that are answered at every evaluation (greedy decoding). 0: none."""
    sample_tokens: int = 64
    """Maximum length of a sampled answer in tokens."""
    best: Optional[str] = None
    """Name of a held-out set. The checkpoint with the lowest loss on this set is the best one, and is kept. null: the
    mean loss of all held-out tokens decides."""
    stop_when: StopWhenConfig = field(default_factory=StopWhenConfig)
    export: bool = True
    """Write the trained model in Hugging Face format to ``export/`` at the end."""


@dataclass
class TrackConfig:
    wandb: Wandb = Wandb.auto
    """Weights & Biases mode. ``auto``: disabled if ``WANDB_DISABLED`` is true, else the mode in ``WANDB_MODE`` if it is
    set. Otherwise online if you are logged in, else offline. ``online`` without a login becomes offline: you are never
    asked to log in."""
    project: str = "ftdist"
    """W&B project. While it has its default, ``WANDB_PROJECT`` is used if it is set."""
    entity: Optional[str] = None
    """W&B team or user. null: ``WANDB_ENTITY`` if it is set, else your own."""
    group: Optional[str] = None
    """W&B group, for example of a sweep. null: ``WANDB_RUN_GROUP`` if it is set."""
    job_type: str = "train"
    """W&B job type. While it has its default, ``WANDB_JOB_TYPE`` is used if it is set."""
    tags: List[str] = field(default_factory=list)
    """W&B tags. Empty: ``WANDB_TAGS`` (separated by commas) if it is set."""
    run_id: Optional[str] = None
    """W&B run id. null: generated when the run is frozen, so that a resume continues the same W&B run."""


@dataclass
class RunConfig:
    name: str = "run"
    """Name of the run. It is part of the run directory's name, and the name of the W&B run."""
    runs_dir: str = "runs"
    """Folder in which run directories are created."""
    run_dir: Optional[str] = None
    """Run directory of this run. null: ``runs_dir/<date>-<time>-<name>``."""
    cache_dir: Optional[str] = None
    """Folder for prepared data and converted models. null: ``$FTDIST_CACHE`` or ``~/.cache/ftdist``."""
    seed: int = 0
    """Seed of the data order, of randomly initialized weights, and of dropout."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)


def _with_defaults(section: str, config: Any, first: Collection[str]) -> Dict[str, Any]:
    """Return the settings of a section, each with its default, except those that the first release had."""
    return {f"{section}.{one.name}": getattr(config, one.name) for one in fields(config) if one.name not in first}


ADDED_LATER: Dict[str, Any] = {
    # Settings of later methods and optimizers. Their defaults mean the old behavior.
    **_with_defaults("method", MethodConfig(), ["kind"]),
    **_with_defaults("optim", OptimConfig(), [
        "lr", "beta1", "beta2", "eps", "weight_decay", "max_grad_norm", "schedule", "warmup_steps", "decay_steps",
        "min_lr_ratio",
    ]),
    "objective": {"kind": ObjectiveKind.sft, "router_aux_loss": 0.0, "loss_head": LossHead.logits},
    "objective.router_aux_loss": 0.0, "objective.loss_head": LossHead.logits,
    "data.reasoning": Reasoning.keep, "data.sources.*.fields": {}, "data.heldout.*.fields": {},
    "data.general": {}, "data.builtin_general": False, "data.turns": Turns.auto, "data.chat_template_kwargs": {},
    "data.chat_template_date": "2024-07-26", "launch.slurm.gpus": GpuOption.gpus_per_node,
    "launch.slurm.gpu_type": None, "launch.slurm.cpus_per_gpu": None,
    "launch.slurm.setup": [], "launch.slurm.address_suffix": None, "launch.made_for_gpus": None,
    "data.bad_records": BadRecords.stop, "data.max_bad_share": 0.1, "data.heldout_by": HeldoutBy.rendering,
    "model.tokenizer_revision": None, "zero.expert_groups": 1,
    "model.adapter": None, "model.kernels": Kernels.none,
    "debug.profile": None, "train.recompute_every": 1, "train.offload_activations": False,
    "report": {"price_per_device_hour": None, "forgetting": {"texts": 0, "tokens": 64}, "at_end": False},
    "report.forgetting": {"texts": 0, "tokens": 64}, "report.at_end": False,
    "train.compile": Compile.none, "train.best": None, "train.stop_when": {"patience": None, "max_forgetting": None},
    "sweep": {"objective": None, "direction": Direction.minimize, "rungs": [], "keep": 0.5},
}  # fmt: skip
"""Settings that were added after the first release, each with the value that means the old behavior.

A ``run.yaml`` that lacks such a setting gets this value. While a setting holds this value, it is left out of the config
hash, so that older checkpoints still fit. ``*`` stands for every name; there the value must be the default of the
field. A whole section is given as a dict of all its fields. Such a section must not be the last field of RunConfig,
because a file that was cut off there would look like an old one.
"""
RENAMED_VALUES: Dict[str, Dict[str, str]] = {"train.gradient_checkpointing": {"true": "full", "false": "none"}}
"""Values that settings had in earlier versions, each with its name today. A ``run.yaml`` with such a value is read."""
