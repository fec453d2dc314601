"""The base model of the reference, made by transformers, PEFT and bitsandbytes."""

import tempfile
from pathlib import Path
from typing import Any, Dict, List

import torch

from ftdist.config.schema import RunConfig
from ftdist.method.adapters import without_adapters
from ftdist.model.load import load_whole, model_config
from ftdist.model.opened import read_by_peft
from ftdist.model.parts import auto_class
from ftdist.run.locations import model_location
from ftdist.verify.reference_method import WRAPPER, in_4_bits, own_names, used_elsewhere


def plain_base(config: RunConfig, **options: Any) -> Any:
    """Return the base model of a run in fp32: with ``model.adapter`` merged into it, in 4 bits for ``method=qlora``.

    Args:
        options: Further arguments of ``from_pretrained``.
    """
    build: Any = auto_class(model_config(config))
    location, quantized = model_location(config), config.method.facts.quantized
    options |= {"dtype": torch.float32, "trust_remote_code": config.model.trust_remote_code}
    if quantized and not config.model.adapter and not config.model.config:
        return _quantized(location, config.method, build, revision=config.model.revision, **options)
    if config.model.config:
        model = load_whole(config)  # random weights are in no file
    else:
        model = build.from_pretrained(location, revision=config.model.revision, **options)
    if config.model.adapter and not config.model.config:
        model = merged_plainly(model, config.model.adapter)
    if not quantized:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _quantized(folder, config.method, build, **options)


def merged_plainly(model: Any, adapter: str) -> Any:
    """Return a model with an adapter merged into its weights by PEFT."""
    return read_by_peft(model, Path(adapter)).merge_and_unload().requires_grad_(True)


def _quantized(folder: str, method: Any, build: Any, **options: Any) -> Any:
    """Return a model with matrices in 4 bits, as transformers quantizes it while it reads the weights."""
    from transformers import AutoConfig, BitsAndBytesConfig

    dtype, trust = options["dtype"], options.get("trust_remote_code", False)
    arch = AutoConfig.from_pretrained(folder, revision=options.get("revision"), trust_remote_code=trust)
    with torch.device("meta"):
        kept = used_elsewhere(build.from_config(arch, trust_remote_code=trust))
    skipped = ["lm_head", "embed_out", *method.modules_to_save, *kept]
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype, llm_int8_skip_modules=skipped,
    )  # fmt: skip
    model = build.from_pretrained(folder, quantization_config=quantization, **options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # evaluation would compute in bf16, with another kernel
            module.support_avx512bf16_for_cpu = False
    return model


def stored(parameter: torch.Tensor) -> torch.Tensor:
    """Return the numbers of a parameter; the packed bytes of one in 4 bits."""
    return parameter.detach().view(torch.uint8) if in_4_bits(parameter) else parameter.detach()


def weights_of_another_model(config: RunConfig, weights: Dict[str, torch.Tensor]) -> List[str]:
    """Return the names of the weights that differ from those of the config's model. Rows added to an embedding are
    ignored.

    Args:
        weights: The weights with which the engine starts, in fp32.
    """
    found, same = without_adapters(weights), _nearly_equal if config.model.adapter else torch.equal
    return [name for name, weight in plain_base(config).named_parameters()
            if name not in found or not same(found[name][: len(weight)].cpu(), stored(weight))]  # fmt: skip


def _nearly_equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether two weights differ by no more than the rounding of a sum in fp32."""
    return torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


def changed_weights(opened: torch.nn.Module, weights: Dict[str, torch.Tensor]) -> List[str]:
    """Return the names of the weights of an opened export that are not those of the run, apart from rounding to their
    type.

    PEFT keeps a trained copy beside each module of ``modules_to_save``, and does not use the original. For two tied
    modules it keeps two copies, while the run has one parameter with the name of one of the modules.

    Args:
        weights: The run's weights, by name.
    """
    tied: Dict[int, List[str]] = {}
    for name, parameter in opened.named_parameters(remove_duplicate=False):
        if ".modules_to_save." not in name:
            tied.setdefault(id(parameter), []).append(name.removeprefix(WRAPPER).replace(".original_module.", "."))
    names = {name: next((one for one in group if one in weights), name) for group in tied.values() for name in group}
    saved = {name.replace(".modules_to_save.default.", "."): parameter
             for name, parameter in own_names(opened).items() if ".original_module." not in name}  # fmt: skip
    changed = []
    for name, parameter in saved.items():
        own = stored(parameter)  # without the rows that only pad an embedding
        if not own.equal(weights[names.get(name, name)][: len(own)].to(own.device, own.dtype)):
            changed.append(name)
    return changed
