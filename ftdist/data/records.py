"""Read records of all supported formats into documents. A document is a plain text, a prompt with its completion, or
a chat."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from ftdist.base.errors import DataError
from ftdist.config.schema import Format

Record = Dict[str, Any]
Message = Dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
FIELD_DESCRIPTIONS = {
    Format.text: "text",
    Format.messages: "messages (a list of role and content)",
    Format.prompt_completion: "prompt, completion",
    Format.alpaca: "instruction, output (and input)",
    Format.sharegpt: "conversations (a list of from and value)",
}
REQUIRED_FIELDS = {
    Format.messages: ("messages",),
    Format.sharegpt: ("conversations",),
    Format.prompt_completion: ("prompt", "completion"),
    Format.alpaca: ("instruction", "output"),
    Format.text: ("text",),
}


@dataclass(frozen=True)
class Document:
    """A chat if ``messages`` is not empty, otherwise a text."""

    location: str
    """Where the record was found (``file:line``). Error messages name it."""
    format: Format
    prompt: str = ""
    """The part of ``text`` before the completion. Empty for plain text."""
    text: str = ""
    messages: List[Message] = field(default_factory=list)
    """Objects with ``role``, ``content`` and further fields for the chat template."""
    tools: Optional[List[Any]] = None
    """Tools for the chat template."""
    num_prompt_messages: int = 0
    """Number of messages that belong to the prompt of a prompt/completion record."""
    marks: Optional[List[Optional[bool]]] = None
    """For each message, whether its author marked it to be trained. None: without a mark."""
    template_kwargs: Dict[str, Any] = field(default_factory=dict)
    """The record's own arguments for the chat template. They override ``data.chat_template_kwargs``."""


def read_record(location: str, record: Any, format: Format) -> Document:
    """Read a record into a document.

    Args:
        location: Where the record was found. Error messages name it.
        record: An object with the fields of one of the formats. Fields with the value None are treated as absent.
        format: ``Format.auto`` recognises the format by the fields.

    Raises:
        DataError: The record is invalid. The message names its location.
    """
    if not isinstance(record, dict):
        raise DataError(f"{location}: the record is {_type_name(record)}", "an object with fields", "")
    record = {name: value for name, value in record.items() if value is not None}
    format = _recognise(location, record, format)
    if format is Format.text:
        return Document(location, format, text=_string(location, record, "text"))
    if format is Format.prompt_completion:
        return _read_prompt_completion(location, record)
    if format is Format.alpaca:
        messages = _alpaca_messages(location, record)
    elif format is Format.sharegpt:
        messages = _messages(location, record["conversations"], "from", "value")
        if isinstance(record.get("system"), str) and record["system"]:
            messages.insert(0, {"role": "system", "content": record["system"]})
    else:
        messages = _messages(location, record["messages"])
    return Document(location, format, messages=messages, tools=_tools(location, record))


def _recognise(location: str, record: Record, format: Format) -> Format:
    candidates = list(REQUIRED_FIELDS) if format is Format.auto else [format]
    for candidate in candidates:
        if all(name in record for name in REQUIRED_FIELDS[candidate]):
            return candidate
    fields = f"the fields {', '.join(sorted(record))}" if record else "no fields"
    if format is not Format.auto:
        raise DataError(
            f"{location}: the record has {fields}",
            f"{FIELD_DESCRIPTIONS[format]}, for format={format.name}",
            "set the format of the source to that of its records, or to auto",
        )
    known = "; ".join(f"{name.name}: {needs}" for name, needs in FIELD_DESCRIPTIONS.items())
    raise DataError(
        f"{location}: the record has {fields}{', which match no known format' if record else ''}",
        known,
        "rename the fields to one of these",
    )


def _read_prompt_completion(location: str, record: Record) -> Document:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion:
            raise DataError(f"{location}: the completion is empty", "a completion with text", "remove the record")
        return Document(location, Format.prompt_completion, prompt=prompt, text=prompt + completion)
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise DataError(
            f"{location}: prompt is {_type_name(prompt)} and completion is {_type_name(completion)}",
            "two strings, or two lists of messages",
        )
    before, after = _messages(location, prompt), _messages(location, completion)
    if not any(message["role"] == "assistant" for message in after):
        raise DataError(
            f"{location}: the completion has no assistant message", "an assistant message in the completion"
        )
    tools = _tools(location, record)
    return Document(
        location, Format.prompt_completion, messages=before + after, tools=tools, num_prompt_messages=len(before)
    )


def _alpaca_messages(location: str, record: Record) -> List[Message]:
    question = _string(location, record, "instruction")
    if record.get("input"):
        question += "\n\n" + _string(location, record, "input")
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _string(location, record, "output")},
    ]
    if record.get("system"):
        messages.insert(0, {"role": "system", "content": _string(location, record, "system")})
    return messages


def _messages(location: str, found: Any, role_field: str = "role", content_field: str = "content") -> List[Message]:
    if isinstance(found, str):  # a list as JSON text, for example in a column of a .csv file
        with suppress(ValueError):
            found = json.loads(found)
    if not isinstance(found, list):
        raise DataError(f"{location}: the messages are {_type_name(found)}", "a list of messages")
    if not found:
        raise DataError(f"{location}: the list of messages is empty", "at least one message", "remove the record")
    return [
        _message(f"{location}, message {number}", message, role_field, content_field)
        for number, message in enumerate(found, 1)
    ]


def _message(where: str, found: Any, role_field: str, content_field: str) -> Message:
    if not isinstance(found, dict):
        raise DataError(f"{where} is {_type_name(found)}", f"an object with {role_field} and {content_field}")
    message = {name: value for name, value in found.items() if value is not None}
    role = message.pop(role_field, None)
    role = ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        fields = ", ".join(found) or "none"
        problem = f"has no {role_field}; its fields are: {fields}" if role is None else f"has the role {role!r}"
        raise DataError(f"{where} {problem}", f"one of the roles {', '.join(ROLES)}")
    content = message.pop(content_field, "")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(part.get("text") or "" for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where} has content that is {_type_name(content)}", "a string, or parts of type text")
    if not content and not message.get("tool_calls") and role != "tool":
        raise DataError(f"{where} ({role}) is empty", "content or tool_calls", "remove the message or the record")
    return {"role": role, "content": content, **message}


def _tools(location: str, record: Record) -> Optional[List[Any]]:
    tools = record.get("tools")
    if isinstance(tools, str):  # JSON text, because all values of a column must have the same type
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError(f"{location}: tools is a string that is not JSON: {error}", "a list of tools") from error
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{location}: tools is {_type_name(tools)}", "a list of tools")
    return tools or None


def _string(location: str, record: Record, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{location}: {name} is {_type_name(value)}", "a string")
    if not value.strip():
        raise DataError(f"{location}: {name} is empty", "text", "remove the record")
    return value


def _type_name(value: Any) -> str:
    names = {
        list: "a list",
        dict: "an object",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "missing",
    }
    return names.get(type(value), type(value).__name__)
