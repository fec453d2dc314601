"""Seeds as replicates: groups, means, intervals, and the table."""

import math
import statistics

import pytest

from ftdist.config.sweep import SweepConfig
from ftdist.launch.cli import dispatch
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.replicates import group_by_seed, student_t
from tests.unit.launch.sweeps.tools import make_trial


@pytest.mark.parametrize(
    ("freedom", "value"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (11, 2.2010), (30, 2.0423)]
)
def test_students_t_is_that_of_the_tables(freedom: int, value: float) -> None:
    assert student_t(freedom) == pytest.approx(value, abs=5e-5)


def test_the_table_groups_trials_that_differ_only_in_their_seed(
    folder: SweepDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best is the group with the best mean, not that with the best trial. A group with a failed trial is last."""
    losses = {"0.1": (3.0, 3.1, 3.2), "0.2": (2.0, 4.0, 6.0), "0.3": (1.0, 1.0, 1.0)}
    trials = [
        make_trial(folder, 3 * row + seed, [9.0, loss], "failed" if (rate, seed) == ("0.3", 2) else "done",
                   ["experiment=smoke", f"optim.lr={rate}", f"seed={seed}"])
        for row, (rate, found) in enumerate(losses.items()) for seed, loss in enumerate(found)
    ]  # fmt: skip
    folder.add_trials(trials)
    groups = group_by_seed(trials, SweepConfig())
    half = 4.302652729911275 * statistics.stdev([3.0, 3.1, 3.2]) / math.sqrt(3)
    assert groups[0].half_width == pytest.approx(half) and groups[0].objective == pytest.approx(3.1)
    assert groups[2].objective == math.inf
    assert dispatch(["sweep", str(folder.path)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "mean held-out loss" and "95 % interval" in heading
    assert [" ".join(row.split()[:5]) for row in rows] == [
        "3.1000 ± 0.2484 3 done", "4.0000 ± 4.9683 3 done", "1.0000 ± 0.0000 2 2",
    ]  # fmt: skip
    assert "2 done, 1 failed" in rows[2] and "optim.lr=0.3" in rows[2] and "seed=" not in rows[2]
    assert rows[0].rstrip().endswith("a-sweep/000 001 002")


def test_one_trial_for_each_setting_is_no_replicate(folder: SweepDir) -> None:
    trials = [make_trial(folder, n, [9.0, 1.0], "done", [f"optim.lr=0.{n}", f"seed={n}"]) for n in (1, 2)]
    assert [(len(group.trials), group.half_width) for group in group_by_seed(trials, SweepConfig())] == [(1, None)] * 2
