"""The three rules for answers, their prompts and warnings, and what a preview shows of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import Format
from ftdist.data.answers import Answer, answers_of
from ftdist.data.chat_notes import (
    AFTER_STOP,
    CONTEXT_DIFFERS,
    CUT,
    EMPTY_THINKING,
    NO_PROMPT,
    STOP_NOT_TRAINED,
    THINKING_NOT_TRAINED,
)
from ftdist.data.main import main
from ftdist.data.preview_answers import collect_answers
from ftdist.data.records import read_record
from ftdist.data.render import Rendered, render
from ftdist.verify.token_checks import ENDS, FIELDS, check_rules
from tests.unit.data.test_families import CONVERSATIONS, FAMILIES, renderer_of
from tests.unit.data.test_preview import write_config
from tests.unit.data_tools import data_config, write_jsonl

NO_LIMIT = 10**6


def answers(family: str, record: Any, max_seq_len: int = NO_LIMIT) -> list[Answer]:
    document = read_record("f:1", record, Format.auto)
    return answers_of(document, render(document, renderer_of(family)), renderer_of(family), max_seq_len)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.thorough
def test_the_rules_hold_for_every_answer_that_is_trained(family: str) -> None:
    found = []
    for record in CONVERSATIONS.values():
        try:
            found += answers(family, record)
        except DataError:
            continue
    assert len(found) > 10
    for one in found:
        assert (one.lost, one.stops, one.ends, one.differs) == ((), True, True, False)
        assert (NO_PROMPT in one.warnings) == (one.prompt is None) == (one.message == 1)


def test_an_answer_has_the_prompt_that_the_model_will_be_given_and_what_the_template_leaves_out() -> None:
    first, second, third = answers("qwen3", CONVERSATIONS["reasoning_multi"])
    assert [(one.message, one.document, one.num_documents) for one in (first, second, third)] == [
        (2, 1, 3), (4, 2, 3), (6, 3, 3),
    ]  # fmt: skip
    assert first.prompt == first.context == "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    assert first.trained == "<think>\nr1\n</think>\n\na1<|im_end|>"
    assert (first.stripped, third.stripped) == ((), ("the reasoning of message 2", "the reasoning of message 4"))
    assert [one.warnings for one in answers("qwen3", CONVERSATIONS["reasoning_partly"])] == [(), (EMPTY_THINKING,)]


def test_an_answer_that_is_cut_is_named() -> None:
    [whole] = answers("qwen2_5", CONVERSATIONS["single"])
    length = len((whole.context + whole.trained).replace("<|im_start|>", "s").replace("<|im_end|>", "e"))
    assert CUT not in answers("qwen2_5", CONVERSATIONS["single"], length)[0].warnings
    assert CUT in answers("qwen2_5", CONVERSATIONS["single"], length - 1)[0].warnings


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda text, end: replace(text, text="x" + text.text[1:]), CONTEXT_DIFFERS),
        (lambda text, end: replace(text, spans=[(text.spans[0][0], end - len("<|im_end|>"))]), STOP_NOT_TRAINED),
        (lambda text, end: replace(
            text, text=text.text[:end] + " more<|im_end|>", spans=[(text.spans[0][0], end + len(" more<|im_end|>"))]
        ), AFTER_STOP),
    ],
)  # fmt: skip
def test_a_document_that_breaks_a_rule_has_a_warning(change: Any, warning: str) -> None:
    renderer, document = renderer_of("qwen2_5"), read_record("f:1", CONVERSATIONS["single"], Format.auto)
    [text] = render(document, renderer)
    broken: Rendered = change(text, text.spans[0][1])
    [one] = answers_of(document, [broken], renderer, NO_LIMIT)
    assert one.warnings == (warning,)
    fields, ends = check_rules([one])
    assert (fields.name, fields.outcome) == (FIELDS, "passed")
    assert (ends.name, ends.outcome) == (ENDS, "failed" if warning == AFTER_STOP else "passed")


def test_a_field_that_is_not_shown_or_shown_twice_is_named() -> None:
    document = read_record("f:1", CONVERSATIONS["reasoning_call"], Format.auto)
    renderer = renderer_of("qwen3")
    [text] = render(document, renderer)
    [first, _] = answers_of(document, [text], renderer, NO_LIMIT)
    assert first.lost == ()
    other = [{**message, "tool_calls": []} if "tool_calls" in message else message for message in document.messages]
    # The plan of the first call is kept, but the messages that are rendered have no call: the check must see this.
    with pytest.MonkeyPatch.context() as patch:
        shown = render(replace(document, messages=other), renderer)
        patch.setattr("ftdist.data.answers.render", lambda *_: shown)
        [first, *_] = answers_of(document, [text], renderer, NO_LIMIT)
    assert "call 0 name of message 2" in first.lost
    assert "the document does not show call 0 name of message 2 exactly once" in first.warnings
    assert check_rules([first])[0].outcome == "failed"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    renderer_of("qwen3").tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = write_jsonl(
        tmp_path / "a.jsonl",
        [*[CONVERSATIONS["reasoning"]] * 3, CONVERSATIONS["reasoning_multi"], CONVERSATIONS["multi"]],
    )
    return write_config(tmp_path, f"data.sources.mine.path={source}", f"model.tokenizer={tmp_path}/tokenizer")


def test_preview_shows_the_rules_and_an_example_of_each_way_in_which_answers_are_trained(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", str(config_file), "-n", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "9 answers in the first 5 records of data.sources.mine" in out
    assert "✓ each field of the record is shown once: 9 of 9 (2 without the reasoning of earlier answers)" in out
    assert "✓ the answer ends in a trained stop token: 9 of 9 ✓ nothing is trained after the stop: 9 of 9" in out
    assert f"for example message 4 of {config_file.parent}/a.jsonl:4, document 2 of 3" in out
    assert "the chat template leaves out the reasoning of message 2, here and at inference" in out
    assert (
        f"3 answers, for example message 2 of {config_file.parent}/a.jsonl:5, document 1 of 3 warning: an answer" in out
    )
    assert "at inference, and trained: <|im_start|>user q1<|im_end|> <|im_start|>assistant [[<think> r1 </think>" in out
    assert "a.jsonl:1" not in out, "there is nothing to say about the first records"


def test_the_page_shows_the_same(config_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["preview", str(config_file), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "✓ nothing is trained after the stop: 9 of 9" in text
    assert "the chat template leaves out the reasoning of message 2" in text
    assert '<span class="t">&lt;think&gt;\nr1\n&lt;/think&gt;' in text
    assert json.dumps(text).count("<section>") == 3, "two rows and the answers"


def test_a_hub_data_set_that_is_out_of_reach_does_not_end_a_preview_of_prepared_data(tmp_path: Path) -> None:
    config = data_config(tmp_path, f"data.sources.h.hub={tmp_path}/nothing")
    [found] = collect_answers(config, renderer_of("qwen3").tokenizer, 5)
    assert found.title().startswith("the answers of data.sources.h cannot be shown: data.sources.h.hub=")
    assert found.rules() == found.groups() == []
    config = data_config(tmp_path, f"data.sources.h.path={tmp_path}/nothing.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        list(collect_answers(config, renderer_of("qwen3").tokenizer, 5))


def test_a_conversation_all_of_which_is_trained_is_compared_with_the_prompts(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The template of Qwen3 leaves out reasoning that the model has seen: the answer after it had another prompt."""
    config_file.write_text(config_file.read_text().replace("train_on: auto", "train_on: all"), encoding="utf-8")
    assert main(["preview", str(config_file), "-n", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "9 answers in the first 5 records" in out and "✓" not in out
    assert CONTEXT_DIFFERS not in out, "earlier answers are without reasoning here and in the prompts"
    renderer = renderer_of("qwen3")
    document = read_record("f:1", CONVERSATIONS["reasoning_call_multi"], Format.auto)
    text, form, notes = renderer.chats.whole(document)
    assert notes == (THINKING_NOT_TRAINED,)
    found = answers_of(document, [Rendered(text, [(0, len(text))], whole=form)], renderer, NO_LIMIT)
    assert [one.message for one in found] == [2, 4, 6] and [one.differs for one in found] == [False, True, False]
    assert found[1].prompt is not None and "r1" in found[1].prompt and "r1" not in found[1].context
