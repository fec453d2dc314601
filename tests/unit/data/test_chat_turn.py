"""Where answers begin and end, for templates whose answers do not simply follow their generation prompt.

The templates were written for these tests. Each shows one habit of real templates, named in its line.
"""

import pickle
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import TrainOn
from ftdist.data.chat_forms import forms
from ftdist.data.render import make_renderer, render
from ftdist.data.tokenizer import bytes_tokenizer
from tests.unit.data_tools import APPENDS, chat, read

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
CALLS = "{% for c in m.tool_calls or [] %}"
ASK = chat("q", "a")


def rendered(template: str, record: Any, eos: str = "</s>", special: tuple[str, ...] = ()) -> list[str]:
    """Return the documents of a record, with the trained text in ``[[ ]]``."""
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"eos_token": eos, "additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    documents = []
    for made in render(read(record), make_renderer(tokenizer, TrainOn.auto)):
        text = made.text
        for start, end in reversed(made.spans):
            text = f"{text[:start]}[[{text[start:end]}]]{text[end:]}"
        documents.append(text)
    return documents


def call(*calls: tuple[str, dict[str, Any]], answer: str = "") -> dict[str, Any]:
    """Return a record with tool calls, and their results and an answer if ``answer`` is not empty."""
    found = [
        {"type": "function", "id": f"call_{number}_long_id", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    messages: list[Any] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": found},
    ]
    if answer:
        messages += [{"role": "tool", "tool_call_id": one["id"], "content": f"r{n}"} for n, one in enumerate(found)]
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


HEADERS = {
    "prompt opens thinking, answers begin with its end": (
        LOOP + "<u>{% if m.role == 'assistant' %}</think>{% endif %}{{ m.content }}</s>" + END
        + "{% if add_generation_prompt %}<u><think>{% endif %}",
        "<u>q</s><u><think>[[</think>a</s>]]",
    ),
    "prompt ends thinking, with which answers begin": (
        LOOP + "<u>{% if m.role == 'assistant' %}</think>{% endif %}{{ m.content }}</s>" + END
        + "{% if add_generation_prompt %}<u><think></think>{% endif %}",
        "<u>q</s><u><think></think>[[a</s>]]",
    ),
    "white space before the header differs": (
        LOOP + "{{ '### Q: ' if m.role == 'user' else '\\n\\n### A:\\n' }}{{ m.content }}"
        "{% if m.role == 'assistant' %}</s>{% endif %}" + END + "{% if add_generation_prompt %}### A:\n{% endif %}",
        "### Q: q### A:\n[[a</s>]]",
    ),
    "prompt has another header than answers": (
        LOOP + "{{ 'Q: ' if m.role == 'user' else '\\nBot: ' }}{{ m.content }}"
        "{% if m.role == 'assistant' %}</s>{% endif %}" + END
        + "{{ '\nAssistant: ' if add_generation_prompt else '' }}",
        "Q: q\nAssistant: [[a</s>]]",
    ),
    "answers repeat only the last tag of the prompt's header": (
        LOOP + "{{ '<u>' if m.role == 'user' else '<bot>' }}{{ m.content }}</s>" + END
        + "{% if add_generation_prompt %}<turn><bot>{% endif %}",
        "<u>q</s><turn><bot>[[a</s>]]",
    ),
    "two special tokens end an answer, and the second one also stands at the beginning": (
        "<turn></s>" + LOOP + "<turn>{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}</s>" + END
        + "{% if add_generation_prompt %}<turn>{% endif %}",
        "<turn></s><turn>q</s><turn>[[a<end></s>]]",
    ),
    "marks without the stop and the space before the answer": (
        LOOP + "{% if m.role == 'user' %}Q: {{ m.content }} {% else %}A: {% generation %}{{ m.content + ' ' }}"
        "{% endgeneration %}{% endif %}" + END + "{% if add_generation_prompt %}A:{% endif %}",
        "Q: q A:[[ a</s>]]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("habit", HEADERS)
def test_training_continues_the_generation_prompt(habit: str) -> None:
    template, expected = HEADERS[habit]
    assert rendered(template, ASK, special=("<end>", "<turn>")) == [expected]


def test_a_system_message_that_only_the_prompt_shows_is_not_lost() -> None:
    template = (
        LOOP + "{% if m.role == 'user' %}[I]{% if loop.last %}{{ messages[0].content }}\n{% endif %}{{ m.content }}[/I]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}" + END
    )  # as Mistral Nemo: before the last message, if that is of the user
    assert rendered(template, chat("q1", "a1", "q2", "a2", system="sys")) == [
        "[I]sys\nq1[/I][[a1</s>]]", "[I]q1[/I]a1</s>[I]sys\nq2[/I][[a2</s>]]",
    ]  # fmt: skip


THINKING = {
    "the template removes the thinking from every answer": (
        LOOP + "<{{ m.role }}>{{ m.content.split('</think>')[-1] }}</s>" + END
        + "{% if add_generation_prompt %}<assistant>{% endif %}",
        "<user>q</s><assistant>[[<think>\nr\n</think>\n\na</s>]]",
    ),
    "earlier answers have an empty think block, which the prompt opens": (
        LOOP + "<{{ m.role }}>{% if m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content.split('</think>')[-1] }}</s>" + END
        + "{% if add_generation_prompt %}<assistant><think>{% endif %}",
        "<user>q</s><assistant><think>[[r</think>a</s>]]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("habit", THINKING)
def test_reasoning_that_the_template_removes_follows_the_prompt(habit: str) -> None:
    template, expected = THINKING[habit]
    assert rendered(template, chat("q", "<think>\nr\n</think>\n\na")) == [expected]


def test_an_answer_that_ends_with_the_stop_has_it_once() -> None:
    expected = ["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[a<|im_end|>]]\n"]
    assert rendered(APPENDS, chat("q", "a<|im_end|>"), eos="<|im_end|>") == expected


REFUSED = {
    "a judgment is asked of any last message": (
        LOOP + "{{ m.role }}: {{ m.content }}\n" + END + "Is this safe?{{ '</s>' if add_generation_prompt else '' }}",
        "where an answer ends",
    ),
    "the prompt ends the thinking": (
        LOOP + "<{{ m.role }}>{% if m.role == 'assistant' %}</think>{% endif %}{{ m.content }}</s>" + END
        + "{% if add_generation_prompt %}<assistant></think>{% endif %}",
        "the reasoning",
    ),
}  # fmt: skip


@pytest.mark.parametrize("habit", REFUSED)
def test_a_template_that_cannot_express_a_record_is_refused_by_what_is_lost(habit: str) -> None:
    template, message = REFUSED[habit]
    record = chat("q", "<think>\nr\n</think>\n\na" if "thinking" in habit else "a")
    with pytest.raises(DataError, match=message):
        rendered(template, record)


CALL_NOTATIONS = {
    "numbers without the quotation marks of strings, which are a special token": (
        LOOP + "<u>{{ m.content or '' }}" + CALLS + "{{ c.function.name + '{' }}"
        "{% for k, v in c.function.arguments | dictsort %}"
        "{{ ',' if not loop.first else '' }}{{ k }}:{{ v if v is number else '<|\"|>' + v + '<|\"|>' }}"
        + END + "}" + END + "</s>" + END + "{% if add_generation_prompt %}<u>{% endif %}",
        '<u>q</s><u>[[f{city:<|"|>Bari<|"|>,days:3}</s>]]',
    ),
    "each argument in tags with its name": (
        LOOP + "<u>{{ m.content or '' }}" + CALLS + "{{ c.function.name }}:"
        "{% for k, v in c.function.arguments.items() %}"
        "<{{ k }}>{{ v }}</{{ k }}>" + END + "." + END + "</s>" + END + "{% if add_generation_prompt %}<u>{% endif %}",
        "<u>q</s><u>[[f:<city>Bari</city><days>3</days>.</s>]]",
    ),
    "only the end of an id": (
        LOOP + "<u>{{ m.content or '' }}" + CALLS + "{{ c.function | tojson }}#{{ c.id[-9:] }}" + END + "</s>" + END
        + "{% if add_generation_prompt %}<u>{% endif %}",
        '<u>q</s><u>[[{"name": "f", "arguments": {"city": "Bari", "days": 3}}#call00000</s>]]',
    ),
    "contents must be lists, also the empty one of a call": (
        LOOP + "<u>{{ m.content[0]['text'] }}" + CALLS + "{{ c.function | tojson }}" + END + "</s>" + END
        + "{% if add_generation_prompt %}<u>{% endif %}",
        '<u>q</s><u>[[{"name": "f", "arguments": {"city": "Bari", "days": 3}}</s>]]',
    ),
}  # fmt: skip


@pytest.mark.parametrize("habit", CALL_NOTATIONS)
def test_calls_are_trained_in_the_notation_of_the_template(habit: str) -> None:
    template, expected = CALL_NOTATIONS[habit]
    assert rendered(template, call(("f", {"city": "Bari", "days": 3})), special=('<|"|>',)) == [expected]


def test_a_template_can_look_for_the_call_of_a_result_by_its_id() -> None:
    template = (
        LOOP + "<u>{{ m.content or '' }}" + CALLS + "{{ c.function.name }}" + END
        + "{% if m.role == 'tool' %}{% for o in messages %}{% for c in o.tool_calls or [] %}"
        "{% if c.id == m.tool_call_id %} of {{ loop.index }}{% endif %}" + END + END + "{% endif %}</s>" + END
        + "{% if add_generation_prompt %}<u>{% endif %}"
    )  # fmt: skip
    record = call(("f", {}), ("g", {}), answer="a")
    assert rendered(template, record) == ["<u>q</s><u>[[fg</s>]]<u>r0 of 1</s><u>r1 of 2</s><u>[[a</s>]]"]


def test_calls_end_at_the_first_stop_even_if_an_empty_text_follows() -> None:
    template = (
        LOOP + "{% if m.tool_calls %}<u>" + CALLS + "{{ c.function.name }}<end>" + END + "</s>{% endif %}"
        "{% if m.content is not none %}<u>{{ m.content }}</s>{% endif %}" + END
        + "{% if add_generation_prompt %}<u>{% endif %}"
    )  # fmt: skip
    assert rendered(template, call(("f", {})), special=("<end>",)) == ["<u>q</s><u>[[f<end></s>]]<u></s>"]


def test_a_template_that_writes_only_the_id_of_a_call_gets_ids_that_hold_the_name() -> None:
    """Kimi's templates write ``functions.NAME:0``. An id such as ``call_0`` would lose the name of the function."""
    only_ids = (
        LOOP
        + "<{{ m.role }}>{{ m.content or '' }}"
        + CALLS
        + "<call>{{ c.id }}<args>{{ c.function.arguments | tojson }}"
        "</call>{% endfor %}</s>" + END + "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    record = call(("add", {"x": 1}))
    document = '<user>q</s><assistant>[[<call>functions.add:0<args>{"x": 1}</call></s>]]'
    assert rendered(only_ids, record) == [document]
    record["messages"][1]["tool_calls"][0]["id"] = "functions.add:7"
    assert rendered(only_ids, record) == [document.replace(":0", ":7")]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("<think></think>", "<u>q</s><u>[[<think>r</think>a</s>]]"),
        ("<think>\n\n</think>\n\n", "<u>q</s><u>[[<think>\nr\n</think>\n\na</s>]]"),
        ("[THINK][/THINK]", "<u>q</s><u>[[[THINK]r[/THINK]a</s>]]"),
    ],
)
def test_reasoning_fills_the_empty_think_block_that_a_template_writes_before_answers(block: str, expected: str) -> None:
    """Kimi's thinking models: the template shows no reasoning of the last answer, but an empty block."""
    template = (
        LOOP + "<u>{% if m.role == 'assistant' %}" + block + "{% endif %}{{ m.content }}</s>" + END
        + "{% if add_generation_prompt %}<u>{% endif %}"
    )  # fmt: skip
    record = {"messages": [ASK["messages"][0], {**ASK["messages"][1], "reasoning_content": "r"}]}
    assert rendered(template, record) == [expected]
    inline = {"messages": [ASK["messages"][0], {"role": "assistant", "content": "<think>\nr\n</think>\n\na"}]}
    assert rendered(template, inline) == [expected]


def test_a_call_after_which_only_the_next_message_begins_ends_in_the_stop_of_other_answers() -> None:
    """Command-R+ with tools: an instruction follows the last message, and calls have no stop of their own."""
    template = (
        LOOP + "<start>{{ m.role }}: {% if m.tool_calls %}" + CALLS
        + "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{{ '\n' }}"
        + "{% else %}{{ m.content }}<end>{% endif %}" + END
        + "<start>system: call!<end>{% if add_generation_prompt %}<start>assistant: {% endif %}"
    )  # fmt: skip
    special = ("<start>",)
    first, second = rendered(template, call(("f", {"x": 1}), answer="a"), "<end>", special)
    asked = "<start>user: q<end>"
    assert first == f'{asked}<start>system: call!<end><start>assistant: [[f{{"x": 1}}<end>]]'
    assert second == (
        f'{asked}<start>assistant: f{{"x": 1}}\n<start>tool: r0<end><start>system: call!<end>'
        "<start>assistant: [[a<end>]]"
    )


def test_an_answer_that_the_template_writes_as_two_turns_is_refused() -> None:
    """The distills of DeepSeek-R1: a text beside a call becomes a second turn, after the stop."""
    template = (
        LOOP + "{% if m.tool_calls %}<a>" + CALLS
        + "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}</s>{% endif %}"
        + "{% if m.content %}<a>{{ m.content }}</s>{% endif %}" + END
        + "{% if add_generation_prompt %}<a>{% endif %}"
    )  # fmt: skip
    record = call(("f", {"x": 1}))
    special = ("<a>",)
    assert rendered(template, record, special=special) == ['<a>q</s><a>[[f{"x": 1}</s>]]']
    record["messages"][1]["content"] = "text"
    with pytest.raises(DataError, match="does not show all of message 2 in one turn: it writes </s> between its parts"):
        rendered(template, record, special=special)


@pytest.mark.parametrize("written", ["", "</s>", "</s>\n", "<end>", " <end> \n"])
def test_a_stop_that_the_record_has_already_is_not_doubled(written: str) -> None:
    """Records that were made for a template can hold its stop, which is not always the EOS token."""
    template = LOOP + "<u>{{ m.content }}<end>" + END + "{% if add_generation_prompt %}<u>{% endif %}"
    [text] = rendered(template, chat("q", f"a{written}"), special=("<end>",))
    assert text in ("<u>q<end><u>[[a<end>]]", "<u>q<end><u>[[a <end>]]")
    tokenizer = bytes_tokenizer()
    for record in ({"prompt": "q ", "completion": "a<|im_end|>\n"}, {"text": "q a<|im_end|>"}, {"text": "q a"}):
        [made] = render(read(record), make_renderer(tokenizer, TrainOn.auto))
        assert made.text == "q a<|im_end|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ m.content }}", {("reasoning_content", "own", False), ("content", "own", False)}),
        ("{{ m['thinking'] }}{{ c.id }}", {("thinking", "own", False), ("thinking", "short", False)}),
        ("{% if part.type == 'text' %}", {("content", "own", True)}),
    ],
)
def test_forms_that_a_template_cannot_know_are_not_tried(template: str, expected: set[Any]) -> None:
    """Each form costs renderings: a refused record with tools of its own would take a tenth of a second."""
    record = call(("f", {"x": 1}))["messages"]
    record[1] |= {"content": "", "reasoning_content": "r"}
    found = {(form.reasoning, form.ids, form.content_in_parts) for form in forms(record, template)}
    assert expected <= found
    assert ("thinking" in template) == any(reasoning == "thinking" for reasoning, _, _ in found)
    assert ("c.id" in template) == any(ids != "own" for _, ids, _ in found)
    assert ("text" in template) == any(parts for _, _, parts in found)


def test_a_header_after_the_last_message_is_not_a_stop() -> None:
    template = LOOP + "<{{ m.role }}>{{ m.content }}" + END + "<assistant>"
    assert rendered(template, chat("q", "a", "q2", "b"), special=("<user>", "<assistant>")) == [
        "<user>q<assistant>[[a<user>]]q2<assistant>[[b<user>]]"
    ]


def test_the_plan_of_a_chat_with_many_calls_grows_with_the_chat_and_not_with_its_square() -> None:
    """Chats of agents rarely have the same shape, so many of their plans are kept."""

    def size(steps: int) -> int:
        found = call(*[("f", {"x": number}) for number in range(steps)], answer="a")
        question, all_calls, *results, answer = found["messages"]
        calls = [all_calls | {"tool_calls": [one]} for one in all_calls["tool_calls"]]
        steps_in_order = [message for pair in zip(calls, results, strict=True) for message in pair]
        record = read({"messages": [question, *steps_in_order, answer]})
        [made] = render(record, make_renderer(bytes_tokenizer(), TrainOn.auto))
        return len(pickle.dumps(made.planned))

    assert size(16) < 2.2 * size(8)
