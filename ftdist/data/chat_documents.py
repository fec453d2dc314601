"""Make the documents of a conversation: their texts, and the characters that are trained.

How conversations of its shape are trained is planned once (``chat_plan.py``). Each conversation is then rendered for
real, and aligned with the plan. This finds the answers, and proves that the rendering holds each field of the record.
"""

import itertools
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Optional, Pattern, Tuple

from ftdist.base.errors import DataError
from ftdist.config.schema import Format, Turns
from ftdist.data import thinking
from ftdist.data.chat_forms import Form, Message, apply, has_other_ids, ids_hold_names
from ftdist.data.chat_plan import DocumentPlan, Plan, make_plan
from ftdist.data.chat_template import ChatTemplate, Span, TemplateProblem
from ftdist.data.chat_turn import CannotExpress
from ftdist.data.records import Document
from ftdist.data.skeleton import Alignment, FieldKey, Part, align, field_values

MAX_PLANS = 2048
"""Number of shapes whose plans are kept."""
MAX_REASON = 100
"""Largest length of a reason that quotes what a chat template says."""


@dataclass(frozen=True)
class ChatText:
    """A document of a conversation."""

    text: str
    spans: List[Span]
    """Characters that are trained."""
    planned: DocumentPlan
    """How it is trained. The spans are those of the plan, in the same order."""


@dataclass
class ChatRenderer:
    """Makes the documents of conversations for one tokenizer, and keeps the plans of the shapes that it has seen."""

    default: Optional[ChatTemplate]
    with_tools: Optional[ChatTemplate]
    """For conversations with tools. Some tokenizers have a template for them."""
    special: Pattern[str]
    """Matches a special token."""
    eos: str
    turns: Turns = Turns.auto
    plans: Dict[str, Any] = field(default_factory=dict)
    stop: Optional[str] = None
    """What ``usual_stop`` has found."""

    def usual_stop(self) -> str:
        """Return the last token of an answer, or an empty string if the template cannot render a short chat."""
        if self.stop is None:
            self.stop = ""
            chat = Document("a chat", Format.messages)
            messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
            with suppress(DataError):
                turn = self._plan(chat, messages, [1], self._template(chat)).documents[0].turn
                found = self.special.findall(turn.text, turn.start, turn.end)
                self.stop = str(found[-1]) if found else ""
        return self.stop

    def whole(self, document: Document) -> Tuple[str, Form]:
        """Return the text of the whole conversation, and how its messages are handed to the template.

        Raises:
            DataError: The template cannot render it, or does not show all of it.
        """
        template = self._template(document)
        answers = [number for number, message in enumerate(document.messages) if message["role"] == "assistant"]
        last, form = answers[-1:], Form()
        if last:
            form = self._plan(document, document.messages[: last[0] + 1], last, template).form
        try:
            return template.render(apply(form, document.messages), document.tools), form
        except TemplateProblem as problem:
            raise _cannot_render(document, problem) from problem

    def prompt(self, document: Document, number: int, form: Form) -> Tuple[str, List[Message], Dict[str, Any]]:
        """Return how a program for chats would ask for an answer: template, messages and arguments of the template."""
        template = self._template(document)
        return template.text, apply(form, document.messages[:number]), template.kwargs

    def prompt_text(self, document: Document, number: int, form: Form) -> Optional[str]:
        """Return the prompt of an answer as text, or None if the template cannot render it: before a first message."""
        template = self._template(document)
        try:
            return template.render(apply(form, document.messages[:number]), document.tools, True)
        except TemplateProblem:
            return None

    def documents(self, document: Document, wanted: List[int]) -> List[ChatText]:
        """Return the documents in which the wanted answers are trained.

        Args:
            document: A chat.
            wanted: Numbers of the messages that are trained, in order. Not empty.

        Raises:
            DataError: The template cannot render the conversation, or does not show all of it. Or ``data.turns=whole``,
                and the answers look different when more messages follow.
        """
        template = self._template(document)
        messages = document.messages[: wanted[-1] + 1]
        groups = [[number] for number in wanted] if self.turns is Turns.each else [wanted]
        made: List[ChatText] = []
        for group in groups:
            plan = self._plan(document, messages[: group[-1] + 1], group, template)
            if self.turns is Turns.whole and len(plan.documents) > 1:
                raise _differs(document, plan)
            made += [self._make(document, one, plan, template) for one in plan.documents]
        return made

    def _template(self, document: Document) -> ChatTemplate:
        template = self.with_tools if document.tools and self.with_tools else self.default
        if template is None:
            raise DataError(
                f"{document.location}: the record is a chat, but the tokenizer has no chat template",
                "a chat template",
                "data.chat_template=chatml, or a Jinja file",
                reason="a chat, but no chat template",
            )
        if not document.template_kwargs:
            return template
        return replace(template, kwargs={**template.kwargs, **document.template_kwargs})

    def _plan(self, document: Document, messages: List[Message], wanted: List[int], template: ChatTemplate) -> Plan:
        ids = [has_other_ids(messages), ids_hold_names(messages)]
        key = repr((_shape(messages), document.tools, wanted, template.kwargs, ids))
        if key not in self.plans:
            if len(self.plans) >= MAX_PLANS:
                self.plans.clear()
            try:
                self.plans[key] = make_plan(messages, document.tools, wanted, template, self.special, self.eos)
            except (TemplateProblem, CannotExpress) as problem:
                self.plans[key] = problem
        plan = self.plans[key]
        if isinstance(plan, TemplateProblem):
            raise _cannot_render(document, plan)
        if isinstance(plan, CannotExpress):
            raise DataError(
                f"{document.location}: the chat template does not show {plan}",
                "a template that shows everything that the record holds",
                "data.chat_template=chatml (shows reasoning and tool calls), or data.bad_records=drop",
                reason=f"the chat template does not show {re.sub(' of message [0-9]+', '', str(plan))}",
            )
        assert isinstance(plan, Plan)
        return plan

    def _make(self, document: Document, planned: DocumentPlan, plan: Plan, template: ChatTemplate) -> ChatText:
        turn = planned.turn
        messages = document.messages[: turn.number + 1]
        values = field_values(apply(Form(ids=plan.form.ids), messages))
        given = apply(plan.form, messages)
        aligned: Dict[str, Tuple[str, Alignment]] = {}
        for source, count, parts in (("turn", turn.number + 1, turn.turn), ("prompt", turn.number, turn.prompt)):
            if any(piece.source == source for piece in turn.pieces):
                assert parts is not None
                aligned[source] = self._aligned(document, given[:count], source == "prompt", parts, values, template)
        text = "".join(_piece_text(piece, aligned, values) for piece in turn.pieces)
        first, alignment = next(iter(aligned.items())) if len(aligned) == 1 else ("prompt", aligned["prompt"])
        spans = [self._real(span, planned, first, alignment[1], text) for span in planned.spans]
        if _has_markers(values, self.special):
            self._prove_prompts(document, planned, given, text, template)
        return ChatText(text, spans, planned)

    def _aligned(
        self, document: Document, messages: List[Message], is_prompt: bool, parts: List[Part],
        values: Dict[FieldKey, str], template: ChatTemplate,
    ) -> Tuple[str, Alignment]:  # fmt: skip
        try:
            text = template.render(messages, document.tools, is_prompt)
        except TemplateProblem as problem:
            raise _cannot_render(document, problem) from problem
        found = align(parts, text, values)
        if found is None:  # a template may change what it quotes, such as the result of a tool
            answers = {key: value for key, value in values.items() if messages_role(messages, key) == "assistant"}
            found = align(parts, text, answers)
        if found is None:
            raise DataError(
                f"{document.location}: the chat template changes the text of an answer, or renders this conversation "
                "differently because of what it says",
                "a template that shows each answer as it is",
                "data.chat_template=chatml, or data.bad_records=drop",
                reason="the chat template changes the text of an answer",
            )
        return text, found

    def _real(self, span: Span, planned: DocumentPlan, first: str, alignment: Alignment, text: str) -> Span:
        """Return the characters of the real text for those of the plan."""
        turn = planned.turn
        if first == "prompt":  # the answers before are in the prompt, and the rest of the text is the last answer
            if span[1] == len(turn.text):
                return alignment.position(span[0]), len(text)
            return alignment.position(span[0]), alignment.position(span[1])
        limit = turn.pieces[0].end
        added = max(span[1] - limit, 0)
        start = alignment.position(min(span[0], limit)) + max(span[0] - limit, 0)
        return start, alignment.position(span[1] - added) + added

    def _prove_prompts(
        self, document: Document, planned: DocumentPlan, given: List[Message], text: str, template: ChatTemplate
    ) -> None:
        """Check that the prompts of the answers are in the text. A template can look for think tags in the content."""
        for one in planned.covered:
            if one.prompt is None:
                continue
            prompt = template.render(given[: one.number], document.tools, add_generation_prompt=True)
            if not text.startswith(prompt):
                raise DataError(
                    f"{document.location}: the chat template renders the messages before message {one.number + 1} "
                    "differently because of special tokens or think tags in their text",
                    "texts without such tokens",
                    "correct the record, or data.bad_records=drop",
                    reason="special tokens or think tags in a text",
                )


def messages_role(messages: List[Message], key: FieldKey) -> str:
    return str(messages[key[0]]["role"]) if key[0] < len(messages) else ""


def _piece_text(piece: Any, aligned: Dict[str, Tuple[str, Alignment]], values: Dict[FieldKey, str]) -> str:
    if piece.source == "text":
        return str(piece.text)
    if piece.source == "field":
        return values[piece.key].strip()
    text, alignment = aligned[piece.source]
    return text[alignment.position(piece.start) : alignment.position(piece.end)]


def _has_markers(values: Dict[FieldKey, str], special: Pattern[str]) -> bool:
    return any(special.search(value) or thinking.LIKE_CONTROL.search(value) for value in values.values())


def _shape(messages: List[Message]) -> List[Any]:
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


def _cannot_render(document: Document, problem: Exception) -> DataError:
    roles = ", ".join(message["role"] for message in document.messages)
    return DataError(
        f"{document.location}: the chat template cannot render this conversation ({roles}): {problem}",
        "a conversation that the template supports",
        "correct the record, or set data.chat_template",
        reason=f"the chat template cannot render it: {problem}"[:MAX_REASON],
    )


def _differs(document: Document, plan: Plan) -> DataError:
    number = plan.documents[0].turn.number + 1
    return DataError(
        f"{document.location}: the chat template renders message {number} differently if more messages follow, and "
        "data.turns=whole",
        "a template that never changes earlier messages",
        "data.turns=auto (such answers become documents of their own)",
        reason="answers that look different when more messages follow",
    )


def special_tokens_pattern(tokenizer: Any) -> Pattern[str]:
    """Return a pattern that matches any special token of a tokenizer."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
