"""Values in a model's config with which no model can be built or trained: zero heads, text in place of a number.

transformers accepts most of them. The error, or the NaN, that they cause later does not name the field.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Dict, Optional, Tuple

from transformers import CONFIG_MAPPING

from ftdist.base.errors import ConfigError
from ftdist.base.names import nearest
from ftdist.config.schema import RunConfig
from ftdist.run.hub import model_folder
from ftdist.run.locations import model_location

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim")  # fmt: skip
"""Fields that are at least 1 in every model that has them. They are the common names of ``attribute_map``."""
POSITIVE = re.compile(r"(^|_)theta$|^(rope_)?factor$|^original_max_position_embeddings$|^rotary_emb_base$")
"""Names of numbers, most of them parameters of RoPE, that are greater than 0."""
NOT_NEGATIVE = re.compile(r"(^|_)eps(ilon)?$|initializer_range$|^init_std$")
PROBABILITY = re.compile(r"dropout$|pdrop$|layerdrop$|dropout_(rate|prob|p)$")
NO_NUMBER = re.compile("_ids?$|_index$|_token$")
"""Names of fields that name tokens or layers. -1 often means none."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
"""Number of experts, and how many of them a token is sent to."""
TEXT_PARTS = ("text_config", "decoder")
"""Fields in which transformers looks for the language part of a model, also if the model has no parts."""
FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Types of weights, as the ``dtype`` of a config names them."""
UNUSUAL_OUTPUTS = {"output_attentions": (True, "false", "output_attentions"), "return_dict": (False, "true", "tuple")}
"""Fields that change what a model returns: a value with which some models fail, what is expected, and a word in the
reason of the failure."""
WHOLE, ABOVE = "a whole number of at least 1", "a number greater than 0"


@dataclass(frozen=True)
class OddValue:
    """A field of a config with a value that the model cannot have."""

    name: str
    """The name in the config, with the names of the parts that it is in: ``rope_parameters.factor``."""
    value: Any
    expected: str
    certain: bool = True
    """False: some models can have this value."""
    word: str = ""
    """The value can be the cause only of an error whose reason contains this word."""

    def describe(self) -> str:
        return f"{self.name}={_shown(self.value)}"


def refuse_odd_values(config: RunConfig) -> None:
    """Refuse a config with a value that no model can have.

    Raises:
        ConfigError: The config has such a value. The message names the field.
    """
    for odd in odd_values(_given_fields(config)):
        if odd.certain:
            raise odd_value_error(config, odd)


def odd_value_error(config: RunConfig, odd: OddValue) -> ConfigError:
    """Return the error for a value that the model of a run cannot have."""
    folder = model_folder(config)
    place = "model.config." if folder is None else f"{folder}/config.json: "
    return ConfigError(f"{place}{odd.describe()}", odd.expected, correction(config, odd))


def possible_cause(config: RunConfig, reason: str) -> Optional[OddValue]:
    """Return the value in the config of the model of a run that may be the cause of an error: one that its reason
    quotes, or else the first odd one."""
    fields = _given_fields(config)
    return next(_quoted(fields, reason), None) or _cause(fields, reason)


def _cause(fields: Mapping[str, Any], reason: str) -> Optional[OddValue]:
    return next((odd for odd in odd_values(fields) if odd.word in reason.lower()), None)


def with_cause(config: RunConfig, error: ConfigError) -> ConfigError:
    """Return an error about a model that also names the odd value in its config that may be the cause, if any."""
    cause = _cause(_given_fields(config), error.found)
    if cause is None:
        return error
    return ConfigError(f"{error.found} ({cause.describe()} may be the cause)", error.expected,
                       f"{correction(config, cause)} ({cause.expected}), or {error.fix}")  # fmt: skip


def unknown_type(config: RunConfig) -> ConfigError:
    """Return the error for a model folder or repository whose type transformers does not know."""
    found = _given_fields(config).get("model_type")
    near = nearest(str(found), CONFIG_MAPPING)
    return ConfigError(f"{model_location(config)}/config.json: model_type={_shown(found)} is not a model type that "
                       f"transformers {version('transformers')} knows", "a type of causal language models",
                       f'correct it, for example "{near[0]}"' if near and isinstance(found, str) else
                       "use another model, or a version of transformers that knows it")  # fmt: skip


def shown_field(config: RunConfig, reason: str) -> str:
    """Return the field of the model's config that a reason names, with its value; "" if the reason shows it itself."""
    for name, value in _given_fields(config).items():
        if re.search(rf"\b{re.escape(name)}\b", reason):
            return "" if str(value) in reason else f" ({name}={_shown(value)})"
    cause = next(_quoted(_given_fields(config), reason), None)
    return f" ({cause.describe()})" if cause else ""


def _quoted(fields: Mapping[str, Any], reason: str, place: str = "") -> Iterator[OddValue]:
    """Return the fields whose value is a text that a reason quotes, as a KeyError does."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _quoted(value, reason, f"{place}{name}.")
        elif isinstance(value, str) and value and f"'{value}'" in reason:
            yield OddValue(f"{place}{name}", value, "a value that transformers knows", certain=False)


def correction(config: RunConfig, odd: OddValue) -> str:
    """Return what to do about an odd value."""
    if not config.model.config:
        return f"correct {odd.name} in a local copy of the model"
    return f"correct model.config.{odd.name}"


def _given_fields(config: RunConfig) -> Dict[str, Any]:
    """Return the fields of the model's config as the user gave them, before transformers changes any. The result is
    empty if they cannot be read."""
    if config.model.config:
        return config.model.config
    folder = model_folder(config)
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
        return found if isinstance(found, dict) else {}
    return {}


def odd_values(fields: Mapping[str, Any], model_type: Any = None, place: str = "") -> Iterator[OddValue]:
    """Return the odd values in the fields of a config and of its parts.

    Args:
        fields: Fields as config.json has them.
        model_type: The type of the model. By default it is one of the fields.
        place: Names of the parts that the fields are in, with a dot at the end.
    """
    made = _config_class(fields.get("model_type") or model_type)
    names = {getattr(made, "attribute_map", {}).get(name, name) for name in SIZES} | set(SIZES)
    defaults = {field.name: field.default for field in dataclasses.fields(made)} if made else {}
    optional = {field.name for field in dataclasses.fields(made) if "None" in str(field.type)} if made else set()
    parts = getattr(made, "sub_configs", {})
    unknown_parts = set() if made is None or "auto_map" in fields else set(TEXT_PARTS) - set(parts)
    for name, value in fields.items():
        if isinstance(value, (Mapping, str)) and name in unknown_parts:
            yield OddValue(f"{place}{name}", value, f"no such field: a {made.model_type} model has no parts")
            continue
        if isinstance(value, Mapping) and name not in ("dtype", "torch_dtype"):
            part = getattr(parts.get(name), "model_type", None) if name in parts else None
            yield from odd_values(value, part, f"{place}{name}.")
            continue
        default = defaults.get(name)
        default = default if isinstance(default, (int, float)) and not isinstance(default, bool) else None
        found = _problem(str(name), value, name in names, default, name in optional or name not in defaults)
        if found:
            expected, certain = found
            own = made is not None and getattr(made, name, None) == value  # published configs may have it, too
            yield OddValue(f"{place}{name}", value, expected, certain and not own)
    yield from _out_of_range(fields, place)


def _problem(name: str, value: Any, is_size: bool, default: Any, optional: bool) -> Optional[Tuple[str, bool]]:
    """Return what is expected of a value that the model cannot have, and whether this is certain."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in ("dtype", "torch_dtype"):
        return None if value is None or value in FLOATS else (f"one of {', '.join(FLOATS)}", True)
    if value is None:
        needed = POSITIVE.search(name) or (default is not None and not optional)
        return ("a number", False) if needed else None
    if number and math.isnan(value):
        return "a number", True
    if is_size and not isinstance(value, (list, tuple)):
        return None if number and value >= 1 and value == int(value) else (WHOLE, True)
    if POSITIVE.search(name) and not isinstance(value, (list, tuple, Mapping)):
        return None if number and value > 0 else (ABOVE, True)
    if isinstance(value, (str, bool)):
        return ("a number", True) if default is not None and isinstance(value, str) and _is_number(value) else None
    if not number:
        return None
    if NOT_NEGATIVE.search(name) and value < 0:
        return "a number that is not negative", True
    if PROBABILITY.search(name) and not 0 <= value <= 1:
        return "a number from 0 to 1", True
    if value <= 0 < (default or 0) and not NO_NUMBER.search(name) and not PROBABILITY.search(name):
        return (WHOLE if isinstance(default, int) else ABOVE), False
    return None


def _out_of_range(fields: Mapping[str, Any], place: str) -> Iterator[OddValue]:
    """Return a padding token outside the vocabulary, and a number of experts per token above the number of experts."""
    rows = fields.get("vocab_size")
    for name, value in fields.items():
        if name == "pad_token_id" and isinstance(value, int) and isinstance(rows, int) and value >= rows:
            yield OddValue(f"{place}{name}", value, f"a number below vocab_size={rows}", certain=False, word="padding")
        if name in UNUSUAL_OUTPUTS and value is UNUSUAL_OUTPUTS[name][0]:
            _, expected, word = UNUSUAL_OUTPUTS[name]
            yield OddValue(f"{place}{name}", value, expected, certain=False, word=word)
    chosen = next(((name, fields[name]) for name in CHOSEN if isinstance(fields.get(name), int)), None)
    experts = next(((name, fields[name]) for name in EXPERTS if isinstance(fields.get(name), int)), None)
    if chosen and experts and chosen[1] > experts[1]:
        yield OddValue(f"{place}{chosen[0]}", chosen[1], f"at most {experts[0]}={experts[1]}",
                       certain=experts[1] > 1)  # fmt: skip


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f'"{value}"' if isinstance(value, str) else str(value)[:100]


def _config_class(model_type: Any) -> Any:
    try:
        return CONFIG_MAPPING[model_type]
    except (KeyError, TypeError, ImportError):
        return None
