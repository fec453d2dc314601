"""The limits of W&B are checked before the start, and wandb's own variables have their effect or are named."""

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.login import resolve_mode
from ftdist.config.schema import RunConfig, TrackConfig, Wandb
from ftdist.config.track import check_track, ignored_variables, use_variables

BAD = {
    "empty tag": (TrackConfig(tags=["good", ""]), "a tag in track.tags has 0 characters"),
    "long tag": (TrackConfig(tags=["x" * 65]), "a tag in track.tags has 65 characters"),
    "long project": (TrackConfig(project="x" * 129), "track.project has 129 characters"),
    "project with a slash": (TrackConfig(project="a/b"), "track.project=a/b holds '/'"),
    "long id": (TrackConfig(run_id="x" * 129), "track.run_id has 129 characters"),
    "no id": (TrackConfig(run_id=""), "track.run_id has 0 characters"),
    "id with a colon": (TrackConfig(run_id="a:b"), "track.run_id=a:b holds ':'"),
    "id with a space": (TrackConfig(run_id="ab "), "track.run_id='ab ' begins or ends with a space"),
}


@pytest.mark.parametrize(("track", "message"), BAD.values(), ids=BAD)
def test_what_wandb_would_refuse_is_refused_before_the_start(track: TrackConfig, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_track(track)
    assert error.value.found.startswith(message)
    track.wandb = Wandb.disabled
    check_track(track)


def test_the_bytes_of_a_run_id_count_as_it_is_part_of_the_names_of_files() -> None:
    check_track(TrackConfig(run_id="é" * 64))
    with pytest.raises(ConfigError, match="track.run_id has 130 bytes in UTF-8"):
        check_track(TrackConfig(run_id="é" * 65))


def test_the_limits_are_those_of_the_client() -> None:
    """Each refused value is refused by wandb too, and each at the limit is accepted by both."""
    from wandb import Settings

    fields = {"tags": "run_tags", "project": "project", "run_id": "run_id"}
    default = TrackConfig()
    for track in [track for name, (track, _) in BAD.items() if name != "long id"]:
        for name, field in fields.items():
            if (value := getattr(track, name)) != getattr(default, name):
                with pytest.raises(Exception, match=r"(?i)tag|invalid project|run id"):
                    Settings(**{field: value})
    good = TrackConfig(tags=["x" * 64], project="p q" * 42, run_id="a b-c_d.e")
    check_track(good)
    Settings(run_tags=tuple(good.tags), project=good.project, run_id=good.run_id)


def test_variables_of_wandb_are_used_where_a_setting_has_its_default() -> None:
    variables = {"WANDB_PROJECT": "cats", "WANDB_ENTITY": "team", "WANDB_RUN_GROUP": "litter", "WANDB_TAGS": "a, b",
                 "WANDB_JOB_TYPE": "tune"}  # fmt: skip
    use_variables(track := TrackConfig(), variables)
    assert (track.project, track.entity, track.group, track.tags, track.job_type) == (
        "cats", "team", "litter", ["a", "b"], "tune",
    )  # fmt: skip
    use_variables(track := TrackConfig(project="dogs", tags=["c"]), variables)
    assert (track.project, track.tags) == ("dogs", ["c"])


@pytest.mark.parametrize("value", ["true", "1", "True"])
def test_wandb_disabled_disables_wandb(value: str) -> None:
    key = {"WANDB_API_KEY": "x", "WANDB_DISABLED": value}
    assert resolve_mode(Wandb.auto, key) is Wandb.disabled
    assert resolve_mode(Wandb.online, key) is Wandb.online, "the setting is more specific; a note says so"
    assert resolve_mode(Wandb.auto, {**key, "WANDB_DISABLED": "false"}) is Wandb.online


def test_variables_without_an_effect_are_named() -> None:
    config = RunConfig()
    config.track.wandb = Wandb.online
    variables = {"WANDB_MODE": "disabled", "WANDB_RUN_ID": "x"}
    assert ignored_variables(config, Wandb.online, variables) == [
        "WANDB_MODE=disabled has no effect, because track.wandb=online is set",
        "WANDB_RUN_ID has no effect; set track.run_id",
    ]
    assert ignored_variables(config, Wandb.auto, {"WANDB_MODE": "online"}) == []
    same = {"WANDB_MODE": "online", "WANDB_API_KEY": "x"}
    assert ignored_variables(config, Wandb.online, same) == [], "they ask for what happens anyway"
    config.track.wandb = Wandb.disabled
    assert ignored_variables(config, Wandb.auto, variables) == []
