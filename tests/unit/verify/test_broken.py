"""Deliberately broken configs and data sets: verify fails on each, and names the cause."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from ftdist.config.schema import ModelConfig, RunConfig
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.run.checks import FAILED, NOT_RUN, PASSED, Check, read
from ftdist.verify.main import before_ranks
from tests.spawn import run_ranks
from tests.tiny import LLAMA, tiny_config
from tests.unit.data_tools import chat, data_config, with_bos, word_tokenizer, write_jsonl

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}ANSWER{% else %}" \
        "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}PROMPT{% endif %}"  # fmt: skip
MARKED = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
PROMPT = "<|im_start|>assistant\n"
CHATS = [chat(f"how is {n}?", f"it is {n}.") for n in range(30)]
Broken = Tuple[List[str], List[Any]]


def template(answer: str = MARKED, prompt: str = PROMPT, first: str = "") -> str:
    return first + TURNS.replace("ANSWER", answer).replace("PROMPT", prompt)


def look(folder: Path, overrides: List[str], records: List[Any]) -> Dict[str, Check]:
    return look_at(folder, broken_config(folder, overrides, records))


def broken_config(folder: Path, overrides: List[str], records: List[Any]) -> RunConfig:
    source = write_jsonl(folder / "train.jsonl", records)
    return data_config(folder, f"data.sources.mine.path={source}", "model.config.vocab_size=320",
                       "batch.global_batch_size=2", "train.epochs=2", *overrides)  # fmt: skip


def look_at(folder: Path, config: RunConfig) -> Dict[str, Check]:
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


def template_with_two_bos_where_the_tokenizer_puts_none(folder: Path) -> Broken:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return [saved(folder, tokenizer, template(first="{{ bos_token }}{{ bos_token }}"))], CHATS


def tokenizer_that_deletes_white_space(folder: Path) -> Broken:
    return [saved(folder, word_tokenizer())], [chat("a b", "c a")] * 5


def no_system_prompt(folder: Path) -> Broken:
    text = template().replace("messages %}", "messages if m.role != 'system' %}", 1)
    return [written(folder, text)], [chat("why?", "so.", system="Speak like a pirate.")] * 5


def answers_that_are_cut(folder: Path) -> Broken:
    cut = MARKED.replace("m.content", "m.content[:8]")
    return [written(folder, template(cut))], [chat("why?", "because of the weather")] * 5


def first_token_of_answers_is_not_trained(folder: Path) -> Broken:
    answer = "{{ m.content[:1] }}" + MARKED.replace("m.content", "m.content[1:]")
    return [written(folder, template(answer))], CHATS


def everything_is_trained(folder: Path) -> Broken:
    text = template("{{ m.content }}<|im_end|>").replace(
        "<|im_start|>{{ m.role }}", "{% generation %}<|im_start|>{{ m.role }}"
    )
    return [written(folder, text.replace("\n{% endfor", "{% endgeneration %}\n{% endfor"))], CHATS


def more_is_trained_than_templates_write(folder: Path) -> Broken:
    much = MARKED.replace("{{ m.content }}", "{{ 'a rule that every answer repeats. ' * 2 }}{{ m.content }}")
    return [written(folder, template(much))], CHATS


def only_the_last_answer_is_trained(folder: Path) -> Broken:
    answer = "{% if loop.last %}" + MARKED + "{% else %}{{ m.content }}<|im_end|>{% endif %}"
    return [written(folder, template(answer))], [chat("one?", "1", "two?", "2")] * 5


def no_stop_token_but_the_last(folder: Path) -> Broken:
    answer = "{% generation %}{{ m.content }}{% if loop.last %}<|im_end|>{% endif %}{% endgeneration %}"
    return [written(folder, template(answer))], [chat("one?", "1", "two?", "2")] * 5


def no_stop_token_but_the_last_and_cut(folder: Path) -> Broken:
    """The end of a document that is cut is not looked at, its earlier answers are."""
    overrides, _ = no_stop_token_but_the_last(folder)
    return [*overrides, "data.max_seq_len=64"], [chat("one?", "1", "two?", "2 " * 10)] * 2 + CHATS


def some_answers_masked_by_truncation(folder: Path) -> Broken:
    long = [chat("a question that is far longer than the row " * 2, f"yes {n}") for n in range(6)]
    return ["data.max_seq_len=80"], [*CHATS, *long]


def tokenizer_without_eos(folder: Path) -> Broken:
    tokenizer = bytes_tokenizer()
    tokenizer.eos_token = None
    return [saved(folder, tokenizer)], CHATS


def tokenizer_that_is_not_there(folder: Path) -> Broken:
    return [f"model.tokenizer={folder / 'nowhere'}"], CHATS


def template_that_is_not_there_for_a_tokenizer_on_the_hub(folder: Path) -> Broken:
    return ["model.tokenizer=nobody/nowhere", "data.chat_template=nowhere.jinja"], CHATS


def records_that_cannot_be_read_for_a_tokenizer_on_the_hub(folder: Path) -> Broken:
    return ["model.tokenizer=nobody/nowhere"], [*CHATS, {"question": "what?"}]


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
    template_with_two_bos_where_the_tokenizer_puts_none: ("exactly one BOS", "two <s> next to each other"),
    tokenizer_that_deletes_white_space: ("text survives tokenisation", "drops or adds white space"),
    no_system_prompt: ("every message is rendered", "train.jsonl:1, message 1 (system)"),
    answers_that_are_cut: ("every message is rendered", "train.jsonl:1, message 2 (assistant)"),
    first_token_of_answers_is_not_trained: ("answers are what is trained", "an answer is not trained, or not whole"),
    everything_is_trained: ("answers are what is trained", "another message (user) is trained in 30 documents"),
    more_is_trained_than_templates_write: ("answers are what is trained", "more than the answers is trained in 30"),
    only_the_last_answer_is_trained: ("answers are what is trained", "an answer is not trained, or not whole"),
    no_stop_token_but_the_last: ("stop token is trained", "5 of 10 whole answers end without one"),
    no_stop_token_but_the_last_and_cut: ("stop token is trained", "2 of 32 whole answers end without one"),
    some_answers_masked_by_truncation: (
        "tokens are trained",
        "6 of 36 documents of 'mine' have nothing to train after",
    ),
    tokenizer_without_eos: ("the tokenizer can be used", "has no eos_token"),
    tokenizer_that_is_not_there: ("the tokenizer can be used", "cannot load the tokenizer"),
    template_that_is_not_there_for_a_tokenizer_on_the_hub: ("the tokenizer can be used", "nowhere.jinja is not there"),
    records_that_cannot_be_read_for_a_tokenizer_on_the_hub: ("the data can be trained on", "train.jsonl:31"),
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
    assert len(found) == 13
    assert {check.outcome for check in found.values()} == {PASSED}, found


@pytest.mark.parametrize("broken", [tokenizer_without_eos, tokenizer_that_is_not_there])
def test_a_tokenizer_that_train_refuses_is_said_once_and_nothing_else_is_checked(broken: Any, tmp_path: Path) -> None:
    overrides, records = broken(tmp_path)
    model, tokenizer = look(tmp_path, overrides, records).values()
    assert (model.outcome, tokenizer.outcome) == (PASSED, FAILED)


def test_a_tokenizer_on_the_hub_may_be_missing(tmp_path: Path) -> None:
    found = look(tmp_path, ["model.tokenizer=nobody/nowhere"], CHATS)
    assert found["tokenisation, 10 checks"].outcome == NOT_RUN
    assert not [check for check in found.values() if check.outcome == FAILED]


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked: List[Any] = []
    for kind in (transformers.AutoConfig, transformers.AutoTokenizer):
        real = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda *a, _real=real, **k: (asked.append(a), _real(*a, **k))[1])
    config = broken_config(tmp_path, [], CHATS)
    config.model = ModelConfig(hub="nobody/llama")
    found = look_at(tmp_path, config)
    assert asked == [("nobody/llama",)]
    assert found["the model can be trained"].outcome == found["tokenisation, 10 checks"].outcome == NOT_RUN
    assert "cannot load the tokenizer nobody/llama" in found["tokenisation, 10 checks"].cause


def _numbers(config: Any, folder: Path, quick: bool = True) -> List[Check]:
    from ftdist.data.prepare import prepare
    from ftdist.parallel import rank_process
    from ftdist.parallel import ranks as rank_setup
    from ftdist.verify.main import number_checks_or_cause

    rank_process.quiet_libraries()
    prepare(config)
    ranks = rank_setup.read_ranks(config)
    rank_setup.start_process_group(config, ranks)
    number_checks_or_cause(config, folder, ranks, quick)
    return read(folder)


@pytest.mark.process
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
    from ftdist.verify import numbers

    export = numbers.export_checkpoint
    numbers.export_checkpoint = lambda newest, *to: export(newest.with_name("step-00000001"), *to)
    return _numbers(config, folder, quick=False)


@pytest.mark.process
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
