"""The frozen config of a run: reading and writing ``run.yaml``."""

import re
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ftdist.base.errors import ConfigError
from ftdist.base.permissions import explain_os_error
from ftdist.config.launch import texts
from ftdist.config.schema import ADDED_LATER, RENAMED_VALUES, RunConfig

EXPECTED = "the run.yaml of a run directory, as ftdist wrote it"
FIX = "restore the file, or start a new run"


def load_config(path: str | Path) -> RunConfig:
    """Read the ``run.yaml`` of a run directory.

    Raises:
        ConfigError: The file is missing, incomplete, not of this schema, or holds an interpolation (``${…}``). A frozen
            config has plain values only, and nothing in it is evaluated.
        AccessError: This user may not read it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except PermissionError as error:
        raise explain_os_error(error) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", EXPECTED, FIX) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {error}", EXPECTED, FIX) from error
    config = parse_config(text, str(path))
    # Every value is in the file. If its end were cut off, the missing values would become defaults, and the run would
    # continue with other settings.
    required = [key.name for key in fields(RunConfig) if key.name not in ADDED_LATER]
    missing = [name for name in required if not re.search(rf"^{name}:", text, re.M)]
    if missing or not text.endswith("\n"):
        lacks = f"{', '.join(missing)} is missing" if missing else "the last line has no line break"
        raise ConfigError(f"{path} is incomplete: {lacks}", "every setting of the run, as it was frozen",
                          "restore the file, or start a new run")  # fmt: skip
    return config


def parse_config(text: str, origin: str) -> RunConfig:
    """Read a frozen config from YAML text. Keys of ``ADDED_LATER`` may be missing.

    Args:
        text: The YAML text.
        origin: Name of the text in error messages.

    Raises:
        ConfigError: See load_config.
    """
    try:
        merged = OmegaConf.merge(_schema(), _renamed(OmegaConf.create(text)))
        # Interpolations are looked for in the values, not in the text: YAML can write a $ as \x24.
        if any("${" in value for _, value in texts("", OmegaConf.to_container(merged, resolve=False))):
            raise ConfigError(
                f"{origin} holds an interpolation (${{…}})",
                "plain values (ftdist resolves interpolations when it writes run.yaml)",
                "write the value itself, or restore the run.yaml that ftdist wrote",
            )
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError, AssertionError, RecursionError) as error:
        raise ConfigError(f"{origin}: {(str(error).splitlines() or [''])[0]}", EXPECTED, FIX) from error
    except YAMLError as error:  # also a tag that asks for a Python object
        raise ConfigError(f"{origin}: {' '.join(str(error).split())}", EXPECTED, FIX) from error
    assert isinstance(config, RunConfig)
    return config


@lru_cache
def _schema() -> DictConfig:
    """Return the schema with the values of settings that a file lacks.

    All callers share it: merge it, which copies it.
    """
    before = OmegaConf.create({})
    for key, value in ADDED_LATER.items():
        if "*" not in key:
            OmegaConf.update(before, key, value, force_add=True)
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), before)
    assert isinstance(merged, DictConfig)
    return merged


def _renamed(tree: Any) -> Any:
    """Return the content of a file with the current names of values that were renamed."""
    for key, values in RENAMED_VALUES.items():
        written = OmegaConf.select(tree, key) if isinstance(tree, DictConfig) else None
        if str(written).lower() in values:
            OmegaConf.update(tree, key, values[str(written).lower()])
    return tree


def dump_config(config: RunConfig) -> str:
    """Return the config as YAML text, with every value explicit."""
    return OmegaConf.to_yaml(asdict(config))
