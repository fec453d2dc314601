"""Read records of all supported formats into documents. A document is a plain text, a prompt with its completion, or
a chat.

``ftdist.data.fields`` recognizes the format, and ``ftdist.data.messages`` reads the messages of chats.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ftdist.base.errors import DataError
from ftdist.config.data import RESERVED_TEMPLATE_KWARGS, Format, Reasoning
from ftdist.data.chat_notes import TEXT_FOR_SWITCH
from ftdist.data.fields import Record, parsed, recognise, rename_fields, without_missing
from ftdist.data.messages import (
    REASONING_FIELDS,
    ROLE_FIELDS,
    Chat,
    Message,
    check_media,
    read_messages,
    split_reasoning,
    type_name,
)
from ftdist.data.record_fields import add_fields, check_texts
from ftdist.data.tool_calls import one_list, read_tools, remove_added_nulls

SWITCHES = {"true": True, "false": False}
"""Texts that stand for a switch. In a column of Arrow, all values have one type, so a switch can be a text there."""


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
    """The messages in the normal form of ``ftdist.data.messages``."""
    tools: Optional[List[Any]] = None
    """Tools for the chat template, in the normal form of ``ftdist.data.tool_calls``."""
    num_prompt_messages: int = 0
    """Number of messages that belong to the prompt of a prompt/completion record."""
    marks: Optional[List[Optional[bool]]] = None
    """For each message, whether its author marked it to be trained (None: no mark). None if no message has a mark."""
    template_kwargs: Dict[str, Any] = field(default_factory=dict)
    """The record's own arguments for the chat template. They override ``data.chat_template_kwargs``."""
    notes: Tuple[str, ...] = ()
    """What the user should know about how the record was read."""

    def content_hash(self) -> int:
        """Return a 64-bit hash of the record's content. The held-out share is drawn by it.

        The hash does not depend on the chat template. Reasoning is left out of it, so that ``data.reasoning`` does not
        change the draw, and solutions of a problem with equal answers stay together.
        """
        messages = [
            {name: value for name, value in message.items() if name != "reasoning_content"} for message in self.messages
        ]
        content = json.dumps([messages, self.prompt, self.text], sort_keys=True)
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def read_record(
    location: str,
    record: Any,
    format: Format,
    fields: Optional[Mapping[str, str]] = None,
    reasoning: Reasoning = Reasoning.keep,
) -> Document:
    """Read a record into a document.

    Args:
        location: Where the record was found. Error messages name it.
        record: An object with the fields of one of the formats, or a list of messages. Fields that are null or NaN
            are treated as absent. A DataError is a record that could not be read from its file; it is raised.
        format: ``Format.auto`` recognizes the format by the fields.
        fields: The setting ``fields`` of the source.
        reasoning: What happens to the reasoning in answers.

    Raises:
        DataError: The record is invalid. The message names its location.
    """
    if isinstance(record, DataError):
        raise record
    if isinstance(record, list) and record and not fields:
        record = {"messages": record}
    if not isinstance(record, dict):
        raise DataError(f"{location}: the record is {type_name(record)}", "an object with fields",
                        "correct or remove the record", reason=f"a record that is {type_name(record)}")  # fmt: skip
    record = without_missing(record)
    if fields:
        record = rename_fields(location, record, fields)
    if reasoning is Reasoning.drop:
        record = {name: value for name, value in record.items() if name not in REASONING_FIELDS}
    format, record, names = recognise(location, record, format, fields or {})
    if format is Format.text:
        return _with_reasoning(Document(location, format, text=_string(location, record, "text", names)), reasoning)
    if format is Format.prompt_completion:
        return _with_reasoning(_read_prompt_completion(location, record, names), reasoning)
    if format is Format.alpaca:
        chat = _alpaca_chat(location, record, names)
    else:
        chat = read_messages(location, record["conversations" if format is Format.sharegpt else "messages"])
    add_fields(location, record, chat, names)
    return _with_reasoning(_chat_document(location, format, record, chat), reasoning)


def _chat_document(location: str, format: Format, record: Record, chat: Chat, num_prompt_messages: int = 0) -> Document:
    check_media(location, record)
    tools = one_list([read_tools(location, record), *chat.tools], location)
    remove_added_nulls(chat.messages, tools)
    arguments = parsed(record.get("chat_template_kwargs")) or {}
    if not isinstance(arguments, dict):
        raise DataError(f"{location}: chat_template_kwargs is not an object", "an object, or its JSON text",
                        "correct or remove the record",
                        reason="chat_template_kwargs that are not an object")  # fmt: skip
    for name in RESERVED_TEMPLATE_KWARGS:
        if name in arguments:
            raise DataError(f"{location}: chat_template_kwargs has {name}", "arguments of the chat template itself",
                            f"remove {name} from the record, or remove the record",
                            reason=f"chat_template_kwargs with {name}")  # fmt: skip
    switches = {name: SWITCHES[value.lower()] for name, value in arguments.items()
                if isinstance(value, str) and value.lower() in SWITCHES}  # fmt: skip
    return Document(
        location,
        format,
        messages=chat.messages,
        tools=tools,
        num_prompt_messages=num_prompt_messages,
        marks=chat.marks if any(mark is not None for mark in chat.marks) else None,
        template_kwargs={name: value for name, value in arguments.items() if value is not None} | switches,
        notes=(TEXT_FOR_SWITCH,) if switches else (),
    )


def _read_prompt_completion(location: str, record: Record, names: Mapping[str, str]) -> Document:
    prompt, completion = _messages_in(record["prompt"]), record["completion"]
    if isinstance(prompt, list):
        completion = _messages_in(completion)
    if isinstance(completion, str):
        _string(location, record, "completion", names)
    if isinstance(prompt, str) and isinstance(completion, str):
        check_texts(location, record, names)
        return Document(location, Format.prompt_completion, prompt=prompt, text=prompt + completion)
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        shown = [names.get(name, name) for name in ("prompt", "completion")]
        raise DataError(
            f"{location}: {shown[0]} is {type_name(record['prompt'])} and {shown[1]} is "
            f"{type_name(record['completion'])}",
            "strings or lists of messages",
            "correct or remove the record",
            reason="a prompt and a completion of other types",
        )
    before, after = read_messages(location, prompt), read_messages(location, completion)
    if not any(message["role"] == "assistant" for message in after.messages):
        raise DataError(
            f"{location}: the completion has no assistant message", "an assistant message in the completion",
            "correct or remove the record", reason="a completion without an assistant message",
        )  # fmt: skip
    num_prompt = len(before.messages)
    chat = Chat(before.messages + after.messages, before.marks + after.marks, before.tools + after.tools)
    num_prompt += add_fields(location, record, chat, names, num_prompt)
    return _chat_document(location, Format.prompt_completion, record, chat, num_prompt)


def _messages_in(value: Any) -> Any:
    """Return the messages in a JSON text, or anything else unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        found = parsed(value)
        is_list = isinstance(found, list) and bool(found)
        if is_list and all(isinstance(held, dict) and any(name in held for name in ROLE_FIELDS) for held in found):
            return found
    return value


def _alpaca_chat(location: str, record: Record, names: Mapping[str, str]) -> Chat:
    has_input = bool(record.get("input"))
    if has_input and isinstance(record["instruction"], str) and not record["instruction"].strip():
        question = _string(location, record, "input", names)
    else:
        question = _string(location, record, "instruction", names)
        question += "\n\n" + _string(location, record, "input", names) if has_input else ""
    answer = _string(location, record, "output", names)
    return read_messages(location, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def _with_reasoning(document: Document, reasoning: Reasoning) -> Document:
    """Remove the reasoning in answers, or check that it is there."""
    if reasoning is Reasoning.drop:
        for message in document.messages:
            message.pop("reasoning_content", None)
        if document.prompt and not document.messages:
            thought, answer = split_reasoning(document.text[len(document.prompt) :])
            if thought is not None:
                return Document(document.location, document.format, document.prompt, document.prompt + answer)
    if reasoning is Reasoning.require:
        if not document.messages and split_reasoning(document.text[len(document.prompt) :])[0]:
            return document
        marks = document.marks or [None] * len(document.messages)
        lacking = [
            number
            for number, (message, mark) in enumerate(zip(document.messages, marks, strict=True), 1)
            if number > document.num_prompt_messages
            and (message["role"], mark is False, "reasoning_content" in message) == ("assistant", False, False)
        ]
        if lacking or not document.messages:
            where = f", message {lacking[0]} (assistant)" if lacking else ": the record"
            raise DataError(f"{document.location}{where} has no reasoning, and data.reasoning=require",
                            "reasoning in every answer: reasoning_content, or <think> … </think> before the answer",
                            "remove the record, or data.reasoning=keep",
                            reason="an answer without reasoning")  # fmt: skip
    return document


def _string(location: str, record: Record, name: str, names: Mapping[str, str]) -> str:
    value, shown = record[name], names.get(name, name)
    what = "an empty answer" if name in ("output", "completion") else f"an empty {shown}"
    if not isinstance(value, str):
        raise DataError(f"{location}: {shown} is {type_name(value)}", "a string",
                        "correct or remove the record", reason=f"{shown} that is {type_name(value)}")  # fmt: skip
    if not value.strip():
        raise DataError(f"{location}: {shown} is empty", "text", "remove the record", reason=what)
    return value
