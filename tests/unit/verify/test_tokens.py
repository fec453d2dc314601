"""The checks of data, one at a time: what is right passes, and what each says is what was found."""

import math
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest

from ftdist.config.schema import LongDocuments, OptimConfig, RunConfig, Schedule, TrainOn
from ftdist.data import row_order
from ftdist.data.prepare import encode_settings, list_sources, prepare
from ftdist.data.tokenizer import bytes_tokenizer, load_tokenizer
from ftdist.run.checks import FAILED, NOT_RUN, PASSED, Check
from ftdist.verify import main, texts, tokens
from ftdist.verify.trial import make_trial
from tests.unit.data_tools import APPENDS, STRIPS_THINKING, chat, data_config, with_bos, write_jsonl

# As a model with BOS at each turn has it (Llama 2), and one that writes settings of its own (SmolLM3).
BOS_AT_EACH_TURN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% else %}"
    "{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
LEAVES_SWITCHES_OUT = APPENDS.replace("m.content", "m.content.replace('/no_think', '').replace('/think', '')")
# Begins with a system prompt of its own where there is none; the BOS is <|im_start|>.
SMOLLM2 = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful<|im_end|>\n{% endif %}" + APPENDS
CONVERSATION = chat("one?", "1\n\n  indented", "two?  ", "2 ½", "three?", "3", system="Count /no_think up.")
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
WITH_A_CALL = {"messages": [{"role": "user", "content": "1 + 1?"}, CALL, {"role": "tool", "content": '{"sum": 2}'},
                            {"role": "assistant", "content": "It is 2."}]}  # fmt: skip
THINKS = chat("one?", "<think>\nhm, what\n</think>\n\n1", "two?", "<think>\n" + "hm " * 50 + "\n</think>\n\n2")


def config_of(folder: Path, records: List[Any], *overrides: str) -> RunConfig:
    source = write_jsonl(folder / "train.jsonl", records)
    return data_config(folder, f"data.sources.mine.path={source}", "model.config.vocab_size=320",
                       "batch.global_batch_size=2", *overrides)  # fmt: skip


def look(folder: Path, records: List[Any], *overrides: str, tokenizer: Any = None) -> "dict[str, Check]":
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
        overrides = (f"model.tokenizer={folder / 'tokenizer'}", *overrides)
    config = config_of(folder, records, *overrides)
    return {check.name: check for check in tokens.token_checks(config, prepare(config), 320, quick=False)}


def tokenizer_with(template: str, bos: str = "<s>") -> Any:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("record", [CONVERSATION, WITH_A_CALL], ids=["conversation", "call"])
def test_the_shipped_template_passes(record: Any, tmp_path: Path) -> None:
    found = look(tmp_path, [record] * 3, "data.chat_template=chatml")
    assert {check.outcome for check in found.values()} == {PASSED}, found


@pytest.mark.parametrize(
    ("tokenizer", "bos"),
    [
        (tokenizer_with(BOS_AT_EACH_TURN), "<s> before 3 of 3 documents; the tokenizer puts none"),
        (with_bos(tokenizer_with(BOS_AT_EACH_TURN)), "<s> before 3 of 3 documents"),
        (tokenizer_with(SMOLLM2, "<|im_start|>"), "<|im_start|> before 3 of 3 documents; the tokenizer puts none"),
        (tokenizer_with(BOS_AT_EACH_TURN, "<|im_end|>"), "<|im_end|> before 3 of 3 documents; the tokenizer puts none"),
        (tokenizer_with("\n" + APPENDS), "<s> before 0 of 3 documents; the tokenizer puts none"),
        (tokenizer_with(LEAVES_SWITCHES_OUT), "<s> before 0 of 3 documents; the tokenizer puts none"),
        (bytes_tokenizer(), "none, the tokenizer has none"),
    ],
    ids=["each turn", "each turn and tokenizer", "smollm2", "bos is eos", "no bos", "switches", "no bos token"],
)
def test_templates_in_the_wild_pass(tokenizer: Any, bos: str, tmp_path: Path) -> None:
    found = look(tmp_path, [CONVERSATION] * 3, tokenizer=tokenizer)
    failed = {check.name for check in found.values() if check.outcome == FAILED}
    assert failed <= {texts.PROMPT}, found  # a chat program adds what it likes before BOS
    assert found[texts.BOS].measured == bos
    assert found[texts.ANSWERS].measured == "3 of 3 documents"


def test_what_is_said_beside_a_call_may_be_left_out(tmp_path: Path) -> None:
    call = {**CALL, "content": "Let me see."}
    only_calls = APPENDS.replace("m.content", "m.tool_calls | tojson if m.tool_calls else m.content")
    record = {"messages": [call if message is CALL else message for message in WITH_A_CALL["messages"]]}
    found = look(tmp_path, [record], tokenizer=tokenizer_with(only_calls))
    assert {found[name].outcome for name in (texts.MESSAGES, texts.ANSWERS)} == {PASSED}, found


def test_earlier_thinking_may_be_left_out_and_the_last_may_be_trained(tmp_path: Path) -> None:
    found = look(tmp_path, [THINKS], "data.train_on=last", tokenizer=tokenizer_with(STRIPS_THINKING))
    assert {found[name].outcome for name in (texts.MESSAGES, texts.ANSWERS, tokens.STOP)} == {PASSED}, found


def test_characters_in_another_form_are_counted_and_pass(tmp_path: Path) -> None:
    from tokenizers.normalizers import NFKC

    tokenizer = bytes_tokenizer()
    tokenizer.backend_tokenizer.normalizer = NFKC()
    found = look(tmp_path, [chat("ﬁne?", "½"), chat("fine?", "yes")], tokenizer=tokenizer)
    assert found[texts.TEXT].outcome == PASSED
    assert found[texts.TEXT].measured == "2 of 2 documents, 1 of them with characters in another form (NFKC)"
    assert found[texts.ANSWERS].outcome == PASSED


PAIR = {"prompt": "Complete: one, two,", "completion": " three, four"}


@pytest.mark.parametrize(
    ("record", "train_on", "outcome", "said"),
    [
        (PAIR, TrainOn.auto, PASSED, "1 of 1 documents"), (PAIR, TrainOn.completion, PASSED, "1 of 1 documents"),
        (PAIR, TrainOn.all, NOT_RUN, "data.train_on=all"), ({"text": "plain"}, TrainOn.auto, NOT_RUN, "plain text"),
    ],
)  # fmt: skip
def test_completions(record: Any, train_on: TrainOn, outcome: str, said: str, tmp_path: Path) -> None:
    check = look(tmp_path, [record], f"data.train_on={train_on.name}")[texts.ANSWERS]
    assert check.outcome == outcome
    assert said in check.measured + check.cause


def sample_of(folder: Path, record: Any, train_on: TrainOn) -> Any:
    config = config_of(folder, [record], f"data.train_on={train_on.name}")
    tokenizer = load_tokenizer(config)
    [sample] = tokens.samples(config, encode_settings(config, list_sources(config)[0], tokenizer).renderer, quick=False)
    assert texts.answers_are_trained(tokenizer, train_on, [sample]).outcome == PASSED
    return tokenizer, sample


@pytest.mark.parametrize(
    ("record", "train_on"),
    [(chat("Who?", "I"), TrainOn.auto), (CONVERSATION, TrainOn.assistant), (CONVERSATION, TrainOn.last),
     ({"prompt": "ab", "completion": "cd"}, TrainOn.auto), ({"prompt": "ab", "completion": "c"}, TrainOn.completion)],
)  # fmt: skip
def test_a_mask_that_is_wrong_fails(record: Any, train_on: TrainOn, tmp_path: Path) -> None:
    """Whatever made it: the first token of an answer untrained, everything trained, nothing."""
    tokenizer, sample = sample_of(tmp_path, record, train_on)
    first, everything, nothing = sample.trained.copy(), np.ones_like(sample.trained), np.zeros_like(sample.trained)
    first[np.flatnonzero(first)[0]] = 0
    everything[0] = 0
    for trained in (first, everything, nothing):
        check = texts.answers_are_trained(tokenizer, train_on, [sample._replace(trained=trained)])
        assert check.outcome == FAILED, tokenizer.decode(sample.ids[trained == 1])


def test_every_answer_under_last_is_too_much_and_the_last_under_assistant_too_little(tmp_path: Path) -> None:
    record = chat("one?", "1", "two?", "a longer answer, of more than some characters", "three?", "3")
    tokenizer, all_answers = sample_of(tmp_path, record, TrainOn.assistant)
    _, last = sample_of(tmp_path, record, TrainOn.last)
    assert texts.answers_are_trained(tokenizer, TrainOn.assistant, [last]).outcome == FAILED
    assert texts.answers_are_trained(tokenizer, TrainOn.last, [all_answers]).outcome == FAILED


@pytest.mark.parametrize("train_on", [TrainOn.auto, TrainOn.all])
@pytest.mark.parametrize("long_documents", [LongDocuments.split, LongDocuments.truncate])
@pytest.mark.parametrize("length", range(28, 38))
def test_an_answer_that_is_cut_or_split_anywhere_need_not_stop(
    length: int, long_documents: LongDocuments, train_on: TrainOn, tmp_path: Path
) -> None:
    config = config_of(tmp_path, [chat("q", "twelve chars"), {"text": "t" * 33}], f"data.max_seq_len={length}",
                       f"data.long_documents={long_documents.name}", f"data.train_on={train_on.name}")  # fmt: skip
    settings = encode_settings(config, list_sources(config)[0], load_tokenizer(config))
    check = tokens.stop_is_trained(config, prepare(config), settings.stop_ids)
    assert "end without one" not in check.cause
    assert check.outcome == PASSED or long_documents is LongDocuments.truncate or length in (33, 34)


def test_a_packing_that_loses_a_document_is_seen(tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("why?", "so " * n) for n in range(1, 21)])
    folder = prepare(config)
    assert tokens.is_whole(config, folder).outcome == PASSED
    docs, rows = (np.fromfile(folder / "train" / f"{name}.i64", np.int64) for name in ("row_docs", "row_offsets"))
    np.where(docs == 3, 4, docs).tofile(folder / "train" / "row_docs.i64")
    assert "hold 20 documents" in tokens.is_whole(config, folder).cause, "one twice, another not at all"
    docs[:-1].tofile(folder / "train" / "row_docs.i64")
    rows[-1] -= 1
    rows.tofile(folder / "train" / "row_offsets.i64")
    cause = tokens.is_whole(config, folder).cause
    assert "hold 19 documents" in cause and "should hold 20" in cause


def batch_of(size: int, micro: int, tmp_path: Path) -> RunConfig:
    return data_config(tmp_path, f"batch.global_batch_size={size}", f"batch.micro_batch_size={micro}")


@pytest.mark.parametrize(
    ("size", "micro", "ranks", "shown"),
    [(8, 2, 2, "2 and 1 ranks"), (4, 4, 1, "1 and 2 ranks"), (3, 3, 1, "1 and 3 ranks"), (3, 1, 3, "3 and 1 ranks")],
)
def test_the_order_is_compared_with_another_number_of_ranks(
    size: int, micro: int, ranks: int, shown: str, tmp_path: Path
) -> None:
    check = main.data_order(batch_of(size, micro, tmp_path), 11, ranks)
    assert check.outcome == PASSED
    assert shown in check.measured


def test_one_row_has_no_order_among_ranks(tmp_path: Path) -> None:
    assert main.data_order(batch_of(1, 1, tmp_path), 11, 1).outcome == NOT_RUN


def test_an_order_that_is_wrong_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, taken = row_order._epoch_order, main.train_rows
    config = batch_of(4, 4, tmp_path)
    with monkeypatch.context() as repeating:
        repeating.setattr(row_order, "_epoch_order", lambda seed, epoch, rows: real(seed, 0, rows))
        assert main.data_order(config, 11, 1).outcome == FAILED
    monkeypatch.setattr(main, "train_rows", lambda step, micro, rank, plan: taken(step, micro, 0, plan))
    check = main.data_order(config, 11, 1)
    assert "2 ranks take other rows" in check.cause and "1 ranks" not in check.cause


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("warmup", [0, 7])
def test_the_rate_of_every_step_is_compared(
    schedule: Schedule, warmup: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = data_config(tmp_path)
    config.optim = OptimConfig(schedule=schedule, warmup_steps=warmup)
    config.optim.decay_steps = 20 if schedule is Schedule.wsd else 0
    assert main.rate_is_as_configured(config, 100_000).outcome == PASSED
    real = main.learning_rate
    monkeypatch.setattr(
        main, "learning_rate", lambda optim, step, total: real(optim, step, total) * (1 + (step == 50) / 1e9)
    )
    assert "1 of 100 steps have another, step 51" in main.rate_is_as_configured(config, 100).cause


def test_the_steps_of_epochs_are_known_where_the_whole_data_is(tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("q", "a")] * 60, "train.epochs=1.5", "data.packing=false")
    for quick, steps in ((False, math.ceil(1.5 * 60 / 2)), (True, 0)):
        trial = make_trial(config, tmp_path / str(quick), 1, 1, quick)
        assert main._max_steps(config, trial, prepare(trial.data)) == steps
    assert main.rate_is_as_configured(config, 0).outcome == NOT_RUN
    config.data.sources["mine"].max_documents = 40
    trial = make_trial(config, tmp_path / "of its own", 1, 1, quick=True)
    assert main._max_steps(config, trial, prepare(trial.data)) == 30


def test_how_the_steps_differ_is_always_said(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, [chat("q", "a")] * 8, "model.config.hidden_size=64", "model.config.num_hidden_layers=2"
    )
    trial = make_trial(config, tmp_path / "scratch", 1, 1, quick=False)
    [note] = [note for note in trial.notes if "steps" in note]
    assert note.startswith("2 steps of 1 × 2 × 1 rows of ")
    assert note.endswith("at most 4 held-out documents of a set are looked at")
