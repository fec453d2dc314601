"""What this machine has: the build of torch, and where the GPUs are."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import List, Optional

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.launch import Device, LaunchConfig
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import machine
from ftdist.launch.backends.deepspeed import DeepspeedBackend
from ftdist.launch.backends.nodes import NodesBackend, run_node
from ftdist.run.rundir import RunDir

VERSION = "from typing import Optional\n__version__ = '{0}'\ncuda: Optional[str] = {1}\nhip: Optional[str] = {2}\n"


@pytest.mark.parametrize(
    ("version", "cuda", "hip", "found"),
    [
        ("2.13.0+cpu", None, None, "2.13.0+cpu"),
        ("2.13.0", None, None, "2.13.0"),  # conda's and macOS's builds do not say so in the version
        ("2.13.0+cu128", "'12.8'", None, None),
        ("2.13.0+rocm6.4", None, "'6.4.1'", None),
    ],
)
def test_a_torch_for_cpu_is_recognised_without_importing_it(
    version: str, cuda: Optional[str], hip: Optional[str], found: Optional[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "version.py").write_text(VERSION.format(version, cuda, hip))
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert machine.torch_without_gpus() == found
    machine.check_torch(LaunchConfig(device=Device.cpu))
    if found:
        with pytest.raises(ConfigError) as error:
            machine.check_torch(LaunchConfig(device=Device.cuda))
        assert error.value.found == f"launch.device=cuda, but torch {found} of {sys.executable} was built without CUDA"
        assert "pip install --force-reinstall torch" in error.value.fix
    else:
        machine.check_torch(LaunchConfig(device=Device.cuda))


def test_an_environment_without_torch_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (None, SimpleNamespace(origin=str(tmp_path / "none" / "__init__.py"))):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        assert machine.torch_without_gpus() is None


@pytest.mark.parametrize("how", ["nodes", "node", "deepspeed"])
def test_several_machines_with_a_torch_for_cpu_start_no_rank_on_gpus(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from the launcher nor, where the environment differs, on one of the machines."""
    monkeypatch.setattr(machine, "torch_without_gpus", lambda: "2.13.0+cpu")
    config, run = RunConfig(), RunDir(tmp_path)
    config.launch.device, config.launch.nproc_per_node, config.launch.nnodes = Device.cuda, 1, 2
    start = {"nodes": NodesBackend().start, "deepspeed": DeepspeedBackend().start,
             "node": lambda config, run: run_node(config, run, rank=1, attempt=0)}[how]  # fmt: skip
    with pytest.raises(ConfigError, match=r"launch.device=cuda, but torch 2.13.0\+cpu"):
        start(config, run)
    assert not list(tmp_path.iterdir())


SMI = """\
#!/bin/sh
[ "$1" != -L ] || printf 'GPU 0: H100 (UUID: GPU-aa)\\nGPU 1: H100 (UUID: GPU-bb)\\n'
[ "$1" = -L ] || printf '0, GPU-aa, 00000000:3B:00.0\\n1, GPU-bb, 00000001:AF:00.0\\n'
"""


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["0000:3b:00.0", "0001:af:00.0"]),
        ("1,0", ["0001:af:00.0", "0000:3b:00.0"]),
        ("GPU-bb", ["0001:af:00.0"]),
        ("", []),
    ],
)
def test_gpus_are_found_on_the_bus(
    visible: Optional[str], found: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpu_addresses() == found
