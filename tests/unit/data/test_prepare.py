"""Data preparation as a whole: the result, the statistics, and what the result must not depend on."""

import multiprocessing
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ftdist.base.errors import DataError
from ftdist.data.loader import open_set
from ftdist.data.prepare import prepare
from ftdist.run.prepared import data_folder, read_meta
from tests.unit.data_tools import (
    STRIPS_THINKING,
    chat,
    chat_config,
    data_config,
    document_bytes,
    document_texts,
    text_config,
    write_jsonl,
)


def test_every_document_is_stored_once_and_is_in_exactly_one_row(tmp_path: Path) -> None:
    lines = [f"line {number} " + "x" * (number % 90) for number in range(300)]
    folder = prepare(text_config(tmp_path, lines))
    assert sorted(document_texts(folder)) == sorted(f"{line}<|im_end|>" for line in lines)
    dataset = open_set(folder, "train")
    assert dataset.num_rows < 300
    assert all(sum(len(ids) for ids, _ in dataset.row(row)) <= 256 for row in range(dataset.num_rows))
    stats = read_meta(folder)["sets"]["train"]
    assert (stats["rows"], stats["documents"]) == (dataset.num_rows, 300)
    assert stats["tokens"] == sum(len(line) + 1 for line in lines)
    assert stats["trained_tokens"] == stats["tokens"] - 300
    assert stats["packing_efficiency"] == pytest.approx(stats["tokens"] / (dataset.num_rows * 256))


def test_without_packing_each_row_is_one_document(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(20)]
    folder = prepare(text_config(tmp_path, lines, "data.packing=false"))
    assert open_set(folder, "train").num_rows == 20
    assert document_texts(folder) == [f"{line}<|im_end|>" for line in lines]


LONG = [chat("q" * 100, "short"), chat("q" * 300, "cut off"), chat("q", "a" * 600)]


def test_truncated_documents_without_a_trained_token_are_dropped(tmp_path: Path) -> None:
    folder = prepare(chat_config(tmp_path, LONG))
    stats = read_meta(folder)["sources"]["chats"]
    assert stats["documents"] == 3
    assert stats["kept"] == 2
    assert stats["truncated"] == 2
    assert stats["dropped"] == {"nothing to train after truncation": 1}
    assert sorted(len(text) for text in document_bytes(folder))[-1] == 256 * 4


def test_long_documents_are_split_and_pieces_without_a_trained_token_are_dropped(tmp_path: Path) -> None:
    folder = prepare(chat_config(tmp_path, LONG, "data.long_documents=split"))
    stats = read_meta(folder)["sources"]["chats"]
    assert stats["split"] == 2
    assert stats["kept"] == 1 + 1 + 3
    assert stats["dropped"] == {"piece of a split document with nothing to train": 1}
    dataset = open_set(folder, "train")
    assert not any(trained[0] for row in range(dataset.num_rows) for _, trained in dataset.row(row))


def test_long_documents_are_dropped_with_long_documents_drop(tmp_path: Path) -> None:
    stats = read_meta(prepare(chat_config(tmp_path, LONG, "data.long_documents=drop")))["sources"]["chats"]
    assert (stats["kept"], stats["dropped"]) == (1, {"longer than max_seq_len": 2})


def test_data_without_trained_tokens_is_refused_with_the_number_of_documents_by_outcome(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(chat_config(tmp_path, [chat("q" * 400, "a"), chat("only a question")]))
    assert "nothing in the set 'train' would be trained" in caught.value.found
    for part in ("2 read", "1 dropped: nothing to train,", "1 dropped: nothing to train after truncation"):
        assert part in caught.value.found
    assert not list((tmp_path / "cache" / "data").iterdir()), "a failed preparation leaves nothing behind"


def test_the_statistics_name_the_stop_token_and_its_absence_is_a_warning(tmp_path: Path) -> None:
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


def test_the_stop_token_is_found_before_a_trained_line_break(tmp_path: Path) -> None:
    meta = read_meta(prepare(chat_config(tmp_path, [chat("q", "a")], "data.train_on=all")))
    assert meta["sets"]["train"]["stop_token"] == "<|im_end|>"


def test_a_weight_is_the_number_of_passes_and_its_fraction_selects_documents_by_the_seed(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(100)]

    def passes(weight: float, seed: int = 0) -> Counter[str]:
        return Counter(
            document_texts(prepare(text_config(tmp_path, lines, f"data.sources.lines.weight={weight}", f"seed={seed}")))
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


def test_weights_that_leave_no_document_are_refused(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["one", "two"])
    for source in config.data.sources.values():
        source.weight = 0.0
    with pytest.raises(
        DataError, match=r"the weights leave no document to train[\s\S]*raise data.sources.lines.weight"
    ):
        prepare(config)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.thorough
def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    config = data_config(
        tmp_path, "data.sources.b.builtin=fake", "data.sources.a.builtin=fake", "data.sources.b.weight=0.5",
        "data.heldout_share=0.05", "data.max_heldout_documents=20", "data.num_workers=1",
    )  # fmt: skip
    one = files_of(folder := prepare(config))
    shutil.rmtree(folder)
    config.data.num_workers = 3
    many = files_of(prepare(config))
    changing = {name for name in one if one[name] != many[name]} - {"meta.json"}
    assert not changing
    assert one["meta.json"].replace(b'"num_workers": 1', b"") == many["meta.json"].replace(b'"num_workers": 3', b"")


def test_the_result_does_not_depend_on_the_order_of_sources_in_the_config(tmp_path: Path) -> None:
    names = ("data.sources.a.builtin=fake", "data.sources.b.builtin=stdlib_docs")
    few = ("data.sources.a.max_documents=5", "data.sources.b.max_documents=5")
    assert data_folder(data_config(tmp_path, *names, *few)) == data_folder(data_config(tmp_path, *names[::-1], *few))


@pytest.mark.thorough
def test_processes_that_prepare_the_same_data_at_the_same_time_all_succeed(tmp_path: Path) -> None:
    config = data_config(tmp_path, "data.sources.a.builtin=fake", "data.num_workers=2")
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=prepare, args=(config,)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert [entry.name for entry in (tmp_path / "cache" / "data").iterdir()] == [data_folder(config).name]


def test_an_invalid_record_is_named_if_a_worker_reads_it(tmp_path: Path) -> None:
    records = [chat("q", "a")] * 300 + [{"messages": []}] + [chat("q", "a")] * 300
    with pytest.raises(DataError) as caught:
        prepare(chat_config(tmp_path, records, "data.num_workers=2"))
    assert "chats.jsonl:301: the list of messages is empty" in caught.value.found
    assert "remove the record" in str(caught.value)


def test_answers_that_a_template_shows_differently_later_become_documents_of_their_own(tmp_path: Path) -> None:
    template = tmp_path / "strips.jinja"
    template.write_text(STRIPS_THINKING)
    record = chat("q", "a", "q", "b")
    record["messages"][1]["reasoning_content"] = "x"
    config = chat_config(tmp_path, [record], f"data.chat_template={template}")
    folder = prepare(config)
    whole, own = sorted(document_texts(folder), key=len, reverse=True)
    first = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert own == first + "<think>\nx\n</think>\n\na<|im_end|>\n"
    assert whole == first + "\n\na<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    stats = read_meta(folder)["sources"]["chats"]
    assert [stats[name] for name in ("documents", "kept", "split_chats", "documents_of_split_chats")] == [1, 2, 1, 2]
    assert (
        stats["tokens_of_split_chats"] == len(own) - 2 * len("<|im_start|>" + "<|im_end|>") + 4
    )  # a special token is one token
    with pytest.raises(DataError, match=r"chats\.jsonl:1: the chat template renders message 2 differently"):
        prepare(chat_config(tmp_path, [record], f"data.chat_template={template}", "data.turns=whole"))
    last = chat_config(tmp_path, [record], f"data.chat_template={template}", "data.turns=whole", "data.train_on=last")
    assert document_texts(prepare(last)) == [whole.replace("\n\na<", "a<")]
