"""The reference of a method: what it trains, built with PEFT's and PyTorch's own functions.

It does not use ``ftdist.method``. Adapters are made by ``peft.get_peft_model`` with the settings of the config.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from ftdist.base.errors import FtdistError
from ftdist.model.adapter import key_mapping, new_names, renamed_modules

WRAPPER = "base_model.model."
"""Prefix that PEFT's wrapper adds to the names of the model's parameters."""


def apply_plainly(model: Any, method: Any) -> torch.nn.Module:
    """Return a model in which only what the method trains requires a gradient.

    Args:
        method: The section ``method`` of the config.
        model: The model. Its frozen parameters stay frozen.

    Raises:
        FtdistError: The method has no reference.
    """
    kind = method.kind.name
    if kind in ("lora", "qlora"):
        return _lora(model, method)
    if kind == "partial":
        _partial(model, method)
    elif kind != "full":
        raise FtdistError(f"method={kind} has no reference, so there is nothing to compare its numbers with",
                          f"a branch for it in {__name__}", "add one, or use another method")  # fmt: skip
    return model


def in_4_bits(parameter: torch.Tensor) -> bool:
    """Return whether a parameter holds 4-bit weights of bitsandbytes."""
    return type(parameter).__name__ == "Params4bit"


def own_names(model: torch.nn.Module) -> Dict[str, torch.nn.Parameter]:
    """Return the parameters by the names that they have in a model of ftdist, which PEFT does not wrap."""
    return {name.removeprefix(WRAPPER): p for name, p in model.named_parameters()}


def put_by_name(model: torch.nn.Module, weights: Dict[str, torch.Tensor]) -> None:
    """Replace every parameter by the weight of its name in a model of ftdist. Those in 4 bits stay as they are."""
    with torch.no_grad():
        for name, parameter in own_names(model).items():
            if not in_4_bits(parameter):
                parameter.copy_(weights[name])


def weights_of_another_adapter(wrapped: Any, adapter: Optional[str], weights: Dict[str, torch.Tensor]) -> List[str]:
    """Return the names of the weights that differ from a saved adapter, as PEFT reads it, in fp32.

    Args:
        wrapped: The model with PEFT's wrapper. It gets the weights of the adapter.
        adapter: Folder of the adapter; None if the run starts from none.
        weights: The weights with which the engine starts.
    """
    if not adapter:
        return []
    from peft import load_peft_weights, set_peft_model_state_dict

    names = key_mapping(renamed_modules(wrapped.get_base_model(), Path(adapter)))
    saved, other = load_peft_weights(adapter, device="cpu", key_mapping=names), []
    set_peft_model_state_dict(wrapped, saved)
    for name, parameter in own_names(wrapped).items():
        expected = parameter.detach() if ".lora_" in name else saved.get(WRAPPER + name)
        if parameter.requires_grad and expected is not None:
            same = weights[name][: len(expected)].cpu().equal(expected.float())
            other += [] if same else [name]
    return other


def _lora(model: Any, method: Any) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    renamed = new_names(model, method.target_modules)  # of an adapter from transformers 4
    wanted = [renamed.get(target, target) for target in method.target_modules]
    head, depth = model.get_output_embeddings(), model.config.get_text_config().num_hidden_layers
    layers = None if method.layers_to_transform is None else {str(n % depth) for n in method.layers_to_transform}
    targets = [
        name for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D", "Linear4bit")
        and (module.weight.requires_grad or in_4_bits(module.weight))
        and any((target == "all-linear" and module is not head) or fnmatchcase(f".{name}", f"*.{target}")
                for target in wanted)
        and (layers is None or next((word for word in name.split(".") if word.isdigit()), "") in layers)
    ]  # fmt: skip
    used = used_elsewhere(model)
    targets = _readable(model, [name for name in targets if name not in used])
    saved = [module for name, module in model.named_modules()
             if any(fnmatchcase(f".{name}", f"*.{own}") for own in method.modules_to_save)]  # fmt: skip
    wrapped = get_peft_model(model, LoraConfig(
        r=method.r, lora_alpha=method.lora_alpha, lora_dropout=method.lora_dropout, target_modules=targets,
        use_rslora=method.use_rslora, use_dora=method.use_dora, task_type="CAUSAL_LM",
    ))  # fmt: skip
    for module in saved:
        module.requires_grad_(True)
    return wrapped


def _readable(model: Any, names: List[str]) -> List[str]:
    """Return the layers whose adapters PEFT can read again. It cannot read those with the names that experts had in
    transformers 4, nor those that it renames like tensors in the files of the model."""
    from peft import LoraConfig
    from peft.utils import transformers_weight_conversion as peft_names

    kin = peft_names._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    experts = peft_names._MOE_TARGET_MODULE_MAPPING.get(kin, {})
    keys = {f"{WRAPPER}{name}.lora_B.weight": name for name in names if name.split(".")[-1] not in experts}
    tensors = {key: torch.zeros(1) for key in keys}
    read = peft_names.convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), tensors)
    return [name for key, name in keys.items() if key in read]


def used_elsewhere(model: Any) -> List[str]:
    """Return the layers whose weights are also used outside of them: by code of Mamba, LongCat and RWKV, or by other
    layers. Such layers get no adapter and are not quantized."""
    weights = [id(weight) for _, weight in model.named_parameters(remove_duplicate=False)]
    found = []
    for owner, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):
            found += [f"{owner}.{name}" for name in ("x_proj", "dt_proj", "out_proj")]
        if hasattr(module, "e_score_correction_bias") and hasattr(module, "classifier"):
            found.append(f"{owner}.classifier")
        if type(module).__name__ in ("RwkvSelfAttention", "RwkvFeedForward"):
            found.append(f"{owner}.output" if hasattr(module, "time_decay") else f"{owner}.value")
        if type(module).__name__ == "Linear" and weights.count(id(module.weight)) > 1:
            found.append(owner)
    return found


def _partial(model: Any, method: Any) -> None:
    depth = model.config.get_text_config().num_hidden_layers
    last = [str(number) for number in range(depth - method.last_layers, depth)]
    groups = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    whole = {id(p) for word, owner in groups.items() if word in method.trainable for p in owner.parameters()}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        layer = next((word for word in words if word.isdigit()), "")
        parameter.requires_grad_(parameter.requires_grad and (
            layer in last or id(parameter) in whole
            or ("norms" in method.trainable and any("norm" in word or word.startswith("ln_") for word in words))
            or any(fnmatchcase(f".{name}", f"*.{pattern}") for pattern in method.trainable)
        ))  # fmt: skip
