"""Tasks: their names on the command line, and their results in ``RUN_DIR/eval``."""

from pathlib import Path
from typing import Any, Dict, List

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.run.rundir import RunDir

DOCSTRINGS = "stdlib_docs"
BUILTIN_TASKS = (DOCSTRINGS,)
"""Names of the tasks that need no file."""
MEASURES = ("accuracy", "normalized")
"""Which choice counts as the answer of a model. ``accuracy``: the one with the largest log-probability. ``normalized``:
the one with the largest log-probability for each byte of its text."""


def is_harness_task(place: str) -> bool:
    """Return whether a task is a YAML file of lm-eval."""
    return place.endswith((".yaml", ".yml"))


def task_places(given: str) -> Dict[str, str]:
    """Return the tasks that ``--tasks`` names: for each name a built-in task, or the absolute path of a file.

    Raises:
        ConfigError: There is no such task, or two have the same name.
    """
    found: Dict[str, str] = {}
    for word in filter(None, (word.strip() for word in given.split(","))):
        path = Path(word).expanduser()
        if word not in BUILTIN_TASKS and not path.is_file():
            raise ConfigError(f"--tasks {word}: there is no such task", f"{', '.join(BUILTIN_TASKS)}, a JSONL file "
                              'with records {"question", "choices", "answer"}, or a YAML file of lm-eval',
                              f"--tasks {DOCSTRINGS}, or the path of a file")  # fmt: skip
        name = word if word in BUILTIN_TASKS else path.stem
        if name in found:
            raise ConfigError(f"--tasks names {name} twice", "a task once, and files with different names",
                              f"leave out {word}, or rename the file")  # fmt: skip
        found[name] = word if word in BUILTIN_TASKS else str(path.resolve())
    if not found:
        raise ConfigError("--tasks is empty", f"{', '.join(BUILTIN_TASKS)}, or the path of a file",
                          f"--tasks {DOCSTRINGS}")  # fmt: skip
    return found


def write_result(run: RunDir, result: Dict[str, Any]) -> Path:
    """Write the result of a task, and return the path of the file. A result of the same checkpoint is replaced."""
    run.tasks.mkdir(exist_ok=True)
    path = run.tasks / f"{result['task']}-{result['checkpoint']}.json"
    write_json(path, result)
    return path


def read_results(run: RunDir) -> List[Dict[str, Any]]:
    """Return the results of all tasks without the single answers, by name and step. Damaged files are left out."""
    found = []
    for path in sorted(run.tasks.glob("*.json")):
        try:
            result = dict(read_json(path))
            result.pop("answers", None)
            found.append((str(result["task"]), int(result["step"]), result))
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return [result for _, _, result in sorted(found, key=lambda one: one[:2])]
