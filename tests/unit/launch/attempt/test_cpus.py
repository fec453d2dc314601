"""CPUs of ranks: golden topologies of machines, and how this machine's is read."""

from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

import pytest

from ftdist.base.ranges import parse_ranges, ranges
from ftdist.launch.attempt.cpus import Topology, divide, read_topology


def machine(
    nodes: Sequence[str], gpus: Sequence[Optional[int]], allowed: str = "", threads_at: int = 0, socket: int = 1
) -> Topology:
    """Make a topology.

    Args:
        nodes: the CPUs of each NUMA node.
        gpus: NUMA node of each GPU.
        allowed: CPUs that the job may use. Defaults to all.
        threads_at: number of the second thread of core 0. 0: one thread for each core.
        socket: NUMA nodes of a socket. They are nearer to each other.
    """
    cpus: Dict[int, Set[int]] = {number: parse_ranges(text) for number, text in enumerate(nodes)}
    may = parse_ranges(allowed) if allowed else set().union(*cpus.values())
    cores = {tuple(sorted({cpu % threads_at, cpu % threads_at + threads_at} & may)) if threads_at else (cpu,)
             for cpu in may}  # fmt: skip
    far = {a: [10 if a == b else 12 if a // socket == b // socket else 32 for b in cpus] for a in cpus}
    return Topology(tuple(sorted(cores)), cpus, far, tuple(gpus))


H100 = machine(["0-55,112-167", "56-111,168-223"], [0] * 4 + [1] * 4, threads_at=112)
A100_NODES = [f"{16 * n}-{16 * n + 15},{128 + 16 * n}-{143 + 16 * n}" for n in range(8)]
A100 = machine(A100_NODES, [3, 3, 1, 1, 7, 7, 5, 5], threads_at=128, socket=4)
NPS4 = [f"{16 * n}-{16 * n + 15},{64 + 16 * n}-{79 + 16 * n}" for n in range(4)]


@pytest.mark.parametrize(
    ("topology", "bound", "threads"),
    [
        pytest.param(H100, ["0-13,112-125", "14-27,126-139", "28-41,140-153", "42-55,154-167", "56-69,168-181",
                            "70-83,182-195", "84-97,196-209", "98-111,210-223"], 14, id="two sockets, 8 GPUs"),
        pytest.param(A100, ["32-47,160-175", "48-63,176-191", "0-15,128-143", "16-31,144-159", "96-111,224-239",
                            "112-127,240-255", "64-79,192-207", "80-95,208-223"], 16, id="GPUs at every second node"),
        pytest.param(machine(NPS4, [3, 2, 1, 0], threads_at=64),
                     ["48-63,112-127", "32-47,96-111", "16-31,80-95", "0-15,64-79"], 16, id="reversed"),
        pytest.param(machine(["0-15", "16-31", "32-47", "48-63"], [3, 3, 1, 1, 0, 0, 2, 2],
                             ",".join(f"{8 * n + 1}-{8 * n + 7}" for n in range(8))),
                     ["49-55", "57-63", "17-23", "25-31", "1-7", "9-15", "33-39", "41-47"], 7, id="reserved cores"),
        pytest.param(machine(["0-7,16-23", "8-15,24-31"], [1, 1], "0-3,16-19", threads_at=16),
                     ["0-1,16-17", "2-3,18-19"], 2, id="granted far from the GPUs"),
        pytest.param(machine(["0-15", "16-31"], [0, 0, 1, 1], "0-13,16-17"),
                     ["0-3", "4-7", "8-11", "12-13,16-17"], 4, id="granted too unevenly"),
        pytest.param(machine(["0-15"], [0, 0]), ["0-7", "8-15"], 8, id="a workstation"),
        pytest.param(machine(["0-7", "8-15"], [None, None]), ["0-7", "8-15"], 8, id="places not known"),
        pytest.param(Topology(((0,), (1,), (2,)), gpus=(0, 0)), ["0", "1-2"], 1, id="no NUMA"),
    ],
)  # fmt: skip
def test_ranks_get_cores_near_their_gpu(topology: Topology, bound: List[str], threads: int) -> None:
    division = divide(topology, len(topology.gpus))
    assert [ranges(cpus) for cpus in division.cpus] == bound
    assert division.threads == threads and division.each == min(map(len, division.cpus))
    assert len({cpu for cpus in division.cpus for cpu in cpus}) == sum(map(len, topology.cores))  # each CPU once


@pytest.mark.parametrize(
    ("cpus", "ranks", "granted", "threads", "each"),
    [("0-7", 2, 4, 2, 2), ("0-7", 8, 1, 1, 0), ("0-1", 4, 4, 1, 0), ("0", 8, None, 1, 0)],
)
def test_ranks_are_not_bound_without_cores_of_their_own(
    cpus: str, ranks: int, granted: Optional[int], threads: int, each: int
) -> None:
    """Nothing confines the job, or there are fewer cores than ranks."""
    division = divide(machine([cpus], [None] * ranks), ranks, granted)
    assert (division.cpus, division.threads, division.each) == ([], threads, each)


def test_ranks_on_cpu_are_spread_over_the_nodes() -> None:
    division = divide(machine(["0-3,8-11", "4-7,12-15"], [], threads_at=8), 2, 16)
    assert [ranges(cpus) for cpus in division.cpus] == ["0-3,8-11", "4-7,12-15"] and division.threads == 4


def test_the_topology_is_read_from_sysfs(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")

    for cpu in range(8):
        write(f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}")
    for node, cpus in enumerate(("0-1,4-5", "2-3,6-7")):
        write(f"devices/system/node/node{node}/cpulist", cpus)
        write(f"devices/system/node/node{node}/distance", "10 21" if node == 0 else "21 10")
    write("bus/pci/devices/0000:3b:00.0/numa_node", "1")
    write("bus/pci/devices/0000:af:00.0/numa_node", "-1")
    found = read_topology({0, 2, 3, 6, 7}, ["0000:3b:00.0", "0000:af:00.0"], 2, tmp_path)
    assert found == Topology(((0,), (2, 6), (3, 7)), {0: {0, 1, 4, 5}, 1: {2, 3, 6, 7}}, {0: [10, 21], 1: [21, 10]},
                             (1, None))  # fmt: skip
    assert read_topology({0, 1}, [], 2, tmp_path / "none").cores == ((0,), (1,))
