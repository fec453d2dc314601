"""A run goes on with the data, the model and the tokenizer of its start, or is refused with what changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest

from ftdist.base.errors import FtdistError
from ftdist.base.json_files import read_json, write_json
from ftdist.config.schema import RunConfig
from ftdist.data.prepare import prepare
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.launch.runs import inputs
from ftdist.run import base_model, identity, prepared
from ftdist.run.identity import pin_revision, recorded_folder
from ftdist.run.prepared import data_folder, first_format_folder, read_meta
from ftdist.run.rundir import RunDir
from tests.helpers.tiny import tiny_config


def write_chats(path: Path, word: str, number: int = 30) -> None:
    chats = [{"prompt": f"say {word} {n}", "completion": f"{word} {n}"} for n in range(number)]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(inputs, "run_program", lambda words, config: prepare(config))  # in this process: it is faster
    write_chats(tmp_path / "chats.jsonl", "cat")
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "config.json", {"model_type": "llama"})
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(10_000_000))
    bytes_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "spiece.model").write_text("1")
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return tiny_config(
        tmp_path, "model.tokenizer=null", f"data.chat_template={tmp_path / 'mine.jinja'}", "data.heldout_share=0",
        "data.max_heldout_documents=null", f"data.sources.chats.path={tmp_path / 'chats.jsonl'}",
        "data.sources.chats.builtin=null", "data.sources.chats.max_documents=null",
    )  # fmt: skip


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> RunDir:
    """A run that has begun, with a checkpoint."""
    run = RunDir(tmp_path / "run")
    run.checkpoint(2).mkdir(parents=True)
    identity.record_inputs(run, config, prepare(config))
    return run


def rows(folder: Path) -> int:
    return int(read_meta(folder)["sets"]["train"]["rows"])


@pytest.mark.parametrize("what", ["edited", "gone"])
def test_a_run_continues_with_its_own_data_whatever_happens_to_the_file(
    what: str, config: RunConfig, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = data_folder(config)
    (tmp_path / "chats.jsonl").unlink()
    if what == "edited":
        write_chats(tmp_path / "chats.jsonl", "dog", 300)
    assert inputs.prepare_run_data(config, run) == recorded_folder(run, config) == before
    assert (
        f"data.sources.chats {'chats.jsonl has changed' if what == 'edited' else 'is gone'}" in capsys.readouterr().out
    )


def test_a_cleared_cache_is_filled_again_with_the_same_data(config: RunConfig, run: RunDir) -> None:
    record = read_json(run.inputs)
    assert record["data"]["rows"] == {"train": rows(data_folder(config))} and len(record["data"]["sha256"]) == 64
    shutil.rmtree(config.cache_dir or "")
    assert inputs.prepare_run_data(config, run) == data_folder(config)
    assert read_json(run.inputs) == record


def change_byte(file: Path) -> None:
    """Change one byte of a file, but not its size and time."""
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[100_000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "edited source": (
        lambda home: write_chats(home / "chats.jsonl", "dog"),
        "data.sources.chats chats.jsonl has changed",
    ),
    "source is gone": (lambda home: (home / "chats.jsonl").unlink(), "data.sources.chats is gone"),
    "template": (lambda home: (home / "mine.jinja").write_text("{{ messages }}"), "chat template has changed"),
    "tokenizer": (lambda home: (home / "model" / "tokenizer.json").write_text("{}"), "tokenizer tokenizer.json has"),
    "config": (lambda home: write_json(home / "model" / "config.json", {"a": 1}), "model config.json has changed"),
    "weights": (
        lambda home: (home / "model" / "model.safetensors").write_bytes(b"1" * 10_000_000),
        "model.safetensors has",
    ),
    "vocabulary": (
        lambda home: (home / "model" / "spiece.model").write_text("2"),
        "tokenizer spiece.model has changed",
    ),
    "code": (lambda home: (home / "model" / "modeling.py").touch(), "model modeling.py is new"),
    "weights between the old samples": (lambda home: change_byte(home / "model" / "model.safetensors"), "has changed"),
    "template is gone": (lambda home: (home / "mine.jinja").unlink(), "chat template is gone: data.chat_template="),
    "model": (lambda home: shutil.rmtree(home / "model"), "is gone"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
@pytest.mark.thorough
def test_what_changed_is_named_if_the_data_is_no_longer_in_the_cache(
    change: Callable[[Path], Any], message: str, config: RunConfig, run: RunDir, tmp_path: Path
) -> None:
    shutil.rmtree(config.cache_dir or "")
    change(tmp_path)
    with pytest.raises(FtdistError) as error:
        inputs.prepare_run_data(config, run)
    assert message in error.value.found and "start a new run" in error.value.fix


@pytest.mark.parametrize("name", ["template", "template is gone", "tokenizer", "vocabulary", "config", "weights",
                                  "code", "weights between the old samples"])  # fmt: skip
def test_files_that_the_model_needs_are_checked_with_the_data_in_the_cache(
    name: str, config: RunConfig, run: RunDir, tmp_path: Path
) -> None:
    CHANGES[name][0](tmp_path)
    with pytest.raises(FtdistError, match="was started with other files"):
        inputs.prepare_run_data(config, run)


def test_data_in_the_cache_that_is_not_that_of_the_run_is_refused(config: RunConfig, run: RunDir) -> None:
    file = data_folder(config) / "train" / "tokens.i32"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(FtdistError, match="is not the data that .* was started with"):
        inputs.prepare_run_data(config, run)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta["sets"]["train"].update(rows=meta["sets"]["train"]["rows"] + 1),
        lambda meta: meta["sets"]["train"].update(stop_token_id=7),
        lambda meta: meta["sets"].update(heldout=meta["sets"]["train"]),
        lambda meta: meta["prompts"].update(train=["another"]),
    ],
)
def test_numbers_of_the_prepared_data_that_were_edited_are_refused(
    change: Callable[[Any], Any], config: RunConfig, run: RunDir
) -> None:
    meta = read_json(data_folder(config) / "meta.json")
    change(meta)
    write_json(data_folder(config) / "meta.json", meta)
    with pytest.raises(FtdistError, match="is not the data that .* was started with"):
        inputs.prepare_run_data(config, run)


@pytest.mark.parametrize("what", ["touched", "copied"])
def test_files_with_the_same_content_are_the_same(what: str, config: RunConfig, run: RunDir, tmp_path: Path) -> None:
    for file in [path for path in tmp_path.glob("*/*") if path.parent.name == "model"] + [tmp_path / "mine.jinja"]:
        if what == "copied":
            file.write_bytes(file.read_bytes())
        os.utime(file, (1, 1))
    assert inputs.prepare_run_data(config, run) == data_folder(config)


def test_a_record_of_an_older_version_still_fits(config: RunConfig, run: RunDir, tmp_path: Path) -> None:
    """It has hashes of samples of the weights, and the size and time of a GGUF file."""
    record = read_json(run.inputs)
    del record["data"]["meta"]
    del record["files"]["tokenizer"]["spiece.model"]  # the file was not known to belong to a tokenizer
    record["files"]["model"] = base_model.first_model_files(config)
    assert record["files"]["model"] != identity.describe_files(config)["model"]
    write_json(run.inputs, record)
    identity.check_files(run, config)
    assert inputs.prepare_run_data(config, run) == data_folder(config)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    config.model.path = str(tmp_path / "a.gguf")
    name = base_model.first_gguf(config)
    record["files"] |= {"model": name, "tokenizer": [name]}
    write_json(run.inputs, record)
    identity.check_files(run, config)
    os.utime(tmp_path / "a.gguf", (1, 1))
    with pytest.raises(FtdistError, match="model has changed"):
        identity.check_files(run, config)


DAMAGED: dict[str, Callable[[Any], Any]] = {
    "no file of ftdist": lambda record: {},
    "a list of files": lambda record: {**record, "files": []},
    "data is a number": lambda record: {**record, "data": 3},
    "data is empty": lambda record: {**record, "data": {}},
    "a version in words": lambda record: {**record, "format_version": "four"},
    "a key that leads elsewhere": lambda record: {**record, "data": {**record["data"], "key": "../../elsewhere"}},
    "no rows": lambda record: {**record, "data": {**record["data"], "rows": {}}},
    "rows in words": lambda record: {**record, "data": {**record["data"], "rows": {"train": "many"}}},
    "no hash": lambda record: {**record, "data": {**record["data"], "sha256": None}},
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_named(damage: Callable[[Any], Any], config: RunConfig, run: RunDir) -> None:
    write_json(run.inputs, damage(read_json(run.inputs)))
    with pytest.raises(FtdistError, match=r"inputs\.json is damaged: ") as error:
        inputs.prepare_run_data(config, run)
    assert "start a new run" in error.value.fix


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000], ids=["empty", "list", "bytes", "deep"])
def test_a_record_that_is_not_json_is_named(content: bytes, config: RunConfig, run: RunDir) -> None:
    run.inputs.write_bytes(content)
    with pytest.raises(FtdistError, match=r"inputs\.json is damaged: "):
        inputs.prepare_run_data(config, run)


def test_a_run_that_waits_in_a_queue_records_its_data_when_it_begins(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "queued")
    run.path.mkdir()
    identity.record_inputs(run, config, None)
    record = read_json(run.inputs)
    assert record["data"] is None
    assert record["files"]["model"] != identity.describe_files(config)["model"], "a login node reads only samples"
    assert inputs.prepare_run_data(config, run) == data_folder(config)
    assert read_json(run.inputs)["data"]["key"] == data_folder(config).name
    assert read_json(run.inputs)["files"] == identity.describe_files(config), "the job has read it all"
    assert "note: " not in capsys.readouterr().out
    identity.record_inputs(run, config, None)
    write_chats(tmp_path / "chats.jsonl", "dog")
    for _ in ("not prepared", "prepared"):
        record, again = read_json(run.inputs), inputs.prepare_run_data(config, run)
        assert again == data_folder(config)
        assert "has changed. The run trains on the new data" in capsys.readouterr().out
        write_json(run.inputs, record)


@pytest.mark.parametrize("cached", [True, False])
def test_an_old_run_needs_its_cache_when_the_format_of_the_data_is_newer(
    cached: bool, config: RunConfig, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.inputs.unlink()  # older versions wrote none
    old = first_format_folder(config)
    if data_folder(config) != old:
        data_folder(config).rename(old)
    meta = read_json(old / "meta.json")
    write_json(old / "meta.json", {**meta, "format_version": 2})
    for module in (prepared, identity):
        monkeypatch.setattr(module, "FORMAT_VERSION", 99)
    if cached:
        assert inputs.prepare_run_data(config, run) == recorded_folder(run, config) == old
        assert read_json(run.inputs)["format_version"] == 2
        return
    shutil.rmtree(old)
    with pytest.raises(FtdistError, match="was prepared by an older format"):
        inputs.prepare_run_data(config, run)


def test_an_old_run_whose_data_has_changed_is_told_by_its_number_of_steps(
    config: RunConfig, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.inputs.unlink()
    config.train.max_steps, config.train.epochs = None, 2.0
    run.write_status(max_steps=inputs.num_steps(config, rows(data_folder(config))))
    assert inputs.prepare_run_data(config, run) == recorded_folder(run, config)
    run.inputs.unlink()
    write_chats(tmp_path / "chats.jsonl", "dog", 3000)
    monkeypatch.setattr(identity, "FORMAT_VERSION", 2)  # as if the format were still the old one
    with pytest.raises(FtdistError, match="the run would have .* steps instead of"):
        inputs.prepare_run_data(config, run)


def test_a_branch_of_the_hub_is_pinned_and_a_tokenizer_that_moved_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    reference = tmp_path / "hub" / "models--org--name" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("a" * 40)
    config = tiny_config(tmp_path, "model.path=null", "model.hub=org/name", "model.tokenizer=org/name")
    pin_revision(config)
    assert config.model.revision == config.model.tokenizer_revision == "a" * 40
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    identity.record_inputs(run, config, None)
    identity.check_files(run, config)
    reference.write_text("b" * 40)
    pin_revision(config)
    assert config.model.revision == config.model.tokenizer_revision == "a" * 40, "a commit stays"
    identity.check_files(run, config)
    config.model.tokenizer_revision = None  # a run of an older version
    with pytest.raises(FtdistError, match=f"tokenizer has changed from {'a' * 40} to {'b' * 40}"):
        identity.check_files(run, config)
    config.model.tokenizer = "/a/folder/that is gone"
    with pytest.raises(FtdistError, match="tokenizer is gone: model.tokenizer=/a/folder/that is gone does not exist"):
        identity.check_files(run, config)
