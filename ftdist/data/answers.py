"""How the answers of a record are trained: the prompt of each answer, its warnings, and three rules that must hold.

1. Each field of the record (content, reasoning, name and arguments of a call) is shown once. The template may leave out
   the reasoning of earlier answers.
2. The answer ends in a stop token that is trained.
3. Nothing is trained after the stop.

The preparation refuses records that break the first rule. This module checks the rules again on the documents that the
preparation makes: it renders the record with a different word in place of each field.
"""

from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

from ftdist.data.chat_forms import Form, apply
from ftdist.data.chat_notes import AFTER_STOP, CONTEXT_DIFFERS, CUT, NO_PROMPT, STOP_NOT_TRAINED
from ftdist.data.chat_template import Span
from ftdist.data.chat_turn import common_length
from ftdist.data.records import Document
from ftdist.data.render import Rendered, Renderer, render, with_one_bos
from ftdist.data.skeleton import SENTINEL, FieldKey, Sentinels, with_sentinels
from ftdist.data.tokenise import overlapping_tokens

SHOWN_AFTER = 100
"""Number of characters of the document that are shown after its first difference from a prompt."""


@dataclass(frozen=True)
class Answer:
    """An answer of a chat, in the document in which it is trained."""

    location: str
    """Where the record was found."""
    message: int
    """Number of the message, from 1."""
    document: int
    """Number of the document among those of the record, from 1."""
    num_documents: int
    prompt: Optional[str]
    """The prompt that the model will be given. None for a first message, which has no prompt."""
    context: str
    """The text of the document before the trained text."""
    trained: str
    lost: Tuple[str, ...]
    """Fields that break rule 1: the document does not show them, or shows them twice."""
    stripped: Tuple[str, ...]
    """Reasoning of earlier answers that the template does not show here."""
    stops: bool
    """Whether rule 2 holds."""
    ends: bool
    """Whether rule 3 holds."""
    notes: Tuple[str, ...]
    in_whole: bool = False
    """Everything is trained (``data.train_on=all``). Then the rules do not apply. Only the prompt is compared."""

    @property
    def differs(self) -> bool:
        """Whether the model sees another text at inference."""
        return self.prompt is not None and not self.context.startswith(self.prompt)

    @property
    def warnings(self) -> Tuple[str, ...]:
        """What the user should know about this answer."""
        found = [
            (self.differs, CONTEXT_DIFFERS),
            (self.prompt is None, NO_PROMPT),
            (not self.stops, STOP_NOT_TRAINED),
            (not self.ends, AFTER_STOP),
        ]
        lost = tuple(f"the document does not show {field} exactly once" for field in self.lost)
        return (*lost, *(text for applies, text in found if applies), *self.notes)


def answers_of(document: Document, texts: List[Rendered], renderer: Renderer, max_seq_len: int) -> List[Answer]:
    """Return the answers of a record that are trained. A record that is a text has none.

    Args:
        document: The record.
        texts: Its documents, from ``render``.
        renderer: The renderer that made them.
        max_seq_len: Length of a row in tokens.
    """
    if texts and texts[0].whole is not None:
        return _answers_in_whole(document, texts[0], renderer)
    chats = [text for text in texts if text.planned is not None]
    if not chats:
        return []
    plans = [text.planned for text in chats if text.planned]
    without_reasoning = frozenset().union(*(planned.form.without_reasoning for planned in plans))
    sentinels = with_sentinels(
        apply(Form(without_reasoning=without_reasoning), document.messages),
        exact=frozenset().union(*(planned.exact for planned in plans)),
    )
    shown = render(replace(document, messages=sentinels.messages), renderer)
    found: List[Answer] = []
    for number, (text, with_words) in enumerate(zip(chats, shown, strict=True), 1):
        assert text.planned is not None
        encoding = renderer.tokenizer.backend_tokenizer.encode(text.text, add_special_tokens=False)
        for turn in text.planned.covered:
            start, end = _span_of(text, turn.number)
            trained = text.text[start:end]
            stop = _stop_at_end(trained, renderer)
            is_cut = overlapping_tokens(encoding, len(text.text), (end - 1, end)).stop > max_seq_len
            prompt = _prompt(document, turn.number, text.planned.form, renderer)
            stripped = [key for key in text.planned.stripped if key[0] < turn.number]
            found.append(Answer(
                document.location, turn.number + 1, number, len(chats), prompt, text.text[:start], trained,
                _lost(with_words.text, turn.number, sentinels, stripped),
                tuple(f"the reasoning of message {key[0] + 1}" for key in stripped),
                bool(stop), not stop or stop not in trained[: -len(stop)],
                turn.notes + ((CUT,) if is_cut else ()),
            ))  # fmt: skip
    return found


def _answers_in_whole(document: Document, text: Rendered, renderer: Renderer) -> List[Answer]:
    assert text.whole is not None
    found = []
    for number, message in enumerate(document.messages):
        prompt = _prompt(document, number, text.whole, renderer) if message["role"] == "assistant" else None
        if prompt is not None:
            same = common_length(prompt, text.text)
            context = text.text[: len(prompt) if same == len(prompt) else same + SHOWN_AFTER]
            found.append(Answer(
                document.location, number + 1, 1, 1, prompt, context, "", (), (), True, True, (), in_whole=True
            ))  # fmt: skip
    return found


def _prompt(document: Document, number: int, form: Form, renderer: Renderer) -> Optional[str]:
    prompt = renderer.chats.prompt_text(document, number, form) if number else None
    return None if prompt is None else with_one_bos(Rendered(prompt, []), renderer.bos).text


def _span_of(text: Rendered, number: int) -> Span:
    """Return the trained characters of an answer, from the first to the last."""
    planned = text.planned
    assert planned is not None
    [turn] = [turn for turn in planned.covered if turn.number == number]
    own = [
        real for real, (start, _) in zip(text.spans, planned.spans, strict=True) if turn.start <= start < turn.end
    ]  # fmt: skip
    return (own[0][0], own[-1][1]) if own else (len(text.text), len(text.text))


def _stop_at_end(trained: str, renderer: Renderer) -> str:
    """Return the special token at the end of a trained text, or an empty string."""
    found = [match for match in renderer.chats.special.finditer(trained) if match.end() == len(trained)]
    return str(found[-1][0]) if found else ""


def _lost(text: str, number: int, sentinels: Sentinels, stripped: List[FieldKey]) -> Tuple[str, ...]:
    """Return the fields of the messages up to an answer that break rule 1 in a text with sentinels."""
    counts = [0] * len(sentinels.keys)
    for match in SENTINEL.finditer(text):
        counts[int(match[1])] += 1
    lost = []
    for index, key in enumerate(sentinels.keys):
        message, name = key
        if message > number or key in stripped or name in ("name", "tool_call_id") or name.endswith(" id"):
            continue
        once = message == number and (name in ("content", "reasoning") or name.endswith(" end of arguments"))
        if not counts[index] or (once and counts[index] > 1):
            lost.append(f"{name.replace(' end of', '')} of message {message + 1}")
    return tuple(dict.fromkeys(lost))
