"""The verb ``_start_node``, which each task of a job runs: find the other nodes, divide the CPUs, become torchrun."""

import argparse
import os
import platform
import sys
from dataclasses import replace

from ftdist.base.counts import count
from ftdist.base.process import RANK_CPUS
from ftdist.config.frozen import load_config
from ftdist.config.launch import Device, LaunchConfig
from ftdist.launch.attempt import cpus, machine
from ftdist.launch.attempt.command import Rendezvous, rank_program, torchrun_command
from ftdist.launch.backends.slurm import meeting
from ftdist.launch.backends.slurm.hostlist import expand
from ftdist.launch.backends.slurm.script import cpus_asked
from ftdist.run.rundir import RunDir


def add_start_node_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--attempt", type=int, required=True, help="number of the attempt")
    parser.add_argument("--endpoint", required=True, help="name of the first node, and the port: NAME:PORT")
    parser.add_argument("--id", required=True, help="a name that only the nodes of this attempt share")
    parser.add_argument("--names", default="", help="more names and addresses of the first node")


def start_node(args: argparse.Namespace) -> int:
    """Replace this process by the torchrun of one node of a job.

    Raises:
        LaunchError: the nodes do not reach each other. The message names the node and the host name.
    """
    run = RunDir.open(args.run_dir)
    launch = load_config(run.config).launch
    nodes = expand(os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"])
    node, first = os.environ.get("SLURMD_NODENAME", platform.node()), os.environ["SLURM_NODEID"] == "0"
    head, _, port = args.endpoint.rpartition(":")
    timeout_s = launch.nodes.join_timeout_s
    if first:
        met = meeting.receive(int(port), set(nodes) - {node}, node, timeout_s)
    else:
        names = meeting.names_of(head, launch.slurm.address_suffix, args.names.split())
        met = meeting.join(names, int(port), node, timeout_s)
    if interface := meeting.gloo_interface(met.own):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    divide_cpus(launch, node)
    host = f"[{met.first}]" if ":" in met.first else met.first
    rendezvous = Rendezvous(f"{host}:{port}", args.id, str(int(first)), timeout_s, met.own)
    command = torchrun_command(launch, rank_program(args.run_dir, args.attempt), rendezvous)
    sys.stdout.flush()
    os.execv(command[0], command)


def divide_cpus(launch: LaunchConfig, node: str) -> None:
    """Divide the CPUs that Slurm has granted among the ranks: set the variables that bind them and limit their threads.

    Args:
        launch: resolved settings. ``threads_per_rank``, or OMP_NUM_THREADS in ``slurm.env``, is kept.
        node: name of this node, for messages.
    """
    assert launch.nproc_per_node is not None
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    gpus = machine.gpu_addresses() if launch.device is Device.cuda else []
    topology = cpus.read_topology(os.sched_getaffinity(0), gpus, launch.nproc_per_node)
    division = cpus.divide(topology, launch.nproc_per_node, int(given) if given else None)
    kept = launch.threads_per_rank or launch.slurm.env.get("OMP_NUM_THREADS")
    if kept is not None and str(kept).isdecimal():
        division = replace(division, threads=int(kept))
    print(f"{node}: {division.describe()}", file=sys.stderr)
    if division.each < cpus.FEW_CPUS:
        fix = f"launch.slurm.cpus_per_gpu={cpus.FEW_CPUS} asks for more"
        if (asked := cpus_asked(launch) or 0) >= cpus.FEW_CPUS * launch.nproc_per_node:
            fix = f"The job asked for {count(asked, 'CPU')} on each node, but can use fewer there"
        print(f"note: {node} has {division.each or 'less than one'} CPU for each rank; it may be slow. {fix}",
              flush=True)  # fmt: skip
    if division.cpus:
        os.environ[RANK_CPUS] = ";".join(",".join(map(str, share)) for share in division.cpus)
    if kept is None:
        os.environ["OMP_NUM_THREADS"] = str(division.threads)
