"""Open an export in the way its users do. It is a model folder, or a folder with an adapter in PEFT's format."""

import warnings
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json
from ftdist.base.output import quoted_path
from ftdist.model.adapter import key_mapping, renamed_modules
from ftdist.model.parts import auto_class
from ftdist.model.quantized import quantize, quantized_layers
from ftdist.run.adapters import PREFIX, adapted_modules, tensor_shapes
from ftdist.run.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPORT_MARK, GENERATION_CONFIG
from ftdist.run.rundir import RUN_CONFIG, RunDir


def open_exported(folder: Path, trust_remote_code: bool = False, base: Optional[PreTrainedModel] = None) -> Any:
    """Load an exported model. Its weights have the type that they have in the files.

    The base of an adapter from ``method=qlora`` gets 4 bits.

    Args:
        trust_remote_code: Run the Python code of the model, if it needs it.
        base: The base model of an adapter. None: it is loaded from the location in the adapter's config.

    Raises:
        ConfigError: The adapter does not say where its base model is, or the base model is no longer there.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return _load(str(folder), "auto", None, trust_remote_code)
    from peft import PeftConfig

    settings = PeftConfig.from_pretrained(folder)
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    if base is None:
        if not settings.base_model_name_or_path:
            run = RunDir(folder.parent) if (folder.parent / RUN_CONFIG).is_file() else RunDir("RUN_DIR")
            merge = "" if run.merged.is_dir() else f"ftdist export {quoted_path(run.path)} --merged && "
            raise ConfigError(f"{folder} holds an adapter of a model with random weights, which is not stored anywhere",
                              "a base model in a folder or on the hub",
                              f"{merge}ftdist chat {quoted_path(run.merged)}")  # fmt: skip
        _check_there(folder, Path(settings.base_model_name_or_path))
        base = _load(settings.base_model_name_or_path, dtype, settings.revision, trust_remote_code)
    embedding = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is embedding)
    shape = tensor_shapes(folder / ADAPTER_WEIGHTS).get(f"{PREFIX}{name}.weight")
    if shape and shape != tuple(embedding.weight.shape):  # the run has added tokens
        base.resize_token_embeddings(shape[0], mean_resizing=False)
    if (folder / EXPORT_MARK).is_file() and read_json(folder / EXPORT_MARK).get("quantization"):
        quantize(base, quantized_layers(base, settings.modules_to_save or []), dtype)
    if (folder / GENERATION_CONFIG).is_file():
        base.generation_config = GenerationConfig.from_pretrained(folder)
    return read_by_peft(base, folder)


def read_by_peft(base: PreTrainedModel, folder: Path) -> Any:
    """Let PEFT put an adapter into its base model, also one with the names of transformers 4."""
    from peft import PeftConfig, PeftModel

    settings, renamed = PeftConfig.from_pretrained(folder), renamed_modules(base, folder)
    if renamed:
        settings.target_modules = {renamed.get(module, module) for module in adapted_modules(folder)}
        settings.layers_to_transform = settings.exclude_modules = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a deprecated attribute of the model
        warnings.filterwarnings("ignore", "Model has .tie_word_embeddings=True")  # the adapter holds all tied modules
        return PeftModel.from_pretrained(
            base, folder, config=settings, autocast_adapter_dtype=False, key_mapping=key_mapping(renamed)
        )


def _check_there(folder: Path, base: Path) -> None:
    """Check that the folder of an adapter's base model exists. A relative name may be one of the hub."""
    if base.is_absolute() and not base.exists():
        raise ConfigError(f"{folder} holds an adapter of {base}, which does not exist", "the adapter's base model",
                          f"restore it, or change base_model_name_or_path in {ADAPTER_CONFIG}")  # fmt: skip


def _load(name: str, dtype: str | torch.dtype, revision: Optional[str], trust_remote_code: bool) -> Any:
    arch = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    return auto_class(arch).from_pretrained(name, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
