"""Facts about a model that a run needs before it starts. They are kept in the cache.

``ftdist.method.check`` finds them, which takes several seconds. Later runs with the same model and method read
them from the cache.
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
from ftdist.config.schema import Attention, Kernels, Recompute, RunConfig
from ftdist.run.adapters import adapter_layout
from ftdist.run.file_names import GENERATION_CONFIG
from ftdist.run.locations import cache_root, is_converted, model_location
from ftdist.run.weight_files import pickled_files, stored_layout

FORMAT_VERSION = 7
"""Version of the facts. Increase it when the check finds more facts, or other facts about the same model."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that do not depend on the other settings of a run."""

    model_type: str
    """Name of the architecture in transformers."""
    parameters: int
    """Number of parameters."""
    max_positions: Optional[int]
    """Number of positions that the model was made for. None if there is no such limit."""
    has_position_table: bool
    """Whether positions are rows of a table (GPT-2), so that a row of data cannot be longer than ``max_positions``.
    Otherwise (rotary embeddings) longer rows are possible."""
    recomputes: bool
    """Whether the model supports gradient checkpointing."""
    trained: Optional[int] = None
    """Number of parameters that the method of the run trains, adapters included. None: all."""
    added: int = 0
    """Number of parameters that the method adds to the model: the adapters."""
    quantized: int = 0
    """Number of parameters that have 4 bits."""
    longest_row: Optional[int] = None
    """Number of tokens in a row for which the model was checked, if it was refused for longer rows. None: any."""


def read_facts(config: RunConfig) -> Optional[ModelFacts]:
    """Return the facts about the model of a config. Returns None if this model was not checked yet, or only for
    shorter rows."""
    # There is no file, or another version wrote it, or this machine only submits jobs and has no transformers.
    with suppress(OSError, ValueError, TypeError, PackageNotFoundError):
        facts = ModelFacts(**read_json(_file(config)))
        row = config.data.max_seq_len * config.batch.micro_batch_size
        return facts if facts.longest_row is None or row <= facts.longest_row else None
    return None


def longest_text(config: RunConfig) -> Optional[int]:
    """Return the number of tokens of the longest text that a model can read: the length of its table of positions.

    None if it has no such table, or if it was not checked yet.
    """
    facts = read_facts(config)
    return facts.max_positions if facts and facts.has_position_table else None


def write_facts(config: RunConfig, facts: ModelFacts) -> None:
    """Store the facts about the model of a config in the cache."""
    file = _file(config)
    with suppress(OSError):  # without the cache, the model is checked again at the next start
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(facts))


def check_fit(config: RunConfig, facts: ModelFacts) -> None:
    """Check that the settings of a run fit its model.

    Raises:
        ConfigError: They do not fit.
    """
    recompute = config.train.gradient_checkpointing
    if recompute is not Recompute.none and not facts.recomputes:
        found = (
            f"train.gradient_checkpointing={recompute.name}, but {facts.model_type} does not support it in transformers"
        )
        raise ConfigError(found, "a model that can recompute its activations", "train.gradient_checkpointing=none")
    problem = length_problem(config, facts)
    if problem and facts.has_position_table:
        raise ConfigError(
            f"{problem}, the length of its position table",
            "rows of data that are no longer than the table",
            f"data.max_seq_len={facts.max_positions}",
        )


def length_problem(config: RunConfig, facts: ModelFacts) -> str:
    """Return a warning if rows of data can have more tokens than the model was made for. Otherwise return an empty
    text."""
    length, limit = config.data.max_seq_len, facts.max_positions
    if limit is None or length <= limit:
        return ""
    return f"data.max_seq_len={length:,}, but the model was made for {limit:,} positions"


def describe_model(config: RunConfig) -> str:
    """Return one line that describes the model, for the banner at the start of a run."""
    model, facts = config.model, read_facts(config)
    revision = f"@{model.revision}" if model.revision else ""
    name = model.path or model.builtin or (f"{model.hub}{revision}" if model.hub else "random weights")
    folded = f", with the adapter {model.adapter}" if model.adapter else ""
    kernels = ", with Liger's kernels" if model.kernels is Kernels.liger else ""
    return name + (f": {facts.model_type}, {facts.parameters:,} parameters" if facts else "") + folded + kernels


def describe_method(config: RunConfig) -> str:
    """Return one line that says how much of the model is trained, for the banner at the start of a run."""
    facts, name = read_facts(config), config.method.kind.name
    continued = f"; continues {config.method.init_from}" if config.method.init_from else ""
    if facts is None or facts.trained is None:
        return name + continued
    whole = facts.parameters + facts.added
    packed = f"; {facts.quantized:,} have 4 bits" if facts.quantized else ""
    share = f"{facts.trained:,} of {whole:,} parameters are trained ({facts.trained / whole:.2%})"
    return f"{name}: {share}{packed}{continued}"


def _file(config: RunConfig) -> Path:
    """Return the file of the facts. Its name is a hash of everything that the facts depend on.

    A model on the hub is identified by the revision in the config, whose content is not known here.
    """
    model, location = config.model, model_location(config)
    content: Dict[str, Any] = {
        "version": FORMAT_VERSION,
        "transformers": version("transformers"),
        "config": model.config or _checked_files(Path(location)) or [location, model.revision],
        "trust_remote_code": model.trust_remote_code,
        "precision": config.train.precision.name,
    }
    if model.attention is not Attention.auto:
        content["attention"] = [model.attention.name, config.data.packing, config.batch.micro_batch_size]
    if model.path and not is_converted(config):
        content["tensors"] = stored_layout(Path(location))
        content["files"] = pickled_files(Path(location))
    if not config.method.facts.whole:
        content["method"] = [asdict(config.method), model.new_special_tokens]
    if config.model.kernels is not Kernels.none:
        content["kernels"] = [config.model.kernels.name, version("liger-kernel")]
    adapters = [config.model.adapter, config.method.init_from]
    if any(adapters):
        content["adapters"] = [_layout(given) for given in adapters if given]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return cache_root(config) / "checked" / f"{digest}.json"


def _layout(given: str) -> Any:
    """Return the layout of an adapter that was checked. If the adapter is gone, it was checked when the run began."""
    try:
        return adapter_layout(given)
    except ConfigError:
        return given


def _checked_files(folder: Path) -> Dict[str, str]:
    """Return the hashes of the files of a model that were checked: its configs and its Python files."""
    files = [folder / "config.json", folder / GENERATION_CONFIG, *sorted(folder.glob("*.py"))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
