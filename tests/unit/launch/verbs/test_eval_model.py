"""``ftdist eval MODEL``: which words are models, and what is refused before anything is started."""

import argparse
from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch.verbs.eval import add_eval_arguments, eval
from ftdist.launch.verbs.eval_model import is_model


def _eval(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_eval_arguments(parser)
    return eval(parser.parse_intermixed_args(list(words)))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "quiz.jsonl").write_text('{"question": "a", "choices": ["b", "c"], "answer": 0}\n')
    return folder


def test_models_are_told_from_runs_and_from_mistyped_paths(model: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "x.gguf").touch()
    (tmp_path / "x.txt").touch()
    found = [is_model(word) for word in ("model", "x.gguf", "org/name", "x.txt", "runs", "runs/typo", "a/b/c", "name")]
    assert found == [True] * 3 + [False] * 5


@pytest.mark.parametrize(("words", "said"), [
    (["model"], "--tasks stdlib_docs"),
    (["model", "--tasks", "quiz.jsonl", "--checkpoint", "best"], "leave out --checkpoint"),
    (["model", "--tasks", "exam.jsonl"], "there is no such task"),
    (["model", "--tasks", "quiz.jsonl", "optim.lr=1"], "leave out optim.lr=1"),
    (["model", "--tasks", "quiz.jsonl", "data.max_seq_len=64"], "leave out data.max_seq_len=64"),
    (["model", "--tasks", "quiz.jsonl"], "holds no weights"),
    (["runs/typo", "--tasks", "quiz.jsonl"], "does not exist"),
    (["other/typo"], "other/typo does not exist"),
])  # fmt: skip
def test_what_cannot_work_is_refused(model: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError) as caught:
        _eval(*words)
    assert said in str(caught.value)
