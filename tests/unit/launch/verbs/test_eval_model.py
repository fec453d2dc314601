"""``ftdist eval MODEL``: which words are models, and what is refused before anything is started."""

import argparse
import json
from pathlib import Path
from typing import Any, Optional

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch.verbs.eval import add_eval_arguments, eval
from ftdist.launch.verbs.eval_model import _config, is_model


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


def adapter(tmp_path: Path, base: Optional[Path], **mark: Any) -> Path:
    """Write the settings of an adapter as an export of a run does."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"r": 8, "lora_alpha": 16, "base_model_name_or_path": str(base) if base else None}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "ftdist_export.json").write_text(json.dumps(mark))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_an_adapter_is_added_to_the_model_that_it_names(model: Path, tmp_path: Path) -> None:
    config = _config(str(adapter(tmp_path, model)))
    assert (config.model.path, config.model.hub) == (str(model), None)
    assert config.model.adapter == config.model.tokenizer == str(tmp_path / "adapter")


@pytest.mark.parametrize(("there", "mark", "said"), [
    (True, {"quantization": {"type": "nf4"}}, "4 bits, to which it cannot be added"),
    (False, {}, "random weights, which are not stored anywhere"),
])  # fmt: skip
def test_an_adapter_whose_base_cannot_be_loaded_is_refused(
    model: Path, tmp_path: Path, there: bool, mark: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        _config(str(adapter(tmp_path, model if there else None, **mark)))
    assert "ftdist eval RUN_DIR --tasks" in caught.value.fix


def test_models_are_told_from_runs_and_from_mistyped_paths(model: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "x.gguf").touch()
    (tmp_path / "x.txt").touch()
    words = ("model", "adapter", "x.gguf", "org/name", "x.txt", "runs", "runs/typo", "a/b/c", "name")
    adapter(tmp_path, model)
    assert [is_model(word) for word in words] == [True] * 4 + [False] * 5


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
