"""The fields of a record that belong to its chat, but are not in its messages: a system message, earlier turns, and the
reasoning of the answer.
"""

from typing import Any, Dict, Mapping

from ftdist.base.errors import DataError
from ftdist.data.fields import SYSTEMS, Record, parsed
from ftdist.data.messages import REASONING_FIELDS, Chat, read_messages, two_reasonings, type_name

FIELDS = {"history", *SYSTEMS, *REASONING_FIELDS}
SWITCHES = ("on", "off", "true", "false", "yes", "no", "enabled", "disabled", "none", "low", "medium", "high", "")
"""Values of a field ``reasoning`` or ``thinking`` that only say whether, or how much, the model should think."""


def add_fields(location: str, record: Record, chat: Chat, names: Mapping[str, str], first_answer: int = 0) -> int:
    """Put the reasoning, the earlier turns and the system message of a record into its chat.

    Args:
        location: Where the record was found. Error messages name it.
        record: The record, with the field names of its format.
        chat: The messages of the record. They are changed in place.
        names: The names that ``recognise`` returns.
        first_answer: Number of messages that belong to a prompt. The reasoning belongs to an answer after them.

    Returns:
        The number of messages that were added.

    Raises:
        DataError: A field contradicts the messages or another field, or it is not clear where it belongs.
    """
    if FIELDS.isdisjoint(record):
        return 0
    before = len(chat.messages)
    _add_reasoning(location, record, chat, names, first_answer)
    _add_history(location, record, chat)
    _add_system(location, record, chat, names)
    return len(chat.messages) - before


def check_texts(location: str, record: Record, names: Mapping[str, str]) -> None:
    """Check that the system message, the earlier turns and the reasoning of a record are in its prompt and completion.

    The prompt and the completion are strings here. They are trained as they are, so there is no other place for them.

    Raises:
        DataError: One of these fields is not part of the two strings.
    """
    text = record["prompt"] + record["completion"]
    found = {**_texts(location, record, SYSTEMS, names), **_thoughts(location, record, names)}
    lost = [name for name, held in found.items() if held.strip() not in text]
    history = _history(location, record)
    if any(message["content"].strip() not in text for message in history.messages):
        lost.append(names.get("history", "history"))
    if lost:
        prompt, completion = names.get("prompt", "prompt"), names.get("completion", "completion")
        raise DataError(
            f"{location}: the record has {' and '.join(lost)}, which {prompt} and {completion} do not contain",
            "one text that holds everything, or a chat",
            f"data.sources.NAME.fields='{{instruction: {prompt}, output: {completion}}}' to make a chat of it",
            reason=f"{lost[0]} beside a prompt and a completion that are strings",
        )


def _texts(location: str, record: Record, fields: Any, names: Mapping[str, str]) -> Dict[str, str]:
    """Return the texts in some fields of a record that are not empty, by the name as the record has it."""
    texts = {}
    for field in fields:
        name, value = names.get(field, field), record.get(field) or ""
        if not isinstance(value, str):
            raise DataError(f"{location}: {name} is {type_name(value)}", "a string",
                            "correct or remove the record", reason=f"{name} that is {type_name(value)}")  # fmt: skip
        if value.strip():
            texts[name] = value
    return texts


def _thoughts(location: str, record: Record, names: Mapping[str, str]) -> Dict[str, str]:
    fields = [name for name in REASONING_FIELDS if str(record.get(name, "")).strip().lower() not in SWITCHES]
    return {name: text.strip() for name, text in _texts(location, record, fields, names).items()}


def _add_reasoning(location: str, record: Record, chat: Chat, names: Mapping[str, str], first: int) -> None:
    thoughts = _thoughts(location, record, names)
    answers = [message for message in chat.messages[first:] if message["role"] == "assistant"]
    if not thoughts or not answers:
        return
    shown = " and ".join(thoughts)
    if len(set(thoughts.values())) > 1:
        raise two_reasonings(f"{location}: the record has different reasonings in {shown}")
    thought = next(iter(thoughts.values()))
    if any(answer.get("reasoning_content") == thought for answer in answers):
        return
    if len(answers) > 1:
        raise DataError(f"{location}: the record has {shown}, and it is not clear to which of its "
                        f"{len(answers)} answers it belongs",
                        "reasoning_content in the message of the answer", "move it there, or remove the record",
                        reason="a reasoning beside several answers")  # fmt: skip
    if answers[0].get("reasoning_content"):
        raise two_reasonings(f"{location}: the record has {shown}, and its answer has another reasoning")
    answers[0]["reasoning_content"] = thought


def _history(location: str, record: Record) -> Chat:
    """Return the earlier turns of a record: a list of ``[question, answer]`` or of messages, or its JSON text."""
    found = parsed(record.get("history")) or []
    if found == [] or (isinstance(found, str) and not found.strip()):
        return Chat([], [], [])
    history = read_messages(f"{location}, history", found)
    if history.messages and history.messages[-1]["role"] != "assistant":
        raise DataError(f"{location}: the history does not end with an answer", "a list of [question, answer]",
                        "correct or remove the record",
                        reason="a history that does not end with an answer")  # fmt: skip
    return history


def _add_history(location: str, record: Record, chat: Chat) -> None:
    """Insert the earlier turns before the messages, unless the messages begin with them."""
    earlier = _history(location, record)
    start = 1 if chat.messages and chat.messages[0]["role"] == "system" else 0
    if start and earlier.messages and earlier.messages[0]["role"] == "system":
        if earlier.messages[0] != chat.messages[0]:
            raise _two_systems(f"{location}: the history and the messages have different system messages")
        del earlier.messages[0], earlier.marks[0]
    if chat.messages[start : start + len(earlier.messages)] != earlier.messages:
        chat.messages[start:start] = earlier.messages
        chat.marks[start:start] = earlier.marks
    chat.tools.extend(earlier.tools)


def _add_system(location: str, record: Record, chat: Chat, names: Mapping[str, str]) -> None:
    systems = _texts(location, record, SYSTEMS, names)
    if len({text.strip() for text in systems.values()}) > 1:
        raise _two_systems(f"{location}: the record has different system messages in {' and '.join(systems)}")
    for name, text in list(systems.items())[:1]:
        if not chat.messages or chat.messages[0]["role"] != "system":
            chat.messages.insert(0, {"role": "system", "content": text})
            chat.marks.insert(0, None)
        elif chat.messages[0]["content"].strip() != text.strip():
            raise _two_systems(f"{location}: the record has the field {name} and another system message")


def _two_systems(found: str) -> DataError:
    return DataError(found, "one of them", "remove one of them, or the record", reason="two system messages")
