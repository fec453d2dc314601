"""Models that read images or sound besides text: the class that builds all their parts, and the parts that text does
not use.

Such a model is fine-tuned on text only: its language part is trained. The other parts are not trained, and exports
contain them unchanged. The files of any model can also have weights that transformers does not read.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
)
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
    """Collect the names of the weights in a model's files that ``from_pretrained`` does not read inside a ``with``
    block.

    transformers knows some of them (layers that predict several tokens at once), and then does not report them.
    """
    adjust = PreTrainedModel._adjust_missing_and_unexpected_keys
    names: List[str] = []

    def note(self: Any, loading_info: Any) -> None:
        names.extend(sorted(name for name in loading_info.unexpected_keys if not CONSTANTS.search(name)))
        adjust(self, loading_info)

    PreTrainedModel._adjust_missing_and_unexpected_keys = note  # type: ignore[method-assign]
    try:
        yield names
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = adjust  # type: ignore[method-assign]


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
