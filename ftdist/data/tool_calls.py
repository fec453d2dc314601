"""Bring tools and calls of tools into one normal form. Files use many names and shapes for them.

A call in normal form is ``{"type": "function", "id": …, "function": {"name": …, "arguments": {…}}}``; ``id`` is
optional. A tool is ``{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}``.
"""

import json
import re
from typing import Any, Dict, List, Optional

from ftdist.base.errors import DataError
from ftdist.data.fields import parsed

Call = Dict[str, Any]
BETWEEN = re.compile(r"\A(?:\s|</?(?:tool_call|functioncall|function_call)>)*")
"""White space and tags before, between and after the calls in a text."""
ARGUMENT_FIELDS = ("arguments", "parameters", "input", "args")
CALL_FIELDS = ("tool_calls", "function_call", "tool_call", "function_calls", "toolCalls")
"""Fields of an answer with its calls. ``function_call`` is OpenAI's older form."""
TOOL_FIELDS = frozenset(("tools", "functions"))
OBJECTS = ("function", "parameters", "properties", "input_schema", "items", "return", "returns", "$defs", "definitions")
"""Fields of tools and schemas whose value is an object. A file can have its JSON text instead."""
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Fields of a schema with an object whose keys are names chosen by the author, and whose values are schemas."""
VALUES = ("const", "default", "enum", "examples", "example")
"""Fields of a schema with values of the author. They are not changed."""


def called_functions(where: str, message: Dict[str, Any]) -> List[Call]:
    """Return the calls of an assistant message, which are in ``tool_calls`` or another one of ``CALL_FIELDS``.

    Args:
        where: Names the message in errors.
        message: The message as it was found, without fields that are None.

    Raises:
        DataError: A call has no name, or its arguments are not an object.
    """
    found = {name: calls for name in CALL_FIELDS if name in message and (calls := _calls(where, message[name]))}
    if not found:
        return []
    first, *others = found
    known = [call["function"] for call in found[first]]
    for name in others:
        if any(call["function"] not in known for call in found[name]):
            raise DataError(f"{where}: its fields {first} and {name} hold different calls", "one of them",
                            "remove one of them", reason=f"different calls in {first} and {name}")  # fmt: skip
    return found[first]


def calls_in_text(where: str, content: Any) -> List[Call]:
    """Return the calls in the content of a message with the role ``function_call`` or ``tool_call``.

    Raises:
        DataError: The content is neither a call nor a list of calls.
    """
    found = _values(content) if isinstance(content, str) else [content]
    if found is None:
        raise _not_json(where, content)
    if calls := [call for value in found for call in _calls(where, value)]:
        return calls
    raise DataError(f"{where} (function_call) is empty", "a call", "remove the record", reason="an empty call")


def _values(text: str) -> Optional[List[Any]]:
    """Return the JSON values in a text. They can be in tags. None: the text has something else."""
    values, rest = [], BETWEEN.sub("", text, count=1)
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        values.append(value)
        rest = BETWEEN.sub("", rest[end:], count=1)
    return values


def _calls(where: str, found: Any) -> List[Call]:
    """Return the calls in a list, in one call, or in the JSON text of these."""
    found = parsed(found)
    if _is_nothing(found):
        return []
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list):
        raise _not_json(where, found)
    return [_call(where, call) for call in map(parsed, found) if not _is_nothing(call)]


def _not_json(where: str, found: Any) -> DataError:
    return DataError(f"{where} has a call that is not JSON: {str(found)[:60]!r}",
                     "an object with name and arguments, or a list of them", "correct or remove the record",
                     reason="a call that is not JSON")  # fmt: skip


def _is_nothing(value: Any) -> bool:
    """Return whether a value has only nulls and empty texts. Arrow fills gaps with such structs."""
    if isinstance(value, dict):
        return all(name == "type" or _is_nothing(held) for name, held in value.items())
    return value is None or value == "" or (isinstance(value, list) and all(map(_is_nothing, value)))


def _call(where: str, found: Any) -> Call:
    function = parsed(found.get("function")) if isinstance(found, dict) else None
    if isinstance(found, dict) and not isinstance(function, dict):
        function = {"name": function, **found} if isinstance(function, str) else found
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or not isinstance(function, dict):
        raise DataError(f"{where} has a call without the name of a function", "an object with name and arguments",
                        "correct or remove the record", reason="a call without a name")  # fmt: skip
    given: Any = next((function[field] for field in ARGUMENT_FIELDS if function.get(field) is not None), {})
    arguments = {} if given in ("", "null") else parsed(given)
    if not isinstance(arguments, dict) or not is_json(arguments):
        raise DataError(f"{where} calls {name} with arguments that are not a JSON object: {str(given)[:60]!r}",
                        "an object, or its JSON text", "correct or remove the record",
                        reason="a call whose arguments are not an object")  # fmt: skip
    identity = {"id": found["id"]} if isinstance(found.get("id"), str) and found["id"] else {}
    return {"type": "function", **identity, "function": {"name": name, "arguments": arguments}}


def is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON. Bytes and NaN cannot."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def tools_of_message(where: str, message: Any) -> Optional[List[Any]]:
    """Return the tools that a message has beside its content, or None. A list of names alone does not count."""
    if not isinstance(message, dict) or TOOL_FIELDS.isdisjoint(message):
        return None
    tools = read_tools(where, message) or []
    return tools if all(isinstance(tool, dict) for tool in tools) else None


def one_list(found: List[Optional[List[Any]]], location: str) -> Optional[List[Any]]:
    """Return the only list of tools of a record and its messages, or None if they have none.

    Raises:
        DataError: They have several different ones.
    """
    lists = [tools for tools in found if tools]
    if any(tools != lists[0] for tools in lists):
        raise DataError(f"{location}: the lists of tools in the messages and in the record are not the same",
                        "one list", "put all tools into the field tools of the record, or remove the record",
                        reason="several lists of tools")  # fmt: skip
    return lists[0] if lists else None


def read_tools(location: str, record: Dict[str, Any]) -> Optional[List[Any]]:
    """Return the tools of a record in normal form, or None if it has none.

    Args:
        location: Where the record was found. Error messages name it.
        record: Its field ``tools`` (or the older ``functions``) is a list of tools, a single tool, or the JSON text of
            one of these. The elements of the list can be JSON text too.

    Raises:
        DataError: The field is something else.
    """
    tools = record.get("tools") or record.get("functions")
    if isinstance(tools, str):  # because all values of a column must have the same type
        if not tools.strip():
            return None
        found, tools = tools, parsed(tools)
        if isinstance(tools, str):
            raise DataError(f"{location}: tools is a string that is not JSON: {found[:60]!r}", "a list of tools",
                            "correct or remove the record", reason="tools that are not JSON")  # fmt: skip
    tools = [tools] if isinstance(tools, dict) and tools else tools
    if tools and not isinstance(tools, list):
        raise DataError(f"{location}: tools is not a list: {str(tools)[:60]!r}", "a list of tools",
                        "correct or remove the record", reason="tools that are not a list")  # fmt: skip
    return [_tool(tool) for tool in map(parsed, tools) if not _is_nothing(tool)] or None if tools else None


def _tool(found: Any) -> Any:
    if not isinstance(found, dict):
        return found
    found = _schema(found)
    if "function" not in found and isinstance(found.get("name"), str) and found.get("type", "function") == "function":
        return {"type": "function", "function": {name: value for name, value in found.items() if name != "type"}}
    return {"type": "function", **found} if isinstance(found.get("function"), dict) else found


def remove_added_nulls(messages: List[Dict[str, Any]], tools: Optional[List[Any]]) -> None:
    """Remove null arguments that the called tool does not declare. The messages are changed in place.

    In a column of structs, Arrow gives each struct the fields of all others, as nulls. A JSON file that was made from
    such a column has these nulls too.
    """
    declared: Dict[str, Any] = {}
    for tool in tools or []:
        function = tool.get("function") if isinstance(tool, dict) else None
        parameters = function.get("parameters") if isinstance(function, dict) else None
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(function, dict) and isinstance(properties, dict):
            declared[str(function.get("name"))] = properties
    for message in messages:
        for call in message.get("tool_calls", []):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if name in declared and None in arguments.values():
                call["function"]["arguments"] = {
                    key: value for key, value in arguments.items() if value is not None or key in declared[name]
                }


def _schema(found: Any, with_names: bool = False) -> Any:
    """Return a tool or a JSON schema without the nulls that Arrow adds, and with objects instead of their JSON text.

    Args:
        found: The tool or schema, or a part of it.
        with_names: Whether the keys are names that the author has chosen, such as those of parameters.
    """
    if isinstance(found, list):
        return [_schema(value) for value in found]
    if not isinstance(found, dict):
        return found
    settled = {}
    for key, value in found.items():
        is_value = key in VALUES and not with_names
        if value is None and not (is_value and key in ("const", "default")):  # only these can be null in a schema
            continue
        read = parsed(value) if with_names or key in OBJECTS else value
        value = read if isinstance(read, (dict, list)) else value
        settled[key] = value if is_value else _schema(value, key in NAMED and not with_names)
    return settled
