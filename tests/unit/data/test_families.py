"""Chat templates of many families of models, and the documents that are made of each kind of conversation.

``families/NAME.jinja`` is a small template that behaves like those of the family. ``families/NAME.txt`` begins with the
family's special tokens. Then come the expected documents of the conversations below, or the reason why they are
refused. Trained text is in ``[[ ]]``, ``--`` separates documents, and one heading can name several conversations that
give the same documents. The rule is always the same: a document is the prompt that inference gives the model, followed
by what the model has to produce, up to and including its stop.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import Format, TrainOn
from ftdist.data.chat_template import ChatTemplate, TemplateProblem
from ftdist.data.records import read_record
from ftdist.data.render import Rendered, Renderer, make_renderer, render
from ftdist.data.tokenise import tokenise
from ftdist.data.tokenizer import bytes_tokenizer

FOLDER = Path(__file__).parent / "families"
DATE = "2024-07-26"


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, reasoning: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, **fields}


def calls(*arguments: Any, content: str = "", reasoning: str | None = None) -> dict[str, Any]:
    """Return an answer that calls the tool f once for each of the arguments."""
    made = [
        {"type": "function", "id": f"callid00{number}", "function": {"name": "f", "arguments": each}}
        for number, each in enumerate(arguments, 1)
    ]
    return answer(content, reasoning, tool_calls=made)


def result(number: int, content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "name": "f", "tool_call_id": f"callid00{number}"}


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


SYSTEM, EMPTY_SYSTEM = ({"role": "system", "content": content} for content in ("s1", ""))
TOOLS = {"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]}
X, Y = {"x": 1}, {"y": "v"}
CONVERSATIONS = {
    "single": chat(user("q1"), answer("a1")),
    "system": chat(SYSTEM, user("q1"), answer("a1")),
    "multi": chat(user("q1"), answer("a1"), user("q2"), answer("a2"), user("q3"), answer("a3")),
    "system_multi": chat(SYSTEM, user("q1"), answer("a1"), user("q2"), answer("a2")),
    "assistant_first": chat(answer("a0"), user("q1"), answer("a1")),
    "prompt_completion": {"prompt": [user("q1"), answer("a1"), user("q2")], "completion": [answer("a2")]},
    "marks": chat(user("q1"), answer("a1", weight=1), user("q2"), answer("a2", weight=0)),
    "reasoning": chat(user("q1"), answer("a1", "r1")),
    "reasoning_multi": chat(
        user("q1"), answer("a1", "r1"), user("q2"), answer("a2", "r2"), user("q3"), answer("a3", "r3")
    ),
    "reasoning_partly": chat(user("q1"), answer("a1", "r1"), user("q2"), answer("a2")),
    "thinking_off": chat(
        user("q1"), answer("a1"), chat_template_kwargs={"enable_thinking": False, "thinking": False}
    ),
    "tools_unused": chat(user("q1"), answer("a1"), **TOOLS),
    "tool_call": chat(user("q1"), calls(X), result(1, "t1"), answer("a2"), **TOOLS),
    "tool_call_multi": chat(
        user("q1"), calls(X), result(1, "t1"), answer("a2"), user("q2"), answer("a3"), **TOOLS
    ),
    "parallel_calls": chat(user("q1"), calls(X, Y), result(1, "t1"), result(2, "t2"), answer("a2"), **TOOLS),
    "call_with_text": chat(user("q1"), calls(X, content="c1"), result(1, "t1"), answer("a2"), **TOOLS),
    "call_last": chat(user("q1"), calls(X), **TOOLS),
    "reasoning_call": chat(
        user("q1"), calls(X, reasoning="r1"), result(1, "t1"), answer("a2", "r2"), **TOOLS
    ),
    "reasoning_call_multi": chat(
        user("q1"), calls(X, reasoning="r1"), result(1, "t1"), answer("a2", "r2"), user("q2"), answer("a3", "r3"),
        **TOOLS,
    ),
}  # fmt: skip
# Other ways to write some of them down. They give the same documents.
SAME = {
    "empty_system": ("single", chat(EMPTY_SYSTEM, user("q1"), answer("a1"))),
    "user_last": ("single", chat(user("q1"), answer("a1"), user("q2"))),
    "eos_in_content": ("single", chat(user("q1"), answer("a1{eos}"))),
    "think_in_content": ("reasoning", chat(user("q1"), answer("<think>\nr1\n</think>\n\na1"))),
    "thinking_field": ("reasoning", chat(user("q1"), {**answer("a1"), "thinking": "r1"})),
    "arguments_as_text": ("tool_call", chat(
        user("q1"), calls(json.dumps(X)), result(1, "t1"), answer("a2"), tools=json.dumps(TOOLS["tools"])
    )),
    "older_function_call": ("call_last", chat(
        user("q1"), {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": json.dumps(X)}},
        **TOOLS,
    )),
}  # fmt: skip


class Family(NamedTuple):
    settings: dict[str, str]
    expected: dict[str, str]
    """The expected documents of each conversation."""


def read_family(name: str) -> Family:
    head, *sections = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n== ")
    settings = dict(line.split(": ", 1) for line in head.strip().split("\n"))
    expected = {}
    for section in sections:
        names, documents = section.split("\n", 1)
        expected.update({conversation: documents.removesuffix("\n") for conversation in names.split()})
    return Family(settings, expected)


FAMILIES = {path.stem: read_family(path.stem) for path in sorted(FOLDER.glob("*.txt"))}


@lru_cache(maxsize=1)
def renderer_of(name: str) -> Renderer:
    settings = FAMILIES[name].settings
    tokenizer = bytes_tokenizer()
    special = settings["special"].split()
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    tokenizer.eos_token = settings["eos"]
    if "bos" in settings:
        tokenizer.bos_token = settings["bos"]
    if settings.get("adds_bos") == "true":
        begin_with_bos(tokenizer)
    template = settings.get("template", name)
    tokenizer.chat_template = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    with_tools = FOLDER / f"{template}.tool_use.jinja"
    tokenizer.tool_use_template = with_tools.read_text(encoding="utf-8") if with_tools.exists() else None
    kwargs = json.loads(settings.get("kwargs", "{}"))
    return make_renderer(tokenizer, TrainOn.auto, template_kwargs=kwargs, template_date=DATE)


def begin_with_bos(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    bos, number = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])


def documents_of(name: str, record: dict[str, Any]) -> str:
    """Return the documents of a record in the form of the files, or the reason of the refusal."""
    renderer = renderer_of(name)
    text = json.dumps(record).replace("{eos}", renderer.tokenizer.eos_token)
    try:
        rendered = render(read_record("file:1", json.loads(text), Format.auto), renderer)
    except DataError as error:
        return f"refused: {error.found}"
    check_tokens(rendered, renderer)
    return "\n--\n".join(with_brackets(one) for one in rendered)


def with_brackets(rendered: Rendered) -> str:
    """Return the text up to the end of the last trained span. What follows it has no influence on what is learned."""
    text, position = "", 0
    for start, end in rendered.spans:
        text += f"{rendered.text[position:start]}[[{rendered.text[start:end]}]]"
        position = end
    return text


def check_tokens(rendered: list[Rendered], renderer: Renderer) -> None:
    """Check that exactly the tokens of the spans are trained, and that the tokens are those of the text."""
    for one, tokens in zip(rendered, tokenise(rendered, renderer), strict=True):
        trained = renderer.tokenizer.decode(tokens.ids[np.flatnonzero(tokens.trained)])
        assert trained == "".join(one.text[start:end] for start, end in one.spans)
        assert renderer.tokenizer.decode(tokens.ids) == one.text


def matches(found: str, expected: str) -> bool:
    reason = expected.removeprefix("refused: ")
    return found.startswith("refused: ") and reason in found if reason != expected else found == expected


def differences(family: str, records: dict[str, tuple[str, dict[str, Any]]]) -> str:
    """Render records, and return what differs from the expected documents of the conversations of the same name."""
    differing = []
    for name, (conversation, record) in records.items():
        found, expected = documents_of(family, record), FAMILIES[family].expected[conversation]
        if not matches(found, expected):
            differing.append(f"{family}, {name}:\n{found}\n\nexpected:\n{expected}")
    return "\n\n".join(differing)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.thorough
def test_the_documents_of_each_conversation_are_what_the_model_has_to_produce(family: str) -> None:
    assert not differences(family, {name: (name, record) for name, record in CONVERSATIONS.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_other_ways_to_write_a_conversation_give_the_same_documents(family: str) -> None:
    shows_ids = "callid" in FAMILIES[family].expected["call_last"]  # the older form of calls has no ids
    assert not differences(
        family, {name: same for name, same in SAME.items() if name != "older_function_call" or not shows_ids}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_conversation_is_rendered_as_transformers_renders_it(family: str) -> None:
    """Conversations of strings take a shorter way through the template."""
    template = renderer_of(family).chats.default
    assert template is not None
    for kind in ("single", "system", "multi", "assistant_first"):
        messages = plain(CONVERSATIONS[kind]["messages"])
        for prompt in (False, True):
            found = text_or_problem(template.render, messages, None, prompt)
            assert found == text_or_problem(rendered_by_transformers, template, messages, prompt)


def rendered_by_transformers(template: ChatTemplate, messages: list[dict[str, Any]], prompt: bool) -> str:
    return template._render(messages, None, prompt, False)[0]


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: message[name] for name in ("role", "content")} for message in messages]


def text_or_problem(make: Callable[..., str], *arguments: Any) -> str:
    try:
        return make(*arguments)
    except TemplateProblem as problem:
        return f"refused: {problem}"


def test_each_family_has_expected_documents_for_each_conversation() -> None:
    assert len(FAMILIES) >= 25
    for name, family in FAMILIES.items():
        assert sorted(family.expected) == sorted(CONVERSATIONS), name


def one_line(name: str) -> str:
    """Return the line of a family in docs/data.md."""
    expected = FAMILIES[name].expected
    numbers = [
        0 if expected[chats].startswith("refused") else expected[chats].count("\n--\n") + 1
        for chats in ("multi", "reasoning_multi")
    ]
    kind = "reasoning" if numbers[1] else "single"
    text = expected[kind][expected[kind].index("q1") :].replace("\n", "⏎")
    return f"{name:16}{numbers[0]} {numbers[1] or '-'}  {text}"


def test_the_examples_in_the_documentation_are_true() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    examples = dict(re.findall(r"<!-- ([\w ]+) -->\n```\n(.*?)```", page, re.DOTALL))
    assert len(examples) == 3
    assert examples.pop("families") == "".join(f"{one_line(name)}\n" for name in FAMILIES)
    for names, text in examples.items():
        family, conversation = names.split()
        assert text == FAMILIES[family].expected[conversation] + "\n", names
