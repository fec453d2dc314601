"""Write docs/configuration.md from ftdist/config/schema.py, ftdist/config/launch.py and conf/ (`make docs`).

Types and defaults come from the dataclasses, the text under each field from the source by ast.
"""

import ast
import dataclasses
import enum
import re
import typing
from pathlib import Path

from ftdist.config import schema

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"

INTRO = """\
# Configuration reference

<!-- Generated from ftdist/config/schema.py, ftdist/config/launch.py and conf/ by `make docs`: edit those. -->

Every setting of a run, by group. Set one on the command line, `ftdist train experiment=demo optim.lr=2e-5`, or in a
YAML file of your own config folder (`--config-dir`). `ftdist train … --cfg job` prints what a command line amounts to.
A ready-made file of a group is picked as `group=file`.
"""


def field_texts() -> dict[str, dict[str, str]]:
    """The text under each field, by class and field."""
    sources = [(ROOT / "ftdist" / "config" / name).read_text(encoding="utf-8") for name in ("schema.py", "launch.py")]
    texts: dict[str, dict[str, str]] = {}
    for node in [node for source in sources for node in ast.parse(source).body]:
        if not isinstance(node, ast.ClassDef):
            continue
        texts[node.name] = {}
        for statement, following in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                texts[node.name][statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def type_name(hint: typing.Any) -> str:
    """A type as a user reads it: the choices of an enum, ``none or int``, ``map of …``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        return " or ".join(type_name(part) for part in arguments if part is not type(None)) + " or null"
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "map" if arguments[1] is typing.Any else f"map of {type_name(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__.removesuffix('Config').lower()}](#{hint.__name__.removesuffix('Config').lower()})"
    if isinstance(hint, enum.EnumMeta):
        return " ".join(f"`{member}`" for member in hint.__members__)
    return {"str": "text", "float": "number", "int": "integer", "bool": "`true` `false`"}.get(hint.__name__, str(hint))


def default_of(field: dataclasses.Field) -> str:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    if value is None:
        return "null"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")


def section(title: str, cls: type, prefix: str) -> list[str]:
    texts, hints = field_texts()[cls.__name__], typing.get_type_hints(cls)
    lines = [f"## {title}", ""]
    ready_made = sorted(path.stem for path in (ROOT / "conf" / title).glob("*.yaml"))
    if ready_made:
        lines += ["Ready-made: " + ", ".join(f"`{title}={name}`" for name in ready_made) + ".", ""]
    lines += ["| setting | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        row = [f"`{prefix}{field.name}`", type_name(hints[field.name]), f"`{default_of(field)}`",
               markdown(texts.get(field.name, ""))]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    lines.append("")
    for name, hint in hints.items():
        if cls is not schema.RunConfig and dataclasses.is_dataclass(hint):
            lines += section(f"{title}.{name}", hint, f"{prefix}{name}.")  # type: ignore[arg-type]
    return lines


def page() -> str:
    lines = [INTRO]
    experiments = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
    if experiments:
        lines += [
            "## experiment",
            "",
            "A whole run each: " + ", ".join(f"`experiment={n}`" for n in experiments) + ".",
            "",
        ]
    lines += section("run", schema.RunConfig, "")
    for name, hint in typing.get_type_hints(schema.RunConfig).items():
        if dataclasses.is_dataclass(hint):
            lines += section(name, hint, f"{name}.")  # type: ignore[arg-type]
            if name == "data":
                lines += section("source", schema.SourceConfig, "data.sources.NAME.")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
