"""Recognize the format of a record by the names of its fields.

Fields with other usual names are renamed, where only one reading is possible: ``question`` and ``answer`` become
``instruction`` and ``output``.
"""

import ast
import json
from collections import Counter
from contextlib import suppress
from typing import Any, Dict, Mapping, Optional, Tuple

from ftdist.base.errors import DataError
from ftdist.config.data import Format

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
"""The formats in the order in which they are recognized."""
MESSAGES = ("conversation", "dialogue", "dialog", "chat")
"""Other names of ``messages``, if the field holds a list."""
QUESTIONS = ("instruction", "question", "query", "prompt", "user", "human", "inputs", "input")
"""Names of a question. ``input`` is a question only in a record without another one. Otherwise it is a second part of
the question."""
ANSWERS = ("output", "response", "answer", "completion", "assistant", "bot", "targets")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt", "system_message")
"""Names of a system message beside the messages."""


def rename_fields(location: str, record: Record, fields: Mapping[str, str]) -> Record:
    """Rename fields as the setting ``fields`` of a source says.

    Args:
        location: Where the record was found. Error messages name it.
        record: The record. It is not changed.
        fields: Maps names that ftdist knows to the names that the records use.

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


def recognise(
    location: str, record: Record, format: Format, mapped: Mapping[str, str]
) -> Tuple[Format, Record, Dict[str, str]]:
    """Return the format of a record, the record with the field names of that format, and the names that it had before.

    The names are a dict with the fields that were renamed, also by ``rename_fields``: ``{"output": "answer"}``.

    Args:
        location: Where the record was found. Error messages name it.
        record: The record, without fields that are None.
        format: ``Format.auto`` recognizes the format by the fields.
        mapped: The setting ``fields``, which ``rename_fields`` has applied. Formats that need one of these names are
            tried first.

    Raises:
        DataError: The record has the fields of no format, or it can be read in several ways.
    """
    record, shown = _with_plain_names(record, mapped)
    order = sorted(REQUIRED_FIELDS, key=lambda known: not set(REQUIRED_FIELDS[known]) & set(mapped))
    candidates = order if format is Format.auto else [format]
    for candidate in candidates:
        if all(name in record for name in REQUIRED_FIELDS[candidate]):
            if candidate is Format.text and format is Format.auto and not mapped:
                _check_only_text(location, record, shown)
            return candidate, *_renamed(record, _with_input(record, {}) if candidate is Format.alpaca else {}, shown)
    for candidate in candidates:
        if (names := _usual_names(location, record, candidate, shown)) is not None:
            return candidate, *_renamed(record, names, shown)
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


def _with_plain_names(record: Record, mapped: Mapping[str, str]) -> Tuple[Record, Mapping[str, str]]:
    """Return a record with names in lower case and with underscores, and the names that its fields had.

    ``System Prompt`` becomes ``system_prompt``. If two names would become the same, they are not changed.
    """
    if all(name.islower() and " " not in name for name in record):
        return record, mapped
    plain = {name: name.strip().lower().replace(" ", "_") for name in record}
    count = Counter(plain.values())
    plain = {name: new if count[new] == 1 else name for name, new in plain.items()}
    changed = {new: name for name, new in plain.items() if new != name}
    return {plain[name]: value for name, value in record.items()}, {**changed, **mapped}


def _check_only_text(location: str, record: Record, shown: Mapping[str, str]) -> None:
    """Check that a record with a text has not also a question and an answer."""
    names = _usual_names(location, record, Format.alpaca, shown)
    if names:
        pair = " and ".join(shown.get(names[name], names[name]) for name in REQUIRED_FIELDS[Format.alpaca])
        raise DataError(
            f"{location}: the record has {shown.get('text', 'text')}, and also {pair}",
            "a text, or a question and an answer",
            "data.sources.NAME.format=alpaca for the question and the answer, or format=text",
            reason="a text beside a question and an answer",
        )


def without_missing(found: Record) -> Record:
    """Return an object without the fields that are null or NaN. pandas writes NaN for a missing value."""
    return {name: value for name, value in found.items()
            if value is not None and not (type(value) is float and value != value)}  # fmt: skip


def parsed(value: Any) -> Any:
    """Return the value of a text that is JSON or a Python literal, or anything else unchanged.

    Lists and objects in a column of a CSV file are texts. pandas writes them as Python literals (``{'role': 'user'}``).
    """
    if not isinstance(value, str):
        return value
    with suppress(ValueError, RecursionError):
        return json.loads(value)
    if value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(value.strip())
    return value


def is_record(found: Any) -> bool:
    """Return whether a JSON value can be a record: it has the fields of a format, or it is a list of messages."""
    if not isinstance(found, dict):
        return isinstance(found, list)
    with suppress(DataError):
        recognise("", without_missing(found), Format.auto, {})
        return True
    return False


def _renamed(record: Record, names: Dict[str, str], mapped: Mapping[str, str]) -> Tuple[Record, Dict[str, str]]:
    """Return a record with new names of fields, and the names that the fields had before."""
    others = {name: value for name, value in record.items() if name not in names.values()}
    renamed = {**others, **{known: record[name] for known, name in names.items()}}
    return renamed, {**mapped, **{known: mapped.get(name, name) for known, name in names.items()}}


def _usual_names(location: str, record: Record, format: Format, mapped: Mapping[str, str]) -> Optional[Dict[str, str]]:
    """Map the names of a format to the usual names that a record has instead. None if the record has none of them."""
    if format is Format.messages:
        found = [name for name in MESSAGES if _is_list(record.get(name))]
        return {"messages": found[0]} if len(found) == 1 else None
    if format is Format.sharegpt:  # a record with messages, although the format is set
        return {"conversations": "messages"} if "messages" in record else None
    if format is Format.text:
        return {"text": "content"} if "content" in record and "role" not in record else None
    as_messages = format is Format.prompt_completion
    answers = [name for name in ANSWERS if name in record]
    questions = [name for name in QUESTIONS if name in record and name not in answers]
    questions = [name for name in questions if name != "input"] or questions
    if not answers or not questions:
        return None
    if as_messages and not isinstance(record[questions[0]], list) and not _has_objects(record[answers[0]]):
        return None
    for what, choices in (("question", questions), ("answer", answers)):
        if len(choices) > 1:
            shown = [mapped.get(name, name) for name in choices]
            raise DataError(
                f"{location}: {' and '.join(shown)} can each be the {what} of the record",
                f"one {what}",
                "say which field is which: data.sources.NAME.fields="
                f"'{{instruction: {mapped.get(questions[0], questions[0])}, "
                f"output: {mapped.get(answers[0], answers[0])}}}'",
                reason=f"several fields that can be the {what}",
            )
    question, answer = REQUIRED_FIELDS[format]
    names = {question: questions[0], answer: answers[0]}
    return names if as_messages else _with_input(record, names)


def _with_input(record: Record, names: Dict[str, str]) -> Dict[str, str]:
    """Add the second part of the question to ``names``, if the record has it under another usual name."""
    found = [name for name in INPUTS if name in record and name not in names.values()]
    return {**names, INPUTS[0]: found[0]} if found and found[0] != INPUTS[0] else names


def _has_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_list(value: Any) -> bool:
    is_text_of_list = isinstance(value, str) and value.lstrip().startswith("[")
    return isinstance(parsed(value) if is_text_of_list else value, list)
