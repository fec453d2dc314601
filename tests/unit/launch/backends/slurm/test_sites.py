"""The examples of sites in conf/launch/site work as they stand: what a job of 2 nodes asks for there."""

import shlex
from pathlib import Path
from typing import List, Optional

import pytest

import ftdist.conf
from ftdist.config.launch import check_launch
from ftdist.launch.backends.slurm import resolve, script
from ftdist.launch.runs import resolve as runs_resolve
from ftdist.launch.runs.resolve import resolve_paths
from tests.unit.compose_tools import composed
from tests.unit.launch.run_tools import smoke

OURS = ("--job-name", "--output", "--open-mode", "--signal", "--requeue", "--nodes", "--ntasks-per-node")
"""Options that are the same at every site."""
SITES = {
    "gres": ((8, 96), ["--partition=gpu", "--gres=gpu:8", "--cpus-per-task=96"], ""),
    "typed_gpus": ((8, 96), ["--partition=gpu", "--gres=gpu:h100:8", "--cpus-per-task=96"], ""),
    "no_gres": ((0, 96), ["--partition=gpu", "--exclusive"], "--cpu-bind=none"),
    "per_core": (
        (8, 96), ["--partition=gpu", "--account=my-project", "--gres=gpu:8", "--cpus-per-task=32", "--mem=64G"], "",
    ),
    "parallelcluster_efa": (
        (8, 192), ["--partition=gpu", "--gpus-per-node=8", "--cpus-per-task=192", "--exclusive"], "FI_PROVIDER=efa",
    ),
    "perlmutter": (
        None, ["--account=m0000_g", "--qos=regular", "--constraint=gpu", "--gpus-per-node=4", "--cpus-per-task=128",
               "--time=12:00:00"], "export NCCL_SOCKET_IFNAME=hsn",
    ),
    "frontera": (
        (0, 16), ["--partition=rtx", "--account=my-project", "--time=2-00:00:00"], "export NCCL_IB_DISABLE=0",
    ),
    "juwels": (
        None, ["--partition=booster", "--account=my-project", "--gres=gpu:4", "--cpus-per-task=48",
               "--time=1-00:00:00"], "export GLOO_SOCKET_IFNAME=ib0",
    ),
    "lumi": (
        None, ["--partition=standard-g", "--account=project_465000000", "--gpus-per-node=8", "--cpus-per-task=56",
               "--mem=480G", "--time=2-00:00:00"], "export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3",
    ),
}  # fmt: skip
"""For each site: GPUs and CPUs of a node (None: Slurm is not asked), the options of the job, a part of its script."""


@pytest.mark.parametrize("site", SITES)
@pytest.mark.thorough
def test_a_job_at_a_site(site: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node, asked, part = SITES[site]
    found: Optional[List[resolve.Node]] = [resolve.Node(name, *node) for name in ("n1", "n2")] if node else None
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: found)
    config = smoke("launch=slurm", f"launch/site={site}", "launch.nnodes=2", f"run_dir={tmp_path}/run")
    resolve_paths(config)
    resolve.resolve_ranks(config.launch)
    check_launch(config.launch)
    options = [option for option in script.sbatch_options(config) if not option.startswith(OURS)]
    assert options == asked and part in script.render(config)
    own = smoke("launch=slurm", f"launch/site={site}", "launch.slurm.account=mine", f"run_dir={tmp_path}/run")
    assert own.launch.slurm.account == "mine"


def test_the_nodes_with_80_gb_of_perlmutter_can_be_asked_for() -> None:
    """With the words that the file of the site names, as a shell reads them."""
    text = (Path(ftdist.conf.__path__[0]) / "launch" / "site" / "perlmutter.yaml").read_text()
    (word,) = shlex.split(next(line for line in text.splitlines() if "hbm80g" in line).partition(": ")[2])
    config = smoke("launch=slurm", "launch/site=perlmutter", word, "run_dir=/runs/a")
    assert "--constraint=gpu&hbm80g" in script.sbatch_options(config)


EXPERIMENTS = {
    "continued_pretraining": 8, "demo": 2, "demo_lora_sweep": 2, "llama31_70b": 32, "llama31_70b_lora": 8,
    "llama31_8b": 8, "llama31_8b_lora": 1, "llama31_8b_qlora": 1, "qwen3_8b": 8, "smoke": 1, "smollm2_135m": 8,
}  # fmt: skip
"""For each ready-made experiment, the GPUs that its job asks for where Slurm cannot be queried, as in README.md. The
smoke test is for CPU; with ``launch=slurm`` alone it gets a GPU."""


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.thorough
def test_a_job_of_an_experiment_asks_for_the_gpus_that_it_is_made_for(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nodes have 4 GPUs, the job gets all of them, and a note says how many nodes the experiment needs."""
    needed, said = EXPERIMENTS[name], {}
    for nodes in (None, [resolve.Node(f"n{number}", 4, 64) for number in range(8)]):
        monkeypatch.setattr(resolve, "find_nodes", lambda launch, nodes=nodes: nodes)
        config = composed(f"experiment={name}", "launch=slurm", f"run_dir={tmp_path}/run")
        resolve_paths(config)
        runs_resolve.resolve_ranks(config)
        runs_resolve.note_few_gpus(config.launch)
        per_node = {"demo": 2, "demo_lora_sweep": 2, "llama31_8b_lora": 1, "llama31_8b_qlora": 1}.get(name, 4)
        options = script.sbatch_options(config)
        assert f"--nodes={config.launch.nnodes}" in options
        assert f"--gpus-per-node={per_node if nodes else needed // config.launch.nnodes}" in options
        said[nodes is None] = capsys.readouterr().err
    assert "made for" not in said[True] and ("made for" in said[False]) == (needed > 4)
    assert needed <= 4 or "With fewer GPUs, each one holds a larger part of what ZeRO shards" in said[False]
    assert needed <= 4 or f"launch.nnodes={needed // 4}\n" in said[False]


def test_every_experiment_is_tested() -> None:
    folder = Path(ftdist.conf.__path__[0]) / "experiment"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(EXPERIMENTS)


def test_every_site_is_tested() -> None:
    folder = Path(ftdist.conf.__path__[0]) / "launch" / "site"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(SITES)
