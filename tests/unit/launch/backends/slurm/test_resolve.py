"""How many GPUs the nodes of a partition have, by what sinfo prints."""

from math import inf
from typing import Any, Dict, List, Optional

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.launch import Device, GpuOption, LaunchConfig, SlurmConfig, check_launch
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.slurm import resolve, script

LISTED = """\
Welcome to the cluster | quota: 3 | of 5 | TB
ftdist|n1|gpu*|a100,ib|128|n/a|1-00:00:00|gpu:a100:8(S:0-1)
ftdist|n2|gpu*|h100,ib|96|n/a|1-00:00:00|gpu:h100:4
ftdist|n2|all|h100,ib|96|2:00|infinite|gpu:h100:4
ftdist|n3|all|(null)|4|2:00|infinite|(null)
"""


@pytest.mark.parametrize(
    ("partition", "constraint", "found"),
    [
        (None, None, {8: ["n1"], 4: ["n2"]}),  # of the default partition
        ("all,gpu", None, {0: ["n3"], 8: ["n1"], 4: ["n2"]}),  # sinfo lists no other ones
        (None, "a100", {8: ["n1"]}),
        (None, "h100&ib", {4: ["n2"]}),
        (None, "[a100|h100]", {8: ["n1"], 4: ["n2"]}),
        (None, "v100", {}),
        (None, "ib&[a100|h100]", {8: ["n1"], 4: ["n2"]}),
        (None, "(a100&ib)*1", {8: ["n1"], 4: ["n2"]}),
    ],
)
def test_gpus_are_counted_on_the_nodes_that_the_job_may_get(
    partition: Optional[str], constraint: Optional[str], found: Dict[int, List[str]]
) -> None:
    launch, same = LaunchConfig(), LaunchConfig()
    launch.slurm.partition, launch.slurm.constraint = partition, constraint
    given = (("partition", partition), ("constraint", constraint))
    same.slurm.options = [f"--{name}={value}" for name, value in given if value]
    nodes = resolve.read_nodes(LISTED, launch)
    assert nodes == resolve.read_nodes(LISTED, same)
    assert {number: [node.name for node in nodes if node.gpus == number] for number in found} == found
    assert sum(map(len, found.values())) == len(nodes)
    assert all(node.cpus == {"n1": 128, "n2": 96, "n3": 4}[node.name] for node in nodes)
    limits = {node.name: (node.default_s, node.limit_s) for node in nodes}
    assert limits.get("n3", (120, inf)) == (120, inf) and limits.get("n1", (86400, 86400)) == (86400, 86400)
    assert "n2" not in limits or limits["n2"] == (86400, inf if partition else 86400)


@pytest.mark.parametrize(
    ("counts", "ranks", "found", "fix"),
    [
        ({0: ["n3"]}, None, "Slurm reports no GPUs for the nodes that the job can use",
         "launch.slurm.gpus=none launch.nproc_per_node=N"),
        ({0: ["n3"]}, 2, "Slurm reports no GPUs for the nodes that the job can use",
         "launch.slurm.gpus=none launch.nproc_per_node=2"),
        (
            {4: ["n2"], 8: ["n1"]}, None,
            "the nodes that the job can use have different numbers of GPUs: 4 (n2), 8 (n1)", "launch.nproc_per_node=4",
        ),
        (
            {0: ["n3"], 4: ["n2"]}, 8,
            "launch.nproc_per_node=8, but no node that the job can use has more than 4 GPUs", "launch.nproc_per_node=4",
        ),
    ],
)  # fmt: skip
def test_nodes_that_do_not_fit_are_refused(
    counts: Dict[int, List[str]], ranks: Optional[int], found: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a device in the config: a job on CPU must be asked for."""
    nodes = [resolve.Node(name, gpus, 64) for gpus, names in counts.items() for name in names]
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: nodes)
    for device in (Device.cuda, Device.auto):
        with pytest.raises(ConfigError) as error:
            resolve.resolve_ranks(LaunchConfig(device=device, nproc_per_node=ranks))
        assert error.value.found == found and fix in error.value.fix


TYPED = """\
ftdist|n1|gpu*|a|64|n/a|infinite|gpu:a100:8(S:0-1)
ftdist|n2|gpu*|b|64|n/a|infinite|gpu:h100:4,gpu:1g.10gb:2,nvme:1
ftdist|n3|gpu*|c|64|n/a|infinite|(null)
"""


@pytest.mark.parametrize(
    ("settings", "listed", "ranks", "error"),
    [
        ({"gpu_type": "h100"}, TYPED, 4, ()),  # the other nodes do not count
        ({"gpu_type": "1g.10gb"}, TYPED, 2, ()),
        ({"options": ["--gpus-per-node=a100:8"]}, TYPED, 8, ()),
        ({"options": ["--gres=gpu:a100:8,nvme:1"]}, TYPED, 8, ()),
        ({"gpu_type": "h200"}, TYPED, None, ("launch.slurm.gpu_type=h200: no node", "sinfo shows: 1g.10gb, a100, h100",
                                            "launch.slurm.gpu_type=h100")),
        ({"gpu_type": "V"}, TYPED, None, ("no node", "sinfo shows", "launch.slurm.gpu_type=TYPE")),
        ({"options": ["--gres=gpu:A100:8"]}, TYPED, None, ("--gres=gpu:A100:8 in launch.slurm.options: no node", "a100",
                                                         "--gres=gpu:a100:8 in launch.slurm.options")),
        ({"gpu_type": "h100"}, TYPED.replace("a100:", "").replace("h100:", "").replace("1g.10gb:", ""), None,
         ("no node", "sinfo shows none", "leave out the type")),
        ({"gpu_type": "h100", "gpus": GpuOption.none}, TYPED, 4, ()),
        ({"options": ["--gres=gpu:h100:2,gpu:a100:1"]}, TYPED, 3, ()),  # Slurm checks it
        ({"options": ["--gres=gpu:3"]}, TYPED, 3, ()),
        ({"options": ["--gpus=h100:2"]}, TYPED, 2, ()),
        ({"options": ["--gpus-per-socket=2"], "gpu_type": "h100"}, TYPED, None, ("different numbers", "", "")),
    ],
)  # fmt: skip
def test_a_type_of_gpus_that_slurm_does_not_know_is_refused(
    settings: Dict[str, Any], listed: str, ranks: Optional[int], error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: List[List[str]] = []
    answers = ["Requested node configuration is not available", ""]
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: resolve.read_nodes(listed, launch))
    monkeypatch.setattr(resolve, "refusal", lambda options: tested.append(options) or answers[len(tested) - 1])
    launch = LaunchConfig(slurm=SlurmConfig(**settings), nproc_per_node=ranks if "gpus" in settings else None)
    if not error:
        resolve.resolve_ranks(launch)
        assert launch.nproc_per_node == ranks
        return
    with pytest.raises(ConfigError) as raised:
        resolve.resolve_ranks(launch)
    parts = (raised.value.found, raised.value.expected, raised.value.fix)
    assert all(said in part for said, part in zip(error, parts, strict=True)), parts
    if tested:
        assert tested[0][-1].startswith("--gres=gpu:")
        launch.nproc_per_node = 3
        resolve.resolve_ranks(launch)  # sbatch accepts it: the site translates the type


@pytest.mark.parametrize(
    ("slurm", "found"),
    [
        (SlurmConfig(gpu_type="h100"), "no node that the job can use has more than 4 GPUs of type h100"),
        (SlurmConfig(options=["--gres=gpu:4"]), "--gres=gpu:4 in launch.slurm.options asks for 4 GPUs on each node"),
        (
            SlurmConfig(options=["--gpus=4"], gpus=GpuOption.none),
            "--gpus=4 in launch.slurm.options asks for 4 GPUs on each node",
        ),
    ],
)
def test_more_ranks_than_gpus_are_refused(slurm: SlurmConfig, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: resolve.read_nodes(TYPED, launch))
    with pytest.raises(ConfigError, match=f"launch.nproc_per_node=8, but {found}"):
        resolve.resolve_ranks(LaunchConfig(slurm=slurm, nproc_per_node=8))


@pytest.mark.parametrize(
    ("nodes", "settings", "asked"),
    [
        ([(8, 96)], {}, 96),  # the node's share
        ([(8, 96)], {"nproc_per_node": 2}, 24),
        ([(8, 96), (8, 64)], {}, 64),  # what every node has
        ([(8, 96)], {"cpus_per_gpu": 3}, 24),
        ([(8, 96)], {"cpus_per_gpu": 0}, None),
        ([(8, 96)], {"cpus_per_node": 50}, 50),
        ([(8, 96)], {"options": ["--cpus-per-gpu=5"]}, None),
        ([(8, 96)], {"options": ["--cpus-per-task=5"]}, None),
        (None, {"nproc_per_node": 8}, 32),  # a sound default
        (None, {"nproc_per_node": 8, "exclusive": True}, None),  # all of the node
        ([(0, 96)], {"nproc_per_node": 8, "gpus": GpuOption.none}, 96),
        (None, {"nproc_per_node": 3, "device": Device.cpu}, 6),
        ([(0, 4)], {"nproc_per_node": 3, "device": Device.cpu}, 3),
        ([(2, 6)], {"nproc_per_node": 3, "device": Device.cpu}, 6),  # the node's GPUs do not matter
        ([(2, 4)], {"nproc_per_node": 3, "device": Device.cpu}, 3),
    ],
)
def test_a_job_asks_for_cpus(
    nodes: Any, settings: Dict[str, Any], asked: Optional[int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = [resolve.Node(f"n{number}", *node) for number, node in enumerate(nodes)] if nodes else None
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: found)
    config = RunConfig(run_dir="/runs/a")
    for key, value in settings.items():
        setattr(config.launch.slurm if hasattr(config.launch.slurm, key) else config.launch, key, value)
    resolve.resolve_ranks(config.launch)
    options = [option for option in script.sbatch_options(config) if option.startswith("--cpus-per-task")]
    theirs = settings.get("options", [])
    assert options == ([f"--cpus-per-task={asked}"] if asked else [o for o in theirs if "cpus-per-task" in o])
    assert ("fewer than 2 for each" in capsys.readouterr().err) == (asked == 3)


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ("90", 5400), ("2:30", 150), ("12:00:00", 43200), ("1-0", 86400), ("2-12:30", 217800), ("1-01:01:01", 90061),
        ("UNLIMITED", inf), ("infinite", inf), ("n/a", inf), ("0", inf),
    ],
)  # fmt: skip
def test_a_time_limit_is_read_as_slurm_reads_it(limit: str, found: float) -> None:
    assert resolve.seconds(limit) == found


@pytest.mark.parametrize(("limit", "stop", "good"), [("2", 120, False), ("3", 120, False), ("4", 120, True),
                                                     ("2", 30, True), (None, 120, True), ("0", 120, True),
                                                     ("infinite", 120, True), ("Unlimited", 120, True)])  # fmt: skip
def test_a_time_limit_that_leaves_no_time_is_refused(limit: Optional[str], stop: int, good: bool) -> None:
    launch = LaunchConfig(device=Device.cpu)
    launch.slurm.time, launch.slurm.stop_before_limit_s = limit, stop
    check_launch(launch)
    if good:
        resolve.resolve_ranks(launch)
        return
    with pytest.raises(ConfigError, match="asked to stop 120 to 180 s before this limit"):
        resolve.resolve_ranks(LaunchConfig(device=Device.cpu, slurm=SlurmConfig(options=[f"--time={limit}"])))
    with pytest.raises(ConfigError, match="asked to stop 120 to 180 s before this limit") as error:
        resolve.resolve_ranks(launch)
    launch.slurm.time = str(error.value).split("launch.slurm.time=")[2].split()[0]
    resolve.resolve_ranks(launch)  # the fix helps


@pytest.mark.parametrize(
    ("time", "default", "largest", "found", "said"),
    [
        (None, 120, 3600, "a job without launch.slurm.time gets a limit of 120 s", "set launch.slurm.time=8"),
        (None, 120, 120, "a job without launch.slurm.time gets a limit of 120 s", "launch.slurm.partition=NAME"),
        ("2", 120, 120, "launch.slurm.time=2 is 120 s", "launch.slurm.partition=NAME"),
        ("2", 120, 240, "launch.slurm.time=2 is 120 s", "set launch.slurm.time=4"),
        ("30", 120, 600, None, "longer than the 10 minutes that the partition allows"),
        ("10", 120, 600, None, ""),
        (None, 600, 600, None, ""),
    ],
)
def test_the_time_limits_of_the_partition_count(
    time: Optional[str], default: float, largest: float, found: Optional[str], said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: [resolve.Node("n1", 0, 8, default, largest)])
    launch = LaunchConfig(device=Device.cpu, slurm=SlurmConfig(time=time))
    if found is None:
        resolve.resolve_ranks(launch)
        printed = capsys.readouterr().err
        assert said in printed and bool(said) == bool(printed)
        return
    with pytest.raises(ConfigError) as error:
        resolve.resolve_ranks(launch)
    assert error.value.found.startswith(found) and said in error.value.fix


@pytest.mark.parametrize(
    ("settings", "found", "fix"),
    [
        ({"nproc_per_node": 4}, "4 CPUs on each node for 4 ranks, but no node that it can use has more than 2",
         "launch.nproc_per_node=2"),
        ({"cpus_per_gpu": 8}, "8 CPUs on each node for 1 rank", "launch.slurm.cpus_per_gpu=2"),
        ({"cpus_per_node": 8}, "8 CPUs on each node", "launch.slurm.cpus_per_node=2"),
        ({"nnodes": 3}, "launch.nnodes=3, but only 2 nodes that the job can use have enough GPUs and CPUs",
         "launch.nnodes=2"),
        ({"nnodes": 2, "cpus_per_gpu": 0}, None, ""),
    ],
)  # fmt: skip
def test_a_job_that_no_nodes_could_run_is_refused(
    settings: Dict[str, Any], found: Optional[str], fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: [resolve.Node(name, 0, 2) for name in ("n1", "n2")])
    launch = LaunchConfig(device=Device.cpu)
    for key, value in settings.items():
        setattr(launch.slurm if hasattr(launch.slurm, key) else launch, key, value)
    if found is None:
        resolve.resolve_ranks(launch)
        return
    with pytest.raises(ConfigError) as error:
        resolve.resolve_ranks(launch)
    assert found in error.value.found and error.value.fix.startswith(fix)


@pytest.mark.parametrize("ranks", [None, 8])
def test_a_site_whose_slurm_knows_no_gpus_never_gets_a_job_on_cpu(
    ranks: Optional[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "find_nodes", lambda launch: [resolve.Node("n1", 0, 64)])
    launch = LaunchConfig(nproc_per_node=ranks)
    launch.slurm.gpus = GpuOption.none
    if ranks is None:
        with pytest.raises(ConfigError, match="does not know how many GPUs") as error:
            resolve.resolve_ranks(launch)
        assert "launch.nproc_per_node=8" in str(error.value)
    else:
        resolve.resolve_ranks(launch)
        assert (launch.device, launch.nproc_per_node) == (Device.cuda, 8)
