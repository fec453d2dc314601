"""Translate errors of Hydra and OmegaConf: what was found, what was expected, and the nearest right name."""

import dataclasses
import enum
import re
from typing import Any, Dict, List, Mapping, Optional

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException, OverrideParseException

from ftdist.base.errors import ConfigError
from ftdist.base.names import as_typed, nearest
from ftdist.base.shell import override_list, override_word, shell_word
from ftdist.config.data import SOURCE_KINDS, SourceConfig
from ftdist.config.schema import RENAMED_VALUES
from ftdist.launch.config.keys import OTHER_NAMES, describe_type, is_text, nearest_key, schema_keys, type_at

INSTEAD = {
    "run.dir": "run_dir=FOLDER", "sweep.": "runs_dir=FOLDER", "output_subdir": "run_dir=FOLDER",
    "job.name": "name=NAME", "launcher": "launch=slurm or launch=nodes",
}  # fmt: skip
"""Keys of Hydra itself, and the settings of ftdist that take their place."""
OTHER_OPTIONS: Dict[str, Dict[str, List[str]]] = {
    "method": {
        "dora": ["lora method.use_dora=true"], "rslora": ["lora method.use_rslora=true"],
        "qdora": ["qlora method.use_dora=true"], "lora+": ["lora optim.lora_plus_ratio=16"],
        "loraplus": ["lora optim.lora_plus_ratio=16"], "freeze": ["partial"],
    },
}  # fmt: skip
"""Options of a group that other tools have, and what means the same here."""

KEY_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|0|[1-9](_?[0-9])*")
"""A part of a key that Hydra's grammar can read."""
KINDS = {"int": "number", "float": "number", "bool": "boolean"}


def refuse_hydras_own(overrides: List[str], sweep: bool) -> None:
    """Refuse overrides of Hydra's own settings, because ftdist uses Hydra only to compose configs.

    Args:
        overrides: Words of the command line.
        sweep: Whether the command starts a sweep, which takes ``hydra.sweeper``.

    Raises:
        ConfigError: There is such an override. The message names the first one, and the setting to use instead.
    """
    for override in overrides:
        word = override.lstrip("+~")
        if not re.match(r"hydra\b", word) or word.startswith("hydra.searchpath"):
            continue
        if sweep and re.match(r"hydra[./]sweeper\b", word):
            continue
        key = re.split("=", word, maxsplit=1)[0][len("hydra") :].lstrip("./")
        raise ConfigError(
            f"{override} configures Hydra itself; ftdist uses Hydra only to compose the config",
            "settings of the run. The only Hydra settings that are allowed are hydra.searchpath and, with -m, "
            "hydra.sweeper",
            next((right for start, right in INSTEAD.items() if key.startswith(start)), f"leave out {override}"),
        )


def check_source_keys(data: Mapping[str, Any]) -> None:
    """Check that the data sources hold only keys that sources have.

    Args:
        data: The section ``data`` of a composed config.

    Raises:
        ConfigError: A key is wrong. The message names the first wrong key, and the nearest right ones.
    """
    fields = [field.name for field in dataclasses.fields(SourceConfig)]
    for kind in SOURCE_KINDS:
        for name, source in (data.get(kind) or {}).items():
            where = f"data.{kind}.{name}"
            if not isinstance(source, Mapping):
                raise ConfigError(
                    f"{where}={source}", f"a source with the keys {', '.join(fields)}", f"{where}.path=FILE"
                )
            for key, value in source.items():
                if key not in fields:
                    typed = shell_word(as_typed(value))
                    near = " or ".join(f"{where}.{right}={typed}" for right in nearest(str(key), fields))
                    raise ConfigError(f"there is no key '{where}.{key}'", "one of: " + ", ".join(fields), near)


def config_error(error: Exception, loader: ConfigLoader) -> ConfigError:
    """Translate what Hydra or OmegaConf raised."""
    if isinstance(error, MissingConfigException):
        return _wrong_option(error, loader)
    if isinstance(error, OverrideParseException):
        if "missing EQUAL" in str(error):
            return _not_an_override(str(error.override), loader)
        return _unreadable(str(error.override), str(error).splitlines()[0])
    text = "\n".join(part for part in (str(error), str(error.__cause__ or "")) if part)
    if text.startswith("Config group override must be"):
        return ConfigError(f"a config group was set to a number: {text}", "the name of an option", "group=option")
    if text.startswith("Multiple values for"):
        return ConfigError(text.splitlines()[0], "one option of a group", "leave out the +")
    if "Ambiguous value" in text or "requires --multirun" in text:
        return ConfigError(text.splitlines()[0], "one value, or a sweep with --multirun (-m)",
                           f"add -m, or {_without_sweep(text)}")  # fmt: skip
    return _wrong_key_or_value(text, loader)


def _without_sweep(text: str) -> str:
    """Return how to give a value that Hydra reads as a sweep, from Hydra's message."""
    given = re.search(r"(?:argument|parameters) '\+*([^'=]+)=(.*)'", text)
    if given and is_text(type_at(given[1])):
        return f"quote the text: {override_word(given[1], given[2])}"
    return "write a list as key=[a,b]"


def _unreadable(word: str, reason: str) -> ConfigError:
    """Return the error for an override that Hydra's grammar cannot read."""
    key, _, value = word.partition("=")
    parts = re.split(r"[./@:]", key.lstrip("+~"))
    if bad := next((part for part in parts if part and not KEY_PART.fullmatch(part)), None):
        return ConfigError(f"cannot read the override '{word}': Hydra reads no key such as '{bad}'",
                           "a name of letters, digits, _ and -, which begins with a letter",
                           "use such a name, or write this one in quotes in a YAML file")  # fmt: skip
    if is_text(type_at(key.lstrip("+"))):
        return ConfigError(f"cannot read the override '{word}': Hydra reads {value[:1]} as the beginning of a quoted "
                           "text, a list, a mapping or a function", "a text", override_word(key, value))  # fmt: skip
    texts = re.fullmatch(r"\[(.+)\]", value)
    if texts and type_at(key.lstrip("+")) == List[str]:
        items = [item.strip("'\"") for item in re.split(r",(?![^\[]*\])", texts.group(1))]  # not in a[1,2]
        return ConfigError(f"cannot read the override '{word}': {reason}", "texts in quotes", override_list(key, items))
    return ConfigError(f"cannot read the override '{word}': {reason}", "key=value",
                       "quote values that hold , [ { quotes or accents: key=\\'a,b\\'")  # fmt: skip


def _wrong_key_or_value(text: str, loader: ConfigLoader) -> ConfigError:
    in_file = re.search(r"In '([^']+)'", text)
    file = in_file.group(1) if in_file else ""
    where = f"in {file}.yaml: " if file else ""
    if moved := re.search(r"Could not override '(\S+)@(\S+)\.\1'", text):  # `override /optim:` in its defaults
        return _wrong_package(file or "the file", moved[2]) or _unknown(text)
    override = re.search(r"(?:Could not override|Error merging override|delete from config\.) '?\+*([^'=\s]+)", text)
    given = re.search(r"(?:Error merging override|use) \+*[^=\s]+=(.*)", text)
    path = re.search(r"full_key: (\S+)", text)
    key = path.group(1) if path else override.group(1).rstrip(".") if override else ""
    if re.search(r"Key '.*' (?:is )?not in|Could not delete", text):
        if file and (misplaced := _wrong_package(file, key)):
            return misplaced
        return _wrong_key(override.group(1) if override else key, given and given.group(1), where, loader)
    if number := re.search(r"Key (\S+) \((int|float|bool)\) is incompatible with \(str\)", text):
        above = key.removesuffix(number[1]).rstrip(".")
        return ConfigError(f"{where}a key in {above} is read as the {KINDS[number[2]]} {number[1]}", "a name, as text",
                           "begin the name with a letter, or write it in quotes in a YAML file")  # fmt: skip
    if key and (kind := type_at(key)) is not None:
        quoted = re.search(r"[Vv]alue '([^']*)'", text)
        value = given.group(1) if given else quoted.group(1) if quoted else "?"
        near = nearest(value, list(kind.__members__)) if isinstance(kind, type) and issubclass(kind, enum.Enum) else []
        if renamed := RENAMED_VALUES.get(key, {}).get(value.lower()):
            near = [renamed]
        fix = _as_type(key, value, kind) if given else ""
        fix = fix or " or ".join(f"{key}={word}" for word in near)
        return ConfigError(f"{where}{key}={value}", describe_type(kind), fix)
    return _unknown(text)


def _as_type(key: str, value: str, kind: Any) -> str:
    """Return the override that was meant, if the value only has to be written otherwise. Else an empty text."""
    if is_text(kind):
        return override_word(key, value)
    one_of = next((item for name, item in ((List[str], str), (List[int], int)) if kind in (name, Optional[name])), None)
    if one_of is None or value[:1] in "[{" or (one_of is int and not re.fullmatch(r"-?\d+", value)):
        return ""
    return override_list(key, [value]) if one_of is str else f"{key}=[{value}]"


def _unknown(text: str) -> ConfigError:
    return ConfigError(text, "a config that Hydra can compose", "run `ftdist train --cfg job` to see the config")


def _wrong_package(file: str, key: str) -> Optional[ConfigError]:
    """Return the error for a file whose keys Hydra has put in the wrong place. None if the keys are in the right place.

    Args:
        file: A file of a group, without ``.yaml``.
        key: The key that the config does not have.
    """
    package, sections = file.rpartition("/")[0].replace("/", "."), [name for name in schema_keys() if "." not in name]
    name = key.rpartition(".")[2]
    if key == package and key.partition(".")[0] in sections:  # launch/site
        parent = package.rpartition(".")[0]
        return ConfigError(f"{file}.yaml has no line `# @package {parent}`, so Hydra puts its keys under '{key}', "
                           "which is not a section of the config", f"a file whose keys are those of {parent}",
                           f"put the line `# @package {parent}` at the top of {file}.yaml")  # fmt: skip
    if key == package or key == file.split("/")[0]:
        return ConfigError(f"{file}.yaml has no line `# @package _global_`, so Hydra puts its keys under '{key}', "
                           "which is not a section of the config", "a file whose keys are sections of the config",
                           f"put the line `# @package _global_` at the top of {file}.yaml")  # fmt: skip
    if package and key == f"{package}.{name}" and name in sections:
        leave_out = f"leave out the level '{name}:', or " if name == package else ""
        return ConfigError(f"in {file}.yaml: Hydra puts the keys of this file under '{package}', so that '{name}' "
                           f"became '{key}'", f"a file whose keys are those of {package}, or sections of the config",
                           f"{leave_out}put the line `# @package _global_` at the top of {file}.yaml")  # fmt: skip
    return None


def _wrong_key(key: str, given: Optional[str], where: str, loader: ConfigLoader) -> ConfigError:
    """Return the error for a key that does not exist.

    Args:
        key: The key.
        given: Its value, if it was set on the command line.
        where: The file that holds it, for the message.
        loader: Knows the groups.
    """
    value = "" if given is None else f"={shell_word(given)}"
    if "." not in key and key not in OTHER_NAMES:
        groups = _groups(loader)
        near = nearest(key, groups + [known for known in schema_keys() if "." not in known])
        if near:
            return ConfigError(f"{where}there is no key or group '{key}'", "one of: " + ", ".join(sorted(groups)),
                               " or ".join(f"{word}{value}" for word in near))  # fmt: skip
    near = ["data=file data.sources.file.path"] if key in ("data.path", "data.file", "data") else nearest_key(key)
    section = key.rpartition(".")[0]
    siblings = [known.rpartition(".")[2] for known in schema_keys() if section and known.rpartition(".")[0] == section]
    expected = f"a key of {section}: {', '.join(siblings)}" if siblings else "a key of the config"
    show = f"run `ftdist train --cfg job{f' -p {section}' if siblings else ''}` to see the keys"
    return ConfigError(
        f"{where}there is no key '{key}'", expected, " or ".join(f"{word}{value}" for word in near) or show
    )


def _wrong_option(error: MissingConfigException, loader: ConfigLoader) -> ConfigError:
    name = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    missing = name.group(1) if name else str(error.missing_cfg_file)
    if "/" not in missing:
        have = [config for config in loader.get_group_options("", ObjectType.CONFIG) if config != "run_schema"]
        return ConfigError(
            f"there is no primary config '{missing}'", "one of: " + ", ".join(sorted(have)), "leave out --config-name"
        )
    group, option = missing.rsplit("/", 1)
    options = loader.get_group_options(group, ObjectType.CONFIG)
    near = OTHER_OPTIONS.get(group, {}).get(option.lower()) or nearest(option, options)
    return ConfigError(
        f"{group} has no option '{option}'",
        "one of: " + ", ".join(sorted(options)),
        " or ".join(f"{group}={word}" for word in near) or f"--config-dir FOLDER, if you have FOLDER/{missing}.yaml",
    )


def _not_an_override(word: str, loader: ConfigLoader) -> ConfigError:
    groups = _groups(loader)
    meant = [f"{group}={word}" for group in groups if word in loader.get_group_options(group, ObjectType.CONFIG)]
    if word in groups:
        meant = [f"{word}={option}" for option in loader.get_group_options(word, ObjectType.CONFIG)]
    elif not meant:
        meant = [f"{key}=VALUE" for key in nearest_key(word)]
    return ConfigError(
        f"'{word}' is not an override", "key=value, group=option, +key=value or ~key", " or ".join(meant)
    )


def _groups(loader: ConfigLoader) -> List[str]:
    return [group for group in loader.list_groups("") if group != "hydra"]
