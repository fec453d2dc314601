"""Recognise the format of a record by the names of its fields.

Fields with other usual names are renamed, where only one reading is possible: ``question`` and ``answer`` become
``instruction`` and ``output``.
"""

import json
from contextlib import suppress
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ftdist.base.errors import DataError
from ftdist.config.schema import Format

Record = Dict[str, Any]

FIELD_DESCRIPTIONS = {
    Format.messages: "messages (a list of role and content)",
    Format.sharegpt: "conversations (a list of from and value)",
    Format.prompt_completion: "prompt, completion",
    Format.alpaca: "instruction, output (and input, system, history), or question, answer",
    Format.text: "text",
}
REQUIRED_FIELDS = {
    Format.messages: ("messages",),
    Format.sharegpt: ("conversations",),
    Format.prompt_completion: ("prompt", "completion"),
    Format.alpaca: ("instruction", "output"),
    Format.text: ("text",),
}
"""The formats in the order in which they are recognised."""
MESSAGES = ("conversation", "dialogue", "dialog", "chat")
"""Other names of ``messages``, if the field holds a list."""
QUESTIONS = ("instruction", "question", "query", "prompt", "user", "human", "inputs", "input")
"""Names of a question. ``input`` is one only where there is no other; otherwise it is a second part of the question."""
ANSWERS = ("output", "response", "answer", "completion", "assistant", "bot", "targets")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt", "system_message")


def rename_fields(location: str, record: Record, fields: Mapping[str, str]) -> Record:
    """Rename fields as the setting ``fields`` of a source says.

    Args:
        location: Where the record was found. Error messages name it.
        record: The record. It is not changed.
        fields: For some names that ftdist knows, the names that the records use.

    Raises:
        DataError: A required field is missing.
    """
    required = {name for names in REQUIRED_FIELDS.values() for name in names}
    for name, other in fields.items():
        if other not in record and name in required:
            raise DataError(
                f"{location}: the record has no field '{other}', which the setting fields.{name} names; "
                f"its fields are: {', '.join(sorted(record)) or 'none'}",
                "records with this field", "correct the setting fields of the source, or remove the record",
                reason=f"no field {other}",
            )  # fmt: skip
    others = {name: value for name, value in record.items() if name not in set(fields.values()) | set(fields)}
    return {**others, **{name: record[other] for name, other in fields.items() if other in record}}


def recognise(location: str, record: Record, format: Format, mapped: Mapping[str, str]) -> Tuple[Format, Record]:
    """Return the format of a record, and the record with the field names of that format.

    Args:
        location: Where the record was found. Error messages name it.
        record: The record, without fields that are None.
        format: ``Format.auto`` recognises the format by the fields.
        mapped: The names that ``rename_fields`` has set. A format that needs one of them is tried first.

    Raises:
        DataError: The record has the fields of no format, or it can be read in several ways.
    """
    order = sorted(REQUIRED_FIELDS, key=lambda known: not set(REQUIRED_FIELDS[known]) & set(mapped))
    candidates = order if format is Format.auto else [format]
    for candidate in candidates:
        if all(name in record for name in REQUIRED_FIELDS[candidate]):
            return candidate, _with_usual_names(record) if candidate is Format.alpaca else record
    for candidate in candidates:
        if (renamed := _renamed(location, record, candidate)) is not None:
            return candidate, renamed
    fields = f"the fields {', '.join(sorted(record))}" if record else "no fields"
    if format is not Format.auto:
        raise DataError(
            f"{location}: the record has {fields}",
            f"{FIELD_DESCRIPTIONS[format]}, for format={format.name}",
            "set the format of the source to that of its records, or to auto",
            reason=f"fields that do not fit format={format.name}",
        )
    known = "; ".join(f"{name.name}: {needs}" for name, needs in FIELD_DESCRIPTIONS.items())
    raise DataError(
        f"{location}: the record has {fields}{', which match no known format' if record else ''}",
        known,
        "say which field is which, for example data.sources.NAME.fields='{instruction: FIELD, output: FIELD}'",
        reason="fields that match no known format",
    )


def is_record(found: Any) -> bool:
    """Return whether a JSON value has the fields of a record, or can be the list of messages of one."""
    if not isinstance(found, dict):
        return isinstance(found, list)
    with suppress(DataError):
        recognise("", {name: value for name, value in found.items() if value is not None}, Format.auto, {})
        return True
    return False


def _renamed(location: str, record: Record, format: Format) -> Optional[Record]:
    """Return the record with the names of a format instead of other usual names, or None if it has none of those."""
    if format is Format.messages:
        names = [name for name in MESSAGES if _is_list(record.get(name))]
        return {**record, "messages": record[names[0]]} if len(names) == 1 else None
    if format is Format.sharegpt:  # a record with messages, although the format is set
        return {**record, "conversations": record["messages"]} if "messages" in record else None
    if format is Format.text:
        return {**record, "text": record["content"]} if "content" in record and "role" not in record else None
    as_messages = format is Format.prompt_completion
    if format is not Format.alpaca and not as_messages:
        return None
    answers = [name for name in ANSWERS if name in record]
    questions = [name for name in QUESTIONS if name in record and name not in answers]
    questions = [name for name in questions if name != "input"] or questions
    if not answers or not questions or (as_messages and not isinstance(record[questions[0]], list)):
        return None
    for what, names in (("question", questions), ("answer", answers)):
        if len(names) > 1:
            raise DataError(
                f"{location}: {' and '.join(names)} can each be the {what} of the record",
                f"one {what}",
                "say which field is which: "
                f"data.sources.NAME.fields='{{instruction: {questions[0]}, output: {answers[0]}}}'",
                reason=f"several fields that can be the {what}",
            )
    others = {name: value for name, value in record.items() if name not in (questions[0], answers[0])}
    question, answer = REQUIRED_FIELDS[format]
    return _with_usual_names({**others, question: record[questions[0]], answer: record[answers[0]]})


def _with_usual_names(record: Record) -> Record:
    """Rename a second part of the question and a system message, if they have other usual names."""
    renamed = dict(record)
    for names in (INPUTS, SYSTEMS):
        found: List[str] = [name for name in names if name in record]
        if found and names[0] not in record:
            renamed[names[0]] = renamed.pop(found[0])
    return renamed


def _is_list(value: Any) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    return isinstance(value, list)
