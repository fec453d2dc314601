"""``ftdist VERB``: the one entry point."""

import argparse
import importlib
import re
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Dict, List, NoReturn, Optional

from ftdist import __version__
from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, ConfigError, FtdistError
from ftdist.base.names import nearest
from ftdist.base.output import PipeSafeOutput

EXAMPLES = """\
examples:
  ftdist demo                                                   fine-tune a small real model here, in minutes
  ftdist preview data=file data.sources.file.path=chats.jsonl model=hub model.hub=HuggingFaceTB/SmolLM2-360M-Instruct
  ftdist train experiment=llama31_8b optim.lr=2e-5              full fine-tuning on one node of 8 GPUs
  ftdist train experiment=smoke -m optim.lr=1e-3,1e-4           a sweep
  ftdist status                                                 the runs in ./runs"""


@dataclass(frozen=True)
class Verb:
    module: str
    arguments: str
    summary: str


VERBS: Dict[str, Verb] = {
    "train": Verb("train", "[OVERRIDE…]", "compose a config, freeze it, start the ranks here, wait"),
    "demo": Verb("train", "[OVERRIDE…]", "train experiment=demo: a small real model on this machine, in minutes"),
    "prepare": Verb("prepare", "[OVERRIDE…]", "read, tokenise and pack the data into the cache"),
    "preview": Verb("preview", "[OVERRIDE…]", "show a few samples with the trained tokens marked"),
    "verify": Verb("verify", "[OVERRIDE…]", "check a config here: data, isolation, loss, gradient, saving"),
    "resume": Verb("resume", "RUN_DIR|SWEEP_DIR [OVERRIDE…]", "go on from the newest checkpoint, on other ranks too"),
    "status": Verb("status", "[RUN_DIR…]", "a table of runs"),
    "sweep": Verb("sweep", "SWEEP_DIR", "a table of a sweep's trials, best first"),
    "logs": Verb("logs", "RUN_DIR", "what a run has printed; -f follows it"),
    "cancel": Verb("cancel", "RUN_DIR|SWEEP_DIR", "stop a run or sweep: save, then end; --now ends it at once"),
    "node": Verb("node", "RUN_DIR --rank N", "one machine's ranks of a run on several machines"),
    "eval": Verb("eval", "RUN_DIR [OVERRIDE…]", "held-out loss of a checkpoint"),
    "export": Verb("export", "RUN_DIR", "write a checkpoint in Hugging Face format"),
    "chat": Verb("chat", "RUN_DIR|MODEL", "talk to what was trained"),
    "completion": Verb("completion", "bash|zsh|fish", "print the script for tab completion"),
}

INTERNAL = {
    "_begin": Verb("batch_script", "RUN_DIR", "called by the batch script: a new attempt, model and data ready"),
    "_end": Verb("batch_script", "RUN_DIR", "called by the batch script: how the attempt ended, and whether to go on"),
    "_guard": Verb("guard", "RUN_DIR|SWEEP_DIR", "stops what its launcher, once killed, leaves elsewhere"),
    "_moved": Verb("batch_script", "RUN_DIR", "called by the batch script: the run goes on in another job"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ftdist's."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        near = nearest(unknown.group(1), self._option_string_actions) if unknown else []
        if unknown and unknown.group(1) in ("-m", "--multirun"):
            near = [f"one value for each key; only ftdist train takes {unknown.group(1)}"]
        raise ConfigError(f"{self.prog}: {message}", self.usage or "", " or ".join(near) or f"{self.prog} --help")


def usage() -> str:
    """The text of ``ftdist --help``."""
    heads = {name: f"{name} {verb.arguments}" for name, verb in VERBS.items()}
    width = max(map(len, heads.values()))
    lines = [f"  {heads[name]:{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join([
        "ftdist: distributed fine-tuning of large language models", "",
        "usage: ftdist VERB …        ftdist VERB --help says more        ftdist --version", "",
        *lines, "", EXAMPLES, "",
        "exit codes: 0 done, 1 failed, 2 wrong config or command line, 75 stopped for preemption (resumable)",
    ])  # fmt: skip


def dispatch(argv: List[str]) -> int:
    """Run one verb. Returns its exit code.

    Raises:
        FtdistError: what went wrong, for the user.
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
    return int(getattr(_module(verbs[name]), name.lstrip("_"))(args))


def _module(verb: Verb) -> ModuleType:
    return importlib.import_module(f"ftdist.launch.verbs.{verb.module}")


def parser_of(name: str) -> Parser:
    """What a verb takes."""
    verb = (VERBS | INTERNAL)[name]
    name = name.lstrip("_")
    parser = Parser(prog=f"ftdist {name}", usage=f"ftdist {name} [FLAG…] {verb.arguments}", description=verb.summary)
    getattr(_module(verb), f"add_{name}_arguments")(parser)
    return parser


def main(argv: Optional[List[str]] = None) -> NoReturn:
    """The console script."""
    sys.stdout, sys.stderr = PipeSafeOutput(sys.stdout), PipeSafeOutput(sys.stderr)  # type: ignore[assignment]
    try:
        sys.exit(dispatch(sys.argv[1:] if argv is None else argv))
    except FtdistError as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(EXIT_FAILED)
