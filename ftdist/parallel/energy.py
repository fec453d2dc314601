"""Measure the energy of a machine during an attempt, where the machine has energy counters.

GPUs: the counter of NVML, through the library of the driver. Processors and their memory: RAPL, as Linux shows it in
``/sys/class/powercap``. Both count the energy of all programs on the machine, and both started to count at an unknown
time. So only differences of two readings are used.
"""

import contextlib
import ctypes
import platform
import threading
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import torch

from ftdist.base.json_files import write_json
from ftdist.parallel.ranks import Ranks
from ftdist.plan.energy import record_name
from ftdist.run.rundir import RunDir

POWERCAP = Path("/sys/class/powercap")
POLL_S = 30.0
"""Seconds between two readings. A counter of RAPL wraps around after some minutes at the earliest."""

Reading = Tuple[float, Optional[float]]
"""Joules, and the number of joules after which the counter starts at 0 again; None if it does not."""
Counters = Dict[str, Callable[[], Reading]]


class Sum:
    """The joules that one counter has counted since it was first read."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read, (self._last, _) = read, read()
        self.joules = 0.0

    def update(self) -> None:
        """Read the counter. A reading that fails is left out. The next reading includes its joules."""
        with contextlib.suppress(OSError, ValueError):
            now, limit = self._read()
            if now >= self._last:
                self.joules += now - self._last
            elif limit is not None:
                self.joules += now + limit - self._last
            self._last = now


class EnergyMeter:
    """Records the energy of this machine in the run directory, every ``POLL_S`` and when it is told to.

    Only the first rank of a machine measures. Errors of the measurement do not stop the run.
    """

    def __init__(self, run: RunDir, ranks: Ranks, attempt: int) -> None:
        self._active = ranks.local_rank == 0
        if not self._active:
            return
        self._cuda = ranks.device.type == "cuda"
        self._path = run.energy / record_name(attempt, ranks.rank // ranks.local_size)
        self._facts = {"attempt": attempt, "host": platform.node(), "cuda": self._cuda,
                       "groups": -(-ranks.world_size // ranks.local_size)}  # fmt: skip
        self._gpus = _sums(gpu_counters(ranks.local_size)) if self._cuda else {}
        self._cpus = _sums(rapl_counters(POWERCAP))
        self._lock, self._closed = threading.Lock(), threading.Event()
        self.record()
        threading.Thread(target=self._work, daemon=True).start()

    def record(self) -> None:
        """Read the counters, and write what they have counted."""
        if not self._active:
            return
        with self._lock, contextlib.suppress(OSError):
            for one in (*self._gpus.values(), *self._cpus.values()):
                one.update()
            gpu = {name: one.joules for name, one in self._gpus.items()} if self._gpus else None
            cpu = sum(one.joules for one in self._cpus.values()) if self._cpus else None
            self._path.parent.mkdir(exist_ok=True)
            write_json(self._path, {**self._facts, "gpu": gpu, "cpu_j": cpu}, durable=False)

    def _work(self) -> None:
        while not self._closed.wait(POLL_S):
            self.record()

    def close(self) -> None:
        """Record for the last time."""
        if self._active:
            self._closed.set()
            self.record()


def _sums(counters: Counters) -> Dict[str, Sum]:
    found = {}
    for name, read in counters.items():
        with contextlib.suppress(OSError, ValueError):  # usually only root may read RAPL
            found[name] = Sum(read)
    return found if len(found) == len(counters) else {}  # the sum would not be the energy of the whole machine


def rapl_counters(folder: Path) -> Counters:
    """Return the counters of processors and of their memory. The zones of cores are left out, because packages hold
    them.

    Args:
        folder: ``/sys/class/powercap``.
    """
    found: Counters = {}
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's processors have this name, too
        with contextlib.suppress(OSError):
            name = (zone / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                found[zone.name] = partial(_rapl, zone)
    return found


def _rapl(zone: Path) -> Reading:
    now, limit = (int((zone / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
    return now, limit


def gpu_counters(count: int) -> Counters:
    """Return the counters of the first ``count`` GPUs of this process, by UUID. Empty if the driver does not report
    them, as for a part of a GPU (MIG) and for models before Volta.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2():
            return {}
        uuids = [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in range(count)]
        handles: List[Tuple[str, ctypes.c_void_p]] = []
        for uuid in uuids:
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
                return {}
            handles.append((uuid, handle))
    except (OSError, AttributeError, RuntimeError, AssertionError):
        return {}

    def read(handle: ctypes.c_void_p) -> Reading:
        millijoules = ctypes.c_ulonglong()
        if code := nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            raise OSError(f"NVML error {code}")
        return millijoules.value / 1e3, None

    return {uuid: partial(read, handle) for uuid, handle in handles}
