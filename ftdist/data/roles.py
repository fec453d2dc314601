"""The roles of the parts of documents, so that the losses of tokens can be added up by role.

An answer begins with its first trained character and ends with the last one. Inside an answer, the reasoning ends with
its text, and tool calls begin after the content. The template's text before a part belongs to this part. The stop token
belongs to the last part.
"""

from dataclasses import replace
from typing import Dict, Iterator

from ftdist.base.errors import DataError
from ftdist.config.data import Format, TrainOn
from ftdist.data.chat_template import Span
from ftdist.data.messages import Message
from ftdist.data.records import Document
from ftdist.data.render import Rendered, Renderer, RoleSpan, render

ROLES = ("not known", "text", "prompt", "completion", "system", "user", "tool", "assistant", "reasoning", "tool call")
"""The name of each role by its number in prepared data. Numbers are never given to another role."""
UNKNOWN, TEXT, PROMPT, COMPLETION, _, _, _, ASSISTANT, REASONING, CALL = range(len(ROLES))


def with_roles(document: Document, rendered: Rendered, renderer: Renderer) -> Rendered:
    """Return a document with the roles of its characters.

    In a chat in which everything is trained, the roles are known only if the template shows all contents as they are,
    and shows no answer differently when more messages follow.
    """
    if not document.messages:
        cut = rendered.text.find(document.prompt) + len(document.prompt) if document.prompt else 0
        spans = [(0, cut, PROMPT), (cut, len(rendered.text), TEXT if document.format is Format.text else COMPLETION)]
    elif rendered.planned is None:
        spans = list(_whole(document, rendered.text, _answers_of_whole(document, rendered, renderer)))
    else:
        spans = [span for number, (start, end) in _answers(rendered).items()
                 for span in _answer(document.messages[number], rendered.text, start, end)]  # fmt: skip
    return replace(rendered, roles=tuple(span for span in spans if span[0] < span[1]))


def _answers(rendered: Rendered) -> Dict[int, Span]:
    """Return where each trained answer begins and ends, by the number of its message."""
    assert rendered.planned is not None
    found: Dict[int, Span] = {}
    for place in rendered.planned.covered:
        own = [real for real, plan in zip(rendered.spans, rendered.planned.spans, strict=True)
               if place.start <= plan[0] and plan[1] <= place.end]  # fmt: skip
        if own:
            found[place.number] = own[0][0], own[-1][1]
    return found


def _answer(message: Message, text: str, start: int, end: int) -> Iterator[RoleSpan]:
    thought, content = (message.get("reasoning_content") or "").strip(), message["content"].strip()
    place = text.find(thought, start, end) if thought else -1
    if place >= 0:
        place += len(thought)
        yield start, place, REASONING
        start = place
    if message.get("tool_calls"):
        place = text.find(content, start, end)
        place = end if place < 0 else place + len(content) if content else start
        yield start, place, ASSISTANT
        yield place, end, CALL
    else:
        yield start, end, ASSISTANT


def _answers_of_whole(document: Document, rendered: Rendered, renderer: Renderer) -> Dict[int, Span]:
    """Return the answers of a chat in which everything is trained. The result is empty if the template shows them
    differently when only the answers are trained."""
    try:
        made = render(document, replace(renderer, train_on=TrainOn.assistant))
    except DataError:
        return {}
    same = len(made) == 1 and made[0].planned and rendered.text.startswith(made[0].text[: made[0].spans[-1][1]])
    return _answers(made[0]) if same else {}


def _whole(document: Document, text: str, answers: Dict[int, Span]) -> Iterator[RoleSpan]:
    """Yield the parts of a chat in which everything is trained, up to the first message that is not found."""
    place, role = 0, UNKNOWN
    for number, message in enumerate(document.messages):
        if message["role"] == "assistant":
            if number not in answers:
                return
            start, end = answers[number]
            yield place, start, role
            yield from _answer(message, text, start, end)
        else:
            content = message["content"].strip()
            found = text.find(content, place)
            if found < 0:
                return
            end = found + len(content)
            yield place, end, ROLES.index(message["role"])
        place, role = end, ROLES.index(message["role"])
    yield place, len(text), role
