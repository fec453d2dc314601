"""The DeepSpeed config of a run: generated from the run config, the only owner of DeepSpeed's keys. [light]

Keys: https://www.deepspeed.ai/docs/config-json/
"""

from typing import Any, Dict

from ftdist.base.errors import ConfigError
from ftdist.base.names import as_typed, nearest
from ftdist.config.schema import Offload, Precision, RunConfig
from ftdist.plan.batch import BatchPlan
from ftdist.plan.deepspeed_keys import KNOWN_KEYS

NEVER = 2**31 - 1  # steps_per_print: DeepSpeed's own progress lines are not wanted

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
    """Exactly what DeepSpeed is given.

    Raises:
        ConfigError: ``zero.deepspeed`` holds a key that DeepSpeed does not know, or one that the run config owns, with
            another value.
    """
    zero: Dict[str, Any] = {"stage": config.zero.stage}
    if config.zero.offload_optimizer is not Offload.none:
        zero["offload_optimizer"] = {"device": config.zero.offload_optimizer.name, "pin_memory": False}
    if config.zero.offload_param is not Offload.none:
        zero["offload_param"] = {"device": config.zero.offload_param.name, "pin_memory": False}
    settings: Dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.grad_accum_steps,
        "gradient_clipping": config.optim.max_grad_norm,
        "bf16": {"enabled": config.train.precision is Precision.bf16},
        "zero_optimization": zero,
        # The optimizer is torch's AdamW everywhere: the same numbers with and without offload, nothing to compile.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
    }
    for key, owner in OWNED_ELSEWHERE.items():
        if key in config.zero.deepspeed:
            raise ConfigError(
                f"zero.deepspeed.{key}={config.zero.deepspeed[key]}",
                f"no '{key}' here: {owner} decides it",
                f"remove zero.deepspeed.{key} and set {owner}",
            )
    _check_known(config.zero.deepspeed)
    return _merge(settings, config.zero.deepspeed, "zero.deepspeed")


def _check_known(extra: Dict[str, Any], place: str = "") -> None:
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
    merged = dict(generated)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(merged.get(key, {}), dict):
            merged[key] = _merge(merged.get(key, {}), value, f"{where}.{key}")
        elif merged.setdefault(key, value) != value:
            raise ConfigError(
                f"{where}.{key}={value} contradicts the run config, which gives {merged[key]}",
                "one owner of each value",
                f"remove {where}.{key}",
            )
    return merged
