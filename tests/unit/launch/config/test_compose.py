"""From the command line to the config: Hydra's syntax works, and an error names the nearest right word."""

from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.optim import Schedule
from ftdist.launch.cli import dispatch
from ftdist.launch.config import compose, keys, sweeper
from tests.unit.compose_tools import composed


@pytest.mark.parametrize(
    "words",
    [
        ["+data.sources.mine.path=x.jsonl"],
        ["data.sources.mine.path=x.jsonl"],
        ["+data.sources.mine={path:x.jsonl}"],
        ["data.sources={mine:{path:x.jsonl}}"],
    ],
)
def test_a_source_can_be_added_with_or_without_plus(words: List[str]) -> None:
    assert composed("experiment=smoke", *words).data.sources["mine"].path == "x.jsonl"


def test_overrides_of_groups_and_values_with_plus_and_tilde() -> None:
    config = composed("experiment=smoke", "optim=wsd", "optim.decay_steps=2", "optim.warmup_steps=1",
                      "+zero.deepspeed.wall_clock_breakdown=true", "~launch", "name=x-${seed}")  # fmt: skip
    assert config.optim.schedule is Schedule.wsd
    assert config.zero.deepspeed == {"wall_clock_breakdown": True}
    assert config.launch.nproc_per_node is None and config.name == "x-0"


@pytest.mark.parametrize(
    "word", ["data.chat_template_kwargs={enable_thinking: false}", "data.chat_template_kwargs.enable_thinking=false"]
)
def test_arguments_of_a_chat_template_need_no_plus(word: str) -> None:
    assert composed("experiment=smoke", word).data.chat_template_kwargs == {"enable_thinking": False}


def test_a_config_folder_and_another_primary_config(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - smoke\n  - _self_\noptim:\n  lr: 0.5\n"
    )
    (tmp_path / "mine.yaml").write_text("defaults:\n  - run\n  - _self_\nseed: 7\n")
    assert composed(f"--config-dir={tmp_path}", "experiment=mine").optim.lr == 0.5
    config = composed("--config-dir", str(tmp_path), "--config-name=mine", "experiment=smoke")
    assert (config.seed, config.name) == (7, "smoke")


def test_an_error_in_a_users_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("lrr: 1\n")
    (tmp_path / "optim" / "broken.yaml").write_text("lr: [1\n")
    with pytest.raises(ConfigError) as error:
        composed(f"--config-dir={tmp_path}", "experiment=smoke", "optim=mine")
    assert "in optim/mine.yaml" in str(error.value) and "optim.lr" in error.value.fix
    with pytest.raises(ConfigError, match=r"broken.yaml"):
        composed(f"--config-dir={tmp_path}", "experiment=smoke", "optim=broken")


WRONG = [
    ("experiment=dmo", "experiment has no option 'dmo'", "experiment=demo"),
    ("model=llama31_8", "model has no option 'llama31_8'", "model=llama31_8b"),
    ("launch/site=mine", "has no option 'mine'", "--config-dir FOLDER, if you have FOLDER/launch/site/mine.yaml"),
    ("method=dora", "method has no option 'dora'", "method=lora method.use_dora=true"),
    ("lora_rank=8", "there is no key 'lora_rank'", "method.r=8"),
    ("method.target_modules=all-linear", "target_modules=all-linear", "\"method.target_modules=['all-linear']\""),
    ("method.layers_to_transform=3", "method.layers_to_transform=3", "method.layers_to_transform=[3]"),
    ("optin=wsd", "there is no key or group 'optin'", "optim=wsd"),
    ("train.max_step=1", "there is no key 'train.max_step'", "train.max_steps=1"),
    ("+train.max_step=1", "there is no key 'train.max_step'", "train.max_steps"),
    ("lr=3", "there is no key 'lr'", "optim.lr=3"),
    ("sweep.dir=x", "there is no key 'sweep.dir'", "runs_dir=x"),
    ("trian.max_steps=3", "there is no key 'trian.max_steps'", "train.max_steps=3"),
    ("optim.lrr=3", "there is no key 'optim.lrr'", "optim.lr=3"),
    ("data.sources.fake.wieght=2", "there is no key 'data.sources.fake.wieght'", "data.sources.fake.weight"),
    ("~optim.foo", "there is no key 'optim.foo'", ""),
    ("+foo.bar=3", "there is no key 'foo", ""),
    ("--config-name=rnu", "there is no primary config 'rnu'", ""),
    ("--config-dir=/nowhere", "--config-dir /nowhere is not a folder", ""),
    ("train.max_steps", "'train.max_steps' is not an override", "train.max_steps=VALUE"),
    ("smoke", "'smoke' is not an override", "experiment=smoke"),
    ("zero", "'zero' is not an override", "zero=stage0 or "),
    ("batch_size=3", "there is no key 'batch_size'", "batch.global_batch_size=3"),
    ("train.max_steps=[", "cannot read the override 'train.max_steps=['", ""),
    (
        "launch.slurm.options=[--nodelist=a1,'--exclude=n[1,3]']",
        "cannot read the override",
        "\"launch.slurm.options=['--nodelist=a1','--exclude=n[1,3]']\"",
    ),
    (
        "launch.slurm.options=['-p gpu']",
        "launch.slurm.options holds '-p gpu'",
        "\"launch.slurm.options=['--name=value']\"",
    ),
    ("optim.lr=1,2", "Ambiguous value", "add -m"),
    ("name=${nme}", "nme", ""),
    ("train=3", "a config group was set to a number", ""),
    ("+optim=wsd", "Multiple values for optim", ""),
]


@pytest.mark.parametrize(("word", "found", "fix"), WRONG, ids=[word for word, _, _ in WRONG])
@pytest.mark.thorough
def test_a_misspelt_word_gets_the_nearest_right_one(word: str, found: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("experiment=smoke", word)
    assert found in error.value.found and fix in error.value.fix
    assert "hydra.cc" not in str(error.value) and "full_key" not in str(error.value)


def test_a_wrong_key_of_a_section_gets_keys_of_the_section() -> None:
    with pytest.raises(ConfigError, match="there is no key 'optim.foo'") as error:
        composed("experiment=smoke", "optim.foo=1")
    assert error.value.expected.startswith("a key of optim: ") and "warmup_ratio" in error.value.expected
    assert error.value.fix == "run `ftdist train --cfg job -p optim` to see the keys"
    with pytest.raises(ConfigError) as error:
        composed("experiment=smoke", "optim.beta_1=0.9")
    assert error.value.fix == "optim.beta1=0.9"


@pytest.mark.parametrize("group", ["experiment", "mine"])
def test_a_file_without_a_package_line_is_named(group: str, tmp_path: Path) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / "one.yaml").write_text("optim:\n  lr: 0.5\n")
    word = f"{group}=one" if group == "experiment" else f"+{group}=one"
    with pytest.raises(ConfigError) as error:
        composed(f"--config-dir={tmp_path}", word)
    assert error.value.found.startswith(f"{group}/one.yaml has no line")
    assert f"Hydra puts its keys under '{group}'" in error.value.found
    assert error.value.fix == f"put the line `# @package _global_` at the top of {group}/one.yaml"


@pytest.mark.parametrize(
    ("file", "text", "fix"),
    [
        ("experiment/mine", "defaults: [smoke, {override /optim: cosine}]\nname: x\n",
         "put the line `# @package _global_` at the top of experiment/mine.yaml"),
        ("experiment/sub/mine", "optim: {lr: 1}\n",
         "put the line `# @package _global_` at the top of experiment/sub/mine.yaml"),
        ("launch/site/mine", "slurm: {partition: gpu}\n",
         "put the line `# @package launch` at the top of launch/site/mine.yaml"),
        ("optim/mine", "optim: {lr: 1}\n",
         "leave out the level 'optim:', or put the line `# @package _global_` at the top of optim/mine.yaml"),
        ("optim/mine", "train: {max_steps: 1}\n", "put the line `# @package _global_` at the top of optim/mine.yaml"),
        ("optim/mine", "lrr: 1\n", "optim.lr"),
    ],
)  # fmt: skip
def test_keys_that_hydra_puts_in_another_place_are_explained(file: str, text: str, fix: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / f"{file}.yaml").write_text(text)
    group, _, option = file.partition("/") if file.startswith("experiment") else file.rpartition("/")
    with pytest.raises(ConfigError) as error:
        composed(f"--config-dir={tmp_path}", "experiment=smoke", f"{group}={option}")
    assert error.value.fix == fix and f"{file}.yaml" in error.value.found


@pytest.mark.parametrize(("word", "right"), [("true", "full"), ("False", "none")])
def test_a_value_of_an_earlier_version_is_named_as_it_is_called_now(word: str, right: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("experiment=smoke", f"train.gradient_checkpointing={word}")
    assert error.value.fix == f"train.gradient_checkpointing={right}"


TYPES = [
    ("train.max_steps=abc", "an integer or null"),
    ("batch.global_batch_size=1.5", "an integer"),
    ("optim.lr=fast", "a number"),
    ("train.async_checkpoint=maybe", "true or false"),
    ("train.gradient_checkpointing=maybe", "one of none, full, selective"),
    ("train.precision=fp16", "one of bf16, fp32"),
    ("optim.schedule=cosin", "one of constant, linear, cosine, wsd"),
    ("data.sources.fake.weight=heavy", "a number"),
    ("data.sources.fake.format=txt", "one of auto, text"),
    ("model.new_special_tokens=abc", "a list"),
]


@pytest.mark.parametrize(("word", "expected"), TYPES, ids=[word for word, _ in TYPES])
@pytest.mark.thorough
def test_a_wrong_type_is_reported_with_the_value_and_the_type(word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("experiment=smoke", word)
    assert error.value.found == word and expected in error.value.expected


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data.sources.file.path is not set"):
        composed("experiment=smoke", "data=file")


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"zero.stage=7"):
        composed("experiment=smoke", "zero.stage=7")


def test_a_sweep_composes_every_trial_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []

    def run_trials(batch: list, first: int) -> List[float]:
        found.extend((overrides, compose_trial()) for overrides, compose_trial in batch)
        return [0.0] * len(batch)

    sweeper.sweep(sweeper.SweepRequest(["experiment=smoke", "optim.lr=1e-3,1e-4", "seed=range(0,2)"], None, "run"),
                  run_trials)  # fmt: skip
    assert [(config.optim.lr, config.seed) for _, config in found] == [(1e-3, 0), (1e-3, 1), (1e-4, 0), (1e-4, 1)]
    assert "optim.lr=0.001" in found[0][0] and "seed=0" in found[0][0]
    assert not any(tmp_path.iterdir())


def test_one_wrong_trial_refuses_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"train.max_steps=0"):
        dispatch(["train", "experiment=smoke", "-m", "train.max_steps=5,0"])
    assert capsys.readouterr() == ("", "") and not any(tmp_path.iterdir())


@pytest.mark.thorough
def test_an_error_in_a_trial_names_the_trial(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("lrr: 1\n")
    for words, named in (
        (["optim=glob(*)"], "trial optim=mine: in optim/mine.yaml: there is no key 'optim.lrr'"),
        (["seed=1,2", "optim.lr=1,fast"], "trial seed=1 optim.lr=fast: optim.lr=fast"),
        (["train.max_steps=3,0", "seed=1"], "trial train.max_steps=0: train.max_steps=0"),
    ):
        request = sweeper.SweepRequest(["experiment=smoke", *words], str(tmp_path), "run")
        with pytest.raises(ConfigError) as error:
            sweeper.sweep(request, lambda batch, first: [float(compose_trial().seed) for _, compose_trial in batch])
        assert error.value.found == named


@pytest.mark.thorough
def test_a_frozen_config_can_be_changed() -> None:
    config = composed("experiment=smoke")
    changed = compose.change(config, ["data.heldout.mine.path=x.jsonl", "data.heldout_share=0"])
    assert changed.data.heldout["mine"].path == "x.jsonl" and changed.model == config.model
    with pytest.raises(ConfigError, match=r"there is no key 'data.heldout_shar'"):
        compose.change(config, ["data.heldout_shar=0"])


@pytest.mark.parametrize(
    ("word", "offers"),
    [
        ("experiment=de", ["experiment=demo", "experiment=demo_lora_sweep"]),
        ("optim=", ["optim=constant", "optim=cosine", "optim=linear", "optim=wsd"]),
        ("train.max_s", ["train.max_steps="]),
        ("bat", ["batch.", "batch="]),
    ],
)
def test_hydra_completes_groups_and_keys(word: str, offers: List[str]) -> None:
    assert compose.complete(["experiment=smoke"], word) == offers


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("hydra.run.dir=x", "run_dir=FOLDER"),
        ("hydra.sweep.dir=x", "runs_dir=FOLDER"),
        ("hydra/launcher=basic", "launch=slurm or launch=nodes"),
        ("+hydra.nonsense=1", "leave out +hydra.nonsense=1"),
        ("hydra.sweeper.max_batch_size=1", "leave out hydra.sweeper.max_batch_size=1"),
    ],
)
def test_settings_of_hydra_itself_are_refused(word: str, instead: str) -> None:
    with pytest.raises(ConfigError, match="configures Hydra itself") as error:
        composed("experiment=smoke", word)
    assert error.value.fix == instead


def test_settings_of_hydra_with_an_effect_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "track").mkdir()
    (tmp_path / "track" / "mine.yaml").write_text("project: mine\n")
    words = ("experiment=smoke", f"hydra.searchpath=[file://{tmp_path}]", "track=mine")
    assert composed(*words).track.project == "mine"
    batches: List[int] = []

    def run_trials(batch: list, first: int) -> List[float]:
        batches.append(len(batch))
        return [0.0] * len(batch)

    words = ["experiment=smoke", "seed=1,2", "hydra.sweeper.max_batch_size=1"]
    sweeper.sweep(sweeper.SweepRequest(words, None, "run"), run_trials)
    assert batches == [1, 1]


@pytest.mark.parametrize("place", ["pkg://nowhere", "pkg://ftdist.launch", "file:///nowhere", "/nowhere"])
@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath")
def test_a_search_path_without_configs_is_skipped(place: str) -> None:
    assert composed("experiment=smoke", f"hydra.searchpath=['{place}']").train.max_steps == 6


@pytest.mark.parametrize(
    ("words", "found", "fix"),
    [
        ("data.sources.mine.pth=x.jsonl", "there is no key 'data.sources.mine.pth'", "data.sources.mine.path=x.jsonl"),
        ("+data.heldout.mine.wieght=2", "there is no key 'data.heldout.mine.wieght'", "data.heldout.mine.weight=2"),
        ("data.sources.mine=x.jsonl", "data.sources.mine=x.jsonl", "data.sources.mine.path=FILE"),
    ],
)
def test_the_fix_for_a_wrong_key_of_a_source_keeps_the_value(words: str, found: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("experiment=smoke", words)
    assert (error.value.found, error.value.fix) == (found, fix)


def test_every_key_has_a_type_in_words() -> None:
    for key, kind in keys.schema_keys().items():
        assert "<class" not in keys.describe_type(kind) and "typing" not in keys.describe_type(kind), key


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("optim.learning_rate=1e-5", "optim.lr=1e-5"),
        ("train.num_train_epochs=3", "train.epochs=3"),
        ("data.path=x.jsonl", "data=file data.sources.file.path=x.jsonl"),
    ],
)
def test_names_of_other_tools_are_known(given: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("experiment=smoke", given)
    assert error.value.fix.endswith(fix), str(error.value)
