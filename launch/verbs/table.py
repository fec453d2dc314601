"""The verbs of ``ftdist``: their names, what they take, and what parses their arguments."""

import argparse
import importlib
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Dict, List, NoReturn

from ftdist.base.errors import ConfigError
from ftdist.base.names import nearest


@dataclass(frozen=True)
class Verb:
    """A verb. Its module has two functions of its name: ``NAME(args)`` and ``add_NAME_arguments(parser)``."""

    module: str
    """Module of this package."""
    arguments: str
    """Arguments in the usage line."""
    summary: str
    """One line for ``ftdist --help``."""

    def load(self) -> ModuleType:
        """Import the module. Each verb is imported only when it is used, which keeps the others fast."""
        return importlib.import_module(f"ftdist.launch.verbs.{self.module}")


VERBS: Dict[str, Verb] = {
    "train": Verb("train", "[OVERRIDE…]", "compose a config, start the ranks, and wait for the run"),
    "demo": Verb("train", "[OVERRIDE…]", "train experiment=demo: a small real model on this machine, in minutes"),
    "prepare": Verb("prepare", "[OVERRIDE…]", "read, tokenize and pack the data into the cache"),
    "preview": Verb("preview", "[OVERRIDE…]", "show a few samples with the trained tokens marked"),
    "verify": Verb("verify", "[OVERRIDE…]", "check a config on this machine: data, isolation, loss, gradient, saving"),
    "resume": Verb(
        "resume", "RUN_DIR|SWEEP_DIR [OVERRIDE…]", "continue from the newest checkpoint; the number of ranks may change"
    ),
    "status": Verb("status", "[RUN_DIR…] [--watch]", "print a table of runs"),
    "sweep": Verb("sweep", "SWEEP_DIR", "print a table of a sweep's trials, best first"),
    "logs": Verb("logs", "RUN_DIR", "print the output of a run; -f follows it"),
    "cancel": Verb("cancel", "RUN_DIR|SWEEP_DIR", "save a checkpoint and stop a run or sweep; --now stops at once"),
    "node": Verb("node", "RUN_DIR --rank N", "start the ranks of this machine, for a run on several machines"),
    "eval": Verb(
        "eval", "RUN_DIR|MODEL [OVERRIDE…]", "compute the held-out loss of a checkpoint; --tasks: its answers"
    ),
    "report": Verb("report", "RUN_DIR…", "write a report as a page: gain, what moved in the model, cost, goodput"),
    "export": Verb("export", "RUN_DIR", "write a checkpoint in Hugging Face format"),
    "chat": Verb("chat", "RUN_DIR|MODEL", "talk to a trained model"),
    "completion": Verb("completion", "bash|zsh|fish", "print the script for tab completion"),
}

INTERNAL = {
    "_begin": Verb("batch_script", "RUN_DIR", "called by the batch script: begin an attempt, prepare model and data"),
    "_end": Verb("batch_script", "RUN_DIR", "called by the batch script: conclude the attempt, say whether to requeue"),
    "_guard": Verb("guard", "RUN_DIR|SWEEP_DIR", "stop a run or sweep when its launcher is killed"),
    "_start_node": Verb("start_node", "RUN_DIR", "called by the batch script on each node: start torchrun"),
    "_report_job": Verb("report_job", "RUN_DIR", "called by the batch script: tell Slurm how far the run is"),
    "_moved": Verb("batch_script", "RUN_DIR", "called by the batch script: the run continues in another job"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as ftdist does, and that knows which arguments were added to it."""

    def __init__(self, **options: Any) -> None:
        self.arguments: List[argparse.Action] = []
        """Every argument, in the order of definition. argparse keeps such a list too, but not a public one."""
        super().__init__(**options)  # it adds --help

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        argument = super().add_argument(*names, **options)
        self.arguments.append(argument)
        return argument

    @property
    def flags(self) -> Dict[str, argparse.Action]:
        """The optional arguments, by each of their names."""
        return {name: argument for argument in self.arguments for name in argument.option_strings}

    @property
    def positionals(self) -> List[argparse.Action]:
        """The positional arguments, in order."""
        return [argument for argument in self.arguments if not argument.option_strings]

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        near = nearest(unknown.group(1), self.flags) if unknown else []
        if unknown and unknown.group(1) in ("-m", "--multirun"):
            near = [f"give each key one value; only ftdist train takes {unknown.group(1)}"]
        raise ConfigError(f"{self.prog}: {message}", self.usage or "", " or ".join(near) or f"{self.prog} --help")


def parser_of(name: str) -> Parser:
    """Return the argument parser of a verb."""
    verb = (VERBS | INTERNAL)[name]
    name = name.lstrip("_")
    parser = Parser(prog=f"ftdist {name}", usage=f"ftdist {name} [FLAG…] {verb.arguments}", description=verb.summary)
    getattr(verb.load(), f"add_{name}_arguments")(parser)
    return parser
