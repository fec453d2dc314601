"""Tab completion: verbs, flags and their values, Hydra's groups and options, config keys, run directories.

No library is used, for measured reasons. argcomplete 3.7.2, with the functions below as its completers, offers the same
for all 38 lines in tests/unit/launch/verbs/test_completion.py. It takes the same time: 74 ms of CPU for ``ftdist pre``,
0.4 s for ``ftdist train optim.l``, most of it in Hydra. But it offers nothing for an override after a flag (``ftdist
train seed=1 --dry-run optim.l``), because it does not parse flags and overrides in any order, as ftdist does. It would
replace about 60 lines here, and depends on private parts of argparse in 44 places. shtab writes static scripts, which
cannot offer config groups or run directories.
"""

import argparse
import dataclasses
import enum
import glob
import re
import shlex
import typing
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ftdist.base.errors import EXIT_DONE
from ftdist.config.data import SourceConfig
from ftdist.config.resumable import CHANGEABLE, EVALUATED
from ftdist.launch.config import keys as config_keys
from ftdist.launch.verbs.table import VERBS, parser_of
from ftdist.run.rundir import RUN_CONFIG, SWEEP_REQUEST, RunDir, checkpoint_step

SCRIPTS = {
    # readline replaces only the text after its last word break (such as = and :), so the text before it is removed
    "bash": """\
_ftdist() {
  local IFS=$'\\n' line=${COMP_LINE:0:COMP_POINT}
  local word=${line##* }
  local before=${word%"${word##*["$COMP_WORDBREAKS"]}"}
  COMPREPLY=($(ftdist _complete "$line" 2>/dev/null))
  COMPREPLY=("${COMPREPLY[@]#"$before"}")
  [[ ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
complete -o default -F _ftdist ftdist""",
    "zsh": """\
_ftdist() {
  local -a found goes_on
  found=(${(f)"$(ftdist _complete "${LBUFFER}" 2>/dev/null)"})
  goes_on=(${(M)found:#*[=./]})
  found=(${found:#*[=./]})
  compadd -Q -S '' -a goes_on
  compadd -Q -a found
  (( $#goes_on + $#found )) || _files
}
compdef _ftdist ftdist""",
    "fish": """\
complete -c ftdist -f -a '(ftdist _complete (commandline -cp) 2>/dev/null)'""",
}

PLACES = {"RUN_DIR": [RUN_CONFIG], "SWEEP_DIR": [SWEEP_REQUEST], "RUN_DIR|SWEEP_DIR": [RUN_CONFIG, SWEEP_REQUEST]}
"""By metavar of an argument: the files that a folder must hold to be offered for it."""

OF_A_RUN: Dict[str, Sequence[str]] = {"eval": EVALUATED, "resume": CHANGEABLE}
"""By verb: the keys of a frozen config that its overrides may change."""


def add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=list(SCRIPTS),
        help='bash and zsh: eval "$(ftdist completion bash)" (or zsh); fish: ftdist completion fish | source',
    )  # fmt: skip


def completion(args: argparse.Namespace) -> int:
    """Print the script that a shell evaluates. Returns the exit code."""
    print(SCRIPTS[args.shell])
    return EXIT_DONE


def complete(argv: List[str]) -> int:
    """Print the completions of the last word of a command line, one on each line. Returns the exit code.

    Args:
        argv: The command line up to the cursor, as one word.
    """
    print("\n".join(candidates(argv[0] if argv else "")))
    return EXIT_DONE


def candidates(line: str) -> List[str]:
    """Return the completions of the last word of a command line.

    A completion that ends in ``=``, ``.`` or ``/`` can be continued.

    Args:
        line: The command line up to the cursor: ``ftdist VERB …``.
    """
    before, word = _split(line)
    if len(before) < 2:
        return [name for name in VERBS if name.startswith(word)]
    verb, given = before[1], before[2:]
    if verb not in VERBS:
        return []
    parser = parser_of(verb)
    flags, positionals = parser.flags, parser.positionals
    words = _without_flags(given, flags)
    flag, equals, value = word.partition("=")
    if flag in flags and equals:
        return [f"{flag}={offer}" for offer in _values(flags[flag], value, words, given)]
    if given and given[-1] in flags and flags[given[-1]].nargs is None:
        return _values(flags[given[-1]], word, words, given)
    if word.startswith("-"):
        return sorted(name for name in flags if name.startswith(word) and len(name) > 2)
    takes_many = any(argument.nargs == "*" for argument in positionals)
    if not positionals or (len(words) >= len(positionals) and not takes_many):
        return []
    return _values(positionals[min(len(words), len(positionals) - 1)], word, words, given, OF_A_RUN.get(verb, ()))


def _split(line: str) -> Tuple[List[str], str]:
    """Return the words before the last one without their quotes, and the last word as it is typed."""
    before, _, word = line.rpartition(" ")
    try:
        return shlex.split(before), word
    except ValueError:  # the last word is quoted and holds a space
        return before.split(), word


def _without_flags(given: List[str], flags: Dict[str, argparse.Action]) -> List[str]:
    """Return the positional words: without flags and without the values of flags."""
    return [
        word
        for before, word in zip(["", *given], given, strict=False)
        if not word.startswith("-") and not (before in flags and flags[before].nargs is None)
    ]


def _values(
    argument: argparse.Action, word: str, words: List[str], given: List[str], only: Sequence[str] = ()
) -> List[str]:
    """Return the values of an argument that begin with a word.

    Args:
        argument: The argument. If it has no choices, its metavar says what it takes.
        word: The beginning of the value.
        words: The positional words before it.
        given: All words before it, after the verb.
        only: Offer only these config keys and the keys below them. Empty for all keys.
    """
    if argument.choices is not None:
        return [choice for choice in map(str, argument.choices) if choice.startswith(word)]
    if argument.metavar in PLACES:
        return sorted(path for name in PLACES[argument.metavar] for path in places(word, name)) or folders(word)
    if argument.metavar == "CHECKPOINT":
        steps = [str(checkpoint_step(path)) for place in words[:1] for path in RunDir(place).published_checkpoints()]
        return [name for name in ("last", "best", *steps) if name.startswith(word)]
    if argument.metavar == "RUN_DIR|MODEL":
        return sorted({*places(word, RUN_CONFIG), *folders(word)})
    if argument.metavar == "DIR":
        return folders(word)
    return overrides(words, word, given, only) if argument.metavar == "OVERRIDE" else []


def places(word: str, name: str) -> List[str]:
    """Return the folders that hold a file ``name`` and begin with ``word``, also those one level below (``runs/…``)."""
    found = [path for depth in ("*", "*/*") for path in _typed(word, f"{depth}/{name}")]
    return sorted({path.removesuffix(f"/{name}") for path in found})


def folders(word: str) -> List[str]:
    """Return the folders that begin with a word."""
    return _typed(word, "*/")


def files(word: str) -> List[str]:
    """Return the files and folders that begin with a word."""
    return [f"{path}/" if Path(path).is_dir() else path for path in _typed(word, "*")]


def _typed(word: str, pattern: str) -> List[str]:
    return sorted(glob.glob(glob.escape(word) + pattern))  # noqa: PTH207 (pathlib would change the word)


def overrides(words: List[str], word: str, given: List[str], only: Sequence[str]) -> List[str]:
    """Return the overrides that begin with a word: groups, options of a group, config keys, and values of a key.

    Args:
        words: The overrides before it.
        word: The beginning of the override.
        given: All words before it, after the verb.
        only: Offer only these keys and the keys below them, and no groups: a frozen config has none.
    """
    from ftdist.launch.config import compose  # loads Hydra, which takes 0.1 s: only where overrides are completed

    name, equals, value = word.partition("=")
    sign = name[: len(name) - len(name.lstrip("+~"))]
    if equals and (offers := _values_of(name[len(sign) :], value)) is not None:
        return [f"{name}={offer}" for offer in offers]
    keys = [] if equals else [sign + key for key in _keys(name[len(sign) :])]
    if only:
        return [key for key in keys if any(_on_one_path(key, known) for known in only)]
    config_dir = re.search(r"(?:--config-dir|-cd)[ =](\S+)", " ".join(given))
    return sorted({*keys, *compose.complete(words, word, config_dir.group(1) if config_dir else None)})


def _on_one_path(key: str, known: str) -> bool:
    """Return whether an offered key is a known key, or above or below it."""
    path, known = key.rstrip("=.") + ".", f"{known}."
    return path.startswith(known) or known.startswith(path)


def _keys(start: str) -> List[str]:
    """Return the keys of the schema that begin with ``start``, up to the next dot."""
    source = re.match(r"(data\.(?:sources|heldout|general)\.[^.]+\.)", start)
    if source:
        keys = [source.group(1) + field.name for field in dataclasses.fields(SourceConfig)]
    else:
        keys = [key for key in config_keys.schema_keys() if key.count(".") == start.count(".")]
    return [key + _sign_after(config_keys.type_at(key)) for key in keys if key.startswith(start)]


def _sign_after(kind: Any) -> str:
    return "." if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict else "="


def _values_of(key: str, start: str) -> Optional[List[str]]:
    """Return the values of a key that begin with ``start``: words of an enum, true and false, or files.

    The result is None if the type of the key does not tell its values.
    """
    kind = config_keys.type_at(key)
    optional = type(None) in typing.get_args(kind)
    if optional:
        kind = typing.get_args(kind)[0]
    if kind is str:
        return files(start)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        words = list(kind.__members__)
    elif kind is bool:
        words = ["true", "false"]
    else:
        return None
    return [word for word in (*words, *["null"] * optional) if word.startswith(start)]
