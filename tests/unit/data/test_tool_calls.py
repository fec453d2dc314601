"""Tools and calls of tools, in every shape that files have."""

import json
from typing import Any

import pytest

from tests.unit.data_tools import ANSWER, CALL, QUESTION, chat, message, read

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"x": {"type": "integer"}}}},
}


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
        {"tool_call": CALL},
        {"function_calls": json.dumps([{"name": "add", "arguments": {"x": 1}}])},
        {"toolCalls": [CALL]},
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
    system = {"role": "system", "content": "", "tools": tools}
    found = read({"messages": [system, QUESTION, ANSWER], "tools": [TOOL]})
    assert (found.tools, found.messages) == ([TOOL], [QUESTION, ANSWER]) == (
        read([QUESTION | {"functions": tools}, ANSWER]).tools, [QUESTION, ANSWER])  # fmt: skip
    assert read([QUESTION | {"tools": ["names", "alone"]}, ANSWER]).tools is None


def test_nulls_that_arrow_added_to_structs_are_removed() -> None:
    arguments = {"x": 1, "city": None}
    properties = {"x": {"type": "integer", "default": None, "enum": None}, "city": None}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": arguments}}]}
    record = {"messages": [QUESTION, called]}
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
