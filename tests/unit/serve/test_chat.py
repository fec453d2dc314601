"""``ftdist chat``: loading a model and printing its answers."""

from pathlib import Path

import pytest

from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.serve.chat import answer, load
from tests.helpers.adapters import save_peft_adapter
from tests.helpers.tiny import save_tiny_model

HISTORY = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def environment_of_ftdist_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # torch would set it


def test_an_answer_that_was_cut_ends_with_an_ellipsis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.save_pretrained(save_tiny_model(tmp_path / "model"))
    model, tokenizer = load(tmp_path / "model")
    cut = answer(model, tokenizer, HISTORY, 3, 0.0)
    assert capsys.readouterr().out == f"{cut}…\n"
    prompt = tokenizer.apply_chat_template(HISTORY, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    produced = model.generate(**prompt, max_new_tokens=3, do_sample=False)[0, -3:].tolist()
    model.generation_config.eos_token_id = [produced[1], 0]
    ended = answer(model, tokenizer, HISTORY, 3, 0.0)
    assert capsys.readouterr().out == f"{ended}\n" and cut.startswith(ended)


def test_a_folder_without_a_model_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    from ftdist.base.errors import ConfigError

    with pytest.raises(ConfigError, match="holds no config.json"):
        load(tmp_path)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base_model(tmp_path: Path) -> None:
    """``save_pretrained`` of PEFT writes none."""
    base = save_tiny_model(tmp_path / "model")
    adapter = save_peft_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    bytes_tokenizer().save_pretrained(base)
    model, tokenizer = load(adapter)
    assert answer(model, tokenizer, HISTORY, 3, 0.0)
