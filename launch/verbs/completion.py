"""Tab completion, from what there is: the verbs' own parsers, the config's schema, Hydra's groups, run directories."""

import argparse
import dataclasses
import enum
import glob
import re
import typing
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from ftdist.base.errors import EXIT_DONE
from ftdist.config.resumable import CHANGEABLE, EVALUATED
from ftdist.config.schema import SourceConfig
from ftdist.launch.verbs.table import VERBS, parser_of
from ftdist.run.rundir import SWEEP_REQUEST, RunDir, checkpoint_step

SCRIPTS = {
    # readline replaces only what follows the last of its own word breaks, so what comes before it is taken off
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

PLACES = {"RUN_DIR": ["run.yaml"], "SWEEP_DIR": [SWEEP_REQUEST], "RUN_DIR|SWEEP_DIR": ["run.yaml", SWEEP_REQUEST]}
"""What the folders hold that are offered for an argument of this metavar."""


OF_A_RUN: Dict[str, Sequence[str]] = {"eval": EVALUATED, "resume": CHANGEABLE}
"""What of a frozen config a verb's overrides change."""


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
    """What the last word of ``line`` (``ftdist VERB …`` up to the cursor) can become. One that ends in ``= . /`` goes
    on."""
    *before, word = line.split(" ")
    before = [given for given in before if given]
    if len(before) < 2:
        return [name for name in VERBS if name.startswith(word)]
    verb, given = before[1], before[2:]
    if verb not in VERBS:
        return []
    parser = parser_of(verb)
    flags = parser.flags
    words = _without_flags(given, flags)
    flag, equals, value = word.partition("=")
    if flag in flags and equals:
        return [f"{flag}={offer}" for offer in _values(flags[flag], value, words, given)]
    if given and given[-1] in flags and flags[given[-1]].nargs is None:
        return _values(flags[given[-1]], word, words, given)
    if word.startswith("-"):
        return sorted(name for name in flags if name.startswith(word) and len(name) > 2)
    places = parser.positionals
    many = [place for place in places if place.nargs == "*"]
    if not places or (len(words) >= len(places) and not many):
        return []
    return _values(places[min(len(words), len(places) - 1)], word, words, given, OF_A_RUN.get(verb, ()))


def _without_flags(given: List[str], flags: Any) -> List[str]:
    return [
        word
        for before, word in zip(["", *given], given, strict=False)
        if not word.startswith("-") and not (before in flags and flags[before].nargs is None)
    ]


def _values(
    action: argparse.Action, word: str, words: List[str], given: List[str], only: Sequence[str] = ()
) -> List[str]:
    """What an argument can be. That of a free one follows from its metavar.

    Args:
        words: the positional words before it.
        given: all words before it, after the verb.
        only: of overrides, these keys and what is below them.
    """
    if action.choices is not None:
        return [choice for choice in map(str, action.choices) if choice.startswith(word)]
    if action.metavar in PLACES:
        return sorted(path for name in PLACES[action.metavar] for path in places(word, name)) or folders(word)
    if action.metavar == "CHECKPOINT":
        steps = [str(checkpoint_step(path)) for place in words[:1] for path in RunDir(place).published_checkpoints()]
        return [name for name in ("last", "best", *steps) if name.startswith(word)]
    if action.metavar == "RUN_DIR|MODEL":
        return sorted({*places(word, "run.yaml"), *folders(word)})
    if action.metavar == "DIR":
        return folders(word)
    return overrides(words, word, given, only) if action.metavar == "OVERRIDE" else []


def places(word: str, name: str) -> List[str]:
    """Folders that hold a file of this name, here and one folder down, such as in ``runs``."""
    found = [path for depth in ("*", "*/*") for path in _typed(word, f"{depth}/{name}")]
    return sorted({path.removesuffix(f"/{name}") for path in found})


def folders(word: str) -> List[str]:
    return _typed(word, "*/")


def files(word: str) -> List[str]:
    return [f"{path}/" if Path(path).is_dir() else path for path in _typed(word, "*")]


def _typed(word: str, pattern: str) -> List[str]:
    return sorted(glob.glob(glob.escape(word) + pattern))  # noqa: PTH207 (pathlib would change what was typed)


def overrides(words: List[str], word: str, given: List[str], only: Sequence[str]) -> List[str]:
    """Groups and their options, keys, and values. ``only``: for a run that is frozen, which has no groups."""
    from ftdist.launch.config import compose

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
    """Whether a key as it is offered, with its sign, is a known one, or above or below it."""
    path, known = key.rstrip("=.") + ".", f"{known}."
    return path.startswith(known) or known.startswith(path)


def _keys(start: str) -> List[str]:
    """Keys of the schema, up to the next dot."""
    from ftdist.launch.config import keys as config_keys

    source = re.match(r"(data\.(?:sources|heldout)\.[^.]+\.)", start)
    if source:
        keys = [source.group(1) + field.name for field in dataclasses.fields(SourceConfig)]
    else:
        keys = [key for key in config_keys.schema_keys() if key.count(".") == start.count(".")]
    return [key + _sign_after(config_keys.type_at(key)) for key in keys if key.startswith(start)]


def _sign_after(kind: Any) -> str:
    return "." if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict else "="


def _values_of(key: str, start: str) -> Optional[List[str]]:
    """What a key can hold, where schema or disk can tell: words of an enum, true and false, files; else None."""
    from ftdist.launch.config import keys as config_keys

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
