"""The energy of a run over machines and attempts."""

from pathlib import Path
from typing import Any, Dict, Optional

import pytest

from ftdist.base.json_files import write_json
from ftdist.plan.energy import KWH_J, energy_of, record_name
from ftdist.plan.goodput import Attempt, Goodput
from ftdist.report.rows import energy_text

TWO_ATTEMPTS = Goodput([Attempt(0, 0.0, ranks=4), Attempt(1, 9.0, ranks=4), Attempt(2, 10.0)])
"""The third attempt ended before its ranks met."""


def _write(
    folder: Path, attempt: int, group: int, host: str, gpu: Optional[Dict[str, float]], cpu: Optional[float],
    groups: int = 2, **fields: Any,
) -> None:  # fmt: skip
    folder.mkdir(exist_ok=True)
    record = {"attempt": attempt, "host": host, "groups": groups, "cuda": True, "gpu": gpu, "cpu_j": cpu}
    write_json(folder / record_name(attempt, group), {**record, **fields})


def test_machines_and_attempts_are_added_and_a_counter_is_counted_once(tmp_path: Path) -> None:
    for attempt in (0, 1):
        _write(tmp_path, attempt, 0, "a", {"GPU-1": KWH_J, "GPU-2": 2 * KWH_J}, KWH_J / 2)
        _write(tmp_path, attempt, 1, "b", {"GPU-3": KWH_J}, KWH_J / 4)
    expected = {"gpu_kwh": 8.0, "cpu_kwh": 1.5, "complete": True}
    assert energy_of(tmp_path, TWO_ATTEMPTS) == pytest.approx(expected)
    # A second group of ranks on machine b reads the counters of the same processors and of another GPU.
    for attempt in (0, 1):
        for group in (0, 1, 2):
            host = "a" if group == 0 else "b"
            gpu = {"GPU-1": KWH_J, "GPU-2": 2 * KWH_J} if group == 0 else {f"GPU-{group + 2}": KWH_J}
            _write(tmp_path, attempt, group, host, gpu, KWH_J / (2 if group == 0 else 4), 3)
    assert energy_of(tmp_path, TWO_ATTEMPTS) == pytest.approx({**expected, "gpu_kwh": 10.0})


def test_what_is_not_known_is_said_and_never_invented(tmp_path: Path) -> None:
    nothing = energy_of(tmp_path, TWO_ATTEMPTS)
    assert nothing == {"gpu_kwh": None, "cpu_kwh": None, "complete": False}
    assert energy_text(nothing) == "The energy is not known: the machines do not tell it."
    _write(tmp_path, 0, 0, "a", {"GPU-1": KWH_J}, None)
    _write(tmp_path, 0, 1, "b", None, None)
    some = energy_of(tmp_path, TWO_ATTEMPTS)
    assert some == {"gpu_kwh": 1.0, "cpu_kwh": None, "complete": False}
    assert energy_text(some) == "Energy: GPUs 1 kWh, at least, because some machines or attempts did not tell it."
    _write(tmp_path, 0, 1, "b", {"GPU-2": KWH_J}, None)
    assert not energy_of(tmp_path, TWO_ATTEMPTS)["complete"], "the second attempt is missing"
    _write(tmp_path, 1, 0, "a", {"GPU-1": KWH_J}, None, 1)
    (tmp_path / record_name(1, 7)).write_text("{")
    assert energy_of(tmp_path, TWO_ATTEMPTS) == {"gpu_kwh": 3.0, "cpu_kwh": None, "complete": True}


def test_processors_that_only_one_machine_tells_are_not_the_energy_of_all(tmp_path: Path) -> None:
    goodput = Goodput([Attempt(0, 0.0, ranks=2)])
    _write(tmp_path, 0, 0, "a", {"GPU-1": KWH_J}, KWH_J)
    _write(tmp_path, 0, 1, "b", {"GPU-2": KWH_J}, None)
    assert energy_of(tmp_path, goodput) == {"gpu_kwh": 2.0, "cpu_kwh": 1.0, "complete": False}


def test_the_processors_are_the_energy_of_a_run_without_gpus(tmp_path: Path) -> None:
    goodput = Goodput([Attempt(0, 0.0, ranks=2)])
    _write(tmp_path, 0, 0, "a", None, None, 1, cuda=False)
    assert not energy_of(tmp_path, goodput)["complete"]
    _write(tmp_path, 0, 0, "a", None, KWH_J, 1, cuda=False)
    assert energy_of(tmp_path, goodput) == {"gpu_kwh": None, "cpu_kwh": 1.0, "complete": True}
