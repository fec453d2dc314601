"""A run from its config to its end."""

from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.launch import Container
from ftdist.launch.attempt import machine
from ftdist.launch.backends import foreground
from ftdist.launch.runs import inputs
from ftdist.launch.runs.pipeline import prepare_run, run_from_config
from tests.unit.launch.run_tools import smoke

ON_GPUS = ("launch.device=cuda", "launch.nproc_per_node=1")


@pytest.mark.parametrize(
    "launch",
    [(), ("launch=nodes", "launch.nnodes=1", "launch.nodes.address=localhost"), ("launch=slurm",)],
    ids=["local", "nodes", "slurm"],
)
def test_a_torch_for_cpu_is_refused_before_anything_is_prepared(
    launch: List[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a sweep. A dry run is made for another machine, and under Slurm, the nodes may have another torch."""
    started: List[str] = []
    monkeypatch.setattr(machine, "torch_without_gpus", lambda: "2.13.0+cpu")
    monkeypatch.setattr(foreground, "visible_gpus", lambda: ["a GPU"])
    monkeypatch.setattr(inputs, "run_program", lambda arguments, given=None: started.append(arguments[0]))
    words = [*ON_GPUS, *launch, f"run_dir={here}/run", f"cache_dir={here}/cache"]
    for refused in (run_from_config, prepare_run):
        with pytest.raises(ConfigError, match=r"launch.device=cuda, but torch 2.13.0\+cpu"):
            refused(smoke(*words))
    assert not started and not (here / "run").exists()
    if "launch=slurm" in launch:
        config = smoke(*words)
        config.launch.slurm.python = "/other/python"
        prepare_run(config)
        config.launch.slurm.python, config.launch.slurm.container = None, Container.pyxis
        config.launch.slurm.container_image = "image"
        prepare_run(config)
        assert run_from_config(smoke(*words), dry_run=True) == 0
