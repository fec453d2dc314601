"""The house rules that a linter does not know."""

import ast
import dataclasses
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

from ftdist.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60
LIGHT = ("launch", "base", "config", "run", "plan")
"""Packages that load nothing heavy: a usage error answers in well under a second."""
HEAVY = ["torch", "deepspeed", "transformers", "datasets", "wandb"]
MODULES = sorted(path for folder in ("ftdist", "launch") for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration_page", ROOT / "docs" / "configuration.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_classes(cls: type = RunConfig) -> set[type]:
    found = {cls}
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                found |= config_classes(typing.cast(type, part))
    return found


def test_every_setting_is_annotated_and_documented(reference: ModuleType) -> None:
    texts = reference.field_texts()
    settings = [(cls, field) for cls in config_classes() for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    assert len(settings) > 60
    silent = [
        f"{cls.__name__}.{field.name}"
        for cls, field in settings
        if not texts[cls.__name__].get(field.name) and not dataclasses.is_dataclass(field.default_factory)
    ]
    assert not silent, f"say under the field what it is: {silent}"
    for cls in config_classes():
        named = [name for name, value in vars(cls).items() if not isinstance(value, property)]
        bare = [name for name in named if not name.startswith("_") and name not in cls.__annotations__]
        assert not bare, f"{cls.__name__} has attributes without a type: {bare}"


def test_the_configuration_reference_is_fresh(reference: ModuleType) -> None:
    fresh = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference.page()
    assert fresh, "run: make docs"


def test_the_configuration_reference_leaves_nothing_out(reference: ModuleType) -> None:
    page = reference.page()
    for cls in config_classes():
        missing = [
            text for text in reference.field_texts()[cls.__name__].values() if reference.markdown(text) not in page
        ]
        assert not missing, f"{cls.__name__}: {missing}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines: split it"


def test_a_function_is_short() -> None:
    files = [*MODULES, *(path for folder in ("tests", "docs") for path in (ROOT / folder).rglob("*.py"))]
    functions = [
        (path.relative_to(ROOT).as_posix(), node.name, (node.end_lineno or 0) - node.lineno + 1)
        for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]  # fmt: skip
    assert len(functions) > 1000
    long = [found for found in functions if found[2] > MOST_LINES_OF_A_FUNCTION]
    assert not long, f"split them: {long}"


def test_the_light_packages_load_nothing_heavy() -> None:
    packages = [importlib.import_module(f"ftdist.{name}") for name in LIGHT]
    found = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    assert len(found) > 60
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {found}]\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"loaded: {done.stdout}"


WITHOUT_FIX = {
    "ftdist/base/permissions.py": 1,  # an error of the operating system without the name of a file
    "ftdist/train/preempt.py": 1,  # to end is what this process has to do
    "launch/attempt/failure.py": 2,  # quotes the error of a rank or of ftdist, with its fix
    "launch/backends/nodes.py": 1,  # quotes the error of a machine, with its fix
}
"""Number of errors by file for which no fix is known, or which quote one."""


def test_errors_for_the_user_name_a_fix() -> None:
    names = {f"{kind}Error" for kind in ("Ftdist", "Config", "Data", "Launch", "Checkpoint", "Train", "Access")}
    without: dict[str, int] = {}
    for path in MODULES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in names:
                continue
            fix = [k.value for k in call.keywords if k.arg == "fix"] or call.args[2:3]
            starred = any(isinstance(argument, ast.Starred) for argument in call.args)
            if not starred and (not fix or (isinstance(fix[0], ast.Constant) and not fix[0].value)):
                name = path.relative_to(ROOT).as_posix()
                without[name] = without.get(name, 0) + 1
    assert without == WITHOUT_FIX
