"""The order of a sweep: what is written first, which trials run, and which run again (stand-ins for trials)."""

import argparse
import json
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, ConfigError, DataError
from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.launch import cli
from ftdist.launch.sweeps import sweep
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.verbs import train
from ftdist.run.rundir import RunDir

Run = Callable[..., Dict[int, int]]


def freeze(config: RunConfig, shown: bool = True, argv: Sequence[str] = ()) -> Callable[[], RunDir]:
    def write() -> RunDir:
        run = RunDir(str(config.run_dir))
        run.path.mkdir()
        run.config.write_text(dump_config(config))
        run.write_status(state="frozen")
        run.provenance.write_text(json.dumps({"argv": argv}))
        return run

    return write


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Start a sweep, or resume it if there are no words. ``run`` stands in for the function that runs trials."""
    monkeypatch.chdir(tmp_path)

    def start(run: Run, *words: str, dry_run: bool = False) -> int:
        monkeypatch.setattr(sweep, "_run", run)
        monkeypatch.setattr(sweep, "prepare_run", freeze)
        if not words:
            return sweep.resume_sweep(next(tmp_path.glob("runs/*-sweep")), dry_run=dry_run)
        parser = argparse.ArgumentParser()
        train.add_train_arguments(parser)
        return sweep.start_sweep(parser.parse_intermixed_args(["experiment=smoke", "-m", *words]))

    return start


def ending(states: Dict[int, str], stop: bool = False) -> Run:
    """Stand in for trials that end in these states. ``seen`` holds the numbers of the trials that ran."""

    def run(folder: SweepDir, left: List[Trial], wait: Optional[bool]) -> Dict[int, int]:
        assert all(trial.run.config.is_file() for trial in folder.trials())  # all are written before the first starts
        run.seen = [trial.number for trial in left]  # type: ignore[attr-defined]
        codes = {}
        for trial in left:
            trial.run.write_status(state=states.get(trial.number, "done"))
            trial.run.metrics.write_text(json.dumps({"step": 1, "eval/a/loss": 9.0 - trial.number}) + "\n")
            codes[trial.number] = {"failed": EXIT_FAILED, "preempted": EXIT_PREEMPTED}.get(trial.state, EXIT_DONE)
        if stop:
            folder.cancel.touch()
        return codes

    return run


def test_the_command_of_a_trial_repeats_it_alone(go: Callable[..., int], tmp_path: Path) -> None:
    go(ending({}), "optim.lr=1,2", "sweep.rungs=[1]", "train.max_steps=2")
    (folder,) = tmp_path.glob("runs/*-sweep")
    assert RunDir(folder / "001").read_provenance()["argv"] == [
        "ftdist", "train", "experiment=smoke", "optim.lr=2", "sweep.rungs=[1]", "train.max_steps=2", "sweep.rungs=[]"
    ]  # fmt: skip


def test_a_trial_that_does_not_fit_the_machine_is_named(go: Callable[..., int]) -> None:
    with pytest.raises(
        ConfigError, match=r"^trial batch.global_batch_size=7: batch.global_batch_size=7 is not"
    ) as error:
        go(ending({}), "batch.global_batch_size=8,7", "batch.micro_batch_size=4")
    assert error.value.fix == "batch.global_batch_size=8"


@pytest.mark.thorough
def test_a_resume_of_a_sweep_changes_only_whether_it_waits(
    go: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go(ending({1: "failed"}), "seed=1,2,3") == EXIT_FAILED
    place, told = str(next(tmp_path.glob("runs/*-sweep"))), []

    def run(folder: SweepDir, left: List[Trial], wait: Optional[bool]) -> Dict[int, int]:
        told.append(wait)
        return {}

    monkeypatch.setattr(sweep, "_run", run)
    for words in ([], ["launch.wait=true"], ["launch.wait=false"]):
        cli.dispatch(["resume", place, *words])
    assert told == [None, True, False]
    for word in ("launch.wait=maybe", "zero.stage=1"):
        with pytest.raises(ConfigError, match=f"'{word}' cannot be changed when resuming a sweep"):
            cli.dispatch(["resume", place, word])


@pytest.mark.thorough
def test_a_failed_trial_stops_no_other_and_runs_again_on_resume(
    go: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = ending({1: "failed"}), ending({})
    assert go(first, "seed=1,2,3") == EXIT_FAILED
    sweep = SweepDir(next(tmp_path.glob("runs/*-sweep")))
    assert [trial.overrides for trial in sweep.trials()] == [["experiment=smoke", f"seed={n}"] for n in (1, 2, 3)]
    assert sweep.read_objectives() == {0: 9.0, 1: float("inf"), 2: 7.0}
    assert go(second) == EXIT_DONE and second.seen == [1]  # type: ignore[attr-defined]
    before = sweep.read_status()
    assert go(ending({0: "failed"})) == EXIT_DONE and sweep.read_status() == before
    assert "sweep is done; its trials, best first: ftdist sweep runs/" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_sweep_that_was_stopped_is_resumed(
    go: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ending({})
    assert go(ending({1: "preempted", 2: "frozen"}, stop=True), "seed=1,2,3") == EXIT_PREEMPTED
    assert SweepDir(next(tmp_path.glob("runs/*-sweep"))).read_status()["state"] == "preempted"
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert go(again, dry_run=True) == EXIT_DONE and not hasattr(again, "seen")
    shown = capsys.readouterr().out
    assert "2 of 3 trials in runs/" in shown and "  001  seed=2\n  002  seed=3\n" in shown and "000" not in shown
    assert shown.endswith("without --dry-run this command resumes the sweep\n")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert go(again) == EXIT_DONE and again.seen == [1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lr=1e-3,1e-4", "launch.nproc_per_node=3"], ["2 trials in", "  001  optim.lr=0.0001",
                                                             "1 at a time, each on 3 ranks on cpu\n"]),
        (["seed=1,2,3", "launch=slurm", "launch.trials_at_once=2", "launch.slurm.time=60"],
         ["array-000.sbatch: trials 0-2, 2 at a time, each on 1 rank on cpu, 2 CPUs on a node, a time limit of 60\n",
          '#SBATCH --array="0-2%2"', "-sweep/$(printf %03d"]),
        (["launch.nnodes=1,2", "launch=slurm", "sweep.rungs=[2,4]", "launch.wait=true"],
         ["array-000.sbatch: trials 0, 1 at a time",
          "array-001.sbatch: trials 1, 1 at a time, each on 2 nodes with 1 rank each on cpu",
          "pauses after step 2, step 4, where the best 50% of the trials continue"]),
    ],
)  # fmt: skip
@pytest.mark.thorough
def test_a_dry_run_prints_what_would_be_started_and_writes_nothing(
    words: List[str], said: List[str], go: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("FTDIST_CACHE", str(tmp_path / "cache"))
    data = ["data.sources={a:{path:a.jsonl}}", "batch.global_batch_size=12"]
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert go(ending({}), *words, *data, "launch.device=cpu", "--dry-run") == EXIT_DONE
    shown = capsys.readouterr().out
    assert all(part in shown for part in said), shown
    assert shown.endswith("nothing was written or started; without --dry-run this command starts the sweep\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["a.jsonl"]


def test_a_trial_whose_data_does_not_exist_is_named(go: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"^trial data.sources.a.path=b.jsonl: data.sources.a.path=.*does not exist"):
        go(ending({}), "data.sources={a:{path:a.jsonl}}", "data.sources.a.path=a.jsonl,b.jsonl", "--dry-run")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=1,2", "run_dir=x"], "run_dir cannot be used with --multirun"),
        (["launch=local,slurm"], "differs between trials"),
        (["sweep.keep=0.5,0.25"], "the section sweep differs between trials"),
        (["seed=1,2", "sweep.rungs=[2]", "launch=slurm", "launch.device=cpu"], "but sweep.rungs compares the trials"),
    ],
)
@pytest.mark.thorough
def test_a_refused_sweep_leaves_nothing(words: List[str], says: str, go: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        go(ending({}), *words)
    assert not any(tmp_path.iterdir())


def test_one_run_has_no_rungs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="but this is one run and no sweep"):
        cli.dispatch(["train", "experiment=smoke", "sweep.rungs=[2]"])
    assert not any(tmp_path.iterdir())


OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.n_startup_trials=2",
          "optim.lr=tag(log,interval(1e-6,1e-1))")  # fmt: skip


@pytest.mark.thorough
def test_a_sweeper_resumes_with_the_objectives_that_it_was_given(go: Callable[..., int], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install ftdist[sweep]")
    again = ending({})

    def cut(folder: SweepDir, left: List[Trial], wait: Optional[bool]) -> Dict[int, int]:
        return ending({0: "failed"}, stop=left[0].number == 2)(folder, left, wait)

    assert go(cut, *OPTUNA) == EXIT_PREEMPTED
    sweep = SweepDir(next(tmp_path.glob("runs/*-sweep")))
    before = [trial.overrides for trial in sweep.trials()]
    sweep.trials()[3].run.write_status(state="preempted")
    assert go(again) == EXIT_DONE and again.seen == [3]  # type: ignore[attr-defined]
    assert [trial.overrides for trial in sweep.trials()] == before and len(before) == 4
    with pytest.raises(ConfigError, match="launch.wait=false"):
        go(ending({}), *OPTUNA, "launch=slurm")
    with pytest.raises(ConfigError, match="direction=maximize") as error:
        go(ending({}), *OPTUNA, "hydra.sweeper.direction=maximize")
    assert error.value.fix.endswith("sweep.direction=maximize")
