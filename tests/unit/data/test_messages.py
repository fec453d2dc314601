"""The content, the reasoning and the marks of a message."""

from typing import Any

import pytest

from tests.unit.data_tools import ANSWER, QUESTION, THOUGHT, chat, message, read


def test_text_parts_of_a_content_are_joined() -> None:
    for kind in ("text", "input_text", "output_text"):
        parts = [{"type": kind, "text": "q"}, {"type": kind, "text": "?"}]
        assert read({"messages": [{"role": "user", "content": parts}, ANSWER]}).messages[0]["content"] == "q?"


PARTS_OF_PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "r"}, {"type": "text", "text": None}]},
    {"type": "text", "text": ["", {"text": ["a"]}]},
]


PARTS = [{"type": "thinking", "thinking": "r", "text": None}, {"type": None, "text": "a"}]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (THOUGHT, THOUGHT),
        (ANSWER | {"thinking": "r\n"}, THOUGHT),
        (ANSWER | {"reasoning": "r"}, THOUGHT),
        ({"role": "assistant", "content": "<think>\nr\n</think>\n\na"}, THOUGHT),
        ({"role": "assistant", "content": "<think>r</think>a", "reasoning_content": "r", "reasoning": "r "}, THOUGHT),
        ({"role": "assistant", "content": "r\n</think>\n\na"}, THOUGHT),
        ({"role": "assistant", "content": PARTS}, THOUGHT),
        ({"role": "assistant", "content": PARTS_OF_PARTS}, THOUGHT),
        ({"role": "assistant", "content": "<think>\n\n</think>\n\na"}, ANSWER),
        *(({"role": "assistant", "content": text}, {"role": "assistant", "content": text}) for text in (
            "<think> opens it", "the tag </think> ends it", "use <think> and\n</think>\nhere", "\n</think>\n\n</think>",
        )),
    ],
)  # fmt: skip
def test_every_shape_of_reasoning_gives_the_same_message(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert message([QUESTION, answer]) == expected


@pytest.mark.parametrize("name", ["train", "weight", "loss", "training"])
def test_marks_of_the_author_are_read(name: str) -> None:
    marked = read([QUESTION, ANSWER | {name: 0}, QUESTION | {name: None}, ANSWER | {name: True}])
    assert marked.marks == [None, False, None, True]
    assert marked.messages == [QUESTION, ANSWER] * 2
    assert read({**chat("q", "a"), "system": "s"}).marks is None
    assert read({"messages": [ANSWER | {name: 1}], "system": "s"}).marks == [None, True]
