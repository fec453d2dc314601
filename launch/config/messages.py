"""Hydra's and OmegaConf's errors, said in the user's words: what was found, what fits, the nearest right name."""

import dataclasses
import enum
import re
import typing
from typing import Any, Dict, List, Mapping, Optional

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException, OverrideParseException

from ftdist.base.errors import ConfigError
from ftdist.base.names import as_typed, nearest
from ftdist.config.schema import RunConfig, SourceConfig

FREE_MAPPINGS = ("data.sources", "data.heldout", "model.config", "zero.deepspeed", "launch.slurm.env")
"""Mappings whose keys are the user's own."""


OTHER_NAMES = {
    "learning_rate": ["optim.lr"], "num_train_epochs": ["train.epochs"], "num_epochs": ["train.epochs"],
    "batch_size": ["batch.global_batch_size"], "per_device_train_batch_size": ["batch.micro_batch_size"],
    "gradient_accumulation_steps": ["batch.grad_accum_steps"], "max_length": ["data.max_seq_len"],
    "max_seq_length": ["data.max_seq_len"], "warmup_ratio": ["optim.warmup_steps"], "model_name": ["model.hub"],
    "model_name_or_path": ["model.path", "model.hub"], "output_dir": ["run_dir"],
    "save_steps": ["train.checkpoint_every"], "eval_steps": ["train.eval_every"], "logging_steps": ["train.log_every"],
}  # fmt: skip
"""What other tools call the same thing."""

INSTEAD = {
    "run.dir": "run_dir=FOLDER", "sweep.": "runs_dir=FOLDER", "output_subdir": "run_dir=FOLDER",
    "job.name": "name=NAME", "launcher": "launch=slurm or launch=nodes",
}  # fmt: skip
"""What is set instead of a key of Hydra's own."""


def schema_keys(node: type = RunConfig, prefix: str = "") -> Dict[str, Any]:
    """Every dotted key of the schema and its type."""
    keys: Dict[str, Any] = {}
    for name, kind in typing.get_type_hints(node).items():
        keys[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            keys.update(schema_keys(typing.cast(type, kind), f"{prefix}{name}."))
    return keys


def nearest_key(key: str) -> List[str]:
    """Right keys for a wrong one: by the whole path, else by the last name alone (``lr`` → ``optim.lr``)."""
    keys = list(schema_keys())
    leaf = key.rsplit(".", 1)[-1]
    if leaf in OTHER_NAMES:
        return OTHER_NAMES[leaf]
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == leaf]
    if same_leaf:
        return same_leaf[:3]
    leaves = nearest(leaf, [k.rsplit(".", 1)[-1] for k in keys])
    return nearest(key, keys) or [k for k in keys if k.rsplit(".", 1)[-1] in leaves][:3]


def describe_type(kind: Any) -> str:
    """A type as a user would say it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return describe_type(arguments[0]) + " or null"
    if origin is list:
        return f"a list: [a,b] of {describe_type(arguments[0])}"
    if origin is dict:
        return "a mapping: {key:value}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(kind.__members__)
    if dataclasses.is_dataclass(kind):
        return "a group of keys: " + ", ".join(field.name for field in dataclasses.fields(kind))
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, str(kind))


def type_at(key: str) -> Any:
    """The type of a key; None where there is no such key, or its type is the user's own."""
    source = re.fullmatch(r"data\.(?:sources|heldout)\.[^.]+\.(\w+)", key)
    if source:
        return typing.get_type_hints(SourceConfig).get(source.group(1))
    return schema_keys().get(key)


def refuse_hydras_own(overrides: List[str], sweep: bool) -> None:
    """
    Raises:
        ConfigError: an override is of Hydra itself. Here it only composes: it has no run directory, log or launcher.
    """
    for override in overrides:
        word = override.lstrip("+~")
        if not re.match(r"hydra\b", word) or word.startswith("hydra.searchpath"):
            continue
        if sweep and re.match(r"hydra[./]sweeper\b", word):
            continue
        key = re.split("=", word, maxsplit=1)[0][len("hydra") :].lstrip("./")
        raise ConfigError(
            f"{override} sets Hydra itself, which only composes the config here",
            "keys of the run config; of Hydra's own hydra.searchpath, and hydra.sweeper with -m",
            next((right for start, right in INSTEAD.items() if key.startswith(start)), f"leave out {override}"),
        )


def check_source_keys(data: Mapping[str, Any]) -> None:
    """
    Args:
        data: the ``data`` of a composed config.

    Raises:
        ConfigError: a source holds a key that sources do not have.
    """
    fields = [field.name for field in dataclasses.fields(SourceConfig)]
    for kind in ("sources", "heldout"):
        for name, source in (data.get(kind) or {}).items():
            where = f"data.{kind}.{name}"
            if not isinstance(source, Mapping):
                raise ConfigError(f"{where}={source}", f"a source has keys: {', '.join(fields)}", f"{where}.path=FILE")
            for key, value in source.items():
                if key not in fields:
                    near = " or ".join(f"{where}.{right}={as_typed(value)}" for right in nearest(str(key), fields))
                    raise ConfigError(f"there is no key '{where}.{key}'", "one of: " + ", ".join(fields), near)


def _not_an_override(word: str, loader: ConfigLoader) -> ConfigError:
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    meant = [f"{group}={word}" for group in groups if word in loader.get_group_options(group, ObjectType.CONFIG)]
    if word in groups:
        meant = [f"{word}={option}" for option in loader.get_group_options(word, ObjectType.CONFIG)]
    elif not meant:
        meant = [f"{key}=VALUE" for key in nearest_key(word)]
    return ConfigError(
        f"'{word}' is not an override", "key=value, group=option, +key=value or ~key", " or ".join(meant)
    )


def _wrong_option(error: MissingConfigException, loader: ConfigLoader) -> ConfigError:
    name = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    missing = name.group(1) if name else str(error.missing_cfg_file)
    if "/" not in missing:
        have = [c for c in loader.get_group_options("", ObjectType.CONFIG) if c != "run_schema"]
        return ConfigError(f"there is no primary config '{missing}'", "one of: " + ", ".join(sorted(have)))
    group, option = missing.rsplit("/", 1)
    options = loader.get_group_options(group, ObjectType.CONFIG)
    near = nearest(option, options)
    return ConfigError(
        f"{group} has no option '{option}'",
        "one of: " + ", ".join(sorted(options)),
        " or ".join(f"{group}={word}" for word in near),
    )


def _wrong_key(key: str, given: Optional[str], where: str, loader: ConfigLoader) -> ConfigError:
    value = "" if given is None else f"={given}"
    if "." not in key and key not in OTHER_NAMES:
        groups = [group for group in loader.list_groups("") if group != "hydra"]
        near = nearest(key, groups + [k for k in schema_keys() if "." not in k])
        if near:
            return ConfigError(f"{where}there is no key or group '{key}'", "one of: " + ", ".join(sorted(groups)),
                               " or ".join(f"{word}{value}" for word in near))  # fmt: skip
    near = ["data=file data.sources.file.path"] if key in ("data.path", "data.file", "data") else nearest_key(key)
    parent = key.rsplit(".", 1)[0]
    siblings = [k.rsplit(".", 1)[-1] for k in schema_keys() if k.rsplit(".", 1)[0] == parent and k != parent]
    expected = (
        f"a key of {parent}: {', '.join(siblings)}" if siblings else "a key of the config (ftdist train --cfg job)"
    )
    return ConfigError(f"{where}there is no key '{key}'", expected, " or ".join(f"{word}{value}" for word in near))


def config_error(error: Exception, loader: ConfigLoader) -> ConfigError:
    """Translate what Hydra or OmegaConf raised."""
    if isinstance(error, MissingConfigException):
        return _wrong_option(error, loader)
    if isinstance(error, OverrideParseException):
        if "missing EQUAL" in str(error):
            return _not_an_override(str(error.override), loader)
        return ConfigError(f"cannot read the override '{error.override}': {str(error).splitlines()[0]}",
                           "key=value; quote values that hold , [ { or spaces: key=\\'a,b\\'")  # fmt: skip
    text = "\n".join(part for part in (str(error), str(error.__cause__ or "")) if part)
    in_file = re.search(r"In '([^']+)'", text)
    where = f"in {in_file.group(1)}.yaml: " if in_file else ""
    override = re.search(r"(?:Could not override|Error merging override|delete from config\.) '?\+*([^'=\s]+)", text)
    given = re.search(r"(?:Error merging override|use) \+*[^=\s]+=(.*)", text)
    path = re.search(r"full_key: (\S+)", text)
    key = path.group(1) if path else override.group(1).rstrip(".") if override else ""
    if re.search(r"Key '.*' (?:is )?not in|Could not delete", text):
        return _wrong_key(override.group(1) if override else key, given and given.group(1), where, loader)
    if text.startswith("Config group override must be"):
        return ConfigError(f"a group is given a number: {text}", "the name of an option", "group=option")
    if text.startswith("Multiple values for"):
        return ConfigError(text.splitlines()[0], "one option of a group", "leave out the +")
    if "Ambiguous value" in text or "requires --multirun" in text:
        return ConfigError(text.splitlines()[0], "one value, or a sweep with --multirun (-m)",
                           "add -m, or write a list as key=[a,b]")  # fmt: skip
    if key and (kind := type_at(key)) is not None:
        quoted = re.search(r"[Vv]alue '([^']*)'", text)
        value = given.group(1) if given else quoted.group(1) if quoted else "?"
        near = nearest(value, list(kind.__members__)) if isinstance(kind, type) and issubclass(kind, enum.Enum) else []
        return ConfigError(f"{where}{key}={value}", describe_type(kind), " or ".join(f"{key}={word}" for word in near))
    return ConfigError(text)
