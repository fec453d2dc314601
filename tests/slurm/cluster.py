"""A real Slurm with a few emulated nodes on this machine, from Debian's packages, without system services.

Each node is a slurmd in its own UTS and mount namespace, with its own host name and /etc/hosts. All nodes share the
network of the machine; node i has the address 127.0.1.i. Every daemon dies with the process that started it. Processes
that jobs leave behind become children of that process and are ended with the cluster. If that process is killed, a
reaper ends everything that has the cluster's SLURM_CONF, and removes its folder.
"""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import psutil

from tests.helpers.cli import start
from tests.helpers.reaper import start_reaper

IF_LOADED = 5
"""Factor of all time limits, which only end tests that hang. A machine may be busy with other tests."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
IN_NODE = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'
BANNER = "echo '*** Welcome to HAL | 2026 ***'; echo 'used 1234 of 5000 hours | project x'"
SETTINGS = """\
ClusterName=test
SlurmctldHost=controller(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket,cred_expire=5
StateSaveLocation={base}/state
SlurmctldPidFile={base}/slurmctld.pid
SlurmdSpoolDir={base}/spool-%n
SlurmdPidFile={base}/slurmd.%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_min_age_reserve=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
KillWait=15
MinJobAge=86400
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 State=UP
PartitionName=four Nodes=node1 PriorityTier=1 State=UP
"""


def _free_ports(count: int) -> List[int]:
    ports: List[int] = []
    for port in random.sample(range(20000, 32000), 500):  # below the ports of outgoing connections
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == count:
            break
    return ports


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Cluster:
    """A cluster that runs inside its ``with`` block."""

    def __init__(self, base: Path, gpus: Sequence[int] = (4, 2), cpus: int = 4) -> None:
        self.base, self.cpus, self.gpus = base, cpus, gpus
        self.names = [f"node{index + 1}" for index in range(len(gpus))]
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.env["SLURM_CONF"] = str(base / "slurm.conf")
        self.daemons: Dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        self._before = set(psutil.Process().children(recursive=True))
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        start_reaper({"SLURM_CONF": self.env["SLURM_CONF"]}, [str(self.base)])  # ended as the other children
        try:
            self._configure()
            files = [f"--{name}-file={self.base}/munge.{name}" for name in ("key", "pid", "seed", "log")]
            self._start("munged", ["munged", "-F", "--force", f"--socket={self.base}/munge.socket", *files])
            self.wait(lambda: (self.base / "munge.socket").exists(), 20, "munged")
            self._start("controller", self._in_node("controller", "slurmctld", "-D", "-i"))
            self.wait(lambda: self._listens(self.ports[0]), 20, "slurmctld")
            for name in self.names:
                self.start_node(name)
            self.wait(lambda: set(self.run("sinfo", "-hN", "-o", "%T").split()) == {"idle"}, 60, "nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for _round in range(50):
            left = [p for p in psutil.Process().children(recursive=True) if p not in self._before]
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=0.2)
            if not left:
                break
        for daemon in self.daemons.values():
            daemon.wait()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)

    def _configure(self) -> None:
        self.ports = _free_ports(len(self.names) + 1)
        (self.base / "state").mkdir()
        (self.base / "munge.key").write_bytes(os.urandom(64))
        (self.base / "munge.key").chmod(0o600)
        # The rendezvous port follows from the job's number, and all clusters on this machine share its ports.
        settings = SETTINGS.format(base=self.base, ports=self.ports, first_job=random.randrange(1, 100000))
        lines, gres, hosts = [settings], ["AutoDetect=off"], []
        for index, (name, gpus) in enumerate(zip(self.names, self.gpus, strict=True)):
            (self.base / f"spool-{name}").mkdir()
            hosts.append(f"127.0.1.{index + 1} {name}")
            has = f" Gres=gpu:{gpus} Features=gpus{gpus}" if gpus else ""
            lines.insert(1, f"NodeName={name} NodeAddr=127.0.1.{index + 1} NodeHostname={name} Port="
                            f"{self.ports[index + 1]} CPUs={self.cpus} RealMemory=8000{has}")  # fmt: skip
            for number in range(gpus):
                device = self.base / f"{name}-gpu{number}"
                device.symlink_to("/dev/null")  # slurmd requires a device file
                gres.append(f"NodeName={name} Name=gpu File={device}")
        settings, partitions = lines[0].split("PartitionName", 1)
        whole = [settings.rstrip(), *lines[1:], "PartitionName" + partitions]
        (self.base / "slurm.conf").write_text("\n".join(whole))
        (self.base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.base / "gres.conf").write_text("\n".join(gres) + "\n")
        names = [f"127.0.0.1 localhost controller {socket.gethostname()}", *hosts]
        (self.base / "hosts").write_text("\n".join(names) + "\n")

    def _in_node(self, name: str, *command: str) -> List[str]:
        return ["unshare", "--mount", "--uts", "sh", "-c", IN_NODE, str(self.base / "hosts"), name, *command]

    def _start(self, name: str, command: List[str]) -> None:
        with (self.base / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env, start_new_session=True,
                preexec_fn=_die_with_parent,
            )  # fmt: skip

    @staticmethod
    def _listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def start_node(self, name: str) -> None:
        self._start(name, self._in_node(name, "slurmd", "-D", "-N", name))

    def kill_node(self, name: str, power_off: bool = False) -> None:
        """Send SIGKILL to the slurmd of a node. Its jobs go on, as on a real node, unless ``power_off``."""
        daemon = self.daemons[name]
        host = Path(f"/proc/{daemon.pid}/ns/uts").readlink()
        daemon.kill()
        daemon.wait()
        for process in psutil.Process().children(recursive=True) if power_off else []:
            with contextlib.suppress(psutil.Error, OSError):
                if Path(f"/proc/{process.pid}/ns/uts").readlink() == host:
                    process.kill()

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until a condition holds. Fails after ``seconds``, or later on a busy machine."""
        deadline = time.monotonic() + IF_LOADED * seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{self.logs()}"
            time.sleep(0.25)  # most conditions start a command of Slurm

    def logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.base.glob("*.log")))

    def run(self, *command: str) -> str:
        """Run a command in an environment whose Slurm is this cluster. Returns its standard output."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30 * IF_LOADED)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def ftdist(self, *words: str, cwd: Optional[Path] = None) -> "subprocess.Popen[str]":
        """Start ``ftdist WORDS…`` in an environment whose Slurm is this cluster."""
        return start(*words, cwd=cwd, env=self.env)

    @contextlib.contextmanager
    def wrapped(self, folder: Path, sbatch: str = '"$real" "$@"') -> Iterator[None]:
        """Put wrappers before Slurm's commands, as sites do: each prints a banner before the command's own output.

        Args:
            folder: an empty folder.
            sbatch: what the wrapper of sbatch runs, for bash.
        """
        for name in ("sbatch", "squeue", "sinfo", "scontrol", "srun", "scancel"):
            run = sbatch if name == "sbatch" else 'exec "$real" "$@"'
            (folder / name).write_text(f"#!/bin/bash\nreal={shutil.which(name)}\n{BANNER}\n{run}\n")
            (folder / name).chmod(0o755)
        path = self.env["PATH"]
        self.env["PATH"] = f"{folder}:{path}"
        try:
            yield
        finally:
            self.env["PATH"] = path

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Stop the controller, so that Slurm does not answer."""
        self.daemons["controller"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.daemons["controller"].send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def without_names(self) -> Iterator[None]:
        """Take the names of the nodes out of /etc/hosts of all nodes."""
        hosts = self.base / "hosts"  # mounted on each node, so it is written in place
        names = hosts.read_text()
        hosts.write_text("127.0.0.1 localhost controller\n")
        try:
            yield
        finally:
            hosts.write_text(names)

    def job(self, job: str) -> Dict[str, str]:
        """Return the fields that ``scontrol show job`` prints."""
        words = self.run("scontrol", "-o", "show", "job", job).splitlines()[0].split(" ")
        return dict(word.split("=", 1) for word in words if "=" in word)

    def end_all_jobs(self) -> None:
        """Cancel all jobs and wait until none is left."""
        ids = self.run("squeue", "-h", "-o", "%A").split()
        for how in ([], ["--signal=KILL", "--full"]) if ids else []:
            subprocess.run(
                ["scancel", *how, *ids], env=self.env, capture_output=True, timeout=60
            )  # some may have ended
        self.wait(lambda: not self.run("squeue", "-h").strip(), 60, "the end of all jobs")
