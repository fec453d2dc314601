"""Where an answer stands in a rendering with sentinels: its fields, its end, and what the template does not show."""

import re
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Pattern, Set, Tuple

from ftdist.data.chat_template import Span
from ftdist.data.skeleton import SENTINEL, FieldKey

Message = Dict[str, Any]


class CannotExpress(Exception):
    """The template does not show a part of the record. The text of the exception names the part."""


class Piece(NamedTuple):
    """A piece of a document: a part of the rendered prompt or turn, a field, or text."""

    source: str
    """``prompt``, ``turn``, ``field`` or ``text``."""
    start: int = 0
    end: int = 0
    text: str = ""
    key: Optional[FieldKey] = None


class Place(NamedTuple):
    """Where an answer is in the text of a document, with sentinels."""

    number: int
    """Number of the message."""
    start: int
    end: int
    has_prompt: bool
    """Whether the template can render the prompt."""
    notes: Tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """One answer as it looks when it was just generated, in a document of its own. Texts have sentinels."""

    number: int
    """Number of the message."""
    text: str
    """Text of the document."""
    start: int
    """Where the trained text begins. The text before it is the prompt, unless the prompt cannot be rendered."""
    end: int
    """Where the trained text ends, which is after the stop."""
    pieces: Tuple[Piece, ...]
    """How the text is made."""
    rendered: str
    """The rendering of the conversation up to the answer."""
    prompt: Optional[str]
    """The rendering of the prompt. None if the template cannot render it."""
    notes: Tuple[str, ...]

    @property
    def place(self) -> Place:
        return Place(self.number, self.start, self.end, self.prompt is not None, self.notes)

    def looks_same_in(self, later: "Turn") -> bool:
        """Whether a later document contains this answer after its own prompt, with its stop."""
        return later.text.startswith(self.text[: self.end])


def own_span(text: str, number: int, keys: List[FieldKey]) -> Tuple[int, int]:
    """Return where the first field of a message begins and where its last field ends.

    Raises:
        CannotExpress: The text has no field of the message.
    """
    own = [(match, keys[int(match[1])][1]) for match in SENTINEL.finditer(text) if keys[int(match[1])][0] == number]
    last = [match for match, name in own if not name.endswith(" id")]  # results repeat the ids of calls
    if not last:
        raise CannotExpress(f"message {number + 1}")
    if any(name == "reasoning" for _, name in own[1:]):
        raise CannotExpress(f"the reasoning of message {number + 1} before its answer")
    return own[0][0].start(), last[-1].end()


def check_shown(
    text: str, number: int, messages: List[Message], keys: List[FieldKey], opened: bool, named_ids: bool = False
) -> bool:
    """Check that a conversation up to an answer shows everything that it has to.

    The template may leave out the reasoning of earlier answers and the ids of calls, nothing else.

    Args:
        text: The conversation, with sentinels.
        number: Number of the answer.
        messages: The messages as the template gets them.
        keys: The field of each sentinel.
        opened: Whether the generation prompt, or the model itself, opens a think block. Then the reasoning can follow
            the prompt, even if the template removes it from answers.
        named_ids: Whether the id of a call has the name of its function. Then a template may write only the id, as
            Kimi's templates do.

    Returns:
        True if the text does not show the reasoning of the answer, but the reasoning can follow the prompt.

    Raises:
        CannotExpress: A field is missing, or it is shown twice.
    """
    if "ZQ" in SENTINEL.sub("", text):
        raise CannotExpress(f"all fields of the messages up to message {number + 1} in full")
    counts: Dict[int, int] = {}
    for match in SENTINEL.finditer(text):
        counts[int(match[1])] = counts.get(int(match[1]), 0) + 1
    hidden = False
    for index, (message, name) in enumerate(keys):
        if message > number or name in ("name", "tool_call_id") or name.endswith(" id"):
            continue
        count, role = counts.get(index, 0), messages[message]["role"]
        if name == "reasoning":
            hidden = hidden or (message == number and not count)
            if message == number and not count and not opened:
                raise CannotExpress(f"the reasoning of message {message + 1}")
        elif not count and named_ids and _stands_in_id(message, name, keys, counts):
            continue
        elif not count:
            what = "the tool calls" if name.startswith("call") else f"the content ({role})"
            raise CannotExpress(f"{what} of message {message + 1}")
        is_key = name.endswith(" arguments") and not name.endswith(" end of arguments")
        if message == number and count > 1 and not (name.endswith("name") or is_key):
            raise CannotExpress(f"the {name.removeprefix('call 0 ')} of message {message + 1} exactly once")
        if name.endswith(" arguments") and not name.endswith(" end of arguments"):
            _check_notation(text, index, message)
        if f"'text': 'QZ{index:05d}ZQ" in text or f"'thinking': 'QZ{index:05d}ZQ" in text:
            raise CannotExpress(f"the content of message {message + 1} as text")
    return hidden


def _stands_in_id(message: int, name: str, keys: List[FieldKey], counts: Dict[int, int]) -> bool:
    """Whether a field is the name of a call whose id is shown."""
    key = (message, name.removesuffix(" name") + " id")
    return name.endswith(" name") and key in keys and counts.get(keys.index(key), 0) > 0


def common_length(one: str, other: str) -> int:
    """Return the length of the longest common beginning of two texts."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


def _check_notation(text: str, index: int, message: int) -> None:
    sentinel = f"QZ{index:05d}ZQ"
    if f"'{sentinel}':" in text or f'\\"{sentinel}' in text:
        raise CannotExpress(f"the arguments of the tool calls of message {message + 1} as JSON")


def shows_tools(text: str, tools: Optional[List[Any]]) -> bool:
    """Whether a text has the names of all tools."""
    for tool in tools or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name not in text:
            return False
    return True


def check_one_turn(text: str, number: int, special: Pattern[str], eos: str) -> None:
    """Check that a template writes all fields of an answer in one turn. A model stops at the EOS token.

    Args:
        text: The answer, from its first to its last field.
        number: Number of the message.
        special: Matches a special token. A special token after the EOS token begins another turn.
        eos: The EOS token.
    """
    if any(special.match(rest.lstrip()) for rest in text.split(eos)[1:]):
        raise CannotExpress(f"all of message {number + 1} in one turn: it writes {eos} between its parts")


UNIT = re.compile(r"</?[^<>\s]+>|\[/?[^\[\]\s]+\]|\w+|\S")
"""A tag, a word, or another character. White space is not a unit."""


def common_header(prompt: str, lead: str) -> Tuple[int, int]:
    """Return the length of the common beginning of a generation prompt and the text before an answer, in each of them.

    White space and capital letters may differ. A tag or a word is never cut, so ``<think>`` and ``</think>`` have
    nothing in common.

    Args:
        prompt: The prompt after its last field.
        lead: The text between that field and the first field of the answer, as the template writes answers.
    """
    used, end = 0, 0
    for unit, own in zip(UNIT.finditer(prompt), UNIT.finditer(lead), strict=False):
        if unit[0].casefold() != own[0].casefold():
            break
        used, end = unit.end(), own.end()
    end += _repeated(prompt[used:], lead[end:])
    rest, own_rest = prompt[used:], lead[end:]
    space, own_space = (len(text) - len(text.lstrip()) for text in (rest, own_rest))
    if rest.isspace():
        return len(prompt), end + (space if own_rest.startswith(rest) else own_space)
    return used, end + min(space, own_space)


def _repeated(rest: str, lead: str) -> int:
    """Return how much of the beginning of ``lead`` stands at the end of ``rest``."""
    units, own = UNIT.findall(rest), list(UNIT.finditer(lead))
    lengths = [n for n in range(1, min(len(units), len(own)) + 1) if units[-n:] == [unit[0] for unit in own[:n]]]
    return own[lengths[-1] - 1].end() if lengths else 0


def has_words(text: str) -> bool:
    """Whether a text has words outside tags."""
    return any(re.fullmatch(r"\w+", unit) for unit in UNIT.findall(text))


def check_end(prompt: str, end: str) -> None:
    """Check that the text after an answer belongs to the answer.

    Templates that ask for a judgment of a conversation (Llama Guard) write the same after any last message.

    Args:
        prompt: The prompt after its last field.
        end: The text after the last field of the answer, without the stop.

    Raises:
        CannotExpress: The two begin with the same words.
    """
    if has_words(end[: common_header(prompt, end)[1]]):
        raise CannotExpress(f"where an answer ends: it writes {end.strip()[:40]!r} after any last message")


def context_end(text: str, number: int, keys: List[FieldKey]) -> int:
    """Return where the last field before a message ends, or 0."""
    return max((match.end() for match in SENTINEL.finditer(text) if keys[int(match[1])][0] < number), default=0)


def turn_end(
    text: str, last: int, following: Optional[str], is_call: bool, special: Pattern[str], openers: Set[str], eos: str,
    header: str = "",
) -> Tuple[int, str]:  # fmt: skip
    """Return where an answer ends, which is after its stop, and the stop if it has to be added.

    The stop is the first special token after the answer, and those that follow it directly. A call ends at the last
    special token before the next message, because the first one can be the end of the arguments.

    Args:
        text: The conversation up to the answer.
        last: Where the last field of the answer ends.
        following: What the template writes after that field if another message follows. A token that it writes only at
            the end of a conversation (an EOS token after the stop) is no part of the answer, unless it is the only
            stop.
        is_call: Whether the answer ends with a tool call.
        special: Matches a special token.
        openers: Special tokens that begin a message.
        eos: The stop if the template writes none.
        header: The template's text before the answer. Some templates also write it after the last message. There it
            begins the next answer, and is not the end of this one.
    """
    tail = text[last:]
    common = tail if following is None else tail[: common_length(tail, following)]
    if following and special.search(tail) and header.rstrip().endswith(tail.strip()) and not special.search(common):
        tail = ""
    for part in (common, tail):
        stops = list(special.finditer(part))
        end = 0
        for number, stop in enumerate(stops):
            if number and (stop[0] in openers or not (is_call or (stop.start() == end and stop[0] != stops[0][0]))):
                break
            end = stop.end()
            if stop[0] == eos:
                break
        if end:
            return last + end, ""
    body = tail.rstrip()
    next_token = special.search(following or "")
    if following and next_token and following[: next_token.start()].strip() == body.strip():
        return last + len(body), following[len(body) : next_token.end()]
    return last + len(body), eos


def closes_part(token: str, answer: str, special: Pattern[str]) -> bool:
    """Whether a special token closes a part of an answer that another one opens, as ``<call_end>`` does after
    ``<call_begin>``. The model does not stop at such a token.
    """
    words = _words(token)
    return bool(words) and any(_words(one) == words for one in special.findall(answer) if one != token)


def _words(token: str) -> Set[str]:
    return set(re.findall(r"[^\W_]+", token.lower())) - {"begin", "start", "end"}


def marked_parts(text: str, span: Span, marks: List[Span], special: Pattern[str]) -> List[Span]:
    """Return the parts of an answer that the template's author marked with ``{% generation %}``, and the stop.

    Args:
        text: The conversation.
        span: The answer with its stop.
        marks: The marked characters of the conversation.
        special: Matches a special token.
    """
    start, end = span
    inside = [(max(start, a), min(end, b)) for a, b in marks if max(start, a) < min(end, b)]
    if inside and text[start : inside[0][0]].isspace():
        inside[0] = (start, inside[0][1])
    if not inside or inside[-1][1] == end:
        return inside
    stop = [match.start() for match in special.finditer(text, start, end) if match.end() == end]
    if stop and stop[0] <= inside[-1][1]:
        return [*inside[:-1], (inside[-1][0], end)]
    return [*inside, (stop[0], end)] if stop else inside
