"""Turn a forked process into the Python program that ``subprocess.Popen`` is about to execute.

The program finds what a new interpreter would give it: its parent, command line, environment, working folder, session,
signal handlers, open files, streams, exit code, and modules of ftdist that nothing has used yet. It forks the Python
programs that it starts in the same way.

What differs: libraries are imported already; all forked processes have one hash seed; the program ends without the
interpreter's own shutdown.
"""

import atexit
import builtins
import codecs
import contextlib
import ctypes
import gc
import io
import logging
import multiprocessing.util
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple

VARIABLES = frozenset({
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY", "TOKENIZERS_PARALLELISM",
    "TQDM_DISABLE", "PYTHONSAFEPATH", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TMPDIR", "PATH", "COLUMNS",
    "PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_NVML_BASED_CUDA_CHECK", "PYTHONIOENCODING",
})  # fmt: skip
"""Variables of a forked program that may differ from those with which the libraries were imported. The libraries read
them later, or on a machine without a GPU they do not use them."""
PREFIXES = ("FTDIST_", "TORCHELASTIC_", "WANDB_")
TORCHRUN = "torch.distributed.run"
PR_SET_MM, PR_SET_MM_MAP = 35, 14
STAT = {"start_code": 26, "end_code": 27, "start_data": 45, "end_data": 46, "start_brk": 47, "start_stack": 28}
"""Fields of /proc/self/stat, numbered as in ``man 5 proc``."""


class Program(NamedTuple):
    """``python [-u] -m MODULE …``."""

    argv: List[str]
    env: Dict[str, str]
    cwd: str
    new_session: bool
    parent: int
    """Process id of its parent."""

    @property
    def place(self) -> int:
        """The place of the module's name in ``argv``."""
        return self.argv.index("-m") + 1


class Call(NamedTuple):
    """The arguments of ``subprocess._fork_exec``, by which ``subprocess.Popen`` starts every program."""

    args: Any
    executables: Any
    close_others: Any
    keep: Any
    cwd: Any
    env: Any
    p2cread: int
    p2cwrite: int
    c2pread: int
    c2pwrite: int
    errread: int
    errwrite: int
    errpipe_read: int
    errpipe_write: int
    restore_signals: Any
    new_session: Any
    group: Any
    gid: Any
    gids: Any
    uid: Any
    umask: Any
    prepare: Any
    vfork: Any = False

    @property
    def files(self) -> List[int]:
        """Standard input, output and error of the program."""
        pipes = (self.p2cread, self.c2pwrite, self.errwrite)
        return [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]

    def program(self) -> Optional[Program]:
        """Return the program, or None if it is another one than ``python -m``, or needs something that is not usual."""
        argv = [os.fsdecode(word) for word in self.args]
        if argv[:1] != [sys.executable] or (argv[1:2] != ["-m"] and argv[1:3] != ["-u", "-m"]):
            return None
        unusual = (self.group, self.gid, self.gids, self.uid, self.umask) != (-1, None, None, None, -1)
        cwd = Path.cwd() / os.fsdecode(self.cwd or "")
        if unusual or not self.close_others or not cwd.is_dir():
            return None
        pairs = [f"{k}={v}" for k, v in os.environ.items()] if self.env is None else map(os.fsdecode, self.env)
        return Program(argv, dict(pair.split("=", 1) for pair in pairs), str(cwd), bool(self.new_session), os.getpid())


class Image(NamedTuple):
    """What the forked processes have in common."""

    env: Dict[str, str]
    """The environment with which the libraries were imported."""
    path: List[str]
    """``sys.path`` without its first place."""
    torchrun: Set[str]
    """The modules that torchrun needs."""
    streams: Dict[str, Tuple[str, str]]
    """Encoding and error handler of standard input, output and error, without PYTHONIOENCODING."""


class _Memory(ctypes.Structure):
    """``struct prctl_mm_map`` of linux/prctl.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in (
            "start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack", "arg_start",
            "arg_end", "env_start", "env_end", "auxv",
        )), ("auxv_size", ctypes.c_uint32), ("exe_fd", ctypes.c_uint32),
    ]  # fmt: skip


_execute: Any = getattr(subprocess, "_fork_exec", None)  # before Python 3.11 there is none
_kept: List[Any] = []
_hidden: Dict[str, types.ModuleType] = {}
_image: Optional[Image] = None


def changed(env: Dict[str, str], before: Dict[str, str]) -> List[str]:
    """Return the names of the variables that differ and that libraries may have read when they were imported."""
    names = {name for name in env.keys() | before.keys() if env.get(name) != before.get(name)}
    return sorted(name for name in names - VARIABLES if not name.startswith(PREFIXES))


def describe(argv: Sequence[str], env: Dict[str, str]) -> None:
    """Make /proc show this command line and this environment for the process.

    Raises:
        OSError: the kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    memory = _Memory(**{name: int(fields[number - 3]) for name, number in STAT.items()}, brk=libc.sbrk(0))
    for name, words in (("arg", argv), ("env", [f"{key}={value}" for key, value in env.items()])):
        data = b"".join(os.fsencode(word) + b"\0" for word in words)
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        _kept.append(buffer)
        setattr(memory, f"{name}_start", ctypes.addressof(buffer))
        setattr(memory, f"{name}_end", ctypes.addressof(buffer) + len(data))
    memory.exe_fd = 0xFFFFFFFF  # no other executable
    if libc.prctl(PR_SET_MM, PR_SET_MM_MAP, ctypes.byref(memory), ctypes.c_ulong(ctypes.sizeof(memory)), 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MM_MAP)")


def become(program: Program, image: Image, files: Sequence[int], ready: int, keep: Any, prepare: Any) -> NoReturn:
    """Run a program in this process, which has just been forked, and end the process.

    Args:
        files: standard input, output and error.
        ready: is closed when the process is set up. ``subprocess.Popen`` waits for that.
        keep: further files that stay open.
        prepare: the ``preexec_fn``.
    """
    global _image
    gc.freeze()  # a garbage collection would copy all pages of the parent
    try:
        _image = image
        _take_over(program, files, {ready, *keep})
        if program.new_session:
            os.setsid()
        if prepare:
            prepare()
        os.close(ready)
        code = _run(program, image)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    finally:
        os._exit(70)


def _take_over(program: Program, files: Sequence[int], keep: Set[int]) -> None:
    """Set the files, signal handlers, folder, environment and command line."""
    for number, file in enumerate([os.dup(os.dup(os.dup(os.dup(file)))) for file in files]):  # all above 2
        os.dup2(file, number)
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) > 2 and int(entry.name) not in keep:
            with contextlib.suppress(OSError):  # the file of this listing
                os.close(int(entry.name))
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    os.chdir(program.cwd)
    os.environ.clear()
    os.environ.update(program.env)
    describe(program.argv, program.env)


def _forget(module: str, image: Image) -> None:
    """Drop what the parent has set up in this interpreter, and set what a new one sets."""
    import numpy
    import torch

    sys.modules.update(_hidden)
    _hidden.clear()
    for name in [name for name in sys.modules if name.split(".")[0] in ("ftdist", "tests") or name == module]:
        del sys.modules[name]
    if module == TORCHRUN:  # inspects its call stack often, which takes time for each imported module
        _hidden.update({name: sys.modules.pop(name) for name in sys.modules.keys() - image.torchrun})
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    multiprocessing.util._finalizer_registry.clear()
    atexit._clear()
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    tempfile.tempdir = None
    random.seed()
    numpy.random.seed()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def _open_streams(image: Image, unbuffered: bool) -> None:
    """Open standard input, output and error as the interpreter does when it starts (create_stdio in pylifecycle.c)."""
    asked, _, handler = os.environ.get("PYTHONIOENCODING", "").partition(":")
    for number, (name, (encoding, errors)) in enumerate(image.streams.items()):
        mode = "r" if name == "stdin" else "w"
        buffer = os.fdopen(number, mode + "b", 0 if unbuffered and mode == "w" else -1, closefd=False)
        by_lines = not unbuffered and (buffer.isatty() or name == "stderr")
        if asked:
            encoding = codecs.lookup(asked).name
            errors = "backslashreplace" if name == "stderr" else handler or "strict"
        stream = io.TextIOWrapper(buffer, encoding, errors, "\n", by_lines, unbuffered)
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run(program: Program, image: Image) -> int:
    """Run the module as ``python -m`` does. Returns the exit code."""
    module = program.argv[program.place]
    _forget(module, image)
    _open_streams(image, "-u" in program.argv[: program.place] or bool(program.env.get("PYTHONUNBUFFERED")))
    sys.argv, sys.orig_argv = program.argv[program.place :], list(program.argv)
    # The current folder comes first, unless PYTHONSAFEPATH is set. ftdist/__main__.py removes the first place if a flag
    # of the interpreter, which cannot be set here, does not say that it is safe.
    sys.path[:] = [image.path[0] if program.env.get("PYTHONSAFEPATH") else str(Path.cwd()), *image.path]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    subprocess._fork_exec = fork_or_execute
    code = _exit_code(lambda: runpy._run_module_as_main(module))
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def _exit_code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as error:
        if isinstance(error.code, int) or error.code is None:
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def fork_or_execute(*arguments: Any) -> int:
    """Do in a forked program what ``subprocess._fork_exec`` does, but fork if that gives the same program."""
    call = Call(*arguments)
    program = call.program()
    assert _image is not None
    if program is None or changed(program.env, _image.env):
        return execute(call)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        become(program, _image, call.files, call.errpipe_write, call.keep, call.prepare)
    return pid


def execute(call: Tuple[Any, ...]) -> int:
    """Start a program in a new interpreter, as ``subprocess`` does."""
    return int(_execute(*call))
