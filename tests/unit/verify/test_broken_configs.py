"""``ftdist verify`` on configs and data that are broken on purpose: the right check fails and names the cause."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from ftdist.config.schema import ModelConfig, RunConfig
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.run.checks import FAILED, NOT_RUN, PASSED, Check, read_checks
from ftdist.verify.main import check_before_ranks
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import LLAMA, tiny_config
from tests.unit.data_tools import chat, data_config, with_bos, word_tokenizer, write_jsonl

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}ANSWER{% else %}" \
        "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}PROMPT{% endif %}"  # fmt: skip
MARKED = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
PROMPT = "<|im_start|>assistant\n"
CHATS = [chat(f"how is {n}?", f"it is {n}.") for n in range(30)]
Broken = Tuple[List[str], List[Any]]


def template(answer: str = MARKED, prompt: str = PROMPT, first: str = "") -> str:
    return first + TURNS.replace("ANSWER", answer).replace("PROMPT", prompt)


def run_checks(folder: Path, overrides: List[str], records: List[Any]) -> Dict[str, Check]:
    return run_checks_of(folder, broken_config(folder, overrides, records))


def broken_config(folder: Path, overrides: List[str], records: List[Any]) -> RunConfig:
    source = write_jsonl(folder / "train.jsonl", records)
    return data_config(folder, f"data.sources.mine.path={source}", "model.config.vocab_size=320",
                       "batch.global_batch_size=2", "train.epochs=2", *overrides)  # fmt: skip


def run_checks_of(folder: Path, config: RunConfig) -> Dict[str, Check]:
    (folder / "scratch").mkdir()
    check_before_ranks(config, folder / "scratch", 1, 1, quick=False)
    return {check.name: check for check in read_checks(folder / "scratch")}


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
    all_masked_after_truncation: ("data can be trained on", "nothing to train after truncation"),
    double_bos: ("exactly one BOS", "adds 2 BOS tokens before each text"),
    template_with_two_bos: ("training prompt = chat prompt", "a chat program gives '<s>"),
    template_with_two_bos_where_the_tokenizer_puts_none: ("exactly one BOS", "two <s> in a row"),
    tokenizer_that_deletes_white_space: ("tokens decode to the text", "removes or adds white space"),
    no_system_prompt: ("data can be trained on", "does not show the content (system) of message 1"),
    answers_that_are_cut: ("data can be trained on", "does not show the content (assistant) of message 2"),
    first_token_of_answers_is_not_trained: (
        "only the answers are trained",
        "an answer, or a part of it, is not trained",
    ),
    more_is_trained_than_templates_write: (
        "only the answers are trained",
        "tokens outside the answers are trained in 30",
    ),
    only_the_last_answer_is_trained: ("only the answers are trained", "an answer, or a part of it, is not trained"),
    some_answers_masked_by_truncation: (
        "trained tokens",
        "6 of 36 documents of 'mine' have nothing to train after",
    ),
    tokenizer_without_eos: ("tokenizer can be used", "has no eos_token"),
    tokenizer_that_is_not_there: ("tokenizer can be used", "cannot load the tokenizer"),
    template_that_is_not_there_for_a_tokenizer_on_the_hub: ("tokenizer can be used", "nowhere.jinja does not exist"),
    records_that_cannot_be_read_for_a_tokenizer_on_the_hub: ("data can be trained on", "train.jsonl:31"),
    padding_that_is_text: ("padding token", "the padding token 'a' also occurs as normal text in"),
    padding_that_is_the_bos: ("padding token", "is also the BOS"),
    tokenizer_that_lacks_characters: ("tokens decode to the text", "cannot represent some characters of the text"),
    another_models_tokenizer: ("token ids fit the embedding", "another model's tokenizer"),
    most_answers_empty: ("trained tokens", "most documents of 'mine' are dropped"),
    rows_longer_than_the_positions: ("model can be trained", "the length of its position table"),
    rows_far_too_short: ("documents are complete", "are cut at data.max_seq_len=64"),
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
@pytest.mark.thorough
def test_a_broken_config_or_data_set_fails_the_right_check(broken: Callable[[Path], Broken], tmp_path: Path) -> None:
    name, cause = BROKEN[broken]
    overrides, records = broken(tmp_path)
    check = run_checks(tmp_path, overrides, records)[name]
    assert check.outcome == FAILED
    assert cause in check.cause


@pytest.mark.parametrize(
    "unusual",
    [no_stop_token, stop_token_outside_the_marks, everything_is_trained, no_stop_token_but_the_last,
     another_generation_prompt],
    ids=lambda unusual: unusual.__name__,
)  # fmt: skip
def test_templates_that_mark_too_much_or_write_no_stop_pass_every_check(unusual: Any, tmp_path: Path) -> None:
    """What is trained follows from the prompt, the answer and its stop, which is added if it is missing."""
    overrides, records = unusual(tmp_path)
    found = run_checks(tmp_path, overrides, records)
    assert {check.outcome for check in found.values()} == {PASSED}, found


def test_correct_data_passes_every_check(tmp_path: Path) -> None:
    found = run_checks(tmp_path, [written(tmp_path, template())], CHATS)
    assert len(found) == 15
    assert {check.outcome for check in found.values()} == {PASSED}, found


@pytest.mark.parametrize("broken", [tokenizer_without_eos, tokenizer_that_is_not_there])
def test_a_tokenizer_that_training_refuses_fails_one_check_and_ends_the_others(broken: Any, tmp_path: Path) -> None:
    overrides, records = broken(tmp_path)
    model, tokenizer = run_checks(tmp_path, overrides, records).values()
    assert (model.outcome, tokenizer.outcome) == (PASSED, FAILED)


def test_checks_of_tokens_are_not_run_if_the_tokenizer_on_the_hub_cannot_be_read(tmp_path: Path) -> None:
    found = run_checks(tmp_path, ["model.tokenizer=nobody/nowhere"], CHATS)
    assert found["tokenization, 12 checks"].outcome == NOT_RUN
    assert not [check for check in found.values() if check.outcome == FAILED]


def test_a_hub_that_does_not_answer_is_asked_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked: List[Any] = []
    for kind in (transformers.AutoConfig, transformers.AutoTokenizer):
        real = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda *a, _real=real, **k: (asked.append(a), _real(*a, **k))[1])
    config = broken_config(tmp_path, [], CHATS)
    config.model = ModelConfig(hub="nobody/llama")
    found = run_checks_of(tmp_path, config)
    assert asked == [("nobody/llama",)]
    assert found["model can be trained"].outcome == found["tokenization, 12 checks"].outcome == NOT_RUN
    assert "cannot load the tokenizer nobody/llama" in found["tokenization, 12 checks"].cause


def _numbers(config: Any, folder: Path, quick: bool = True) -> List[Check]:
    from ftdist.data.prepare import prepare
    from ftdist.parallel import rank_process
    from ftdist.parallel import ranks as rank_setup
    from ftdist.verify.main import run_number_checks

    rank_process.quiet_libraries()
    prepare(config)
    ranks = rank_setup.read_ranks(config)
    rank_setup.start_process_group(config, ranks)
    run_number_checks(config, folder, ranks, quick)
    return read_checks(folder)


@pytest.mark.process
def test_a_backend_that_does_not_isolate_documents_fails(tmp_path: Path) -> None:
    """Bloom does not use ftdist's attention function and gets no mask, so each token sees the whole row."""
    model = ("model_type=bloom", "vocab_size=259", "hidden_size=32", "n_layer=2", "n_head=4")
    fields = [f"model.config.{field}" for field in model]
    bloom = tiny_config(tmp_path, "model.path=null", "model.attention=documents", *fields)
    [checks] = run_ranks(_numbers, 1, bloom, tmp_path)
    assert checks[0].name == "packing isolation"
    assert checks[0].outcome == FAILED
    assert "bloom gives other numbers for packed documents" in checks[0].cause
    assert [check.outcome for check in checks[1:]] == ["not run"] * 7


def _export_of_the_step_before(config: Any, folder: Path) -> List[Check]:
    from ftdist.verify import number_checks

    export = number_checks.export_checkpoint
    number_checks.export_checkpoint = lambda newest, *to: export(newest.with_name("step-00000001"), *to)
    return _numbers(config, folder, quick=False)


@pytest.mark.process
def test_an_export_without_the_last_step_in_bf16_fails(tmp_path: Path) -> None:
    """The logits differ by less than the rounding that is allowed. Only the weights show it."""
    config = tiny_config(
        tmp_path, "model.path=null", *(f"model.config.{name}={value}" for name, value in LLAMA.items()),
        "train.precision=bf16", "train.max_steps=2", "train.checkpoint_every=1", "train.num_samples=0",
        "train.export=false", "data.sources.chats.max_documents=40", "batch.global_batch_size=2",
    )  # fmt: skip
    [checks] = run_ranks(_export_of_the_step_before, 1, config, tmp_path)
    [check] = [check for check in checks if check.name == "export: same logits"]
    assert check.outcome == FAILED
    assert "weights differ from those of the run" in check.cause and "other logits" not in check.cause
    assert [check.outcome for check in checks].count(FAILED) == 1
