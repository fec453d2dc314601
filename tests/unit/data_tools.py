"""What the data tests share: small configs, files, tokenizers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ftdist.config.frozen import parse_config
from ftdist.config.schema import Format, RunConfig, TrainOn
from ftdist.data.records import Document, read_record
from ftdist.data.render import Renderer, make_renderer, render, tokenise

# Templates in the wild, without generation marks: one that only appends; one that strips thinking of earlier answers,
# as Qwen3's does.
APPENDS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPS_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*texts: str, system: str = "") -> dict[str, Any]:
    """A record of messages: user, assistant, user, …"""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def data_config(folder: Path, *overrides: str) -> RunConfig:
    """A config of the bytes tokenizer with its cache in the folder; overrides are dotted ``key=value``."""
    values = OmegaConf.from_dotlist([
        f"cache_dir={folder / 'cache'}", "model.config.model_type=llama", "model.tokenizer=bytes",
        "data.num_workers=1", "data.max_seq_len=256", *overrides,
    ])  # fmt: skip
    return parse_config(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.structured(RunConfig), values)), "test")


def word_tokenizer(**special: str) -> Any:
    """Words split at white space, each character of unknown words lost: small, and not reversible. Special tokens are
    ``<s> </s> <|im_start|> <|im_end|>``."""
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
    """The same tokenizer as a model that wants ``<s>`` first has it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<s>"
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def read(record: Any, format: Format = Format.auto) -> Document:
    return read_record("file:1", record, format)


def trained_text(tokenizer: Any, record: Any, train_on: TrainOn = TrainOn.auto) -> list[str]:
    """The runs of trained tokens of a record, decoded."""
    renderer: Renderer = make_renderer(tokenizer, train_on)
    [tokens] = tokenise([render(read(record), renderer)], renderer)
    runs: list[list[int]] = []
    for i, (token, flag) in enumerate(zip(tokens.ids.tolist(), tokens.trained.tolist(), strict=True)):
        if flag:
            if i == 0 or not tokens.trained[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def ids_of(tokenizer: Any, record: Any, train_on: TrainOn = TrainOn.auto) -> list[int]:
    renderer = make_renderer(tokenizer, train_on)
    [tokens] = tokenise([render(read(record), renderer)], renderer)
    return tokens.ids.tolist()
