"""What a run must know of its model before it starts, remembered in the cache by the model's content. [light]

``ftdist.model.check`` finds it out, which takes seconds; a second run with the same model reads it here.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, Optional

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.config.schema import RunConfig
from ftdist.run.locations import cache_root, model_location

FORMAT_VERSION = 1
"""Counted up when the check finds more, or the same model is judged otherwise."""


@dataclass(frozen=True)
class ModelFacts:
    model_type: str
    """As transformers names the architecture."""
    parameters: int
    max_positions: Optional[int]
    """Positions that the model was made for; None where it has no such limit."""
    has_position_table: bool
    """Positions are rows of a table (GPT-2): there is nothing beyond max_positions. Else (rotary) they go on."""
    recomputes: bool
    """Knows gradient checkpointing."""


def read_facts(config: RunConfig) -> Optional[ModelFacts]:
    """The facts, where this model was checked before."""
    # Not there, or written by another version, or this machine only submits and has no transformers.
    with suppress(OSError, ValueError, TypeError, PackageNotFoundError):
        return ModelFacts(**read_json(_file(config)))
    return None


def write_facts(config: RunConfig, facts: ModelFacts) -> None:
    file = _file(config)
    with suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(facts))


def check_fit(config: RunConfig, facts: ModelFacts) -> None:
    """
    Raises:
        ConfigError: the run's settings do not fit the model.
    """
    if config.train.gradient_checkpointing and not facts.recomputes:
        raise ConfigError(
            f"train.gradient_checkpointing=true, which {facts.model_type} does not know in transformers",
            "a model that can recompute its activations",
            "train.gradient_checkpointing=false",
        )
    too_long = longer_than_known(config, facts)
    if too_long and facts.has_position_table:
        raise ConfigError(
            f"{too_long}, each a row of a table", "no row longer than that", f"data.max_seq_len={facts.max_positions}"
        )


def longer_than_known(config: RunConfig, facts: ModelFacts) -> str:
    """What to say where documents may be longer than those that the model was made for, else nothing."""
    length, known = config.data.max_seq_len, facts.max_positions
    if known is None or length <= known:
        return ""
    return f"data.max_seq_len={length:,}, but the model was made for {known:,} positions"


def describe_model(config: RunConfig) -> str:
    """Which model: one line for the banner."""
    model, facts = config.model, read_facts(config)
    revision = f"@{model.revision}" if model.revision else ""
    name = model.path or model.builtin or (f"{model.hub}{revision}" if model.hub else "random weights")
    return name + (f": {facts.model_type}, {facts.parameters:,} parameters" if facts else "")


def _file(config: RunConfig) -> Path:
    """A hub model counts by its revision as it is written in the config."""
    model, location = config.model, model_location(config)
    content: Dict[str, Any] = {
        "version": FORMAT_VERSION,
        "transformers": version("transformers"),
        "config": model.config or _description(Path(location)) or [location, model.revision],
        "trust_remote_code": model.trust_remote_code,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return cache_root(config) / "checked" / f"{digest}.json"


def _description(folder: Path) -> Dict[str, str]:
    """What a model folder says about the architecture: its config, and code of its own."""
    files = [folder / "config.json", *sorted(folder.glob("*.py"))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
