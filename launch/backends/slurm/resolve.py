"""Fit a config to the nodes of a Slurm partition: the device, and the number of ranks on each node."""

import math
import re
import sys
from typing import Dict, List, Optional, Set

from ftdist.base.errors import ConfigError
from ftdist.config.launch import Device, GpuOption, LaunchConfig, Profile, SlurmConfig
from ftdist.launch.backends.slurm import answers
from ftdist.launch.backends.slurm.client import available, run_command

GPUS = re.compile(r"gpu:(?:[^:,()]+:)?(\d+)")
ASKS_EARLIER_S = 60
"""Seconds by which Slurm's signal before the time limit may come early."""
CHOOSE_NODES = "launch.slurm.partition=NAME or launch.slurm.constraint=FEATURE"


def gpu_counts(launch: LaunchConfig) -> Optional[Dict[int, List[str]]]:
    """Return the names of the nodes that the job may get, by number of GPUs. None if Slurm cannot be asked."""
    if not available():
        return None
    where = ["--partition", launch.slurm.partition] if launch.slurm.partition else []
    listed = run_command("sinfo", "--noheader", "--Node", f"--format={answers.line_format('%N', '%P', '%f', '%G')}",
                         *where, check=False)  # fmt: skip
    return count_gpus(listed or "", launch) or None


def count_gpus(listed: str, launch: LaunchConfig) -> Dict[int, List[str]]:
    """Return the names of the nodes that the job may get, by number of GPUs.

    Args:
        listed: what sinfo prints: node, partition, features, GRES. The default partition has a star after its name.
        launch: names the partition and the features that a node must have.
    """
    rows = answers.rows(listed, 4)
    if launch.slurm.partition is None and any(row[1].endswith("*") for row in rows):
        rows = [row for row in rows if row[1].endswith("*")]
    counts: Dict[int, Set[str]] = {}
    for name, _, features, gres in rows:
        if _fits(set(features.split(",")), launch.slurm.constraint or ""):
            counts.setdefault(sum(int(number) for number in GPUS.findall(gres)), set()).add(name)
    return {number: sorted(nodes) for number, nodes in sorted(counts.items())}


def _fits(features: Set[str], constraint: str) -> bool:
    """Return whether a node has features ``a&b``, ``a|b`` or ``[a|b]``. Other constraints count as fulfilled: Slurm
    checks them."""
    choices = constraint.removeprefix("[").removesuffix("]")
    if not choices or re.search(r"[][()*!]", choices):
        return True
    return any(features.issuperset(choice.split("&")) for choice in choices.split("|"))


def seconds(limit: str) -> float:
    """Return the seconds of a time limit in Slurm's notation: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S, UNLIMITED."""
    if limit == "UNLIMITED":
        return math.inf
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, secs = (*parts, 0, 0)[:3]
    else:
        hours, minutes, secs = ((0, parts[0], 0), (0, *parts), tuple(parts))[len(parts) - 1]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + secs


def check_time(slurm: SlurmConfig) -> None:
    """Check that a job has time left before it is asked to stop.

    Raises:
        ConfigError: it would be asked to stop when it begins.
    """
    stop = slurm.stop_before_limit_s + ASKS_EARLIER_S
    if slurm.time is not None and seconds(slurm.time) <= stop:
        needed = -(-stop // 60) + 5
        raise ConfigError(
            f"launch.slurm.time={slurm.time} is {seconds(slurm.time):.0f} s, but the run is asked to stop "
            f"{slurm.stop_before_limit_s} s before that, or up to {ASKS_EARLIER_S} s earlier",
            f"a time limit of more than {stop} s", f"launch.slurm.time={needed} (minutes), or a smaller "
            "launch.slurm.stop_before_limit_s",
        )  # fmt: skip


def resolve_ranks(launch: LaunchConfig) -> None:
    """Fill in, in place, device and nproc_per_node from what the nodes have.

    If Slurm cannot be asked, one GPU per node is assumed, and a note is printed.

    Raises:
        ConfigError: the nodes have no GPU, different numbers of GPUs, or fewer than the config asks for; or the job
            would have no time.
    """
    check_time(launch.slurm)
    unknown = launch.slurm.gpus is GpuOption.none  # to Slurm
    if unknown and launch.device is not Device.cpu and launch.nproc_per_node is None:
        raise ConfigError(
            "launch.slurm.gpus=none, so Slurm does not know how many GPUs a node has",
            "the number of GPUs on each node",
            "launch.nproc_per_node=8, or launch.device=cpu",
        )
    counts = gpu_counts(launch) if launch.device is not Device.cpu and not unknown else None
    if launch.device is Device.auto:
        without = launch.slurm.profile is Profile.cpu or (counts is not None and set(counts) == {0})
        launch.device = Device.cpu if without else Device.cuda
    if launch.device is Device.cpu or counts is None:
        if launch.nproc_per_node is None and launch.device is Device.cuda:
            print("note: could not get the number of GPUs per node from Slurm; using 1. "
                  "Set launch.nproc_per_node=N to change this", file=sys.stderr)  # fmt: skip
        launch.nproc_per_node = launch.nproc_per_node or 1
    elif not any(counts):
        raise ConfigError(
            "launch.device=cuda, but no node that the job may get has a GPU that Slurm knows of",
            "nodes with GPUs",
            f"{CHOOSE_NODES}, or launch.device=cpu. On a site without GRES, whose nodes have GPUs that Slurm does not "
            "know of: launch.slurm.gpus=none launch.nproc_per_node=N",
        )
    elif launch.nproc_per_node is None:
        found = [number for number in counts if number]
        if len(found) > 1:
            kinds = ", ".join(f"{number} ({_few(counts[number])})" for number in found)
            raise ConfigError(f"the nodes that the job may get have different numbers of GPUs: {kinds}",
                              "the same number of GPUs on every node",
                              f"{CHOOSE_NODES}, or launch.nproc_per_node={min(found)}")  # fmt: skip
        launch.nproc_per_node = found[0]
    elif max(counts) < launch.nproc_per_node:
        raise ConfigError(
            f"launch.nproc_per_node={launch.nproc_per_node}, but no node that the job may get has more than "
            f"{max(counts)} GPUs", "at most one rank per GPU", f"launch.nproc_per_node={max(counts)}",
        )  # fmt: skip
    if launch.threads_per_rank is None and launch.slurm.cpus_per_node is not None:
        launch.threads_per_rank = max(1, launch.slurm.cpus_per_node // launch.nproc_per_node)


def _few(nodes: List[str]) -> str:
    return ", ".join(nodes[:3]) + (", …" if len(nodes) > 3 else "")
