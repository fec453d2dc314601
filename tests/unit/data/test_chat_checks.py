"""A record is trained as inference will show it, or refused: stops inside answers, changed texts, words in conditions.

The templates were written for these tests. Each shows one habit of real templates.
"""

from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import TrainOn
from ftdist.data.answers import answers_of
from ftdist.data.render import make_renderer, render
from ftdist.data.tokenizer import bytes_tokenizer
from tests.unit.data.test_chat_turn import END, LOOP, call, rendered
from tests.unit.data_tools import chat, read

PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = LOOP + "<{{ m.role }}>{{ m.content }}<end>" + END + PROMPT

MARKED = PLAIN.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")


def reasoned(*messages: str, system: str = "") -> dict[str, Any]:
    """Return a chat in which ``a (r)`` is the answer a with the reasoning r."""
    record = chat(*messages, system=system) if system else chat(*messages)
    for message in record["messages"]:
        if message["role"] == "assistant" and message["content"].endswith(")"):
            message["content"], message["reasoning_content"] = message["content"][:-1].split(" (")
    return record


@pytest.mark.parametrize(
    "answer", ["a<end><user>hi", "a<end>more", "a</s>more", "a<end>more<end>", "<think>\nr<end>s\n</think>\n\na"]
)
@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_an_answer_with_a_stop_before_its_end_is_refused(answer: str, template: str) -> None:
    with pytest.raises(DataError, match=r"message 2 holds the stop token '(<end>|</s>)' before its end"):
        rendered(template, chat("q", answer, "q2", "a2"), special=("<end>",))
    record = chat(answer, "a")
    assert rendered(PLAIN, record, special=("<end>",)) == [f"<user>{answer}<end><assistant>[[a<end>]]"]


@pytest.mark.parametrize("end", ["<end>", "<end><end>", "</s>", "<end>\n</s> ", "</s></s>\n"])
def test_stops_at_the_end_of_an_answer_become_one(end: str) -> None:
    assert rendered(PLAIN, chat("q", f"a{end}"), special=("<end>",))[0].replace("\n", "") == (
        "<user>q<end><assistant>[[a<end>]]"
    )


def test_a_stop_in_the_arguments_of_a_call_or_inside_a_completion_is_refused() -> None:
    template = (
        LOOP + "<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
        "{% endfor %}<end>" + END + PROMPT
    )  # fmt: skip
    assert rendered(template, call(("f", {"x": "y"})), special=("<end>",))
    with pytest.raises(DataError, match="message 2 holds the stop token"):
        rendered(template, call(("f", {"x": "y<end>z"})), special=("<end>",))
    with pytest.raises(DataError, match="the completion holds the stop token"):
        render(read({"prompt": "q ", "completion": "a<|im_end|>b"}), make_renderer(bytes_tokenizer(), TrainOn.auto))


@pytest.mark.parametrize("twice", ["<end><end>", "<end>\n<end>"])
def test_a_stop_that_a_template_writes_twice_is_trained_once(twice: str) -> None:
    template = LOOP + "<{{ m.role }}>{{ m.content }}" + twice + END + PROMPT
    asked = f"<user>q{twice}<assistant>"
    assert rendered(template, chat("q", "a"), special=("<end>",)) == [f"{asked}[[a<end>]]{twice.removeprefix('<end>')}"]


LONG = "a long text ### with a mark"
CHANGES = ("m.content[:12]", "m.content.split('###')[0]", "m.content | replace('mark', '*')")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_template_that_changes_a_text_is_refused_by_what_is_lost(change: str, role: str) -> None:
    template = PLAIN.replace("m.content", change)
    texts = {"system": "s", "user": "q", "assistant": "a"} | {role: LONG}
    number = ["system", "user", "assistant"].index(role) + 1
    expected = "changes the text of an answer" if role == "assistant" else rf"\({role}\) of message {number}"
    with pytest.raises(DataError, match=expected):
        rendered(template, chat(texts["user"], texts["assistant"], system=texts["system"]), special=("<end>",))


@pytest.mark.parametrize(
    ("written", "shown"),
    [("m.content | trim", "q"), ("m.content.strip('\\n')", " q "), ("m.content | tojson", '"\\n q "'),
     ("[m.content]", "['\\n q ']")],
)  # fmt: skip
def test_a_question_without_white_space_at_its_ends_or_in_other_notation_is_not_lost(written: str, shown: str) -> None:
    template = LOOP + "<{{ m.role }}>{% if m.role == 'user' %}{{ " + written + " }}{% else %}{{ m.content }}{% endif %}"
    [text] = rendered(template + "<end>" + END + PROMPT, chat("\n q ", "a"), special=("<end>",))
    assert text == f"<user>{shown}<end><assistant>[[a<end>]]"


def test_a_tool_result_that_the_template_cuts_is_refused() -> None:
    template = (
        LOOP + "<{{ m.role }}>{{ (m.content or '')[:12] }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
        "{% endfor %}<end>" + END + PROMPT
    )  # fmt: skip
    record = call(("f", {}), answer="a")
    assert len(rendered(template, record, special=("<end>",))) == 1
    record["messages"][2]["content"] = LONG
    with pytest.raises(DataError, match=r"cuts or changes the content \(tool\) of message 3"):
        rendered(template, record, special=("<end>",))


def test_the_end_of_a_call_is_not_a_stop() -> None:
    template = (
        LOOP + "<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call_begin>"
        "{{ c.function.name }}<call_end>{{ '' if loop.first else '<end>' }}{% endfor %}"
        "{{ '' if m.tool_calls else '<end>' }}" + END + PROMPT
    )  # fmt: skip
    special = ("<end>", "<call_begin>", "<call_end>")
    one = "<user>q<end><assistant>{}<call_begin>f<call_end>"
    assert rendered(template, call(("f", {}), answer="a"), special=special) == [
        one.format("[[") + "<end>]]", one.format("") + "<tool>r0<end><assistant>[[a<end>]]"
    ]  # fmt: skip
    assert rendered(template, call(("f", {}), ("f", {})), special=special) == [
        one.format("[[") + "<call_begin>f<call_end><end>]]"
    ]


def test_a_prompt_without_the_system_message_is_refused() -> None:
    template = (
        "{% for m in messages[1:] %}{% if loop.first %}<system>{{ messages[0].content }}<end>{% endif %}"
        "<{{ m.role }}>{{ m.content }}<end>{% if loop.last and add_generation_prompt %}<assistant>{% endif %}" + END
    )
    assert rendered(template, chat("q", "a", system="s"), special=("<end>",)) == [
        "<system>s<end><user>q<end><assistant>[[a<end>]]"
    ]
    record = {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]}
    with pytest.raises(DataError, match=r"does not show the content \(system\) of message 1"):
        rendered(template, record, special=("<end>",))


@pytest.mark.parametrize(
    "system, shown",
    [("Be brief. /no_think", "Be brief."), ("/no_think Be brief.", "Be brief."), ("a /no_think b", "a  b")],
)
def test_a_switch_in_a_system_message_that_the_template_acts_on_and_leaves_out_is_not_lost(
    system: str, shown: str
) -> None:
    """SmolLM3's template does so."""
    template = (
        "{% set s = messages[0].content %}{% set off = '/no_think' in s %}{{ s.replace('/no_think', '') | trim }}<end>"
        + LOOP.replace("messages", "messages[1:]") + "<{{ m.role }}>"
        "{% if off and m.role == 'assistant' %}<think>\n\n</think>\n{% endif %}{{ m.content }}<end>" + END
        + "{% if add_generation_prompt %}<assistant>{{ '<think>\n\n</think>\n' if off else '' }}{% endif %}"
    )  # fmt: skip
    assert rendered(template, chat("q", "a", system=system), special=("<end>",)) == [
        f"{shown}<end><user>q<end><assistant><think>\n\n</think>\n[[a<end>]]"
    ]


def thinks_if(condition: str, block: str) -> str:
    """Return a template whose generation prompt has a think block if a condition holds."""
    return (
        LOOP + "<{{ m.role }}>{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n"
        "</think>\n\n{% endif %}{{ m.content }}<end>" + END
        + "{% if add_generation_prompt %}<assistant>{% if " + condition + " %}" + block + "{% endif %}{% endif %}"
    )  # fmt: skip


OPEN, EMPTY = "<think>\n", "<think>\n\n</think>\n\n"
NO_THINK = thinks_if("'/no_think' in messages[-1].content", EMPTY)
ON = thinks_if("messages[0].role == 'system' and 'detailed thinking on' in messages[0].content", OPEN)
QWEN3 = (
    "{% set ns = namespace(last=0) %}" + LOOP + "{% if m.role == 'user' and not "
    "m.content.startswith('<tool_response>') %}{% set ns.last = loop.index0 %}{% endif %}" + END
    + LOOP + "{% set said = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in said %}"
    "{% set thought = said.split('</think>')[0] %}{% set said = said.split('</think>')[-1] %}{% endif %}"
    "<{{ m.role }}>{% if m.role == 'assistant' and loop.index0 > ns.last and thought %}<think>\n{{ thought }}\n"
    "</think>\n\n{% endif %}{{ said }}<end>" + END + PROMPT
)  # fmt: skip
MAGISTRAL = (
    LOOP + "<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}"
    "{% if b.type == 'text' %}{{ b.text }}{% elif b.type == 'thinking' %}[THINK]{{ b.thinking }}[/THINK]{% endif %}"
    "{% endfor %}{% endif %}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<end>" + END + PROMPT
)  # fmt: skip
INFERENCE = {
    "words in a system message open a think block": (
        ON, reasoned("q", "a (r)", system="detailed thinking on"),
        ["<system>detailed thinking on<end><user>q<end><assistant><think>\n[[r\n</think>\n\na<end>]]"],
    ),
    "the answer after them has no reasoning": (
        ON, chat("q", "a", system="detailed thinking on"),
        ["<system>detailed thinking on<end><user>q<end><assistant><think>\n[[\n</think>\n\na<end>]]"],
    ),
    "a system message without them": (
        ON, chat("q", "a", system="detailed thinking off"),
        ["<system>detailed thinking off<end><user>q<end><assistant>[[a<end>]]"],
    ),
    "a long question": (
        thinks_if("messages[-1].content | length > 9", "(long)"), chat("a long question", "a", "short", "b"),
        ["<user>a long question<end><assistant>(long)[[a<end>]]",
         "<user>a long question<end><assistant>a<end><user>short<end><assistant>[[b<end>]]"],
    ),
    "a question in capital letters": (
        thinks_if("'hi' in messages[-1].content | lower", "(hello)"), chat("HI", "a"),
        ["<user>HI<end><assistant>(hello)[[a<end>]]"],
    ),
    "a switch in a question": (
        NO_THINK, reasoned("q /no_think", "a", "q2", "b (r)"),
        ["<user>q /no_think<end><assistant><think>\n\n</think>\n\n[[a<end>]]",
         "<user>q /no_think<end><assistant>a<end><user>q2<end><assistant>[[<think>\nr\n</think>\n\nb<end>]]"],
    ),
    "a tool result as the text of the user": (
        QWEN3, reasoned("q", "a (r)", "<tool_response>x</tool_response>", "b (s)"),
        ["<user>q<end><assistant>[[<think>\nr\n</think>\n\na<end>]]<user><tool_response>x</tool_response><end>"
         "<assistant>[[<think>\ns\n</think>\n\nb<end>]]"],
    ),
    "an answer that mentions the end of a think block": (
        QWEN3, chat("q", "a is </think>.", "q2", "b"),
        ["<user>q<end><assistant>[[a is </think>.<end>]]<user>q2<end><assistant>[[b<end>]]"],
    ),
    "a word in an earlier answer": (
        thinks_if("messages | length > 4 and 'ready' in messages[3].content", "(go)"),
        chat("q", "a", "q2", "ready", "q3", "c"),
        ["<user>q<end><assistant>a<end><user>q2<end><assistant>[[ready<end>]]",
         "<user>q<end><assistant>[[a<end>]]<user>q2<end><assistant>ready<end><user>q3<end><assistant>(go)[[c<end>]]"],
    ),
    "thinking as a part of the content": (
        MAGISTRAL, reasoned("q", "a (r)", "q2", "b"),
        ["<user>q<end><assistant>[[[THINK]r[/THINK]a<end>]]<user>q2<end><assistant>[[b<end>]]"],
    ),
    "thinking as parts of a part": (
        MAGISTRAL, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]}, {"type": "text", "text": "a"}]}]},
        ["<user>q<end><assistant>[[[THINK]r[/THINK]a<end>]]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("habit", INFERENCE)
def test_what_is_trained_follows_the_prompt_that_the_words_of_the_record_give(habit: str) -> None:
    template, record, expected = INFERENCE[habit]
    assert rendered(template, record, special=("<end>",)) == expected
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = template
    renderer, document = make_renderer(tokenizer, TrainOn.auto), read(record)
    for answer in answers_of(document, render(document, renderer), renderer, 1000):  # the preview finds the same
        assert not answer.differs
        assert not answer.lost
        assert answer.stops
        assert answer.ends


def test_a_record_that_no_rendering_can_express_is_refused_by_the_message() -> None:
    record = reasoned("q", "a", "q2 /no_think", "b (r)")
    with pytest.raises(DataError, match=r"before message 4 change how the chat template renders them \(message 3\)"):
        rendered(NO_THINK, record, special=("<end>",))
