"""An export whose tokenizer, chat template or generation config is not that of the run is refused."""

import json
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from ftdist.base.errors import CheckpointError
from ftdist.checkpoint.exported_template import save_tokenizer, write_defaults
from ftdist.checkpoint.probes import check_exported, check_saved, rendered_chats
from ftdist.checkpoint.protocol import HF
from ftdist.config.schema import RunConfig
from tests.helpers.tokenizers import CHATML, byte_level

GENERATION = "generation_config.json"
TOOLS = "{{ tools[0].function.name }}{{ messages[0].content }}{{ style }}"


@pytest.fixture
def config() -> RunConfig:
    config = RunConfig()
    config.data.chat_template_kwargs = {"style": "brief"}
    return config


def tokenizer() -> Any:
    made = byte_level("qwen2")
    made.chat_template = "{{ style }}" + CHATML
    made.tool_use_template = TOOLS
    return made


def save(folder: Path, made: Any) -> Path:
    folder.mkdir(parents=True)
    save_tokenizer(made, folder)
    (folder / GENERATION).write_text('{"eos_token_id": 3}')
    return folder


@pytest.fixture
def export(tmp_path: Path, config: RunConfig) -> Path:
    """Return an export of the checkpoint ``tmp_path``."""
    save(tmp_path / HF, tokenizer())
    out = save(tmp_path / "export", tokenizer())
    write_defaults(out, config)
    check_exported(out, tmp_path, config)
    return out


def edited(name: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        file = out / name
        before = file.read_text(encoding="utf-8")
        file.write_text(edit(before), encoding="utf-8")
        assert file.read_text(encoding="utf-8") != before

    return change


def _in_json(change: Callable[[Dict[str, Any]], Any]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        values = json.loads(text)
        change(values)
        return json.dumps(values)

    return edit


BROKEN = {
    "a merge lost": (edited("tokenizer.json", _in_json(lambda v: v["model"]["merges"].pop(3))), "other token ids"),
    "another split": (edited("tokenizer.json", lambda t: t.replace(r"\\p{L}+|", r"\\p{L}|")), "other token ids"),
    "an added token lost": (edited("tokenizer.json", _in_json(lambda v: v["added_tokens"].pop())), "tokens instead of"),
    "another EOS": (edited("tokenizer_config.json", _in_json(lambda v: v.update(eos_token="<|pad|>"))), "eos_token_id"),
    "another chat template": (edited("chat_template.jinja", lambda t: t + " "), "a chat is rendered as"),
    "no chat template": (lambda out: (out / "chat_template.jinja").unlink(), ""),
    "another template for tools": (
        edited("additional_chat_templates/tool_use.jinja", lambda t: t + "!"), "a chat is rendered as"),
    "the arguments of training lost": (
        edited("chat_template.jinja", lambda t: t.split("\n", 1)[1]), "a chat is rendered as"),
    "another generation config": (edited(GENERATION, lambda t: t.replace("3", "4")), "another generation_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_export_with_another_tokenizer_is_refused(
    name: str, export: Path, tmp_path: Path, config: RunConfig
) -> None:
    change, message = BROKEN[name]
    change(export)
    with pytest.raises(CheckpointError, match=f"does not have the tokenizer and settings of the run.*{message}"):
        check_exported(export, tmp_path, config)


def test_a_tokenizer_that_is_saved_as_another_one_is_refused(tmp_path: Path, config: RunConfig) -> None:
    made = tokenizer()
    folder = save(tmp_path / HF, made)
    files = {f"{HF}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    check_saved(files, made, config)
    made.add_tokens(["<new>"])
    with pytest.raises(CheckpointError, match="saves another tokenizer than it has loaded: .* tokens instead of"):
        check_saved(files, made, config)


def test_the_chats_have_every_role_and_a_tool() -> None:
    texts = rendered_chats(tokenizer(), style="")
    assert len(texts) == 6 and texts[-1] == "nowHow are you? (0)"
    assert sum("system" in text for text in texts) == 2 and sum("Fine" in text for text in texts) == 3
