"""The configs that ``ftdist verify`` checks: the config of the run, changed so that it fits this machine.

Each difference from the run is recorded as a note, which the user sees.
"""

import copy
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Optional, Tuple

import torch

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.config.data import Format, LongDocuments, SourceConfig, TrainOn, named_sources
from ftdist.config.optim import Schedule, optimizer_of
from ftdist.config.schema import Kernels, ModelConfig, Offload, RunConfig, ZeroConfig
from ftdist.config.zero import ModelState
from ftdist.data.tokenizer import load_tokenizer
from ftdist.method.check import method_on_meta
from ftdist.model.load import load_whole, model_config
from ftdist.model.parts import build, runs_own_code
from ftdist.model.standin import (
    active_dropouts,
    config_of_standin,
    count_parameters,
    default_model_config,
    fits_in_memory,
    model_type_from_name,
    standin_config,
)
from ftdist.plan.disk import free_memory
from ftdist.plan.kernels import run_on
from ftdist.run.locations import model_location, tokenizer_location, tokenizer_revision
from ftdist.run.prepared import template_text

DOCUMENTS, QUICK_DOCUMENTS, HELDOUT_DOCUMENTS = 200, 50, 4
"""Maximum number of documents of each source, of each source with ``--quick``, and of each held-out set."""
MAX_CPU_PARAMETERS = 50_000_000
"""Maximum size of a real model on CPU, so that all checks take no more than a minute or two."""
SEQ_LEN, STANDIN_SEQ_LEN = 512, 128
"""Maximum length of rows in tokens, with the real model and with a stand-in."""
STEPS = 2
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Missing:
    """What is on the hub and cannot be read from this machine, and why.

    It is determined once and then passed on, because a request to a hub that does not answer takes half a minute.
    """

    model: Optional[ConfigError] = None
    tokenizer: Optional[ConfigError] = None


@dataclass
class Trial:
    """The configs that are checked, and how they differ from the run."""

    data_config: RunConfig
    """For the checks of data: the data and tokenizer of the run, with the first documents of each source only."""
    steps_config: RunConfig
    """For the checks of numbers: what the engine runs."""
    notes: List[str] = field(default_factory=list)
    """The differences from the run, one sentence each."""
    tokenizer_missing: str = ""
    """Why the tokenizer of the run cannot be read on this machine; "" if it can."""
    vocab_rows: Optional[int] = None
    """Number of rows of the real model's embedding, None if it could not be read."""


def missing_model(config: RunConfig) -> Optional[ConfigError]:
    """Return why the config of a model on the hub cannot be read from this machine, or None if it can."""
    try:
        if config.model.hub:
            model_config(config)
    except ConfigError as error:
        if isinstance(error.__cause__, OSError):  # otherwise it was read, and check_model reports the error
            return error
    return None


def missing_tokenizer(config: RunConfig, model: Optional[ConfigError]) -> Optional[ConfigError]:
    """Return why a tokenizer on the hub cannot be read from this machine, or None if it can.

    Args:
        model: Why the model is missing. If the tokenizer is that of the model, the hub is not asked again.

    Raises:
        ConfigError: The tokenizer cannot be used for another reason, for which a run would be refused as well.
    """
    location = tokenizer_location(config)
    template_text(config)
    if model is not None and location == config.model.hub:
        return ConfigError(f"cannot load the tokenizer {model.found}", model.expected, model.fix)
    try:
        load_tokenizer(config)
    except ConfigError as error:
        on_hub = HUB_ID.fullmatch(location) and not Path(location).exists()
        if not (on_hub and error.found.startswith("cannot load the tokenizer")):
            raise
        return error
    return None


def make_trial(
    config: RunConfig, scratch: Path, wanted_ranks: int, ranks: int, quick: bool, missing: Missing = Missing()
) -> Trial:
    """Make the configs that are checked.

    Args:
        config: The config of the run.
        scratch: Folder for the cache of this check.
        wanted_ranks: Number of ranks of the run.
        ranks: Number of ranks of this check.
        quick: Read fewer documents, use a stand-in model and generated chats.
        missing: What cannot be read from the hub.

    Raises:
        ConfigError: The config of the model cannot be read, and its name does not tell its class.
    """
    config = copy.deepcopy(config)
    trial = Trial(config, config)
    trial.tokenizer_missing = missing.tokenizer.found if missing.tokenizer else ""
    arch, is_real = _architecture(config, trial, missing.model)
    if dropouts := active_dropouts(arch):
        trial.notes.append(f"numbers are checked without the dropout of the model ({', '.join(dropouts)}): with it, "
                           "each forward pass gives other numbers")  # fmt: skip
    config.model = _resolve_path(config)  # before the cache is changed, in which the model may be
    config.cache_dir, config.data.num_workers = str(scratch / "cache"), 1
    for source in named_sources(config.data).values():
        limit = QUICK_DOCUMENTS if quick else DOCUMENTS
        source.max_documents = min(source.max_documents or limit, limit)
    trial.data_config, trial.steps_config = config, copy.deepcopy(config)
    steps = trial.steps_config
    if not is_real or quick or not _real_model_fits(arch, ranks, trial):
        _use_standin(steps, arch, trial, scratch)
        _fit_method(steps, trial)
        if steps.method.facts.quantized:  # the reference reads it from a folder
            load_whole(steps).save_pretrained(scratch / "standin")
            steps.model.path, steps.model.config = str(scratch / "standin"), {}
    if quick or trial.tokenizer_missing:
        use_generated_chats(steps, trial)
    if steps.model.kernels is not Kernels.none and not run_on("cuda" if torch.cuda.is_available() else "cpu"):
        trial.notes.append("numbers are checked without Liger's kernels: this machine has no GPU")
        steps.model.kernels = Kernels.none
    if steps.method.lora_dropout:
        trial.notes.append("numbers are checked without the dropout of the adapters")
        steps.method.lora_dropout = 0.0
    _shorten(steps, trial, wanted_ranks, ranks)
    return trial


def use_generated_chats(steps: RunConfig, trial: Trial) -> None:
    """Replace the data of the run by generated chats. The checks of numbers work with any tokens."""
    steps.data.sources = {"fake": SourceConfig(builtin="fake", max_documents=DOCUMENTS, format=Format.auto)}
    steps.data.heldout, steps.data.heldout_share, steps.data.general = {}, 0.05, {}
    steps.data.long_documents = LongDocuments.truncate
    if steps.data.train_on is TrainOn.completion:
        steps.data.train_on = TrainOn.auto
    steps.data.chat_template = "chatml"
    steps.data.max_seq_len = max(steps.data.max_seq_len, STANDIN_SEQ_LEN)
    trial.notes.append("numbers are checked on generated chats")


def _architecture(config: RunConfig, trial: Trial, missing: Optional[ConfigError]) -> Tuple[Any, bool]:
    """Return the model config, and whether it is the real one. If not, it is the default config of the class that the
    name of the model suggests."""
    if missing is None:
        arch = model_config(config)
        trial.vocab_rows = arch.get_text_config().vocab_size
        return arch, True
    model_type = model_type_from_name(config.model.hub or "")
    if not model_type:
        raise missing
    trial.notes.append(f"{config.model.hub} cannot be read from this machine ({missing.found[:80]}): its name "
                       f"suggests the class {model_type}")  # fmt: skip
    return default_model_config(model_type), False


def _resolve_path(config: RunConfig) -> ModelConfig:
    """Return the model settings with the path of a model that is in the cache."""
    model = copy.deepcopy(config.model)
    if model.builtin or (model.path and model.path.lower().endswith(".gguf")):
        model.path, model.builtin = model_location(config), None
    return model


def _real_model_fits(arch: Any, ranks: int, trial: Trial) -> bool:
    """Return whether the numbers can be checked on the real model. If not, a note says why."""
    parameters = count_parameters(arch)
    cuda = torch.cuda.is_available()
    memory = torch.cuda.mem_get_info()[0] * ranks if cuda else free_memory()
    enough, needed = fits_in_memory(parameters, ranks, memory, optimizer_of(trial.steps_config.optim))
    if not enough:
        trial.notes.append(f"the real model does not fit on this machine: {needed}, {memory / 2**30:.1f} GiB are free")
    elif not cuda and parameters > MAX_CPU_PARAMETERS:
        trial.notes.append(f"the real model ({parameters / 1e6:,.0f}M parameters) would take too long on CPU")
        return False
    return enough


def _use_standin(steps: RunConfig, arch: Any, trial: Trial, scratch: Path) -> None:
    """Replace the model by a small one of the same class. A model with Python code of its own is saved with it."""
    location = "bytes" if trial.tokenizer_missing else tokenizer_location(steps)
    steps.model = ModelConfig(
        tokenizer=location, tokenizer_revision=tokenizer_revision(steps), attention=steps.model.attention,
        kernels=steps.model.kernels, new_special_tokens=steps.model.new_special_tokens,
        pad_vocab_to_multiple_of=steps.model.pad_vocab_to_multiple_of,
    )  # fmt: skip
    tokenizer = load_tokenizer(steps)
    fields = standin_config(arch, tokenizer.num_known_tokens)
    if runs_own_code(arch):
        build(config_of_standin(fields, arch), dtype=torch.float32).save_pretrained(scratch / "small")
        steps.model.path, steps.model.trust_remote_code = str(scratch / "small"), True
    else:
        steps.model.config = fields
    steps.data.max_seq_len = min(steps.data.max_seq_len, STANDIN_SEQ_LEN)
    _shard_small_parameters(steps.zero)
    parameters = count_parameters(model_config(steps))
    if steps.method.init_from:
        trial.notes.append("the stand-in does not start from the adapter of method.init_from")
        steps.method.init_from = None
    trial.notes.append(f"numbers are checked on a stand-in model: {fields['model_type']} with random "
                       f"weights, {parameters / 1e6:.1f}M parameters")  # fmt: skip


def _shard_small_parameters(zero: ZeroConfig) -> None:
    """With ZeRO-3, shard all parameters. DeepSpeed keeps small ones whole on every rank, and those of a stand-in are
    all small."""
    if ModelState.parameters.is_sharded(zero.stage):
        given = {**zero.deepspeed.get("zero_optimization", {})}
        given.pop("param_persistence_threshold", None)
        zero.deepspeed["zero_optimization"] = {**given, "stage3_param_persistence_threshold": 0}


def _fit_method(steps: RunConfig, trial: Trial) -> None:
    """Train other layers if the config names layers that the stand-in does not have: it has fewer layers."""
    try:
        method_on_meta(steps)
    except ConfigError as error:
        method = steps.method
        method.layers_to_transform, method.last_layers = None, min(method.last_layers, 1)
        if method.facts.adapters:
            method.target_modules = ["all-linear"]
        method.trainable = ["norms"] if method.trainable else []
        trial.notes.append(f"the stand-in lacks layers that the config names ({error.found}): others are trained")


def _shorten(steps: RunConfig, trial: Trial, wanted_ranks: int, ranks: int) -> None:
    """Reduce the run to a few steps on few rows, with a checkpoint after each step."""
    batch, data = steps.batch, steps.data
    micro = min(batch.micro_batch_size, 2)
    accum = min(max(1, batch.global_batch_size // (batch.micro_batch_size * wanted_ranks)), 2)
    length = min(data.max_seq_len, SEQ_LEN)
    rows = f"{micro} × {accum} × {count(ranks, 'row')} (micro-batch × accumulation × ranks)"
    trial.notes.append(f"{STEPS} steps of {rows} of {length} tokens; at most {HELDOUT_DOCUMENTS} documents of each "
                       "held-out set")  # fmt: skip
    batch.micro_batch_size, batch.grad_accum_steps, batch.global_batch_size = micro, accum, micro * accum * ranks
    data.max_seq_len, data.max_heldout_documents = length, HELDOUT_DOCUMENTS
    optim, train = steps.optim, steps.train
    optim.warmup_steps = min(STEPS if optim.warmup_ratio else optim.warmup_steps, STEPS)
    optim.warmup_ratio, optim.shorten_warmup = None, False
    if optim.schedule is Schedule.wsd:
        optim.decay_steps, optim.warmup_steps = 1, min(optim.warmup_steps, 1)
    train.epochs, train.max_steps, train.checkpoint_every, train.eval_every = None, STEPS, 1, None
    train.best, train.stop_when = None, type(train.stop_when)()
    data.general, data.builtin_general = {}, False
    train.num_samples, train.export, train.log_every, train.keep_checkpoints = 0, False, 1, STEPS
    steps.track.wandb, steps.sweep = type(steps.track.wandb).disabled, type(steps.sweep)()
    if not torch.cuda.is_available() and steps.zero.offload_optimizer is not Offload.none:
        trial.notes.append("offloading is checked without a GPU: all states are in host memory")
    assert math.prod((micro, accum, ranks)) == batch.global_batch_size
