"""Render records as text, and determine which characters are trained."""

from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Dict, List, Optional, Tuple

from ftdist.base.errors import DataError
from ftdist.config.data import Format, TrainOn, Turns
from ftdist.data.chat_checks import stop_inside
from ftdist.data.chat_documents import ChatRenderer, special_tokens_pattern
from ftdist.data.chat_forms import Form
from ftdist.data.chat_plan import DocumentPlan
from ftdist.data.chat_template import ChatTemplate, Span
from ftdist.data.records import Document


@dataclass(frozen=True)
class Renderer:
    """Tokenizer, chat template and settings for rendering."""

    tokenizer: Any
    train_on: TrainOn
    chats: ChatRenderer
    bos: str
    """Text of the BOS token. Empty if the tokenizer does not begin texts with one."""


RoleSpan = Tuple[int, int, int]
"""``(start, end, role)``: characters, and the number of their role in ``ftdist.data.roles.ROLES``."""


@dataclass(frozen=True)
class Rendered:
    text: str
    spans: List[Span]
    """``(start, end)`` of the characters that are trained, in increasing order."""
    notes: Tuple[str, ...] = ()
    """What the user should know about how the document is trained."""
    answers: Tuple[int, ...] = ()
    """Numbers of the messages that are trained, in a chat whose answers are trained."""
    planned: Optional[DocumentPlan] = None
    """The plan of the document, in a chat whose answers are trained."""
    whole: Optional[Form] = None
    """The form in which the template got the messages, in a chat in which everything is trained."""
    roles: Tuple[RoleSpan, ...] = ()
    """The roles of its characters, as far as they are known. Only held-out documents have them."""


def make_renderer(
    tokenizer: Any, train_on: TrainOn, turns: Turns = Turns.auto, template_kwargs: Optional[Dict[str, Any]] = None,
    template_date: Optional[str] = None,
) -> Renderer:  # fmt: skip
    """Create the renderer of a tokenizer. This switches off the tokenizer's own truncation and padding.

    Args:
        tokenizer: From ``load_tokenizer``.
        train_on: ``data.train_on``.
        turns: ``data.turns``.
        template_kwargs: ``data.chat_template_kwargs``.
        template_date: ``data.chat_template_date``. None: the template sees the real date.
    """
    wants_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    tokenizer.backend_tokenizer.no_truncation()  # tokenizer.json can enable truncation and padding
    tokenizer.backend_tokenizer.no_padding()
    today = date.fromisoformat(template_date) if template_date else None
    named = getattr(tokenizer, "tool_use_template", None)
    default, with_tools = (
        ChatTemplate(text, tokenizer.special_tokens_map, template_kwargs or {}, today) if text else None
        for text in (tokenizer.chat_template, named)
    )
    chats = ChatRenderer(default, with_tools, special_tokens_pattern(tokenizer), tokenizer.eos_token, turns)
    return Renderer(tokenizer, train_on, chats, tokenizer.bos_token if wants_bos else "")


def render(document: Document, renderer: Renderer) -> List[Rendered]:
    """Return the documents of a record: their texts as the model sees them, and the characters that are trained.

    A text is one document. A chat is one document, or several if the chat template shows an answer differently when
    more messages follow (see ``data.turns``).

    Raises:
        DataError: The chat template cannot render the record or does not show all of it, or ``data.train_on`` does not
            fit the format. The message names the location of the record.
    """
    train_on = _train_on(document, renderer.train_on)
    if document.messages:
        made = _render_chat(document, renderer, train_on)
    else:
        eos = renderer.tokenizer.eos_token
        text = _without_stop(document.text, (eos,)) + eos
        if train_on is not TrainOn.all and text.count(eos, len(document.prompt)) > 1:
            raise stop_inside(f"{document.location}: the completion", eos)
        made = [Rendered(text, [(0 if train_on is TrainOn.all else len(document.prompt), len(text))])]
    for one in made:
        _check_unicode(document, one.text)
    if document.notes:
        made = [replace(one, notes=one.notes + document.notes) for one in made]
    return [with_one_bos(one, renderer.bos) for one in made]


def wanted_answers(document: Document, train_on: TrainOn) -> List[int]:
    """Return the numbers of the messages of a chat that are trained.

    Marks of the author are honored if ``train_on`` is ``auto`` and there are any, or if it is ``marked``.

    Raises:
        DataError: ``train_on`` is ``marked``, and no answer has a mark.
    """
    answers = [number for number, message in enumerate(document.messages) if message["role"] == "assistant"]
    marks = {number: document.marks[number] for number in answers if document.marks}
    is_marked = any(mark is not None for mark in marks.values())
    if train_on is TrainOn.marked and not is_marked:
        raise DataError(
            f"{document.location}: data.train_on=marked, but no answer has a mark",
            "answers with train, weight, loss or training",
            "mark the answers, or data.train_on=assistant",
            reason="no answer has a mark",
        )
    if is_marked and train_on in (TrainOn.auto, TrainOn.marked):
        chosen = [number for number in answers if marks[number]]
        if chosen or train_on is TrainOn.marked:
            return chosen
        return [number for number in answers if marks[number] is None]
    if train_on is TrainOn.last:
        return answers[-1:]
    in_completion = train_on in (TrainOn.auto, TrainOn.completion)
    return [number for number in answers if not in_completion or number >= document.num_prompt_messages]


def _render_chat(document: Document, renderer: Renderer, train_on: TrainOn) -> List[Rendered]:
    document = _without_stops(document, tuple({renderer.tokenizer.eos_token, renderer.chats.usual_stop()} - {""}))
    if train_on is TrainOn.all:
        text, form, notes = renderer.chats.whole(document)
        return [Rendered(text, [(0, len(text))], notes, whole=form)]
    wanted = wanted_answers(document, train_on)
    if not wanted:
        return [Rendered(renderer.chats.whole(document)[0], [])]
    # Messages after the last answer are removed: nothing in them is trained.
    return [
        Rendered(made.text, made.spans, made.planned.notes, made.planned.answers, made.planned)
        for made in renderer.chats.documents(document, wanted)
    ]


def _without_stops(document: Document, stops: Tuple[str, ...]) -> Document:
    """Remove the stop token at the end of answers: the template writes it."""
    if not any(message["content"].rstrip().endswith(stops) for message in document.messages):
        return document
    messages = [
        {**message, "content": _without_stop(message["content"], stops)} if message["role"] == "assistant" else message
        for message in document.messages
    ]
    return replace(document, messages=messages)


def _without_stop(text: str, stops: Tuple[str, ...]) -> str:
    """Return a text without the stop tokens at its end, and without the white space after these."""
    bare = text.rstrip()
    while found := next((stop for stop in stops if bare.endswith(stop)), ""):
        text = bare.removesuffix(found)
        bare = text.rstrip()
    return text


def _train_on(document: Document, wanted: TrainOn) -> TrainOn:
    """Return ``data.train_on`` for this document. For a plain text, ``auto`` becomes ``all``.

    Raises:
        DataError: The document does not have the part that should be trained.
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
            reason="plain text, which data.train_on does not train",
        )
    if wanted is TrainOn.completion and document.format is not Format.prompt_completion:
        raise DataError(
            f"{document.location}: data.train_on=completion, but the record is a chat",
            "records with the fields prompt and completion",
            "data.train_on=assistant or last",
            reason="a chat, but data.train_on=completion",
        )
    return wanted


def _check_unicode(document: Document, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{document.location}: the text contains an unpaired surrogate ({error.object[error.start]!a})",
            "valid Unicode text",
            "remove the \\ud… escape from the record",
            reason="an unpaired surrogate",
        ) from error


def with_one_bos(rendered: Rendered, bos: str) -> Rendered:
    """Make the text begin with exactly one BOS token, and move the spans accordingly.

    Some chat templates write the BOS token, others leave it to the tokenizer.
    """
    if not bos:
        return rendered
    bare = rendered.text
    while bare.startswith(bos):
        bare = bare[len(bos) :]
    shift = len(bos) + len(bare) - len(rendered.text)
    moved = [(max(start + shift, 0), end + shift) for start, end in rendered.spans]
    return replace(rendered, text=bos + bare, spans=moved)
