"""Fields of a record beside its messages: a system message, earlier turns, reasoning."""

import json
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import Format, Reasoning
from ftdist.data.records import read_record
from tests.unit.data_tools import ANSWER, QUESTION, SYSTEM, THOUGHT, chat, message, read


def test_other_fields_of_a_question_become_part_of_the_chat() -> None:
    question = {"role": "user", "content": "q\n\nc"}
    assert read({"instruction": "q", "context": "c", "response": "a", "category": "x"}).messages == [question, ANSWER]
    assert read({"instruction": "q", "input": "c", "response": "a"}).messages == [question, ANSWER]
    assert read({"system_prompt": "s", "question": "q", "response": "a"}).messages == [SYSTEM, QUESTION, ANSWER]
    earlier = [["q", "a"], ["q", "a"]]
    alpaca = {"instruction": "q", "output": "a", "input": "", "system": "s"}
    assert read({**alpaca, "history": earlier}).messages == [SYSTEM, *[QUESTION, ANSWER] * 3]
    assert read({**alpaca, "history": json.dumps(earlier)}).messages == [SYSTEM, *[QUESTION, ANSWER] * 3]
    assert read({**alpaca, "history": []}).messages == [SYSTEM, QUESTION, ANSWER]
    assert message({"question": "q", "answer": "a", "reasoning": "r"}) == ANSWER | {"reasoning_content": "r"}
    for same in (chat("q", "a", system="s"), chat("q", "a")):
        assert read({**same, "system": "s"}).messages == [SYSTEM, QUESTION, ANSWER]


@pytest.mark.parametrize(
    "record",
    [
        chat("q", "a"),
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": "q", "completion": [ANSWER]},
        {"instruction": "q", "output": "a"},
    ],
)
def test_fields_beside_the_messages_become_part_of_the_chat(record: Any) -> None:
    earlier = {"history": [["q0", "a0"]], "system_message": "s", "reasoning": "r", "thinking": True}
    found = read({**record, **earlier})
    before = [SYSTEM, QUESTION | {"content": "q0"}, ANSWER | {"content": "a0"}]
    assert found.messages == [*before, QUESTION, THOUGHT]
    assert found.num_prompt_messages == (4 if "completion" in record else 0)
    assert read({**record, "history": "[]", "system": " ", "reasoning": "off"}).messages == [QUESTION, ANSWER]
    dropped = read_record("file:1", {**record, **earlier}, Format.auto, reasoning=Reasoning.drop)
    assert dropped.messages == [*before, QUESTION, ANSWER]


def test_fields_that_say_the_same_as_the_messages_are_not_repeated() -> None:
    messages = [SYSTEM, QUESTION, ANSWER, QUESTION, THOUGHT]
    same = {"system": "s", "history": [["q", "a"]], "reasoning": "r", "reasoning_content": "r"}
    assert read({"messages": messages, **same}).messages == messages
    assert read({"messages": messages, "history": messages[:3]}).messages == messages
    text = {"prompt": "s\nq\na\nq", "completion": "<think>r</think>a"}
    assert read({**text, **same}).text == "s\nq\na\nq<think>r</think>a"


def test_the_proposed_fields_make_a_chat_of_a_prompt_with_a_system_message() -> None:
    record = {"prompt": "q", "completion": "a", "system": "s"}
    with pytest.raises(DataError, match="system") as caught:
        read(record)
    assert "fields='{instruction: prompt, output: completion}'" in caught.value.fix
    fields = {"instruction": "prompt", "output": "completion"}
    assert read_record("file:1", record, Format.auto, fields).messages == [SYSTEM, QUESTION, ANSWER]
    with pytest.raises(DataError, match="file:1: completion is empty"):
        read_record("file:1", {**record, "completion": ""}, Format.auto, fields)
