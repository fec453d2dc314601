"""The forms in which a conversation is given to a chat template.

Templates expect the same things in different forms: reasoning in a field of its own or inside the content, the
arguments of a tool call as an object or as JSON text, and so on. The forms are tried in order, and the first one in
which the template shows everything is used (see ``chat_plan.py``).
"""

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Set

Message = Dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning", "tool_plan", "parts", "content")
IDS = ("own", "short", "named")
THINK = "<think>\n{}\n</think>\n\n"
"""Reasoning inside the content, for templates that have no field for it."""


@dataclass(frozen=True)
class Form:
    reasoning: str = "reasoning_content"
    """Where the reasoning of an answer is: the name of a field, or one of these. ``content``: inside the content, in a
    ``<think>`` block. ``tool_plan``: in this field in messages with tool calls, as Command-A's templates expect, and
    inside the content in other messages. ``parts``: the content is a list with a part of type ``thinking`` and a part
    of type ``text``, as Magistral's templates expect."""
    arguments_as_text: bool = False
    """The arguments of tool calls are JSON text. False: an object."""
    no_empty_content: bool = False
    """A message with tool calls and without content has ``content=None``. False: an empty string."""
    ids: str = "own"
    """Ids of tool calls. ``own``: the ids of the record. ``short``: nine letters and digits, as Mistral's templates
    require. ``named``: ``functions.NAME:0``, as Kimi's templates expect. They write the id in place of the name."""
    content_in_parts: bool = False
    """Contents are lists with one part of type ``text``. False: strings."""
    without_reasoning: FrozenSet[int] = frozenset()
    """Numbers of answers whose reasoning is an empty string, so that a template does not look for it in the content."""


USUAL = Form()


def forms(messages: List[Message], template: str) -> Iterator[Form]:
    """Yield the forms that make a difference for this conversation, the usual one first.

    Args:
        messages: The conversation.
        template: The text of the chat template. Forms with fields that the template does not mention are left out.
    """
    calls = [call for message in messages for call in message.get("tool_calls") or []]
    reasons = any(message.get("reasoning_content") for message in messages)
    empty = any(message.get("tool_calls") and not message["content"] for message in messages)
    no, both = [False], [False, True]
    named = set(re.findall(r"\w+", template))
    fields = [name for name in REASONING_FIELDS if _can_know(name, named)]
    ids = IDS if named & {"id", "tool_call_id", "call_id"} else IDS[:1]
    choices = itertools.product(
        fields if reasons else fields[:1], both if calls else no, both if empty else no,
        ids if calls else IDS[:1], both if named & {"type", "text"} else no,
    )  # fmt: skip
    for choice in sorted(choices, key=lambda one: _distance(Form(*one))):
        yield Form(*choice)


def _can_know(field: str, named: Set[str]) -> bool:
    """Whether a template with these words can look for reasoning in a field (see ``Form.reasoning``)."""
    return named >= {"thinking", "type"} if field == "parts" else field in named | {REASONING_FIELDS[0], "content"}


def _distance(form: Form) -> int:
    """Return how far a form is from the usual one. Parts come last, because templates for images often drop text."""
    return (
        REASONING_FIELDS.index(form.reasoning) + form.arguments_as_text + form.no_empty_content + IDS.index(form.ids)
        + 10 * form.content_in_parts
    )  # fmt: skip


def has_other_ids(messages: List[Message]) -> bool:
    """Whether an id of the conversation is not nine letters and digits."""
    calls = [call.get("id") for message in messages for call in message.get("tool_calls") or []]
    ids = calls + [message.get("tool_call_id") for message in messages]
    return any(isinstance(one, str) and not re.fullmatch(r"[A-Za-z0-9]{9}", one) for one in ids)


def ids_hold_names(messages: List[Message]) -> bool:
    """Whether the id of each call holds the name of its function, as Kimi's ids do (``functions.NAME:0``)."""
    calls = [call for message in messages for call in message.get("tool_calls") or []]
    return bool(calls) and all(call["function"]["name"] in str(call.get("id") or "") for call in calls)


def shape_of(messages: List[Message]) -> List[Any]:
    """Return what a plan depends on besides the text of the fields."""
    known = ("role", "content", "reasoning_content", "name", "tool_call_id", "tool_calls")
    shape: List[Any] = []
    ids: Dict[Any, int] = {}  # the number of the last call that has an id
    numbers = itertools.count()
    for message in messages:
        calls = message.get("tool_calls") or []
        for call in calls:
            ids[call.get("id")] = next(numbers)
        shape.append([
            message["role"],
            bool(message["content"]),
            bool(message.get("reasoning_content")),
            isinstance(message.get("name"), str),
            isinstance(message.get("tool_call_id"), str) and ids.get(message["tool_call_id"], -1),
            [[bool(call["function"]["arguments"]), "id" in call] for call in calls],
            {key: value for key, value in message.items() if key not in known},
        ])  # fmt: skip
    return shape


def apply(form: Form, messages: List[Message]) -> List[Message]:
    """Return the messages in a form. The given messages are in the normal form of ``ftdist.data.messages``."""
    if form == USUAL:
        return messages
    ids = None if form.ids == "own" else _NewIds(form.ids)
    given = []
    for number, message in enumerate(messages):
        message = dict(message)
        if number in form.without_reasoning and message["role"] == "assistant":
            message.setdefault("reasoning_content", "")
        reasoning = message.get("reasoning_content")
        if reasoning and form.reasoning != "reasoning_content":
            del message["reasoning_content"]
            is_call = bool(message.get("tool_calls"))
            if form.reasoning == "parts":
                text = [{"type": "text", "text": message["content"]}] if message["content"] else []
                message["content"] = [{"type": "thinking", "thinking": reasoning}, *text]
            elif form.reasoning == "content" or (form.reasoning == "tool_plan" and not is_call):
                # a call whose content is None has no place for reasoning, which can then only follow the prompt
                if message["content"] or not (is_call and form.no_empty_content):
                    message["content"] = THINK.replace("{}", reasoning) + message["content"]
            else:
                message[form.reasoning] = reasoning
        if message.get("tool_calls"):
            message["tool_calls"] = [_call(call, form, ids) for call in message["tool_calls"]]
            if form.no_empty_content and not message["content"]:
                message["content"] = None
        if message["role"] == "tool" and ids:
            message["tool_call_id"] = ids.of(message.get("tool_call_id"))
        if form.content_in_parts and isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        given.append(message)
    return given


def _call(call: Dict[str, Any], form: Form, ids: Optional["_NewIds"]) -> Dict[str, Any]:
    function = dict(call["function"])
    if form.arguments_as_text and not isinstance(function["arguments"], str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    call = {**call, "function": function}
    if ids:
        call["id"] = ids.new(call.get("id"), function["name"])
    return call


class _NewIds:
    """New ids in place of those of the record (see ``Form.ids``). Results without an id get the calls' ids in order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.known: Dict[str, str] = {}
        self.open: List[str] = []
        self.count = 0

    def new(self, own: Optional[str], name: str) -> str:
        made = f"call{self.count:05d}" if self.kind == "short" else f"functions.{name}:{self.count}"
        self.count += 1
        self.open.append(made)
        if own:
            self.known[own] = made
        return made

    def of(self, own: Optional[str]) -> str:
        made = self.known.get(own or "") or (self.open[0] if self.open else "call00000")
        if made in self.open:
            self.open.remove(made)
        return made
