"""The hardware and the libraries of this machine, determined without importing torch."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Dict, List, Optional

import psutil

from ftdist.base.errors import ConfigError
from ftdist.config.launch import Device, LaunchConfig


def visible_gpus() -> List[str]:
    """Return the names of the GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES does not hide."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if listed.returncode:
        return []
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    named = [(line, line.split(":", 1)[1].split("(")[0].strip()) for line in gpus]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [name for _, name in named]
    return _selected(named, [word.strip() for word in wanted.split(",")])


def gpu_ids() -> List[str]:
    """Return the ids of the visible GPUs, in the form that CUDA_VISIBLE_DEVICES takes."""
    count, wanted = len(visible_gpus()), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if wanted is None else wanted.replace(" ", "").split(",")[:count]


def gpu_addresses() -> List[str]:
    """Return the PCI addresses of the visible GPUs, as sysfs names them: ``0000:3b:00.0``. Empty if one is unknown."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,pci.bus_id", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    rows = [[word.strip() for word in line.split(",")] for line in listed.splitlines() if line.count(",") == 2]
    found = [next((bus for index, uuid, bus in rows if wanted == index or uuid.startswith(wanted)), "")
             for wanted in gpu_ids()]  # fmt: skip
    return [bus.lower()[-12:] for bus in found] if all(found) else []  # nvidia-smi writes the domain with 8 digits


def _selected(named: List[tuple[str, str]], wanted: List[str]) -> List[str]:
    # CUDA's rule: an entry is an index or the start of a UUID. The first entry that fits no GPU ends the list.
    found: List[str] = []
    for word in wanted:
        if word.isdigit() and int(word) < len(named):
            found.append(named[int(word)][1])
        elif word.startswith(("GPU-", "MIG-")) and (match := [name for line, name in named if word in line]):
            found.append(match[0])
        else:
            break
    return found


def torch_without_gpus() -> Optional[str]:
    """Return the version of the installed torch if it was built for CPU only. Otherwise, and without torch, None."""
    spec = importlib.util.find_spec("torch")
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8") if spec and spec.origin else ""
    except OSError:
        return None
    built = re.findall(r"^(?:cuda|hip|xpu)\b[^=\n]*=\s*(\S+)", text, re.MULTILINE)
    version = re.search(r"^__version__\s*=\s*['\"](.+?)['\"]", text, re.MULTILINE)
    return version[1] if version and built and set(built) == {"None"} else None


def check_torch(launch: LaunchConfig) -> None:
    """Check that the torch of this environment can use the GPUs that a run wants.

    Raises:
        ConfigError: torch was built without CUDA and ROCm.
    """
    if launch.device is Device.cuda and (version := torch_without_gpus()):
        raise ConfigError(f"launch.device=cuda, but torch {version} of {sys.executable} was built without CUDA",
                          "a build of torch for GPUs",
                          f"{sys.executable} -m pip install --force-reinstall torch --index-url "
                          "https://download.pytorch.org/whl/cu128, or launch.device=cpu")  # fmt: skip


def cpu_cores() -> int:
    """Return the number of physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def package_versions() -> Dict[str, str]:
    """Return the versions of the packages on which the results of a run depend."""
    versions = {}
    for name in ("ftdist", "torch", "deepspeed", "transformers", "datasets", "numpy", "wandb", "hydra-core"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine_summary() -> Dict[str, str]:
    """Return what the banner prints about this machine, by label."""
    gpus = visible_gpus()
    kinds = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus))
    memory = psutil.virtual_memory()
    versions = package_versions()
    libraries = ("torch", "deepspeed", "transformers")
    return {
        "cores": str(cpu_cores()),
        "memory": f"{memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB free",
        "GPUs": kinds or "none",
        "libraries": ", ".join(f"{name} {versions.get(name, 'missing')}" for name in libraries),
    }
