"""Keep text settings as they were typed, even if they look like a number: ``name=12e3`` is not ``12000.0``.

Hydra and YAML read ``12e3`` as a number, and OmegaConf turns the number into text again for a setting of type ``str``.
So a value on the command line is quoted before Hydra reads it, and a value from a file is taken from the file again.
"""

import dataclasses
import re
import typing
from typing import Any, Dict, List

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ftdist.base.errors import ConfigError
from ftdist.base.shell import HYDRA_FUNCTION, hydra_quoted
from ftdist.launch.config.keys import is_text, type_at
from ftdist.launch.config.origins import Origin

FLAT = re.compile(r"(choice\(|\[|\{)?([^][(){}'\"\\$]*)([)\]}])?")
"""A value, a list, a mapping, or the choices of a sweep, without nesting, quotes, escapes and interpolations."""


def quote_texts(overrides: List[str]) -> List[str]:
    """Quote the values of text settings that Hydra would change, because they look like a number, or could not read.

    Args:
        overrides: Words of the command line.

    Raises:
        ConfigError: Hydra would change a text inside a value that is too nested to be quoted here.
    """
    parser = OverridesParser.create()
    quoted = []
    for word in overrides:
        try:
            parsed = parser.parse_override(word)
        except HydraException:
            quoted.append(_quote_whole(word, parser))
        else:
            quoted.append(_quote(word, parsed, parser))
    return quoted


def _quote(word: str, parsed: Override, parser: OverridesParser) -> str:
    kind, value = type_at(parsed.key_or_group), parsed.value()
    typed = word.partition("=")[2]
    if is_text(kind) and isinstance(value, str) and not isinstance(value, QuotedString) and typed != typed.strip():
        return f"{parsed.input_line.partition('=')[0]}={hydra_quoted(typed)}"
    numbers = _numbers_for_text(kind, value)
    if not numbers:
        return word
    text = parsed.get_value_string()
    flat = FLAT.fullmatch(text)
    if flat is not None and bool(flat.group(1)) == bool(flat.group(3)):
        items = [_quote_item(item, parser, flat.group(1) == "{") for item in flat.group(2).split(",")]
        return f"{word[: -len(text)]}{flat.group(1) or ''}{','.join(items)}{flat.group(3) or ''}"
    for number in numbers:
        as_written = re.findall(rf"(?<![\w.+'\"-]){re.escape(str(number))}(?![\w.'\"])", text)
        if len(as_written) < numbers.count(number):
            raise ConfigError(f"{word}: Hydra would read a text in this value as {number}",
                              "double quotes around text that looks like a number or boolean",
                              f"write it in double quotes: '{parsed.get_key_element()}=…\"TEXT\"…'")  # fmt: skip
    return word


def _quote_whole(word: str, parser: OverridesParser) -> str:
    """Quote the value of a text setting that Hydra's grammar does not know: ``name=größe``, ``path=it's.jsonl``.

    A value that begins like a quoted text, a list, a mapping or a function is not changed, nor is a value that may be a
    sweep or an interpolation. Such a value contains a mistake, which Hydra reports. So does a key that Hydra cannot
    read.
    """
    key, equals, value = word.partition("=")
    if not equals or value[:1] in tuple("'\"[{(") or "," in value or "${" in value or HYDRA_FUNCTION.match(value):
        return word
    if not is_text(type_at(key.lstrip("+"))):
        return word
    quoted = f"{key}={hydra_quoted(value)}"
    try:
        parser.parse_override(quoted)
    except HydraException:
        return word
    return quoted


def _quote_item(item: str, parser: OverridesParser, has_key: bool) -> str:
    """Return one value, in quotes if Hydra would change its text."""
    key, colon, item = item.partition(":") if has_key else ("", "", item)
    value, text = parser.parse_rule(item, "primitive"), item.strip()
    is_changed = isinstance(value, (bool, int, float)) and str(value) != text
    return f"{key}{colon}'{text}'" if is_changed else f"{key}{colon}{item}"


def _numbers_for_text(kind: Any, value: Any) -> List[Any]:
    """Return the numbers and booleans that Hydra has read in places of type text.

    Args:
        kind: The type of the setting.
        value: What Hydra has read for it.
    """
    if is_text(kind):
        items = value.list if isinstance(value, ChoiceSweep) else [value]
        return [item for item in items if isinstance(item, (bool, int, float))]
    arguments = typing.get_args(kind)
    if isinstance(value, ChoiceSweep):
        return [found for item in value.list for found in _numbers_for_text(kind, item)]
    if isinstance(value, list) and typing.get_origin(kind) is list:
        return [found for item in value for found in _numbers_for_text(arguments[0], item)]
    if isinstance(value, dict):
        kinds = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        other = arguments[1] if typing.get_origin(kind) is dict else None
        return [found for name, item in value.items() for found in _numbers_for_text(kinds.get(str(name), other), item)]
    return []


def restore_texts(composed: DictConfig, origins: Dict[str, Origin]) -> None:
    """Set every text setting to what its file says, where OmegaConf has changed it. Changes ``composed`` in place.

    YAML reads ``12e3`` and ``1.10`` as floats, ``12:00:00`` and ``010`` as integers, ``yes`` and ``on`` as booleans.
    """
    for key, origin in origins.items():
        kind = type_at(key)
        if is_text(kind):
            written, read = [origin.text], [OmegaConf.select(composed, key, throw_on_missing=False)]
        elif typing.get_origin(kind) is list and is_text(typing.get_args(kind)[0]) and isinstance(origin.text, list):
            written, read = origin.text, list(OmegaConf.select(composed, key, throw_on_missing=False) or [])
        else:
            continue
        if len(written) == len(read) and any(map(_is_changed, written, read)):
            texts = [text if _is_changed(text, value) else value for text, value in zip(written, read, strict=True)]
            OmegaConf.update(composed, key, texts[0] if is_text(kind) else texts)


def _is_changed(written: Any, read: Any) -> bool:
    """Return whether YAML changed a text: ``read`` is what YAML makes of ``written``, but as text the two differ."""
    if not isinstance(written, str) or read is None or str(read) == written or "${" in written:
        return False
    try:
        return str(OmegaConf.create(f"value: {written}")["value"]) == str(read)
    except (YAMLError, OmegaConfBaseException):
        return False
