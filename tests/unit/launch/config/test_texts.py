"""Text keeps what was typed, also where it looks like a number."""

import dataclasses
import shlex
import typing
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ftdist.base.errors import ConfigError
from ftdist.config.frozen import dump_config, parse_config
from ftdist.config.schema import RunConfig
from ftdist.launch.config import compose, keys, sweeper
from ftdist.launch.config.texts import quote_texts
from tests.unit.compose_tools import composed

NUMBERS = ["12e3", "1234e567", "1.10", "+5", "1_000", "-0", "inf", "nan", "true", "FALSE", "010", "0x1F", "12:30", "7"]


def smoke(*words: str) -> RunConfig:
    return composed("experiment=smoke", *words)


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.thorough
def test_the_command_line_is_taken_as_text(text: str) -> None:
    places = ["name", "track.group", "++model.revision", "launch.slurm.env.A", "+data.sources.mine.path"]
    config = smoke(*(f"{key}={text}" for key in places))
    for key in places:
        node: Any = config
        for name in key.lstrip("+").split("."):
            node = node[name] if isinstance(node, dict) else getattr(node, name)
        assert node == text, key


def test_every_text_setting_keeps_its_text() -> None:
    """A setting that is added later is covered without being named anywhere."""
    texts = [key for key, kind in keys.schema_keys().items() if keys.is_text(kind)]
    assert len(texts) > 25 and {"name", "track.run_id", "model.revision", "launch.slurm.mem"} <= set(texts)
    assert quote_texts([f"{key}=1e3" for key in texts]) == [f"{key}='1e3'" for key in texts]
    others = [key for key in keys.schema_keys() if key not in texts]
    assert quote_texts([f"{key}=1e3" for key in others]) == [f"{key}=1e3" for key in others]


SAME = [
    "name=abc", "name=7", "name='1e3'", 'name="1e3"', "name=${seed}", "name=", "name=null", "~name", "name", "name=[",
    "optim.lr=1e-3", "optim=wsd", "train.max_steps=1_0", "model.config.x=1e3", "zero.deepspeed={a:1e3}",
    "seed=range(0,3)", "name=a,b", "name=1,2", "optim.lr=1e-3,1e-4", "optim=glob(*)", "hydra/sweeper=optuna",
]  # fmt: skip


@pytest.mark.parametrize("word", SAME)
def test_other_words_stay_as_they_are(word: str) -> None:
    """Trials of a sweep that began with an older version have the same overrides."""
    assert quote_texts([word]) == [word]


NESTED = {
    "launch.slurm.modules=[1.10,a]": "launch.slurm.modules=['1.10',a]",
    "launch.slurm.modules=[a b, 1.10]": "launch.slurm.modules=[a b,'1.10']",
    "model.new_special_tokens=[1,2]": "model.new_special_tokens=[1,2]",
    "launch.slurm.env={A:1e3,B:x,C:7}": "launch.slurm.env={A:'1e3',B:x,C:7}",
    "+data.sources.mine={path:1e3,weight:2.0}": "+data.sources.mine={path:'1e3',weight:2.0}",
    "name=1e3,a,2e3": "name='1e3',a,'2e3'",
    "name=choice(1e3,a)": "name=choice('1e3',a)",
    "launch.slurm.env={A:'x',B:7}": "launch.slurm.env={A:'x',B:7}",
}


@pytest.mark.parametrize("word", NESTED)
def test_text_in_lists_mappings_and_sweeps(word: str) -> None:
    assert quote_texts([word]) == [NESTED[word]]


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("launch.slurm.modules=[1.10,'a b']", "1.1"),
        ("launch.slurm.env={A:'x',B:+1,C:1}", "1"),
        ("data.sources={mine:{path:1e3}}", "1000.0"),
        ("name=choice(1e3,'a b')", "1000.0"),
        ("launch.slurm.env={A:'true',B:true}", "True"),
    ],
)
def test_text_that_cannot_be_known_is_refused(word: str, number: str) -> None:
    with pytest.raises(ConfigError) as error:
        quote_texts([word])
    assert error.value.found == f"{word}: Hydra would read a text in this value as {number}"
    assert error.value.fix.startswith(f"write it in double quotes: '{word.partition('=')[0]}=")


def test_a_frozen_config_is_changed_with_text() -> None:
    changed = compose.change(smoke(), ["launch.slurm.partition=12e3", "launch.slurm.modules=[1.10]"])
    assert (changed.launch.slurm.partition, changed.launch.slurm.modules) == ("12e3", ["1.10"])


def test_an_item_of_a_list_keeps_its_text() -> None:
    assert smoke("track.tags=[a,b]", "track.tags.0=1e3", "track.tags.1=0x1").track.tags == ["1e3", "0x1"]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("launch.slurm.env={1e3:x}", "a key in launch.slurm.env is read as the number 1000.0"),
        ("data.sources={true:{builtin:fake}}", "a key in data.sources is read as the boolean True"),
        ("+seed.1e3=7", "cannot read the override '+seed.1e3=7': Hydra reads no key such as '1e3'"),
        ("data.sources.007.path=x", "cannot read the override 'data.sources.007.path=x': Hydra reads no key such as "
                                    "'007'"),
        ("+model.config.ü=1", "cannot read the override '+model.config.ü=1': Hydra reads no key such as 'ü'"),
        ("track.tags=[[1e3]]", "track.tags holds [1000.0]"),
        ("track.tags=[{a:1}]", "track.tags holds {'a': 1}"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_stay_what_it_is_is_refused(word: str, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        smoke(word)
    assert error.value.found == found


def test_names_in_a_file_stay_what_they_are_or_are_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    for env, found in (("{'1e3': a}", ""), ("{010: a}", "is read as the number 8"), ("{on: a}", "the boolean True")):
        file.write_text(f"# @package _global_\ndefaults: [smoke, _self_]\ndata: {{chat_template_kwargs: {env}}}\n")
        if not found:
            config = smoke(f"--config-dir={tmp_path}", "experiment=mine")
            assert parse_config(dump_config(config), "run.yaml").data.chat_template_kwargs == {"1e3": "a"}
            continue
        with pytest.raises(ConfigError, match=f"in experiment/mine.yaml: a key in data.chat_template_kwargs .*{found}"):
            smoke(f"--config-dir={tmp_path}", "experiment=mine")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["name=12e3,a,1.10"], ["12e3", "a", "1.10"]),
        (["name=choice(12e3,true)"], ["12e3", "true"]),
        (["seed=1,2", "name=12e3"], ["12e3", "12e3"]),
    ],
)
@pytest.mark.thorough
def test_a_sweep_keeps_text(words: List[str], names: List[str]) -> None:
    found: List[str] = []

    def run_trials(batch: List[Tuple[List[str], sweeper.ComposeTrial]], first: int) -> List[float]:
        found.extend(compose_trial().name for _, compose_trial in batch)
        return [0.0] * len(batch)

    request = sweeper.SweepRequest(["experiment=smoke", *words], None, "run")
    sweeper.sweep(request, run_trials)
    assert found == names
    assert sweeper.peek_sweep(sweeper.SweepRequest(["experiment=smoke", "name=12e3"], None, "run")).name == "12e3"


def test_a_search_space_in_a_file_keeps_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [run, _self_]\nhydra: {sweeper: {params: {name: '12e3,7'}}}\n")
    names: List[str] = []

    def run_trials(batch: List[Tuple[List[str], sweeper.ComposeTrial]], first: int) -> List[float]:
        names.extend(compose_trial().name for _, compose_trial in batch)
        return [0.0] * len(batch)

    sweeper.sweep(sweeper.SweepRequest(["experiment=smoke"], str(tmp_path), "mine"), run_trials)
    assert names == ["12e3", "7"]


LAUNCH = """\
launch:
  slurm:
    {time: 12:00:00, mem: 0, account: null, partition: 1e3, env: {A: 010, B: yes, C: "1e3"}, modules: [1.10, on, a]}
"""


def check_launch(config: RunConfig) -> None:
    slurm = config.launch.slurm
    assert (slurm.time, slurm.mem, slurm.account, slurm.partition) == ("12:00:00", "0", None, "1e3")
    assert (slurm.env, slurm.modules) == ({"A": "010", "B": "yes", "C": "1e3"}, ["1.10", "on", "a"])


def test_an_experiment_keeps_text(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [smoke, _self_]\nname: 12e3\nmodel: {revision: 123456e7}\n"
        "data: {sources: {fake: {revision: 0o17}}}\ntrack: {run_id: '${name}', tags: [1e3]}\n" + LAUNCH
    )
    config = smoke(f"--config-dir={tmp_path}", "experiment=mine")
    assert (config.name, config.model.revision, config.track.run_id) == ("12e3", "123456e7", "12e3")
    assert (config.data.sources["fake"].revision, config.track.tags) == ("0o17", ["1e3"])
    check_launch(config)
    changed = smoke(f"--config-dir={tmp_path}", "experiment=mine", "name=1e4", "launch.slurm.modules=[2]")
    assert (changed.name, changed.launch.slurm.modules) == ("1e4", ["2"])


def test_a_primary_config_and_the_file_of_a_group_keep_text(tmp_path: Path) -> None:
    (tmp_path / "launch" / "site").mkdir(parents=True)
    (tmp_path / "launch" / "site" / "own.yaml").write_text("# @package launch\nslurm: {partition: 1e3, mem: 1_0}\n")
    (tmp_path / "launch" / "mine.yaml").write_text("slurm: {account: 1e5, partition: 2e3}\n")
    (tmp_path / "mine.yaml").write_text("defaults: [run, _self_]\nname: 1.10\n")
    config = smoke(f"--config-dir={tmp_path}", "launch/site=own", "launch=mine", "--config-name=mine")
    slurm = config.launch.slurm
    assert (slurm.partition, slurm.mem, slurm.account, config.name) == ("2e3", "1_0", "1e5", "1.10")


def test_merge_keys_of_yaml_keep_text(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [smoke, _self_]\n"
        "data:\n  sources:\n    fake: &one {builtin: fake, subset: 1e3}\n    two: {<<: *one, revision: 2e3}\n"
    )
    sources = smoke(f"--config-dir={tmp_path}", "experiment=mine").data.sources
    assert (sources["fake"].subset, sources["two"].subset, sources["two"].revision) == ("1e3", "1e3", "2e3")


def test_the_site_file_keeps_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTDIST_SITE", str(tmp_path / "site.yaml"))
    (tmp_path / "site.yaml").write_text(LAUNCH)
    check_launch(smoke())
    assert smoke("launch.slurm.partition=2e3").launch.slurm.partition == "2e3"
    assert sweeper.peek_sweep(sweeper.SweepRequest(["experiment=smoke"], None, "run")).name == "smoke"


def all_texts(node: Any = RunConfig, prefix: str = "") -> Dict[str, Any]:
    """Every setting that holds text, with a value of texts that YAML reads as something else. Items are named mine."""
    found: Dict[str, Any] = {}
    for name, kind in typing.get_type_hints(node).items():
        first, second = (NUMBERS[(len(prefix + name) + shift) % len(NUMBERS)] for shift in (0, 5))
        item = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None
        if dataclasses.is_dataclass(kind):
            found[name] = all_texts(kind, f"{prefix}{name}.")
        elif dataclasses.is_dataclass(item):
            found[name] = {"mine": all_texts(item, f"{prefix}{name}.mine.")}
        elif keys.is_text(kind):
            found[name] = first
        elif kind == List[str] or kind == Dict[str, str]:
            found[name] = [first, second, "a"] if kind == List[str] else {"A": first, "B": second}
    return found


def as_yaml(value: Any) -> str:
    """Write texts without quotes, as a user does who does not think of it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(value) + "]" if isinstance(value, list) else str(value)


def differing(found: Any, expected: Any, key: str = "") -> List[str]:
    if not isinstance(expected, dict):
        return [] if found == expected and type(found) is type(expected) else [f"{key}: {expected!r} → {found!r}"]
    get = found.get if isinstance(found, dict) else lambda name: getattr(found, name)
    return [line for name, item in expected.items() for line in differing(get(name), item, f"{key}.{name}")]


@pytest.mark.parametrize("place", ["experiment", "primary", "site", "frozen"])
def test_every_text_setting_of_every_file_keeps_its_text(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, lists and mappings of text, of sources too. One that is added later is covered."""
    monkeypatch.setattr(compose, "check_config", lambda config: None)  # such texts are no machines, times and images
    texts = all_texts()
    content = "".join(f"{key}: {as_yaml(value)}\n" for key, value in texts.items() if value)
    expected = dict(texts)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [smoke, _self_]\n" + content)
    (tmp_path / "mine.yaml").write_text("defaults: [run, _self_]\n" + content)
    words = {"primary": ["--config-name=mine"], "site": []}.get(place, ["experiment=mine"])
    if place == "site":
        monkeypatch.setenv("FTDIST_SITE", str(tmp_path / "mine.yaml"))
        (tmp_path / "mine.yaml").write_text(content)
        expected |= {"name": "smoke", "model": {**texts["model"], "tokenizer": "bytes"}}  # the experiment wins
    config = smoke(f"--config-dir={tmp_path}", *words)
    if place == "frozen":
        config = parse_config(dump_config(config), "run.yaml")
    assert differing(config, expected) == []


NOT_TEXT: Dict[str, Any] = {"train.max_steps=1_0": 10, "optim.lr=1e-3": 1e-3, "train.export=false": False, "seed=+5": 5}


@pytest.mark.parametrize("word", NOT_TEXT)
def test_numbers_and_booleans_are_read_as_before(word: str) -> None:
    node: Any = smoke(word)
    for name in word.partition("=")[0].split("."):
        node = getattr(node, name)
    assert node == NOT_TEXT[word] and type(node) is type(NOT_TEXT[word])


@pytest.mark.parametrize("value", ["größe 5→ü", "it's", 'a"b', "a\\'b ö", "ö\\", "a(b", "日本/$x", "x y'\\", "choice"])
def test_text_that_hydra_cannot_read_is_taken_as_it_is(value: str) -> None:
    (word,) = quote_texts([f"name={value}"])
    assert OverridesParser.create().parse_override(word).value() == value


@pytest.mark.parametrize("word", ["name='größe", "name=choice(ö,b)", "name=[ö", "name=ö,b", "name=ö${x}", "optim.lr=ö"])
def test_a_mistake_in_hydras_syntax_is_left_for_hydra_to_name(word: str) -> None:
    assert quote_texts([word]) == [word]


@pytest.mark.parametrize("value", [" a", "a ", " größe "])
def test_spaces_around_a_text_stay(value: str) -> None:
    """They can be part of the name of a file."""
    assert smoke(f"+data.sources.mine.path={value}").data.sources["mine"].path == value


@pytest.mark.parametrize("value", ["'tis", '"', "[a", "(a", "{a", "a,b", "1,2", "choice(a)", "NULL", "[1]", "{a:1}"])
@pytest.mark.thorough
def test_the_fix_for_a_text_that_is_hydras_syntax_gives_that_text(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        smoke(f"name={value}")
    command = error.value.fix.removeprefix("add -m, or quote the text: ")
    assert smoke(*shlex.split(command)).name == value
