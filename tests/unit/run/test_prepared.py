"""The hash in the name of prepared data changes if, and only if, the result changes. Locations of cache and model."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError, DataError
from ftdist.config.schema import RunConfig
from ftdist.data.prepare import prepare
from ftdist.run.locations import cache_root, check_model_folder, model_location, needs_conversion, tokenizer_location
from ftdist.run.prepared import TOKENIZER_FILES, data_folder, is_ready, known_before, template_text
from tests.helpers.users import as_other_user, needs_root, open_to_all
from tests.unit.data_tools import chat, data_config, write_jsonl
from tests.unit.run.test_weight_files import write_weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", [chat("q", "a")] * 3)


def key(folder: Path, *overrides: str) -> str:
    return data_folder(data_config(folder, f"data.sources.a.path={folder / 'a.jsonl'}", *overrides)).name


CHANGES = [
    "data.max_seq_len=128", "data.packing=false", "data.train_on=last", "data.long_documents=split",
    "data.heldout_share=0.5", "data.max_heldout_documents=3", "data.chat_template=chatml",
    "data.sources.a.weight=2", "data.sources.a.max_documents=2", "data.sources.a.format=messages",
    "data.chat_template_kwargs={enable_thinking: false}", "data.chat_template_date=2025-01-01", "data.turns=each",
    "data.reasoning=drop", "data.bad_records=drop", "data.sources.a.fields={text: body}",
    "data.sources.b.builtin=fake", "data.heldout.b.builtin=fake", "model.new_special_tokens=['<x>']",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.thorough
def test_settings_that_change_the_result_change_the_hash(tmp_path: Path, source: Path, change: str) -> None:
    assert key(tmp_path, change) != key(tmp_path)


@pytest.mark.parametrize("change", ["data.num_workers=2", "seed=5", "batch.global_batch_size=64", "optim.lr=1"])
def test_other_settings_do_not_change_the_hash(tmp_path: Path, source: Path, change: str) -> None:
    assert key(tmp_path, change) == key(tmp_path)


def test_the_seed_changes_the_hash_if_it_chooses_documents(tmp_path: Path, source: Path) -> None:
    weight = "data.sources.a.weight=0.5"
    assert key(tmp_path, weight, "seed=1") != key(tmp_path, weight)


def test_the_content_of_a_source_changes_the_hash_but_not_its_time_or_folder(tmp_path: Path, source: Path) -> None:
    first = key(tmp_path)
    os.utime(source, (1, 1))
    assert key(tmp_path) == first
    source.rename(tmp_path / "elsewhere")
    source.write_text((tmp_path / "elsewhere").read_text())
    assert key(tmp_path) == first
    source.write_text(source.read_text().replace('"q"', '"p"'))
    assert key(tmp_path) != first


def test_the_content_of_template_and_tokenizer_changes_the_hash(tmp_path: Path, source: Path) -> None:
    (template := tmp_path / "t.jinja").write_text("one")
    first = key(tmp_path, f"data.chat_template={template}")
    template.write_text("two")
    assert key(tmp_path, f"data.chat_template={template}") != first
    (tmp_path / "tok").mkdir()
    (file := tmp_path / "tok" / "tokenizer.json").write_text("{}")
    first = key(tmp_path, f"model.tokenizer={file.parent}")
    file.write_text("{ }")
    assert (second := key(tmp_path, f"model.tokenizer={file.parent}")) != first
    (named := file.parent / "additional_chat_templates").mkdir()
    (named / "tool_use.jinja").write_text("three")
    assert key(tmp_path, f"model.tokenizer={file.parent}") != second
    with pytest.raises(ConfigError, match="data.chat_template=mine does not exist"):
        key(tmp_path, "data.chat_template=mine")


def test_every_file_that_a_tokenizer_of_transformers_reads_changes_the_hash(tmp_path: Path, source: Path) -> None:
    models = Path(str(importlib.util.find_spec("transformers").submodule_search_locations[0])) / "models"  # type: ignore
    files = [file.read_text() for file in models.glob("*/tokenization*.py")]
    named = re.findall(r"^VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", "\n".join(files), re.M | re.S)
    names = {name for part in named for name in re.findall(r":\s*\"([^\"]+)\"", part)}
    assert len(names) > 20 and {"sentencepiece.bpe.model", "merges.txt", "bpe.codes"} <= names
    names |= {"qwen.tiktoken", "tekken.json"}  # read by code that comes with a model
    assert [name for name in sorted(names) if not any(fnmatch(name, one) for one in TOKENIZER_FILES)] == []
    (folder := tmp_path / "tok").mkdir()
    known = {key(tmp_path, f"model.tokenizer={folder}")}
    for name in ("spiece.model", "tekken.json"):
        (folder / name).touch()
        known.add(key(tmp_path, f"model.tokenizer={folder}"))
    (folder / "tokenization_mine.py").touch()
    known |= {key(tmp_path, f"model.tokenizer={folder}", f"model.trust_remote_code={on}") for on in ("true", "false")}
    assert len(known) == 4, "code counts only if it may run"
    assert not known_before("spiece.model") and known_before("tokenizer.model") and known_before("tool_use.jinja")


@needs_root
def test_a_template_of_another_user_is_refused_for_its_permissions(tmp_path: Path, source: Path) -> None:
    (private := open_to_all(tmp_path) / "private").mkdir(0o700)
    for template in (private / "t.jinja", tmp_path / "t.jinja"):
        template.touch(0o600)
        config = data_config(tmp_path, f"data.chat_template={template}")
        said = as_other_user(lambda config=config: template_text(config))  # type: ignore[misc]
        assert said.startswith(f"AccessError: no permission to read {template}: ")


def test_a_revision_changes_the_hash_and_missing_data_is_refused(tmp_path: Path) -> None:
    hub = "data.sources.h.hub=org/name"
    one = data_config(tmp_path, hub, "data.sources.h.revision=abc")
    assert data_folder(one) != data_folder(data_config(tmp_path, hub))
    with pytest.raises(DataError, match="does not exist"):
        key(tmp_path)
    tokenizer = "model.tokenizer=org/tok"
    assert data_folder(data_config(tmp_path, hub, tokenizer, "model.tokenizer_revision=abc")) != data_folder(
        data_config(tmp_path, hub, tokenizer)
    )


def test_the_hash_is_the_same_before_and_after_a_model_is_converted(tmp_path: Path, source: Path) -> None:
    config = data_config(tmp_path, "data.sources.a.builtin=fake")
    config.model = type(config.model)(builtin="smollm2-135m-instruct")
    before = data_folder(config)
    folder = Path(model_location(config))
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    assert data_folder(config) == before


def test_prepared_data_is_found_at_once_and_without_heavy_imports(tmp_path: Path, source: Path) -> None:
    config = data_config(tmp_path, f"data.sources.a.path={source}")
    prepare(config)
    started = time.monotonic()
    assert is_ready(data_folder(config))
    assert time.monotonic() - started < 0.5
    code = (
        "import sys; import ftdist.run.prepared, ftdist.run.sample, ftdist.run.locations, ftdist.data.main;"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow', 'tokenizers'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_cache_is_set_by_the_config_or_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = RunConfig()
    monkeypatch.delenv("FTDIST_CACHE", raising=False)
    assert cache_root(config) == Path.home() / ".cache" / "ftdist"
    monkeypatch.setenv("FTDIST_CACHE", str(tmp_path))
    assert cache_root(config) == tmp_path
    config.cache_dir = "~/mine"
    assert cache_root(config) == Path.home() / "mine"


def test_models_and_tokenizers_are_located_without_loading_them(tmp_path: Path) -> None:
    config = RunConfig(cache_dir=str(tmp_path))
    config.model.hub = "org/name"
    assert (model_location(config), tokenizer_location(config), needs_conversion(config)) == ("org/name",) * 2 + (
        False,
    )
    config.model.tokenizer = "bytes"
    assert tokenizer_location(config) == "bytes"
    config.model.hub, config.model.builtin = None, "smollm2-135m-instruct"
    assert model_location(config) == str(tmp_path / "models" / "smollm2-135m-instruct")
    assert needs_conversion(config)
    (tmp_path / "models" / "smollm2-135m-instruct").mkdir(parents=True)
    (tmp_path / "models" / "smollm2-135m-instruct" / "config.json").write_text("{}")
    assert not needs_conversion(config)
    config.model.builtin, config.model.path = None, str(tmp_path / "My.Model.gguf")
    with pytest.raises(ConfigError, match="No such file"):
        model_location(config)
    (tmp_path / "My.Model.gguf").write_bytes(b"GGUF")
    first = model_location(config)
    assert Path(first).name.startswith("My.Model-")
    os.utime(tmp_path / "My.Model.gguf", (1, 1))
    assert model_location(config) == first, "the content is the same"
    (tmp_path / "My.Model.gguf").write_bytes(b"gguf")
    os.utime(tmp_path / "My.Model.gguf", (1, 1))
    assert model_location(config) != first


def test_model_folders_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    config = RunConfig()
    config.model.path = str(tmp_path / "model")

    def refusal() -> str:
        with pytest.raises(ConfigError) as caught:
            check_model_folder(config)
        return caught.value.found

    assert "does not exist" in refusal()
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no config.json; it is empty" in refusal()
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json) and not its base model" in refusal()
    (folder / "config.json").write_text("{")
    assert "is not JSON" in refusal()
    (folder / "config.json").write_text("{}")
    assert "has no model_type" in refusal()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "holds an adapter of another model" in refusal()
    (folder / "adapter_config.json").unlink()
    assert "holds no weights" in refusal()
    write_weights(folder / "model.safetensors", {})
    assert "holds no tokenizer" in refusal()
    config.model.tokenizer = "bytes"
    check_model_folder(config)
    config.model.path = str(folder / "config.json")
    assert "is a file" in refusal()
