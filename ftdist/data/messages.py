"""Bring the messages of a chat into one normal form, whatever names and shapes their file uses.

A message in normal form has ``role`` (system, user, assistant or tool) and ``content`` (a string), and optionally
``reasoning_content``, ``tool_calls``, ``name`` and ``tool_call_id``. ``ftdist.data.tool_calls`` describes the calls.
"""

import json
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ftdist.base.errors import DataError
from ftdist.data.tool_calls import called_functions, calls_in_text

Message = Dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
CALL = "call"
"""The role of messages that hold a call instead of a text. They become an assistant message with ``tool_calls``."""
ROLE_ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatgpt", "ai"), "assistant"),
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("function", "observation", "ipython", "tool_response", "tool_result", "tool_results",
                     "function_response", "function_result", "function_output"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls", "function-call", "tool-call"), CALL),
}  # fmt: skip
ROLE_FIELDS, CONTENT_FIELDS = ("role", "from"), ("content", "value", "text")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
MARK_FIELDS = ("train", "weight", "loss", "training")
MARKS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # 1 is equal to True
"""What a mark can be. A mark says whether the author wants a message to be trained."""
OPEN_THINK, CLOSE_THINK = "<think>", "</think>"


class Chat(NamedTuple):
    messages: List[Message]
    marks: List[Optional[bool]]
    """For each message: whether its author marked it to be trained. None: without a mark."""


def read_messages(location: str, found: Any) -> Chat:
    """Return messages in normal form.

    Args:
        location: Where the record was found. Error messages name it.
        found: A list of messages, or its JSON text. A message is an object, or the list ``[role, content]``. The
            elements can also be ``[question, answer]``.

    Raises:
        DataError: A message is invalid. The error names it.
    """
    if isinstance(found, str):  # a list as JSON text, for example in a column of a .csv file
        with suppress(ValueError, RecursionError):
            found = json.loads(found)
    if not isinstance(found, list):
        raise DataError(f"{location}: the messages are {type_name(found)}", "a list of messages",
                        "correct or remove the record", reason="messages that are not a list")  # fmt: skip
    if not found:
        raise DataError(f"{location}: the list of messages is empty", "at least one message", "remove the record",
                        reason="an empty list of messages")  # fmt: skip
    chat = Chat([], [])
    for number, message in enumerate(_from_pairs(found), 1):
        _append(chat, *_read_message(f"{location}, message {number}", message))
    return chat


def _from_pairs(found: List[Any]) -> List[Any]:
    """Return messages as objects. ``[["user", "q"], ["assistant", "a"]]`` and ``[["q", "a"]]`` are understood."""
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in found):
        return found
    if all(_role(first) for first, _ in found):
        return [{"role": first, "content": second} for first, second in found]
    return [{"role": ("user", "assistant")[i], "content": text} for pair in found for i, text in enumerate(pair)]


def _role(name: str) -> Optional[str]:
    name = name.strip().lower()
    role = ROLE_ALIASES.get(name, name)
    return role if role in (*ROLES, CALL) else None


def _append(chat: Chat, message: Message, mark: Optional[bool]) -> None:
    """Append a message. A call is joined with the answer before it: the model writes both in one turn."""
    if message["role"] == CALL:
        previous = chat.messages[-1] if chat.messages else {"role": ""}
        if previous["role"] == "assistant" and mark == chat.marks[-1]:
            previous["tool_calls"] = previous.get("tool_calls", []) + message["tool_calls"]
            return
        message = {**message, "role": "assistant"}
    if message["role"] == "system" and not message["content"]:
        return  # an empty field of a form, not an instruction
    chat.messages.append(message)
    chat.marks.append(mark)


def _read_message(where: str, found: Any) -> Tuple[Message, Optional[bool]]:
    if not isinstance(found, dict):
        raise DataError(f"{where} is {type_name(found)}", "an object with role and content",
                        "correct or remove the record", reason="a message that is not an object")  # fmt: skip
    fields = {name: value for name, value in found.items() if value is not None}
    named = next((fields[name] for name in ROLE_FIELDS if name in fields), None)
    role = _role(named) if isinstance(named, str) else None
    if role is None:
        problem = f"has no role; its fields are: {', '.join(found) or 'none'}" if named is None else (
            f"has the role {named!r}")  # fmt: skip
        reason = "a message without a role" if named is None else "a message with an unknown role"
        raise DataError(f"{where} {problem}", f"one of the roles {', '.join(ROLES)}",
                        "correct or remove the record", reason=reason)  # fmt: skip
    content = next((fields[name] for name in CONTENT_FIELDS if name in fields), "")
    mark = _mark(where, fields)
    if role == CALL:
        return {"role": CALL, "content": "", "tool_calls": calls_in_text(where, content)}, mark
    text, thought = _content(where, role, content)
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        message |= _reasoning(where, fields, message["content"], thought)
        if calls := called_functions(where, fields):
            message["tool_calls"] = calls
    message |= {name: fields[name] for name in ("name", "tool_call_id") if isinstance(fields.get(name), str)}
    if not message["content"].strip() and not message.get("tool_calls") and role in ("user", "assistant"):
        raise DataError(f"{where} ({role}) is empty", "content or tool_calls", "remove the message or the record",
                        reason="an empty answer" if role == "assistant" else "an empty question")  # fmt: skip
    return message, mark


def _mark(where: str, fields: Dict[str, Any]) -> Optional[bool]:
    for name in MARK_FIELDS:
        if name not in fields:
            continue
        value = fields[name].lower() if isinstance(fields[name], str) else fields[name]
        if not isinstance(value, (str, bool, int, float)) or value not in MARKS:
            raise DataError(f"{where} has {name}={fields[name]!r}", "0 or 1, true or false",
                            f"set {name} to 0 or 1; the weight of a source repeats its documents",
                            reason=f"a mark {name} that is not 0 or 1")  # fmt: skip
        return MARKS[value]
    return None


def _content(where: str, role: str, content: Any) -> Tuple[str, str]:
    """Return the text of a message, and the reasoning in its parts."""
    if isinstance(content, str):
        return (content if content.strip() or role != "system" else ""), ""
    if isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else _usual_part(part) for part in content]
        kinds = {part.get("type") or ("text" if "text" in part else None) for part in parts}
        if kinds <= {"text", "thinking", "reasoning"}:
            return _joined(parts, "text"), _joined(parts, "thinking")
        if role != "tool":
            others = ", ".join(sorted(str(kind) for kind in kinds - {"text", "thinking", "reasoning"}))
            raise DataError(f"{where} has content that is a list with parts of type {others}",
                            "a string, or parts of type text", "remove the record",
                            reason=f"content with parts of type {others}")  # fmt: skip
    if role == "tool":  # what a function returned
        return json.dumps(content, ensure_ascii=False), ""
    raise DataError(f"{where} has content that is {type_name(content)}", "a string, or parts of type text",
                    "correct or remove the record", reason=f"content that is {type_name(content)}")  # fmt: skip


def _usual_part(part: Dict[str, Any]) -> Dict[str, Any]:
    """Return a part of a content with the usual name of its type."""
    return {**part, "type": "text"} if part.get("type") in ("input_text", "output_text") else part


def _joined(parts: List[Dict[str, Any]], wanted: str) -> str:
    """Return the text of all parts of a kind: ``text``, or ``thinking``."""
    texts = []
    for part in parts:
        kind = "text" if (part.get("type") or "text") == "text" else "thinking"
        names = ("text",) if kind == "text" else ("thinking", "reasoning", "text")
        texts.append(next((str(part[name]) for name in names if part.get(name)), "") if kind == wanted else "")
    return "".join(texts)


def _reasoning(where: str, fields: Dict[str, Any], content: str, thought: str) -> Message:
    """Return the fields ``content`` and ``reasoning_content`` of an answer."""
    for name in REASONING_FIELDS:
        given = fields.get(name, "")
        if not isinstance(given, str):
            raise DataError(f"{where} has {name} that is {type_name(given)}", "a string",
                            "correct or remove the record", reason=f"{name} that is not a string")  # fmt: skip
        thought = thought or given
    inline, answer = split_reasoning(content)
    if inline is not None:
        content, thought = answer, thought if thought.strip() else inline
    return {"content": content, **({"reasoning_content": thought.strip()} if thought.strip() else {})}


def split_reasoning(content: str) -> Tuple[Optional[str], str]:
    """Return the reasoning in ``<think>`` at the beginning of an answer, and the rest of the answer.

    The opening tag can be missing: some templates write it at the end of the prompt. The reasoning is None if there is
    none. In this case the answer is returned unchanged.
    """
    begins = content.lstrip().startswith(OPEN_THINK)
    before, close, answer = content.partition(CLOSE_THINK)
    if not close:
        return None, content
    if not begins and (OPEN_THINK in content or CLOSE_THINK in answer or not _alone_on_its_line(before, answer)):
        return None, content  # a text about these tags
    return before.lstrip().removeprefix(OPEN_THINK).strip(), answer.lstrip()


def _alone_on_its_line(before: str, after: str) -> bool:
    return before.endswith("\n") and (not after or after.startswith("\n"))


def type_name(value: Any) -> str:
    """Return what to call the type of a JSON value in a message."""
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
