"""A checkpoint from somebody else: each file in turn is a pickle, and the manifest is changed to match."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ftdist.checkpoint.protocol import find_newest, verify_checkpoint, write_checkpoint
from ftdist.run.rundir import RunDir
from tests.faults.canary import pickled, save_torch
from tests.faults.checkpoints import Alone, contained, contents, flip_one_bit
from tests.faults.table import fault
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, tiny_config
from tests.helpers.training import assemble, start

STEP = 2


def plant(file: Path, canary: Path, bare: bool) -> None:
    """Replace a file by a pickle: a bare one, or one in the format of torch."""
    if bare:
        file.write_bytes(pickled(canary))
    else:
        save_torch(canary, file)


def vouch_for(checkpoint: Path, name: str) -> None:
    """Write the size and hash of a file into the manifest, and update the manifest's own hash."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if "sha256" in manifest:
        blank = json.dumps({**manifest, "sha256": ""}, indent=1)
        manifest["sha256"] = hashlib.sha256(blank.encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def attack(config: Any, folder: Path) -> Dict[str, List[str]]:
    """Train two steps, then load and export the checkpoint with each of its files replaced.

    Returns the files whose code ran on "load" and on "export", and all files that were "tried".
    """
    from ftdist.checkpoint.export import export_checkpoint
    from ftdist.train.loop import train

    ranks, run = start(config), RunDir(folder / "run")
    assert train(assemble(config, run.path, ranks))
    clean, canary = run.checkpoint(STEP), folder / "canary"
    vouch_for(clean, "state.json")
    export_checkpoint(clean, folder / "clean", config)  # a file with a matching manifest is accepted
    files = sorted(str(path.relative_to(clean)) for path in clean.rglob("*") if path.is_file())
    found: Dict[str, List[str]] = {"tried": files, "load": [], "export": []}
    for name in files:
        for bare in (True, False):
            victim = RunDir(folder / "victim")
            shutil.copytree(run.path, victim.path)
            plant(victim.checkpoint(STEP) / name, canary, bare)
            if name != "manifest.json":
                vouch_for(victim.checkpoint(STEP), name)
            with contextlib.suppress(Exception):
                export_checkpoint(victim.checkpoint(STEP), folder / "out", config)
            _note_canary(canary, found["export"], name)
            with contextlib.suppress(Exception):
                assemble(config, victim.path, ranks).engine.destroy()
            _note_canary(canary, found["load"], name)
            for place in (victim.path, folder / "out"):
                shutil.rmtree(place, ignore_errors=True)
    return found


def _note_canary(canary: Path, ran: List[str], name: str) -> None:
    if canary.exists():
        canary.unlink()
        ran.append(name)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, List[str]]:
    from tests.helpers.tiny import LLAMA

    folder = tmp_path_factory.mktemp("checkpoints")
    config = tiny_config(
        folder, f"train.max_steps={STEP}", "model.path=null", "train.num_samples=0", "train.export=false",
        "zero.stage=2", "data.sources.chats.max_documents=40", "data.packing=false", "batch.global_batch_size=2",
    )  # fmt: skip
    config.model.config = dict(LLAMA)
    freeze_tiny(config, folder / "run", 1)
    (result,) = run_ranks(attack, 1, config, folder)
    return result


@fault(
    "security",
    "a checkpoint from somebody else",
    "each of its files is replaced by a pickle, and the manifest is changed to match",
    "every file was replaced once (a check of these tests)",
)
def test_every_file_was_tried(found: Dict[str, List[str]]) -> None:
    assert {"manifest.json", "state.json", "hf/config.json"} <= set(found["tried"])
    assert len(found["tried"]) > 6


@fault(
    "security",
    "a checkpoint from somebody else",
    "loading and exporting with each file replaced",
    "no code in it runs",
)
@pytest.mark.parametrize("way", ["load", "export"])
def test_a_pickle_in_a_checkpoint_never_runs(way: str, found: Dict[str, List[str]]) -> None:
    assert found[way] == []


@fault(
    "security",
    "a checkpoint from somebody else",
    "a manifest that lists ../ or an absolute path",
    "refused before anything is read or copied",
)
@pytest.mark.parametrize("name", ["hf/../../../passed", "/etc/hostname"])
def test_a_manifest_with_paths_outside_is_refused(name: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "run")
    run.checkpoints.mkdir(parents=True)
    write_checkpoint(run, contents(5), Alone())
    (run.path / "passed").write_text("planted")
    vouch_for(run.checkpoint(5), name)
    assert name in str(verify_checkpoint(run.checkpoint(5)))


PLANTS = {
    "link": lambda place, theirs: place.symlink_to(theirs),
    "dead link": lambda place, theirs: place.symlink_to(theirs / "gone"),
    "file": lambda place, theirs: place.write_text("no folder"),
}


@fault(
    "security",
    "checkpoints/ contains a link to another folder, a dead link, or a file",
    "under each name that ftdist deletes or replaces: .tmp-, .gone-, .old-, bad-, the next step",
    "it is removed, and the target of the link is unchanged; the run continues from its checkpoint and saves",
)
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize(
    "name", [".tmp-step-00000010", ".gone-step-00000009", ".old-step-00000009", ".old-step-00000005",
             "bad-step-00000010", "step-00000010"],
)  # fmt: skip
def test_deletion_does_not_follow_links(name: str, plant: str, tmp_path: Path) -> None:
    run, theirs, notes = RunDir(tmp_path / "run"), tmp_path / "theirs", []  # type: ignore[var-annotated]
    run.checkpoints.mkdir(parents=True)
    (theirs / "deep").mkdir(parents=True)
    (theirs / "deep" / "file").write_text("theirs")
    assert write_checkpoint(run, contents(5), Alone()) == ""
    if name == "bad-step-00000010":  # deleted where a newer bad one is set aside
        assert write_checkpoint(run, contents(10), Alone()) == ""
        flip_one_bit(run.checkpoint(10) / "state.json")
    PLANTS[plant](run.checkpoints / name, theirs)
    if name != "step-00000010":  # as a checkpoint a link is refused; a save replaces it
        assert find_newest(run, Alone(), notes.append) == run.checkpoint(5)
    assert write_checkpoint(run, contents(10), Alone()) == "" and contained(run) == [(5, 0), (10, 0)]
    assert (theirs / "deep" / "file").read_text() == "theirs"
    left = {path.name for path in run.checkpoints.iterdir() if path.is_symlink() or not path.is_dir()}
    assert left == set() and not list(run.checkpoints.glob(".*"))


@fault(
    "security",
    "a link or a pipe inside a checkpoint",
    "the manifest, the file of a rank, a small file or a folder is replaced by a link to it; the manifest is a pipe",
    "refused before it is read, and set aside; the previous checkpoint is used; nothing blocks",
)
@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors", "hf/more/b.txt", "hf", "pipe"])
def test_a_link_inside_a_checkpoint_is_not_followed(name: str, tmp_path: Path) -> None:
    run, notes = RunDir(tmp_path / "run"), []  # type: ignore[var-annotated]
    run.checkpoints.mkdir(parents=True)
    for step in (5, 10):
        assert write_checkpoint(run, contents(step), Alone()) == ""
    place = run.checkpoint(10) / ("manifest.json" if name == "pipe" else name)
    place.rename(tmp_path / "elsewhere")
    if name == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "elsewhere")
    expected = "not a regular file" if name in ("manifest.json", "pipe") else "link"
    assert expected in str(verify_checkpoint(run.checkpoint(10)))
    assert find_newest(run, Alone(), notes.append) == run.checkpoint(5)
    assert "It was renamed to bad-step-00000010;" in notes[0] and (tmp_path / "elsewhere").exists()
