"""Loading the tokenizer, and the bytes tokenizer."""

from pathlib import Path

import numpy as np
import pytest

from ftdist.base.errors import ConfigError
from ftdist.data.prepare import prepare
from ftdist.data.tokenizer import bytes_tokenizer, load_tokenizer
from ftdist.run.prepared import read_meta
from tests.unit.data_tools import chat, chat_config, document_bytes, text_config


def test_an_invalid_template_is_reported_as_such_and_not_as_an_invalid_record(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(ConfigError, match=rf"^{template}:2 is not valid Jinja: unexpected '}}'") as caught:
        prepare(chat_config(tmp_path, [chat("q", "a")], f"data.chat_template={template}"))
    assert "chats.jsonl" not in str(caught.value) and "chatml" in caught.value.fix
    template.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="mine.jinja cannot be read"):
        prepare(chat_config(tmp_path, [chat("q", "a")], f"data.chat_template={template}"))


def test_an_invalid_template_of_the_tokenizer_is_reported_as_such(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "{% if %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=rf"chat template of the tokenizer {tmp_path}/tokenizer:1 is not valid Jinja"):
        prepare(chat_config(tmp_path, [chat("q", "a")], f"model.tokenizer={tmp_path / 'tokenizer'}"))


def test_a_tokenizer_that_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["one"])
    config.model.tokenizer = str(tmp_path)
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    assert f"cannot load the tokenizer {tmp_path}" in caught.value.found
    assert "\n" not in caught.value.found


def test_a_sentencepiece_file_is_kept_for_the_export_or_its_reader_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    config = text_config(tmp_path, ["one"], f"model.tokenizer={tmp_path}")
    assert load_tokenizer(config).sentencepiece_file == str(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.json").unlink()
    monkeypatch.setattr("ftdist.data.tokenizer.find_spec", lambda name: None)  # SentencePiece is not installed
    with pytest.raises(ConfigError, match="no tokenizer.json, and SentencePiece, which reads") as caught:
        load_tokenizer(config)
    assert caught.value.fix == "pip install sentencepiece"


def test_each_new_special_token_is_one_token(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["a<|new|>b"], "model.new_special_tokens=['<|new|>']")
    folder = prepare(config)
    [document] = document_bytes(folder)
    assert np.frombuffer(document, dtype=np.int32).tolist() == [97, 259, 98, 257]
    assert read_meta(folder)["tokenizer"]["vocab_size"] == 260
    assert {"<|new|>", "<|im_start|>"} <= set(load_tokenizer(config).all_special_tokens), (
        "the other special tokens stay special"
    )


def test_the_bytes_tokenizer_is_reversible_and_its_ids_are_bytes() -> None:
    tokenizer = bytes_tokenizer()
    text = "\x00 é 日本\n\t~"
    assert tokenizer(text).input_ids == list(text.encode())
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 259


def test_beside_a_config_of_qwen2_the_bytes_tokenizer_is_read_again_as_it_was_saved(tmp_path: Path) -> None:
    """For some model types transformers reads any tokenizer as a class of the type, which adds the tokens it lacks."""
    from transformers import AutoTokenizer

    bytes_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert type(read).__name__ == "Qwen2Tokenizer" and len(read) == len(bytes_tokenizer())
