"""The checks of data in ``ftdist verify``, one at a time."""

import math
from pathlib import Path
from typing import Any, List, Tuple

import numpy as np
import pytest

from ftdist.config.data import LongDocuments, TrainOn
from ftdist.config.optim import OptimConfig, Schedule
from ftdist.config.schema import Kernels, RunConfig
from ftdist.data import row_order
from ftdist.data.prepare import encode_settings, list_sources, prepare
from ftdist.data.tokenizer import bytes_tokenizer, load_tokenizer
from ftdist.plan.batch import plan_batch
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.run.checks import FAILED, NOT_RUN, PASSED, Check
from ftdist.verify import main
from ftdist.verify.text_checks import ANSWERS, BOS, MESSAGES, PROMPT, TEXT, check_answers, check_messages, check_prompts
from ftdist.verify.token_checks import STOP, check_documents, check_stop_tokens, check_tokens, read_samples
from ftdist.verify.trial import make_trial
from tests.unit.data_tools import APPENDS, STRIPS_THINKING, chat, data_config, with_bos, write_jsonl

# Like the template of Llama 2, with a BOS at each turn.
BOS_AT_EACH_TURN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% else %}"
    "{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
# Reads settings from the text and removes them, like the template of SmolLM3.
LEAVES_SWITCHES_OUT = APPENDS.replace("m.content", "m.content.replace('/no_think', '').replace('/think', '')")
# Adds a system prompt if the chat has none. The BOS is <|im_start|>.
SMOLLM2 = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful<|im_end|>\n{% endif %}" + APPENDS
CONVERSATION = chat("one?", "1\n\n  indented", "two?  ", "2 ½", "three?", "3", system="Count /no_think up.")
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
WITH_A_CALL = {"messages": [{"role": "user", "content": "1 + 1?"}, CALL, {"role": "tool", "content": '{"sum": 2}'},
                            {"role": "assistant", "content": "It is 2."}]}  # fmt: skip
THINKS = chat("one?", "1", "two?", "2")
THINKS["messages"][1]["reasoning_content"] = "hm, what"
THINKS["messages"][3]["reasoning_content"] = "hm " * 50 + "so"


def config_of(folder: Path, records: List[Any], *overrides: str) -> RunConfig:
    source = write_jsonl(folder / "train.jsonl", records)
    return data_config(folder, f"data.sources.mine.path={source}", "model.config.vocab_size=320",
                       "batch.global_batch_size=2", *overrides)  # fmt: skip


def run_checks(folder: Path, records: List[Any], *overrides: str, tokenizer: Any = None) -> "dict[str, Check]":
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
        overrides = (f"model.tokenizer={folder / 'tokenizer'}", *overrides)
    config = config_of(folder, records, *overrides)
    return {check.name: check for check in check_tokens(config, prepare(config), 320, quick=False)}


def tokenizer_with(template: str, bos: str = "<s>") -> Any:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("record", [CONVERSATION, WITH_A_CALL], ids=["conversation", "call"])
def test_the_chatml_template_passes(record: Any, tmp_path: Path) -> None:
    found = run_checks(tmp_path, [record] * 3, "data.chat_template=chatml")
    assert {check.outcome for check in found.values()} == {PASSED}, found


@pytest.mark.parametrize(
    ("tokenizer", "bos"),
    [
        (tokenizer_with(BOS_AT_EACH_TURN), "<s> before 3 of 3 documents; the tokenizer adds none"),
        (with_bos(tokenizer_with(BOS_AT_EACH_TURN)), "<s> before 3 of 3 documents"),
        (tokenizer_with(SMOLLM2, "<|im_start|>"), "<|im_start|> before 3 of 3 documents; the tokenizer adds none"),
        (tokenizer_with(BOS_AT_EACH_TURN, "<|im_end|>"), "<|im_end|> before 3 of 3 documents; the tokenizer adds none"),
        (tokenizer_with("\n" + APPENDS), "<s> before 0 of 3 documents; the tokenizer adds none"),
        (tokenizer_with(LEAVES_SWITCHES_OUT), "<s> before 0 of 3 documents; the tokenizer adds none"),
        (bytes_tokenizer(), "the tokenizer has no BOS"),
    ],
    ids=["each turn", "each turn and tokenizer", "smollm2", "bos is eos", "no bos", "switches", "no bos token"],
)
@pytest.mark.thorough
def test_templates_of_known_models_pass(tokenizer: Any, bos: str, tmp_path: Path) -> None:
    found = run_checks(tmp_path, [CONVERSATION] * 3, tokenizer=tokenizer)
    failed = {check.name for check in found.values() if check.outcome == FAILED}
    assert failed <= {PROMPT}, found  # chat programs get the BOS from apply_chat_template, or not at all
    assert found[BOS].measured == bos
    assert found[ANSWERS].measured == "3 of 3 documents"


@pytest.mark.parametrize("train_on", ["last", "auto"])
def test_a_template_may_leave_out_earlier_thinking(train_on: str, tmp_path: Path) -> None:
    found = run_checks(tmp_path, [THINKS], f"data.train_on={train_on}", tokenizer=tokenizer_with(STRIPS_THINKING))
    assert {found[name].outcome for name in (MESSAGES, ANSWERS, STOP)} == {PASSED}, found


def test_unicode_characters_in_another_form_are_counted_and_pass(tmp_path: Path) -> None:
    from tokenizers.normalizers import NFKC

    tokenizer = bytes_tokenizer()
    tokenizer.backend_tokenizer.normalizer = NFKC()
    found = run_checks(tmp_path, [chat("ﬁne?", "½"), chat("fine?", "yes")], tokenizer=tokenizer)
    assert found[TEXT].outcome == PASSED
    assert found[TEXT].measured == "2 of 2 documents, 1 of them with characters in another Unicode form (NFKC)"
    assert found[ANSWERS].outcome == PASSED


PAIR = {"prompt": "Complete: one, two,", "completion": " three, four"}


@pytest.mark.parametrize(
    ("record", "train_on", "outcome", "said"),
    [
        (PAIR, TrainOn.auto, PASSED, "1 of 1 document"), (PAIR, TrainOn.completion, PASSED, "1 of 1 document"),
        (PAIR, TrainOn.all, NOT_RUN, "data.train_on=all"), ({"text": "plain"}, TrainOn.auto, NOT_RUN, "plain text"),
    ],
)  # fmt: skip
def test_the_check_of_answers_covers_completions_and_skips_plain_text(
    record: Any, train_on: TrainOn, outcome: str, said: str, tmp_path: Path
) -> None:
    check = run_checks(tmp_path, [record], f"data.train_on={train_on.name}")[ANSWERS]
    assert check.outcome == outcome
    assert said in check.measured + check.cause


def sample_of(folder: Path, record: Any, train_on: TrainOn) -> Any:
    config = config_of(folder, [record], f"data.train_on={train_on.name}")
    tokenizer = load_tokenizer(config)
    settings = encode_settings(config, list_sources(config)[0], tokenizer)
    [sample], _ = read_samples(config, settings.renderer, quick=False)
    assert check_answers(tokenizer, train_on, [sample]).outcome == PASSED
    return tokenizer, sample


@pytest.mark.parametrize(
    ("record", "train_on"),
    [(chat("Who?", "I"), TrainOn.auto), (CONVERSATION, TrainOn.assistant), (CONVERSATION, TrainOn.last),
     ({"prompt": "ab", "completion": "cd"}, TrainOn.auto), ({"prompt": "ab", "completion": "c"}, TrainOn.completion)],
)  # fmt: skip
def test_a_wrong_mask_fails(record: Any, train_on: TrainOn, tmp_path: Path) -> None:
    """The first token of the answer is not trained; everything is trained; nothing is trained."""
    tokenizer, sample = sample_of(tmp_path, record, train_on)
    first, everything, nothing = sample.trained.copy(), np.ones_like(sample.trained), np.zeros_like(sample.trained)
    first[np.flatnonzero(first)[0]] = 0
    everything[0] = 0
    for trained in (first, everything, nothing):
        check = check_answers(tokenizer, train_on, [sample._replace(trained=trained)])
        assert check.outcome == FAILED, tokenizer.decode(sample.ids[trained == 1])


def test_training_every_answer_or_only_the_last_fails_under_the_other_setting(tmp_path: Path) -> None:
    record = chat("one?", "1", "two?", "a longer answer, of more than some characters", "three?", "3")
    tokenizer, all_answers = sample_of(tmp_path, record, TrainOn.assistant)
    _, last = sample_of(tmp_path, record, TrainOn.last)
    assert check_answers(tokenizer, TrainOn.assistant, [last]).outcome == FAILED
    assert check_answers(tokenizer, TrainOn.last, [all_answers]).outcome == FAILED


@pytest.mark.parametrize("train_on", [TrainOn.auto, TrainOn.all])
@pytest.mark.parametrize("long_documents", [LongDocuments.split, LongDocuments.truncate])
@pytest.mark.parametrize("length", range(28, 38))
@pytest.mark.thorough
def test_an_answer_that_is_cut_or_split_needs_no_stop_token(
    length: int, long_documents: LongDocuments, train_on: TrainOn, tmp_path: Path
) -> None:
    config = config_of(tmp_path, [chat("q", "twelve chars"), {"text": "t" * 33}], f"data.max_seq_len={length}",
                       f"data.long_documents={long_documents.name}", f"data.train_on={train_on.name}")  # fmt: skip
    settings = encode_settings(config, list_sources(config)[0], load_tokenizer(config))
    check = check_stop_tokens(config, prepare(config), settings.stop_ids)
    assert "do not end with a stop token" not in check.cause
    assert check.outcome == PASSED or long_documents is LongDocuments.truncate or length in (33, 34)


def test_a_document_that_packing_loses_fails_the_check(tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("why?", "so " * n) for n in range(1, 21)])
    folder = prepare(config)
    assert check_documents(config, folder).outcome == PASSED
    docs, rows = (np.fromfile(folder / "train" / f"{name}.i64", np.int64) for name in ("row_docs", "row_offsets"))
    np.where(docs == 3, 4, docs).tofile(folder / "train" / "row_docs.i64")
    cause = check_documents(config, folder).cause
    assert "contain 20 documents" in cause, "one document is there twice, another one is missing"
    docs[:-1].tofile(folder / "train" / "row_docs.i64")
    rows[-1] -= 1
    rows.tofile(folder / "train" / "row_offsets.i64")
    cause = check_documents(config, folder).cause
    assert "contain 19 documents" in cause and "expected 20 documents" in cause


def test_an_answer_without_a_trained_stop_fails_the_check(tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("one?", "1", "two?", "2")] * 5)
    settings = encode_settings(config, list_sources(config)[0], load_tokenizer(config))
    folder = prepare(config)
    assert check_stop_tokens(config, folder, settings.stop_ids).outcome == PASSED
    trained, ids = (
        np.fromfile(folder / "train" / "trained.u8", np.uint8),
        np.fromfile(folder / "train" / "tokens.i32", "<i4"),
    )
    stops = np.flatnonzero((trained == 1) & (ids == 257))
    trained[stops[::2]] = 0
    trained.tofile(folder / "train" / "trained.u8")
    check = check_stop_tokens(config, folder, settings.stop_ids)
    assert check.outcome == FAILED
    assert "5 of 10 complete answers do not end with a stop token" in check.cause


def test_text_that_lacks_a_message_and_another_prompt_fail_their_checks(tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("why?", "so.", system="Speak like a pirate.")])
    renderer = encode_settings(config, list_sources(config)[0], load_tokenizer(config)).renderer
    [sample], _ = read_samples(config, renderer, quick=False)
    assert check_messages(TrainOn.auto, [sample]).outcome == PASSED
    check = check_messages(TrainOn.auto, [sample._replace(text=sample.text.replace("pirate", ""))])
    assert check.outcome == FAILED and "train.jsonl:1, message 1 (system)" in check.cause
    assert check_prompts(renderer, [sample]).outcome == PASSED
    check = check_prompts(renderer, [sample._replace(ids=np.roll(sample.ids, 1))])
    assert check.outcome == FAILED and "a chat program gives '<|im_start|>" in check.cause


def batch_of(size: int, micro: int, tmp_path: Path) -> RunConfig:
    return data_config(tmp_path, f"batch.global_batch_size={size}", f"batch.micro_batch_size={micro}")


@pytest.mark.parametrize(
    ("size", "micro", "ranks", "shown"),
    [(8, 2, 2, "2 and 1 rank"), (4, 4, 1, "1 and 2 ranks"), (3, 3, 1, "1 and 3 ranks"), (3, 1, 3, "3 and 1 rank")],
)
def test_the_data_order_is_compared_for_another_number_of_ranks(
    size: int, micro: int, ranks: int, shown: str, tmp_path: Path
) -> None:
    check = main.check_data_order(batch_of(size, micro, tmp_path), 11, ranks)
    assert check.outcome == PASSED
    assert shown in check.measured


def test_the_data_order_of_one_row_is_not_checked(tmp_path: Path) -> None:
    assert main.check_data_order(batch_of(1, 1, tmp_path), 11, 1).outcome == NOT_RUN


def test_a_wrong_data_order_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, taken = row_order._epoch_order, main.train_rows
    config = batch_of(4, 4, tmp_path)
    with monkeypatch.context() as repeating:
        repeating.setattr(row_order, "_epoch_order", lambda seed, epoch, rows: real(seed, 0, rows))
        assert main.check_data_order(config, 11, 1).outcome == FAILED
    monkeypatch.setattr(main, "train_rows", lambda step, micro, rank, plan: taken(step, micro, 0, plan))
    check = main.check_data_order(config, 11, 1)
    assert "2 ranks use other rows" in check.cause and "1 rank uses" not in check.cause


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("warmup", [0, 7])
def test_the_learning_rate_of_every_step_is_compared(
    schedule: Schedule, warmup: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = data_config(tmp_path)
    config.optim = OptimConfig(schedule=schedule, warmup_steps=warmup)
    config.optim.decay_steps = 20 if schedule is Schedule.wsd else 0
    assert main.check_learning_rate(config, 100_000).outcome == PASSED
    real = main.learning_rate
    monkeypatch.setattr(
        main, "learning_rate", lambda optim, step, total: real(optim, step, total) * (1 + (step == 50) / 1e9)
    )
    assert "1 of 100 steps have a wrong rate, for example step 51" in main.check_learning_rate(config, 100).cause


def test_the_steps_of_epochs_are_known_if_all_data_was_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("q", "a")] * 60, "train.epochs=1.5", "data.packing=false")
    for quick, steps in ((False, math.ceil(1.5 * 60 / 2)), (True, 0)):
        trial = make_trial(config, tmp_path / str(quick), 1, 1, quick)
        assert main._max_steps(config, trial, prepare(trial.data_config)) == steps
    assert main.check_learning_rate(config, 0).outcome == NOT_RUN
    config.data.sources["mine"].max_documents = 40
    trial = make_trial(config, tmp_path / "of its own", 1, 1, quick=True)
    assert main._max_steps(config, trial, prepare(trial.data_config)) == 30


def test_a_note_says_how_the_checked_steps_differ_from_the_run(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, [chat("q", "a")] * 8, "model.config.hidden_size=64", "model.config.num_hidden_layers=2"
    )
    trial = make_trial(config, tmp_path / "scratch", 1, 1, quick=False)
    [note] = [note for note in trial.notes if "steps" in note]
    assert note.startswith("2 steps of 1 × 2 × 1 row (")
    assert note.endswith("at most 4 documents of each held-out set")


@pytest.mark.parametrize("interpreted", [False, True])
def test_kernels_that_do_not_run_here_are_left_out_with_a_note(
    interpreted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in of a quick check keeps them where they run: on a CPU if Triton interprets them."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreted)))
    config = config_of(tmp_path, [chat("q", "a")] * 8, "model.kernels=liger")
    trial = make_trial(config, tmp_path / "scratch", 1, 1, quick=True)
    assert trial.steps_config.model.kernels is (Kernels.liger if interpreted else Kernels.none)
    assert any("without Liger's kernels" in note for note in trial.notes) is not interpreted


@pytest.mark.parametrize("given", [(), ("zero.deepspeed.zero_optimization.param_persistence_threshold=10",)])
def test_zero_3_shards_every_parameter_of_a_stand_in(given: Tuple[str, ...], tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("q", "a")] * 8, "zero.stage=3", *given)
    steps = make_trial(config, tmp_path / "scratch", 1, 1, quick=True).steps_config
    settings = deepspeed_settings(steps, plan_batch(steps.batch, 1, steps.data.max_seq_len))["zero_optimization"]
    assert settings["stage3_param_persistence_threshold"] == 0 and "param_persistence_threshold" not in settings
