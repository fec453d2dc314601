"""Data, a cache or a config from somebody else is read, and no code in it runs."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import ConfigError, DataError
from ftdist.config.data import SourceConfig
from ftdist.config.frozen import load_config, parse_config
from ftdist.run.prepared import data_folder
from tests.faults.canary import pickled, source
from tests.faults.table import fault
from tests.helpers.tiny import tiny_config

GOOD = {"text": "words to learn"}


def script_folder(folder: Path, canary: Path) -> SourceConfig:
    (folder / "evil").mkdir()
    (folder / "evil" / "evil.py").write_text(source(canary))
    return SourceConfig(path=str(folder / "evil"))


def script(folder: Path, canary: Path) -> SourceConfig:
    return SourceConfig(path=str(script_folder(folder, canary).path) + "/evil.py")


def script_as_hub_name(folder: Path, canary: Path) -> SourceConfig:
    return SourceConfig(hub=str(script_folder(folder, canary).path))


def pickle_file(folder: Path, canary: Path) -> SourceConfig:
    (folder / "data.pkl").write_bytes(pickled(canary))
    return SourceConfig(path=str(folder / "data.pkl"))


def pickle_named(suffix: str) -> Callable[[Path, Path], SourceConfig]:
    def plant(folder: Path, canary: Path) -> SourceConfig:
        (folder / f"data{suffix}").write_bytes(pickled(canary))
        return SourceConfig(path=str(folder / f"data{suffix}"))

    plant.__name__ = f"pickle_named{suffix}"
    return plant


def _extension(canary: Path) -> Any:
    """Return a table with a column of a pickled Python type, which pyarrow before 14.0.1 would run."""
    import pyarrow

    marks = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled(canary)}
    column = pyarrow.field("text", pyarrow.string(), metadata=marks)
    return pyarrow.table([[GOOD["text"]]], schema=pyarrow.schema([column]))


def pickled_type_in_arrow(folder: Path, canary: Path) -> SourceConfig:
    import pyarrow

    table = _extension(canary)
    with pyarrow.OSFile(str(folder / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return SourceConfig(path=str(folder / "data.arrow"))


def pickled_type_in_parquet(folder: Path, canary: Path) -> SourceConfig:
    from pyarrow import parquet

    parquet.write_table(_extension(canary), folder / "data.parquet")
    return SourceConfig(path=str(folder / "data.parquet"))


def pickled_column(folder: Path, canary: Path) -> SourceConfig:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": [pickled(canary)]}), folder / "data.parquet")
    return SourceConfig(path=str(folder / "data.parquet"))


def saved(folder: Path, canary: Path, **info: Any) -> SourceConfig:
    import datasets

    datasets.Dataset.from_list([GOOD]).save_to_disk(str(folder / "saved"))
    for name in ("evil.py", "dataset.py", "saved.py"):
        (folder / "saved" / name).write_text(source(canary))
    path = folder / "saved" / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **info}))
    return SourceConfig(path=str(folder / "saved"))


def saved_with_scripts(folder: Path, canary: Path) -> SourceConfig:
    return saved(folder, canary, builder_name="evil")


def saved_with_a_type_of_its_own(folder: Path, canary: Path) -> SourceConfig:
    return saved(folder, canary, features={"text": {"_type": "os.system", "command": f"touch {canary}"}})


REFUSED: dict[Callable[[Path, Path], SourceConfig], str] = {
    script_folder: "is a folder without data files",
    script: "has the suffix '.py'",
    script_as_hub_name: "data.sources.evil.hub",
    pickle_file: "has the suffix '.pkl'",
    pickle_named(".jsonl"): "not UTF-8",
    pickle_named(".json"): "not UTF-8",
    pickle_named(".csv"): "not UTF-8",
    pickle_named(".txt"): "not UTF-8",
    pickle_named(".parquet"): "not Parquet",
    pickle_named(".arrow"): "not Arrow",
    pickled_column: "text is bytes",
    saved_with_a_type_of_its_own: "saved",
}
INERT = (pickled_type_in_arrow, pickled_type_in_parquet, saved_with_scripts)


@fault(
    "security",
    "data from somebody else",
    "loading scripts and pickles, under their own suffixes and others",
    "refused, by name; no code runs",
)
@pytest.mark.parametrize("plant", REFUSED, ids=lambda plant: plant.__name__)
def test_malicious_data_is_refused(plant: Any, tmp_path: Path) -> None:
    from ftdist.data.prepare import prepare

    config = tiny_config(tmp_path, "data.heldout_share=0", "data.num_workers=1")
    config.data.sources = {"evil": plant(tmp_path, tmp_path / "canary")}
    with pytest.raises(DataError) as error:
        prepare(config)
    assert REFUSED[plant] in str(error.value), error.value
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "data from somebody else",
    "pickled Arrow types, scripts beside a saved data set",
    "the records are read; no code runs",
)
@pytest.mark.parametrize("plant", INERT, ids=lambda plant: plant.__name__)
def test_unneeded_files_beside_data_are_not_run(plant: Any, tmp_path: Path) -> None:
    from ftdist.data.sources import read_source

    records = [record for _, record in read_source("here", plant(tmp_path, tmp_path / "canary"))]
    assert records == [GOOD]
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "Python files in the current folder",
    "torch.py, yaml.py, sitecustomize.py …",
    "not imported while data is prepared",
)
def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    """``python -m`` in a folder with an unpacked model or data set would import its files first."""
    for name in ("torch", "datasets", "transformers", "pyarrow", "yaml", "ftdist", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(source(tmp_path / "canary"))
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD))
    words = ["preview", "data=file", "data.sources.file.path=data.jsonl", "data.num_workers=1", "data.heldout_share=0",
             "model=tiny_llama", "train.epochs=1", f"cache_dir={tmp_path / 'cache'}"]  # fmt: skip
    script = Path(sys.executable).with_name("ftdist")
    done = subprocess.run([script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "canary").exists()


def plant_entry(tmp_path: Path) -> Any:
    """Return a config, and a folder in the cache under its key."""
    config = tiny_config(tmp_path)
    folder = data_folder(config)
    folder.mkdir(parents=True)
    return config, folder


METAS = {
    "a pickle": lambda canary: pickled(canary),
    "no object": lambda canary: b"[]",
    "no sets": lambda canary: b"{}",
    "rows of the wrong type": lambda canary: b'{"format_version": 2, "sets": {"train": {"rows": "many"}}}',
    "another format": lambda canary: b'{"format_version": 99, "sets": {"train": {"rows": 1}}}',
    "a name": lambda canary: b'{"format_version": {"_target_": "os.system"}, "sets": {}}',
}


@fault(
    "security",
    "prepared data that somebody planted in the cache",
    "a meta.json that is a pickle, or has wrong types",
    "refused; the data is prepared again",
)
@pytest.mark.parametrize("content", METAS.values(), ids=METAS)
def test_a_planted_cache_entry_is_refused(content: Any, tmp_path: Path) -> None:
    from ftdist.data.loader import open_set

    _, folder = plant_entry(tmp_path)
    (folder / "meta.json").write_bytes(content(tmp_path / "canary"))
    with pytest.raises(DataError, match="it is prepared again"):
        open_set(folder, "train")
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "prepared data that somebody planted in the cache",
    "each array is a pickle, or empty",
    "refused",
)
@pytest.mark.parametrize("name", ["tokens.i32", "trained.u8", "offsets.i64", "row_docs.i64", "row_offsets.i64"])
def test_planted_files_of_a_cache_entry_are_refused(name: str, tmp_path: Path) -> None:
    from ftdist.data.loader import open_set
    from ftdist.data.prepare import prepare

    folder = prepare(tiny_config(tmp_path, "data.sources.chats.max_documents=10", "data.heldout_share=0"))
    for content in (pickled(tmp_path / "canary"), b""):
        (folder / "train" / name).unlink()
        (folder / "train" / name).write_bytes(content)
        with pytest.raises(DataError, match="not what ftdist writes"):
            open_set(folder, "train")
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "prepared data that somebody planted in the cache",
    "hashes.json has other contents",
    "the files are hashed again",
)
@pytest.mark.parametrize("content", [b"[]", b'{"a": 1}', pickle.dumps(1), b'{"%s": {"stamp": 1}}'], ids=repr)
def test_planted_hashes_are_ignored(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD))
    config = tiny_config(tmp_path)
    config.data.sources = {"mine": SourceConfig(path=str(tmp_path / "data.jsonl"))}
    expected = data_folder(config)
    (tmp_path / "cache" / "hashes.json").write_bytes(content.replace(b"%s", bytes(tmp_path / "data.jsonl")))
    assert data_folder(config) == expected


RUN_YAML = {
    "a tag that calls": "name: !!python/object/apply:os.system ['touch CANARY']",
    "a tag that makes": "name: !!python/object/new:os.system ['touch CANARY']",
    "a module": "name: !!python/module:evil",
    "a target": "_target_: os.system\ncommand: touch CANARY",
    "a target in a section": "optim: {_target_: os.system, command: touch CANARY}",
    "an interpolation": "name: ${oc.env:HOME}",
    "an escaped interpolation": r'name: "\x24{oc.env:HOME}"',
    "an interpolation for a number": r'seed: "\x24{oc.decode:1}"',
    "an interpolation in a mapping": 'model: {config: {deep: [{a: "\\u0024{oc.env:HOME}"}]}}',
    "an interpolation as a key": r'model: {config: {"\x24{oc.env:HOME}": 1}}',
    "a list": "[1, 2]",
    "a number": "1",
    "a wrong type": "seed: [1]",
    "no YAML": "a: b: c",
    "deep": "[" * 5000,
    "bytes": "name: !!binary aGk=\nseed: !!timestamp 2001-01-01",
}


@fault(
    "security",
    "a run.yaml from somebody else",
    "YAML tags, _target_, plain and escaped interpolations, wrong types",
    "refused, with the name of the file; no code runs",
)
@pytest.mark.parametrize("text", RUN_YAML.values(), ids=RUN_YAML)
def test_a_malicious_run_yaml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(source(tmp_path / "canary"))
    (tmp_path / "run.yaml").write_text(text.replace("CANARY", str(tmp_path / "canary")))
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "run.yaml"))) as error:
        load_config(tmp_path / "run.yaml")
    assert "is incomplete" not in str(error.value), "it must be refused for its contents, not for missing keys"
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "a run.yaml from somebody else",
    "_target_ in sections whose keys are free",
    "it is a value like any other",
)
def test_a_target_under_a_free_key_is_a_plain_value(tmp_path: Path) -> None:
    target = f"{{_target_: os.system, command: touch {tmp_path / 'canary'}}}"
    config = parse_config(f"model: {{config: {target}}}\nzero: {{deepspeed: {target}}}", "here")
    assert config.model.config["_target_"] == "os.system"
    assert not (tmp_path / "canary").exists()


COPY = "{_target_: shutil.copyfile, src: /dev/null, dst: CANARY}"
"""A function that Hydra's own block list does not contain."""
HYDRA = {
    "a callback": f"hydra: {{callbacks: {{evil: {COPY}}}}}",
    "a sweeper": "hydra: {sweeper: {_target_: os.system}}",
    "a launcher": "hydra: {launcher: {_target_: evil.Launcher}}",
    "part of a sweeper": f"hydra: {{sweeper: {{params: {{a: {COPY}}}}}}}",
}


@fault(
    "security",
    "an experiment file from somebody else",
    "its own callbacks, launchers and sweepers",
    "refused where Hydra would instantiate them; no code runs",
)
@pytest.mark.parametrize("section", HYDRA.values(), ids=HYDRA)
@pytest.mark.parametrize("flags", [["-m", "seed=1,2"], ["seed=1"], ["--cfg", "job"], ["--info", "config"]], ids=repr)
def test_a_malicious_experiment_file_runs_nothing(section: str, flags: list[str], tmp_path: Path) -> None:
    """In a sweep Hydra instantiates the classes that its own section of the config names."""
    from ftdist.launch import cli

    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = f"# @package _global_\ndefaults: [smoke, _self_]\n{section}\n".replace("CANARY", str(tmp_path / "canary"))
    (tmp_path / "conf" / "experiment" / "theirs.yaml").write_text(text)
    words = ["train", "--config-dir", str(tmp_path / "conf"), "experiment=theirs", "--dry-run", *flags,
             f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}", "launch=slurm"]  # fmt: skip
    if "-m" in flags:
        with pytest.raises(ConfigError, match="names code that Hydra would import and run"):
            cli.dispatch(words)
    else:
        cli.dispatch(words)
    assert not (tmp_path / "canary").exists()
