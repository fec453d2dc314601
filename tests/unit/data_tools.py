"""Shared by the tests of data: small configs, files and tokenizers, and readers of prepared data."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ftdist.config.data import Format, TrainOn
from ftdist.config.frozen import parse_config
from ftdist.config.schema import RunConfig
from ftdist.data.records import Document, read_record
from ftdist.data.render import Renderer, make_renderer, render
from ftdist.data.tokenise import tokenise
from ftdist.data.tokenizer import bytes_tokenizer

# Chat templates without generation blocks. The first one never changes earlier messages. The second one removes the
# thinking from all answers but the last, as the template of Qwen3 does.
APPENDS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPS_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
THOUGHT = ANSWER | {"reasoning_content": "r"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}


def chat(*texts: str, system: str = "") -> dict[str, Any]:
    """Return a record of the format ``messages``, with the roles user, assistant, user, …"""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def data_config(folder: Path, *overrides: str) -> RunConfig:
    """Return a config with the bytes tokenizer and its cache in ``folder``. Overrides have the form ``a.b=value``."""
    values = OmegaConf.from_dotlist([
        f"cache_dir={folder / 'cache'}", "model.config.model_type=llama", "model.tokenizer=bytes",
        "data.num_workers=1", "data.max_seq_len=256", "data.builtin_general=false", *overrides,
    ])  # fmt: skip
    return parse_config(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.structured(RunConfig), values)), "test")


def word_tokenizer(**special: str) -> Any:
    """Return a small tokenizer whose tokens are words. It is not reversible: unknown words and spaces are lost.

    Its special tokens are ``<s> </s> <|im_start|> <|im_end|>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "user", "assistant", "a", "b", "c", "\n"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": "</s>", **special})


def with_bos(tokenizer: Any) -> Any:
    """Make the tokenizer begin every text with ``<s>``."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<s>"
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def read(record: Any, format: Format = Format.auto) -> Document:
    return read_record("file:1", record, format)


def trained_text(tokenizer: Any, record: Any, train_on: TrainOn = TrainOn.auto) -> list[str]:
    """Tokenize a record that becomes one document, and decode each run of consecutive trained tokens."""
    renderer: Renderer = make_renderer(tokenizer, train_on)
    [tokens] = tokenise(render(read(record), renderer), renderer)
    runs: list[list[int]] = []
    for i, (token, flag) in enumerate(zip(tokens.ids.tolist(), tokens.trained.tolist(), strict=True)):
        if flag:
            if i == 0 or not tokens.trained[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def ids_of(tokenizer: Any, record: Any, train_on: TrainOn = TrainOn.auto) -> list[int]:
    renderer = make_renderer(tokenizer, train_on)
    [tokens] = tokenise(render(read(record), renderer), renderer)
    return tokens.ids.tolist()


def document_bytes(folder: Path, name: str = "train") -> list[bytes]:
    """Return the token ids of all documents of a set as bytes, in row order."""
    from ftdist.data.loader import open_set  # imports torch

    dataset = open_set(folder, name)
    return [ids.tobytes() for row in range(dataset.num_rows) for ids, _ in dataset.row(row)]


def document_texts(folder: Path, name: str = "train") -> list[str]:
    tokenizer = bytes_tokenizer()
    return [tokenizer.decode(np.frombuffer(ids, dtype=np.int32)) for ids in document_bytes(folder, name)]


def text_config(folder: Path, lines: list[str], *overrides: str) -> Any:
    path = write_jsonl(folder / "lines.jsonl", [{"text": line} for line in lines])
    return data_config(folder, f"data.sources.lines.path={path}", *overrides)


def chat_config(folder: Path, records: list[Any], *overrides: str) -> Any:
    path = write_jsonl(folder / "chats.jsonl", records)
    return data_config(folder, f"data.sources.chats.path={path}", *overrides)


def documents_of(tokenizer: Any, record: Any, train_on: TrainOn = TrainOn.auto, **options: Any) -> list[str]:
    """Render a record. Returns the text of each of its documents, with trained text in ``[[ ]]``."""
    made = []
    for rendered in render(read(record), make_renderer(tokenizer, train_on, **options)):
        text = rendered.text
        for start, end in reversed(rendered.spans):
            text = f"{text[:start]}[[{text[start:end]}]]{text[end:]}"
        made.append(text)
    return made


def message(record: Any, number: int = -1) -> Any:
    return read(record).messages[number]
