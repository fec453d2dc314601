"""The counters of energy, on a folder that looks like /sys/class/powercap."""

import time
from pathlib import Path
from typing import Dict

import pytest
import torch

from ftdist.base.json_files import read_json
from ftdist.parallel import energy
from ftdist.parallel.energy import EnergyMeter, Sum, gpu_counters, rapl_counters
from ftdist.parallel.ranks import Ranks
from ftdist.run.rundir import RunDir

LIMIT_UJ = 1000
ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "package-1",
         "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}  # fmt: skip


def _powercap(folder: Path, counts: Dict[str, int]) -> Path:
    for zone, name in ZONES.items():
        (folder / zone).mkdir(parents=True, exist_ok=True)
        (folder / zone / "name").write_text(f"{name}\n")
        (folder / zone / "max_energy_range_uj").write_text(f"{LIMIT_UJ}\n")
        (folder / zone / "energy_uj").write_text(f"{counts.get(zone, 7)}\n")
    return folder


def _meter(tmp_path: Path, rank: int = 4, local_rank: int = 0) -> EnergyMeter:
    run = RunDir(tmp_path / "run")
    run.path.mkdir(exist_ok=True)
    ranks = Ranks(rank=rank, local_rank=local_rank, world_size=6, restart=0, device=torch.device("cpu"), local_size=2)
    return EnergyMeter(run, ranks, 3)


def test_processors_and_memory_are_counted_once_and_a_counter_may_wrap_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _powercap(tmp_path / "powercap", {"intel-rapl:0": 990, "intel-rapl:0:1": 5, "intel-rapl:1": 100})
    monkeypatch.setattr(energy, "POWERCAP", folder)
    meter = _meter(tmp_path)
    path = tmp_path / "run" / "energy" / "attempt-00003.00002.json"
    assert read_json(path).items() >= {"attempt": 3, "groups": 3, "cuda": False, "gpu": None, "cpu_j": 0.0}.items()
    _powercap(folder, {"intel-rapl:0": 40, "intel-rapl:0:0": 999, "intel-rapl:0:1": 25, "intel-rapl:1": 300,
                       "intel-rapl:2": 999, "intel-rapl-mmio:0": 999})  # fmt: skip
    meter.record()
    assert read_json(path)["cpu_j"] == pytest.approx((50 + 20 + 200) / 1e6)
    _powercap(folder, {"intel-rapl:0": 41, "intel-rapl:0:1": 25, "intel-rapl:1": 300})
    meter.close()
    assert read_json(path)["cpu_j"] == pytest.approx(271 / 1e6)


def test_a_machine_that_does_not_tell_all_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _powercap(tmp_path / "powercap", {})
    (folder / "intel-rapl:1" / "energy_uj").unlink()  # as if it may not be read
    monkeypatch.setattr(energy, "POWERCAP", folder)
    assert set(rapl_counters(folder)) == {"intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"}
    _meter(tmp_path).close()
    assert read_json(tmp_path / "run" / "energy" / "attempt-00003.00002.json")["cpu_j"] is None
    assert rapl_counters(tmp_path / "missing") == {}


def test_only_the_first_rank_of_a_machine_measures(tmp_path: Path) -> None:
    meter = _meter(tmp_path, 5, 1)
    meter.record()
    meter.close()
    assert not (tmp_path / "run" / "energy").exists()


def test_a_counter_that_starts_again_or_fails_does_not_count_backwards() -> None:
    readings = iter([(5.0, None), (7.0, None), (1.0, None), (4.0, None)])
    one = Sum(lambda: next(readings))
    for expected in (2.0, 2.0, 5.0):
        one.update()
        assert one.joules == expected


@pytest.mark.gpu
def test_the_counter_of_a_gpu_grows_and_fits_its_power() -> None:
    (read,) = gpu_counters(1).values()
    before, begun = read()[0], time.monotonic()
    matrix = torch.randn(8192, 8192, device="cuda")
    while time.monotonic() - begun < 2:
        matrix @ matrix
        torch.cuda.synchronize()
    watts = (read()[0] - before) / (time.monotonic() - begun)
    assert 20 < watts < 2000
