"""Models that read images or sound besides text: the class that builds all their parts, and the parts that text does
not use.

Such a model is fine-tuned on text only: its language part is trained. The other parts are not trained, and exports
contain them unchanged. The files of any model can also have weights that transformers does not read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
    modeling_utils,
)
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import cached_file

from ftdist.base.counts import count
from ftdist.model.grouped_mm import allow_any_size

allow_any_size()  # every model is built by the class that ``auto_class`` returns
ENCODERS_INSIDE = ("vqmodel", "embed_tokens_extend", "image_encoder", "visual_projection")
"""Names of encoders, and what follows them, that are inside the decoder of a model (Chameleon, Phi-4, GIT)."""
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""Files of a model folder that say how images and sound are prepared."""
CONSTANTS = re.compile(
    r"inv_freq|position_ids|masked_bias|(attn|attention)\.bias$|\.version$|relative_position_index|num_batches_tracked"
)
"""Names of tensors in old files that a model computes itself."""
SHOWN = 4
"""Maximum number of parts that the log names."""


def processor_files(location: str, revision: Optional[str]) -> List[Path]:
    """Return the files of a model folder or hub repository that say how images and sound are prepared."""
    if not location:
        return []
    options: Dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    found = (cached_file(location, name, **options) for name in PROCESSORS)
    return [Path(file) for file in found if file]


def is_multimodal(arch: PretrainedConfig) -> bool:
    """Return whether a model reads images or sound besides text."""
    return type(arch) in MODEL_FOR_MULTIMODAL_LM_MAPPING


def auto_class(arch: PretrainedConfig) -> Any:
    """Return the class of transformers that builds a model with all its parts.

    For some configs (Llama 4), ``AutoModelForCausalLM`` builds the language part only, and the others would be missing
    in an export. For others (Qwen-VL) it builds nothing.
    """
    whole = MODEL_FOR_MULTIMODAL_LM_MAPPING.get(type(arch), None)
    if whole is None or MODEL_FOR_CAUSAL_LM_MAPPING.get(type(arch), None) is whole:
        return AutoModelForCausalLM
    return AutoModelForMultimodalLM


def runs_own_code(arch: PretrainedConfig) -> bool:
    """Return whether a model is built by Python code in its folder or hub repository, in place of transformers.

    ``ftdist.model.load.model_config`` removes ``auto_map`` unless ``model.trust_remote_code`` is set.
    """
    return auto_class(arch).__name__ in (getattr(arch, "auto_map", None) or {})


def build(arch: PretrainedConfig, **options: Any) -> Any:
    """Return the model of a config from ``ftdist.model.load.model_config``, or of a stand-in of it.

    Args:
        options: Arguments of ``from_config``.
    """
    return auto_class(arch).from_config(arch, trust_remote_code=runs_own_code(arch), **options)


def save_config(model: Any, folder: Path) -> None:
    """Write the config of a model, and the Python code that builds it if this is not in transformers."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # without PEFT's wrapper
    if runs_own_code(inner.config):
        custom_object_save(inner, folder, config=inner.config)
    inner.config.save_pretrained(folder)


def other_parts(model: Any) -> Dict[str, List[torch.nn.Parameter]]:
    """Return the parameters of a multimodal model that text does not use, by part, for instance ``model.visual``."""
    if not is_multimodal(model.config) or not hasattr(model, "get_decoder"):
        return {}
    language = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    reached = {id(parameter) for part in language if part is not None for parameter in part.parameters()}
    inside = [getattr(language[0], name) for name in ENCODERS_INSIDE if hasattr(language[0], name)]
    reached -= {id(parameter) for part in inside for parameter in part.parameters()}
    parts: Dict[str, List[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in reached:
            path = name.split(".")
            shown = 2 if path[0] in ("model", model.base_model_prefix) else 1
            parts.setdefault(".".join(path[:shown]), []).append(parameter)
    return parts


def layers_used_elsewhere(model: Any) -> Dict[str, str]:
    """Return the names of the linear layers whose weights are used outside of them, with the reason.

    The code of Mamba layers and of LongCat's routers multiplies with some weights itself, or gives them to a kernel.
    RWKV divides some weights in evaluation mode. Such code would ignore what an adapter adds to the output of the
    layer, and would fail with packed weights. In Zamba, several layers share a weight, so that the adapter of one
    layer could not be merged into it.
    """
    owners = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    found: Dict[str, str] = {}
    for owner, module in model.named_modules():
        own = {name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]}
        names: List[str] = []
        if own >= {"A_log", "D"}:  # a Mamba layer
            names += ["x_proj", "dt_proj", "out_proj"]
        if "e_score_correction_bias" in own:  # a router of LongCat
            names += ["classifier"]
        if "time_decay" in own:  # the attention of RWKV
            names += ["output"]
        elif "time_mix_receptance" in own:  # its feed-forward block
            names += ["value"]
        read = [f"{owner}.{name}" for name in names if hasattr(module, name)]
        found |= dict.fromkeys(read, "another module uses its weights itself")
        if isinstance(module, torch.nn.Linear) and owners[id(module.weight)] > 1:
            found[owner] = "other layers share its weight"
    return found


def freeze_other_parts(model: Any) -> None:
    """Exclude the parts that text does not use from training."""
    for parameters in other_parts(model).values():
        for parameter in parameters:
            parameter.requires_grad_(False)


def describe_other_parts(model: Any) -> List[str]:
    """Return the line of the log that names the parts that are not trained; none if there are no such parts."""
    parts = other_parts(model)
    if not parts:
        return []
    numbers = sum(getattr(p, "ds_numel", p.numel()) for parameters in parts.values() for p in parameters)
    names = ", ".join(parts)
    return [f"not trained: {names} ({numbers:,} parameters). Text does not use them; exports contain them unchanged"]


@contextmanager
def unread_weights() -> Iterator[List[str]]:
    """Inside a ``with`` block, collect the names of the weights in a model's files that ``from_pretrained`` does not
    read.

    transformers knows some of them (layers that predict several tokens at once), and then does not report them.
    """
    adjust, load_sharded = (
        PreTrainedModel._adjust_missing_and_unexpected_keys,
        modeling_utils._load_state_dict_into_zero3_model,
    )
    names: List[str] = []

    def note(unexpected: Iterable[str]) -> None:
        names.extend(sorted(name for name in unexpected if not CONSTANTS.search(name)))

    def note_and_adjust(self: Any, loading_info: Any) -> None:
        note(loading_info.unexpected_keys)
        adjust(self, loading_info)

    def note_and_load(model: Any, state_dict: Dict[str, Any], load_config: Any = None) -> Any:
        note(_unknown_names(model, state_dict, load_config))
        return load_sharded(model, state_dict, load_config)

    PreTrainedModel._adjust_missing_and_unexpected_keys = note_and_adjust  # type: ignore[method-assign]
    modeling_utils._load_state_dict_into_zero3_model = note_and_load  # type: ignore[assignment]
    try:
        yield names
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = adjust  # type: ignore[method-assign]
        modeling_utils._load_state_dict_into_zero3_model = load_sharded


def _unknown_names(model: Any, names: Iterable[str], load_config: Any) -> Set[str]:
    """Return the names of weights in files that a model does not have. With ZeRO-3 transformers does not look for them.

    Names in files are those of the model after the renamings that transformers knows for its type."""
    known, prefix = model.state_dict(), model.base_model_prefix
    found = names_in_model(model, names, getattr(load_config, "weight_mapping", None) or []).values()
    return {name for name in found if name not in known and f"{prefix}.{name}" not in known}


def names_in_model(model: Any, names: Iterable[str], changes: Iterable[Any]) -> Dict[str, str]:
    """Return the names that weights have in a model, by their names in its files.

    Args:
        changes: The changes that transformers makes to the weights of this type of model while it reads them.
    """
    changes = list(changes)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    known, prefix = model.state_dict(), model.base_model_prefix
    return {name: rename_source_key(name, renamings, converters, base_model_prefix=prefix, meta_state_dict=known)[0]
            for name in names}  # fmt: skip


def describe_unread_weights(model: Any) -> List[str]:
    """Return the line of the log that names the weights of the model's files that transformers does not read."""
    names = getattr(model, "ftdist_unread", [])
    if not names:
        return []
    groups = list(dict.fromkeys(_part_of_unread(name) for name in names))
    more = f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
    shown = ", ".join(groups[:SHOWN]) + more
    return [f"left out: {shown} ({count(len(names), 'tensor')} in the files of the model). transformers does not "
            "read them: they are not trained, and an exported model lacks them"]  # fmt: skip


def _part_of_unread(name: str) -> str:
    """Return the part of a model that a weight belongs to, for instance ``mtp`` or ``model.layers.61``."""
    layer, path = re.match(r"model\..*?\.\d+(?=\.)", name), name.split(".")
    return layer[0] if layer else ".".join(path[: 2 if path[0] == "model" else 1])
