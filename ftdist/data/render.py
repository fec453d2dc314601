"""Render documents as text, tokenise the text, and mark the trained tokens.

Rendering also determines which characters are trained, as a list of character spans. A token is trained if it overlaps
a span. So the mask never depends on token ids (the padding token can be the same as the stop token), and no part of a
text is tokenised separately.
"""

import re
from dataclasses import dataclass
from typing import Any, List, Optional, Pattern, Tuple

import numpy as np

from ftdist.base.errors import DataError
from ftdist.config.schema import Format, TrainOn
from ftdist.data.messages import Message
from ftdist.data.records import Document

Span = Tuple[int, int]


@dataclass(frozen=True)
class Renderer:
    """Tokenizer, chat template and settings for rendering."""

    tokenizer: Any
    template: Optional[str]
    """Chat template, or None if the tokenizer has none."""
    train_on: TrainOn
    bos: str
    """Text of the BOS token. Empty if the tokenizer does not begin texts with one."""
    after_stop: Pattern[str]
    """Matches a special token and the white space after it, at the end of a span. Group 1 is the white space."""


@dataclass(frozen=True)
class Rendered:
    text: str
    spans: List[Span]
    """``(start, end)`` of the characters that are trained, in increasing order."""


@dataclass(frozen=True)
class Tokenised:
    ids: np.ndarray
    """[n] int32."""
    trained: np.ndarray
    """[n] uint8: 1 for trained tokens. The first token is never trained, because nothing predicts it."""
    answer_start: int
    """Index of the first token of the last trained span, or n if there is none. In a piece of a split document, it can
    be outside the piece."""


def make_renderer(tokenizer: Any, train_on: TrainOn) -> Renderer:
    """Create the renderer of a tokenizer. This switches off the tokenizer's own truncation and padding."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    alternatives = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    wants_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    tokenizer.backend_tokenizer.no_truncation()  # tokenizer.json can enable truncation and padding
    tokenizer.backend_tokenizer.no_padding()
    return Renderer(
        tokenizer,
        tokenizer.chat_template,
        train_on,
        tokenizer.bos_token if wants_bos else "",
        re.compile(f"(?:{alternatives})(\\s+)\\Z"),
    )


def render(document: Document, renderer: Renderer) -> Rendered:
    """Return the text of a document as the model sees it, and the characters that are trained.

    Raises:
        DataError: The chat template cannot render the document, the trained characters cannot be determined, or
            ``data.train_on`` does not fit the format. The message names the location of the document.
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
            f"{document.location}: the text contains an unpaired surrogate ({error.object[error.start]!a})",
            "valid Unicode text",
            "remove the \\ud… escape from the record",
        ) from error
    return _with_one_bos(text, spans, renderer.bos)


def tokenise(rendered: List[Rendered], renderer: Renderer) -> List[Tokenised]:
    """Tokenise texts and mark the tokens that overlap the trained spans."""
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
    """Return the meaning of ``data.train_on`` for this document, which is never ``auto``.

    Raises:
        DataError: The document has no such part.
    """
    if wanted is TrainOn.all:
        return wanted
    if document.format is Format.text:
        if wanted is TrainOn.auto:
            return TrainOn.all
        raise DataError(
            f"{document.location}: data.train_on={wanted.name}, but the record is plain text",
            "a chat, or a prompt and a completion",
            "data.train_on=auto (trains all tokens of plain text)",
        )
    if document.format is Format.prompt_completion:
        return TrainOn.completion if wanted is TrainOn.auto else wanted
    if wanted is TrainOn.completion:
        raise DataError(
            f"{document.location}: data.train_on=completion, but the record is a chat",
            "records with the fields prompt and completion",
            "data.train_on=assistant or last",
        )
    return TrainOn.assistant if wanted is TrainOn.auto else wanted


def _with_one_bos(text: str, spans: List[Span], bos: str) -> Rendered:
    """Make the text begin with exactly one BOS token, and move the spans accordingly.

    Some chat templates write the BOS token, others leave it to the tokenizer.
    """
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
    # Messages after the last answer are removed: nothing in them is trained.
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
            f"{document.location}: the chat template marks {len(marks)} generation blocks for {len(turns)} answers",
            "one {% generation %} block for each answer",
            "data.train_on=assistant, or correct the template",
        )
    return text, [_end_at_stop(text, span, renderer) for span in spans]


def _turn_span(document: Document, renderer: Renderer, text: str, turn: int) -> Span:
    """Return the span of one answer, for a template without generation marks.

    The conversation is rendered twice: up to the answer, and including it. The span is the difference. This requires
    that the full text begins with both of these texts.

    Args:
        text: The full text, which ends with the last answer.
        turn: Index of the answer in the messages.
    """
    before, _ = _apply(document, document.messages[:turn], renderer, add_generation_prompt=True)
    through = text  # correct for the last answer
    if turn < max(number for number, message in enumerate(document.messages) if message["role"] == "assistant"):
        through, _ = _apply(document, document.messages[: turn + 1], renderer)
    if text.startswith(before) and text.startswith(through) and len(through) > len(before):
        return len(before), len(through)
    if text.startswith(through):
        raise DataError(
            f"{document.location}: the chat template's generation prompt differs from the beginning of message "
            f"{turn + 1} (the prompt ends with {before[-40:]!r}), so the start of the answer cannot be found",
            "a template that marks answers with {% generation %}, or begins them with its generation prompt",
            "data.chat_template=chatml, or a Jinja file with {% generation %} around answers",
        )
    raise DataError(
        f"{document.location}: the chat template renders message {turn + 1} differently if more messages follow "
        "(for example, without its thinking), so the trained text cannot be found",
        "a template that marks answers with {% generation %}, or that never changes earlier messages",
        "data.train_on=last (trains the last answer only), or data.chat_template=chatml",
    )


def _end_at_stop(text: str, span: Span, renderer: Renderer) -> Span:
    """Remove white space after the stop token from the end of a span.

    Many templates write a line break there. A model stops before it, so it is not trained.
    """
    start, end = span
    found = renderer.after_stop.search(text, start, end)
    return (start, found.start(1)) if found else span


def _apply(
    document: Document, messages: List[Any], renderer: Renderer, add_generation_prompt: bool = False
) -> Tuple[str, Optional[List[Span]]]:
    """Render messages with the chat template.

    Returns:
        ``(text, marks)``: the spans of the generation blocks, or None if the template has no generation blocks.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    if renderer.template is None:
        raise DataError(
            f"{document.location}: the record is a chat, but the tokenizer has no chat template",
            "a chat template",
            "data.chat_template=chatml, or a Jinja file",
        )
    marked = has_generation_marks(renderer.template)
    if "reasoning_content" not in renderer.template:
        messages = [_with_inline_reasoning(message) for message in messages]
    try:
        texts, marks = render_jinja_template(
            [messages],
            tools=document.tools,
            chat_template=renderer.template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **renderer.tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template can raise any exception
        roles = ", ".join(message["role"] for message in messages)
        said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{document.location}: the chat template cannot render this conversation ({roles}): {said}",
            "a conversation that the template supports",
            "correct the record, or set data.chat_template",
        ) from error
    return texts[0], [tuple(mark) for mark in marks[0]] if marked else None


def _with_inline_reasoning(message: Message) -> Message:
    """Return a message with its reasoning in the content, for a template that knows no field for it."""
    if "reasoning_content" not in message:
        return message
    others = {name: value for name, value in message.items() if name != "reasoning_content"}
    return {**others, "content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"}


def has_generation_marks(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
