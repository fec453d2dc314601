"""The settings that ``ftdist resume`` may change, and those that ``ftdist eval`` may change.

A resume may change where and how a run is computed, but not what is computed."""

import hashlib
import json
from dataclasses import asdict
from typing import Any, Dict, List, Sequence

from ftdist.base.errors import ConfigError
from ftdist.config.schema import ADDED_LATER, RunConfig

CHANGEABLE = (
    "launch.nproc_per_node", "launch.nnodes", "launch.threads_per_rank", "launch.timeout_s",
    "launch.stall_timeout_s", "launch.max_restarts", "launch.max_requeues", "launch.wait", "launch.slurm",
    "launch.nodes", "launch.deepspeed",
    "zero.stage", "zero.offload_optimizer", "zero.offload_param", "zero.deepspeed",
    "zero.expert_groups",
    "batch.micro_batch_size", "train.gradient_checkpointing", "train.recompute_every", "train.offload_activations",
    "train.compile", "model.kernels",
    "train.checkpoint_every", "train.keep_checkpoints", "train.async_checkpoint", "sweep.rungs", "debug.profile",
    "report", "cache_dir",
)  # fmt: skip
"""Keys that ``ftdist resume RUN_DIR key=value`` may change, and all keys below them."""
EVALUATED = (
    "data", "cache_dir", "batch.micro_batch_size", "model.attention", "zero.stage", "zero.offload_param",
    "zero.expert_groups",
    "launch.device", "launch.nproc_per_node", "launch.threads_per_rank", "launch.timeout_s",
)  # fmt: skip
"""Keys that ``ftdist eval RUN_DIR key=value`` may change.

The other keys have no effect on an evaluation, or they belong to the model, which is evaluated as it was trained
(``train.precision``, ``model.trust_remote_code``)."""
DERIVED = ("batch.grad_accum_steps",)
"""Keys that follow from the number of ranks."""
PLACES = ("runs_dir", "run_dir", "cache_dir", "launch", "sweep", "track", "name")
"""Keys that say where a run is stored, how it is started and tracked, and how a sweep compares it with others."""


def check_changes(overrides: List[str], verb: str = "resume", changeable: Sequence[str] = CHANGEABLE) -> None:
    """Check that a verb may change what the overrides set.

    Args:
        overrides: Words of the command line.
        verb: The verb, for the message.
        changeable: Keys that it may change, and all keys below them.

    Raises:
        ConfigError: An override is not allowed. The message names the first one, and the keys that are allowed.
    """
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        assigns = "=" in override or override.startswith("~")
        if not assigns or not any(key == known or key.startswith(f"{known}.") for known in changeable):
            fix = f"leave out {override}" + (", or start a new run with it" if verb == "resume" else "")
            raise ConfigError(f"ftdist {verb} cannot change '{override}'", "one of " + ", ".join(changeable), fix)


def config_hash(config: RunConfig) -> str:
    """Return the hash of all settings that change the result of the training.

    A checkpoint fits only runs with the same hash.
    """
    tree = asdict(config)
    for key in (*CHANGEABLE, *DERIVED, *PLACES):
        _remove(tree, key)
    # Fields before their sections: the longest keys come first.
    for key, before in sorted(ADDED_LATER.items(), key=lambda item: -item[0].count(".")):
        if isinstance(before, dict):  # fields that were added after their section have been removed by now
            before = {name: value for name, value in before.items() if f"{key}.{name}" not in ADDED_LATER}
        _remove(tree, key, only_if=before)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=lambda choice: choice.name).encode()).hexdigest()


def _remove(tree: Dict[str, Any], key: str, only_if: Any = ...) -> None:
    """Remove a dotted key from a nested dict, or only where it holds the value ``only_if``. ``*`` is every key."""
    owner, _, rest = key.partition(".")
    if not rest:
        if only_if is ... or tree.get(owner, ...) == only_if:
            tree.pop(owner, None)
        return
    for inner in tree.values() if owner == "*" else [tree.get(owner, {})]:
        _remove(inner, rest, only_if)
