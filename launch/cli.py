"""The command ``ftdist VERB``."""

import os
import signal
import sys
import tempfile
import time
from typing import List, NoReturn, Optional

from ftdist import __version__
from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_USAGE, ConfigError, FtdistError
from ftdist.base.main import run_main
from ftdist.base.names import nearest, require_utf8
from ftdist.base.output import accept_any_text
from ftdist.base.shell import shell_words
from ftdist.launch.config.places import naming_files
from ftdist.launch.verbs.table import INTERNAL, VERBS, parser_of

EXAMPLES = """\
examples:
  ftdist demo                                                   fine-tune a small real model here, in minutes
  ftdist preview data=file data.sources.file.path=chats.jsonl model=hub model.hub=HuggingFaceTB/SmolLM2-360M-Instruct
  ftdist train experiment=llama31_8b optim.lr=2e-5              full fine-tuning on one node of 8 GPUs
  ftdist train experiment=smoke -m optim.lr=1e-3,1e-4           a sweep
  ftdist status                                                 the runs in ./runs"""

OTHER_RANKS_S = 3.0
"""Seconds that the other ranks wait, so that rank 0 can print its message, if another launcher started them."""
MPI_VARIABLES = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
                 ("PMI_SIZE", "PMI_RANK"))  # fmt: skip
"""Environment variables with the number of ranks and the rank, of Open MPI, MVAPICH, and MPICH and Intel MPI."""
ONE_PROCESS = ("chat", "eval", "export", "prepare", "preview", "report", "verify")
"""Verbs that start their own ranks or write files, and must not be started once for each rank."""


def usage() -> str:
    """Return the text of ``ftdist --help``."""
    heads = {name: f"{name} {verb.arguments}" for name, verb in VERBS.items()}
    width = max(map(len, heads.values()))
    lines = [f"  {heads[name]:{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join([
        "ftdist: distributed fine-tuning of large language models", "",
        "usage: ftdist VERB …        ftdist VERB --help says more        ftdist --version", "",
        *lines, "", EXAMPLES, "",
        "exit codes: 0 done, 1 failed, 2 wrong config, data or command line, 75 stopped for preemption (resumable)",
    ])  # fmt: skip


def dispatch(argv: List[str]) -> int:
    """Run one verb.

    Args:
        argv: The command line without the name of the program.

    Returns:
        The exit code of the verb.

    Raises:
        FtdistError: An error, with a message for the user.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return EXIT_DONE
    if argv[0] in ("-V", "--version"):
        print(f"ftdist {__version__}")
        return EXIT_DONE
    name, rest = argv[0], argv[1:]
    if name == "_complete":  # called by the completion scripts
        from ftdist.launch.verbs.completion import complete

        return complete(rest)
    verbs = VERBS | INTERNAL
    if name not in verbs:
        near = nearest(name, list(VERBS))
        raise ConfigError(
            f"there is no verb '{name}'",
            "one of: " + ", ".join(VERBS),
            f"ftdist {near[0]}" if near else "ftdist --help",
        )
    args = parser_of(name).parse_intermixed_args(rest)
    if name in ONE_PROCESS and _is_one_of_several():
        raise ConfigError(f"torchrun or srun started `ftdist {name}` once for each rank", "one process",
                          f"start it without torchrun, or with srun --ntasks=1: ftdist {name}")  # fmt: skip
    with naming_files():
        return int(getattr(verbs[name].load(), name.lstrip("_"))(args))


def _is_one_of_several() -> bool:
    """Return whether torchrun, or srun with several tasks, started this process as one of its ranks."""
    if not {"TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"} & os.environ.keys():
        return False  # most processes need not import this
    from ftdist.launch.verbs.under_torchrun import is_rank

    return is_rank()


def _is_another_rank() -> bool:
    """Return whether this process is a rank other than 0."""
    if not _is_one_of_several():
        return False
    from ftdist.launch.verbs.under_torchrun import is_first_rank

    return not is_first_rank()


def _refuse_optimization() -> None:
    """Refuse to run without docstrings. When transformers is imported, it builds some docstrings from others.

    Raises:
        ConfigError: Python was started with ``-OO`` or ``PYTHONOPTIMIZE=2``.
    """
    if sys.flags.optimize >= 2:
        variable = bool(os.environ.get("PYTHONOPTIMIZE"))
        raise ConfigError(
            f"Python runs with {'PYTHONOPTIMIZE=2' if variable else '-OO'}, which removes docstrings",
            "Python with docstrings, without which transformers cannot be imported",
            "unset PYTHONOPTIMIZE" if variable else "leave out -OO",
        )


def _refuse_deepspeeds_launcher(argv: List[str]) -> None:
    """Refuse to run under DeepSpeed's launcher, which starts a command once for each rank.

    Raises:
        ConfigError: It started this process. The message of a rank other than 0 is empty.
    """
    if not argv[:1] or not (argv[0].startswith("--local_rank=") or {"CROSS_RANK", "LOCAL_RANK"} <= os.environ.keys()):
        return
    if os.environ.get("RANK", "0") != "0":  # one message is enough, and DeepSpeed ends all ranks with the first
        time.sleep(OTHER_RANKS_S)
        sys.exit(EXIT_USAGE)
    words = shell_words(argv[1:] if argv[0].startswith("--local_rank=") else argv)
    through_it = "ftdist " + words + (" launch=deepspeed" if words.startswith("train") else "")
    raise ConfigError(
        f"DeepSpeed's launcher started `ftdist {words}` once for each rank",
        "one `ftdist train`, which starts DeepSpeed's launcher itself, or a torchrun that starts ftdist",
        f"{through_it}, or torchrun --nproc-per-node {os.environ.get('LOCAL_SIZE', 'N')} -m ftdist {words}",
    )


def _refuse_mpirun(verb: str) -> None:
    """Refuse to run under mpirun, which starts a command once for each rank.

    Raises:
        ConfigError: It started this process. The message of a rank other than 0 is empty.
    """
    environ = os.environ
    number, rank = next((names for names in MPI_VARIABLES if names[0] in environ), ("", ""))
    size, started = environ.get(number, "1"), (*ONE_PROCESS, "demo", "resume", "train")
    by_srun = number == "PMI_SIZE" and size == environ.get("SLURM_STEP_NUM_TASKS")  # srun --mpi=pmi2
    by_other = by_srun or not {"TORCHELASTIC_RUN_ID", "WANDB_SWEEP_ID"}.isdisjoint(environ)
    if size == "1" or verb not in started or by_other:
        return
    if environ.get(rank, "0") != "0":
        time.sleep(OTHER_RANKS_S)  # one message is enough, and mpirun ends all ranks with the first
        sys.exit(EXIT_USAGE)
    raise ConfigError(
        f"mpirun started `ftdist {verb}` {size} times, once for each rank",
        "one process, which starts the ranks itself, or srun or torchrun, which ftdist supports",
        f"without mpirun: ftdist {verb} … launch.nproc_per_node={size}; with mpirun on several machines: "
        "launch=deepspeed launch.deepspeed.runner=openmpi",
    )


def main(argv: Optional[List[str]] = None) -> NoReturn:
    """Run the console script ``ftdist``: print errors, and end the process with the exit code."""
    accept_any_text()
    words = sys.argv[1:] if argv is None else argv

    def command() -> int:
        _refuse_optimization()
        require_utf8("the folder for temporary files (TMPDIR)", tempfile.gettempdir())
        _refuse_deepspeeds_launcher(words)
        _refuse_mpirun(words[0] if words else "")
        try:
            return dispatch(words)
        except FtdistError as error:
            if not _is_another_rank():
                raise
            time.sleep(OTHER_RANKS_S)  # one message is enough; srun and torchrun may end all ranks with the first
            return error.exit_code

    code = run_main(command)
    if code == EXIT_PREEMPTED and words[:1] == ["train"] and "WANDB_SWEEP_ID" in os.environ:
        _end_by_sigterm()
    sys.exit(code)


def _end_by_sigterm() -> None:
    """End this process by SIGTERM, like a program that does not handle the signal.

    The agent of a W&B sweep sends SIGTERM to a trial that is ended early. It counts every positive exit code as a
    failed trial, and stops if too many trials fail. It does not count a trial that a signal has ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
