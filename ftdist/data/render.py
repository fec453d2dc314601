"""Documents → token ids and which of them are trained: rendered and tokenised in one step, by character offsets.

What is trained is a list of character spans of the rendered text. A token is trained where it overlaps a span. So a
mask never depends on comparing ids (a padding token may equal the stop token) or on tokenising parts separately.
"""

import re
from dataclasses import dataclass
from typing import Any, List, Optional, Pattern, Tuple

import numpy as np

from ftdist.base.errors import DataError
from ftdist.config.schema import Format, TrainOn
from ftdist.data.records import Document

Span = Tuple[int, int]
NO_SPAN: Span = (0, 0)


@dataclass(frozen=True)
class Renderer:
    """What rendering needs to know; made once by make_renderer."""

    tokenizer: Any
    template: Optional[str]
    train_on: TrainOn
    bos: str
    """The token that begins every document, or empty where the model wants none."""
    after_stop: Pattern[str]
    """Matches a special token and the white space after it at the end of a span."""


@dataclass(frozen=True)
class Rendered:
    text: str
    spans: List[Span]
    """Characters that are trained, in order."""


@dataclass(frozen=True)
class Tokenised:
    ids: np.ndarray
    """[n] int32."""
    trained: np.ndarray
    """[n] uint8, 1 where the token is trained. The first is 0: nothing comes before it that it could follow from."""
    answer_start: int
    """First token of the last trained span, n where it was cut off."""


def make_renderer(tokenizer: Any, train_on: TrainOn) -> Renderer:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    alternatives = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    wants_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer.json may ask for either
    tokenizer.backend_tokenizer.no_padding()
    return Renderer(
        tokenizer,
        tokenizer.chat_template,
        train_on,
        tokenizer.bos_token if wants_bos else "",
        re.compile(f"(?:{alternatives})(\\s+)\\Z"),
    )


def render(document: Document, renderer: Renderer) -> Rendered:
    """The text of a document as the model sees it, and the characters of it that are trained.

    Raises:
        DataError: names the document's location; see the rules in ``docs/design.md``.
    """
    train_on = _train_on(document, renderer.train_on)
    if document.messages:
        text, spans = _render_chat(document, renderer, train_on)
    else:
        text = document.text + renderer.tokenizer.eos_token
        spans = [(0 if train_on is TrainOn.all else len(document.prompt), len(text))]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{document.location}: the text holds half of a surrogate pair ({error.object[error.start]!a})",
            "Unicode text",
            "remove the \\ud… escape from the record",
        ) from error
    return _with_one_bos(text, spans, renderer.bos)


def tokenise(rendered: List[Rendered], renderer: Renderer) -> List[Tokenised]:
    """Tokenise texts and carry their spans over to tokens."""
    encodings = renderer.tokenizer.backend_tokenizer.encode_batch([r.text for r in rendered], add_special_tokens=False)
    return [_mark(encoding, r.spans) for encoding, r in zip(encodings, rendered, strict=True)]


def _mark(encoding: Any, spans: List[Span]) -> Tokenised:
    ids = np.array(encoding.ids, dtype=np.int32)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    trained = np.zeros(len(ids), dtype=np.uint8)
    overlap = trained.view(bool)
    for start, end in spans:
        overlap = (starts < end) & (ends > start)
        trained[overlap] = 1
    trained[:1] = 0
    return Tokenised(ids, trained, int(overlap.argmax()) if overlap.any() else len(ids))


def _train_on(document: Document, wanted: TrainOn) -> TrainOn:
    """What ``auto`` means for this document; refuses what the document does not have."""
    if wanted is TrainOn.all:
        return wanted
    if document.format is Format.text:
        if wanted is TrainOn.auto:
            return TrainOn.all
        raise DataError(
            f"{document.location}: data.train_on={wanted.name}, but the record is plain text",
            "a chat, or a prompt and a completion",
            "data.train_on=auto (trains all of plain text)",
        )
    if document.format is Format.prompt_completion:
        return TrainOn.completion if wanted is TrainOn.auto else wanted
    if wanted is TrainOn.completion:
        raise DataError(
            f"{document.location}: data.train_on=completion, but the record is a chat",
            "records with prompt and completion",
            "data.train_on=assistant or last",
        )
    return TrainOn.assistant if wanted is TrainOn.auto else wanted


def _with_one_bos(text: str, spans: List[Span], bos: str) -> Rendered:
    """Some templates write the BOS and some leave it to the tokenizer: here it is in the text, once."""
    if not bos:
        return Rendered(text, spans)
    bare = text
    while bare.startswith(bos):
        bare = bare[len(bos) :]
    shift = len(bos) + len(bare) - len(text)
    moved = [(max(start + shift, 0), end + shift) for start, end in spans]
    return Rendered(bos + bare, moved)


def _render_chat(document: Document, renderer: Renderer, train_on: TrainOn) -> Tuple[str, List[Span]]:
    messages = document.messages
    if train_on is TrainOn.all:
        text, _ = _apply(document, messages, renderer)
        return text, [(0, len(text))]
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        text, _ = _apply(document, messages, renderer)
        return text, []
    # What comes after the last answer teaches nothing.
    text, marks = _apply(document, messages[: turns[-1] + 1], renderer)
    first = {TrainOn.assistant: 0, TrainOn.last: turns[-1], TrainOn.completion: document.num_prompt_messages}[train_on]
    wanted = [number for number in turns if number >= first]
    if marks is None:
        spans = [_turn_span(document, renderer, text, number) for number in wanted]
    elif len(marks) == len(turns):
        spans = [marks[turns.index(number)] for number in wanted]
    elif train_on is TrainOn.assistant:
        spans = marks
    else:
        raise DataError(
            f"{document.location}: the template marks {len(marks)} generations in {len(turns)} answers",
            "one {% generation %} block for each answer",
            "data.train_on=assistant, or mend the template",
        )
    return text, [_end_at_stop(text, span, renderer) for span in spans]


def _turn_span(document: Document, renderer: Renderer, text: str, turn: int) -> Span:
    """Where an answer stands in the text of a template without generation marks: between the conversation rendered up
    to it and the conversation rendered with it. Both must be how the whole conversation begins."""
    before, _ = _apply(document, document.messages[:turn], renderer, add_generation_prompt=True)
    through = text  # that is all of it, where this is the last answer
    if turn < max(number for number, message in enumerate(document.messages) if message["role"] == "assistant"):
        through, _ = _apply(document, document.messages[: turn + 1], renderer)
    if text.startswith(before) and text.startswith(through) and len(through) > len(before):
        return len(before), len(through)
    if text.startswith(through):
        raise DataError(
            f"{document.location}: the chat template's generation prompt is not how it begins message {turn + 1} "
            f"(it ends {before[-40:]!r}), so the answer cannot be told from its prompt",
            "a template that marks answers with {% generation %}, or whose generation prompt begins an answer",
            "data.chat_template=chatml, or a Jinja file with {% generation %} around answers",
        )
    raise DataError(
        f"{document.location}: the chat template renders message {turn + 1} otherwise once more messages follow "
        "(e.g. it leaves the thinking of earlier answers out), so what is trained cannot be told from the whole text",
        "a template that marks answers with {% generation %}, or one that only appends",
        "data.train_on=last (trains the last answer only), or data.chat_template=chatml",
    )


def _end_at_stop(text: str, span: Span, renderer: Renderer) -> Span:
    """The stop token is trained; the line break that many templates write after it is not: it is never generated."""
    start, end = span
    found = renderer.after_stop.search(text, start, end)
    return (start, found.start(1)) if found else span


def _apply(
    document: Document, messages: List[Any], renderer: Renderer, add_generation_prompt: bool = False
) -> Tuple[str, Optional[List[Span]]]:
    """Render messages; the marked spans are None where the template has no generation marks."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    if renderer.template is None:
        raise DataError(
            f"{document.location}: the record is a chat, but the tokenizer has no chat template",
            "a chat template",
            "data.chat_template=chatml, or a Jinja file",
        )
    marked = has_marks(renderer.template)
    try:
        texts, marks = render_jinja_template(
            [messages],
            tools=document.tools,
            chat_template=renderer.template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **renderer.tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template can fail in any way
        roles = ", ".join(message["role"] for message in messages)
        said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{document.location}: the chat template refuses this conversation ({roles}): {said}",
            "a conversation that the template can render",
            "mend the record, or set data.chat_template",
        ) from error
    return texts[0], [tuple(mark) for mark in marks[0]] if marked else None


def has_marks(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
