"""The section ``launch`` of the run config: where and how ranks are started. ``schema.py`` has the other sections."""

import re
import shlex
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ftdist.base.errors import ConfigError
from ftdist.base.shell import override_list


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
    singularity = "singularity"


class GpuOption(Enum):
    gpus_per_node = "gpus_per_node"
    gres = "gres"
    gpus = "gpus"
    gpus_per_task = "gpus_per_task"
    none = "none"


@dataclass
class SlurmConfig:
    partition: Optional[str] = None
    """Partition, or several partitions separated by commas."""
    account: Optional[str] = None
    """Account that the job is charged to."""
    qos: Optional[str] = None
    """Quality of service."""
    constraint: Optional[str] = None
    """Features that a node must have, as ``--constraint`` takes them."""
    reservation: Optional[str] = None
    """Reservation to run in."""
    time: Optional[str] = None
    """Time limit in Slurm's notation: ``90`` (minutes), ``12:00:00``, ``2-00:00:00``, or ``0`` for none. null: the
    limit of the partition."""
    cpus_per_node: Optional[int] = None
    """CPUs on each node, as Slurm counts them: cores, or hardware threads. null: cpus_per_gpu for each rank."""
    cpus_per_gpu: Optional[int] = None
    """CPUs for each GPU, that is for each rank. Ranks are bound to cores near their GPU, with one thread for each core.
    null: the CPUs of a node divided by its GPUs (4 if Slurm cannot be queried), or up to 2 on CPU. 0: the job does not
    ask for CPUs, for sites that allocate whole nodes."""
    gpus: GpuOption = GpuOption.gpus_per_node
    """How the job asks for GPUs: ``--gpus-per-node=N``, ``--gres=gpu:N``, ``--gpus=N`` for all nodes together, or
    ``--gpus-per-task=N``. ``none``: it does not ask for GPUs, for sites whose Slurm does not know the GPUs or allocates
    whole nodes; then set ``launch.nproc_per_node``."""
    gpu_type: Optional[str] = None
    """Type of the GPUs, where a site requires it: ``h100`` asks for ``h100:N``."""
    mem: Optional[str] = None
    """Host memory on each node, such as ``200G``. ``0``: all of it."""
    exclusive: bool = False
    """Use whole nodes."""
    mail_user: Optional[str] = None
    """Address that Slurm sends mail to."""
    mail_type: str = "END,FAIL,REQUEUE"
    """Events that Slurm sends mail about. Used only with mail_user."""
    address_suffix: Optional[str] = None
    """Suffix of the names that nodes have in the fast network, if a site has such names: with ``i``, the first node
    ``node1`` is reached as ``node1i``. The name without the suffix is tried next."""
    profile: Profile = Profile.generic
    """Settings for the network and the libraries of the cluster: a file in ``slurm/profiles``. ``cpu`` is for nodes
    without GPUs."""
    modules: List[str] = field(default_factory=list)
    """Environment modules that are loaded first."""
    setup: List[str] = field(default_factory=list)
    """Shell commands that the job runs after that, in order, such as ``source /opt/env/bin/activate``. A command that
    fails ends the job."""
    env: Dict[str, str] = field(default_factory=dict)
    """Environment variables of the job. Variables that the batch script uses itself (``RUN_DIR``, ``PYTHON`` …) are
    refused. The job also gets the environment variables that sbatch exports by default: normally your whole
    environment."""
    container: Container = Container.none
    """Run everything in a container: ``pyxis`` (``srun --container-image``), ``apptainer``, or ``singularity`` where
    that command has its older name."""
    container_image: Optional[str] = None
    """Image, in the notation of the container runtime."""
    container_mounts: List[str] = field(default_factory=list)
    """Folders to mount in the container, as ``HOST_PATH:PATH``, besides the run directory, the cache, the files of the
    model and the data, and what the container runtime mounts by itself."""
    python: Optional[str] = None
    """Python interpreter on the nodes. null: the one that submits the job, or ``python3`` in a container."""
    options: List[str] = field(default_factory=list)
    """Further options of ``sbatch``, each as ``--name=value``. An option here replaces the one that ftdist would write
    from another setting."""
    srun_options: List[str] = field(default_factory=list)
    """Further options of ``srun``, each as ``--name=value``."""
    stop_before_limit_s: int = 120
    """Seconds before the time limit at which the run is asked to save and to requeue. Slurm may ask up to a minute
    earlier."""
    template: Optional[str] = None
    """Your own template of the batch script. null: ``slurm/submit.sbatch.template``."""


@dataclass
class NodesConfig:
    hosts: List[str] = field(default_factory=list)
    """Machines of the run, as names for ssh. The first one is the main machine. Empty: you run the printed command on
    each machine yourself."""
    address: Optional[str] = None
    """Name or address at which the other machines reach the first one. null: the first of hosts."""
    port: int = 29500
    """TCP port of the first machine at which the ranks meet."""
    ssh: str = "ssh"
    """Command and options that connect to a host, such as ``ssh -p 2222``. It must not ask for a password."""
    join_timeout_s: int = 120
    """Seconds within which all machines must join the run."""


@dataclass
class DeepspeedConfig:
    hostfile: Optional[str] = None
    """Hostfile with one line ``NAME slots=RANKS`` for each machine. It sets ``launch.nodes.hosts``, nnodes and
    nproc_per_node. The other settings of ``launch.nodes`` apply as well."""
    runner: Runner = Runner.pdsh
    """Program that DeepSpeed's launcher uses to start the ranks: ``pdsh`` (over ssh), ``slurm`` (srun) or ``openmpi``
    (mpirun)."""
    options: List[str] = field(default_factory=list)
    """Further options of srun, each as ``--name=value``. mpirun takes its options from ``OMPI_MCA_…`` variables."""


@dataclass
class LaunchConfig:
    kind: LaunchKind = LaunchKind.local
    """``local``: this machine. ``nodes``: several machines without a scheduler. ``deepspeed``: several machines,
    through DeepSpeed's launcher. ``slurm``: a batch job."""
    device: Device = Device.auto
    """``cuda`` or ``cpu``. ``auto``: ``cuda`` if the machine has GPUs. Under Slurm: ``cuda``, or ``cpu`` with
    slurm.profile=cpu."""
    nproc_per_node: Optional[int] = None
    """Ranks on each machine. null: one for each visible GPU (under Slurm: each GPU of a node), or 1 on CPU."""
    nnodes: int = 1
    """Number of machines of the run."""
    made_for_gpus: Optional[int] = None
    """GPUs that the other settings are made for. A run on fewer GPUs prints a note. If Slurm cannot be queried
    for the GPUs of a node, each node is assumed to have its share of them."""
    threads_per_rank: Optional[int] = None
    """CPU threads of each rank. null: the cores of the machine, divided among its ranks."""
    timeout_s: float = 1800.0
    """Seconds after which a collective without progress fails the run."""
    stall_timeout_s: float = 300.0
    """Seconds that a rank may wait for the others in one collective of a training step or an evaluation. After that the
    run ends and names the rank that is behind. While ranks load, save, or take their first step, timeout_s is the
    limit."""
    max_restarts: int = 0
    """Maximum number of times that torchrun starts all ranks again, from the last checkpoint, after a rank has
    failed."""
    max_requeues: int = 10
    """Maximum number of times that a Slurm job continues by itself after its time limit, a preemption or the loss of a
    node. 0: never."""
    wait: bool = False
    """Follow a Slurm job to its end and return the exit code of the run. If the launcher is killed, the job is stopped.
    false: return when the job is submitted."""
    trials_at_once: Optional[int] = None
    """Number of trials of a sweep that run at the same time. null: as many as fit on the GPUs of this machine, or 1 on
    CPU; under Slurm, as many as Slurm starts."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    nodes: NodesConfig = field(default_factory=NodesConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)


ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWNED_NAMES = re.compile(
    "RUN_DIR|PYTHON|JOB|old|asked|ended|begun|code|verdict|next|attempt|head|names|port|node|rendezvous|rendezvous_id|reporter"
    "|SRUN_CPUS_PER_TASK|SLURM_(?:JOB|ARRAY).*"
)
"""Variables that the batch script uses itself."""
OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?")
HOST = re.compile(r"([A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_\[:][\w.:%\[\]-]*", re.ASCII)
"""Name or address of a machine for ssh, with an optional user. It becomes part of a command and must not look like an
option."""
SUFFIX = re.compile(r"[A-Za-z0-9.-]+", re.ASCII)
NO_LIMIT = re.compile("0+|infinite|unlimited", re.IGNORECASE)
"""What Slurm takes for no time limit."""
TIME = re.compile(r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+(:\d+){0,2}|" + NO_LIMIT.pattern, re.IGNORECASE)
OWNED_OPTIONS = ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket",
                 "output", "error", "open-mode", "chdir", "signal", "requeue", "no-requeue", "array", "wrap",
                 "parsable", "export")  # fmt: skip
"""Options of sbatch that ftdist sets itself, in slurm/submit.sbatch.template or when it calls sbatch."""
WITHOUT_A_JOB = ("test-only", "wait", "help", "usage", "version", "clusters")
"""Options that make sbatch submit nothing, wait for the job, or submit it where squeue does not show it."""


def texts(where: str, value: Any) -> Iterator[Tuple[str, str]]:
    """Iterate over all texts in a config value, each with its dotted key.

    Args:
        where: The key of the value.
        value: A text, a list, a dict, or a part of the config.
    """
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
    """Refuse texts with line breaks and other control characters: they become part of a batch script or a command.

    Raises:
        ConfigError: There is such a text. The message names its key.
    """
    for key, text in texts(where, value):
        if any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u2028\u2029" for character in text):
            raise ConfigError(f"{key} holds a control character: {text!r}", "text on one line",
                              f"remove line breaks and other control characters from {key}")  # fmt: skip


def _check_options(where: str, options: List[str], owned: Tuple[str, ...], owner: str = "ftdist") -> None:
    for option in options:
        if not OPTION.fullmatch(option):
            raise ConfigError(f"{where} holds {option!r}", "--name or --name=value",
                              override_list(where, ["--name=value"]))  # fmt: skip
        name = option[2:].split("=", 1)[0]
        if any(known.startswith(name) for known in owned):  # Slurm accepts the beginning of an option's name
            ends = any(known.startswith(name) for known in WITHOUT_A_JOB)
            why = "with it, sbatch submits nothing, waits, or uses another cluster" if ends else f"{owner} sets it"
            raise ConfigError(f"{where} holds --{name}", f"an option other than {', '.join(owned)}",
                              f"leave out --{name}: {why}")  # fmt: skip


def _check_slurm(slurm: SlurmConfig) -> None:
    if slurm.stop_before_limit_s > 65535:
        raise ConfigError(
            f"launch.slurm.stop_before_limit_s={slurm.stop_before_limit_s}", "at most 65535, which is Slurm's limit",
            "launch.slurm.stop_before_limit_s=600",
        )  # fmt: skip
    if slurm.time is not None and not TIME.fullmatch(slurm.time):
        raise ConfigError(f"launch.slurm.time={slurm.time}", "minutes, HH:MM:SS, D-HH:MM:SS, or 0 for none",
                          "launch.slurm.time=12:00:00")  # fmt: skip
    if slurm.address_suffix is not None and not SUFFIX.fullmatch(slurm.address_suffix):
        raise ConfigError(f"launch.slurm.address_suffix={slurm.address_suffix}", "letters, digits, - and .",
                          "launch.slurm.address_suffix=i")  # fmt: skip
    for name in slurm.env:
        if not ENV_NAME.fullmatch(name):
            raise ConfigError(f"launch.slurm.env has the name {name!r}", "letters, digits and _",
                              "rename the variable")  # fmt: skip
        if OWNED_NAMES.fullmatch(name):
            raise ConfigError(f"launch.slurm.env sets {name}", "a variable that the batch script does not use itself",
                              "use another name, which slurm/submit.sbatch.template does not set")  # fmt: skip


def check_launch(launch: LaunchConfig) -> None:
    """Check the section ``launch`` independently of the machine.

    Raises:
        ConfigError: A value is wrong. The message names the field, its value, and the allowed values.
    """
    refuse_control_characters("launch", launch)
    slurm = launch.slurm
    for name, value, low in (
        ("max_restarts", launch.max_restarts, 0), ("max_requeues", launch.max_requeues, 0),
        ("trials_at_once", launch.trials_at_once, 1), ("made_for_gpus", launch.made_for_gpus, 1),
        ("slurm.cpus_per_node", slurm.cpus_per_node, 1), ("slurm.cpus_per_gpu", slurm.cpus_per_gpu, 0),
        ("slurm.stop_before_limit_s", slurm.stop_before_limit_s, 1),
        ("nodes.port", launch.nodes.port, 1), ("nodes.join_timeout_s", launch.nodes.join_timeout_s, 1),
    ):  # fmt: skip
        if value is not None and value < low:
            raise ConfigError(f"launch.{name}={value}", f"at least {low}", f"launch.{name}={low}")
    for host in (*launch.nodes.hosts, *([launch.nodes.address] if launch.nodes.address else [])):
        if not HOST.fullmatch(host):
            raise ConfigError(f"launch.nodes has the machine {host!r}", "HOST or USER@HOST",
                              "set options of ssh in launch.nodes.ssh")  # fmt: skip
    try:
        ssh = shlex.split(launch.nodes.ssh)
    except ValueError:  # a quote that is not closed
        ssh = []
    if not ssh:
        raise ConfigError(f"launch.nodes.ssh={launch.nodes.ssh!r}", "a command and its options, as for a shell",
                          "launch.nodes.ssh='ssh -p 2222'")  # fmt: skip
    if launch.nodes.port > 65535:
        raise ConfigError(f"launch.nodes.port={launch.nodes.port}", "between 1 and 65535",
                          "launch.nodes.port=29500")  # fmt: skip
    _check_slurm(slurm)
    _check_options("launch.slurm.options", slurm.options, (*OWNED_OPTIONS, *WITHOUT_A_JOB))
    _check_options("launch.deepspeed.options", launch.deepspeed.options, ("nodes", "ntasks", "nodelist"),
                   "ftdist or DeepSpeed's launcher")  # fmt: skip
    if launch.deepspeed.options and launch.deepspeed.runner is not Runner.slurm:
        raise ConfigError(f"launch.deepspeed.options has no effect with runner={launch.deepspeed.runner.name}",
                          "options of srun only with launch.deepspeed.runner=slurm",
                          "leave them out, or set launch.deepspeed.runner=slurm")  # fmt: skip
    _check_options("launch.slurm.srun_options", slurm.srun_options, ("nodes", "ntasks", "output", "error"))
    if (slurm.container is Container.none) != (slurm.container_image is None):
        raise ConfigError(
            f"launch.slurm.container={slurm.container.name}, but container_image={slurm.container_image or 'null'}",
            "both settings, or neither of them", "launch.slurm.container=pyxis launch.slurm.container_image=IMAGE",
        )  # fmt: skip
    if slurm.profile is Profile.cpu and launch.device is Device.cuda:
        raise ConfigError(
            "launch.slurm.profile=cpu is for nodes without GPUs, but launch.device=cuda", "launch.device=cpu",
            "launch.device=cpu, or leave out launch.slurm.profile",
        )  # fmt: skip
