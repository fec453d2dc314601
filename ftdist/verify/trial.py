"""The config that is checked: the run's own, made to fit the machine. What differs is noted and shown."""

import copy
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Optional, Tuple

import psutil
import torch

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Format, LongDocuments, ModelConfig, Offload, RunConfig, Schedule, SourceConfig, TrainOn
from ftdist.data.tokenizer import load_tokenizer
from ftdist.model.load import model_config
from ftdist.model.standin import (
    active_dropouts,
    count_parameters,
    default_model_config,
    fits_in_memory,
    model_type_from_name,
    standin_config,
)
from ftdist.plan.optimizers import optimizer_of
from ftdist.run.locations import model_location, tokenizer_location
from ftdist.run.prepared import template_text

DOCUMENTS, QUICK_DOCUMENTS, HELDOUT_DOCUMENTS = 200, 50, 4
MOST_CPU_PARAMETERS = 50_000_000  # the whole of the checks stays within a minute or two
SEQ_LEN, STANDIN_SEQ_LEN = 512, 128
STEPS = 2
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Missing:
    """What lies on the hub and cannot be read from here, and why. Each is asked for once: a hub that does not answer
    takes half a minute."""

    model: Optional[ConfigError] = None
    tokenizer: Optional[ConfigError] = None


@dataclass
class Trial:
    data: RunConfig
    """The run's own data and tokenizer, the first documents of each source."""
    steps: RunConfig
    """What the engine's checks run."""
    notes: List[str] = field(default_factory=list)
    """How it differs from the run."""
    tokenizer_missing: str = ""
    """Why the run's tokenizer cannot be read here."""
    vocab_rows: Optional[int] = None
    """Rows of the real model's embedding, where it could be read."""


def missing_model(config: RunConfig) -> Optional[ConfigError]:
    try:
        if config.model.hub:
            model_config(config)
    except ConfigError as error:
        if isinstance(error.__cause__, OSError):  # else it was read, and is no model that transformers knows
            return error
    return None


def missing_tokenizer(config: RunConfig, model: Optional[ConfigError]) -> Optional[ConfigError]:
    """
    Args:
        model: why the model is missing.

    Raises:
        ConfigError: the tokenizer cannot be used for another reason, for which a run would be refused.
    """
    location = tokenizer_location(config)
    template_text(config)
    if model is not None and location == config.model.hub:
        return ConfigError(f"cannot load the tokenizer {model.found}")
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
    """
    Args:
        wanted_ranks: of the run; ``ranks`` are those of this check.

    Raises:
        ConfigError: nothing is known of the model: neither its config nor its class.
    """
    config = copy.deepcopy(config)
    trial = Trial(config, config)
    trial.tokenizer_missing = missing.tokenizer.found if missing.tokenizer else ""
    arch, is_real = _architecture(config, trial, missing.model)
    config.model = _settled(config)  # where it lies, now that the cache is another
    config.cache_dir, config.data.num_workers = str(scratch / "cache"), 1
    for source in (*config.data.sources.values(), *config.data.heldout.values()):
        limit = QUICK_DOCUMENTS if quick else DOCUMENTS
        source.max_documents = min(source.max_documents or limit, limit)
    trial.data, trial.steps = config, copy.deepcopy(config)
    steps = trial.steps
    if not is_real or quick or not _real_fits(arch, ranks, trial):
        _use_standin(steps, arch, trial)
    if quick or trial.tokenizer_missing:
        use_generated_chats(steps, trial)
    _shorten(steps, trial, wanted_ranks, ranks)
    return trial


def use_generated_chats(steps: RunConfig, trial: Trial) -> None:
    """Where the run's data cannot be read, or in a hurry: numbers need tokens, not these tokens."""
    steps.data.sources = {"fake": SourceConfig(builtin="fake", max_documents=DOCUMENTS, format=Format.auto)}
    steps.data.heldout, steps.data.heldout_share = {}, 0.05
    steps.data.long_documents = LongDocuments.truncate
    if steps.data.train_on is TrainOn.completion:
        steps.data.train_on = TrainOn.auto
    steps.data.chat_template = "chatml"
    steps.data.max_seq_len = max(steps.data.max_seq_len, STANDIN_SEQ_LEN)
    trial.notes.append("numbers are checked on generated chats")


def _architecture(config: RunConfig, trial: Trial, missing: Optional[ConfigError]) -> Tuple[Any, bool]:
    """The model's architecture, and whether it is its own or only the class that its name speaks of."""
    if missing is None:
        arch = model_config(config)
        trial.vocab_rows = arch.get_text_config().vocab_size
        return arch, True
    model_type = model_type_from_name(config.model.hub or "")
    if not model_type:
        raise missing
    trial.notes.append(f"{config.model.hub} cannot be read here ({missing.found[:80]}): its class is taken to be "
                       f"{model_type}, by its name")  # fmt: skip
    return default_model_config(model_type), False


def _settled(config: RunConfig) -> ModelConfig:
    model = copy.deepcopy(config.model)
    if model.builtin or (model.path and model.path.lower().endswith(".gguf")):
        model.path, model.builtin = model_location(config), None
    return model


def _real_fits(arch: Any, ranks: int, trial: Trial) -> bool:
    parameters = count_parameters(arch)
    cuda = torch.cuda.is_available()
    memory = torch.cuda.mem_get_info()[0] * ranks if cuda else psutil.virtual_memory().available
    enough, needed = fits_in_memory(parameters, ranks, memory, optimizer_of(trial.steps))
    dropouts = active_dropouts(arch)
    if dropouts:
        trial.notes.append(f"the model has dropout ({', '.join(dropouts)}), with which no two forwards are alike")
        return False
    if not enough:
        trial.notes.append(f"the real model does not fit here: {needed}, {memory / 2**30:.1f} GiB free")
    elif not cuda and parameters > MOST_CPU_PARAMETERS:
        trial.notes.append(f"the real model ({parameters / 1e6:,.0f}M parameters) would take too long on CPU")
        return False
    return enough


def _use_standin(steps: RunConfig, arch: Any, trial: Trial) -> None:
    known = "bytes" if trial.tokenizer_missing else tokenizer_location(steps)
    steps.model = ModelConfig(
        tokenizer=known, attention=steps.model.attention, new_special_tokens=steps.model.new_special_tokens,
        pad_vocab_to_multiple_of=steps.model.pad_vocab_to_multiple_of,
    )  # fmt: skip
    tokenizer = load_tokenizer(steps)
    steps.model.config = standin_config(arch, tokenizer.num_known_tokens)
    steps.data.max_seq_len = min(steps.data.max_seq_len, STANDIN_SEQ_LEN)
    parameters = count_parameters(model_config(steps))
    trial.notes.append(f"numbers are checked on a stand-in: {steps.model.config['model_type']} with random weights, "
                       f"{parameters / 1e6:.1f}M parameters")  # fmt: skip


def _shorten(steps: RunConfig, trial: Trial, wanted_ranks: int, ranks: int) -> None:
    batch, data = steps.batch, steps.data
    micro = min(batch.micro_batch_size, 2)
    accum = min(max(1, batch.global_batch_size // (batch.micro_batch_size * wanted_ranks)), 2)
    length = min(data.max_seq_len, SEQ_LEN)
    trial.notes.append(f"{STEPS} steps of {micro} × {accum} × {ranks} rows of {length} tokens (a rank × accumulation × "
                       f"ranks); at most {HELDOUT_DOCUMENTS} held-out documents of a set are looked at")  # fmt: skip
    batch.micro_batch_size, batch.grad_accum_steps, batch.global_batch_size = micro, accum, micro * accum * ranks
    data.max_seq_len, data.max_heldout_documents = length, HELDOUT_DOCUMENTS
    optim, train = steps.optim, steps.train
    optim.warmup_steps = min(optim.warmup_steps, STEPS)
    if optim.schedule is Schedule.wsd:
        optim.decay_steps, optim.warmup_steps = 1, min(optim.warmup_steps, 1)
    train.epochs, train.max_steps, train.checkpoint_every, train.eval_every = None, STEPS, 1, None
    train.num_samples, train.export, train.log_every, train.keep_checkpoints = 0, False, 1, STEPS
    steps.track.wandb = type(steps.track.wandb).disabled
    if not torch.cuda.is_available() and steps.zero.offload_optimizer is not Offload.none:
        trial.notes.append("offload is checked, though host memory is all that there is")
    assert math.prod((micro, accum, ranks)) == batch.global_batch_size
