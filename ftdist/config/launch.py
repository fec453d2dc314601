"""The part of the run config that says where and how ranks are started. Read with ``ftdist/config/schema.py``."""

import re
import shlex
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ftdist.base.errors import ConfigError


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class LaunchKind(Enum):
    local = "local"
    nodes = "nodes"
    deepspeed = "deepspeed"
    slurm = "slurm"


class Runner(Enum):
    pdsh = "pdsh"
    slurm = "slurm"
    openmpi = "openmpi"


class Profile(Enum):
    generic = "generic"
    infiniband = "infiniband"
    efa = "efa"
    cpu = "cpu"


class Container(Enum):
    none = "none"
    pyxis = "pyxis"
    apptainer = "apptainer"


@dataclass
class SlurmConfig:
    partition: Optional[str] = None
    """Partition, or several separated by commas."""
    account: Optional[str] = None
    """Account that is charged."""
    qos: Optional[str] = None
    """Quality of service."""
    constraint: Optional[str] = None
    """Features that a node must have, as ``--constraint`` takes them."""
    reservation: Optional[str] = None
    """Reservation to run in."""
    time: Optional[str] = None
    """Time limit as Slurm writes it: ``90`` (minutes), ``12:00:00``, ``2-00:00:00``; default the partition's."""
    cpus_per_node: Optional[int] = None
    """CPU cores on each node; default what the partition gives."""
    mem: Optional[str] = None
    """Host memory on each node, ``200G``; ``0`` is all of it."""
    exclusive: bool = False
    """Take whole nodes."""
    mail_user: Optional[str] = None
    """Where Slurm sends mail."""
    mail_type: str = "END,FAIL,REQUEUE"
    """What it sends mail about; only with mail_user."""
    profile: Profile = Profile.generic
    """Settings of the cluster's network and libraries: a file of ``slurm/profiles``. ``cpu`` is for nodes without
    GPUs."""
    modules: List[str] = field(default_factory=list)
    """Environment modules that are loaded before anything else."""
    env: Dict[str, str] = field(default_factory=dict)
    """Environment variables of the job, none of which may be one of the batch script's own (``RUN_DIR``, ``PYTHON`` …).
    From your shell the job gets what Slurm passes by default."""
    container: Container = Container.none
    """Run everything in a container: ``pyxis`` (``srun --container-image``) or ``apptainer``."""
    container_image: Optional[str] = None
    """Image, as the container runtime takes it."""
    container_mounts: List[str] = field(default_factory=list)
    """``HOST_PATH:PATH`` of folders that the container sees besides the run directory, the cache and what it sees
    by itself."""
    python: Optional[str] = None
    """Python on the nodes; default the one that submits, or ``python3`` in a container."""
    options: List[str] = field(default_factory=list)
    """Further ``sbatch`` options, one ``--name=value`` each."""
    srun_options: List[str] = field(default_factory=list)
    """Further ``srun`` options, one ``--name=value`` each."""
    stop_before_limit_s: int = 120
    """Seconds before the time limit at which the run is asked to save and requeue. Slurm may ask a minute earlier."""
    template: Optional[str] = None
    """Your own batch script template; default ``slurm/submit.sbatch.template``."""


@dataclass
class NodesConfig:
    hosts: List[str] = field(default_factory=list)
    """Machines, one ssh name each, the first of them leads; none: you start the printed command on each yourself."""
    address: Optional[str] = None
    """Name or address of the first machine as the others reach it; default the first of hosts."""
    port: int = 29500
    """TCP port on the first machine where the ranks meet."""
    ssh: str = "ssh"
    """Command and options that reach a host, e.g. ``ssh -p 2222``. It must not ask for a password."""
    join_timeout_s: int = 120
    """Seconds in which all machines must have joined."""


@dataclass
class DeepspeedConfig:
    hostfile: Optional[str] = None
    """One line a machine, ``NAME slots=RANKS``: fills in ``launch.nodes.hosts``, nnodes and nproc_per_node. The other
    settings of ``launch.nodes`` hold here too."""
    runner: Runner = Runner.pdsh
    """What DeepSpeed's launcher starts ranks with: ``pdsh`` (over ssh), ``slurm`` (srun) or ``openmpi`` (mpirun)."""
    options: List[str] = field(default_factory=list)
    """Further options of srun, one ``--name=value`` each. (mpirun takes its own from ``OMPI_MCA_…`` variables.)"""


@dataclass
class LaunchConfig:
    kind: LaunchKind = LaunchKind.local
    """``local``: this machine. ``nodes``: several machines without a scheduler. ``deepspeed``: the same through
    DeepSpeed's launcher. ``slurm``: a batch job."""
    device: Device = Device.auto
    """cuda, cpu, or what the machine (under Slurm: the partition) has."""
    nproc_per_node: Optional[int] = None
    """Ranks on each machine; default every visible GPU (under Slurm: every GPU of a node), or 1 on CPU."""
    nnodes: int = 1
    """Machines of the run."""
    threads_per_rank: Optional[int] = None
    """CPU threads of one rank; default the cores shared out among the ranks."""
    timeout_s: float = 1800.0
    """Seconds after which a collective that makes no progress fails the run."""
    stall_timeout_s: float = 300.0
    """Seconds that a rank may wait for the others in one collective of a training step or an evaluation: then the run
    ends and names the rank that is behind. Where one loads, saves or takes its first step, timeout_s is the limit."""
    max_restarts: int = 0
    """Times that torchrun starts all ranks again, from the last checkpoint, after one of them failed."""
    max_requeues: int = 10
    """Times that a Slurm job goes on by itself after its time limit, a preemption or the loss of a node; 0 never."""
    wait: bool = False
    """Follow a Slurm job to its end and return the run's exit code; a launcher that is killed stops the job. false
    returns when it is submitted."""
    trials_at_once: Optional[int] = None
    """Trials of a sweep that run at once; default as many as the GPUs of this machine hold, 1 on CPU, and under Slurm
    as many as Slurm starts."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    nodes: NodesConfig = field(default_factory=NodesConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)


ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWNED_NAMES = re.compile(
    "RUN_DIR|PYTHON|JOB|asked|ended|code|verdict|next|threads|attempt|head|port|node|rendezvous|rendezvous_id"
    "|SRUN_CPUS_PER_TASK|SLURM_(?:JOB|ARRAY).*"
)
"""Variables that the batch script relies on."""
OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?")
HOST = re.compile(r"([A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_\[:][\w.:%\[\]-]*", re.ASCII)
"""A machine's name or address for ssh, with the user before it. It goes into commands, so it is never an option."""
TIME = re.compile(r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+(:\d+){0,2}|UNLIMITED")
OWNED_OPTIONS = ("nodes", "ntasks", "ntasks-per-node", "output", "error", "open-mode", "chdir", "signal", "requeue",
                 "no-requeue", "array", "wrap", "parsable", "export",
                 "test-only", "wait", "help", "usage", "version")  # fmt: skip
"""sbatch options that the batch script relies on, a second value of which would break it; and those with which sbatch
submits nothing, or waits."""


def texts(where: str, value: Any) -> Iterator[Tuple[str, str]]:
    """Every text in a config value, with its key."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list):
        for item in value:
            yield from texts(where, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{where}.{key}", str(key)
            yield from texts(f"{where}.{key}", item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from texts(f"{where}.{name}", getattr(value, name))


def refuse_control_characters(where: str, value: Any) -> None:
    """Nothing that goes into a batch script or a command may end a line or be invisible.

    Raises:
        ConfigError: names the key.
    """
    for key, text in texts(where, value):
        if any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u2028\u2029" for character in text):
            raise ConfigError(f"{key} holds a control character: {text!r}", "text on one line")


def _check_options(where: str, options: List[str], owned: Tuple[str, ...]) -> None:
    for option in options:
        if not OPTION.fullmatch(option):
            raise ConfigError(f"{where} holds {option!r}", "--name or --name=value")
        name = option[2:].split("=", 1)[0]
        if any(known.startswith(name) for known in owned):  # Slurm takes an option's beginning for the option
            raise ConfigError(f"{where} holds --{name}", f"an option other than {', '.join(owned)}",
                              "they are ftdist's own: see slurm/submit.sbatch.template")  # fmt: skip


def check_launch(launch: LaunchConfig) -> None:
    """Check what must hold wherever the ranks are started.

    Raises:
        ConfigError: names the field, what it holds, what it may hold.
    """
    refuse_control_characters("launch", launch)
    slurm = launch.slurm
    for name, value, low in (
        ("max_restarts", launch.max_restarts, 0), ("max_requeues", launch.max_requeues, 0),
        ("trials_at_once", launch.trials_at_once, 1),
        ("slurm.cpus_per_node", slurm.cpus_per_node, 1), ("slurm.stop_before_limit_s", slurm.stop_before_limit_s, 1),
        ("nodes.port", launch.nodes.port, 1), ("nodes.join_timeout_s", launch.nodes.join_timeout_s, 1),
    ):  # fmt: skip
        if value is not None and value < low:
            raise ConfigError(f"launch.{name}={value}", f"at least {low}")
    for host in (*launch.nodes.hosts, *([launch.nodes.address] if launch.nodes.address else [])):
        if not HOST.fullmatch(host):
            raise ConfigError(f"launch.nodes has the machine {host!r}", "a host name or an address, or user@ before it",
                              "options of ssh belong in launch.nodes.ssh")  # fmt: skip
    try:
        ssh = shlex.split(launch.nodes.ssh)
    except ValueError:  # a quote that is not closed
        ssh = []
    if not ssh:
        raise ConfigError(f"launch.nodes.ssh={launch.nodes.ssh!r}", "a command and its options, as for a shell",
                          "launch.nodes.ssh='ssh -p 2222'")  # fmt: skip
    if launch.nodes.port > 65535:
        raise ConfigError(f"launch.nodes.port={launch.nodes.port}", "between 1 and 65535")
    if slurm.stop_before_limit_s > 65535:
        raise ConfigError(f"launch.slurm.stop_before_limit_s={slurm.stop_before_limit_s}", "at most 65535 (Slurm's)")
    if slurm.time is not None and not TIME.fullmatch(slurm.time):
        raise ConfigError(f"launch.slurm.time={slurm.time}", "minutes, HH:MM:SS or D-HH:MM:SS",
                          "quote what holds a colon: 'launch.slurm.time=\"12:00:00\"'")  # fmt: skip
    for name in slurm.env:
        if not ENV_NAME.fullmatch(name):
            raise ConfigError(f"launch.slurm.env has the name {name!r}", "letters, digits and _")
        if OWNED_NAMES.fullmatch(name):
            raise ConfigError(f"launch.slurm.env sets {name}", "a variable that is not the batch script's own",
                              "see slurm/submit.sbatch.template")  # fmt: skip
    _check_options("launch.slurm.options", slurm.options, OWNED_OPTIONS)
    _check_options("launch.deepspeed.options", launch.deepspeed.options, ("nodes", "ntasks", "nodelist"))
    if launch.deepspeed.options and launch.deepspeed.runner is not Runner.slurm:
        raise ConfigError(f"launch.deepspeed.options with runner={launch.deepspeed.runner.name}", "options of srun",
                          "launch.deepspeed.runner=slurm, or leave them out")  # fmt: skip
    _check_options("launch.slurm.srun_options", slurm.srun_options, ("nodes", "ntasks", "output", "error"))
    if (slurm.container is Container.none) != (slurm.container_image is None):
        raise ConfigError(
            f"launch.slurm.container={slurm.container.name} with container_image={slurm.container_image}",
            "both, or neither", "launch.slurm.container=pyxis launch.slurm.container_image=IMAGE",
        )  # fmt: skip
    if slurm.profile is Profile.cpu and launch.device is Device.cuda:
        raise ConfigError("launch.slurm.profile=cpu with launch.device=cuda", "launch.device=cpu")
