"""Reading records of every format, and the messages about invalid records."""

import json
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.schema import Format, Reasoning
from ftdist.data.records import Document, read_record
from tests.unit.data_tools import chat, read

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"x": {"type": "integer"}}}},
}


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


def test_tools_and_tool_calls_are_kept_and_null_fields_are_removed() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    messages = [
        QUESTION | {"tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add"},
        ANSWER,
    ]
    document = read({"messages": messages, "tools": '[{"name": "add"}]'})
    assert document.tools == [{"type": "function", "function": {"name": "add"}}]
    assert document.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert document.messages[0] == QUESTION
    assert document.messages[2]["name"] == "add"


def test_text_parts_of_a_content_are_joined() -> None:
    for kind in ("text", "input_text", "output_text"):
        parts = [{"type": kind, "text": "q"}, {"type": kind, "text": "?"}]
        assert read({"messages": [{"role": "user", "content": parts}, ANSWER]}).messages[0]["content"] == "q?"


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
        ({"messages": [QUESTION, _called("f", "[1]")]}, "message 2 calls f with arguments that are not an object"),
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
            "message 3 continues an answer that has not this reasoning",
        ),
        (chat("q", "a") | {"chat_template_kwargs": {"tools": []}}, "file:1: chat_template_kwargs has tools"),
        (chat("q", "a") | {"chat_template_kwargs": '{"tokenize": false}'}, "chat_template_kwargs has tokenize"),
        ([QUESTION, ANSWER | {"train": True, "weight": 0}], "message 2 has train=True and weight=0"),
        (
            [QUESTION, ANSWER | {"tool_calls": [CALL], "function_call": {"name": "f", "arguments": "{}"}}],
            "message 2 has tool_calls and another function_call",
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
        ({**chat("q", "a", "q", "b"), "thinking": "r"}, "the record has thinking and 2 answers to which it can belong"),
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


def message(record: Any, number: int = -1) -> Any:
    return read(record).messages[number]


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [QUESTION, ANSWER]},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "User", "content": "q"}, {"role": " Assistant", "content": "a"}]},
        {"conversation": [{"role": "HUMAN", "text": "q"}, {"from": "ai", "content": ["a"]}]},
        {"messages": json.dumps([QUESTION, ANSWER])},
        {"conversations": json.dumps([QUESTION, ANSWER])},
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
        *({question: "q", answer: "a"} for question, answer in (
            ("prompt", "response"), ("question", "answer"), ("query", "response"), ("instruction", "response"),
            ("input", "output"), ("question", "response"), ("user", "assistant"), ("inputs", "targets"),
        )),
    ],
)  # fmt: skip
def test_every_shape_of_a_chat_gives_the_same_messages(record: Any) -> None:
    assert read(record).messages == [QUESTION, ANSWER]


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


def test_the_setting_fields_names_the_fields_of_the_records() -> None:
    record = {"question": "q", "reply": "a", "response": "other", "messages": [QUESTION]}
    fields = {"instruction": "question", "output": "reply"}
    assert read_record("file:1", record, Format.auto, fields).messages == [QUESTION, ANSWER]
    fields = {"prompt": "question", "completion": "reply"}
    assert read_record("file:1", record, Format.auto, fields).text == "qa"
    assert read_record("file:1", {"body": "b", "content": "c"}, Format.auto, {"text": "body"}).text == "b"
    with pytest.raises(DataError, match="file:1: the record has no field 'reply', which the setting fields.completion"):
        read_record("file:1", {"question": "q"}, Format.auto, fields)


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


@pytest.mark.parametrize(
    "calling",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": CALL},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": [{"name": "add", "arguments": {"x": 1}}]},
        {"tool_calls": [{"name": "add", "parameters": '{"x": 1}'}]},
        {"tool_calls": [{"function": {"name": "add", "arguments": '{"x": 1}', "added": None}}], "function_call": None},
        {"function_call": {"name": "add", "arguments": '{"x": 1}'}},
        {"role": "function_call", "content": '{"name": "add", "arguments": {"x": 1}}'},
        {"role": "tool_call", "content": '<tool_call>\n[{"name": "add", "arguments": "{\\"x\\": 1}"}]\n</tool_call>'},
        {"role": "tool_call", "content": {"name": "add", "arguments": {"x": 1}}},
        {"tool_calls": [CALL], "function_call": {"name": "add", "arguments": '{"x": 1}'}},
    ],
)
def test_every_shape_of_a_call_gives_the_same_call(calling: dict[str, Any]) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert message([QUESTION, {"role": "assistant", "content": None, **calling}]) == called


def test_nulls_as_text_are_no_calls_and_no_arguments() -> None:
    null = {"name": None, "arguments": None}
    for nothing in (
        {"tool_calls": "null"}, {"tool_calls": "[]"}, {"tool_calls": [None]}, {"function_call": "null"},
        {"function_call": null}, {"tool_calls": [{"id": None, "function": None}]}, {"tool_calls": [{}]},
        {"tool_calls": [{"id": "", "type": "function", "function": null}]}, {"function_call": {}},
    ):  # fmt: skip
        assert message([QUESTION, {**ANSWER, **nothing}]) == ANSWER
    for given in (None, "", "null", "{}", {}):
        call = {"function": {"name": "add", "arguments": given}}
        [found] = message([QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}])["tool_calls"]
        assert found["function"]["arguments"] == {}, given


def test_a_call_after_a_text_belongs_to_the_same_answer() -> None:
    call = {"from": "function_call", "value": json.dumps(CALL)}
    result = {"from": "observation", "value": {"sum": 2, "ü": None}}
    found = read({"conversations": [QUESTION, ANSWER, call, call, result, ANSWER]}).messages
    assert found[1] == ANSWER | {"tool_calls": [CALL, CALL]}
    assert found[2] == {"role": "tool", "content": '{"sum": 2, "ü": null}'}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("calling", "expected"),
    [
        ({"value": json.dumps(CALL), "reasoning_content": "r"}, {"reasoning_content": "r"}),
        ({"value": f"<think>\nr\n</think>\n\n{json.dumps(CALL)}"}, {"reasoning_content": "r"}),
        ({"value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>\n" * 2}, {"tool_calls": [CALL, CALL]}),
        ({"value": f"{json.dumps(CALL)}\n{json.dumps([CALL])}"}, {"tool_calls": [CALL, CALL]}),
        ({"value": '{"name": "f", "arguments": {"tag": "<tool_call>"}}'}, {"tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"tag": "<tool_call>"}}}]}),
    ],
)  # fmt: skip
def test_a_message_that_is_a_call_keeps_its_reasoning_and_all_calls(calling: Any, expected: Any) -> None:
    found = message({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", **calling}]})
    assert found == {"role": "assistant", "content": "", "tool_calls": [CALL], **expected}


@pytest.mark.parametrize("role", ["tool", "tool_response", "observation", "function", "ipython"])
def test_results_of_functions_have_the_role_tool(role: str) -> None:
    found = message([QUESTION, {"role": role, "content": [{"x": 1}], "name": "add", "tool_call_id": "c1"}, ANSWER], 1)
    assert found == {"role": "tool", "content": '[{"x": 1}]', "name": "add", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL], TOOL, json.dumps([TOOL]), json.dumps(TOOL), [json.dumps(TOOL)], [TOOL["function"]],
        {"type": "function", "function": json.dumps(TOOL["function"])},
        [TOOL["function"] | {"parameters": json.dumps(TOOL["function"]["parameters"])}, {}, {"function": None}],
        [TOOL["function"] | {"parameters": {"properties": '{"x": {"type": "integer"}}'}}],
        [TOOL["function"] | {"parameters": {"properties": {"x": '{"type": "integer"}'}}}],
    ],
)  # fmt: skip
def test_every_shape_of_tools_gives_the_same_tools(tools: Any) -> None:
    assert read({**chat("q", "a"), "tools": tools}).tools == [TOOL]
    assert read({**chat("q", "a"), "functions": tools}).tools == [TOOL]
    assert read({**chat("q", "a"), "tools": ""}).tools is None


def test_nulls_that_arrow_added_to_structs_are_removed() -> None:
    arguments = {"x": 1, "city": None}
    properties = {"x": {"type": "integer", "default": None, "enum": None}, "city": None}
    record = {"messages": [QUESTION, _called("add", arguments)]}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"properties": properties}}}
    found = read({**record, "tools": [tool]})
    assert found.messages[1]["tool_calls"] == [CALL]
    assert found.tools == [{"type": "function", "function": {"name": "add", "parameters": {
        "properties": {"x": {"type": "integer", "default": None}}}}}]  # fmt: skip
    for kept in ({"const": None}, {"const": {"a": None}}, {"enum": ["a", None]}, {"default": '{"a": 1}'}):
        schema = {"properties": {"default": kept, "const": kept}}
        [found_tool] = read({**record, "tools": [{"name": "add", "parameters": schema}]}).tools or []
        assert found_tool["function"]["parameters"] == schema
    properties["city"] = {"type": ["string", "null"]}
    assert message({**record, "tools": [tool]})["tool_calls"][0]["function"]["arguments"] == arguments, "declared"
    assert message(record)["tool_calls"][0]["function"]["arguments"] == arguments, "it may be meant"


THOUGHT = ANSWER | {"reasoning_content": "r"}
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


@pytest.mark.parametrize("name", ["train", "weight", "loss", "training"])
def test_marks_of_the_author_are_read(name: str) -> None:
    marked = read([QUESTION, ANSWER | {name: 0}, QUESTION | {name: None}, ANSWER | {name: True}])
    assert marked.marks == [None, False, None, True]
    assert marked.messages == [QUESTION, ANSWER] * 2
    assert read({**chat("q", "a"), "system": "s"}).marks is None
    assert read({"messages": [ANSWER | {name: 1}], "system": "s"}).marks == [None, True]


def test_arguments_for_the_template_are_read() -> None:
    for given in ({"enable_thinking": False, "added": None}, '{"enable_thinking": false}'):
        assert read({**chat("q", "a"), "chat_template_kwargs": given}).template_kwargs == {"enable_thinking": False}
    assert read(chat("q", "a")).template_kwargs == {}


def test_the_content_hash_depends_on_the_content_only() -> None:
    same = [[QUESTION, ANSWER], {"question": "q", "answer": "a"}, [QUESTION, THOUGHT], {**chat("q", "a"), "id": 3}]
    assert len({read(record).content_hash() for record in same}) == 1
    others = [chat("q", "b"), {"text": "qa"}, {"prompt": "q", "completion": "a"}, chat("q", "a", system="s")]
    assert len({read(record).content_hash() for record in [*others, same[0]]}) == 5
    assert read({"text": "\ud800"}).content_hash()
