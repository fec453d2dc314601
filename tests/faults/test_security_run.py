"""Whole runs with secrets in the environment: no secret is written anywhere, and files respect the umask."""

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Set

import psutil
import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch import cli
from ftdist.run.rundir import RunDir
from tests.faults.canary import source
from tests.faults.table import fault

SECRETS = {
    name: f"c4n4ry{number}x0123456789abcdef0123456789abcdef"
    for number, name in enumerate(
        ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_PASSWORD",
         "SOME_CREDENTIAL", "OTHER_SECRET")
    )
}  # fmt: skip
WORDS = ["experiment=smoke", "train.max_steps=2", "train.checkpoint_every=2", "train.eval_every=2",
         "train.num_samples=1", "train.sample_tokens=4", "data.sources.fake.max_documents=60", "launch.timeout_s=60",
         "data.num_workers=1", "data.max_seq_len=64"]  # fmt: skip


FTDIST = Path(sys.executable).with_name("ftdist")
"""The script rather than ``python -m ftdist``, which imports from the current folder before ftdist can prevent it."""


@dataclass
class Seen:
    """What other users could see of a command."""

    code: int
    text: str
    commands: Set[str] = field(default_factory=set)
    """The command lines of its processes."""


def environment(home: Path, **more: str) -> Dict[str, str]:
    places = {"HOME": home, "TMPDIR": home / "tmp", "HF_HOME": home / "hf", "FTDIST_CACHE": home / "cache"}
    return {**os.environ, **SECRETS, **{name: str(path) for name, path in places.items()}, **more}


def ftdist(home: Path, *words: str, umask: int = 0o022, **more: str) -> Seen:
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    output = home / "output"
    with output.open("w+") as file:
        process = psutil.Popen(
            [FTDIST, *words], cwd=home / "work", env=environment(home, **more), umask=umask,
            stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        commands: Set[str] = set()
        while process.poll() is None:
            for child in [process, *process.children(recursive=True)]:
                try:
                    commands.add(" ".join(child.cmdline()))
                except psutil.Error:  # gone
                    continue
            time.sleep(0.2)
    text = output.read_text(errors="replace")
    output.unlink()
    return Seen(process.wait(), text, commands)


def work(home: Path) -> None:
    """Make a git checkout, in which runs are started, with an uncommitted change that contains secrets."""
    (home / "work").mkdir(parents=True)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x"]
    (home / "work" / "code.py").write_text("lr = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"]):
        subprocess.run([*git, *command], cwd=home / "work", check=True, env=environment(home))
    change = f"lr = 2\nuse('{SECRETS['HF_TOKEN']}')\nDB_PASSWORD = 'hunter2-c4n4ry'\n"
    (home / "work" / "code.py").write_text(change)


def leaks(home: Path) -> List[str]:
    """Return the files below a folder that contain a secret."""
    files = [path for path in home.rglob("*") if path.is_file() and path != home / "work" / "code.py"]
    assert files
    return [str(path.relative_to(home)) for path in files if b"c4n4ry" in path.read_bytes()]


@dataclass
class Finished:
    home: Path
    run: RunDir
    umask: int
    seen: Seen


@pytest.fixture(scope="module", params=[pytest.param(0o077, marks=pytest.mark.slow), 0o027], ids=oct)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home = tmp_path_factory.mktemp("home")
    work(home)
    seen = ftdist(home, "train", *WORDS, f"run_dir={home / 'runs' / 'run'}", umask=request.param)
    assert seen.code == 0, seen.text
    return Finished(home, RunDir(home / "runs" / "run"), request.param, seen)


@fault(
    "security",
    "secrets in the environment",
    "a whole run with W&B and an export",
    "in no file, output or command line",
)
@pytest.mark.parametrize("finished", [0o027], indirect=True, ids=oct)
def test_a_run_writes_no_secret(finished: Finished) -> None:
    assert list(finished.run.wandb.glob("offline-run-*/*.wandb")), "W&B must have been on"
    assert leaks(finished.home) == []
    assert "c4n4ry" not in finished.seen.text
    ranks = [command for command in finished.seen.commands if "ftdist.train.main" in command]
    assert ranks and "c4n4ry" not in "\n".join(finished.seen.commands)


@fault(
    "security",
    "secrets in a git diff",
    "a token, a password",
    "provenance.json contains the diff without them",
)
@pytest.mark.parametrize("finished", [0o027], indirect=True, ids=oct)
def test_the_git_diff_is_kept_without_secrets(finished: Finished) -> None:
    diff = json.loads(finished.run.provenance.read_text())["git"]["diff"]
    assert "+lr = 2" in diff and "+use('***')" in diff and "+DB_PASSWORD = '***'" in diff


@fault(
    "security",
    "a strict umask",
    "077 and 027, over a whole run",
    "no file or folder has more permissions than the umask allows",
)
def test_files_respect_the_umask(finished: Finished) -> None:
    made = [path for place in ("runs", "cache", "hf", "tmp") for path in (finished.home / place).rglob("*")]
    assert len(made) > 40 and any("checkpoints" in path.parts for path in made) and finished.run.export.is_dir()
    wide = [str(path) for path in made if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & finished.umask]
    assert wide == []
    narrow = {
        str(path.relative_to(finished.home)): oct(mode)
        for place in (finished.run.path, finished.home / "cache")
        for path in place.rglob("*")
        if (mode := stat.S_IMODE(path.stat().st_mode)) | 0o222
        != (0o777 if path.is_dir() else 0o666) & ~finished.umask | 0o222
    }
    assert narrow == {}, "files that a member of the group, or a web server, could not read"


@pytest.mark.slow
@fault("security", "an export", "umask 077", "no file has more permissions")
@pytest.mark.parametrize("finished", [0o027], indirect=True, ids=oct)
def test_an_export_respects_its_own_umask(finished: Finished) -> None:
    out = finished.home / "out"
    seen = ftdist(finished.home, "export", str(finished.run.path), "--out", str(out), umask=0o077)
    assert seen.code == 0, seen.text
    assert [str(path) for path in [out, *out.rglob("*")] if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


@fault("security", "an export", "--out is a link", "the link is refused")
@pytest.mark.parametrize("finished", [0o027], indirect=True, ids=oct)
def test_an_export_refuses_a_link(finished: Finished, tmp_path: Path) -> None:
    for target in (tmp_path / "empty", tmp_path / "new"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "link").symlink_to(target)
        seen = ftdist(finished.home, "export", str(finished.run.path), "--out", str(tmp_path / "link"))
        assert seen.code == 2 and "is a link" in seen.text
        assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / "new").exists()
        (tmp_path / "link").unlink()


RAISE = """
import os, sys

class Raise:
    def find_spec(self, name, path=None, target=None):
        if "RANK" in os.environ and name == "transformers.models.llama.modeling_llama":
            raise PermissionError("401 for " + os.environ["HF_TOKEN"] + " at https://me:c4n4ry@host/x")

sys.meta_path.insert(0, Raise())
"""


@fault(
    "security",
    "secrets in the exception of a library",
    "on a rank",
    "*** in message, traceback and logs",
)
def test_a_crash_writes_no_secret(tmp_path: Path) -> None:
    """A library on a rank raises an exception whose message contains secrets."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RAISE)
    home = tmp_path / "home"
    work(home)
    run = RunDir(home / "runs" / "run")
    words = [*WORDS, "launch.nproc_per_node=1", f"run_dir={run.path}"]
    seen = ftdist(home, "train", *words, PYTHONPATH=str(tmp_path / "site"))
    assert seen.code == 1
    assert "rank 0" in seen.text and "401 for *** at https://***@host/x" in seen.text, seen.text
    assert json.loads(run.error_file(0, 0).read_text())["traceback"].count("***") > 1
    assert "Root Cause" in (run.logs / "launcher.attempt-0.log").read_text(), "torchrun's own report"
    assert leaks(home) == [] and "c4n4ry" not in seen.text + "\n".join(seen.commands)


KINDS = {
    "local": [],
    "slurm": ["launch=slurm"],
    "nodes": ["launch=nodes", "launch.nodes.hosts=[a,b]", "launch.nnodes=2"],
}


@pytest.fixture(scope="module")
def dry_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home for the dry runs, so that they prepare their data once."""
    home = tmp_path_factory.mktemp("dry")
    work(home)
    return home


@fault(
    "security",
    "secrets in the environment",
    "--dry-run: local, Slurm, nodes",
    "in no file, script or output",
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_writes_no_secret(kind: str, dry_home: Path) -> None:
    words = [*KINDS[kind], "launch.device=cpu", "launch.nproc_per_node=1", f"run_dir={dry_home / 'runs' / kind}"]
    seen = ftdist(dry_home, "train", "--dry-run", *WORDS, *words)
    assert seen.code == 0, seen.text
    assert RunDir(dry_home / "runs" / kind).config.is_file()
    assert leaks(dry_home) == [] and "c4n4ry" not in seen.text + "\n".join(seen.commands)


TYPED = [
    f"launch.slurm.env.HF_TOKEN={SECRETS['HF_TOKEN']}",
    "launch.slurm.env.MY_PASSWORD=hunter2",
    "launch.slurm.env.HF_TOKEN='$HF_TOKEN'",
    "launch.slurm.env.GREETING=${oc.env:HF_TOKEN}",
    "name=${oc.env:WANDB_API_KEY}",
    "model.path=https://me:c4n4ry@host/model",
    "+model.config.api_key=c4n4ry",
    "+zero.deepspeed.comet.api_key=c4n4ry",
    f"launch.slurm.options=['--comment={SECRETS['GITHUB_TOKEN']}']",
    f"launch.nodes.ssh='sshpass -p {SECRETS['MY_PASSWORD']} ssh'",
]


@fault(
    "security",
    "a secret on the command line",
    "in ten places, of a run and of a sweep",
    "refused, without repeating it; nothing is written",
)
@pytest.mark.parametrize("word", TYPED)
@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["run", "sweep"])
def test_a_secret_on_the_command_line_is_refused(
    word: str, flags: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    words = ["train", "experiment=smoke", "launch=slurm", "launch.device=cpu", "--dry-run", word, *flags]
    with pytest.raises(ConfigError, match="export it as an environment variable") as error:
        cli.dispatch([*words, f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"])
    shown = capsys.readouterr()
    assert "c4n4ry" not in str(error.value) + shown.out + shown.err
    assert not list(tmp_path.iterdir())


@fault(
    "security",
    "Python files in the current folder",
    "torch.py, numpy.py …",
    "not imported by ranks",
)
@pytest.mark.parametrize("finished", [0o027], indirect=True, ids=oct)
def test_ranks_do_not_import_from_the_current_folder(finished: Finished, tmp_path: Path) -> None:
    """Ranks import the installed ``torch``, as the preparation of data does."""
    for name in ("torch", "deepspeed", "numpy", "ftdist"):
        (finished.home / "work" / f"{name}.py").write_text(source(tmp_path / "canary"))
    try:
        seen = ftdist(finished.home, "eval", str(finished.run.path))
    finally:
        for name in ("torch", "deepspeed", "numpy", "ftdist"):
            (finished.home / "work" / f"{name}.py").unlink()
    assert "held-out loss" in seen.text, seen.text
    assert not (tmp_path / "canary").exists()
