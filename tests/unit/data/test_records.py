"""Reading records of every format, and the messages about invalid records."""

from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.schema import Format
from tests.unit.data_tools import chat, read

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def test_formats_are_recognised_by_their_fields() -> None:
    alpaca = {"instruction": "add", "input": "1 2", "output": "3", "system": None}
    sharegpt = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}
    assert read({"text": "t", "id": 3}).format is Format.text
    assert read(chat("q", "a")).messages == [QUESTION, ANSWER]
    assert read({"prompt": "p", "completion": "c"}).text == "pc"
    assert read(alpaca).messages == [{"role": "user", "content": "add\n\n1 2"}, {"role": "assistant", "content": "3"}]
    assert read(sharegpt).messages == [{"role": "system", "content": "s"}, QUESTION, ANSWER]
    of_messages = read({"prompt": [QUESTION], "completion": [ANSWER]})
    assert (of_messages.messages, of_messages.num_prompt_messages) == ([QUESTION, ANSWER], 1)


def test_tools_and_tool_calls_are_kept_and_null_fields_are_removed() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    messages = [
        QUESTION | {"tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add"},
        ANSWER,
    ]
    document = read({"messages": messages, "tools": '[{"name": "add"}]'})
    assert document.tools == [{"name": "add"}]
    assert document.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert document.messages[0] == QUESTION
    assert document.messages[2]["name"] == "add"


def test_text_parts_of_a_content_are_joined() -> None:
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]
    assert read({"messages": [{"role": "user", "content": parts}, ANSWER]}).messages[0]["content"] == "q?"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (["a"], "file:1: the record is a list"),
        (
            {"question": "q", "reply": "a"},
            "file:1: the record has the fields question, reply, which match no known format",
        ),
        ({"messages": []}, "file:1: the list of messages is empty"),
        ({"messages": "hello"}, "file:1: the messages are a string"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "file:1, message 1 has the role 'robot'"),
        ({"messages": [{"from": "human", "value": "x"}]}, "file:1, message 1 has no role; its fields are: from, value"),
        ({"messages": [QUESTION, {"role": "assistant", "content": ""}]}, "file:1, message 2 (assistant) is empty"),
        ({"messages": ["hi"]}, "file:1, message 1 is a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 has content that is a list"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1 has content that is a number"),
        ({"messages": [QUESTION, ANSWER], "tools": "{"}, "file:1: tools is a string that is not JSON"),
        ({"text": 3}, "file:1: text is a number"),
        ({"text": " \n"}, "file:1: text is empty"),
        ({"text": None}, "file:1: the record has no fields"),
        ({"instruction": "", "output": "x"}, "file:1: instruction is empty"),
        ({"prompt": "p", "completion": ""}, "file:1: the completion is empty"),
        ({"prompt": "p", "completion": [ANSWER]}, "file:1: prompt is a string and completion is a list"),
        ({"prompt": [QUESTION], "completion": [QUESTION]}, "file:1: the completion has no assistant message"),
    ],
)
def test_an_invalid_record_is_refused(record: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(record)
    assert said in caught.value.found
    assert caught.value.expected


def test_a_record_of_another_format_is_refused_with_the_required_fields() -> None:
    with pytest.raises(DataError) as caught:
        read({"text": "t"}, Format.alpaca)
    assert "has the fields text" in caught.value.found
    assert "instruction, output" in caught.value.expected
