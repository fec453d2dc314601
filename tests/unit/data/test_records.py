"""Reading records of every format, and the messages about invalid records."""

import json
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import Format, Reasoning
from ftdist.data.records import Document, read_record
from tests.unit.data_tools import ANSWER, CALL, QUESTION, SYSTEM, THOUGHT, chat, read


def _called(name: str, arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def _parts(*parts: Any) -> Any:
    return [QUESTION, {"role": "assistant", "content": [*parts, "a"]}]


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


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("a", "file:1: the record is a string"),
        (["a"], "file:1, message 1 is a string"),
        ([], "file:1: the record is a list"),
        (
            {"question": "q", "reply": "a"},
            "file:1: the record has the fields question, reply, which match no known format",
        ),
        ({"messages": []}, "file:1: the list of messages is empty"),
        ({"messages": "hello"}, "file:1: the messages are a string"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "file:1, message 1 has the role 'robot'"),
        (
            {"messages": [{"speaker": "x", "value": "x"}]},
            "file:1, message 1 has no role; its fields are: speaker, value",
        ),
        ({"messages": [QUESTION, {"role": "assistant", "content": ""}]}, "file:1, message 2 (assistant) is empty"),
        ({"messages": ["hi"]}, "file:1, message 1 is a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 has content that is a list"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1 has content that is a number"),
        ({"messages": [QUESTION, ANSWER], "tools": "{"}, "file:1: tools is a string that is not JSON"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " \n"}]}, "message 2 (assistant) is empty"),
        ({"messages": [QUESTION, {"role": "assistant", "reasoning_content": "r"}]}, "message 2 (assistant) is empty"),
        ({"messages": [{"role": "user", "content": "\t"}, ANSWER]}, "file:1, message 1 (user) is empty"),
        ({"messages": [QUESTION, ANSWER | {"weight": 0.5}]}, "file:1, message 2 has weight=0.5"),
        ({"messages": [QUESTION, {"role": "function_call", "value": "no call"}]}, "a call that is not JSON: 'no call'"),
        ({"messages": [QUESTION, {"role": "function_call", "value": ""}]}, "message 2 (function_call) is empty"),
        ({"messages": [QUESTION, _called("f", "[1]")]}, "message 2 calls f with arguments that are not a JSON object"),
        ({"messages": [QUESTION, _called("f", {"x": b"1"})]}, "f with arguments that are not a JSON object"),
        ({"messages": [QUESTION, _called("f", '{"x": NaN}')]}, "f with arguments that are not a JSON object"),
        (
            [QUESTION, ANSWER, {"role": "tool", "content": {"x": b"1"}}, ANSWER],
            "message 3 has content that is an object",
        ),
        (
            [QUESTION, ANSWER, {"role": "tool", "output": "r"}, ANSWER],
            "message 3 (tool) has no content; its fields are",
        ),
        ([QUESTION, ANSWER | {"function_calls": "f(x=1)"}], "message 2 has a call that is not JSON: 'f(x=1)'"),
        (
            [QUESTION, ANSWER | {"tool_call": CALL, "function_call": {"name": "f"}}],
            "its fields function_call and tool_call hold different calls",
        ),
        ({**chat("q", "a"), "images": ["x.png"]}, "file:1 has images, and only texts are trained"),
        ([QUESTION | {"image": {"bytes": b"1"}}, ANSWER], "message 1 has image, and only texts are trained"),
        (
            {"messages": [SYSTEM | {"tools": [{"name": "f"}]}, QUESTION, ANSWER], "tools": [{"name": "g"}]},
            "the lists of tools in the messages and in the record are not the same",
        ),
        ({"messages": [QUESTION, _called("", "{}")]}, "message 2 has a call without the name of a function"),
        ({"messages": [QUESTION, ANSWER], "tools": 3}, "file:1: tools is not a list"),
        (_parts({"type": "text", "text": {"a": 1}}), "message 2 has a part whose text is an object"),
        (_parts({"type": "text", "text": ["x", {"type": "image"}]}), "message 2 has a part whose text is a list"),
        (_parts({"type": "thinking", "thinking": [3]}), "message 2 has a part whose thinking is a list"),
        (_parts({"type": "text", "content": "x"}), "a part of type text without text; its fields are: type, content"),
        ([{"role": "user", "content": [{"type": "thinking", "thinking": "r"}]}, ANSWER], "parts of type thinking"),
        ([QUESTION, ANSWER | {"reasoning": "r", "thinking": "s"}], "different reasonings in thinking and reasoning"),
        (
            [QUESTION, ANSWER | {"content": "<think>r</think>a", "reasoning": "s"}],
            "reasonings in <think> and reasoning",
        ),
        (
            [QUESTION, ANSWER, {"role": "function_call", "value": CALL, "reasoning": "r"}],
            "message 3 continues an answer that does not have this reasoning",
        ),
        (chat("q", "a") | {"chat_template_kwargs": {"tools": []}}, "file:1: chat_template_kwargs has tools"),
        (chat("q", "a") | {"chat_template_kwargs": '{"tokenize": false}'}, "chat_template_kwargs has tokenize"),
        ([QUESTION, ANSWER | {"train": True, "weight": 0}], "message 2 has train=True and weight=0"),
        (
            [QUESTION, ANSWER | {"tool_calls": [CALL], "function_call": {"name": "f", "arguments": "{}"}}],
            "message 2: its fields tool_calls and function_call hold different calls",
        ),
        ({"messages": [QUESTION, ANSWER], "chat_template_kwargs": "x"}, "chat_template_kwargs is not an object"),
        ({"messages": [SYSTEM, QUESTION, ANSWER], "system": "t"}, "the field system and another system message"),
        ({"question": "q", "response": "a", "answer": "b"}, "response and answer can each be the answer"),
        ({"query": "q", "question": "q", "answer": "b"}, "question and query can each be the question"),
        ({"role": "user", "content": "q"}, "the fields content, role, which match no known format"),
        ({"instruction": "q", "output": "a", "history": [["q", "a"], ["q2"]]}, "history, message 1 is a list"),
        ({"prompt": "p", "completion": " "}, "file:1: completion is empty"),
        ({"text": 3}, "file:1: text is a number"),
        ({"text": " \n"}, "file:1: text is empty"),
        ({"text": None}, "file:1: the record has no fields"),
        ({"instruction": "", "output": "x"}, "file:1: instruction is empty"),
        ({"Question": "", "Answer": "x"}, "file:1: Question is empty"),
        ({"text": "t", "question": "q", "answer": "a"}, "file:1: the record has text, and also question and answer"),
        ({"prompt": "p", "completion": 3}, "file:1: prompt is a string and completion is a number"),
        ({"question": "q", "answer": ""}, "file:1: answer is empty"),
        ({"question": 3, "answer": "a"}, "file:1: question is a number"),
        ({"question": "q", "context": ["c"], "answer": "a"}, "file:1: context is a list"),
        ({"content": 3}, "file:1: content is a number"),
        ({"question": "q", "answer": ["a"]}, "file:1: answer is a list"),
        ({**chat("q", "a"), "system_message": 3}, "file:1: system_message is a number"),
        (
            {**chat("q", "a"), "system": "s", "system_prompt": "t"},
            "different system messages in system and system_prompt",
        ),
        (
            {**chat("q", "a", system="s"), "history": [SYSTEM | {"content": "t"}, ANSWER]},
            "have different system messages",
        ),
        ({**chat("q", "a"), "history": "long"}, "file:1, history: the messages are a string"),
        ({**chat("q", "a"), "history": [["user", "q"]]}, "file:1: the history does not end with an answer"),
        ({**chat("q", "a", "q", "b"), "thinking": "r"}, "it is not clear to which of its 2 answers it belongs"),
        ({"messages": [QUESTION, ANSWER | {"thinking": "s"}], "reasoning": "r"}, "its answer has another reasoning"),
        ({**chat("q", "a"), "reasoning": "r", "thinking": "s"}, "different reasonings in thinking and reasoning"),
        ({**chat("q", "a"), "reasoning": 3}, "file:1: reasoning is a number"),
        (
            {"prompt": "p", "completion": "c", "system": "s"},
            "the record has system, which prompt and completion do not",
        ),
        (
            {"prompt": "p", "completion": "c", "reasoning_content": "r"},
            "the record has reasoning_content, which prompt",
        ),
        ({"prompt": "p", "completion": "c", "history": [["q", "a"]]}, "the record has history, which prompt"),
        ({"prompt": [QUESTION], "completion": [QUESTION]}, "file:1: the completion has no assistant message"),
    ],
)
def test_an_invalid_record_is_refused(record: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(record)
    assert said in caught.value.found
    assert caught.value.expected
    assert caught.value.reason and "file:1" not in caught.value.reason


def test_a_record_of_another_format_is_refused_with_the_required_fields() -> None:
    with pytest.raises(DataError) as caught:
        read({"text": "t"}, Format.alpaca)
    assert "has the fields text" in caught.value.found
    assert "instruction, output" in caught.value.expected


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [QUESTION, ANSWER]},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "User", "content": "q"}, {"role": " Assistant", "content": "a"}]},
        {"conversation": [{"role": "HUMAN", "text": "q"}, {"from": "ai", "content": ["a"]}]},
        {"messages": json.dumps([QUESTION, ANSWER])},
        {"conversations": json.dumps([QUESTION, ANSWER])},
        {"messages": str([QUESTION | {"x": None}, ANSWER])},
        {"Chat": f" {[QUESTION, ANSWER]}"},
        {"messages": [["q", "a"]]},
        {"messages": [["user", "q"], ["assistant", "a"]]},
        [QUESTION, ANSWER],
        {"messages": [{"role": "system", "content": ""}, QUESTION, ANSWER]},
        {"prompt": [QUESTION], "completion": "a"},
        {"prompt": "q", "completion": [ANSWER]},
        {"question": "q", "answer": [ANSWER]},
        {"prompt": json.dumps([QUESTION]), "completion": json.dumps([ANSWER])},
        {"prompt": json.dumps([QUESTION]), "completion": "a"},
        {"prompt": [QUESTION], "response": "a"},
        {"Question": "q", "Answer": "a", "ID": 3, "id": 4},
        {" Messages": [QUESTION, ANSWER]},
        {"Conversations": [{"From": "human", "Value": "q"}, {"Role": "Assistant", "Content": "a"}]},
        {"instruction": " ", "input": "q", "output": "a"},
        {"instruction": "q", "input": float("nan"), "output": "a", "history": float("nan"), "system": None},
        [QUESTION, ANSWER | {"tool_calls": float("nan"), "train": float("nan")}],
        *({question: "q", answer: "a"} for question, answer in (
            ("prompt", "response"), ("question", "answer"), ("query", "response"), ("instruction", "response"),
            ("input", "output"), ("question", "response"), ("user", "assistant"), ("inputs", "targets"),
        )),
    ],
)  # fmt: skip
def test_every_shape_of_a_chat_gives_the_same_messages(record: Any) -> None:
    assert read(record).messages == [QUESTION, ANSWER]


def test_the_setting_fields_names_the_fields_of_the_records() -> None:
    record = {"question": "q", "reply": "a", "response": "other", "messages": [QUESTION]}
    fields = {"instruction": "question", "output": "reply"}
    assert read_record("file:1", record, Format.auto, fields).messages == [QUESTION, ANSWER]
    fields = {"prompt": "question", "completion": "reply"}
    assert read_record("file:1", record, Format.auto, fields).text == "qa"
    assert read_record("file:1", {"body": "b", "content": "c"}, Format.auto, {"text": "body"}).text == "b"
    with pytest.raises(DataError, match="file:1: the record has no field 'reply', which the setting fields.completion"):
        read_record("file:1", {"question": "q"}, Format.auto, fields)


def test_reasoning_is_dropped_or_required() -> None:
    def settle(record: Any, reasoning: Reasoning) -> Document:
        return read_record("file:1", record, Format.auto, reasoning=reasoning)

    assert settle([QUESTION, THOUGHT], Reasoning.drop).messages == [QUESTION, ANSWER]
    assert settle([QUESTION, THOUGHT], Reasoning.require).messages == [QUESTION, THOUGHT]
    assert settle({"prompt": "p", "completion": "<think>r</think>c"}, Reasoning.drop).text == "pc"
    assert settle({"prompt": "p", "completion": "<think>r</think>c"}, Reasoning.require).text == "p<think>r</think>c"
    given = {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [THOUGHT]}
    assert settle(given, Reasoning.require), "answers of the prompt are not trained"
    assert settle([QUESTION, ANSWER | {"weight": 0}, QUESTION, THOUGHT], Reasoning.require)
    for record in ([QUESTION, ANSWER, QUESTION, THOUGHT], {"text": "t"}, {"prompt": "p", "completion": "c"}):
        with pytest.raises(DataError, match="has no reasoning, and data.reasoning=require") as caught:
            settle(record, Reasoning.require)
        assert caught.value.reason == "an answer without reasoning"


def test_arguments_for_the_template_are_read() -> None:
    for given in ({"enable_thinking": False, "added": None}, '{"enable_thinking": false}'):
        assert read({**chat("q", "a"), "chat_template_kwargs": given}).template_kwargs == {"enable_thinking": False}
    assert read(chat("q", "a")).template_kwargs == {}
    texts = read({**chat("q", "a"), "chat_template_kwargs": {"enable_thinking": "False", "effort": "low"}})
    assert texts.template_kwargs == {"enable_thinking": False, "effort": "low"}
    assert "read as true or false" in texts.notes[0]


def test_the_content_hash_depends_on_the_content_only() -> None:
    same = [[QUESTION, ANSWER], {"question": "q", "answer": "a"}, [QUESTION, THOUGHT], {**chat("q", "a"), "id": 3}]
    assert len({read(record).content_hash() for record in same}) == 1
    others = [chat("q", "b"), {"text": "qa"}, {"prompt": "q", "completion": "a"}, chat("q", "a", system="s")]
    assert len({read(record).content_hash() for record in [*others, same[0]]}) == 5
    assert read({"text": "\ud800"}).content_hash()
