"""The config hash and old run directories: settings that were added later leave both as they were."""

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ftdist.base.errors import ConfigError
from ftdist.config import frozen, resumable
from ftdist.config.data import HeldoutBy, SourceConfig
from ftdist.config.frozen import dump_config, load_config, parse_config
from ftdist.config.resumable import CHANGEABLE, config_hash
from ftdist.config.schema import ADDED_LATER, LossHead, RunConfig

FIRST_HASH = "8c0a5a749929b32f8a9185e9b8bdb96c05451cea7a65968e2381ec03c4e70291"
"""Hash of the default config at the first release. Manifests of old checkpoints hold such hashes."""

FIRST_HASH_WITH_SOURCES = "d62d86f3623a167b20a3faa463433a84f7958bcd31df546cb1126e36f9d3e0c5"
"""The same for a config with one training source and one held-out source."""
OF_EVERY_CONFIG = [key for key in ADDED_LATER if "*" not in key]


def old_config() -> RunConfig:
    """Return the default config of the first release. Settings whose default has changed since have their old value."""
    config = RunConfig()
    config.data.heldout_by, config.data.builtin_general = HeldoutBy.rendering, False
    config.objective.router_aux_loss, config.objective.loss_head = 0.0, LossHead.logits
    config.optim.beta1, config.optim.beta2, config.optim.eps = 0.9, 0.95, 1e-8
    return config


def test_settings_added_later_leave_the_hash_as_it_was() -> None:
    assert config_hash(old_config()) == FIRST_HASH
    assert config_hash(RunConfig()) != FIRST_HASH, "the defaults of some settings have changed"


@pytest.mark.parametrize(
    "key", [key for key in OF_EVERY_CONFIG if not key.startswith(("launch.", "sweep", *CHANGEABLE))]
)  # may change
def test_a_setting_added_later_is_hashed_when_it_has_another_value(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resumable.ADDED_LATER, key, "a value that this setting never has")
    assert config_hash(old_config()) != FIRST_HASH


def test_a_whole_section_can_be_added_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before: Any = {"deterministic": False, "detect_anomaly": False}  # the section `debug`, as if it were new
    monkeypatch.setitem(resumable.ADDED_LATER, "debug", before)
    hashed = config_hash(RunConfig())
    assert hashed != FIRST_HASH
    changed = RunConfig()
    changed.debug.deterministic = True
    assert config_hash(changed) != hashed

    monkeypatch.setitem(frozen.ADDED_LATER, "debug", {"deterministic": True, "detect_anomaly": False})
    monkeypatch.setattr(frozen, "_schema", frozen._schema.__wrapped__)  # not the one that was made before
    old = re.sub(r"^debug:\n(  .*\n)+", "", dump_config(RunConfig()), flags=re.M)
    assert "debug" not in old
    (tmp_path / "run.yaml").write_text(old)
    assert load_config(tmp_path / "run.yaml").debug.deterministic, "the value that means the old behaviour"


@pytest.mark.parametrize("key", OF_EVERY_CONFIG)
@pytest.mark.thorough
def test_an_old_run_yaml_gets_the_value_of_the_old_behaviour(key: str, tmp_path: Path) -> None:
    whole = OmegaConf.create(dump_config(old_config()))
    *owners, name = key.split(".")
    del (OmegaConf.select(whole, ".".join(owners)) if owners else whole)[name]
    path = tmp_path / "run.yaml"
    path.write_text(OmegaConf.to_yaml(whole))
    config = load_config(path)
    found = OmegaConf.select(OmegaConf.structured(config), key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == ADDED_LATER[key]
    assert config_hash(config) == FIRST_HASH
    assert parse_config(dump_config(config), "dump") == config


def test_a_setting_of_each_source_that_was_added_later_leaves_the_hash_as_it_was(tmp_path: Path) -> None:
    config = old_config()
    config.data.sources = {"mine": SourceConfig(path="a.jsonl")}
    config.data.heldout = {"held": SourceConfig(path="b.jsonl")}
    assert config_hash(config) == FIRST_HASH_WITH_SOURCES
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config).replace("      fields: {}\n", ""))
    assert "fields" not in path.read_text()
    assert load_config(path) == config
    config.data.heldout["held"].fields = {"prompt": "question"}
    assert config_hash(config) != FIRST_HASH_WITH_SOURCES


def test_a_section_that_was_not_added_later_is_required(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(re.sub(r"^zero:\n(  .*\n)+", "", dump_config(RunConfig()), flags=re.M))
    with pytest.raises(ConfigError, match="run.yaml is incomplete: zero is missing"):
        load_config(path)


def test_the_last_section_was_there_from_the_start() -> None:
    """A file that was cut off at its end could otherwise not be told from an old one."""
    assert list(RunConfig.__dataclass_fields__)[-1] not in ADDED_LATER


def test_the_config_hash_covers_what_a_resume_cannot_change() -> None:
    def hashed(**changes: Any) -> str:
        config = RunConfig()
        for key, value in changes.items():
            owner, name = key.split("__")
            setattr(getattr(config, owner), name, value)
        return config_hash(config)

    assert hashed() == hashed(zero__stage=0, launch__nproc_per_node=7, batch__grad_accum_steps=2, track__run_id="x")
    for other in (
        {"optim__lr": 1.0},
        {"batch__global_batch_size": 2},
        {"train__max_steps": 2},
        {"data__packing": False},
    ):
        assert hashed() != hashed(**other)
