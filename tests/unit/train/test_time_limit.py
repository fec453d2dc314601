"""The margin before a time limit, which grows with the time that a save takes."""

from pathlib import Path
from typing import List, Optional

import pytest

from ftdist.run.rundir import RunDir
from ftdist.train.time_limit import TimeLimit

END = 10_000.0


@pytest.mark.parametrize(
    ("set_s", "save_s", "asked", "stops_at"),
    [
        (120, None, range(0, 10_000, 10), 9_880),  # nothing has been saved yet: the margin that is set
        (120, 20.0, range(0, 10_000, 10), 9_880),  # 2 saves, a step of 10 s and 30 s are less
        (120, 200.0, range(0, 10_000, 10), 9_560),  # 2 saves of 200 s, a step of 10 s, and 30 s
        (120, 200.0, [0, 5_000, *range(5_010, 10_000, 10)], 9_560),  # the first step compiles kernels
        (120, 200.0, [*range(0, 5_000, 10), *range(5_900, 10_000, 10)], 8_660),  # an evaluation took 910 s
        (1, 0.2, [9_900 + n / 10 for n in range(1_000)], 9_969.5),
        (120, 200.0, None, None),  # no time limit
    ],
)
def test_a_run_stops_when_a_step_and_a_save_may_no_longer_fit(
    set_s: float, save_s: Optional[float], asked: Optional[List[float]], stops_at: Optional[float], tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    if asked is not None:
        run.deadline.write_text(f"{END:.0f}\n")
    limit = TimeLimit(run, set_s)
    found = next((now for now in asked or range(0, 20_000, 10) if limit.why_stop({"save_s": save_s}, now)), None)
    assert found == (stops_at if stops_at is None else pytest.approx(stops_at, abs=0.2))


def test_a_limit_that_is_changed_while_the_job_runs_is_followed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    limit = TimeLimit(run, 120)
    for end, now, stops in ((None, 0.0, False), (1_000, 880.0, True), (2_000, 900.0, False), ("half a", 990.0, False)):
        if end is not None:
            run.deadline.write_text(f"{end}\n")
        assert bool(limit.why_stop({}, now)) == stops, end
