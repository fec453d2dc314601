"""Deliberately broken configs and data sets: verify fails on each, and names the cause."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from data_tools import chat, data_config, with_bos, word_tokenizer, write_jsonl

from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.verify.checks import FAILED, PASSED, Check, read
from ftdist.verify.main import before_ranks
from tests.spawn import run_ranks
from tests.tiny import LLAMA, tiny_config

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}ANSWER{% else %}" \
        "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}PROMPT{% endif %}"  # fmt: skip
MARKED = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
PROMPT = "<|im_start|>assistant\n"
CHATS = [chat(f"how is {n}?", f"it is {n}.") for n in range(30)]
Broken = Tuple[List[str], List[Any]]


def template(answer: str = MARKED, prompt: str = PROMPT, first: str = "") -> str:
    return first + TURNS.replace("ANSWER", answer).replace("PROMPT", prompt)


def look(folder: Path, overrides: List[str], records: List[Any]) -> Dict[str, Check]:
    source = write_jsonl(folder / "train.jsonl", records)
    config = data_config(folder, f"data.sources.mine.path={source}", "model.config.vocab_size=320",
                         "batch.global_batch_size=2", *overrides)  # fmt: skip
    (folder / "scratch").mkdir()
    before_ranks(config, folder / "scratch", 1, 1, quick=False)
    return {check.name: check for check in read(folder / "scratch")}


def written(folder: Path, text: str) -> str:
    (folder / "template.jinja").write_text(text)
    return f"data.chat_template={folder / 'template.jinja'}"


def saved(folder: Path, tokenizer: Any, text: str = template()) -> str:
    tokenizer.chat_template = text
    tokenizer.save_pretrained(folder / "tokenizer")
    return f"model.tokenizer={folder / 'tokenizer'}"


def no_stop_token(folder: Path) -> Broken:
    return [written(folder, template("{% generation %}{{ m.content }}{% endgeneration %}"))], CHATS


def stop_token_outside_the_marks(folder: Path) -> Broken:
    return [written(folder, template("{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>"))], CHATS


def all_masked_after_truncation(folder: Path) -> Broken:
    return ["data.max_seq_len=16"], [chat("a question that is far longer than the row " * 2, "yes")] * 5


def double_bos(folder: Path) -> Broken:
    from tokenizers.processors import TemplateProcessing

    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    twice = TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = twice
    return [saved(folder, tokenizer, template(first="{{ bos_token }}"))], CHATS


def template_with_two_bos(folder: Path) -> Broken:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return [saved(folder, with_bos(tokenizer), template(first="{{ bos_token }}{{ bos_token }}"))], CHATS


def padding_that_is_text(folder: Path) -> Broken:
    tokenizer = bytes_tokenizer()
    tokenizer.pad_token = "a"
    return [saved(folder, tokenizer)], CHATS


def padding_that_is_the_bos(folder: Path) -> Broken:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.pad_token = "<s>"
    return [saved(folder, with_bos(tokenizer), template(first="{{ bos_token }}"))], CHATS


def tokenizer_that_lacks_characters(folder: Path) -> Broken:
    return [saved(folder, word_tokenizer())], [chat("a b", "c zebra")] * 5


def another_models_tokenizer(folder: Path) -> Broken:
    return ["model.config.vocab_size=200"], CHATS


def another_generation_prompt(folder: Path) -> Broken:
    return [written(folder, template(prompt="<|im_start|>model\n"))], CHATS


def most_answers_empty(folder: Path) -> Broken:
    empty = {"messages": [{"role": "user", "content": "what?"}]}
    return [], [*CHATS[:3], *[empty] * 20]


def rows_far_too_short(folder: Path) -> Broken:
    return ["data.max_seq_len=64"], [chat("why?", "because " * 30)] * 20


def rows_longer_than_the_positions(folder: Path) -> Broken:
    gpt2 = ("model_type=gpt2", "vocab_size=320", "n_embd=32", "n_layer=2", "n_head=4", "n_positions=64")
    return ["model.config=null", *(f"model.config.{field}" for field in gpt2)], CHATS


BROKEN: Dict[Callable[[Path], Broken], Tuple[str, str]] = {
    no_stop_token: ("stop token is trained", "the model will not learn to stop"),
    stop_token_outside_the_marks: ("stop token is trained", "inside its generation block"),
    all_masked_after_truncation: ("the data can be trained on", "nothing to train after truncation"),
    double_bos: ("exactly one BOS", "puts 2 before a text"),
    template_with_two_bos: ("training prompt = chat prompt", "a chat program gives '<s>"),
    padding_that_is_text: ("padding token", "'a' stands in"),
    padding_that_is_the_bos: ("padding token", "is the BOS too"),
    tokenizer_that_lacks_characters: ("text survives tokenisation", "lacks characters"),
    another_models_tokenizer: ("ids fit the embedding", "another model's tokenizer"),
    another_generation_prompt: ("training prompt = chat prompt", "a chat program gives"),
    most_answers_empty: ("tokens are trained", "most of the source 'mine' is dropped"),
    rows_longer_than_the_positions: ("the model can be trained", "each a row of a table"),
    rows_far_too_short: ("documents are whole", "are cut at data.max_seq_len=64"),
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_what_is_broken_is_named(broken: Callable[[Path], Broken], tmp_path: Path) -> None:
    name, cause = BROKEN[broken]
    overrides, records = broken(tmp_path)
    check = look(tmp_path, overrides, records)[name]
    assert check.outcome == FAILED
    assert cause in check.cause


def test_what_is_whole_passes(tmp_path: Path) -> None:
    found = look(tmp_path, [written(tmp_path, template())], CHATS)
    assert len(found) == 10
    assert {check.outcome for check in found.values()} == {PASSED}, found


def _numbers(config: Any, folder: Path) -> List[Check]:
    from ftdist.data.prepare import prepare
    from ftdist.train import ranks as rank_setup
    from ftdist.verify.main import number_checks_or_cause

    rank_setup.quiet_libraries()
    prepare(config)
    ranks = rank_setup.read_ranks(config)
    rank_setup.start_process_group(config, ranks)
    number_checks_or_cause(config, folder, ranks, quick=True)
    return read(folder)


def test_a_model_whose_attention_does_not_isolate(tmp_path: Path) -> None:
    """Bloom takes no attention function from outside, and gets no mask: each token sees the whole row."""
    model = ("model_type=bloom", "vocab_size=259", "hidden_size=32", "n_layer=2", "n_head=4")
    bloom = tiny_config(tmp_path, "model.path=null", *(f"model.config.{field}" for field in model))
    [checks] = run_ranks(_numbers, 1, bloom, tmp_path)
    assert checks[0].name == "packing isolation"
    assert checks[0].outcome == FAILED
    assert "bloom reads ahead with model.attention=documents" in checks[0].cause
    assert [check.outcome for check in checks[1:]] == ["not run"] * 8


def _export_of_the_step_before(config: Any, folder: Path) -> List[Check]:
    from ftdist.data.prepare import prepare
    from ftdist.train import ranks as rank_setup
    from ftdist.verify import numbers
    from ftdist.verify.main import number_checks_or_cause

    export = numbers.export_checkpoint
    numbers.export_checkpoint = lambda newest, *to: export(newest.with_name("step-00000001"), *to)
    rank_setup.quiet_libraries()
    prepare(config)
    ranks = rank_setup.read_ranks(config)
    rank_setup.start_process_group(config, ranks)
    number_checks_or_cause(config, folder, ranks, quick=False)
    return read(folder)


def test_an_export_that_misses_a_step_of_bf16(tmp_path: Path) -> None:
    """Its logits differ by less than rounding may make: its weights tell."""
    config = tiny_config(
        tmp_path, "model.path=null", *(f"model.config.{name}={value}" for name, value in LLAMA.items()),
        "train.precision=bf16", "train.max_steps=2", "train.checkpoint_every=1", "train.num_samples=0",
        "train.export=false", "data.sources.chats.max_documents=40", "batch.global_batch_size=2",
    )  # fmt: skip
    [checks] = run_ranks(_export_of_the_step_before, 1, config, tmp_path)
    [check] = [check for check in checks if check.name == "export: same logits"]
    assert check.outcome == FAILED
    assert "weights are not the run's" in check.cause and "computes something else" not in check.cause
    assert [check.outcome for check in checks].count(FAILED) == 1
