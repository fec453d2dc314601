"""A sweep's folder and table, and its trials on the GPUs of a machine (real processes that stand in for trials)."""

import math
import os
import sys
from pathlib import Path
from typing import Dict, List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.base.ranges import parse_ranges, ranges
from ftdist.config.frozen import dump_config
from ftdist.config.launch import Device, LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.cli import dispatch
from ftdist.launch.config import sweeper
from ftdist.launch.sweeps import this_machine
from ftdist.launch.sweeps.folder import SweepDir, Trial
from tests.unit.launch.sweeps.tools import make_trial

NVIDIA_SMI = '#!/bin/sh\nfor n in 0 1 2 3 4; do echo "GPU $n: NVIDIA H100 (UUID: GPU-$n)"; done\n'
TRIAL = """\
#!/bin/sh
shift 3  # -m ftdist resume
echo "begin $CUDA_VISIBLE_DEVICES" >>"$(dirname "$1")/seen"
sleep 0.5
echo "end $CUDA_VISIBLE_DEVICES" >>"$(dirname "$1")/seen"
"""


def test_the_table_shows_the_best_trial_first(folder: SweepDir, capsys: pytest.CaptureFixture[str]) -> None:
    folder.add_trials([make_trial(folder, 1, [1.0, 3.0, 4.0], "done"), make_trial(folder, 2, [5.0, 2.0], "done")])
    folder.add_trials([make_trial(folder, 3, [5.0, 0.5], "failed"), make_trial(folder, 4, ["nan", "nan"], "done")])
    folder.add_trials([folder.trial(5, ["optim.lr=0.5", "experiment=smoke"])])
    folder.add_trials([make_trial(folder, 6, [5.0, 2.1], "paused", step=20),
                       make_trial(folder, 7, [5.0, 2.5], "paused", step=60)])  # fmt: skip
    with folder.index.open("a") as index:
        index.write('{"number": 8, "over')  # cut by a crash
    assert dispatch(["sweep", str(folder.path)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[:3] for row in rows] == [
        ["2.0000", "done", "optim.lr=0.2"], ["3.0000", "done", "optim.lr=0.1"], ["-", "done", "optim.lr=0.4"],
        ["2.5000", "paused", "at"], ["2.1000", "paused", "at"],
        ["0.5000", "failed", "optim.lr=0.3"], ["-", "not", "started"],
    ]  # fmt: skip


def test_a_trial_that_its_user_stopped_is_shown_as_stopped(
    folder: SweepDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in ``ftdist status``. A trial that was preempted is shown as preempted."""
    folder.add_trials([make_trial(folder, number, [], "preempted") for number in (1, 2)])
    for one, reason in zip(folder.trials(), ("stopped", "near the time limit"), strict=True):
        one.run.write_status(exit_reason=reason)
    assert dispatch(["sweep", str(folder.path)]) == 0
    assert [row.split()[1] for row in capsys.readouterr().out.splitlines()[1:]] == ["stopped", "preempted"]


def test_objectives_are_added_to_those_before(folder: SweepDir) -> None:
    folder.add_objectives({1: 3.0})
    folder.add_objectives({2: math.inf})
    assert folder.read_objectives() == {1: 3.0, 2: math.inf}
    for damaged in ('{"1": null}', "[1]", "{"):
        folder.objectives.write_text(damaged)
        with pytest.raises(ConfigError, match=r"objectives\.json is damaged: "):
            folder.read_objectives()


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sweep.json"):
        dispatch(["sweep", str(tmp_path)])


def frozen(folder: SweepDir, number: int, config: RunConfig) -> Trial:
    found = make_trial(folder, number, [], "frozen")
    config.run_dir, config.cache_dir = str(found.run.path), "/cache"
    found.run.config.write_text(dump_config(config))
    return found


def gpu_trial(folder: SweepDir, number: int, ranks: int, at_once: int | None = None) -> Trial:
    config = RunConfig()
    config.launch.device, config.launch.nproc_per_node, config.launch.trials_at_once = Device.cuda, ranks, at_once
    return frozen(folder, number, config)


def run_on_gpus(
    folder: SweepDir, trials: List[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> List[List[str]]:
    """Run trials. Returns the GPUs in use after every start and every end of a trial."""
    for name, text in {"nvidia-smi": NVIDIA_SMI, "trial": TRIAL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "trial"))
    assert this_machine.run_trials(folder, trials) == dict.fromkeys((one.number for one in trials), 0)
    used: List[List[str]] = [[]]
    for line in (folder.path / "seen").read_text().splitlines():
        what, gpus = line.split()
        now = used[-1] + gpus.split(",") if what == "begin" else [g for g in used[-1] if g not in gpus.split(",")]
        used.append(now)
    assert all(len(now) == len(set(now)) for now in used), used
    return used


@pytest.mark.thorough
def test_no_gpu_is_used_by_two_trials(folder: SweepDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    used = run_on_gpus(folder, [gpu_trial(folder, number, 2) for number in range(4)], tmp_path, monkeypatch)
    assert max(map(len, used)) == 4 and {gpu for now in used for gpu in now} <= set("01234")


@pytest.mark.thorough
def test_hidden_gpus_are_not_used(folder: SweepDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1,4")
    used = run_on_gpus(folder, [gpu_trial(folder, number, 1, at_once=2) for number in range(4)], tmp_path, monkeypatch)
    assert max(map(len, used)) == 2 and {gpu for now in used for gpu in now} <= {"3", "1", "4"}


@pytest.mark.parametrize(("kind", "at_once", "found"), [("local", None, 1), ("local", 3, 3), ("nodes", 3, 1)])
def test_without_gpus_trials_at_once_decides(kind: str, at_once: int | None, found: int) -> None:
    config = RunConfig()
    config.launch.kind, config.launch.device, config.launch.trials_at_once = LaunchKind[kind], Device.cpu, at_once
    assert this_machine.trials_at_once(config, gpus=0) == found


def slurm_trial(folder: SweepDir, number: int, **launch: object) -> Trial:
    config = RunConfig()
    config.launch.kind, config.launch.device, config.launch.nproc_per_node = LaunchKind.slurm, Device.cpu, 1
    for name, value in launch.items():
        setattr(config.launch, name, value)
    return frozen(folder, number, config)


def test_trials_with_the_same_script_form_one_array(folder: SweepDir) -> None:
    from ftdist.config.frozen import load_config
    from ftdist.launch.sweeps import slurm_array

    trials = [slurm_trial(folder, number, nnodes=1 + (number == 2), trials_at_once=2) for number in (0, 1, 2, 3, 5)]
    found = slurm_array.scripts(folder, [(trial, load_config(trial.run.config)) for trial in trials])
    lines: Dict[str, str] = {path.name: next(x for x in text.splitlines() if "--array" in x) for path, text, _ in found}
    assert lines == {"array-000.sbatch": '#SBATCH --array="0-1,3,5%2"', "array-002.sbatch": '#SBATCH --array="2%2"'}
    assert f'RUN_DIR={folder.path}/$(printf %03d "$SLURM_ARRAY_TASK_ID")' in found[0][1]
    assert f'--output="{folder.path}/%3a/logs/slurm-%A_%a.out"' in found[0][1]


def test_a_trial_that_is_stopping_is_named_and_not_submitted(
    folder: SweepDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftdist.launch.backends.base import STOPPING, Seen
    from ftdist.launch.sweeps import slurm_array

    trials = [slurm_trial(folder, number) for number in range(3)]
    monkeypatch.setattr(slurm_array, "observe", lambda statuses: [Seen(STOPPING), Seen("queued"), Seen(STOPPING)])
    assert slurm_array.run_trials(folder, trials, wait=False) == {0: 0, 1: 0, 2: 0}
    assert "not submitted again, because still stopping: trials 0,2" in capsys.readouterr().out


@pytest.mark.parametrize(("numbers", "text"), [([0, 1, 2], "0-2"), ([5], "5"), ([7, 0, 2, 1, 4], "0-2,4,7")])
def test_numbers_of_an_array_are_written_as_ranges(numbers: List[int], text: str) -> None:
    assert ranges(numbers) == text and parse_ranges(text) == set(numbers)


def request(*overrides: str) -> sweeper.SweepRequest:
    return sweeper.SweepRequest(["experiment=smoke", *overrides], None, "run")


def proposed(asked: sweeper.SweepRequest, objectives: Dict[str, float]) -> List[List[str]]:
    """Return the batches that a sweeper proposes, given these objectives or, for other trials, the learning rates."""
    batches: List[List[str]] = []

    def run_trials(batch: list, first: int) -> List[float]:
        assert first == sum(map(len, batches))
        batches.append([" ".join(overrides) for overrides, _ in batch])
        return [objectives.get(text, float(text.split("optim.lr=")[1].split()[0])) for text in batches[-1]]

    sweeper.sweep(asked, run_trials)
    return batches


def test_the_basic_sweeper_proposes_all_at_once() -> None:
    asked = request("optim.lr=1e-3,1e-4", "seed=range(0,2)")
    assert not sweeper.peek_sweep(asked).learns
    (batch,) = proposed(asked, {})
    assert len(batch) == 4 and batch[3] == "experiment=smoke optim.lr=0.0001 seed=1"


@pytest.mark.parametrize("override", [
    "hydra.sweeper._target_=os.system", "hydra.sweeper.sampler._target_=os.system",
    "hydra.sweeper.sampler._target_=optuna.samplers.PartialFixedSampler",
    "hydra.sweeper.custom_search_space=evil.space",
])  # fmt: skip
def test_only_optunas_own_samplers_can_be_named(override: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install ftdist[sweep]")
    optuna = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "optim.lr=interval(1e-6,1e-1)")
    assert sweeper.peek_sweep(request(*optuna)).learns
    with pytest.raises(ConfigError, match="names code that Hydra would import and run"):
        sweeper.peek_sweep(request(*optuna, override))


@pytest.mark.thorough
def test_optuna_proposes_the_same_trials_for_the_same_objectives() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install ftdist[sweep]")
    asked = request("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.n_startup_trials=2",
                    "optim.lr=tag(log,interval(1e-6,1e-1))")  # fmt: skip
    assert sweeper.peek_sweep(asked).learns
    first = proposed(asked, {})
    assert proposed(asked, {}) == first and len(first) == 3
    best = min(first[0], key=lambda text: float(text.split("optim.lr=")[1].split()[0]))
    worse = {best: math.inf}  # a failed trial is told as infinitely bad, and changes what follows
    assert proposed(asked, worse)[0] == first[0] and proposed(asked, worse) != first
