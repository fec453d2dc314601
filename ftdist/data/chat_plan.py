"""Decide how the conversations of one shape are trained: which documents they become, and where the answers are.

The model is trained to produce an answer after the prompt that it will be given at inference. Two texts are rendered
with sentinels (see ``skeleton.py``), once for all conversations of a shape:

- the *prompt* of an answer: the messages before it, with the generation prompt;
- the *turn*: the messages up to and including the answer, as it looks when it was just generated.

If the turn begins with the prompt, training begins after the prompt. Otherwise (for example, if the generation prompt
opens a think block that the template removes from answers), the document is the prompt, continued by the text that the
model has to produce.
"""

from dataclasses import dataclass, replace
from typing import Any, Dict, FrozenSet, List, Optional, Pattern, Set, Tuple

from ftdist.data import thinking
from ftdist.data.chat_forms import Form, Message, apply, forms, has_other_ids, ids_hold_names
from ftdist.data.chat_notes import EMPTY_THINKING, NO_STOP, NO_TOOLS
from ftdist.data.chat_template import ChatTemplate, Span, TemplateProblem
from ftdist.data.chat_turn import (
    CannotExpress,
    Piece,
    Place,
    Turn,
    check_end,
    check_one_turn,
    check_shown,
    closes_part,
    common_header,
    context_end,
    has_words,
    marked_parts,
    own_span,
    shows_tools,
    turn_end,
)
from ftdist.data.skeleton import FieldKey, Part, split_parts, with_sentinels


@dataclass(frozen=True)
class DocumentPlan:
    """One document: the text of a turn. Earlier answers are trained in it too if they look the same in it."""

    form: Form
    turn: Turn
    parts: Dict[str, List[Part]]
    """The parts of the renderings from which the document is made, by ``Piece.source``."""
    covered: List[Place]
    """The answers that are trained, in order. The last one is that of ``turn``."""
    spans: List[Span]
    """Trained characters of ``turn.text``."""
    stripped: List[FieldKey]
    """Reasoning of earlier answers that the template does not show here."""
    notes: Tuple[str, ...]
    """What the user should know about how the answers are trained."""
    answers: Tuple[int, ...]
    """Numbers of the messages that are trained."""
    exact: FrozenSet[int] = frozenset()
    """Numbers of the messages that have their own text in the plan, not a sentinel."""


@dataclass(frozen=True)
class Plan:
    form: Form
    documents: List[DocumentPlan]


def make_plan(
    messages: List[Message], tools: Optional[List[Any]], wanted: List[int], template: ChatTemplate,
    special: Pattern[str], eos: str, exact: FrozenSet[int] = frozenset(),
    without_reasoning: FrozenSet[int] = frozenset(),
) -> Plan:  # fmt: skip
    """Decide how conversations of a shape are trained.

    Args:
        messages: A conversation of this shape.
        tools: Its tools.
        wanted: Numbers of the answers that are trained.
        template: The chat template.
        special: Matches a special token.
        eos: The stop after the answers of a template that writes none.
        exact: Numbers of messages before answers that keep their own text, without a sentinel.
        without_reasoning: ``Form.without_reasoning``.

    Raises:
        TemplateProblem: The template cannot render the conversation in any form.
        CannotExpress: The template can render it, but does not show all of it.
    """
    problems: List[Exception] = []
    for fill in (False, True) if thinking.is_closed(template.text) else (False,):
        for form in forms(messages, template.text):
            try:
                form = replace(form, without_reasoning=without_reasoning)
                return _Planner(messages, tools, template, special, eos, form, fill, exact).plan(wanted)
            except (TemplateProblem, CannotExpress) as problem:
                problems.append(problem)
    lost = [problem for problem in problems if isinstance(problem, CannotExpress)]
    # In another form, reasoning may be shown, but the calls are not.
    raise next((problem for problem in lost if str(problem).startswith("the tool calls of")), [*lost, *problems][0])


class _Planner:
    """Makes the plan for one form."""

    def __init__(
        self, messages: List[Message], tools: Optional[List[Any]], template: ChatTemplate, special: Pattern[str],
        eos: str, form: Form, fill: bool, exact: FrozenSet[int],
    ) -> None:  # fmt: skip
        self.tools, self.template, self.special, self.eos, self.form = tools, template, special, eos, form
        self.fill = fill
        """Put reasoning that the template does not show into the empty think block that it writes."""
        named = apply(Form(ids=form.ids), messages)
        self.named_ids = ids_hold_names(named)
        sentinels = with_sentinels(named, long_ids=has_other_ids(named), exact=exact)
        self.exact = exact
        self.keys = sentinels.keys
        self.given = sentinels.messages
        """The messages in the normal form of ``ftdist.data.messages``, with sentinels."""
        self.messages = apply(replace(form, ids="own"), self.given)
        self.texts: Dict[Tuple[int, bool], str] = {}

    def plan(self, wanted: List[int]) -> Plan:
        turns = [self.turn(number) for number in wanted]
        documents: List[DocumentPlan] = []
        left = list(turns)
        while left:
            covered = [turn for turn in left if turn.looks_same_in(left[-1])]
            documents.insert(0, self._document(left[-1], covered))
            left = [turn for turn in left if turn not in covered]
        return Plan(self.form, documents)

    def turn(self, number: int) -> Turn:
        """Return an answer as it looks when it was just generated."""
        text, prompt = self._text(number), self._prompt(number)
        opened = thinking.opened(prompt or "")
        after_context = context_end(text, number, self.keys)
        is_continued = prompt is None or (text.startswith(prompt) and after_context <= len(prompt))
        shown = text if prompt is None or is_continued else prompt + text[after_context:]
        opened_by_model = bool(opened) or self._removes_thinking() or self.fill
        hidden = check_shown(shown, number, self.messages, self.keys, opened_by_model, self.named_ids)
        first, last = own_span(text, number, self.keys)
        has_reasoning = bool(self.given[number].get("reasoning_content"))
        check_one_turn(text[first:last], number, self.special, self.eos)
        if has_reasoning and not hidden and thinking.is_closed(text[after_context:first]):
            raise CannotExpress(f"the reasoning of message {number + 1} in one think block")
        end, stop, is_written = self._end(text, last, number)
        if prompt is not None and has_reasoning and thinking.ends_closed(prompt):
            raise CannotExpress("the reasoning: the generation prompt ends the thinking before the answer")
        if prompt is not None:
            check_end(prompt[context_end(prompt, number, self.keys) :], self.special.sub("", text[last:end]))
        if prompt is not None and (hidden or not text.startswith(prompt)):
            pieces = self._continued(prompt, text, first, number, opened, hidden)
            pieces = [*pieces[:-1], pieces[-1]._replace(end=end), *([Piece("text", text=stop)] if stop else [])]
            whole = "".join(_text_of(piece, prompt, text, self.keys) for piece in pieces)
            start, finish = len(prompt), len(whole)
        else:  # the template's text after the stop (a line break) stays in the document and is not trained
            start = len(prompt) if prompt is not None else self._start_without_prompt(text, first, number)
            pieces = [Piece("turn", 0, end), Piece("text", text=stop)] if stop else [Piece("turn", 0, len(text))]
            whole, finish = text[:end] + stop if stop else text, end + len(stop)
        notes = [NO_STOP] * (not is_written) + [NO_TOOLS] * (not shows_tools(text, self.tools))
        if thinking.is_empty(whole[start:]) and not has_reasoning:
            notes.append(EMPTY_THINKING)
        return Turn(number, whole, start, finish, tuple(pieces), text, prompt, tuple(notes))

    def _end(self, text: str, last: int, number: int) -> Tuple[int, str, bool]:
        """Return where an answer ends, the stop if it has to be added, and whether the template writes a stop at all.

        A template may write no stop after a call, but only the end of the call or the beginning of the next message.
        Then the stop of other answers is used, if they have one.
        """
        is_call, openers = bool(self.messages[number].get("tool_calls")), self._openers()
        after = self._after(number) or ""
        before, first = context_end(text, number, self.keys), own_span(text, number, self.keys)[0]
        end, stop = turn_end(text, last, after or None, is_call, self.special, openers, self.eos, text[before:first])
        written = list(self.special.finditer(text[last:end] + stop)) if is_call else []
        if written and written[0][0] in openers and (usual := self._usual_stop()) not in ("", *openers):
            return last + len(text[last : last + written[0].start()].rstrip()), usual, True
        token, own = (written[-1][0] if written else ""), text[before:last]
        is_open = token != self.eos and closes_part(token, own, self.special)
        if is_open and (usual := self._usual_stop()) not in ("", token, *openers):
            return end, usual, True
        is_written = stop != self.eos or (not text[last:end].strip() and after.lstrip().startswith(stop))
        return end, stop, is_written

    def _usual_stop(self) -> str:
        """Return the special token that the template writes after an answer without calls, or an empty string."""
        said = "QZ the text ZQ"
        messages = [{"role": role, "content": said} for role in ("user", "assistant", "user")]
        try:
            text, longer = (self.template.render(apply(self.form, messages[:n]), self.tools) for n in (2, 3))
        except TemplateProblem:
            return ""
        last, (_, _, *after) = text.rfind(said) + len(said), longer.split(said)
        end, stop = turn_end(text, last, said.join(after), False, self.special, self._openers(), self.eos)
        tokens = self.special.findall(text, last, end)
        return str(tokens[-1]) if tokens and not stop else ""

    def _removes_thinking(self) -> bool:
        """Whether the template removes think blocks from answers. Then the model itself begins such a block."""
        return self.form.reasoning in ("content", "tool_plan") and thinking.TAG.replace("<", "</") in self.template.text

    def _render(self, count: int, add_generation_prompt: bool = False) -> str:
        key = (count, add_generation_prompt)
        if key not in self.texts:
            self.texts[key] = self.template.render(self.messages[:count], self.tools, add_generation_prompt)
        return self.texts[key]

    def _text(self, number: int) -> str:
        """Return the conversation up to an answer.

        Some templates require a question, so they cannot render a first message alone. Its text is then taken from the
        whole conversation.
        """
        try:
            return self._render(number + 1)
        except TemplateProblem:
            if number:
                raise
            whole = self._render(len(self.messages))
            end = own_span(whole, number, self.keys)[1]
            return whole[: end + len(self.eos) if whole.startswith(self.eos, end) else end]

    def _prompt(self, number: int) -> Optional[str]:
        """Return the prompt of an answer, or None before a first message and if the template cannot render it."""
        if number == 0:
            return None
        try:
            return self._render(number, add_generation_prompt=True)
        except TemplateProblem:
            return None

    def _after(self, number: int) -> Optional[str]:
        """Return what the template writes after an answer if another message follows; None if it cannot render this."""
        calls = self.given[number].get("tool_calls")
        following: Message = {"role": "user", "content": "next"}
        if calls:
            following = {"role": "tool", "content": "next", "name": calls[0]["function"]["name"]}
            if calls[0].get("id"):
                following["tool_call_id"] = calls[0]["id"]
        try:
            messages = [*self.messages[: number + 1], *apply(replace(self.form, ids="own"), [following])]
            text = self.template.render(messages, self.tools)
            return text[own_span(text, number, self.keys)[1] :]
        except (TemplateProblem, CannotExpress):
            return None

    def _openers(self) -> Set[str]:
        """Return the special tokens with which the template begins a conversation."""
        try:
            text = self.template.render(apply(self.form, [{"role": "user", "content": "first"}]), self.tools)
        except TemplateProblem:
            return set()
        found: Set[str] = set()
        while match := self.special.match(text.lstrip()):
            found.add(match[0])
            text = text.lstrip()[match.end() :]
        return found - {self.eos}

    def _start_without_prompt(self, text: str, first: int, number: int) -> int:
        """Return where an answer without a prompt begins. The text before it is found in a chat with a question."""
        try:
            own = [*apply(self.form, [{"role": "user", "content": "question"}]), self.messages[number]]
            prompt = self.template.render(own[:1], self.tools, add_generation_prompt=True)
            turn = self.template.render(own, self.tools)
            lead = turn[len(prompt) : own_span(turn, number, self.keys)[0]] if turn.startswith(prompt) else ""
        except (TemplateProblem, CannotExpress):
            lead = ""
        return first - len(lead) if text[:first].endswith(lead) else first

    def _continued(
        self, prompt: str, text: str, first: int, number: int, opened: Optional[str], hidden: bool
    ) -> List[Piece]:
        """Return a document that is the prompt, continued by the answer as the template writes it.

        The template's text between the last field of the prompt and the first field of the answer is compared with the
        end of the prompt, and what both have is not repeated. The end of the last piece is set later.
        """
        tail, before = prompt[context_end(prompt, number, self.keys) :], context_end(text, number, self.keys)
        used, common = common_header(tail, text[before:first])
        rest, begin = tail[used:], before + common
        pieces = [Piece("prompt", 0, len(prompt))]
        has_reasoning = bool(self.given[number].get("reasoning_content"))
        if hidden and self.fill:
            middle = begin + thinking.middle_of_empty(text[begin:first])
            if middle <= begin:
                raise CannotExpress(f"the reasoning of message {number + 1}")
            return [*pieces, Piece("turn", begin, middle), Piece("field", key=(number, "reasoning")),
                    Piece("turn", middle, middle)]  # fmt: skip
        if hidden:
            start = [] if opened else [Piece("text", text=f"{thinking.TAG}\n")]
            pieces += [*start, Piece("field", key=(number, "reasoning"))]
        elif thinking.is_closed(rest):  # the prompt and the template's text both hold the end of the thinking
            begin += thinking.empty_length(text[begin:first])
        if (hidden or (opened and not has_reasoning)) and not thinking.is_closed(text[begin:first]):
            pieces.append(Piece("text", text=thinking.closing(opened or thinking.TAG, prompt)))
        is_text = not self.messages[number].get("tool_calls")
        other = is_text and has_words(text[begin:first]) and (opened is not None or has_words(rest))
        if other:  # the template writes one header in the prompt and another one before answers
            begin = first
        if (hidden or rest.strip()) and not text[begin:first].strip():
            begin = first
        return [*pieces, Piece("turn", begin, begin)]

    def _document(self, turn: Turn, covered: List[Turn]) -> DocumentPlan:
        spans = [(one.start, one.end) for one in covered]
        if self.template.is_marked and turn.pieces[0].source == "turn":
            _, marks = self.template.render_with_marks(self.messages[: turn.number + 1], self.tools)
            marks = [(start, min(end, turn.pieces[0].end)) for start, end in marks]
            spans = [part for span in spans for part in marked_parts(turn.text, span, marks, self.special)]
        shown = {part.key for part in split_parts(turn.text, self.keys)}
        stripped = [key for key in self.keys if key[1] == "reasoning" and key[0] < turn.number and key not in shown]
        notes = tuple(dict.fromkeys(note for one in covered for note in one.notes))
        answers = tuple(one.number for one in covered)
        renderings = {"turn": turn.rendered, "prompt": turn.prompt}
        used = [source for source in renderings if any(piece.source == source for piece in turn.pieces)]
        parts = {source: split_parts(renderings[source] or "", self.keys) for source in used}
        places = [one.place for one in covered]
        return DocumentPlan(self.form, turn, parts, places, spans, stripped, notes, answers, self.exact)


def _text_of(piece: Piece, prompt: str, turn: str, keys: List[FieldKey]) -> str:
    if piece.source == "field":
        assert piece.key is not None
        return f"QZ{keys.index(piece.key):05d}ZQ"
    if piece.source == "text":
        return piece.text
    return (prompt if piece.source == "prompt" else turn)[piece.start : piece.end]
