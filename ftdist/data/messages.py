"""Bring the messages of a chat into one normal form. Files use many names and shapes for them.

A message in normal form has ``role`` (system, user, assistant or tool) and ``content`` (a string), and optionally
``reasoning_content``, ``tool_calls``, ``name`` and ``tool_call_id``. ``ftdist.data.tool_calls`` describes the calls.
"""

import json
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ftdist.base.errors import DataError
from ftdist.data.fields import parsed, without_missing
from ftdist.data.tool_calls import called_functions, calls_in_text, tools_of_message

Message = Dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
CALL = "call"
"""The role of a message that is a call. It becomes an assistant message with ``tool_calls``."""
ROLE_ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatgpt", "ai"), "assistant"),
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("function", "observation", "ipython", "tool_response", "tool_result", "tool_results",
                     "function_response", "function_result", "function_output"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls", "function-call", "tool-call"), CALL),
}  # fmt: skip
ROLE_FIELDS, CONTENT_FIELDS = ("role", "from"), ("content", "value", "text")
ROLE_NAMES = frozenset(ROLE_FIELDS)
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
MARK_FIELDS = ("train", "weight", "loss", "training")
MARKS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # 1 is equal to True
"""The values of a mark. A mark says whether the author wants a message to be trained."""
MEDIA = frozenset(("image", "images", "video", "videos", "audio", "audios"))
OPEN_THINK, CLOSE_THINK = "<think>", "</think>"


class Chat(NamedTuple):
    messages: List[Message]
    marks: List[Optional[bool]]
    """For each message, whether its author marked it to be trained. None: it has no mark."""
    tools: List[List[Any]]
    """The lists of tools in the messages, in normal form."""


def read_messages(location: str, found: Any) -> Chat:
    """Return messages in normal form.

    Args:
        location: Where the record was found. Error messages name it.
        found: A list of messages, or its text as JSON or a Python literal. A message is an object, or the list
            ``[role, content]``. The elements can also be ``[question, answer]``.

    Raises:
        DataError: A message is invalid. The error names it.
    """
    found = parsed(found)  # it is a text in a column of a .csv file
    if not isinstance(found, list):
        raise DataError(f"{location}: the messages are {type_name(found)}", "a list of messages",
                        "correct or remove the record", reason="messages that are not a list")  # fmt: skip
    if not found:
        raise DataError(f"{location}: the list of messages is empty", "at least one message", "remove the record",
                        reason="an empty list of messages")  # fmt: skip
    chat = Chat([], [], [])
    for number, message in enumerate(_from_pairs(found), 1):
        where = f"{location}, message {number}"
        _append(chat, where, *_read_message(where, message))
        if tools := tools_of_message(where, message):
            chat.tools.append(tools)
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


def _append(chat: Chat, where: str, message: Message, mark: Optional[bool]) -> None:
    """Append a message. A call after an answer becomes part of that answer: the model writes both in one turn."""
    if message["role"] == CALL:
        previous = chat.messages[-1] if chat.messages else {"role": ""}
        if previous["role"] == "assistant" and mark == chat.marks[-1]:
            thought = message.get("reasoning_content")
            if thought and thought != previous.get("reasoning_content"):
                raise two_reasonings(f"{where} continues an answer that does not have this reasoning")
            previous["tool_calls"] = previous.get("tool_calls", []) + message["tool_calls"]
            return
        message = {**message, "role": "assistant"}
    if message["role"] == "system" and not message["content"]:
        return  # an empty system message is not an instruction
    chat.messages.append(message)
    chat.marks.append(mark)


def _read_message(where: str, found: Any) -> Tuple[Message, Optional[bool]]:
    if not isinstance(found, dict):
        raise DataError(f"{where} is {type_name(found)}", "an object with role and content",
                        "correct or remove the record", reason="a message that is not an object")  # fmt: skip
    fields = without_missing(found)
    if ROLE_NAMES.isdisjoint(fields):
        fields = {name.strip().lower(): value for name, value in fields.items()}
    named = next((fields[name] for name in ROLE_FIELDS if name in fields), None)
    role = _role(named) if isinstance(named, str) else None
    if role is None:
        problem = f"has no role; its fields are: {', '.join(found) or 'none'}" if named is None else (
            f"has the role {named!r}")  # fmt: skip
        reason = "a message without a role" if named is None else "a message with an unknown role"
        raise DataError(f"{where} {problem}", f"one of the roles {', '.join(ROLES)}",
                        "correct or remove the record", reason=reason)  # fmt: skip
    check_media(where, fields)
    content = next((fields[name] for name in CONTENT_FIELDS if name in fields), "")
    if role == "tool" and content == "":
        _check_result(where, found, fields)
    mark = _mark(where, fields)
    if role == CALL:
        inline, content = split_reasoning(content) if isinstance(content, str) else (None, content)
        call = {"role": CALL, "content": "", "tool_calls": calls_in_text(where, content)}
        return call | _reasoning(where, fields, {OPEN_THINK: inline or ""}), mark
    text, thought = _content(where, role, content)
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        inline, message["content"] = split_reasoning(text)
        message |= _reasoning(where, fields, {OPEN_THINK: inline or "", "a part of type thinking": thought})
        if calls := called_functions(where, fields):
            message["tool_calls"] = calls
    message |= {name: fields[name] for name in ("name", "tool_call_id") if isinstance(fields.get(name), str)}
    if not message["content"].strip() and not message.get("tool_calls") and role in ("user", "assistant"):
        raise DataError(f"{where} ({role}) is empty", "content or tool_calls", "remove the message or the record",
                        reason="an empty answer" if role == "assistant" else "an empty question")  # fmt: skip
    return message, mark


def check_media(where: str, fields: Dict[str, Any]) -> None:
    """Check that a record or a message has no image, video or sound beside its text.

    Raises:
        DataError: It has one. Trained on the text alone, a model would learn to answer about what it has not seen.
    """
    for name in MEDIA.intersection(fields):
        if fields[name]:
            raise DataError(f"{where} has {name}, and only texts are trained", "a chat that is complete without it",
                            f"remove {name}, or the record", reason=f"{name} beside the text")  # fmt: skip


def _check_result(where: str, found: Dict[str, Any], fields: Dict[str, Any]) -> None:
    """Check that the result of a function is not in a field with an unknown name."""
    known = (*ROLE_FIELDS, *MARK_FIELDS, "name", "tool_call_id", "id", "type")
    others = [name for name, value in fields.items() if name not in known and value != ""]
    if others and not any(name in found for name in CONTENT_FIELDS):
        raise DataError(f"{where} (tool) has no content; its fields are: {', '.join(found)}", "the field content",
                        "rename the field with the result, or remove the record",
                        reason="a result of a function without content")  # fmt: skip


def _mark(where: str, fields: Dict[str, Any]) -> Optional[bool]:
    marks: Dict[str, bool] = {}
    for name in [name for name in MARK_FIELDS if name in fields]:
        value = fields[name].lower() if isinstance(fields[name], str) else fields[name]
        if not isinstance(value, (str, bool, int, float)) or value not in MARKS:
            raise DataError(f"{where} has {name}={fields[name]!r}", "0 or 1, true or false",
                            f"set {name} to 0 or 1. To repeat documents, set the weight of their source",
                            reason=f"a mark {name} that is not 0 or 1")  # fmt: skip
        marks[name] = MARKS[value]
    if len(set(marks.values())) > 1:
        found = " and ".join(f"{name}={fields[name]!r}" for name in marks)
        raise DataError(f"{where} has {found}", "marks that say the same", "remove one of them",
                        reason="marks that contradict each other")  # fmt: skip
    return next(iter(marks.values()), None)


def _content(where: str, role: str, content: Any) -> Tuple[str, str]:
    """Return the text of a message, and the reasoning in its parts."""
    if isinstance(content, str):
        return (content if content.strip() or role != "system" else ""), ""
    if isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        kinds = {_kind(part) for part in parts}
        known = {"text", "thinking"} if role == "assistant" else {"text"}
        if kinds <= known and (role != "tool" or all(isinstance(part.get("text"), str) for part in parts)):
            texts, thoughts = [[_part_text(where, part) for part in parts if _kind(part) == kind]
                               for kind in ("text", "thinking")]  # fmt: skip
            return "".join(texts), "".join(thoughts)
        if role != "tool":
            others = ", ".join(sorted(str(kind) for kind in kinds - known))
            raise DataError(f"{where} has content that is a list with parts of type {others}",
                            "a string, or parts of type text", "remove the record",
                            reason=f"content with parts of type {others}")  # fmt: skip
    if role == "tool":  # what a function returned
        with suppress(TypeError):  # bytes
            return json.dumps(content, ensure_ascii=False), ""
    raise DataError(f"{where} has content that is {type_name(content)}", "a string, or parts of type text",
                    "correct or remove the record", reason=f"content that is {type_name(content)}")  # fmt: skip


def _kind(part: Dict[str, Any]) -> Any:
    """Return the type of a part of a content: ``text``, ``thinking``, or another one as it is found."""
    kind = part.get("type") or ("text" if "text" in part else None)
    return {"input_text": "text", "output_text": "text", "reasoning": "thinking"}.get(str(kind), kind)


def _part_text(where: str, part: Dict[str, Any]) -> str:
    """Return the text of a part, which can be a string, a list of strings, or a list of parts of type text.

    Raises:
        DataError: It is something else, or the text is in a field with another name.
    """
    names = ("text",) if _kind(part) == "text" else ("thinking", "reasoning", "text")
    name = next((name for name in names if part.get(name)), None)
    if name is None:  # a text that is empty or null
        others = [name for name, value in part.items() if name != "type" and isinstance(value, str) and value.strip()]
        if not others:
            return ""
        raise DataError(f"{where} has a part of type {part.get('type')} without {names[0]}; its fields are: "
                        f"{', '.join(part)}", f"a part with the field {names[0]}", "correct or remove the record",
                        reason=f"a part without {names[0]}")  # fmt: skip
    found = part[name] if isinstance(part[name], list) else [part[name]]
    if all(isinstance(text, str) or (isinstance(text, dict) and _kind(text) == "text") for text in found):
        return "".join(text if isinstance(text, str) else _part_text(where, text) for text in found)
    raise DataError(f"{where} has a part whose {name} is {type_name(part[name])}", "a string, or a list of strings",
                    "correct or remove the record", reason=f"a part whose {name} is not a text")  # fmt: skip


def _reasoning(where: str, fields: Dict[str, Any], thoughts: Dict[str, str]) -> Message:
    """Return the field ``reasoning_content`` of an answer, or nothing if the answer has no reasoning.

    Args:
        where: Names the message in errors.
        fields: The message. Its reasoning can be in several fields, if they have the same text.
        thoughts: The reasoning that was found in its content, by place.
    """
    found = dict(thoughts)
    for name in [name for name in REASONING_FIELDS if name in fields]:
        given = fields[name]
        if not isinstance(given, str):
            raise DataError(f"{where} has {name} that is {type_name(given)}", "a string",
                            "correct or remove the record", reason=f"{name} that is not a string")  # fmt: skip
        found[name] = given
    found = {place: thought.strip() for place, thought in found.items() if thought.strip()}
    if len(set(found.values())) > 1:
        raise two_reasonings(f"{where} has different reasonings in {' and '.join(found)}")
    return {"reasoning_content": next(iter(found.values()))} if found else {}


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


def two_reasonings(found: str) -> DataError:
    """Return the error about an answer with two reasonings."""
    return DataError(found, "one reasoning for each answer",
                     "remove one of them, or remove the record", reason="two different reasonings")  # fmt: skip


def type_name(value: Any) -> str:
    """Return the name of the type of a JSON value, for messages."""
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
