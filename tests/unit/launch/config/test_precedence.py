"""Settings of which a run has only one: of two that are set, the more specific one wins."""

from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.frozen import dump_config, parse_config
from ftdist.launch.cli import dispatch
from ftdist.launch.config import compose, sweeper
from ftdist.plan.warmup import fit_schedule
from tests.unit.compose_tools import composed

TINY = ("model=tiny_llama", "data=fake")
"""A complete run without an experiment."""


def length(*words: str) -> Tuple[Optional[float], Optional[int]]:
    train = composed(*words).train
    return train.epochs, train.max_steps


def warmup(*words: str) -> Tuple[int, Optional[float], bool]:
    optim = composed(*words).optim
    return optim.warmup_steps, optim.warmup_ratio, optim.shorten_warmup


FILES = {
    "experiment/steps.yaml": "# @package _global_\ndefaults: [smoke, _self_]\ntrain: {max_steps: 9}\n",
    "experiment/epochs.yaml": "# @package _global_\ndefaults: [smoke, _self_]\ntrain: {epochs: 2}\n",
    "experiment/cleared.yaml": "# @package _global_\ndefaults: [smoke, _self_]\ntrain: {epochs: 2, max_steps: null}\n",
    "experiment/both.yaml": "# @package _global_\ndefaults: [smoke, _self_]\ntrain: {epochs: 2, max_steps: 3}\n",
    "experiment/ratio.yaml":
        "# @package _global_\ndefaults: [smoke, {override /optim: cosine}, _self_]\noptim: {warmup_ratio: 0.5}\n",
    "experiment/none.yaml":
        "# @package _global_\ndefaults: [smoke, {override /optim: cosine}, _self_]\noptim: {warmup_steps: 0}\n",
    "train/seven.yaml": "max_steps: 7\n",
    "optim/share.yaml": "warmup_ratio: 0.25\n",
    "mine.yaml": "defaults: [run, _self_]\ntrain: {max_steps: 11}\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own config folder, as the flag that names it."""
    for name, text in FILES.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    monkeypatch.setenv("FTDIST_SITE", str(tmp_path / "site.yaml"))
    return f"--config-dir={tmp_path / 'own'}"


LENGTHS = {
    "train.max_steps=5": (None, 5),
    "train=quick": (None, 20),
    "train=three_epochs": (3, None),
    "train=three_epochs train.max_steps=5": (None, 5),
    "train=quick train.epochs=2": (2, None),
    "train.epochs=2 train.max_steps=null": (2, None),
    "++train.max_steps=5": (None, 5),
    "experiment=smoke": (None, 6),
    "experiment=smoke train.epochs=2": (2, None),
    "experiment=smoke train=three_epochs": (None, 6),  # an experiment is merged after the groups, whoever chose them
    "experiment=smoke train=three_epochs train.epochs=5": (5, None),
    "experiment=steps": (None, 9),
    "experiment=steps train=three_epochs": (None, 9),
    "experiment=steps train.epochs=1": (1, None),
    "experiment=epochs": (2, None),  # over the experiment that it builds on
    "experiment=epochs train=seven": (2, None),
    "experiment=cleared": (2, None),
    "experiment=both train.epochs=4": (4, None),
    "--config-name=mine": (None, 11),
    "--config-name=mine train=three_epochs": (None, 11),
    "--config-name=mine train.epochs=1": (1, None),
    "train=seven": (None, 7),
}


@pytest.mark.parametrize("words", LENGTHS)
@pytest.mark.thorough
def test_the_more_specific_run_length_wins(words: str, folder: str) -> None:
    start = () if "experiment=" in words else TINY
    assert length(folder, *start, *words.split()) == LENGTHS[words]


def test_the_site_file_is_the_least_specific(folder: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("train: {max_steps: 50}\n")
    assert length(*TINY) == (1, None)  # conf/run.yaml takes train=one_epoch
    assert length(*TINY, "~train") == (None, 50)
    assert length(*TINY, "~train", "train.epochs=2") == (2, None)
    (tmp_path / "site.yaml").write_text("train: {max_steps: 50, epochs: 2}\n")
    with pytest.raises(ConfigError, match=r"train.max_steps=50 and train.epochs=2.0 are both set in .*site.yaml"):
        composed(*TINY, "~train")


BOTH: Dict[str, Tuple[str, str]] = {
    "experiment=smoke train.epochs=1 train.max_steps=5":
        ("train.max_steps=5 and train.epochs=1.0 are both set on the command line", "leave out train.epochs"),
    "experiment=both":
        ("train.max_steps=3 and train.epochs=2.0 are both set in experiment/both.yaml", "leave out train.epochs"),
    "experiment=smoke optim.warmup_steps=1 optim.warmup_ratio=0.5":
        ("optim.warmup_steps=1 and optim.warmup_ratio=0.5 are both set on the command line",
         "leave out optim.warmup_ratio"),
}  # fmt: skip


@pytest.mark.parametrize("words", BOTH)
def test_both_at_one_level_are_an_error(words: str, folder: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(folder, *words.split())
    assert (error.value.found, error.value.expected, error.value.fix) == (BOTH[words][0], "one of them", BOTH[words][1])


def test_no_length_is_an_error() -> None:
    with pytest.raises(ConfigError, match="neither train.epochs nor train.max_steps is set"):
        composed("experiment=smoke", "train.max_steps=null")


@pytest.mark.thorough
def test_overrides_of_a_trial_count_as_the_command_line(folder: str) -> None:
    found: List[Tuple[Optional[float], Optional[int]]] = []

    def run_trials(batch: list, first: int) -> List[float]:
        configs = [compose_trial() for _, compose_trial in batch]
        found.extend((config.train.epochs, config.train.max_steps) for config in configs)
        return [0.0] * len(batch)

    for words in (["experiment=smoke", "train.epochs=1,2"], [*TINY, "train.max_steps=3,4"], [*TINY, "train=quick"]):
        sweeper.sweep(sweeper.SweepRequest(words, None, "run"), run_trials)
    assert found == [(1, None), (2, None), (None, 3), (None, 4), (None, 20)]


@pytest.mark.thorough
def test_a_frozen_config_is_changed_as_before() -> None:
    config = composed("experiment=smoke")
    changed = compose.change(config, ["zero.stage=1"])
    assert (changed.train, changed.optim) == (config.train, config.optim)
    with pytest.raises(ConfigError, match="train.epochs and train.max_steps are both set"):
        compose.change(config, ["train.epochs=1"])


WARMUPS = {
    "experiment=smoke": (0, None, False),
    "experiment=smoke optim=cosine": (30, None, True),
    "experiment=smoke optim=cosine optim.warmup_steps=3": (3, None, False),
    "experiment=smoke optim=cosine optim.warmup_ratio=0.1": (0, 0.1, False),
    "experiment=smoke optim.warmup_ratio=0.1": (0, 0.1, False),
    "experiment=smoke optim=cosine optim.warmup_ratio=null": (30, None, True),
    "experiment=smoke optim=share": (0, 0.25, True),
    "experiment=ratio": (0, 0.5, False),
    "experiment=ratio optim.warmup_steps=2": (2, None, False),
    "experiment=ratio optim.warmup_steps=0": (0, None, False),
    "experiment=ratio optim.warmup_ratio=null": (30, None, True),
    "experiment=none": (0, None, False),
    "experiment=demo": (4, None, False),
    "experiment=demo train.max_steps=3": (4, None, True),
    "experiment=demo train.max_steps=3 optim.warmup_steps=2": (2, None, False),
    "experiment=demo optim.warmup_steps=2": (2, None, False),
    "experiment=ratio train.epochs=1": (0, 0.5, True),
    "experiment=smoke optim=cosine optim.shorten_warmup=true optim.warmup_steps=9": (9, None, True),
}


@pytest.mark.parametrize("words", WARMUPS)
@pytest.mark.thorough
def test_the_more_specific_warm_up_wins(words: str, folder: str) -> None:
    assert warmup(folder, *words.split()) == WARMUPS[words]


@pytest.mark.parametrize("words", ["optim.warmup_steps=30", "optim.shorten_warmup=false"])
def test_a_warm_up_that_the_user_wants_must_fit(words: str) -> None:
    with pytest.raises(ConfigError, match="= 30, but the run has 6 steps"):
        composed("experiment=smoke", "optim=cosine", words)


def test_a_ratio_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"optim.warmup_ratio=2"):
        composed("experiment=smoke", "optim.warmup_ratio=2")
    config = composed("experiment=smoke")
    config.optim.warmup_ratio, config.optim.warmup_steps = 0.1, 3
    with pytest.raises(ConfigError, match=r"optim.warmup_ratio=0.1 and optim.warmup_steps=3 are both set"):
        compose.change(config, [])


FITTED = {
    "optim=cosine": (0, "the warm-up is 0 steps instead of 30, because the run has only 6 steps"),
    "optim=cosine train.max_steps=29": (2, "the warm-up is 2 steps instead of 30, because the run has only 29 steps"),
    "optim=cosine train.max_steps=30": (30, None),
    "optim=cosine train.epochs=0.5": (2, "the warm-up is 2 steps instead of 30, because the run has only 23 steps"),
    "optim=cosine train.epochs=1": (30, None),
    "optim.warmup_ratio=0.3": (2, None),
    "optim.warmup_ratio=0.3 train.epochs=2": (27, None),
}
"""What 450 rows in batches of 10 give: steps of warm-up, and a note."""


@pytest.mark.parametrize("words", FITTED)
def test_the_frozen_run_has_explicit_warm_up_steps(words: str) -> None:
    config = composed("experiment=smoke", "batch.global_batch_size=10", *words.split())
    steps, note = FITTED[words]
    assert fit_schedule(config, rows=450) == note
    assert (config.optim.warmup_steps, config.optim.warmup_ratio, config.optim.shorten_warmup) == (steps, None, False)
    frozen = parse_config(dump_config(config), "run.yaml")
    assert fit_schedule(frozen, rows=450) is None and frozen == config


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        ("train.max_steps=5", ["epochs: null", "max_steps: 5", "warmup_steps: 0"]),
        ("train.epochs=2", ["epochs: 2.0", "max_steps: null"]),
        ("optim=cosine train.max_steps=20", ["warmup_steps: 2", "shorten_warmup: false"]),
        ("optim.warmup_ratio=0.5", ["warmup_steps: 3", "warmup_ratio: null"]),
        ("optim.warmup_ratio=0.5 train.epochs=1", ["warmup_steps: 0", "warmup_ratio: 0.5"]),
        ("data=file optim=cosine", ["path: ???", "warmup_steps: 30", "shorten_warmup: true"]),
    ],
)
def test_cfg_shows_what_would_be_run(words: str, shows: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["train", "experiment=smoke", *words.split(), "--cfg", "job"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shows if line not in lines] == []
