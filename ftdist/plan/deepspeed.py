"""Generate the settings for DeepSpeed from the run config, which owns every value in them.

``launch`` computes the settings once and freezes them as ``RUN_DIR/deepspeed.json``; the ranks read that file. They
replace only two kinds of values: sizes that say ``auto``, when the model is loaded (``plan.communication``), and the
number of accumulation steps, if a run is resumed with another number of ranks.
Keys: https://www.deepspeed.ai/docs/config-json/
"""

import json
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json
from ftdist.base.names import as_typed, nearest
from ftdist.base.permissions import explain_os_error
from ftdist.config.schema import Offload, Precision, RunConfig
from ftdist.config.zero import ModelState
from ftdist.plan.batch import BatchPlan
from ftdist.plan.communication import exchange_settings, is_same
from ftdist.plan.deepspeed_keys import KNOWN_KEYS

NEVER = 2**31 - 1
"""Value of steps_per_print that keeps DeepSpeed from printing progress lines of its own."""
WRITE_AGAIN = "delete deepspeed.json and run ftdist resume RUN_DIR, which writes it again from run.yaml"
MICRO_BATCH, ACCUMULATION = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"

# Keys that ftdist does not write, but whose meaning another part of the config owns.
OWNED_ELSEWHERE = {
    "train_batch_size": "batch.global_batch_size",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "fp16": "train.precision",
    "bfloat16": "train.precision",
    "amp": "train.precision",
    "wandb": "track",
    "tensorboard": "track",
    "activation_checkpointing": "train.gradient_checkpointing",
}


def deepspeed_settings(config: RunConfig, plan: BatchPlan) -> Dict[str, Any]:
    """Return the settings that DeepSpeed is given.

    Raises:
        ConfigError: ``zero.deepspeed`` holds a key that DeepSpeed does not know, or one that another part of the run
            config owns.
    """
    zero: Dict[str, Any] = {"stage": config.zero.stage}
    if config.zero.offload_optimizer is not Offload.none:
        zero["offload_optimizer"] = {"device": config.zero.offload_optimizer.name, "pin_memory": False}
    if config.zero.offload_param is not Offload.none:
        zero["offload_param"] = {"device": config.zero.offload_param.name, "pin_memory": False}
    if ModelState.parameters.is_sharded(config.zero.stage):
        # By default the experts of some models are leaf modules: DeepSpeed gathers each as a whole, and a leaf
        # module may run only once before a backward pass.
        zero["leaf_module"] = {"classes": [], "names": [], "name_suffixes": []}
    settings: Dict[str, Any] = {
        MICRO_BATCH: plan.micro_batch_size,
        ACCUMULATION: plan.grad_accum_steps,
        "gradient_clipping": config.optim.max_grad_norm,
        "bf16": {"enabled": config.train.precision is Precision.bf16},
        "zero_optimization": zero,
        # PyTorch's optimizer is used with offload too: it gives the same numbers, and nothing must be compiled.
        "zero_force_ds_cpu_optimizer": False,
        # Otherwise ZeRO refuses every optimizer that is not on a short list of DeepSpeed's own.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": NEVER,
    }
    for key, owner in OWNED_ELSEWHERE.items():
        if key in config.zero.deepspeed:
            raise ConfigError(
                f"zero.deepspeed.{key}={config.zero.deepspeed[key]} is set, but ftdist takes this value from {owner}",
                f"a config without zero.deepspeed.{key}",
                f"remove zero.deepspeed.{key} and set {owner}",
            )
    _check_known(config.zero.deepspeed)
    merged = _merge(settings, config.zero.deepspeed, "zero.deepspeed")
    given = config.zero.deepspeed.get("zero_optimization", {})
    merged["zero_optimization"].update(exchange_settings(config.zero.stage, given))
    return merged


def read_settings(file: Path, plan: BatchPlan) -> Dict[str, Any]:
    """Return the settings for DeepSpeed on the current ranks, from the frozen file.

    Only ``gradient_accumulation_steps`` may differ from the file: on another number of ranks it follows from the global
    batch size, which stays the same.

    Args:
        file: ``deepspeed.json`` of a run directory.
        plan: the batch plan for these ranks.

    Raises:
        ConfigError: the file cannot be read, or it has another micro-batch size than the plan.
    """
    settings = _read(file)
    if settings[MICRO_BATCH] != plan.micro_batch_size:
        raise ConfigError(
            f"{file} gives DeepSpeed micro-batches of {count(settings[MICRO_BATCH], 'row')}, run.yaml has "
            f"batch.micro_batch_size={plan.micro_batch_size}",
            "a deepspeed.json that was written from this run.yaml",
            WRITE_AGAIN,
        )
    return {**settings, ACCUMULATION: plan.grad_accum_steps}


def check_frozen(file: Path, config: RunConfig) -> None:
    """Check that ``deepspeed.json`` was not edited: ``run.yaml`` owns every value in it.

    Keys that the file lacks are not compared, because an older version may have written fewer keys. Such a run
    continues with the settings that were frozen.

    Raises:
        ConfigError: the file cannot be read, or a value in it is not the one that ``run.yaml`` gives.
    """
    frozen = _read(file)
    accumulation = config.batch.grad_accum_steps or frozen[ACCUMULATION]
    plan = BatchPlan(config.batch.micro_batch_size, accumulation, 1, config.data.max_seq_len)
    computed = dict(_leaves(json.loads(json.dumps(deepspeed_settings(config, plan), default=str))))
    for key, value in _leaves(frozen):
        if key not in computed or not is_same(key, value, computed[key]):
            gives = f"gives {as_typed(computed[key])}" if key in computed else "does not give it"
            raise ConfigError(
                f"{file} has {key}={as_typed(value)}, but run.yaml {gives}",
                "deepspeed.json without manual edits (it is generated from run.yaml)",
                f"{WRITE_AGAIN}. To change a setting, pass it to resume: ftdist resume RUN_DIR zero.stage=1 (or "
                "zero.deepspeed.KEY=VALUE …)",
            )


def _read(file: Path) -> Dict[str, Any]:
    expected, fix = "a deepspeed.json that ftdist wrote", WRITE_AGAIN
    try:
        settings = read_json(file)
    except PermissionError as error:
        raise explain_os_error(error) from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"cannot read {file}: {reason}", expected, fix) from error
    zero = settings.get("zero_optimization")
    if not isinstance(zero, dict) or not {MICRO_BATCH, ACCUMULATION} <= settings.keys() or "stage" not in zero:
        raise ConfigError(f"{file} is incomplete", expected, fix)
    return settings


def _leaves(tree: Dict[str, Any], place: str = "") -> Iterator[Tuple[str, Any]]:
    """Yield the dotted key and the value of every entry that is not a dict."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _check_known(extra: Dict[str, Any], place: str = "") -> None:
    """Check the keys below ``place``, a dotted key of DeepSpeed's config; "" is its top level."""
    where = f"zero.deepspeed.{place}." if place else "zero.deepspeed."
    for key, value in extra.items():
        inside = f"{place}.{key}" if place else key
        if place in KNOWN_KEYS and key not in KNOWN_KEYS[place]:
            near = [f"{where}{right}={as_typed(value)}" for right in nearest(key, KNOWN_KEYS[place])]
            raise ConfigError(
                f"DeepSpeed has no key '{inside}'", "a key of https://www.deepspeed.ai/docs/config-json/",
                " or ".join(near) or f"leave out {where}{key}",
            )  # fmt: skip
        if isinstance(value, dict):
            _check_known(value, inside)


def _merge(generated: Dict[str, Any], extra: Dict[str, Any], where: str) -> Dict[str, Any]:
    """Return the generated settings with the keys of ``extra`` added; a key in both must have one value."""
    merged = dict(generated)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(merged.get(key, {}), dict):
            merged[key] = _merge(merged.get(key, {}), value, f"{where}.{key}")
        elif merged.setdefault(key, value) != value:
            raise ConfigError(
                f"{where}.{key}={value} contradicts the run config, which gives {merged[key]}",
                "each DeepSpeed value set in one place only",
                f"remove {where}.{key}",
            )
    return merged
