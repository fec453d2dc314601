"""Fork Python programs from a process that has imported their libraries, instead of starting an interpreter for each.

An interpreter that imports torch, deepspeed and transformers needs four seconds of CPU time, more than the whole work
of a small run. In a ``with forking():`` block, ``subprocess.Popen`` forks programs of the form ``python -m MODULE …``,
and so do these programs in their turn: ``ftdist train``, torchrun, the ranks. ``forked.py`` says what stays the same.

The server is a child of the test process and has done nothing but import libraries. Programs that it cannot stand for
start an interpreter: other commands, other users and limits, and changed variables that libraries may read when they
are imported. Linux only; elsewhere, and with the environment variable ``FTDIST_TESTS_NO_FORK``, all do.
"""

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import pickle
import resource
import socket
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple
from unittest import mock

from tests.helpers import forked

LIBRARIES = (
    "deepspeed", "deepspeed.ops.op_builder.all_ops", "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.superoffload.superoffload_stage3", "deepspeed.module_inject.auto_ep_layer",
    "transformers.masking_utils", "transformers.models.auto.tokenization_auto",
    "transformers.integrations.deepspeed", "transformers.core_model_loading", "transformers.loss.loss_utils",
    "transformers.models.llama.modeling_llama", "transformers.generation.utils", "peft", "datasets",
    "safetensors.torch", "gguf", "hydra._internal.config_loader_impl", "omegaconf", "rich.table", "rich.progress",
    "psutil", "wandb", "requests",
)  # fmt: skip
"""What programs import. A library that is missing here costs time, nothing else."""
OF_TORCHRUN = (forked.TORCHRUN, "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend")
# ftdist sets TQDM_DISABLE for its programs, and tqdm reads it when it is imported. So does wandb with the last one.
ENV = {"TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_ERROR_REPORTING": "false"}
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
MESSAGE_BYTES = 1 << 20


class Server(NamedTuple):
    """The connection to a server."""

    connection: socket.socket
    env: Dict[str, str]
    inherited: Any
    process: "subprocess.Popen[bytes]"


def serve(connection: socket.socket) -> None:
    """Fork the programs that the test process asks for, until it ends."""
    path = sys.path[1:]  # before a library changes it
    for name in OF_TORCHRUN:
        importlib.import_module(name)
    dynamic_rendezvous = importlib.import_module("torch.distributed.elastic.rendezvous.dynamic_rendezvous")
    dynamic_rendezvous.get_method_name = _method_name
    of_torchrun = set(sys.modules)
    for name in LIBRARIES:
        importlib.import_module(name)
    from ftdist.engine.muon import import_muon

    import_muon()
    streams = {name: (s.encoding, s.errors) for name in ("stdin", "stdout", "stderr") if (s := getattr(sys, name))}
    image = forked.Image(dict(os.environ), path, of_torchrun, streams)
    _keep_code()
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 4)
        if not message:
            return
        between = os.fork()
        if between == 0:
            _start(*pickle.loads(message), image, files, connection)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


def _keep_code() -> None:
    """Read the code of ftdist's modules once. Forked programs import these modules anew, and to read their code is a
    quarter of the time of that."""
    root = Path(__file__).resolve().parents[2]
    files = [str(file) for place in ("ftdist", "launch") for file in (root / place).rglob("*.py")]
    codes = {file: SourceFileLoader("", file).get_code("") for file in files}
    read = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> Any:
        return codes.get(self.path) or read(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def _method_name(depth: int = 2) -> str:
    """Return the name of a calling function, for torchrun's log of events. torchrun asks ``inspect.stack``, which
    looks for the source of each frame in every module: 0.3 s of CPU time for each run."""
    return sys._getframe(depth).f_code.co_name


def _start(
    program: forked.Program, prepare: Any, image: forked.Image, files: List[int], connection: socket.socket
) -> None:
    """Fork the program from the process in between. When that ends, the test process adopts the program."""
    between = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.001)
    if os.getppid() != program.parent:  # it has ended
        os._exit(1)
    connection.send(os.getpid().to_bytes(4, "little"))
    forked.become(program, image, files[:3], files[3], (), prepare)


def _inherited() -> Tuple[Any, ...]:
    """Return what a process inherits from its parent beside files and variables."""
    umask = os.umask(0)
    os.umask(umask)
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    return os.getresuid(), os.getresgid(), os.getgroups(), umask, limits, os.sched_getaffinity(0)


@functools.lru_cache
def possible() -> bool:
    """Return whether programs can be forked on this machine."""
    if sys.platform != "linux" or not hasattr(subprocess, "_fork_exec") or os.environ.get("FTDIST_TESTS_NO_FORK"):
        return False
    check = "from tests.helpers import forked; forked.describe(['python'], {})"  # kernels and containers may forbid it
    return subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0


@functools.lru_cache
def _server(test_process: int) -> Server:
    """Return the server of this process. It is started with the first program."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {**os.environ, **ENV}
    with other:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.forkserver", str(other.fileno())], env=env,
            pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return Server(mine, env, _inherited(), process)


def _fork_or_execute(*arguments: Any) -> int:
    """Do in the test process what ``subprocess._fork_exec`` does, but let the server fork if that is the same."""
    call, server = forked.Call(*arguments), _server(os.getpid())
    program = call.program()
    if program is None or len(call.keep) > 1 or _inherited() != server.inherited:
        return forked.execute(call)
    if forked.changed(program.env, server.env):
        return forked.execute(call)
    try:
        message = pickle.dumps((program, call.prepare))
    except (pickle.PicklingError, AttributeError):  # its preexec_fn is not a function of a module
        return forked.execute(call)
    prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
    prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before))  # a cluster of Slurm sets it for its lifetime
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        socket.send_fds(server.connection, [message], [*call.files, call.errpipe_write])
        pid = int.from_bytes(server.connection.recv(4), "little")
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, before.value)
    assert pid, f"the fork server ended with {server.process.wait()}"
    return pid


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Fork the Python programs that are started inside the ``with`` block, where that gives the same program."""
    if not possible():
        yield
        return
    _server(os.getpid())
    with mock.patch.object(subprocess, "_fork_exec", _fork_or_execute):
        yield


if __name__ == "__main__":
    from tests.helpers import forkserver  # a module that forked programs can drop

    with socket.socket(fileno=int(sys.argv[1])) as _connection:
        forkserver.serve(_connection)
