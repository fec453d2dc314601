"""Checks of the run config that its types cannot express: ranges, and fields that depend on each other."""

from dataclasses import is_dataclass
from typing import Any, Dict, List, get_type_hints

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.base.names import require_utf8
from ftdist.base.redact import secret_problem
from ftdist.config.data import BUILTIN_GENERAL, RESERVED_TEMPLATE_KWARGS, DataConfig, SourceConfig, named_sources
from ftdist.config.debug import profiled_steps
from ftdist.config.launch import LaunchKind, check_launch, refuse_control_characters, texts
from ftdist.config.limits import check_range
from ftdist.config.method import check_method
from ftdist.config.optim import OptimConfig, check_optimizer
from ftdist.config.schema import Compile, Kernels, ModelConfig, Offload, Recompute, RunConfig, TrainConfig, ZeroConfig
from ftdist.config.stop_when import check_stop_when
from ftdist.config.sweep import check_sweep
from ftdist.config.track import check_track
from ftdist.config.zero import ModelState


def check_config(config: RunConfig) -> None:
    """Check the values of a config that do not depend on the machine (GPUs, disk) or on files (model, data).

    Raises:
        ConfigError: A value is wrong. The message names the field, its value, and the allowed values.
    """
    refuse_secrets(config)
    _refuse_nested_lists(config)
    for key, text in texts("", config):
        require_utf8(key.removeprefix("."), text)
    if config.launch.kind is not LaunchKind.local:
        refuse_control_characters("", {"name": config.name, "run_dir": config.run_dir, "runs_dir": config.runs_dir})
    _check_model(config.model)
    check_data(config.data)
    check_method(config.method, config.zero.stage)
    for name in ("global_batch_size", "micro_batch_size", "grad_accum_steps"):
        check_range(f"batch.{name}", getattr(config.batch, name), 1)
    check_range("objective.router_aux_loss", config.objective.router_aux_loss, 0.0)
    check_optimizer(config.optim, config.method, config.zero.stage)
    _check_zero(config.zero, config.optim.paged)
    _check_train(config.train, config.optim)
    if config.model.kernels is not Kernels.none and config.train.compile is not Compile.none:
        found = f"model.kernels={config.model.kernels.name} and train.compile={config.train.compile.name} are both set"
        raise ConfigError(found, "one of them, because both replace the same parts of a layer",
                          "model.kernels=none, or train.compile=none")  # fmt: skip
    for name in ("nproc_per_node", "nnodes", "threads_per_rank", "timeout_s"):
        check_range(f"launch.{name}", getattr(config.launch, name), 1)
    check_launch(config.launch)
    check_sweep(config.sweep, config.train.max_steps)
    check_track(config.track)
    if config.report.price_per_device_hour is not None:
        check_range("report.price_per_device_hour", config.report.price_per_device_hour, 0)
    check_range("report.forgetting.texts", config.report.forgetting.texts, 0)
    check_range("report.forgetting.tokens", config.report.forgetting.tokens, 1)
    if config.report.forgetting.texts == 1:
        raise ConfigError("report.forgetting.texts=1", "0, or at least 2, so that the error can be estimated",
                          "report.forgetting.texts=32")  # fmt: skip
    heldout = [*config.data.heldout, *(["heldout"] if config.data.heldout_share else [])]
    check_stop_when(config.train.stop_when, config.train.best, heldout, config.report.forgetting.texts,
                    config.train.eval_every, config.train.checkpoint_every)  # fmt: skip
    if config.debug.profile is not None:
        profiled_steps(config.debug.profile)
    check_range("seed", config.seed, 0, 2**32 - 1)


def _refuse_nested_lists(part: Any, where: str = "") -> None:
    """Refuse a list or mapping in a list of texts. OmegaConf accepts it, and whatever reads the list would fail."""
    for name, kind in get_type_hints(type(part)).items():
        value, key = getattr(part, name), f"{where}{name}"
        if is_dataclass(kind):
            _refuse_nested_lists(value, f"{key}.")
        for item in value if kind == List[str] else ():
            if not isinstance(item, str):
                raise ConfigError(f"{key} holds {item!r}", "a list of text values, for example [a,b]",
                                  f"write each value of {key} as text")  # fmt: skip


def refuse_secrets(config: RunConfig) -> None:
    """Refuse a config that holds a secret, because it is written to run.yaml, the batch script and W&B.

    Raises:
        ConfigError: There is a secret. The message names its key, but never its value.
    """
    for key, text in texts("", config):
        if problem := secret_problem(key.removeprefix("."), text):
            raise ConfigError(
                f"{problem}, and a config is written to run.yaml, the batch script and W&B",
                "secrets in environment variables, which ranks and Slurm jobs inherit",
                "remove it, and export it as an environment variable or log in (hf auth login, wandb login)",
            )


def _check_model(model: ModelConfig) -> None:
    _check_one_of(
        "model",
        {"path": model.path, "hub": model.hub, "builtin": model.builtin, "config": model.config},
        "choose an experiment (experiment=demo), or set model.path=FOLDER or model.hub=ORG/NAME",
    )
    if model.config and not model.tokenizer:
        raise ConfigError("model.config is set, but model.tokenizer is not", "both of them",
                          "model.tokenizer=bytes, or another tokenizer")  # fmt: skip
    if model.builtin not in (None, "smollm2-135m-instruct"):
        raise ConfigError(f"model.builtin={model.builtin}", "smollm2-135m-instruct",
                          "model.builtin=smollm2-135m-instruct, or model=hub model.hub=ORG/NAME")  # fmt: skip
    check_range("model.pad_vocab_to_multiple_of", model.pad_vocab_to_multiple_of, 1)


def check_data(data: DataConfig) -> None:
    """Check the section ``data``. Data preparation calls this too, because its run.yaml may have been edited.

    Raises:
        ConfigError: See check_config.
    """
    if not data.sources:
        raise ConfigError("data.sources is empty", "at least one source", "data.sources.mine.path=train.jsonl")
    for key, source in named_sources(data).items():
        _check_source(key, source)
    for name in data.general:
        if name == BUILTIN_GENERAL or "/" in name:
            raise ConfigError(f"data.general.{name} cannot be the name of a general set",
                              f"a name other than {BUILTIN_GENERAL} and without /",
                              f"rename data.general.{name}")  # fmt: skip
    if data.heldout_share and "heldout" in data.heldout:
        raise ConfigError("data.heldout_share makes a set with the name heldout, which data.heldout.heldout has, too",
                          "different names", "rename data.heldout.heldout")  # fmt: skip
    for name in RESERVED_TEMPLATE_KWARGS:
        if name in data.chat_template_kwargs:
            raise ConfigError(f"data.chat_template_kwargs has {name}", "arguments of the chat template itself",
                              f"remove {name}; ftdist sets it")  # fmt: skip
    for name, value in data.chat_template_kwargs.items():
        if isinstance(value, str) and value.lower() in ("true", "false"):
            found = (
                f"data.chat_template_kwargs.{name} is the text '{value}', and a chat template takes any text for true"
            )
            raise ConfigError(found, "true or false", f"data.chat_template_kwargs.{name}={value.lower()}")
    check_range("data.heldout_share", data.heldout_share, 0.0, 0.5)
    check_range("data.max_bad_share", data.max_bad_share, 0.0, 1.0)
    check_range("data.max_heldout_documents", data.max_heldout_documents, 1)
    check_range("data.max_seq_len", data.max_seq_len, 8)
    check_range("data.num_workers", data.num_workers, 1)


def _check_zero(zero: ZeroConfig, paged: bool) -> None:
    check_range("zero.stage", zero.stage, 0, 3)
    if zero.offload_optimizer is not Offload.none and not ModelState.optimizer_states.is_sharded(zero.stage):
        raise ConfigError(
            "zero.offload_optimizer does not work with zero.stage=0",
            "zero.stage=1, 2 or 3",
            "zero.stage=1, or zero.offload_optimizer=none",
        )
    if zero.offload_param is not Offload.none and not ModelState.parameters.is_sharded(zero.stage):
        raise ConfigError(
            f"zero.offload_param does not work with zero.stage={zero.stage}", "zero.stage=3", "zero.stage=3"
        )
    if zero.offload_optimizer is not Offload.none and paged:
        raise ConfigError("optim.paged=true and zero.offload_optimizer=cpu both move optimizer states to host memory",
                          "one of them", "optim.paged=false, or zero.offload_optimizer=none")  # fmt: skip
    check_range("zero.expert_groups", zero.expert_groups, 1)
    if zero.expert_groups > 1 and not ModelState.parameters.is_sharded(zero.stage):
        raise ConfigError(f"zero.expert_groups={zero.expert_groups} has no effect with zero.stage={zero.stage}",
                          "groups of experts only with zero.stage=3",
                          "zero.stage=3, or zero.expert_groups=1")  # fmt: skip


def _check_train(train: TrainConfig, optim: OptimConfig) -> None:
    if (train.epochs is None) == (train.max_steps is None):
        found, fix = (
            ("neither train.epochs nor train.max_steps is set", "train.epochs=1, or train.max_steps=1000")
            if train.epochs is None
            else ("train.epochs and train.max_steps are both set", "add train.epochs=null, or train.max_steps=null")
        )
        raise ConfigError(found, "exactly one of them", fix)
    if train.epochs is not None and not train.epochs > 0:
        raise ConfigError(f"train.epochs={train.epochs:g}", "more than 0", "train.epochs=1")
    for name, low in (("max_steps", 1), ("log_every", 1), ("eval_every", 1), ("checkpoint_every", 1),
                      ("keep_checkpoints", 1), ("num_samples", 0), ("sample_tokens", 1), ("max_bad_steps", 1),
                      ("max_rollbacks", 0), ("grad_spike_z", 1), ("grad_spike_window", 8),
                      ("recompute_every", 1)):  # fmt: skip
        check_range(f"train.{name}", getattr(train, name), low)
    for name, unset in (("recompute_every", 1), ("offload_activations", False)):
        value = getattr(train, name)
        if train.gradient_checkpointing is Recompute.none and value != unset:
            raise ConfigError(f"train.{name}={str(value).lower()} has no effect with train.gradient_checkpointing=none",
                              "a value of train.gradient_checkpointing other than none",
                              f"train.gradient_checkpointing=full, or train.{name}={str(unset).lower()}")  # fmt: skip
    if train.max_steps is not None:
        check_schedule_fits(optim, train.max_steps, f"train.max_steps={train.max_steps}")


def check_schedule_fits(optim: OptimConfig, steps: int, why: str) -> None:
    """Check that warm-up and decay fit into a run. A warm-up that may be shortened always fits.

    Args:
        optim: The optimizer settings.
        steps: Number of optimizer steps of the run.
        why: Where the number of steps comes from, for the message.

    Raises:
        ConfigError: They do not fit.
    """
    warmup = 0 if optim.shorten_warmup else optim.warmup_steps
    if warmup + optim.decay_steps <= steps:
        return
    parts = {"optim.warmup_steps": warmup, "optim.decay_steps": optim.decay_steps}
    names = " + ".join(name for name, value in parts.items() if value)
    fixes = [f"optim.warmup_steps={steps // 10}"] if warmup else []
    if optim.decay_steps + (steps // 10 if warmup else 0) > steps:
        fixes.append(f"optim.decay_steps={max(1, steps // 10)}")
    raise ConfigError(
        f"{names} = {warmup + optim.decay_steps}, but the run has {count(steps, 'step')} ({why})",
        "warm-up and decay that fit into the run",
        " ".join(fixes),
    )


def _check_one_of(where: str, choices: Dict[str, Any], fix: str) -> None:
    given = [name for name, value in choices.items() if value]
    if len(given) != 1:
        found = f"{where} sets {' and '.join(given)}" if given else f"{where} sets none of {', '.join(choices)}"
        raise ConfigError(found, f"exactly one of {', '.join(choices)}", fix)


def _check_source(name: str, source: SourceConfig) -> None:
    _check_one_of(
        name,
        {"path": source.path, "hub": source.hub, "builtin": source.builtin},
        f"{name}.path=FILE, {name}.hub=ORG/NAME or {name}.builtin=stdlib_docs",
    )
    if source.builtin not in (None, "stdlib_docs", "fake"):
        raise ConfigError(f"{name}.builtin={source.builtin}", "stdlib_docs or fake", f"{name}.builtin=stdlib_docs")
    check_range(f"{name}.weight", source.weight, 0.0)
    check_range(f"{name}.max_documents", source.max_documents, 1)
