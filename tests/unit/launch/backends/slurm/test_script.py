"""The batch script: golden files, refused settings, and that no value is ever run (real bash, no Slurm)."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.data import SourceConfig
from ftdist.config.launch import Container, Device, LaunchKind, Profile, check_launch
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.slurm import script
from ftdist.run.hub import hub_cache

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = [
    "a'b",
    'a"b',
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "a\\",
    "ünï 東京 🚀",
    "-x",
    "${HOME}",
    "%j",
    "@@ENV@@",
    "# c",
]


def resolved(**changes: Any) -> RunConfig:
    config = RunConfig(name="first", run_dir="/shared/runs/first", cache_dir="/shared/cache")
    launch = config.launch
    launch.kind, launch.device, launch.nnodes, launch.nproc_per_node = LaunchKind.slurm, Device.cuda, 4, 8
    launch.slurm.python = "/shared/env/bin/python"
    for key, value in changes.items():
        setattr(launch.slurm if hasattr(launch.slurm, key) else launch, key, value)
    return config


EVERYTHING = {
    "partition": "gpu", "account": "my-project", "qos": "high", "constraint": "[a100|h100]", "reservation": "mine",
    "time": "1-00:00:00", "cpus_per_node": 96, "mem": "0", "exclusive": True, "mail_user": "me@example.org",
    "profile": Profile.infiniband, "modules": ["cuda/12.8", "gcc"],
    "setup": ["source '/opt/my env/activate'  # ours", "ulimit -l unlimited"],
    "env": {"NCCL_DEBUG": "INFO", "GREETING": "it's me"},
    "container": Container.pyxis, "container_image": "nvcr.io#nvidia/pytorch:25.10-py3",
    "container_mounts": ["/data:/data"],
    "options": ["--switches=1", "--contiguous"], "srun_options": ["--cpu-bind=none"], "stop_before_limit_s": 300,
    "max_restarts": 2, "python": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("nodes", resolved()),
        ("everything", resolved(**EVERYTHING)),
        ("cpu", resolved(device=Device.cpu, nnodes=2, nproc_per_node=2, profile=Profile.cpu, max_requeues=0)),
        ("apptainer", resolved(container=Container.apptainer, container_image="/images/ft.sif", python=None)),
        ("efa", resolved(profile=Profile.efa)),
    ],
)
def test_the_script_equals_the_golden_file(name: str, config: RunConfig) -> None:
    golden(name, config)


def golden(name: str, config: RunConfig, array: Optional[script.Array] = None) -> None:
    """Compare with the golden file. FTDIST_GOLDEN=write writes it after an intended change: then read the diff."""
    check_launch(config.launch)
    text, path = script.render(config, array=array), GOLDEN / f"{name}.sbatch"
    if os.environ.get("FTDIST_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_script_of_an_array_equals_the_golden_file() -> None:
    golden("array", resolved(nproc_per_node=2, trials_at_once=2), script.Array(Path("/shared/runs/a-sweep"), [0, 1, 4]))


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_reaches_bash_unchanged(value: str, tmp_path: Path) -> None:
    config = resolved(env={"HOSTILE": value}, partition=value, account=value)
    config.name, config.run_dir = value, f"/runs/{value}"
    if "%" in value or "\\" in value:  # Slurm reads --output as a pattern
        with pytest.raises(ConfigError, match="patterns"):
            script.render(config)
        config.run_dir = "/runs/plain"
    text = script.render(config)
    begin = text.index("RUN_DIR=")
    bash_text = text[:begin] + "exec 3>&1 >/dev/null\n" + text[begin : text.index("# ---- requests to stop")]
    bash_text += 'printf "%s\\n" "$RUN_DIR" "$HOSTILE" >&3\n'
    done = subprocess.run(["bash", "-c", bash_text], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "SLURM_JOB_ID": "1"}, check=True)  # fmt: skip
    assert done.stdout.splitlines() == [config.run_dir, value]
    assert not list(tmp_path.iterdir()) and not done.stderr
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("array", "job"), [(None, "9"), (script.Array(Path("/runs/a-sweep"), [1]), "8_1")], ids=["single", "array"]
)
def test_the_script_uses_the_id_of_its_own_job_or_element(array: Optional[script.Array], job: str) -> None:
    """A single job that an element of an array submits inherits the variables of the array."""
    text = script.render(resolved(), array=array)
    bash_text = text[: text.index("# ---- requests to stop")] + 'printf "%s" "$JOB" >&3\n'
    env = {**os.environ, "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", "-c", "exec 3>&1 >/dev/null 2>&1\n" + bash_text], capture_output=True, text=True,
                          env=env, check=True)  # fmt: skip
    assert done.stdout == job


def test_what_scontrol_says_when_it_refuses_a_requeue_is_part_of_the_message() -> None:
    text = script.render(resolved())
    stubs = "code=0 asked= ended= JOB=7 RUN_DIR=/r\nsleep() { :; }\nfinish() { :; }\nsbatch() { echo 8; }\n"
    stubs += 'on_first_node() { echo requeue; [ "$1" = _end ] || printf "%s|" "$@" >&3; return 75; }\n'
    stubs += "scontrol() { echo Welcome; echo 'not for job 7' >&2; return 1; }\n"
    bash_text = "exec 3>&1\n" + stubs + text[text.index("# ---- after the ranks") :]
    done = subprocess.run(["bash", "-c", bash_text], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("requeue\n_moved|/r|--job|8|--because|not for job 7|", "")


@pytest.mark.parametrize(("printed", "requeued"), [("requeue", True), ("Welcome!\nrequeue\n\nused 3 h", True),
                                                  ("", False), ("Welcome! We requeue jobs", False)])  # fmt: skip
def test_a_job_is_requeued_between_the_lines_of_a_wrapper(printed: str, requeued: bool) -> None:
    text = script.render(resolved())
    stubs = f"code=0 asked= ended= JOB=7 RUN_DIR=/r\non_first_node() {{ echo '{printed}'; return 75; }}\n"
    stubs += 'scontrol() { echo "$*" >&3; }\nsleep() { :; }\nfinish() { :; }\n'
    bash_text = stubs + text[text.index("# ---- after the ranks") :]
    done = subprocess.run(["bash", "-c", "exec 3>&1\n" + bash_text], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "requeue 7\n" if requeued else ""), done.stderr


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\x1b[2J", "a\u2028b", "a\x85b"])
@pytest.mark.parametrize("key", ["partition", "account", "env", "modules", "name", "run_dir", "options"])
def test_control_characters_are_refused(key: str, value: str) -> None:
    config = resolved()
    if key in ("name", "run_dir"):
        setattr(config, key, value)
    else:
        as_set: Any = {"env": {"A": value}, "modules": [value], "options": [f"--comment={value}"]}.get(key, value)
        setattr(config.launch.slurm, key, as_set)
    with pytest.raises(ConfigError, match="control character"):
        check_launch(config.launch)
        script.render(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env": {"A B": "c"}}, "A B"),
        ({"env": {"A=$(x)": "c"}}, "letters, digits"),
        ({"env": {"RUN_DIR": "/x"}}, "sets RUN_DIR"),
        ({"env": {"SLURM_ARRAY_TASK_ID": "1"}}, "sets SLURM_ARRAY_TASK_ID"),
        ({"options": ["#SBATCH x"]}, "--name=value"),
        ({"options": ["--output=x"]}, "--output"),
        ({"options": ["--nodes=9"]}, "--nodes"),
        ({"options": ["--arr=0-2"]}, "--arr"),
        ({"options": ["--ntasks-per-gpu=1"]}, "--ntasks-per-gpu"),
        ({"options": ["--test-only"]}, "--test-only"),
        ({"options": ["--clusters=b"]}, "another cluster"),
        ({"srun_options": ["--ntasks=9"]}, "--ntasks"),
        ({"srun_options": ["--ntask=9"]}, "--ntask"),
        ({"time": "soon"}, "HH:MM:SS"),
        ({"container": Container.pyxis}, "container_image"),
        ({"container_image": "x"}, "container"),
        ({"profile": Profile.cpu}, "launch.device=cpu"),
        ({"max_requeues": -1}, "at least 0"),
        ({"max_restarts": -1}, "at least 0"),
        ({"cpus_per_node": 0}, "at least 1"),
        ({"stop_before_limit_s": 70000}, "at most 65535"),
    ],
)
def test_invalid_settings_are_refused(changes: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_launch(resolved(**changes).launch)
    assert says in str(error.value)


def test_a_config_cannot_set_a_variable_of_the_script() -> None:
    template = (script.template_folder() / "submit.sbatch.template").read_text()
    names = set(re.findall(r"(?<!\S)([A-Za-z_]\w*)=", re.sub(r"^#.*", "", template, flags=re.MULTILINE)))
    assert {"RUN_DIR", "PYTHON", "JOB", "asked", "ended", "code", "head", "rendezvous"} <= names, names
    for name in names - {"first", "OMP_NUM_THREADS"}:  # of the ranks' own shell; what a user may well set
        with pytest.raises(ConfigError, match=f"sets {name}"):
            check_launch(resolved(env={name: "x"}).launch)


@pytest.mark.parametrize("container", [Container.pyxis, Container.apptainer, Container.singularity])
@pytest.mark.parametrize("key", ["run_dir", "cache_dir"])
def test_a_path_that_a_container_cannot_mount_is_refused(container: Container, key: str) -> None:
    for mark in ':,"$`':
        config = resolved(container=container, container_image="image")
        setattr(config, key, f"/a{mark}b")
        with pytest.raises(ConfigError, match=f"{key}=/a{re.escape(mark)}b cannot be used with a container"):
            script.render(config)


def test_an_option_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="characters long"):
        script.render(resolved(constraint="x" * 2000))


def test_a_template_of_the_user_is_filled_in(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/bash\n@@SBATCH@@\n# @@NNODES@@ nodes\n")
    assert script.render(resolved(template=str(mine))).endswith("# 4 nodes\n")
    mine.write_text("@@NODES@@")
    with pytest.raises(ConfigError, match="@@NODES@@"):
        script.render(resolved(template=str(mine)))
    with pytest.raises(ConfigError, match="cannot read"):
        script.render(resolved(template=str(tmp_path / "none")))


def test_a_template_copied_before_the_torchrun_word_existed_still_works(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    words = ("NNODES", "NPROC_PER_NODE", "MAX_RESTARTS", "JOIN_TIMEOUT", "SRUN", "ON_FIRST_NODE")
    mine.write_text(" ".join(f"@@{word}@@" for word in words))
    assert script.render(resolved(template=str(mine), max_restarts=3)) == "4 8 3 120  command"


@pytest.mark.thorough
def test_a_dry_run_needs_neither_slurm_nor_torch(tmp_path: Path) -> None:
    """With the control plane's libraries alone, and an empty PATH, in under two seconds."""
    light = [
        "hydra",
        "omegaconf",
        "antlr4",
        "yaml",
        "rich",
        "psutil",
        "pygments",
        "markdown_it",
        "mdurl",
        "packaging",
        "typing_extensions",
    ]
    site = tmp_path / "site"
    site.mkdir()
    for name in light:
        module = __import__(name)
        source = Path(module.__file__ or "")
        source = source.parent if source.name == "__init__.py" else source
        (site / source.name).symlink_to(source)
    for package in ("_yaml",):
        (site / package).symlink_to(Path(__import__("yaml").__file__).parent.parent / package)
    (site / "ftdist").mkdir()
    import ftdist
    import ftdist.conf
    import ftdist.launch
    import ftdist.slurm

    for path in Path(ftdist.__file__).parent.iterdir():
        (site / "ftdist" / path.name).symlink_to(path)
    for part, name in ((ftdist.launch, "launch"), (ftdist.conf, "conf"), (ftdist.slurm, "slurm")):
        (site / "ftdist" / name).symlink_to(next(iter(part.__path__)))
    base = [sys.executable, "-S", "-P", "-m", "ftdist", "train", "--dry-run", "launch=slurm", "launch.nnodes=4"]
    env = {"PYTHONPATH": str(site), "PATH": str(tmp_path), "HOME": str(tmp_path)}
    none = subprocess.run([sys.executable, "-S", "-c", "import torch"], env=env, capture_output=True)
    assert none.returncode != 0, "torch must not be there"
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    for number in range(3):
        done = subprocess.run([*base, "experiment=smoke", f"run_dir={tmp_path}/{number}"], env=env, text=True,
                              capture_output=True, cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
    bash_text = (tmp_path / "0" / "submit.sbatch").read_text()
    assert bash_text in done.stdout.replace(f"{tmp_path}/2", f"{tmp_path}/0") and '#SBATCH --nodes="4"' in bash_text
    assert "srun --nodes=4 --ntasks=4" in bash_text and "number of GPUs per node from Slurm; using 1" in done.stderr
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of all children so far: the machine's load does not count
    assert (used.ru_utime + used.ru_stime - before) / 3 < 2


@pytest.mark.parametrize(("line", "code"), [("export FOUND=$((6 * 7))", 0), ("false", 1), ("false  # comment", 1),
                                            ('[ -z "$NOT_SET" ]', 0)])  # fmt: skip
def test_setup_lines_run_first_and_one_that_fails_ends_the_job(line: str, code: int) -> None:
    text = script.render(resolved(setup=[line]))
    bash_text = text[: text.index("# ---- the site's profile")] + 'echo "${FOUND:-}" >&3'
    done = subprocess.run(["bash", "-c", "exec 3>&1 >/dev/null\n" + bash_text], capture_output=True, text=True)
    assert done.returncode == code and (f"this line failed: {line}" in done.stderr) == bool(code)
    assert done.stdout.strip() == ("42" if "FOUND" in line else "")


@pytest.mark.parametrize("container", [Container.pyxis, Container.apptainer, Container.singularity])
def test_a_container_gets_what_the_run_needs(container: Container) -> None:
    """HF_HUB_OFFLINE is set (tests/conftest.py), so data from the hub is read from its cache."""
    config = resolved(container=container, container_image="image", container_mounts=["/a:/b"])
    config.model.path, config.data.chat_template, config.model.tokenizer = "/models/m", "chatml", "/models/m/tok"
    config.data.sources = {"a": SourceConfig(path="/data/*/x.jsonl"), "b": SourceConfig(hub="org/name")}
    config.data.heldout = {"h": SourceConfig(path="/held/h.jsonl")}
    config.data.sources["c"] = SourceConfig(path="/hub/datasets--a--b/snapshots/01ab/x.jsonl")  # a link to ../../blobs
    text = script.render(config)
    places = ["/shared/runs/first", "/shared/cache", "/models/m", "/data", "/hub/datasets--a--b", "/held/h.jsonl",
              str(hub_cache())]  # fmt: skip
    pattern = r"--container-mounts=(\S+)" if container is Container.pyxis else r"--bind=(\S+)"
    mounts = [mount for some in re.findall(pattern, text) for mount in some.split(",")]
    assert mounts == [*(f"{place}:{place}" for place in places), "/a:/b"] * 2  # of both commands
    config.data.heldout["h"].path = "/held,out/h.jsonl"
    with pytest.raises(ConfigError, match=r"data.heldout.h.path=/held,out/h.jsonl cannot be used with a container"):
        script.render(config)
