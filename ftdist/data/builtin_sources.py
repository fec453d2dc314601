"""Data sources that need no file: documentation of the Python standard library, and chats of random words.

The config selects them with ``data.sources.NAME.builtin=stdlib_docs`` and ``builtin=fake``.
"""

import ast
import hashlib
import inspect
import random
import sys
import sysconfig
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from ftdist.base.errors import DataError

DEFAULT_FAKE_DOCUMENTS = 1000
"""Number of chats that ``builtin=fake`` generates if ``max_documents`` is not set."""
MIN_ANSWER, MAX_ANSWER = 30, 1200
"""Limits of a docstring's length in characters. Shorter docstrings explain nothing, longer ones are manuals."""

# Modules of the standard library that are left out: they contain tests, applications or jokes.
EXCLUDED_MODULES = {
    "antigravity",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tests",
    "this",
    "turtledemo",
}

QUESTIONS = {
    "function": (
        "What does `{name}` do?",
        "Explain the Python function `{name}({arguments})`.",
        "How does `{name}({arguments})` from the `{module}` module work?",
    ),
    "class": (
        "What is the class `{name}` for?",
        "Describe `{name}` from the `{module}` module.",
        "What is a `{name}` in Python?",
    ),
    "module": (
        "What is the Python module `{name}` for?",
        "Describe the standard library module `{name}`.",
        "What does the module `{name}` offer?",
    ),
}


class Docstring(NamedTuple):
    """A docstring of the standard library."""

    kind: str
    """A key of QUESTIONS."""
    name: str
    """Qualified name of what is documented."""
    module: str
    arguments: str
    """Arguments of a function as Python source."""
    text: str


def stdlib_docs() -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Yield chats of one question and one answer from the docstrings of the running Python's standard library.

    Yields:
        ``(location, record)``: a record has the field ``messages``.

    Raises:
        DataError: See ``stdlib_docstrings``.
    """
    return map(docstring_chat, stdlib_docstrings())


def stdlib_docstrings() -> Iterator[Docstring]:
    """Yield the docstrings of the running Python's standard library.

    The source files are parsed, not imported. The docstrings are sorted by a hash of the documented name. This order is
    always the same and mixes the modules, so the first ones are a representative sample. If several docstrings are
    equal, only the first one is used.

    Raises:
        DataError: The source files of the standard library are not installed.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = [item for path in _library_files(folder) for item in _docstrings(path, _module_name(folder, path))]
    if not found:
        raise DataError(
            f"{folder} holds no Python source files",
            "a Python installation with the source of its standard library",
            "install that source, or use another data set",
        )
    seen = set()
    for item in sorted(found, key=lambda item: _digest(item.name)):
        if item.text not in seen:
            seen.add(item.text)
            yield item


def docstring_chat(item: Docstring) -> Tuple[str, Dict[str, Any]]:
    """Return the location and the record of the chat about a docstring."""
    phrasings = QUESTIONS[item.kind]
    question = phrasings[_digest(item.name) % len(phrasings)].format(**item._asdict())
    return f"stdlib_docs: {item.name}", _chat([question, item.text])


def fake_chats(seed: str, count: int) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Yield chats of random words.

    A chat has one to three questions with answers of 4 to 400 words. Chat i depends on ``seed`` and i only, so the
    first chats are the same for every ``count``.

    Yields:
        ``(location, record)``: a record has the field ``messages``.
    """
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        texts: List[str] = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            texts.append(" ".join(draw.choices(WORDS, k=draw.randint(3, 20))) + "?")
            texts.append(" ".join(draw.choices(WORDS, k=min(4 + int(draw.expovariate(1 / 60)), 400))) + ".")
        yield f"fake: chat {number}", _chat(texts)


WORDS = [
    first + last
    for first in ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo")
    for last in ("", "l", "n", "r", "s", "ta", "mo", "ki", "nd", "st", "rem", "lon", "vis", "dal", "pek")
]


def _chat(texts: List[str]) -> Dict[str, Any]:
    return {
        "messages": [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    }


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _library_files(folder: Path) -> Iterator[Path]:
    for name in sorted(sys.stdlib_module_names - EXCLUDED_MODULES):
        if name.startswith("_"):
            continue
        path = folder / f"{name}.py"
        if path.is_file():
            yield path
        for inner in sorted((folder / name).rglob("*.py")):
            parts = inner.relative_to(folder).with_suffix("").parts
            private = any(part.startswith("_") and part != "__init__" for part in parts)
            if not private and not EXCLUDED_MODULES & set(parts):
                yield inner


def _module_name(folder: Path, path: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _docstrings(path: Path, module: str) -> Iterator[Docstring]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # the standard library contains templates that are not valid Python
    yield from _answer("module", module, module, "", tree)
    yield from _members(tree, module, module)


def _members(parent: ast.AST, prefix: str, module: str) -> Iterator[Docstring]:
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _answer("class", name, module, "", node)
            yield from _members(node, name, module)
        else:
            yield from _answer("function", name, module, ast.unparse(node.args), node)


def _answer(kind: str, name: str, module: str, arguments: str, node: Any) -> Iterator[Docstring]:
    answer = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
    if MIN_ANSWER <= len(answer) <= MAX_ANSWER:
        yield Docstring(kind, name, module, arguments, answer)
