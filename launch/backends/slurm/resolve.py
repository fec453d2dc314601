"""Fit a config to the nodes of a Slurm partition: the device, the number of ranks on each node, and their CPUs."""

import math
import re
import sys
from dataclasses import dataclass, field, replace
from typing import Dict, List, Mapping, Optional, Set

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.base.names import nearest
from ftdist.config.launch import NO_LIMIT, TIME, Device, GpuOption, LaunchConfig, Profile, SlurmConfig
from ftdist.launch.attempt.cpus import FEW_CPUS
from ftdist.launch.backends.slurm import answers, names
from ftdist.launch.backends.slurm.client import available, refusal, run_command
from ftdist.launch.backends.slurm.script import (
    CPU_OPTIONS,
    GpusAsked,
    assignment,
    cpus_asked,
    gpus_asked,
    option_name,
    setting_or_option,
)  # fmt: skip

GPUS = re.compile(r"(?<![\w-])gpu:(?:([^:,()]+):)?(\d+)")
ASKS_EARLIER_S = 60
"""Seconds by which Slurm's signal before the time limit may come early."""
CPUS_PER_GPU, CPUS_ON_CPU = 4, 2
"""CPUs for each rank if Slurm cannot be queried for the CPUs of the nodes, and CPUs for each rank of a job on CPU."""
CHOOSE_NODES = "launch.slurm.partition=NAME or launch.slurm.constraint=FEATURE"


@dataclass(frozen=True)
class Node:
    """What Slurm knows of a node."""

    name: str
    gpus: int
    cpus: int
    default_s: float = math.inf
    """Default time limit of a job, in seconds."""
    limit_s: float = math.inf
    """Largest time limit that a job may ask for, in seconds."""
    types: Mapping[str, int] = field(default_factory=dict)
    """Number of its GPUs of each type. Empty text for GPUs without a type."""


def find_nodes(launch: LaunchConfig) -> Optional[List[Node]]:
    """Return the nodes that the job can use. None if Slurm cannot be queried.

    Raises:
        ConfigError: there is no such partition, or no node of it has the features that the job asks for.
    """
    if not available():
        return None
    partition = setting_or_option(launch.slurm, "partition")
    where = ["--partition", partition] if partition else []
    form = answers.line_format("%N", "%P", "%f", "%c", "%L", "%l", "%G")
    listed = run_command("sinfo", "--noheader", "--Node", f"--format={form}", *where, check=False)
    rows = answers.rows(listed, 7)
    names.check_partitions(launch, [row[1].rstrip("*") for row in rows])
    nodes = read_nodes(listed, launch)
    if rows and not nodes:
        names.refuse_features(launch, {name for row in rows for name in row[2].split(",")} - {"(null)"})
    return nodes or None


def read_nodes(listed: str, launch: LaunchConfig) -> List[Node]:
    """Return the nodes that the job can use. Empty if there are none in the list.

    Args:
        listed: what sinfo prints: node, partition, features, CPUs, default and largest time limit, GRES. The default
            partition has a star after its name.
        launch: names the partition and the features that a node must have.
    """
    rows = answers.rows(listed, 7)
    if setting_or_option(launch.slurm, "partition") is None and any(row[1].endswith("*") for row in rows):
        rows = [row for row in rows if row[1].endswith("*")]
    found: Dict[str, Node] = {}
    for name, _, features, cpus, default, limit, gres in rows:
        if _fits(set(features.split(",")), setting_or_option(launch.slurm, "constraint") or ""):
            types: Dict[str, int] = {}
            for kind, number in GPUS.findall(gres):
                types[kind] = types.get(kind, 0) + int(number)
            gpus = sum(types.values())
            limit_s = seconds(limit)
            default_s = min(limit_s, seconds(default))
            if name in found:  # in several partitions, of which the job may get any
                default_s, limit_s = max(default_s, found[name].default_s), max(limit_s, found[name].limit_s)
            found[name] = Node(name, gpus, int(cpus) if cpus.isdigit() else 0, default_s, limit_s, types)
    return [found[name] for name in sorted(found)]


def _fits(features: Set[str], constraint: str) -> bool:
    """Return whether a node has features ``a&b``, ``a|b`` or ``[a|b]``. Other constraints count as fulfilled: Slurm
    checks them."""
    choices = constraint.removeprefix("[").removesuffix("]")
    if not choices or re.search(r"[][()*!]", choices):
        return True
    return any(features.issuperset(choice.split("&")) for choice in choices.split("|"))


def seconds(limit: str) -> float:
    """Return the seconds of a time limit in Slurm's notation: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Other words,
    such as UNLIMITED, infinite and n/a, mean no limit, and so does 0."""
    if not TIME.fullmatch(limit) or NO_LIMIT.fullmatch(limit):
        return math.inf
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, secs = (*parts, 0, 0)[:3]
    else:
        hours, minutes, secs = ((0, parts[0], 0), (0, *parts), tuple(parts))[len(parts) - 1]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + secs


def check_time(slurm: SlurmConfig, nodes: List[Node]) -> None:
    """Check that a job has time left before it is asked to stop, and print a note if its partition gives it less time.

    Args:
        nodes: the nodes that the job can use. Empty if Slurm cannot be queried.

    Raises:
        ConfigError: the job would be asked to stop when it begins.
    """
    stop, asked = slurm.stop_before_limit_s + ASKS_EARLIER_S, setting_or_option(slurm, "time")
    largest = max((node.limit_s for node in nodes), default=math.inf)
    given = max((node.default_s for node in nodes), default=math.inf) if asked is None else seconds(asked)
    if given <= stop:
        found = (
            "a job without launch.slurm.time gets a limit of"
            if asked is None
            else f"{assignment(slurm, 'time', asked)} is"
        )
        needed = int(min(-(-stop // 60) + 5, largest / 60))
        longer = f"set {assignment(slurm, 'time', str(needed))} (minutes)"
        raise ConfigError(
            f"{found} {given:.0f} s, but the run is asked to stop {slurm.stop_before_limit_s} to {stop} s before this "
            "limit", f"a time limit of more than {stop} s",
            f"{longer if needed * 60 > stop else 'launch.slurm.partition=NAME of one that allows longer jobs'}, "
            "or lower launch.slurm.stop_before_limit_s",
        )  # fmt: skip
    if asked is not None and given > largest:
        print(f"note: {assignment(slurm, 'time', asked)} is longer than the "
              f"{count(round(largest / 60), 'minute')} that the partition allows; the job may never start",
              file=sys.stderr)  # fmt: skip


def resolve_ranks(launch: LaunchConfig) -> bool:
    """Fill in, in place, the device, nproc_per_node and cpus_per_gpu from what the nodes have.

    If Slurm cannot be queried, each node is assumed to have its share of ``made_for_gpus``, or one GPU, and a note is
    printed. A job on CPU needs ``launch.device=cpu``, because nodes may have GPUs that Slurm does not know of.

    Returns:
        Whether Slurm could be asked.

    Raises:
        ConfigError: Slurm reports that the nodes have no GPUs, different numbers of GPUs, or fewer than the config asks
        for, or too few nodes or CPUs. Or the time limit is too short.
    """
    nodes = find_nodes(launch)
    check_time(launch.slurm, nodes or [])
    if launch.device is Device.auto:
        launch.device = Device.cpu if launch.slurm.profile is Profile.cpu else Device.cuda
    if launch.device is Device.cpu:
        launch.nproc_per_node = launch.nproc_per_node or 1
    else:
        nodes = _resolve_gpus(launch, nodes)
    _resolve_cpus(launch, nodes)
    _check_size(launch, nodes or [])
    return nodes is not None


def _resolve_gpus(launch: LaunchConfig, nodes: Optional[List[Node]]) -> Optional[List[Node]]:
    """Fill in nproc_per_node. Returns the nodes with enough GPUs."""
    asked = gpus_asked(launch)
    launch.nproc_per_node = launch.nproc_per_node or asked.per_node
    if asked.per_node is not None and (launch.nproc_per_node or 0) > asked.per_node:
        raise ConfigError(f"launch.nproc_per_node={launch.nproc_per_node}, but {asked.given} asks for "
                          f"{count(asked.per_node, 'GPU')} on each node", "at most one rank per GPU",
                          f"launch.nproc_per_node={asked.per_node}")  # fmt: skip
    if launch.slurm.gpus is GpuOption.none:
        if launch.nproc_per_node is None:
            raise ConfigError("launch.slurm.gpus=none, so Slurm does not know how many GPUs a node has",
                              "the number of GPUs on each node",
                              "launch.nproc_per_node=8, or launch.device=cpu")  # fmt: skip
        return nodes
    if nodes is None:
        if launch.nproc_per_node is None:
            launch.nproc_per_node = max(1, (launch.made_for_gpus or 1) // launch.nnodes)
            print(f"note: could not get the number of GPUs per node from Slurm; using {launch.nproc_per_node}. "
                  "Set launch.nproc_per_node=N to change this", file=sys.stderr)  # fmt: skip
        return None
    nodes = _with_type(launch.slurm, asked, nodes)
    most = max(node.gpus for node in nodes)
    if not most:
        number = launch.nproc_per_node or "N"
        fix = f"if its nodes have GPUs: launch.slurm.gpus=none launch.nproc_per_node={number}; for a job on CPU: "
        fix += f"launch.device=cpu; else: {CHOOSE_NODES}"
        raise ConfigError("Slurm reports no GPUs for the nodes that the job can use", "nodes with GPUs", fix)
    if launch.nproc_per_node is None:
        found = sorted({node.gpus for node in nodes if node.gpus})
        if len(found) > 1:
            kinds = ", ".join(f"{number} ({_few([n.name for n in nodes if n.gpus == number])})" for number in found)
            raise ConfigError(f"the nodes that the job can use have different numbers of GPUs: {kinds}",
                              "the same number of GPUs on every node",
                              f"{CHOOSE_NODES}, or launch.nproc_per_node={min(found)}")  # fmt: skip
        launch.nproc_per_node = found[0]
    of_type = f" of type {asked.kind}" if asked.kind else ""
    if most < launch.nproc_per_node:
        raise ConfigError(
            f"launch.nproc_per_node={launch.nproc_per_node}, but no node that the job can use has more than "
            f"{count(most, 'GPU')}{of_type}", "at most one rank per GPU", f"launch.nproc_per_node={most}",
        )  # fmt: skip
    return [node for node in nodes if node.gpus >= (launch.nproc_per_node or 0)]


def _with_type(slurm: SlurmConfig, asked: GpusAsked, nodes: List[Node]) -> List[Node]:
    """Return the nodes with their GPUs of the type that the job asks for.

    A site may translate types that sinfo does not show. If sbatch accepts such a type, all GPUs count.

    Raises:
        ConfigError: the nodes have GPUs, but not of this type, and sbatch refuses it.
    """
    wanted, known = asked.kind, {kind for node in nodes for kind in node.types}
    if wanted in known:
        return [replace(node, gpus=node.types.get(wanted, 0)) for node in nodes]
    if wanted is None or not known:
        return nodes
    where = {name: setting_or_option(slurm, name) for name in ("partition", "account", "qos", "constraint")}
    if not refusal([f"--{name}={value}" for name, value in where.items() if value] + [f"--gres=gpu:{wanted}:1"]):
        return nodes
    types = sorted(known - {""})
    near = nearest(wanted, types)[:1] or (types if len(types) == 1 else ["TYPE"])
    fix = asked.given.replace(wanted, near[0]) if types else "leave out the type, or launch.slurm.gpu_type=null"
    raise ConfigError(f"{asked.given}: no node that the job can use has GPUs of this type",
                      f"a type that sinfo shows: {', '.join(types)}" if types else "no type, because sinfo shows none",
                      fix)  # fmt: skip


def _resolve_cpus(launch: LaunchConfig, nodes: Optional[List[Node]]) -> None:
    """Fill in cpus_per_gpu, unless another setting says how many CPUs the job asks for.

    Args:
        nodes: the nodes that the job can use. None if Slurm cannot be queried.
    """
    slurm, ranks = launch.slurm, launch.nproc_per_node or 1
    asks = any(option_name(option) in CPU_OPTIONS for option in slurm.options)
    if slurm.cpus_per_gpu is None and slurm.cpus_per_node is None and not asks:
        on_cpu = launch.device is Device.cpu
        shares = [node.cpus // (ranks if on_cpu else node.gpus or ranks) for node in nodes or [] if node.cpus]
        if on_cpu:
            slurm.cpus_per_gpu = min(CPUS_ON_CPU, max(1, max(shares, default=CPUS_ON_CPU)))
        else:
            slurm.cpus_per_gpu = max(1, min(shares)) if shares else 0 if slurm.exclusive else CPUS_PER_GPU
    if (asked := cpus_asked(launch)) and asked < ranks * FEW_CPUS and not asks:
        print(f"note: the job asks for {count(asked, 'CPU')} on each node for {count(ranks, 'rank')}, fewer than "
              f"{FEW_CPUS} for each, which may be slow", file=sys.stderr)  # fmt: skip


def _check_size(launch: LaunchConfig, nodes: List[Node]) -> None:
    """Check that there are enough nodes with the CPUs of a job. Slurm would let some of these jobs wait forever.

    Raises:
        ConfigError: no node has so many CPUs, or fewer nodes than the job asks for have enough GPUs and CPUs.
    """
    asked, ranks = cpus_asked(launch) or 0, launch.nproc_per_node or 1
    fitting = [node for node in nodes if not node.cpus or node.cpus >= asked]
    if nodes and not fitting:
        most = max(node.cpus for node in nodes)
        fix = f"launch.slurm.cpus_per_node={most}" if launch.slurm.cpus_per_node else ""
        each = most // ranks
        fix = fix or (f"launch.slurm.cpus_per_gpu={each}" if each else f"launch.nproc_per_node={most}")
        raise ConfigError(f"the job asks for {count(asked, 'CPU')} on each node for {count(ranks, 'rank')}, but no "
                          f"node that it can use has more than {most}",
                          f"at most {count(most, 'CPU')}", f"{fix}, or {CHOOSE_NODES}")  # fmt: skip
    if nodes and len(fitting) < launch.nnodes:
        raise ConfigError(f"launch.nnodes={launch.nnodes}, but only {count(len(fitting), 'node')} that the job can use "
                          f"{'has' if len(fitting) == 1 else 'have'} enough GPUs and CPUs",
                          f"a job of at most {count(len(fitting), 'node')}",
                          f"launch.nnodes={len(fitting)}, or {CHOOSE_NODES}")  # fmt: skip


def _few(nodes: List[str]) -> str:
    return ", ".join(nodes[:3]) + (", …" if len(nodes) > 3 else "")
