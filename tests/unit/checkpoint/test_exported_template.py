"""An exported chat template gives the model the prompt of training, without arguments."""

import re
from datetime import date
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from ftdist.checkpoint.exported_template import DIRECTIVES, save_tokenizer, template_facts, write_defaults
from ftdist.config.schema import RunConfig
from ftdist.data.tokenizer import bytes_tokenizer

TEMPLATE = (
    "\n{% macro end() %}{{ style }}{% endmacro %}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{{ end() }}"
)
KWARGS = {
    "enable_thinking": False,
    "style": 'it\'s "é" {{ x }}',
    "limit": 3,
    "empty": None,
    "names": ["a", {"b": True}],
}


def rendered(template: str, **kwargs: object) -> str:
    messages = [[{"role": "user", "content": "q"}]]
    return str(render_jinja_template(messages, chat_template=template, **kwargs)[0][0])


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
def test_the_arguments_of_training_are_the_defaults(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(TEMPLATE, encoding="utf-8")
    config = RunConfig()
    write_defaults(tmp_path, config)
    assert file.read_text(encoding="utf-8") == TEMPLATE, "there are none"
    config.data.chat_template_kwargs = KWARGS
    write_defaults(tmp_path, config)
    exported = file.read_text(encoding="utf-8")
    assert rendered(exported) == rendered(TEMPLATE, **KWARGS) == '\nq<think></think>it\'s "é" {{ x }}'
    assert rendered(exported, enable_thinking=True, style="!") == "\nq!", "a program can pass others"
    assert rendered(exported + "{{ names[1].b }} {{ empty }} {{ limit + 1 }}").endswith("True None 4")


def test_the_date_is_named_if_the_template_asks_for_one(tmp_path: Path) -> None:
    config = RunConfig()
    assert template_facts(tmp_path, config) == {}
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %B %Y') }}")
    config.data.chat_template_kwargs = {"enable_thinking": False}
    assert template_facts(tmp_path, config) == {
        "chat_template_kwargs": {"enable_thinking": False}, "chat_template_date": "2024-07-26",
    }  # fmt: skip


def test_the_date_of_training_is_the_date_of_the_exported_template(tmp_path: Path) -> None:
    directives = sorted({*re.findall("%-?[A-Za-z]", " ".join(f"%{one}" for one in DIRECTIVES))})
    assert len(directives) == len(DIRECTIVES)
    asked = " ".join([*directives, "%d %b, %Y"])
    template = (
        "{%- macro day() %}{{ strftime_now('" + asked + "') }}{% endmacro %}"
        "{% if strftime_now is defined %}{% set year = strftime_now('%Y') %}{% endif %}{{ year | int + 1 }} {{ day() }}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    config = RunConfig()
    config.data.chat_template_date = "2023-04-05"
    write_defaults(tmp_path, config)
    exported = (tmp_path / "chat_template.jinja").read_text()
    assert rendered(exported) == "2024 " + date(2023, 4, 5).strftime(asked)
    write_defaults(tmp_path, config)
    assert (tmp_path / "chat_template.jinja").read_text() == exported, "the date is there already"


def test_the_template_for_tools_is_saved_and_used_where_there_are_tools(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    default = tokenizer.chat_template = "{{ messages[0].content }}<|im_end|>"
    tokenizer.tool_use_template = "{{ tools[0].function.name }}: {{ messages[0].content }}{{ style }}<|im_end|>"
    save_tokenizer(tokenizer, tmp_path)
    assert tokenizer.chat_template == default
    config = RunConfig()
    config.data.chat_template_kwargs = {"style": "!"}
    write_defaults(tmp_path, config)
    read = AutoTokenizer.from_pretrained(tmp_path)
    question = [{"role": "user", "content": "q"}]
    tool = {"type": "function", "function": {"name": "f"}}
    assert read.apply_chat_template(question, tokenize=False) == "q<|im_end|>"
    assert read.apply_chat_template(question, tools=[tool], tokenize=False) == "f: q!<|im_end|>"
