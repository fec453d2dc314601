"""Preparing as a whole: what becomes of documents, what is counted, and that the result depends on nothing else."""

import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftdist.base.errors import ConfigError, DataError, FtdistError
from ftdist.data import worker_pool
from ftdist.data.encode import content_hash
from ftdist.data.loader import open_set
from ftdist.data.prepare import prepare
from ftdist.data.tokenizer import bytes_tokenizer, load_tokenizer
from ftdist.data.worker_pool import IN_FLIGHT_PER_WORKER, ordered_map
from ftdist.run.prepared import data_folder, read_meta
from tests.unit.data_tools import STRIPS_THINKING, chat, data_config, write_jsonl


def documents(folder: Path, name: str = "train") -> list[bytes]:
    """Every document of the rows of a set, as bytes, in row order."""
    dataset = open_set(folder, name)
    return [ids.tobytes() for row in range(dataset.num_rows) for ids, _ in dataset.row(row)]


def texts(folder: Path, name: str = "train") -> list[str]:
    tokenizer = bytes_tokenizer()
    return [tokenizer.decode(np.frombuffer(ids, dtype=np.int32)) for ids in documents(folder, name)]


def text_config(folder: Path, lines: list[str], *overrides: str) -> Any:
    path = write_jsonl(folder / "lines.jsonl", [{"text": line} for line in lines])
    return data_config(folder, f"data.sources.lines.path={path}", *overrides)


def chat_config(folder: Path, records: list[Any], *overrides: str) -> Any:
    path = write_jsonl(folder / "chats.jsonl", records)
    return data_config(folder, f"data.sources.chats.path={path}", *overrides)


def test_every_document_is_in_exactly_one_row_and_is_stored_once(tmp_path: Path) -> None:
    lines = [f"line {number} " + "x" * (number % 90) for number in range(300)]
    folder = prepare(text_config(tmp_path, lines))
    assert sorted(texts(folder)) == sorted(f"{line}<|im_end|>" for line in lines)
    dataset = open_set(folder, "train")
    assert dataset.num_rows < 300
    assert all(sum(len(ids) for ids, _ in dataset.row(row)) <= 256 for row in range(dataset.num_rows))
    stats = read_meta(folder)["sets"]["train"]
    assert (stats["rows"], stats["documents"]) == (dataset.num_rows, 300)
    assert stats["tokens"] == sum(len(line) + 1 for line in lines)
    assert stats["trained_tokens"] == stats["tokens"] - 300
    assert stats["packing_efficiency"] == pytest.approx(stats["tokens"] / (dataset.num_rows * 256))


def test_without_packing_a_row_is_a_document(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(20)]
    folder = prepare(text_config(tmp_path, lines, "data.packing=false"))
    assert open_set(folder, "train").num_rows == 20
    assert texts(folder) == [f"{line}<|im_end|>" for line in lines]


LONG = [chat("q" * 100, "short"), chat("q" * 300, "cut off"), chat("q", "a" * 600)]


def test_long_documents_are_truncated_and_what_is_left_without_an_answer_is_dropped(tmp_path: Path) -> None:
    folder = prepare(chat_config(tmp_path, LONG))
    stats = read_meta(folder)["sources"]["chats"]
    assert stats["documents"] == 3
    assert stats["kept"] == 2
    assert stats["truncated"] == 2
    assert stats["dropped"] == {"nothing to train after truncation": 1}
    assert sorted(len(text) for text in documents(folder))[-1] == 256 * 4


def test_long_documents_are_split_into_pieces_that_train_something(tmp_path: Path) -> None:
    folder = prepare(chat_config(tmp_path, LONG, "data.long_documents=split"))
    stats = read_meta(folder)["sources"]["chats"]
    assert stats["split"] == 2
    assert stats["kept"] == 1 + 1 + 3
    assert stats["dropped"] == {"piece of a split document with nothing to train": 1}
    dataset = open_set(folder, "train")
    assert not any(trained[0] for row in range(dataset.num_rows) for _, trained in dataset.row(row))


def test_long_documents_are_dropped(tmp_path: Path) -> None:
    stats = read_meta(prepare(chat_config(tmp_path, LONG, "data.long_documents=drop")))["sources"]["chats"]
    assert (stats["kept"], stats["dropped"]) == (1, {"longer than max_seq_len": 2})


def test_nothing_trained_at_all_is_an_error_that_says_what_became_of_the_documents(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(chat_config(tmp_path, [chat("q" * 400, "a"), chat("only a question")]))
    assert "nothing in the set 'train' would be trained" in caught.value.found
    for part in ("2 read", "1 dropped: nothing to train,", "1 dropped: nothing to train after truncation"):
        assert part in caught.value.found
    assert not list((tmp_path / "cache" / "data").iterdir()), "a failed preparation leaves nothing behind"


def test_the_stop_token_is_named_and_its_lack_is_a_warning(tmp_path: Path) -> None:
    good = read_meta(prepare(chat_config(tmp_path, [chat("q", "a")])))
    assert good["sets"]["train"]["stop_token"] == "<|im_end|>"
    assert good["sets"]["train"]["stop_token_id"] == 257
    assert good["warnings"] == []
    template = tmp_path / "no_stop.jinja"
    template.write_text(
        "{% for m in messages %}\n{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    bad = read_meta(
        prepare(chat_config(tmp_path, [chat("q", "a")], f"data.chat_template={template}", "data.train_on=all"))
    )
    assert bad["sets"]["train"]["stop_token"] is None
    assert "no stop token is trained in the set 'train'" in bad["warnings"][0]


def test_weights_are_passes_and_the_fraction_is_a_seeded_choice(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(100)]

    def passes(weight: float, seed: int = 0) -> Counter[str]:
        return Counter(
            texts(prepare(text_config(tmp_path, lines, f"data.sources.lines.weight={weight}", f"seed={seed}")))
        )

    assert set(passes(2).values()) == {2}
    half = passes(0.5)
    assert (len(half), set(half.values())) == (50, {1})
    assert half == passes(0.5)
    assert half != passes(0.5, seed=1)
    assert Counter(passes(1.25).values()) == {1: 75, 2: 25}
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "o" * 20}])
    both = text_config(tmp_path, lines, "data.sources.lines.weight=0", f"data.sources.other.path={other}")
    meta = read_meta(prepare(both))
    assert meta["sources"]["lines"]["share"] == 0
    assert meta["sources"]["other"]["share"] == 1


def test_held_out_documents_are_chosen_by_content_and_never_on_both_sides(tmp_path: Path) -> None:
    lines = [f"line {number % 400}" for number in range(800)]  # each twice
    folder = prepare(text_config(tmp_path, lines, "data.heldout_share=0.2"))
    train, heldout = set(documents(folder)), set(documents(folder, "heldout"))
    assert not train & heldout
    assert len(train | heldout) == 400
    assert len(documents(folder, "heldout")) == 2 * len(heldout)
    assert 50 < len(heldout) < 110
    turned = tmp_path / "turned"
    turned.mkdir()
    again = prepare(text_config(turned, lines[::-1], "data.heldout_share=0.2"))
    assert set(documents(again, "heldout")) == heldout, "the choice does not depend on the order"
    stats = read_meta(folder)["sources"]["lines"]
    assert stats["heldout"] + stats["kept"] == stats["documents"] == 800


def test_held_out_documents_over_the_limit_are_trained(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(400)]
    all_of_them = prepare(text_config(tmp_path, lines, "data.heldout_share=0.2"))
    few = prepare(text_config(tmp_path, lines, "data.heldout_share=0.2", "data.max_heldout_documents=10"))
    assert len(documents(few, "heldout")) == 10
    assert set(documents(few, "heldout")) < set(documents(all_of_them, "heldout"))
    assert sorted(documents(few) + documents(few, "heldout")) == sorted(
        documents(all_of_them) + documents(all_of_them, "heldout")
    )


def test_prompts_and_counts_are_of_the_documents_that_stay_held_out(tmp_path: Path) -> None:
    records = [chat("q", f"answer {number}") for number in range(100)]
    folder = prepare(chat_config(tmp_path, records, "data.heldout_share=0.5", "data.max_heldout_documents=3"))
    meta, heldout = read_meta(folder), texts(folder, "heldout")
    assert (meta["sources"]["chats"]["heldout"], meta["sources"]["chats"]["kept"]) == (3, 97)
    assert sorted(prompt["reference"] for prompt in meta["prompts"]["heldout"]) == sorted(
        text.split("assistant\n")[1].removesuffix("<|im_end|>\n") for text in heldout
    )


def test_the_pieces_of_a_held_out_document_stay_together_over_the_limit(tmp_path: Path) -> None:
    lines = [f"{number} " + "a long document " * 10 for number in range(20)]
    folder = prepare(text_config(tmp_path, lines, "data.heldout_share=0.5", "data.max_heldout_documents=3",
                                 "data.long_documents=split", "data.max_seq_len=32"))  # fmt: skip
    held = texts(folder, "heldout")
    assert "".join(held).count("a long document") == 10 and len(held) > 3, "one document, whole"
    assert "".join(texts(folder)).count("<|im_end|>") == 19


def test_equal_documents_are_all_held_out_and_leave_nothing_to_train(tmp_path: Path) -> None:
    line = next(f"same {n}" for n in range(99) if content_hash(f"same {n}<|im_end|>") < 2**63)
    with pytest.raises(DataError, match="50 heldout, 50 read"):
        prepare(text_config(tmp_path, [line] * 50, "data.heldout_share=0.5", "data.max_heldout_documents=3"))


def test_held_out_sources_are_sets_of_their_own_and_overlap_is_told(tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "line 1"}, {"text": "other"}, {"text": "third"}])
    config = text_config(tmp_path, [f"line {number}" for number in range(9)], f"data.heldout.other.path={other}")
    meta = read_meta(prepare(config))
    assert meta["sets"]["other"]["documents"] == 3
    assert meta["heldout_sources"]["other"]["documents"] == 3
    assert "1 training documents are also in a held-out source" in meta["warnings"][0]
    config.data.max_heldout_documents = 2
    assert read_meta(prepare(config))["sets"]["other"]["documents"] == 2


def test_a_share_of_few_documents_holds_one_out(tmp_path: Path) -> None:
    meta = read_meta(prepare(text_config(tmp_path, ["one", "two", "three"], "data.heldout_share=0.0001")))
    assert {name: stats["documents"] for name, stats in meta["sets"].items()} == {"train": 2, "heldout": 1}


def test_one_document_cannot_be_held_out_and_trained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"held out no document[\s\S]*data.heldout_share=0 to do without"):
        prepare(text_config(tmp_path, ["one", "one"], "data.heldout_share=0.0001"))


def test_weights_that_leave_nothing_are_an_error(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["one", "two"])
    for source in config.data.sources.values():
        source.weight = 0.0
    with pytest.raises(DataError, match=r"no document is left[\s\S]*weight"):
        prepare(config)


def test_the_stop_token_is_found_before_a_line_break_that_is_trained_too(tmp_path: Path) -> None:
    meta = read_meta(prepare(chat_config(tmp_path, [chat("q", "a")], "data.train_on=all")))
    assert meta["sets"]["train"]["stop_token"] == "<|im_end|>"


@pytest.mark.parametrize("name", ["train", "a/b"])
def test_names_that_cannot_be_sets(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"data.heldout.{name} cannot be a set's name"):
        prepare(text_config(tmp_path, ["one"], f"data.heldout.{name}.builtin=fake"))


def test_held_out_prompts_are_what_comes_before_the_last_answer(tmp_path: Path) -> None:
    records = [chat("q1", "a1", f"question {number}", f"answer {number}") for number in range(20)]
    heldout = write_jsonl(tmp_path / "held.jsonl", records)
    prompts = read_meta(prepare(chat_config(tmp_path, records, f"data.heldout.held.path={heldout}")))["prompts"]["held"]
    assert len(prompts) == 8
    tokenizer = bytes_tokenizer()
    for prompt in prompts:
        number = prompt["question"].removeprefix("question ")
        assert prompt["reference"] == f"answer {number}"
        assert prompt["prompt_text"] == tokenizer.decode(prompt["prompt_ids"])
        assert prompt["prompt_text"].endswith(f"question {number}<|im_end|>\n<|im_start|>assistant\n")


def test_prompts_of_plain_text_are_how_it_begins(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["train"], f"data.heldout.held.path={tmp_path / 'lines.jsonl'}")
    [prompt] = read_meta(prepare(config))["prompts"]["held"]
    assert prompt["prompt_text"] + prompt["reference"] == "train"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    config = data_config(
        tmp_path, "data.sources.b.builtin=fake", "data.sources.a.builtin=fake", "data.sources.b.weight=0.5",
        "data.heldout_share=0.05", "data.max_heldout_documents=20", "data.num_workers=1",
    )  # fmt: skip
    one = everything(folder := prepare(config))
    shutil.rmtree(folder)
    config.data.num_workers = 3
    many = everything(prepare(config))
    changing = {name for name in one if one[name] != many[name]} - {"meta.json"}
    assert not changing
    assert one["meta.json"].replace(b'"num_workers": 1', b"") == many["meta.json"].replace(b'"num_workers": 3', b"")


def test_the_order_in_which_sources_are_written_changes_nothing(tmp_path: Path) -> None:
    names = ("data.sources.a.builtin=fake", "data.sources.b.builtin=stdlib_docs")
    few = ("data.sources.a.max_documents=5", "data.sources.b.max_documents=5")
    assert data_folder(data_config(tmp_path, *names, *few)) == data_folder(data_config(tmp_path, *names[::-1], *few))


def test_two_that_prepare_at_once_both_succeed(tmp_path: Path) -> None:
    config = data_config(tmp_path, "data.sources.a.builtin=fake", "data.num_workers=2")
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=prepare, args=(config,)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert [entry.name for entry in (tmp_path / "cache" / "data").iterdir()] == [data_folder(config).name]


def test_a_wrong_record_is_named_from_a_worker_too(tmp_path: Path) -> None:
    records = [chat("q", "a")] * 300 + [{"messages": []}] + [chat("q", "a")] * 300
    with pytest.raises(DataError) as caught:
        prepare(chat_config(tmp_path, records, "data.num_workers=2"))
    assert "chats.jsonl:301: the list of messages is empty" in caught.value.found
    assert "remove the record" in str(caught.value)


def test_an_ambiguous_template_is_refused_when_preparing(tmp_path: Path) -> None:
    template = tmp_path / "strips.jinja"
    template.write_text(STRIPS_THINKING)
    records = [chat("q", "<think>x</think>a", "q", "a")]
    with pytest.raises(DataError, match=r"chats\.jsonl:1: the chat template renders message 2 otherwise"):
        prepare(chat_config(tmp_path, records, f"data.chat_template={template}"))
    prepare(chat_config(tmp_path, records, f"data.chat_template={template}", "data.train_on=last"))


def test_a_template_that_is_no_jinja_is_named_and_not_the_record(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(ConfigError, match=rf"^{template}:2 is not Jinja: unexpected '}}'") as caught:
        prepare(chat_config(tmp_path, [chat("q", "a")], f"data.chat_template={template}"))
    assert "chats.jsonl" not in str(caught.value) and "chatml" in caught.value.fix
    template.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="mine.jinja cannot be read"):
        prepare(chat_config(tmp_path, [chat("q", "a")], f"data.chat_template={template}"))


def test_the_tokenizers_own_template_is_compiled_first_too(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "{% if %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=rf"chat template of the tokenizer {tmp_path}/tokenizer:1 is not Jinja"):
        prepare(chat_config(tmp_path, [chat("q", "a")], f"model.tokenizer={tmp_path / 'tokenizer'}"))


def test_a_tokenizer_that_cannot_be_loaded_is_one_message(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["one"])
    config.model.tokenizer = str(tmp_path)
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    assert f"cannot load the tokenizer {tmp_path}" in caught.value.found
    assert "\n" not in caught.value.found


def test_new_special_tokens_are_single_tokens(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["a<|new|>b"], "model.new_special_tokens=['<|new|>']")
    folder = prepare(config)
    [document] = documents(folder)
    assert np.frombuffer(document, dtype=np.int32).tolist() == [97, 259, 98, 257]
    assert read_meta(folder)["tokenizer"]["vocab_size"] == 260
    assert {"<|new|>", "<|im_start|>"} <= set(load_tokenizer(config).all_special_tokens), "the old ones stay special"


def test_only_a_few_items_are_under_way() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    for fetched, result in enumerate(ordered_map(str, items(), 2)):
        assert result == str(fetched)
        assert taken - fetched <= 2 * IN_FLIGHT_PER_WORKER
    assert taken == 100


def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(FtdistError, match="was killed"):
        list(ordered_map(worker_pool.os._exit, [1, 1, 1], 2))
