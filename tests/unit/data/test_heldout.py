"""Which documents are held out, and the prompts that are made from them."""

from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import ConfigError, DataError
from ftdist.data.encode import content_hash
from ftdist.data.prepare import prepare
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.run.prepared import read_meta
from tests.unit.data_tools import (
    APPENDS,
    chat,
    chat_config,
    document_bytes,
    document_texts,
    ids_of,
    read,
    text_config,
    write_jsonl,
)


def test_held_out_documents_are_chosen_by_content_and_are_never_trained(tmp_path: Path) -> None:
    lines = [f"line {number % 400}" for number in range(800)]  # each twice
    folder = prepare(text_config(tmp_path, lines, "data.heldout_share=0.2"))
    train, heldout = set(document_bytes(folder)), set(document_bytes(folder, "heldout"))
    assert not train & heldout
    assert len(train | heldout) == 400
    assert len(document_bytes(folder, "heldout")) == 2 * len(heldout)
    assert 50 < len(heldout) < 110
    other = tmp_path / "reversed"
    other.mkdir()
    again = prepare(text_config(other, lines[::-1], "data.heldout_share=0.2"))
    assert set(document_bytes(again, "heldout")) == heldout, "the choice does not depend on the order"
    stats = read_meta(folder)["sources"]["lines"]
    assert stats["heldout"] + stats["kept"] == stats["documents"] == 800


def test_the_choice_depends_on_the_records_and_not_on_their_rendering(tmp_path: Path) -> None:
    records = [chat("q", f"answer {number}") for number in range(200)]
    (tmp_path / "other.jinja").write_text(APPENDS.replace("<|im_start|>", "<|im_start|>at noon, "))

    def held_out(*overrides: str) -> set[str]:
        config = chat_config(tmp_path, records, "data.heldout_share=0.2", *overrides)
        return {text.partition("answer ")[2].partition("<")[0] for text in document_texts(prepare(config), "heldout")}

    template = f"data.chat_template={tmp_path}/other.jinja"
    assert held_out() == held_out(template)
    assert len(held_out()) > 20
    old = "data.heldout_by=rendering"
    assert held_out(old) != held_out(template, old)
    expected = {str(n) for n in range(200) if content_hash(ids_text(records[n])) < int(0.2 * 2**64)}
    assert held_out(old) == expected, "what earlier versions held out"


def ids_text(record: dict[str, Any]) -> str:
    tokenizer = bytes_tokenizer()
    return str(tokenizer.decode(ids_of(tokenizer, record)))


def test_held_out_documents_over_the_limit_are_trained(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(400)]
    all_of_them = prepare(text_config(tmp_path, lines, "data.heldout_share=0.2"))
    few = prepare(text_config(tmp_path, lines, "data.heldout_share=0.2", "data.max_heldout_documents=10"))
    assert len(document_bytes(few, "heldout")) == 10
    assert set(document_bytes(few, "heldout")) < set(document_bytes(all_of_them, "heldout"))
    assert sorted(document_bytes(few) + document_bytes(few, "heldout")) == sorted(
        document_bytes(all_of_them) + document_bytes(all_of_them, "heldout")
    )


def test_prompts_and_counts_are_those_of_the_documents_that_stay_held_out(tmp_path: Path) -> None:
    records = [chat("q", f"answer {number}") for number in range(100)]
    folder = prepare(chat_config(tmp_path, records, "data.heldout_share=0.5", "data.max_heldout_documents=3"))
    meta, heldout = read_meta(folder), document_texts(folder, "heldout")
    assert (meta["sources"]["chats"]["heldout"], meta["sources"]["chats"]["kept"]) == (3, 97)
    assert sorted(prompt["reference"] for prompt in meta["prompts"]["heldout"]) == sorted(
        text.split("assistant\n")[1].removesuffix("<|im_end|>\n") for text in heldout
    )


def test_all_pieces_of_a_held_out_document_stay_held_out_over_the_limit(tmp_path: Path) -> None:
    lines = [f"{number} " + "a long document " * 10 for number in range(20)]
    folder = prepare(text_config(tmp_path, lines, "data.heldout_share=0.5", "data.max_heldout_documents=3",
                                 "data.long_documents=split", "data.max_seq_len=32"))  # fmt: skip
    held = document_texts(folder, "heldout")
    assert "".join(held).count("a long document") == 10 and len(held) > 3, "all pieces of one document"
    assert "".join(document_texts(folder)).count("<|im_end|>") == 19


def test_if_all_documents_are_equal_and_held_out_the_run_is_refused(tmp_path: Path) -> None:
    line = next(f"same {n}" for n in range(99) if read({"text": f"same {n}"}).content_hash() < 2**63)
    with pytest.raises(DataError, match="50 heldout, 50 read"):
        prepare(text_config(tmp_path, [line] * 50, "data.heldout_share=0.5", "data.max_heldout_documents=3"))


def test_each_held_out_source_is_a_separate_set_and_overlap_is_a_warning(tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "line 1"}, {"text": "other"}, {"text": "third"}])
    config = text_config(tmp_path, [f"line {number}" for number in range(9)], f"data.heldout.other.path={other}")
    meta = read_meta(prepare(config))
    assert meta["sets"]["other"]["documents"] == 3
    assert meta["heldout_sources"]["other"]["documents"] == 3
    assert "1 training documents are also in a held-out source" in meta["warnings"][0]
    config.data.max_heldout_documents = 2
    assert read_meta(prepare(config))["sets"]["other"]["documents"] == 2


def test_a_small_share_of_few_documents_holds_one_out(tmp_path: Path) -> None:
    meta = read_meta(prepare(text_config(tmp_path, ["one", "two", "three"], "data.heldout_share=0.0001")))
    assert {name: stats["documents"] for name, stats in meta["sets"].items()} == {"train": 2, "heldout": 1}


def test_the_one_document_that_is_held_out_has_a_prompt(tmp_path: Path) -> None:
    records = [chat(f"question {number}", f"answer {number}") for number in range(3)]
    folder = prepare(chat_config(tmp_path, records, "data.heldout_share=0.0001"))
    (prompt,), (text,) = read_meta(folder)["prompts"]["heldout"], document_texts(folder, "heldout")
    assert text.startswith(prompt["prompt_text"] + prompt["reference"])


def test_a_single_document_cannot_be_held_out_and_trained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"held out no document[\s\S]*data.heldout_share=0 to train without"):
        prepare(text_config(tmp_path, ["one", "one"], "data.heldout_share=0.0001"))


@pytest.mark.parametrize("name", ["train", "a/b"])
def test_invalid_names_of_held_out_sets_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"data.heldout.{name} cannot be the name of a set"):
        prepare(text_config(tmp_path, ["one"], f"data.heldout.{name}.builtin=fake"))


def test_the_prompt_of_a_held_out_chat_is_everything_before_the_last_answer(tmp_path: Path) -> None:
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


def test_the_prompt_of_a_held_out_text_is_its_beginning(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["train"], f"data.heldout.held.path={tmp_path / 'lines.jsonl'}")
    [prompt] = read_meta(prepare(config))["prompts"]["held"]
    assert prompt["prompt_text"] + prompt["reference"] == "train"
