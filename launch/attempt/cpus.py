"""Choose the CPUs of each rank of a machine: cores near its GPU, among the CPUs that the job was granted.

A CPU is a hardware thread, as the kernel and Slurm number them. A core has one or two. ``divide`` is a pure function of
a topology; ``read_topology`` reads the topology of this machine.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple

from ftdist.base.counts import count
from ftdist.base.ranges import parse_ranges, ranges

SYS = Path("/sys")
FEW_CPUS = 2
"""If a rank has fewer CPUs, its main thread and the threads that feed its GPU wait for each other."""


@dataclass(frozen=True)
class Topology:
    """The CPUs that a process may use, and where they are."""

    cores: Tuple[Tuple[int, ...], ...]
    """The CPUs of each core."""
    nodes: Dict[int, Set[int]] = field(default_factory=dict)
    """The CPUs of each NUMA node."""
    distances: Dict[int, List[int]] = field(default_factory=dict)
    """For each NUMA node, the distances to all nodes, as the kernel lists them."""
    gpus: Tuple[Optional[int], ...] = ()
    """NUMA node of the GPU of each rank, or None if it is not known."""


@dataclass(frozen=True)
class Division:
    """The CPUs that the ranks of a machine get."""

    cpus: List[List[int]]
    """CPUs that each rank is bound to. Empty if the ranks are not bound."""
    threads: int
    """Threads of each rank: one for each core, unless the config says otherwise."""
    each: int
    """Smallest number of CPUs of a rank. 0 if there are fewer CPUs than ranks."""

    def describe(self) -> str:
        """Return the division in one line."""
        bound = "; ".join(ranges(cpus) for cpus in self.cpus)
        each = f"{count(self.each, 'CPU')} and {count(self.threads, 'thread')} for each rank"
        return each + (f", bound to {bound}" if bound else "")


def divide(topology: Topology, ranks: int, granted: Optional[int] = None) -> Division:
    """Divide the cores of a machine among its ranks.

    Each rank gets cores of the NUMA node of its GPU, or of the nearest node with cores. The cores of other nodes are
    added to the nearest node in use. If several of these are equally near, the one with the fewest cores for each
    rank gets them. If a rank would get less than half of an even share, the cores are divided evenly, in the order of
    the nodes. Ranks without a GPU get even shares.

    Args:
        granted: number of CPUs that the job may use. If the process may use more than that, Slurm does not confine the
            job to certain CPUs, and other jobs may use any of them. The ranks are then not bound.
    """
    total = sum(map(len, topology.cores))
    if granted is not None and granted < total:
        cores = granted * len(topology.cores) // total
        return Division([], max(1, cores // ranks), granted // ranks)
    if len(topology.cores) < ranks:
        return Division([], 1, total // ranks)
    shares = _near(topology, ranks) if len(topology.gpus) == ranks else None
    if shares is None or min(map(len, shares)) * 2 < len(topology.cores) // ranks:
        shares = _split(_in_order(topology), ranks)
    cpus = [sorted(cpu for core in share for cpu in core) for share in shares]
    return Division(cpus, min(map(len, shares)), min(map(len, cpus)))


def _node_of(topology: Topology, core: Tuple[int, ...]) -> int:
    return next((node for node, cpus in topology.nodes.items() if core[0] in cpus), -1)


def _in_order(topology: Topology) -> List[Tuple[int, ...]]:
    return sorted(topology.cores, key=lambda core: (_node_of(topology, core), core))


def _split(cores: Sequence[Tuple[int, ...]], parts: int) -> List[List[Tuple[int, ...]]]:
    ends = [len(cores) * part // parts for part in range(parts + 1)]
    return [list(cores[begin:end]) for begin, end in pairwise(ends)]


def _near(topology: Topology, ranks: int) -> Optional[List[List[Tuple[int, ...]]]]:
    """Return the cores of each rank by the NUMA node of its GPU. None if one of these nodes is not known."""
    groups: Dict[int, List[Tuple[int, ...]]] = {}
    for core in _in_order(topology):
        groups.setdefault(_node_of(topology, core), []).append(core)
    if any(gpu is None or gpu not in topology.nodes for gpu in topology.gpus) or -1 in groups:
        return None

    order = sorted(topology.nodes)  # the kernel lists the distances in this order

    def distance(node: int, other: int) -> int:
        row = topology.distances.get(node, [])
        return -1 if other == node else row[order.index(other)] if len(row) == len(order) else 0

    homes = [min(groups, key=lambda other: (distance(gpu, other), other)) for gpu in topology.gpus if gpu is not None]
    used = sorted(set(homes))
    for node in [node for node in sorted(groups) if node not in used]:
        to = min(used, key=lambda other: (distance(node, other), len(groups[other]) / homes.count(other), other))
        groups[to] += groups.pop(node)
    shares: List[List[Tuple[int, ...]]] = [[] for _ in range(ranks)]
    for home in used:
        mine = [rank for rank, place in enumerate(homes) if place == home]
        for rank, share in zip(mine, _split(sorted(groups[home]), len(mine)), strict=True):
            shares[rank] = share
    return shares


def read_topology(allowed: Set[int], gpus: Sequence[str], ranks: int, sys: Path = SYS) -> Topology:
    """Read the topology of this machine.

    Args:
        allowed: CPUs that this process may use.
        gpus: PCI addresses of the visible GPUs, such as ``0000:3b:00.0``. Rank N uses GPU N.
        ranks: number of ranks on this machine.
        sys: where sysfs is mounted.
    """
    cores: Set[Tuple[int, ...]] = set()
    for cpu in allowed:
        siblings = _read(sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(tuple(sorted(allowed & (parse_ranges(siblings) or {cpu}))))
    nodes, distances = {}, {}
    for place in (sys / "devices/system/node").glob("node[0-9]*"):
        number = int(place.name.removeprefix("node"))
        nodes[number] = parse_ranges(_read(place / "cpulist"))
        distances[number] = [int(word) for word in _read(place / "distance").split()]
    at = [_read(sys / f"bus/pci/devices/{address}/numa_node") for address in gpus]
    places = tuple(int(text) if re.fullmatch(r"\d+", text) else None for text in at)  # -1: not known
    return Topology(tuple(sorted(cores)), nodes, distances, places[:ranks])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
