"""Rendering of documents, and which of their tokens are trained."""

import random
from typing import Any

import numpy as np
import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import TrainOn, Turns
from ftdist.data.chat_notes import THINKING_NOT_TRAINED
from ftdist.data.render import make_renderer, render
from ftdist.data.tokenise import tokenise
from ftdist.data.tokenizer import bytes_tokenizer
from tests.unit.data_tools import (
    APPENDS,
    STRIPS_THINKING,
    chat,
    documents_of,
    ids_of,
    read,
    trained_text,
    with_bos,
    word_tokenizer,
)

TWO_TURNS = chat("q1", "a1", "q2", "a2", system="s")


def tokenizer_with(template: str | None) -> Any:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=["marks", "prefixes"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return bytes_tokenizer() if request.param == "marks" else tokenizer_with(APPENDS)


def test_answers_and_stop_tokens_are_trained_and_the_line_breaks_after_them_are_not(tokenizer: Any) -> None:
    assert trained_text(tokenizer, TWO_TURNS) == ["a1<|im_end|>", "a2<|im_end|>"]
    assert trained_text(tokenizer, TWO_TURNS, TrainOn.last) == ["a2<|im_end|>"]
    text = tokenizer.decode(ids_of(tokenizer, TWO_TURNS))
    assert text.startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1")


def test_only_the_answers_of_the_completion_are_trained(tokenizer: Any) -> None:
    messages = TWO_TURNS["messages"]
    record = {"prompt": messages[:4], "completion": messages[4:]}
    assert trained_text(tokenizer, record) == ["a2<|im_end|>"]
    assert trained_text(tokenizer, record, TrainOn.assistant) == ["a1<|im_end|>", "a2<|im_end|>"]


def test_messages_after_the_last_answer_are_removed(tokenizer: Any) -> None:
    record = chat("q1", "a1", "bye")
    assert "bye" not in tokenizer.decode(ids_of(tokenizer, record))
    assert trained_text(tokenizer, chat("only a question")) == []


def test_templates_with_and_without_generation_blocks_give_the_same_mask() -> None:
    draw = random.Random(0)
    marks, prefixes = bytes_tokenizer(), tokenizer_with(APPENDS)
    for _ in range(50):
        texts = [
            "a".join("".join(draw.choices("ab \n<é|>", k=draw.randint(0, 5))) for _ in range(2))
            for _ in range(2 * draw.randint(1, 3))
        ]
        record = chat(*texts)
        assert ids_of(marks, record) == ids_of(prefixes, record)
        assert trained_text(marks, record) == trained_text(prefixes, record)


def test_train_on_all_trains_every_token_but_the_first() -> None:
    [run] = trained_text(bytes_tokenizer(), TWO_TURNS, TrainOn.all)
    assert run.startswith("system\ns<|im_end|>")
    assert run.endswith("a2<|im_end|>\n")


@pytest.mark.parametrize("template, is_lost", [(APPENDS, False), (STRIPS_THINKING, True)])
def test_train_on_all_says_that_reasoning_is_lost(template: str, is_lost: bool) -> None:
    record = chat("q1", "a1", "q2", "a2")
    record["messages"][1]["reasoning_content"] = "hm"
    [made] = render(read(record), make_renderer(tokenizer_with(template), TrainOn.all))
    assert made.notes == ((THINKING_NOT_TRAINED,) if is_lost else ())


def test_plain_text_is_trained_completely_and_ends_with_eos() -> None:
    assert trained_text(bytes_tokenizer(), {"text": "hello"}) == ["ello<|im_end|>"]


def test_prompt_and_completion_are_tokenised_as_one_text() -> None:
    tokenizer = bytes_tokenizer()
    record = {"prompt": "1+1=", "completion": "2"}
    assert trained_text(tokenizer, record) == ["2<|im_end|>"]
    assert ids_of(tokenizer, record) == tokenizer("1+1=2<|im_end|>").input_ids


def test_a_token_that_overlaps_prompt_and_completion_is_trained() -> None:
    """Otherwise only the stop token would be trained if the prompt ends within the last word."""
    assert trained_text(word_tokenizer(), {"prompt": "b use", "completion": "r"}) == ["user</s>"]


@pytest.mark.parametrize("template", [APPENDS, "<s>" + APPENDS, "{{ bos_token }}" + APPENDS, "<s><s>" + APPENDS])
def test_a_document_has_exactly_one_bos_if_the_tokenizer_adds_one(template: str) -> None:
    tokenizer = with_bos(word_tokenizer())
    tokenizer.chat_template = template
    for record in (chat("a", "b"), {"text": "a"}, {"text": "<s>a"}, {"prompt": "a", "completion": " b"}):
        ids = ids_of(tokenizer, record)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    assert trained_text(tokenizer, chat("a", "b")) == ["b<|im_end|>"]
    assert trained_text(tokenizer, {"prompt": "a", "completion": " b"}) == ["b</s>"]


def test_a_document_has_no_bos_if_the_tokenizer_adds_none() -> None:
    tokenizer = word_tokenizer(bos_token="<s>")
    tokenizer.chat_template = APPENDS
    assert tokenizer.bos_token_id not in ids_of(tokenizer, chat("a", "b")) + ids_of(tokenizer, {"text": "a"})


def test_the_stop_token_is_trained_even_if_it_is_the_padding_token() -> None:
    tokenizer = word_tokenizer(eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = APPENDS
    assert trained_text(tokenizer, chat("a", "b")) == ["b<|im_end|>"]
    assert trained_text(tokenizer, {"text": "a b"}) == ["b<|im_end|>"]


def test_an_answer_that_changes_later_is_trained_in_a_document_of_its_own() -> None:
    tokenizer = tokenizer_with(STRIPS_THINKING)
    record = chat("q1", "a1", "q2", "a2")
    for number, reasoning in ((1, "hm"), (3, "so")):
        record["messages"][number]["reasoning_content"] = reasoning
    first = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    second = "<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    one = first + "[[<think>\nhm\n</think>\n\na1<|im_end|>]]\n"
    two = first + "\n\na1" + second + "[[<think>\nso\n</think>\n\na2<|im_end|>]]\n"
    assert documents_of(tokenizer, record) == [one, two]
    assert documents_of(tokenizer, record, turns=Turns.each) == [one, two]
    assert documents_of(tokenizer, record, TrainOn.last, turns=Turns.whole) == [two]
    with pytest.raises(DataError, match=r"file:1: the chat template renders message 2 differently .*data\.turns=whole"):
        documents_of(tokenizer, record, turns=Turns.whole)
    plain = chat("q1", "a1", "q2", "a2")
    assert len(documents_of(tokenizer, plain)) == 1
    assert len(documents_of(tokenizer, plain, turns=Turns.each)) == 2


def test_training_continues_the_generation_prompt_where_it_differs_from_answers() -> None:
    tokenizer = tokenizer_with(APPENDS.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"))
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert documents_of(tokenizer, chat("q", "a")) == [prompt + "[[\n</think>\n\na<|im_end|>]]"]
    record = chat("q", "a")
    record["messages"][1]["reasoning_content"] = "hm"
    [document] = documents_of(tokenizer, record)
    assert document.startswith(prompt + "[[hm\n</think>\n\na<|im_end|>]]")


def test_missing_templates_and_templates_that_raise_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        trained_text(tokenizer_with(None), chat("q", "a"))
    assert "no chat template" in caught.value.found
    assert "data.chat_template=chatml" in caught.value.fix
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + APPENDS
    with pytest.raises(DataError) as caught:
        trained_text(tokenizer_with(picky), TWO_TURNS)
    assert "file:1" in caught.value.found
    assert "no system role here" in caught.value.found
    with pytest.raises(
        DataError, match="file:1: the chat template cannot render .* TypeError: can only concatenate str"
    ):
        trained_text(tokenizer_with("{{ messages[0].content + 1 }}"), chat("q", "a"))
    with pytest.raises(DataError, match="file:1: the chat template cannot render .* ZeroDivisionError: "):
        trained_text(tokenizer_with("{{ 1 / 0 }}"), chat("q", "a"))


@pytest.mark.parametrize(
    ("record", "train_on", "said"),
    [
        ({"text": "t"}, TrainOn.assistant, "data.train_on=assistant, but the record is plain text"),
        ({"text": "t"}, TrainOn.last, "data.train_on=last, but the record is plain text"),
        (chat("q", "a"), TrainOn.completion, "data.train_on=completion, but the record is a chat"),
    ],
)
def test_training_on_a_part_that_the_record_does_not_have_is_refused(record: Any, train_on: TrainOn, said: str) -> None:
    with pytest.raises(DataError) as caught:
        trained_text(bytes_tokenizer(), record, train_on)
    assert said in caught.value.found


def test_an_unpaired_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match=r"file:1: the text contains an unpaired surrogate \('\\ud83d'\)"):
        trained_text(bytes_tokenizer(), chat("q", "a\ud83d"))


def test_chatml_renders_tools_and_trains_tool_calls() -> None:
    tokenizer = bytes_tokenizer()
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "two"},
    ]
    record = {"messages": messages, "tools": [{"name": "add"}]}
    calls, answer = trained_text(tokenizer, record)
    assert calls == '<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call><|im_end|>'
    assert answer == "two<|im_end|>"
    text = tokenizer.decode(ids_of(tokenizer, record))
    tool = '{"type": "function", "function": {"name": "add"}}'
    assert text.startswith(f"<|im_start|>system\n# Tools\n{tool}\n<|im_end|>\n<|im_start|>user\nq")
    system = [{"role": "system", "content": "be brief"}, *messages]
    assert "be brief\n\n# Tools" in tokenizer.decode(ids_of(tokenizer, record | {"messages": system}))


def test_truncation_and_padding_of_the_tokenizer_are_switched_off() -> None:
    tokenizer = bytes_tokenizer()
    plain = ids_of(tokenizer, TWO_TURNS)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    assert ids_of(tokenizer, TWO_TURNS) == plain


def test_a_batch_is_tokenised_like_each_document_alone() -> None:
    renderer = make_renderer(bytes_tokenizer(), TrainOn.auto)
    rendered = [one for record in (TWO_TURNS, {"text": "t"}, chat("é", "日")) for one in render(read(record), renderer)]
    for one, alone in zip(tokenise(rendered, renderer), rendered, strict=True):
        [same] = tokenise([alone], renderer)
        assert np.array_equal(one.ids, same.ids)
        assert np.array_equal(one.trained, same.trained)


def test_chatml_shows_the_field_of_the_reasoning_as_a_think_block() -> None:
    """The exported template must show a conversation at inference as it was trained."""
    tokenizer = bytes_tokenizer()
    answer = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    record = {"messages": [{"role": "user", "content": "q"}, answer]}
    assert trained_text(tokenizer, record) == ["<think>\n2 + 2\n</think>\n\n4<|im_end|>"]
    assert "<think>\n2 + 2\n</think>\n\n4" in tokenizer.apply_chat_template(record["messages"], tokenize=False)
