"""Programs of the data plane that a verb runs in the terminal and waits for."""

import os
import subprocess
import sys
from typing import List, Optional

from ftdist.base.errors import EXIT_FAILED, FtdistError, LaunchError
from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.failure import signal_name
from ftdist.launch.attempt.signals import end_with_launcher
from ftdist.run.hub import offline_env


class ProgramFailed(FtdistError):
    """A program failed, and has printed the reason."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class ProgramKilled(LaunchError):
    """A signal ended a program."""

    def __init__(self, program: str, number: int) -> None:
        super().__init__(f"{program} was killed by {signal_name(number)}", "a program that ends by itself",
                         "run it again, with more memory if `dmesg | tail` shows that it ran out")  # fmt: skip
        self.number = number


def run_program(arguments: List[str], config: Optional[RunConfig] = None) -> None:
    """Run ``python -m …`` in the terminal and wait for it.

    Args:
        arguments: the module and its arguments.
        config: written to the standard input of the program.

    Raises:
        ProgramFailed: it ended with another exit code than 0, and has printed the reason.
        ProgramKilled: a signal ended it.
    """
    command = [sys.executable, "-m", *arguments]
    text = None if config is None else dump_config(config).encode()
    # DS_ACCELERATOR: DeepSpeed looks for a GPU when an export imports it, and warns if there is none. No program here
    # needs one. TQDM_DISABLE: each program reports its own progress. OMP_WAIT_POLICY: by default the threads of OpenMP
    # wait by spinning, which slows down the others if cores are busy (in a chat: 2 s a token instead of 0.06 s).
    # PYTHONSAFEPATH: modules are not imported from the current folder, which may be a model's or a data set's.
    ours = {"TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu", "TQDM_DISABLE": "1", "PYTHONSAFEPATH": "1"}
    if config is not None and arguments[0] != "ftdist.model.fetch":
        ours |= offline_env(config)
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **ours}
    try:
        done = subprocess.run(command, input=text, check=False, env=env, preexec_fn=end_with_launcher)
    except KeyboardInterrupt:
        raise ProgramFailed(EXIT_FAILED) from None
    if done.returncode < 0:
        raise ProgramKilled(arguments[0], -done.returncode)
    if done.returncode:
        raise ProgramFailed(done.returncode)
