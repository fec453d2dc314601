"""The W&B settings of a run: values from wandb's own variables, and W&B's limits, which are checked before the
start."""

import os
from typing import List, Mapping

from ftdist.base.errors import ConfigError
from ftdist.config.login import resolve_mode
from ftdist.config.schema import RunConfig, TrackConfig, Wandb

MAX_PROJECT, MAX_TAG, MAX_ID = 128, 64, 128
"""Maximum number of characters of a project's name and of a tag (source: wandb's ``Settings``), and of bytes of a run
id. wandb checks no length of an id, but makes files of that name, which has at most 255 bytes on most file systems."""
NOT_IN_PROJECT, NOT_IN_ID = "/\\#?%:", "/\\#?%:;,'"
"""Characters that W&B refuses. Source: wandb's ``Settings``, and the reference of ``wandb.init``."""
VARIABLES = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP",
             "job_type": "WANDB_JOB_TYPE", "tags": "WANDB_TAGS"}  # fmt: skip
"""The variable of wandb that is used where a setting of the section ``track`` has its default."""
NOT_USED = {"WANDB_RUN_ID": "track.run_id", "WANDB_NAME": "name", "WANDB_DIR": "runs_dir"}
"""Variables of wandb that are not used, and the settings that take their place. A frozen run stores these values."""


def use_variables(track: TrackConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Set the settings that still have their default from wandb's own variables, in place.

    The settings are frozen with the run, so that a resume from another shell uses the same ones.
    """
    default = TrackConfig()
    for name, variable in VARIABLES.items():
        value = environment.get(variable)
        if value and getattr(track, name) == getattr(default, name):
            setattr(track, name, [tag.strip() for tag in value.split(",")] if name == "tags" else value)


def ignored_variables(config: RunConfig, asked: Wandb, environment: Mapping[str, str] = os.environ) -> List[str]:
    """Return one line for each variable of wandb that is set but has no effect on this start or resume of a run.

    Args:
        config: The resolved config.
        asked: The setting ``track.wandb`` before it was resolved. For a resume, the one that was frozen.
    """
    found = []
    if asked is not Wandb.auto and resolve_mode(Wandb.auto, environment) is not config.track.wandb:
        found += [
            f"{name}={environment[name]} has no effect, because track.wandb={asked.name} is set"
            for name in ("WANDB_MODE", "WANDB_DISABLED")
            if environment.get(name)
        ]
    if config.track.wandb is Wandb.disabled or "WANDB_SWEEP_ID" in environment:
        return found
    return found + [f"{variable} has no effect; set {setting}" for variable, setting in NOT_USED.items()
                    if environment.get(variable)]  # fmt: skip


def check_track(track: TrackConfig) -> None:
    """Check the settings that W&B would refuse only after the start of the run, so that its record would be lost.

    Raises:
        ConfigError: W&B does not accept a tag, the project or the run id.
    """
    if track.wandb is Wandb.disabled:
        return
    _check_text("track.project", track.project, MAX_PROJECT, NOT_IN_PROJECT)
    if track.run_id is not None:
        _check_text("track.run_id", track.run_id, MAX_ID, NOT_IN_ID)
        if (length := len(os.fsencode(track.run_id))) > MAX_ID:
            raise ConfigError(f"track.run_id has {length} bytes in UTF-8",
                              f"at most {MAX_ID} bytes, because it becomes part of the names of files",
                              "use a shorter id, or track=disabled")  # fmt: skip
        if track.run_id != track.run_id.strip():
            raise ConfigError(f"track.run_id={track.run_id!r} begins or ends with a space", "no spaces around it",
                              f"track.run_id={track.run_id.strip()}")  # fmt: skip
    for tag in track.tags:
        _check_text("a tag in track.tags", tag, MAX_TAG, "")


def _check_text(what: str, text: str, most: int, refused: str) -> None:
    if not 1 <= len(text) <= most:
        short = text if len(text) < 40 else f"{text[:20]}…{text[-10:]}"
        raise ConfigError(f"{what} has {len(text)} characters ('{short}')", f"1 to {most} characters, as W&B requires",
                          "use another text, or track=disabled")  # fmt: skip
    if bad := [character for character in text if character in refused]:
        raise ConfigError(f"{what}={text} holds '{bad[0]}'", f"none of {' '.join(refused)}, which W&B refuses",
                          "leave the character out, or track=disabled")  # fmt: skip
