"""The command line: help, errors and exit codes. It is fast and does not import torch."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch import cli
from ftdist.launch.verbs import table

HEAVY = ["torch", "deepspeed", "transformers", "datasets", "wandb"]
NO_TORCH = f"""
import sys
from ftdist.launch.cli import main
try:
    main(sys.argv[1:])
finally:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print("LOADED", loaded, file=sys.stderr)
"""


def ftdist(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "ftdist", *words], capture_output=True, text=True, cwd=cwd, timeout=60)


def cpu_s() -> float:
    """Return the CPU time of all processes that this one has waited for. Other load hardly changes it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


FAST = [
    (["--help"], 0),
    (["train", "--help"], 0),
    (["trian"], 2),
    (["train", "experiment=dmo"], 2),
    (["train", "--nonsense"], 2),
    (["status"], 2),
    (["resume", "nowhere"], 2),
    (["train", "experiment=smoke", "launch.device=cuda"], 2),
]


@pytest.mark.parametrize(("words", "code"), FAST, ids=[" ".join(words) for words, _ in FAST])
@pytest.mark.thorough
def test_help_and_usage_errors_are_fast_and_load_nothing_heavy(words: List[str], code: int, tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    before = cpu_s()
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert cpu_s() - before < 5  # well under 1 s on an idle machine
    assert done.returncode == code
    assert "LOADED []" in done.stderr and "Traceback" not in done.stderr
    assert ("error: " in done.stderr) == (code == 2)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--local_rank=0", "train", "name=a b"], ["train", "name=a b"]])
def test_deepspeeds_launcher_is_told_how_ftdist_is_started(words: List[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "CROSS_RANK": "0", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="DeepSpeed's launcher started `ftdist train 'name=a b'`") as error:
        cli._refuse_deepspeeds_launcher(words)
    first, second = error.value.fix.split(", or ")
    assert first == "ftdist train 'name=a b' launch=deepspeed"
    assert second == "torchrun --nproc-per-node 2 -m ftdist train 'name=a b'"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli, "OTHER_RANKS_S", 0)
    with pytest.raises(SystemExit) as ended:
        cli._refuse_deepspeeds_launcher(words)
    assert ended.value.code == 2
    monkeypatch.delenv("CROSS_RANK")
    cli._refuse_deepspeeds_launcher(["train"])  # another launcher, which sets the same variables
    cli._refuse_deepspeeds_launcher([])


@pytest.mark.parametrize(("size", "rank"), list(cli.MPI_VARIABLES))
def test_mpirun_is_refused_by_one_of_its_processes(size: str, rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(size, "2")
    monkeypatch.setenv(rank, "0")
    with pytest.raises(ConfigError, match="mpirun started `ftdist train` 2 times") as error:
        cli._refuse_mpirun("train")
    assert "launch.nproc_per_node=2" in error.value.fix and "runner=openmpi" in error.value.fix
    for verb in ("status", "node", "_begin", ""):
        cli._refuse_mpirun(verb)
    monkeypatch.setenv(rank, "1")
    monkeypatch.setattr(cli, "OTHER_RANKS_S", 0)
    with pytest.raises(SystemExit) as ended:
        cli._refuse_mpirun("train")
    assert ended.value.code == 2
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")  # each agent runs its own trials
    cli._refuse_mpirun("train")
    monkeypatch.delenv("WANDB_SWEEP_ID")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")  # mpirun starts torchrun on each machine
    cli._refuse_mpirun("train")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    if size == "PMI_SIZE":  # srun --mpi=pmi2
        cli._refuse_mpirun("train")
    else:  # in a job on two nodes, mpirun itself is started by srun
        with pytest.raises(SystemExit):
            cli._refuse_mpirun("train")
    monkeypatch.setenv(size, "1")
    cli._refuse_mpirun("train")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--help"]) == 0
    text = capsys.readouterr().out
    for name, verb in table.VERBS.items():
        assert f"  {name} {verb.arguments}" in text and verb.summary in text
    assert "ftdist demo" in text and "75" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ftdist 0.")


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("evall", "eval"), ("prep", "prepare"), ("xyz", "--help")]
)
def test_an_unknown_verb_gets_the_nearest_right_one(word: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        cli.dispatch([word])
    assert error.value.found == f"there is no verb '{word}'" and error.value.fix == f"ftdist {near}"


def test_a_misspelt_flag_gets_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match="unrecognized arguments: --dryrun") as error:
        cli.dispatch(["demo", "--dryrun"])
    assert error.value.fix == "--dry-run"


@pytest.mark.parametrize("verb", ["prepare", "preview", "verify"])
def test_a_verb_without_sweeps_names_the_one_with_sweeps(verb: str) -> None:
    with pytest.raises(ConfigError, match="unrecognized arguments: -m") as error:
        cli.dispatch([verb, "experiment=smoke", "-m", "optim.lr=1e-3,1e-4"])
    assert error.value.fix == "give each key one value; only ftdist train takes -m"


@pytest.mark.parametrize("verb", ["resume", "eval"])
def test_optional_arguments_are_not_called_required(verb: str) -> None:
    with pytest.raises(ConfigError) as error:
        cli.dispatch([verb])
    assert "required: RUN_DIR" in error.value.found and "OVERRIDE" not in error.value.found


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_is_an_amount(price: str) -> None:
    with pytest.raises(ConfigError, match=f"--price {price}"):
        cli.dispatch(["report", "run", "--price", price])


@pytest.mark.parametrize("verb", ["eval", "export", "logs", "chat"])
def test_a_sweep_is_refused_where_one_run_is_expected(verb: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a sweep") as error:
        cli.dispatch([verb, str(tmp_path)])
    assert error.value.fix == f"run ftdist sweep {tmp_path}, which lists them, best first"


@pytest.mark.parametrize("words", [["--max-tokens", "0"], ["--temperature=-1"], ["--temperature=nan"]])
def test_chat_refuses_impossible_settings(words: List[str]) -> None:
    with pytest.raises(ConfigError, match="expected: at least") as error:
        cli.dispatch(["chat", "model", *words])
    assert words[0].split("=")[0] in error.value.found


def test_flags_can_stand_anywhere(tmp_path: Path) -> None:
    done = ftdist("train", "experiment=smoke", "--cfg", "job", "seed=3", "-p", "optim", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("# @package optim\noptimizer: adamw\nlr: 0.001")
    assert ftdist("train", "--cfg=job", "seed=3", "name=${seed}", "--resolve", cwd=tmp_path).stdout.startswith(
        "name: '3'"
    )
    assert not any(tmp_path.iterdir())


def test_the_demo_is_an_experiment_and_takes_overrides(tmp_path: Path) -> None:
    done = ftdist("demo", "seed=5", "method=qlora", "--cfg", "job", cwd=tmp_path)
    assert "name: demo\n" in done.stdout and "seed: 5\n" in done.stdout
    assert "  lr: 0.001\n" in done.stdout, "adapters need about ten times the rate of the demo"


def test_the_demo_under_torchrun_starts_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("ftdist.launch.verbs.under_torchrun.train", lambda args: 7)
    assert cli.dispatch(["demo"]) == 7


BAD_DATA = {
    "missing.jsonl": None,
    "empty.jsonl": b"",
    "broken.jsonl": b'{"text": "a"}\n{"text": \n',
    "utf8.jsonl": b'{"text": "\xff\xfe"}\n',
    "fields.jsonl": b'{"foo": "a"}\n',
}


@pytest.mark.parametrize("name", list(BAD_DATA))
@pytest.mark.thorough
def test_bad_data_leaves_no_run_directory(name: str, tmp_path: Path) -> None:
    content = BAD_DATA[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = ftdist("train", "experiment=smoke", "data=file", f"data.sources.file.path={name}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and name in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["--help"], ["completion", "zsh"], ["train", "--cfg", "job"], ["trian"]])
def test_a_closed_pipe_is_not_an_error(words: List[str], tmp_path: Path) -> None:
    """The exit code is that of the verb, as with ``| true`` and ``| head``."""
    ours, theirs = os.pipe()
    os.close(ours)
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-m", "ftdist", *words], stdout=theirs, stderr=subprocess.PIPE, text=True,
                          cwd=tmp_path, env=env)  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr.count("error: ")) == ((2, 1) if words == ["trian"] else (0, 0))
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.thorough
def test_cfg_prints_one_part_of_the_config(tmp_path: Path) -> None:
    wrong = ftdist("train", "experiment=smoke", "--cfg", "job", "-p", "optim.lrr", cwd=tmp_path)
    assert wrong.returncode == 2 and not wrong.stdout
    assert wrong.stderr.startswith("error: --package optim.lrr: ") and wrong.stderr.endswith(" -p optim.lr\n")
    null = ftdist("train", "experiment=smoke", "--cfg", "job", "-p", "track.entity", cwd=tmp_path)
    assert (null.returncode, null.stdout) == (0, "null\n")
    word = ftdist("train", "experiment=smoke", "launch=slurm", "--cfg", "job", "-p", "launch.kind", cwd=tmp_path)
    assert (word.returncode, word.stdout) == (0, "slurm\n")


def test_cfg_refuses_a_sweep(tmp_path: Path) -> None:
    done = ftdist("train", "experiment=smoke", "-m", "optim.lr=1,2", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 2 and "leave out -m" in done.stderr


def test_an_environment_in_which_libraries_fail_is_refused_at_once(tmp_path: Path) -> None:
    """transformers builds some docstrings from others, and fails in the middle of an import. Libraries also need the
    name of the folder for temporary files as text."""
    words, env = ["-m", "ftdist", "status"], {k: v for k, v in os.environ.items() if k != "PYTHONOPTIMIZE"}
    (odd := Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xff"))).mkdir()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**env, "TMPDIR": str(odd)})
    assert done.returncode == 2 and done.stderr.startswith("error: the folder for temporary files (TMPDIR) holds bytes")
    for command, variables, fix in (([sys.executable, "-OO"], {}, "leave out -OO"),
                                    ([sys.executable], {"PYTHONOPTIMIZE": "2"}, "unset PYTHONOPTIMIZE")):  # fmt: skip
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, cwd=tmp_path, env={**env, **variables}
        )
        assert done.returncode == 2 and done.stderr.startswith("error: Python runs with ") and fix in done.stderr


@pytest.mark.parametrize(
    ("words", "variable", "code", "by_signal"),
    [
        (["train", "optim.lr=1"], "WANDB_SWEEP_ID", 75, True),
        (["train", "optim.lr=1"], "WANDB_SWEEP_ID", 1, False),
        (["train", "optim.lr=1"], "WANDB_PROJECT", 75, False),
        (["_end", "run"], "WANDB_SWEEP_ID", 75, False),  # the batch script needs the exit code
    ],
)
def test_a_trial_that_wandbs_agent_ends_early_ends_by_its_signal(
    words: List[str], variable: str, code: int, by_signal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: List[Tuple[int, int]] = []
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv(variable, "s1")
    monkeypatch.setattr(cli, "dispatch", lambda argv: code)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == code and sent == [(os.getpid(), signal.SIGTERM)] * by_signal


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "run"], "torchrun or srun started `ftdist eval` once for each rank"),
        (["train", "experiment=smoke", "-m", "optim.lr=1,2"], "--multirun cannot be used"),
        (["train", "experiment=smoke", "--dry-run"], "--dry-run cannot be used"),
        (["resume", "sweep"], "a sweep cannot be resumed"),
        (["resume", "none"], "none does not exist"),
    ],
)
def test_of_several_tasks_of_srun_one_says_what_is_wrong(
    words: List[str], says: str, rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "index.jsonl").touch()
    (tmp_path / "sweep" / "sweep.json").touch()
    for name, value in (("STEP_NUM_TASKS", "2"), ("STEP_ID", "0"), ("PROCID", rank)):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(cli, "OTHER_RANKS_S", 0.0)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and not printed.out
    assert says in printed.err if rank == "0" else not printed.err
