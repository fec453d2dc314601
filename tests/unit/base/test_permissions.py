"""Files follow the umask, and another user is told about permissions, never that nothing is there."""

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Callable

import pytest

from ftdist.base.permissions import AccessError, explain_os_error, follow_umask, require_access, require_readable_folder
from ftdist.config.frozen import load_config
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.hostfile import read_hostfile
from ftdist.launch.backends.slurm import script
from ftdist.launch.sweeps.sweep import resume_sweep
from ftdist.plan.deepspeed import check_frozen
from ftdist.run.adapters import adapter_settings, tensor_shapes
from ftdist.run.prepared import read_meta
from ftdist.run.rundir import RunDir, read_manifest
from tests.helpers.users import as_other_user, needs_root, open_to_all


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022])
def test_what_a_library_wrote_for_its_owner_only_follows_the_umask(umask: int, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "inside").mkdir(0o700)
    os.close(os.open(folder / "inside" / "model.safetensors", os.O_CREAT | os.O_WRONLY, 0o600))
    (folder / "script").touch(0o777)
    (folder / "link").symlink_to(tmp_path)
    before = os.umask(umask)
    try:
        follow_umask(folder)
    finally:
        os.umask(before)
    (folder / "link").unlink()
    full = 0o666 & ~umask
    assert modes(folder) == {"inside": 0o777 & ~umask, "inside/model.safetensors": full, "script": full}


@needs_root
def test_another_user_is_told_whose_permission_is_missing(tmp_path: Path) -> None:
    folder = open_to_all(tmp_path) / "model"
    folder.mkdir(0o755)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch(0o600)
    said = as_other_user(lambda: require_readable_folder(folder))
    assert said.startswith(f"AccessError: no permission to read {folder}/model.safetensors: {folder}/model.safetensors")
    assert "belongs to root and has mode 0600" in said and "for the user nobody" in said
    assert as_other_user(lambda: require_access(folder / "config.json")) == "None"
    assert "AccessError: no permission to write" in as_other_user(lambda: require_access(folder, write=True))
    assert as_other_user(lambda: require_access(folder / "nothing here" / "x")) == "None"


@needs_root
def test_a_run_directory_of_another_user_is_refused_for_its_permissions(tmp_path: Path) -> None:
    run = RunDir(open_to_all(tmp_path) / "home" / "run")
    run.path.mkdir(parents=True)
    run.config.write_text("name: x\n")
    run.path.parent.chmod(0o700)
    said = as_other_user(lambda: RunDir.open(run.path))
    assert said.startswith(f"AccessError: no permission to read {run.config}: {run.path.parent} belongs to root")


@needs_root
@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors"])
def test_a_checkpoint_of_another_user_is_not_called_damaged(name: str, tmp_path: Path) -> None:
    from ftdist.checkpoint.export import check_trained

    run = RunDir(open_to_all(tmp_path) / "run")
    (folder := run.checkpoint(2)).mkdir(parents=True)
    for file in ("manifest.json", "rank-00000.safetensors"):
        (folder / file).touch(0o644)
    (folder / name).chmod(0o600)
    for act in (
        lambda: check_trained(folder, RunConfig()),
        *([lambda: read_manifest(folder), lambda: run.find_checkpoint("best")] if name == "manifest.json" else []),
    ):
        assert as_other_user(act).startswith(f"AccessError: no permission to read {folder / name}: ")


READERS: dict[str, Callable[[Path], Any]] = {
    "run.yaml": load_config,
    "deepspeed.json": lambda file: check_frozen(file, RunConfig()),
    "meta.json": lambda file: read_meta(file.parent),
    "adapter_config.json": lambda file: adapter_settings("model.adapter", file.parent),
    "model.safetensors": tensor_shapes,
    "sweep.json": lambda file: resume_sweep(file.parent, quiet=True),
    "hostfile": read_hostfile,
    "job.template": script._read,
}


@needs_root
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_user_is_not_called_missing_or_damaged(name: str, tmp_path: Path) -> None:
    (file := open_to_all(tmp_path) / name).touch(0o600)
    said = as_other_user(lambda: READERS[name](file))
    assert said.startswith(f"AccessError: no permission to read {file}: {file} belongs to root and has mode 0600"), said


@needs_root
def test_an_error_of_the_system_names_the_folder_that_refuses(tmp_path: Path) -> None:
    folder = open_to_all(tmp_path) / "cache"
    folder.mkdir(0o755)

    def write() -> str:
        try:
            (folder / "x" / "y").mkdir(parents=True)
        except OSError as error:
            return str(explain_os_error(error))
        return "written"

    assert as_other_user(write).startswith(f"no permission to write {folder}/x: {folder} belongs to root")


@needs_root
def test_a_link_into_a_folder_of_another_user_names_that_folder(tmp_path: Path) -> None:
    private = open_to_all(tmp_path) / "private"
    (private / "deep").mkdir(parents=True)
    (private / "deep" / "data.jsonl").touch()
    (link := tmp_path / "link").symlink_to(private / "deep" / "data.jsonl")
    (folder := tmp_path / "folder").symlink_to(private / "deep")
    private.chmod(0o700)

    def explain(path: Path) -> str:
        try:
            return path.read_text()
        except OSError as error:
            return str(explain_os_error(error))

    for path in (link, folder, folder / "data.jsonl"):
        for said in (
            as_other_user(lambda path=path: explain(path)),
            as_other_user(lambda path=path: require_access(path)),
        ):  # type: ignore[misc]
            assert f"no permission to read {path}: {private} belongs to root and has mode 0700" in said


def test_other_errors_of_the_system_keep_their_own_reason(tmp_path: Path) -> None:
    full = explain_os_error(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "f")))
    assert str(full).startswith(f"{tmp_path}/f: No space left on device\n  expected: free disk space")
    assert not isinstance(full, AccessError)
    assert str(explain_os_error(OSError(errno.EIO, "Input/output error"))) == "Input/output error"
    assert str(explain_os_error(OSError(errno.EIO, "Input/output error", 7))) == "Input/output error", "an open file"
