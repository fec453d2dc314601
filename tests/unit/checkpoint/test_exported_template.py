"""An exported chat template gives the model the prompt of training, without arguments."""

from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ftdist.checkpoint.exported_template import template_facts, write_defaults
from ftdist.config.schema import RunConfig

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
