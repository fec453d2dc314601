"""What ftdist uses of Hydra and argparse although it is not public. Each test says what a new version has changed."""

import re
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.types import RunMode
from omegaconf import OmegaConf

from ftdist.launch.config import compose, hydra_private, sweeper
from ftdist.launch.config.origins import COMMAND_LINE, find_origins
from ftdist.launch.config.session import SCHEMA, session

LAUNCH = Path(__file__).resolve().parents[4] / "launch"
PRIVATE = {
    r"hydra\._internal": "a module of hydra._internal",
    r"(?:parser|hydra|loader|plugin|action|GlobalHydra\.instance\(\)\.hydra|\))\._(?!target_)[a-z]\w+":
        "a private attribute of an object of Hydra or argparse",
    r"GlobalHydra\.instance\(\)\.hydra\b": "Hydra's own object",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(LAUNCH.rglob("*.py")), ids=lambda path: str(path.relative_to(LAUNCH)))
def test_only_one_module_uses_what_is_private(path: Path) -> None:
    if path.name == "hydra_private.py":
        return
    code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text(encoding="utf-8"))
    for pattern, what in PRIVATE.items():
        found = re.search(pattern, code)
        assert found is None, (
            f"{path}: {found and found.group()} is {what}: put it into hydra_private.py, with the reason"
        )


def test_hydra_still_prints_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    with session(None, compose.schema()):
        for what, says in (("defaults", "experiment/smoke"), ("searchpath", "pkg://ftdist.conf")):
            hydra_private.show_info(what, "run", ["experiment=smoke"])
            assert says in capsys.readouterr().out, "Hydra.show_info no longer prints this: --info needs another way"


def test_hydra_still_completes_a_line() -> None:
    with session(None, compose.schema()) as loader:
        found = hydra_private.offers(loader, "run", "experiment=smoke optim=w")
    assert found == ["optim=wsd"], "CompletionPlugin._query has changed: tab completion of overrides needs another way"


def test_hydra_still_lists_defaults_in_the_order_of_merging() -> None:
    """The return type of the public method compute_defaults_list is Any."""
    with session(None, compose.schema()) as loader:
        found = loader.compute_defaults_list("run", ["experiment=smoke", "seed=3", "optim=wsd"], RunMode.RUN)
    entries = [entry for entry in found.defaults if isinstance(entry, ResultDefault)]
    assert len(entries) == len(found.defaults), "the entries of Hydra's defaults list are of another type"
    places = {entry.config_path: (number, entry.package) for number, entry in enumerate(entries)}
    assert places[SCHEMA][1] == "" and places["optim/wsd"][1] == "optim" and places["experiment/smoke"][1] == "", places
    assert places[SCHEMA][0] < places["optim/wsd"][0] < places["experiment/smoke"][0], (
        "the order of merging has changed"
    )
    assert [override.key_or_group for override in found.config_overrides] == ["seed"]


def test_hydra_still_composes_with_a_defaults_list_that_can_be_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    compute, computed = config_loader_impl.create_defaults_list, []

    def counted(**how: Any) -> Any:
        computed.append([override.input_line for override in how["overrides_list"]])
        return compute(**how)

    monkeypatch.setattr(config_loader_impl, "create_defaults_list", counted)
    words = ["seed=3", "experiment=smoke", "hydra.verbose=true", "optim=wsd"]
    with session(None, compose.schema()) as loader:
        composed = loader.load_configuration("run", words, RunMode.RUN)
        found = find_origins(composed, loader)
        assert computed == [words], "Hydra no longer composes with this function: the defaults list is computed twice"
        other = find_origins(loader.load_configuration("run", ["experiment=smoke"], RunMode.RUN), loader)
    assert found["seed"].where == COMMAND_LINE and "seed" not in other
    assert config_loader_impl.create_defaults_list is counted


def test_hydra_still_tells_where_it_found_config_files(tmp_path: Path) -> None:
    with session(str(tmp_path), compose.schema()) as loader:
        own = loader.load_configuration("run", ["experiment=smoke"], RunMode.RUN).hydra
    sources = [(source.schema, source.path) for source in own.runtime.config_sources]
    assert sources[:3] == [("pkg", "hydra.conf"), ("file", str(tmp_path)), ("pkg", "ftdist.conf")], sources
    assert own.job.config_name == "run" and list(own.overrides.task) == ["experiment=smoke"]


def test_hydra_still_parses_overrides() -> None:
    parser = OverridesParser.create()
    one = parser.parse_override("+name=1e3")
    assert (one.key_or_group, one.value(), one.get_value_string()) == ("name", 1000.0, "1e3")
    two = parser.parse_override("name=1e3,a").value()
    assert isinstance(two, ChoiceSweep) and two.list == [1000.0, "a"], "a sweep over choices is parsed in another way"
    assert parser.parse_rule(" 1_0", "primitive") == 10


def test_hydras_own_sweeper_is_known() -> None:
    with session(None, compose.schema()) as loader:
        composed = loader.load_configuration("run", [], RunMode.MULTIRUN)
    assert composed.hydra.sweeper._target_ == sweeper._target("hydra/sweeper", "basic")
    assert composed.hydra.launcher._target_ == sweeper._target("hydra/launcher", "basic")
    assert OmegaConf.is_config(composed.hydra.callbacks) and not composed.hydra.callbacks


def test_argparse_still_passes_every_argument_through_add_argument() -> None:
    from ftdist.launch.verbs.table import INTERNAL, VERBS, parser_of

    for name in (*VERBS, *INTERNAL):
        parser = parser_of(name)
        shown = re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.sub(r"usage:.*", "", parser.format_help()))
        assert "--help" in parser.flags, "argparse no longer adds --help through add_argument"
        assert set(shown) & set(parser.flags) and {flag for flag in parser.flags if flag not in shown} == set(), name
