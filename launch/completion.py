"""Tab completion: verbs and run directories here, groups, options and keys by Hydra's own plugin."""

import argparse
from pathlib import Path
from typing import List

from ftdist.errors import EXIT_DONE, FtdistError

SCRIPTS = {
    "bash": """\
_ftdist() {
  local IFS=$'\\n'
  COMPREPLY=($(ftdist _complete "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _ftdist ftdist""",
    "zsh": """\
_ftdist() {
  local -a words_found
  words_found=(${(f)"$(ftdist _complete "${LBUFFER}" 2>/dev/null)"})
  compadd -Q -S '' -a words_found || _files
}
compdef _ftdist ftdist""",
    "fish": """\
complete -c ftdist -f -a '(ftdist _complete (commandline -cp) 2>/dev/null)'""",
}
FROM_CONFIG = ("train", "demo", "prepare", "preview")
FROM_RUN = ("resume", "status", "logs", "cancel", "node", "eval", "export", "chat")


def add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=list(SCRIPTS), help='bash, zsh: eval "$(ftdist completion bash)"; fish: | source'
    )


def completion(args: argparse.Namespace) -> int:
    """Print the script that a shell evaluates."""
    print(SCRIPTS[args.shell])
    return EXIT_DONE


def complete(argv: List[str]) -> int:
    """Print what the last word of a command line can become, one a line."""
    print("\n".join(candidates(argv[0] if argv else "")))
    return EXIT_DONE


def candidates(line: str) -> List[str]:
    """What the last word of ``line`` (``ftdist VERB …`` up to the cursor) can become."""
    from .cli import VERBS

    words = line.split(" ")
    verb, word = (words[1] if len(words) > 2 else None), words[-1]
    if verb is None:
        return [name + " " for name in VERBS if name.startswith(word)]
    if verb in FROM_RUN:
        return sorted(str(config.parent) for config in Path("runs").glob("*/run.yaml") if str(config).startswith(word))
    if verb == "completion":
        return [shell for shell in SCRIPTS if shell.startswith(word)]
    if verb not in FROM_CONFIG:
        return []
    from .compose import complete as complete_config

    try:
        return complete_config(" ".join(words[2:]))
    except (FtdistError, SystemExit):  # half a flag, half a word: nothing to offer
        return []
