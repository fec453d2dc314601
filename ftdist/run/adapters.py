"""Saved adapters in PEFT's format: their settings and the shapes of their tensors. No weight is loaded.

``method.init_from`` names an adapter that a run continues, ``model.adapter`` one that is added to the base model.
"""

from pathlib import Path
from typing import Any, Collection, Dict, List, Tuple

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json
from ftdist.base.output import quoted_path
from ftdist.base.permissions import explain_os_error
from ftdist.base.shell import override_word, shell_words
from ftdist.config.schema import RunConfig
from ftdist.run.file_hashes import FileHashes
from ftdist.run.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPORT_MARK
from ftdist.run.rundir import CHECKPOINT_PREFIX, RUN_CONFIG
from ftdist.run.weight_files import tensor_header

PREFIX = "base_model.model."
"""PEFT's wrapper around the model, in the names of a saved adapter."""
BASE_COPY = ".base_layer.weight"
"""End of the name of a copy of a base weight, which PEFT writes beside the adapter of an output head."""
PICKLED = "adapter_model.bin"
"""The weights of an adapter as old versions of PEFT write them."""
INIT_FROM, FOLDED = "method.init_from", "model.adapter"
EXPECTED = "a folder with a LoRA adapter in PEFT's format, or a run with method=lora and its export"
FREE_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Initializations after which an adapter fits the unchanged base model."""
PLAIN: Dict[str, Tuple[Any, ...]] = {
    "bias": ("none",), "lora_bias": (False,), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "layer_replication": (None,), "target_parameters": (None, []), "trainable_token_indices": (None,),
    "use_qalora": (False,), "use_bdlora": (None,), "alora_invocation_tokens": (None,), "arrow_config": (None,),
    "kasa_config": (None,), "velora_config": (None,), "monteclora_config": (None,), "init_lora_weights": FREE_STARTS,
}  # fmt: skip
"""Values of PEFT's settings with which an adapter computes what ftdist computes. Missing keys mean the same."""
READ = ("peft_type", "r", "lora_alpha", "target_modules", "layers_to_transform", "use_rslora", "use_dora",
        "modules_to_save", "exclude_modules")  # fmt: skip
"""PEFT's settings that ``adapter_settings`` reads."""
NO_EFFECT = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
              "lora_dropout", "fan_in_fan_out", "layers_pattern", "megatron_config", "megatron_core", "loftq_config",
              "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
              "ensure_weight_tying")  # fmt: skip
"""PEFT's settings that do not change what a trained adapter computes."""


def adapter_folder(key: str, given: str) -> Path:
    """Return the absolute path of an adapter's folder. For a run, it is the folder of the export.

    Args:
        key: The setting that names it, for messages.

    Raises:
        ConfigError: The folder holds no adapter. The message says what the folder holds instead.
    """
    folder = Path(given).expanduser().absolute()
    if (folder / RUN_CONFIG).is_file():
        folder = folder / "export"
        if not folder.is_dir():
            found = f"{key}={given} is a run without an export"
            raise ConfigError(found, EXPECTED, f"ftdist export {quoted_path(given)}")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            found = f"holds no {name}" if folder.is_dir() else "does not exist"
            raise ConfigError(f"{key}={folder} {found}", EXPECTED, _way_to_an_adapter(key, folder))
    return folder


def _way_to_an_adapter(key: str, folder: Path) -> str:
    """Return the fix for a folder without an adapter that ftdist can read."""
    if (folder / ADAPTER_CONFIG).is_file() and (folder / PICKLED).is_file():
        files = f"{str(folder / PICKLED)!r}", f"{str(folder / ADAPTER_WEIGHTS)!r}"
        program = ("import torch; from safetensors.torch import save_file; "
                   f"save_file(torch.load({files[0]}, weights_only=True), {files[1]})")  # fmt: skip
        return f"write {PICKLED}, which may hold code, as safetensors: {shell_words(['python', '-c', program])}"
    run = folder.parent.parent
    if folder.name.startswith(CHECKPOINT_PREFIX) and (run / RUN_CONFIG).is_file():
        step = folder.name.removeprefix(CHECKPOINT_PREFIX).lstrip("0") or "0"
        out = f"{run}/export-{step}"
        export = shell_words(["ftdist", "export", str(run), "--checkpoint", step, "--out", out])
        return f"export the checkpoint: {export}, then {override_word(key, out)}"
    whole = (folder / "config.json").is_file()
    return f"{override_word('model.path', str(folder))} for a whole model" if whole else f"{key}=FOLDER"


def adapter_settings(key: str, folder: Path) -> Dict[str, Any]:
    """Return the settings of an adapter by their names in the section ``method``.

    ``lora_dropout`` is not among them: it belongs to the training, not to the adapter.

    Raises:
        ConfigError: The file cannot be read, or the adapter is of a kind that ftdist cannot train.
    """
    found = _read_settings(key, folder)
    other = [f"{name}={found[name]}" for name, plain in PLAIN.items() if name in found and found[name] not in plain]
    unknown = sorted(found.keys() - {*PLAIN, *READ, *NO_EFFECT})
    other += [f"{name}={found[name]}" for name in unknown if found[name]]  # newer versions of PEFT write more settings
    if found.get("peft_type") != "LORA":
        other.insert(0, f"peft_type={found.get('peft_type')}")
    names = tensor_shapes(folder / ADAPTER_WEIGHTS)
    if not other and any(".lora_embedding_" in name for name in names):
        other = ["an adapter of an embedding"]
    if other:
        raise ConfigError(f"{key}={folder} has {other[0]}, which ftdist cannot train", "a LoRA adapter of linear "
                          "layers with the same r in all of them, without biases, and with an initialization that "
                          "keeps the base model",
                          "merge it into its base with PEFT, and set model.path to the result")  # fmt: skip
    if not any(".lora_" in name for name in names):
        raise ConfigError(f"{key}: {folder / ADAPTER_WEIGHTS} holds no weights of an adapter",
                          "trained weights; some programs write none if ZeRO-3 shards them",
                          "save the adapter again, or use another one")  # fmt: skip
    targets, saved = found.get("target_modules"), found.get("modules_to_save") or []
    if not isinstance(targets, list) or found.get("layers_to_transform") is not None or found.get("exclude_modules"):
        targets = adapted_modules(folder)  # the pattern is PEFT's; the weights say which modules it named
    return {
        "r": int(found["r"]), "lora_alpha": float(found["lora_alpha"]), "target_modules": sorted(targets),
        "layers_to_transform": None, "use_rslora": bool(found.get("use_rslora")),
        "use_dora": bool(found.get("use_dora")), "modules_to_save": _saved_modules(folder, saved),
    }  # fmt: skip


def _read_settings(key: str, folder: Path) -> Dict[str, Any]:
    try:
        found = read_json(folder / ADAPTER_CONFIG)
        if not isinstance(found, dict) or not all(isinstance(found.get(n), (int, float)) for n in ("r", "lora_alpha")):
            raise ValueError("r or lora_alpha is missing or not a number")
    except PermissionError as error:
        raise explain_os_error(error) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}{': ' if key else ''}{folder / ADAPTER_CONFIG}: {error}", "the file that PEFT writes",
                          "export the adapter again") from error  # fmt: skip
    return found


def adapted_modules(folder: Path) -> List[str]:
    """Return the names of the modules that the weights of an adapter belong to."""
    names = {name.removeprefix(PREFIX).partition(".lora_A.") for name in tensor_shapes(folder / ADAPTER_WEIGHTS)}
    return sorted({module for module, mark, _ in names if mark})


def _saved_modules(folder: Path, given: List[str]) -> List[str]:
    """Return the modules that an adapter has trained in full.

    PEFT selects each module whose name ends with a given name, so ``norm`` also selects ``input_layernorm``. In this
    case, the names come from the weights.
    """
    names = {name.removeprefix(PREFIX) for name in tensor_shapes(folder / ADAPTER_WEIGHTS)
             if ".lora_" not in name and not name.endswith(BASE_COPY)}  # fmt: skip
    other = [name for name in names if not any(f".{module}." in f".{name}" for module in given)]
    return sorted({name.rpartition(".")[0] for name in names} if given and other else given)


def tensor_shapes(file: Path) -> Dict[str, Tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file, by name, from its header.

    Raises:
        ConfigError: The header cannot be read, or the file is cut off.
        AccessError: This user may not read the file.
    """
    return {name: tuple(found["shape"]) for name, found in tensor_header(file).items()}


def find_adapters(config: RunConfig) -> None:
    """Replace a run that ``method.init_from`` or ``model.adapter`` names by the folder of its adapter, in place.

    Raises:
        ConfigError: There is no such adapter.
    """
    if config.method.init_from:
        config.method.init_from = str(adapter_folder(INIT_FROM, config.method.init_from))
    if config.model.adapter:
        config.model.adapter = str(adapter_folder(FOLDED, config.model.adapter))
        adapter_settings(FOLDED, Path(config.model.adapter))


def adapter_content(given: str, hashes: FileHashes) -> Dict[str, str] | str:
    """Return the identity of an adapter: the hashes of its files, or that it is gone."""
    files = [Path(given) / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    missing = next((file for file in files if not file.is_file()), None)
    return f"gone: {missing}" if missing else {file.name: hashes.of(file) for file in files}


def adapter_layout(given: str) -> Any:
    """Return the settings of an adapter and the shapes of its tensors, which decide whether it fits a model.

    Raises:
        ConfigError: There is no adapter.
    """
    return adapter_settings("", Path(given)), tensor_shapes(Path(given) / ADAPTER_WEIGHTS)


def check_base_of(key: str, given: str, bases: Collection[str]) -> None:
    """Check that an adapter that ftdist exported was trained on this base model. Other adapters do not record this.

    Args:
        bases: The identity of the base model of the run, from ``ftdist.run.base_model.base_identity``, now and as older
            versions computed it.

    Raises:
        ConfigError: The adapter was trained on another base model.
    """
    mark = Path(given) / EXPORT_MARK
    trained_on = read_json(mark).get("base") if mark.is_file() else None
    if trained_on is not None and trained_on not in bases:
        name = base_name(given)
        same = "set model.path or model.hub to that model" if name else "set model.config and seed to those of its run"
        raise ConfigError(f"{key}={given} was trained on a base model with other weights ({name or 'random'})",
                          "the base model that it was trained on", f"{same}, or leave out {key}")  # fmt: skip


def base_name(given: str) -> str:
    """Return the folder or hub id of the base model that an adapter names. Empty if it names none: the weights of its
    base were random."""
    return str(_read_settings("", Path(given)).get("base_model_name_or_path") or "")


def base_warning(config: RunConfig) -> str:
    """Return a warning if an adapter names another base model than the run's. Otherwise an empty text."""
    model = config.model
    ours = model.builtin or model.hub or model.path or ""
    for key, given in ((INIT_FROM, config.method.init_from), (FOLDED, model.adapter)):
        if given and not (Path(given) / EXPORT_MARK).is_file():
            theirs = base_name(given)
            if theirs and Path(theirs).name.lower() != Path(ours).name.lower():
                return f"{key} says that its base model is {theirs}; the run has {ours or 'random weights'}"
    return ""


def to_train_longer(config: RunConfig, place: str) -> str:
    """Return overrides, as words of a shell command, with which a new run continues from the export of a finished run.

    Args:
        config: The config of the finished run.
        place: Its run directory, as it appears in the message.
    """
    if config.method.facts.adapters and not config.model.adapter:  # else the export is a whole model
        return f"method={config.method.kind.name} {override_word(INIT_FROM, place)}"
    return f"model=folder {override_word('model.path', f'{place}/export')}"
