"""Make the documents of a conversation: their texts, and the characters that are trained.

Conversations of the same shape are planned together (``chat_plan.py``). Then each conversation is rendered with its own
text, and aligned with the plan. This finds the answers, and proves that the rendering has each field of the record.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, List, Optional, Pattern, Tuple

from ftdist.base.errors import DataError
from ftdist.config.data import Format, Turns
from ftdist.data import thinking
from ftdist.data.chat_checks import as_shown, changed_content, check_stops, content_lost, differs_later, prompt_differs
from ftdist.data.chat_forms import Form, Message, apply, has_other_ids, ids_hold_names, shape_of
from ftdist.data.chat_notes import THINKING_NOT_TRAINED
from ftdist.data.chat_plan import DocumentPlan, Plan, make_plan
from ftdist.data.chat_template import ChatTemplate, Span, TemplateProblem
from ftdist.data.chat_turn import CannotExpress
from ftdist.data.records import Document
from ftdist.data.skeleton import Alignment, FieldKey, Part, align, field_values
from ftdist.data.template_conditions import conditions_of

MAX_PLANS = 2048
"""Number of shapes whose plans are kept."""
MAX_PARTS = 400_000
"""Size of the plans that are kept, in parts of their skeletons. A part takes about 200 bytes."""
MAX_REASON = 100
"""Largest length of a reason that quotes what a chat template says."""


@dataclass(frozen=True)
class ChatText:
    """A document of a conversation."""

    text: str
    spans: List[Span]
    """Characters that are trained."""
    planned: DocumentPlan
    """The plan of the document. ``spans[i]`` belongs to the span with index i of the plan."""


@dataclass
class ChatRenderer:
    """Makes the documents of conversations for one tokenizer, and keeps the plans of the shapes that it has seen."""

    default: Optional[ChatTemplate]
    with_tools: Optional[ChatTemplate]
    """The template for conversations with tools, if the tokenizer has one."""
    special: Pattern[str]
    """Matches a special token."""
    eos: str
    turns: Turns = Turns.auto
    plans: Dict[str, Any] = field(default_factory=dict)
    num_parts: int = 0
    """Size of ``plans``, as in ``MAX_PARTS``."""
    stop: Optional[str] = None
    """The result of ``usual_stop``. None before the first call."""

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

    def whole(self, document: Document) -> Tuple[str, Form, Tuple[str, ...]]:
        """Return the text of the whole conversation, the form in which the template gets its messages, and notes.

        Raises:
            DataError: The template cannot render it, or does not show all of it.
        """
        template = self._template(document)
        answers = [number for number, message in enumerate(document.messages) if message["role"] == "assistant"]
        shown = [number for number in answers if document.messages[number].get("reasoning_content")]
        form = Form()
        if answers:
            wanted = sorted({*shown, answers[-1]})
            form = self._plan(document, document.messages[: wanted[-1] + 1], wanted, template).form
        try:
            text = template.render(apply(form, document.messages), document.tools)
        except TemplateProblem as problem:
            raise _cannot_render(document, problem) from problem
        is_lost = any(message.get("reasoning_content", "") not in text for message in document.messages)
        return text, form, (THINKING_NOT_TRAINED,) if is_lost else ()

    def prompt(self, document: Document, number: int, form: Form) -> Tuple[str, List[Message], Dict[str, Any]]:
        """Return what a chat program needs to ask for an answer: the template, the messages, and the arguments of the
        template."""
        template = self._template(document)
        return template.text, apply(form, document.messages[:number]), template.kwargs

    def prompt_text(self, document: Document, number: int, form: Form) -> Optional[str]:
        """Return the prompt of an answer as text, or None if the template cannot render it (before a first message)."""
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
            try:
                made += self._group(document, messages[: group[-1] + 1], group, template)
            except DataError as problem:
                made += self._group_as_it_is(document, messages[: group[-1] + 1], group, template, problem)
        return made

    def _group_as_it_is(
        self, document: Document, messages: List[Message], wanted: List[int], template: ChatTemplate, problem: DataError
    ) -> List[ChatText]:
        """Make the documents of a conversation whose texts may change how its template renders it.

        First, the template gets the questions and system messages as they are, without sentinels. If this fails, it
        gets the earlier answers as they are, too. The end of such an answer cannot be found in the text, so each of
        them that is trained gets a document of its own.
        """
        exact = self._exact(messages[:-1], template)
        closed = frozenset(
            number for number, one in enumerate(messages)
            if one["role"] == "assistant" and not one.get("reasoning_content") and thinking.is_closed(one["content"])
        )  # fmt: skip
        for is_useful, without_reasoning in ((bool(exact), frozenset()), (bool(closed), closed)):
            with suppress(DataError):
                if is_useful:
                    return self._group(document, messages, wanted, template, exact, without_reasoning)
        answers = self._exact(messages[:-1], template, answers=True) - exact
        alone = [[number] for number in wanted[:-1] if number in answers]
        groups = [*alone, [number for number in wanted if number not in answers]]
        if answers and not (alone and self.turns is Turns.whole):
            with suppress(DataError):
                made: List[ChatText] = []
                for group in sorted(groups, key=lambda numbers: numbers[-1]):
                    seen = messages[: group[-1] + 1]
                    made += self._group(document, seen, group, template, self._exact(seen[:-1], template, answers=True))
                return made
        raise problem

    def _group(
        self, document: Document, messages: List[Message], wanted: List[int], template: ChatTemplate,
        exact: FrozenSet[int] = frozenset(), without_reasoning: FrozenSet[int] = frozenset(),
    ) -> List[ChatText]:  # fmt: skip
        plan = self._plan(document, messages, wanted, template, exact, without_reasoning)
        if self.turns is Turns.whole and len(plan.documents) > 1:
            raise differs_later(document, plan)
        return [self._make(document, one, plan, template) for one in plan.documents]

    def _exact(self, messages: List[Message], template: ChatTemplate, answers: bool = False) -> FrozenSet[int]:
        """Return the numbers of the messages whose text may change how a template renders a conversation.

        Args:
            messages: The messages.
            template: The chat template.
            answers: Whether answers are checked too.
        """
        texts = [(number, one["content"]) for number, one in enumerate(messages)
                 if answers or one["role"] != "assistant"]  # fmt: skip
        return frozenset(number for number, text in texts if text and self._is_special(text, template))

    def _is_special(self, text: str, template: ChatTemplate) -> bool:
        """Whether a text has control tokens, think tags, or words that the conditions of the template look for."""
        found = self.special.search(text) or thinking.LIKE_CONTROL.search(text)
        return found is not None or conditions_of(template.text).touch(text)

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

    def _plan(
        self, document: Document, messages: List[Message], wanted: List[int], template: ChatTemplate,
        exact: FrozenSet[int] = frozenset(), without_reasoning: FrozenSet[int] = frozenset(),
    ) -> Plan:  # fmt: skip
        ids = [has_other_ids(messages), ids_hold_names(messages)]
        texts = [(number, messages[number]["content"]) for number in sorted(exact)]
        key = repr((shape_of(messages), document.tools, wanted, template.kwargs, ids, texts, sorted(without_reasoning)))
        if key not in self.plans:
            if len(self.plans) >= MAX_PLANS or self.num_parts >= MAX_PARTS:
                self.plans.clear()
                self.num_parts = 0
            try:
                made = self.plans[key] = make_plan(
                    messages, document.tools, wanted, template, self.special, self.eos, exact, without_reasoning
                )
                self.num_parts += sum(len(parts) for one in made.documents for parts in one.parts.values())
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
        for source, parts in planned.parts.items():
            seen = given[: turn.number] if source == "prompt" else given
            aligned[source] = self._aligned(document, seen, source == "prompt", parts, values, template)
        text = "".join(_piece_text(piece, aligned, values) for piece in turn.pieces)
        first, alignment = next(iter(aligned.items())) if len(aligned) == 1 else ("prompt", aligned["prompt"])
        spans = [self._real(span, planned, first, alignment[1], text) for span in planned.spans]
        is_special = any(self._is_special(value, template) for value in values.values() if value)
        if is_special or any(message.get("tool_calls") for message in messages):
            check_stops(document, planned, spans, text, self.special, self.eos)
        if is_special:
            turns = [self._real((one.start, one.end), planned, first, alignment[1], text) for one in planned.covered]
            self._prove_prompts(document, planned, given, text, template, [start for start, _ in turns])
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
        if found is None:  # a template may write texts in another notation, and leave out names and ids of tools
            answers = {key: value for key, value in values.items() if messages_role(messages, key) == "assistant"}
            found = align(parts, text, answers)
            changed = None if found is None else changed_content(messages, found, text, values)
            if changed is not None:
                raise content_lost(document, changed)
        if found is None:
            raise DataError(
                f"{document.location}: the chat template changes the text of an answer, or renders this conversation "
                f"differently because of what it says{self._suspects(messages, template)}",
                "a template that shows each answer as it is",
                "data.chat_template=chatml, or data.bad_records=drop",
                reason="the chat template changes the text of an answer",
            )
        return text, found

    def _real(self, span: Span, planned: DocumentPlan, first: str, alignment: Alignment, text: str) -> Span:
        """Return the span in the real text for a span of the plan."""
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
        self, document: Document, planned: DocumentPlan, given: List[Message], text: str, template: ChatTemplate,
        starts: List[int],
    ) -> None:  # fmt: skip
        """Check that training begins after the prompt of each answer.

        A template can look for words in messages, so each prompt is rendered with the real messages.
        """
        for one, start in zip(planned.covered, starts, strict=True):
            if not one.has_prompt:
                continue
            try:
                prompt = template.render(given[: one.number], document.tools, add_generation_prompt=True)
            except TemplateProblem as problem:
                raise _cannot_render(document, problem) from problem
            if text[:start] != prompt:
                raise prompt_differs(document, one.number, self._suspects(given[: one.number], template))
        for number in planned.exact:
            content = document.messages[number]["content"]
            if number < planned.turn.number and not any(form in text for form in as_shown(content)):
                raise content_lost(document, number)

    def _suspects(self, messages: List[Message], template: ChatTemplate) -> str:
        """Return the numbers of the messages that a template can treat differently, for an error."""
        texts = [one["content"] if isinstance(one["content"], str) else repr(one["content"]) for one in messages]
        numbers = [number for number, text in enumerate(texts, 1) if text and self._is_special(text, template)]
        return f" (message {', '.join(map(str, numbers))})" if numbers else ""


def messages_role(messages: List[Message], key: FieldKey) -> str:
    return str(messages[key[0]]["role"]) if key[0] < len(messages) else ""


def _piece_text(piece: Any, aligned: Dict[str, Tuple[str, Alignment]], values: Dict[FieldKey, str]) -> str:
    if piece.source == "text":
        return str(piece.text)
    if piece.source == "field":
        return values[piece.key].strip()
    text, alignment = aligned[piece.source]
    return text[alignment.position(piece.start) : alignment.position(piece.end)]


def _cannot_render(document: Document, problem: Exception) -> DataError:
    roles = ", ".join(message["role"] for message in document.messages)
    return DataError(
        f"{document.location}: the chat template cannot render this conversation ({roles}): {problem}",
        "a conversation that the template supports",
        "correct the record, or set data.chat_template",
        reason=f"the chat template cannot render it: {problem}"[:MAX_REASON],
    )


def special_tokens_pattern(tokenizer: Any) -> Pattern[str]:
    """Return a pattern that matches any special token of a tokenizer."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
