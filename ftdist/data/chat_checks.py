"""Checks of a chat that was rendered: nothing is trained after a stop, and the template shows each text as it is."""

import re
from typing import Dict, List, Optional, Pattern

from ftdist.base.errors import DataError
from ftdist.data.chat_forms import Message
from ftdist.data.chat_plan import DocumentPlan, Plan
from ftdist.data.chat_template import Span
from ftdist.data.records import Document
from ftdist.data.skeleton import Alignment, FieldKey, written_forms

SWITCH = re.compile(r"/(?:no_?)?think\b")
"""Words in a message that switch the reasoning on or off (Qwen3, SmolLM3, GLM-4.5). A template may act on them and
leave them out."""


def check_stops(
    document: Document, planned: DocumentPlan, spans: List[Span], text: str, special: Pattern[str], eos: str
) -> None:
    """Check that an answer has a stop only at its end. At a stop inside it, the model would end its answer.

    Args:
        document: The record.
        planned: How it is trained.
        spans: Trained characters, in the order of the plan.
        text: Text of the document.
        special: Matches a special token.
        eos: The EOS token. A model stops at it too.

    Raises:
        DataError: An answer has a stop that the template did not write.
    """
    skeleton = planned.turn.text
    for (start, end), (first, last) in zip(spans, planned.spans, strict=True):
        [turn] = [one for one in planned.covered if one.start <= first < one.end]
        stops = {*special.findall(skeleton, turn.start, turn.end)[-1:], eos}
        found = [stop for stop in stops if text.count(stop, start, end) > skeleton.count(stop, first, last)]
        if found:
            raise stop_inside(f"{document.location}: message {turn.number + 1}", found[0])


def stop_inside(what: str, stop: str) -> DataError:
    return DataError(
        f"{what} holds the stop token {stop!r} before its end, and the text after it would be trained",
        "answers without stop tokens in their text (one at the end is allowed)",
        "remove the stop token and what follows it, or data.bad_records=drop",
        reason="a stop token inside an answer",
    )


def changed_content(
    messages: List[Message], alignment: Alignment, text: str, values: Dict[FieldKey, str]
) -> Optional[int]:
    """Return the number of the first message whose content the text does not show, answers excepted, or None.

    White space at the ends and switches of the reasoning (``/no_think``) may be missing. The text may be escaped as in
    JSON or Python.

    Args:
        messages: The messages as they are given to the template.
        alignment: Where the fields are in the text.
        text: The rendered conversation.
        values: Text of each field.
    """
    position = 0
    for part, end in zip(alignment.parts, alignment.ends, strict=True):
        key, shown = part.key, text[position:end]
        position = end
        if key is None or key[1] != "content" or key not in values or messages[key[0]]["role"] == "assistant":
            continue
        if shown.strip() not in as_shown(values[key]):
            return key[0]
    return None


def as_shown(content: str) -> List[str]:
    """Return the forms in which a template may write the content of a message, without white space at their ends."""
    return [form.strip() for form in (*written_forms(content), repr(content)[1:-1], SWITCH.sub("", content))]


def content_lost(document: Document, number: int) -> DataError:
    role = document.messages[number]["role"]
    return DataError(
        f"{document.location}: the chat template cuts or changes the content ({role}) of message {number + 1}",
        "a template that shows each text as it is",
        "data.chat_template=chatml, or data.bad_records=drop",
        reason=f"the chat template changes the content ({role})",
    )


def prompt_differs(document: Document, number: int, suspects: str) -> DataError:
    return DataError(
        f"{document.location}: the texts of the messages before message {number + 1} change how the chat template "
        f"renders them{suspects}",
        "texts that contain none of the words, special tokens or think tags that the template looks for",
        "correct the record, or data.bad_records=drop",
        reason="words, special tokens or think tags in a text, which the chat template looks for",
    )


def differs_later(document: Document, plan: Plan) -> DataError:
    number = plan.documents[0].turn.number + 1
    return DataError(
        f"{document.location}: the chat template renders message {number} differently if more messages follow, and "
        "data.turns=whole",
        "a template that never changes earlier messages",
        "data.turns=auto (such answers become documents of their own)",
        reason="answers that look different when more messages follow",
    )
