"""The keys of the run config: their names and types, and the right key for a wrong one."""

import dataclasses
import enum
import typing
from typing import Any, Dict, List

from ftdist.base.names import nearest
from ftdist.config.schema import RunConfig

FREE_MAPPINGS = ("data.sources", "data.heldout", "data.general", "model.config", "zero.deepspeed", "launch.slurm.env",
                 "data.chat_template_kwargs")  # fmt: skip
"""Mappings whose keys the user chooses."""

OTHER_NAMES = {
    "learning_rate": ["optim.lr"], "num_train_epochs": ["train.epochs"], "num_epochs": ["train.epochs"],
    "batch_size": ["batch.global_batch_size"], "per_device_train_batch_size": ["batch.micro_batch_size"],
    "gradient_accumulation_steps": ["batch.grad_accum_steps"], "max_length": ["data.max_seq_len"],
    "max_seq_length": ["data.max_seq_len"], "model_name": ["model.hub"],
    "model_name_or_path": ["model.path", "model.hub"], "output_dir": ["run_dir"],
    "save_steps": ["train.checkpoint_every"], "eval_steps": ["train.eval_every"], "logging_steps": ["train.log_every"],
    "sweep.dir": ["runs_dir"], "lora_r": ["method.r"], "lora_rank": ["method.r"],
    "lora_target": ["method.target_modules"],
}  # fmt: skip
"""Names that other tools use, and the keys that mean the same here."""


def schema_keys(node: type = RunConfig, prefix: str = "") -> Dict[str, Any]:
    """Return every dotted key of the schema with its type."""
    keys: Dict[str, Any] = {}
    for name, kind in typing.get_type_hints(node).items():
        keys[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            keys.update(schema_keys(typing.cast(type, kind), f"{prefix}{name}."))
    return keys


def type_at(key: str) -> Any:
    """Return the type of a dotted key. It is None if there is no such key, or if any type is allowed there."""
    kind: Any = RunConfig
    for name in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(name)
        elif typing.get_origin(kind) is list:  # track.tags.0
            kind = typing.get_args(kind)[0] if name.isdigit() else None
        else:
            kind = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None
    return None if kind is Any else kind


def is_text(kind: Any) -> bool:
    """Return whether a type is ``str`` or ``Optional[str]``."""
    return kind is str or kind == typing.Optional[str]


def nearest_key(key: str) -> List[str]:
    """Return the keys that a wrong key may mean, best first.

    A key with the same last name comes first (``lr`` gives ``optim.lr``), then a key of the same section, then a key
    that is like the whole word.
    """
    keys = list(schema_keys())
    section, _, name = key.rpartition(".")
    for other in (key, name):
        if other in OTHER_NAMES:
            return OTHER_NAMES[other]
    same_name = [known for known in keys if known.rpartition(".")[2] == name]
    if same_name:
        return same_name[:3]
    siblings = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == section]
    if section and siblings:
        near = [f"{section}.{sibling}" for sibling in nearest(name, siblings)]
    else:
        near = nearest(key, keys)
    names = nearest(name, [known.rpartition(".")[2] for known in keys])
    return near or [known for known in keys if known.rpartition(".")[2] in names][:3]


def describe_type(kind: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return describe_type(arguments[0]) + " or null"
    if origin is list:
        plural = {str: "text values", int: "integers", float: "numbers"}
        return f"a list of {plural.get(arguments[0], 'values')}, for example [a,b]"
    if origin is dict:
        return "a mapping, for example {key:value}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(kind.__members__)
    if dataclasses.is_dataclass(kind):
        return "a group of keys: " + ", ".join(field.name for field in dataclasses.fields(kind))
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, str(kind))
