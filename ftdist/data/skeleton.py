"""Find answers in the text of a conversation by substitution.

The conversation is rendered with a *sentinel* in place of each content, reasoning, call name and call argument. The
text between the sentinels is the template's. Then the rendered text of the real conversation is aligned with this
*skeleton*. This gives the position in the real text for each position in the skeleton, and proves that the real text
has each field.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, List, Optional, Set, Tuple

Message = Dict[str, Any]
FieldKey = Tuple[int, str]
"""``(number of the message, name of the field)``: ``content``, ``reasoning``, ``name``, and for tool calls
``call 0 name``, ``call 0 arguments``, ``call 0 id``."""

SENTINEL = re.compile(r"QZ(\d{5})ZQ(?:long)?")  # nine letters and digits: Mistral's templates require such ids
BEFORE_ARGUMENTS = re.compile(r"""(?:<\|"\|>|[{}"'\\,:\s])*\Z""")
AFTER_ARGUMENTS = re.compile(r"""(?:\s*(?:<\|"\|>|[}"'\\]))*""")
"""The notation around the arguments of a call that depends on the arguments: braces and quotation marks. Gemma has
quotation marks of its own."""


@dataclass
class Sentinels:
    """The sentinels of a conversation."""

    messages: List[Message]
    """The messages with sentinels in place of their fields."""
    keys: List[FieldKey] = field(default_factory=list)
    """The field of each sentinel."""


@dataclass(frozen=True)
class Part:
    """A part of a skeleton: text of the template, or the sentinel of a field."""

    text: str
    key: Optional[FieldKey] = None


def _sentinel(number: int) -> str:
    return f"QZ{number:05d}ZQ"


def with_sentinels(messages: List[Message], long_ids: bool = False, exact: FrozenSet[int] = frozenset()) -> Sentinels:
    """Replace each field of a conversation by a sentinel. Empty fields stay empty.

    The result of a call gets the sentinel of the call's id, because some templates look for the call by its id.

    Args:
        long_ids: The sentinels of ids have more than nine characters, so that a template that requires nine raises.
        exact: Numbers of messages that keep their content, because the template looks for words in it.
    """
    found = Sentinels([])
    given: Dict[str, str] = {}  # the sentinels of the ids of calls
    suffix = "long" if long_ids else ""

    def sentinel(number: int, name: str) -> str:
        found.keys.append((number, name))
        return _sentinel(len(found.keys) - 1)

    for number, message in enumerate(messages):
        changed = dict(message)
        if message.get("reasoning_content"):
            changed["reasoning_content"] = sentinel(number, "reasoning")
        if message["content"] and number not in exact:
            changed["content"] = sentinel(number, "content")
        if isinstance(message.get("name"), str):
            changed["name"] = sentinel(number, "name")
        if isinstance(message.get("tool_call_id"), str):
            known = given.get(message["tool_call_id"])
            changed["tool_call_id"] = known or sentinel(number, "tool_call_id") + suffix
        if message.get("tool_calls"):
            changed["tool_calls"] = []
            for index, call in enumerate(message["tool_calls"]):
                function = {**call["function"], "name": sentinel(number, f"call {index} name")}
                if call["function"]["arguments"]:
                    name = sentinel(number, f"call {index} arguments")
                    function["arguments"] = {name: sentinel(number, f"call {index} end of arguments")}
                copy = {**call, "function": function}
                if isinstance(call.get("id"), str):
                    copy["id"] = given[call["id"]] = sentinel(number, f"call {index} id") + suffix
                changed["tool_calls"].append(copy)
        found.messages.append(changed)
    return found


def field_values(messages: List[Message]) -> Dict[FieldKey, str]:
    """Return the text of each field whose text is known. The text of arguments depends on the template."""
    values: Dict[FieldKey, str] = {}
    for number, message in enumerate(messages):
        for key, name in (("reasoning_content", "reasoning"), ("content", "content"), ("name", "name"),
                          ("tool_call_id", "tool_call_id")):  # fmt: skip
            if isinstance(message.get(key), str):
                values[number, name] = message[key]
        for index, call in enumerate(message.get("tool_calls") or []):
            values[number, f"call {index} name"] = call["function"]["name"]
            if isinstance(call.get("id"), str):
                values[number, f"call {index} id"] = call["id"]
    return values


def split_parts(text: str, keys: List[FieldKey]) -> List[Part]:
    """Split a skeleton into the text of the template and the sentinels.

    The parts together are the text. The notation around the arguments of a call (braces, quotes) belongs to the
    arguments, because it depends on them.
    """
    parts, position, start, opening = [], 0, -1, ""
    for match in SENTINEL.finditer(text):
        key = keys[int(match[1])]
        if key[1].endswith(" end of arguments"):
            if start < 0:
                continue
            closing = text.rfind(opening, match.end())  # some templates close a tag with the name of the argument
            end = closing + len(opening) if closing >= 0 else match.end()
            end += len(AFTER_ARGUMENTS.match(text[end:])[0])  # type: ignore[index]
            parts.append(Part(text[start:end], (key[0], key[1].replace(" end of", ""))))
            position, start = end, -1
        elif key[1].endswith(" arguments"):
            if match.start() < position:
                continue
            opening = match[0]
            start = position + BEFORE_ARGUMENTS.search(text[position : match.start()]).start()  # type: ignore[union-attr]
            parts.append(Part(text[position:start]))
        elif start < 0:
            parts += [Part(text[position : match.start()]), Part(match[0], key)]
            position = match.end()
    parts.append(Part(text[position:]))
    return [part for part in parts if part.text]


class Alignment:
    """Positions of the parts of a skeleton in the real text."""

    def __init__(self, parts: List[Part], ends: List[int]) -> None:
        self.parts, self.ends = parts, ends

    def position(self, offset: int) -> int:
        """Return the position in the real text of an offset in the skeleton, which must not lie inside a field."""
        skeleton = real = 0
        for part, end in zip(self.parts, self.ends, strict=True):
            if offset == skeleton:
                return real
            if offset < skeleton + len(part.text):
                if part.key is not None:  # inside the notation of arguments, which is part of them
                    return end
                return real + offset - skeleton
            skeleton, real = skeleton + len(part.text), end
        return real


def align(parts: List[Part], text: str, values: Dict[FieldKey, str]) -> Optional[Alignment]:
    """Find the parts of a skeleton in the real text.

    Args:
        parts: Parts of the skeleton.
        text: The real text.
        values: The texts of the fields that must be found. A template may trim them, or write them as JSON. Fields
            without a text here can be any text.

    Returns:
        The positions of the parts, or None if the text does not have these parts.
    """
    ends: List[int] = []
    open_fields: List[Tuple[int, int]] = []  # fields without a known text: their number and position, the last one last
    failed: Set[Tuple[int, int]] = set()  # such fields from which no end fits
    while len(ends) < len(parts) or (ends and ends[-1] != len(text)):
        number, position = len(ends), ends[-1] if ends else 0
        end = None
        if number < len(parts) and (number, position) not in failed:
            end = _end(parts, number, text, position, position, values)
        while end is None:  # try the next end of the last field without a known text
            if not open_fields:
                return None
            number, position = open_fields.pop()
            tried = ends[number] + 1
            del ends[number:]
            end = _end(parts, number, text, position, tried, values)
            if end is None:
                failed.add((number, position))
        if parts[number].key is not None and parts[number].key not in values:
            open_fields.append((number, position))
        ends.append(end)
    return Alignment(parts, ends)


def _end(
    parts: List[Part], number: int, text: str, position: int, tried: int, values: Dict[FieldKey, str]
) -> Optional[int]:
    """Return where a part that begins at ``position`` ends in the text, or None if it is not there.

    A field without a known text can end wherever the template's next text begins, from the position ``tried`` on.
    """
    part = parts[number]
    if part.key is None:
        return position + len(part.text) if text.startswith(part.text, position) else None
    following = parts[number + 1].text if number + 1 < len(parts) and parts[number + 1].key is None else ""
    if part.key in values:
        return _fitting_end(values[part.key], text, position, following)
    if not following:
        return len(text) if tried <= len(text) else None
    end = text.find(following, tried)
    return end if end >= 0 else None


def _fitting_end(value: str, text: str, position: int, following: str) -> Optional[int]:
    if text.startswith(value, position) and text.startswith(following, position + len(value)):
        return position + len(value)
    for written in written_forms(value):
        if text.startswith(written, position) and text.startswith(following, position + len(written)):
            return position + len(written)
    return None


def written_forms(value: str) -> List[str]:
    """Return how templates write a text: as it is, trimmed at either end, or escaped as in JSON."""
    trimmed = [value, value.strip(), value.lstrip(), value.rstrip(), value.strip("\n"), value.lstrip("\n")]
    escaped = [json.dumps(one, ensure_ascii=ascii)[1:-1] for one in trimmed[:2] for ascii in (False, True)]
    return list(dict.fromkeys(trimmed + escaped))
