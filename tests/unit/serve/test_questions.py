"""Questions from files, and questions about the standard library that no run has the answer to."""

import json
import platform
from itertools import islice
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from ftdist.base.errors import ConfigError, DataError
from ftdist.config.schema import RunConfig
from ftdist.data import builtin_sources
from ftdist.data.builtin_sources import Docstring, docstring_chat
from ftdist.data.loader import open_set
from ftdist.data.prepare import prepare
from ftdist.data.row_order import row_ids
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.run.identity import record_inputs
from ftdist.run.rundir import RunDir
from ftdist.serve import questions as questions_module
from ftdist.serve.questions import content_hash, docstring_questions, load_questions, read_questions, split_docstrings
from tests.unit.data_tools import data_config, write_jsonl

GOOD = {"question": "Two and two?", "choices": ["four", "five"], "answer": 0}


def test_a_file_of_questions_is_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, {**GOOD, "question": "é", "note": 1}])
    path.write_text("\ufeff\n" + path.read_text().replace("\n", "\n\n"), encoding="utf-8")
    found = read_questions(str(path))
    assert [(one.location, one.question, one.choices, one.answer) for one in found] == [
        (f"{path}:2", "Two and two?", ("four", "five"), 0), (f"{path}:4", "é", ("four", "five"), 0),
    ]  # fmt: skip
    moved = write_jsonl(tmp_path / "b.jsonl", [GOOD, {**GOOD, "question": "é"}])
    assert content_hash(read_questions(str(moved))) == content_hash(found) != content_hash(found[::-1])


@pytest.mark.parametrize(
    ("record", "found", "expected"),
    [
        ('{"question": "q", ', "the line is not valid JSON", '{"question"'),
        ('["q"]', "the record is a list", '{"question"'),
        ({"question": "q", "choices": ["a", "b"]}, "an object with question, choices", '"answer": 0'),
        ({**GOOD, "question": " "}, 'the question is " "', "a text that is not empty"),
        ({**GOOD, "question": 4}, "the question is 4", "a text that is not empty"),
        ({**GOOD, "choices": ["a"]}, 'choices is ["a"]', "at least two"),
        ({**GOOD, "choices": "ab"}, 'choices is "ab"', "at least two"),
        ({**GOOD, "choices": ["a", "a"]}, 'the choice "a" is', "different texts"),
        ({**GOOD, "choices": ["a", ""]}, 'the choice "" is', "different texts"),
        ({**GOOD, "choices": ["a", 1]}, "the choice 1 is", "different texts"),
        ({**GOOD, "answer": 2}, "the answer is 2", "0 to 1"),
        ({**GOOD, "answer": "A"}, 'the answer is "A"', "0 to 1"),
        ({**GOOD, "answer": True}, "the answer is true", "0 to 1"),
        ('{"question": "\\ud800", "choices": ["a", "b"], "answer": 0}', "unpaired surrogate", "valid Unicode"),
    ],
)
def test_a_bad_record_is_refused_with_its_line(record: Any, found: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{record if isinstance(record, str) else json.dumps(record)}\n")
    with pytest.raises(DataError) as error:
        read_questions(str(path))
    assert f"{path}:3: " in error.value.found and found in error.value.found
    assert expected in str(error.value.expected) and error.value.fix == "correct line 3"


def test_files_without_questions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    for name, found in (("empty", "has no records"), ("latin", "not a text in UTF-8")):
        with pytest.raises(DataError, match=found):
            read_questions(str(tmp_path / f"{name}.jsonl"))


def _docstring(number: int, module: str = "m", text: str = "") -> Docstring:
    return Docstring("function", f"{module}.f{number}", module, "x", text or f"Returns the number {number} of it.")


def test_the_other_choices_are_docstrings_of_the_same_package() -> None:
    usable = [_docstring(n) for n in range(8)] + [_docstring(n, "other.inner") for n in range(10, 13)]
    found = docstring_questions(usable, [])
    assert len(found) == 11 and found == docstring_questions(usable, [])
    texts = {item.text: item for item in usable}
    for one in found:
        items = [texts[choice] for choice in one.choices]
        assert len(set(items)) == 4 and items[one.answer].name == one.location
        assert one.question == f"Python function: {one.location}(x)\nDocstring:"
        near = [item for item in items if item.module == items[one.answer].module]
        assert len(near) == (4 if one.location.startswith("m.") else 3)
    assert len({one.answer for one in found}) > 1


def test_a_paragraph_that_is_in_a_trained_docstring_is_no_choice() -> None:
    usable = [_docstring(n) for n in range(6)] + [_docstring(6, text="Closes  the file\nat once.\n\nMore.")]
    trained = [_docstring(9, text="A class.\n\nIts close() Closes the file at once. Or not."), _docstring(8)]
    choices = {choice for one in docstring_questions(usable, trained) for choice in one.choices}
    assert choices == {item.text for item in usable[:6]}
    with pytest.raises(DataError, match="3 docstrings .* are left"):
        docstring_questions(usable[:3], trained)


@pytest.fixture
def few_docstrings(monkeypatch: pytest.MonkeyPatch) -> List[Docstring]:
    """Use a part of the standard library, and parse it once. Returns its docstrings."""
    whole = builtin_sources._library_files
    monkeypatch.setattr(builtin_sources, "_library_files", lambda folder: islice(whole(folder), 8, 20))
    found = list(builtin_sources.stdlib_docstrings())
    for module in (builtin_sources, questions_module):
        monkeypatch.setattr(module, "stdlib_docstrings", lambda: iter(found))
    return found


def _run(folder: Path, *overrides: str) -> Tuple[RunDir, RunConfig]:
    config = data_config(
        folder, "data.heldout_share=0.2", "data.max_heldout_documents=8", "data.max_seq_len=600", "train.max_steps=5",
        "batch.global_batch_size=4", "data.sources.docs.builtin=stdlib_docs", *overrides,
    )  # fmt: skip
    run = RunDir(folder / "run")
    run.path.mkdir()
    record_inputs(run, config, prepare(config))
    return run, config


def _read_texts(run: RunDir, config: RunConfig, batches: int) -> List[str]:
    """Return what the first batches of a run hold, as text."""
    data, tokenizer = open_set(prepare(config), "train"), bytes_tokenizer()
    count = min(batches * config.batch.global_batch_size, data.num_rows)
    rows = row_ids(config.seed, data.num_rows, 0, count)
    return [tokenizer.decode(ids.tolist()) for row in rows for ids, _ in data.row(int(row))]


@pytest.mark.usefixtures("few_docstrings")
@pytest.mark.parametrize("more", [(), ("data.train_on=all", "data.sources.docs.weight=0.5", "data.max_seq_len=300")])
def test_no_question_holds_a_docstring_that_the_run_trains(more: Tuple[str, ...], tmp_path: Path) -> None:
    run, config = _run(tmp_path, *more)
    usable, trained = split_docstrings(run, config)
    texts = " ".join(" ".join(_read_texts(run, config, 5)).split())
    asked = {item: docstring_chat(item)[1]["messages"][0]["content"] + "<|im_end|>" for item in (*usable, *trained)}
    assert len(trained) > 10 and all(asked[item] in texts for item in trained)
    assert len(usable) > 20 and not [item for item in usable if asked[item] in texts]
    questions = load_questions("stdlib_docs", run, config)
    assert len(questions) > 10
    assert not [one.location for one in questions for choice in one.choices if " ".join(choice.split()) in texts]
    run.metrics.write_text(json.dumps({"step": 3, "train/batches_left_out": [2, 3]}) + "\n")  # it reads two more
    more_texts = " ".join(" ".join(_read_texts(run, config, 7)).split())
    assert len(split_docstrings(run, config)[1]) > len(trained)
    later = load_questions("stdlib_docs", run, config)
    assert not [one for one in later for choice in one.choices if " ".join(choice.split()) in more_texts]
    config.train.max_steps, config.train.epochs = None, 2.0
    usable = split_docstrings(run, config)[0]
    heldout = open_set(prepare(config), "heldout")
    texts = [bytes_tokenizer().decode(ids.tolist()) for row in range(heldout.num_rows) for ids, _ in heldout.row(row)]
    heldout_texts = [text for text in texts if any(asked[item] in text for item in usable)]
    assert len(heldout_texts) == len(texts) == 8
    if not more:
        assert len(usable) == 8
    _another_python(run, config)


def _another_python(run: RunDir, config: RunConfig) -> None:
    """Docstrings of another Python are refused: a docstring that has changed would not be recognized."""
    config.data.chat_template = str(run.path / "other.jinja")
    (run.path / "other.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    text = run.inputs.read_text()
    with pytest.raises(ConfigError, match=r"documents that .* trains are not recognized"):
        split_docstrings(run, config)
    assert platform.python_version() in text
    run.inputs.write_text(text.replace(platform.python_version(), "3.9.1"))
    with pytest.raises(ConfigError, match=r"trained on the docstrings of Python 3\.9\.1"):
        split_docstrings(run, config)


def test_a_run_on_other_data_may_be_asked_about_all_docstrings(few_docstrings: List[Docstring], tmp_path: Path) -> None:
    config = data_config(tmp_path, "data.sources.fake.builtin=fake", "data.heldout.docs.builtin=stdlib_docs")
    usable, trained = split_docstrings(RunDir(tmp_path), config)
    assert not trained and usable == few_docstrings
