"""QLoRA: LoRA on a base model whose frozen matrices have 4 bits."""

from pathlib import Path
from typing import Dict, List, Tuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.base.errors import CheckpointError
from ftdist.config.schema import RunConfig
from ftdist.method.adapters import fold_adapters, without_adapters
from ftdist.method.lora import Lora, probe_logits, probe_tokens
from ftdist.method.select import modules_to_save
from ftdist.method.whole import tensors_of, trained_model
from ftdist.model.load import DTYPES
from ftdist.model.opened import open_exported
from ftdist.model.quantized import import_bitsandbytes, quantize, quantized_layers, round_to_4_bits
from ftdist.model.save import save_model

Weights = Dict[str, torch.Tensor]


def layers_in_4_bits(model: PreTrainedModel, config: RunConfig) -> List[str]:
    """Return the names of the layers whose weights have 4 bits: not those of ``method.modules_to_save``."""
    return quantized_layers(model, modules_to_save(model, config.method))


class Qlora(Lora):
    """Trains adapters beside linear layers with 4-bit weights."""

    def apply(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        import_bitsandbytes()
        if not any(parameter.is_meta for parameter in model.parameters()):  # else names and adapters are the same
            quantize(model, layers_in_4_bits(model, config), DTYPES[config.train.precision])
        return super().apply(model, config)


class _OnRounded(Lora):
    """LoRA on the dequantized weights: the values of the 4-bit weights, in 16 bits."""

    def apply(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        round_to_4_bits(model, layers_in_4_bits(model, config))
        return super().apply(model, config)


BASES: Tuple[Tuple[str, Lora], ...] = (("the dequantized base", _OnRounded()), ("the 16-bit base", Lora()))
"""The base models into which the adapters of a quantized model can be folded."""


def export_merged_quantized(weights: Weights, model_config: PretrainedConfig, out: Path, config: RunConfig) -> str:
    """Fold the adapters into the 16-bit base and into the dequantized one. Write the model whose logits are closer to
    those of the trained model (the 4-bit base with adapters), read it again, and compare.

    Returns:
        One line with the differences of the logits.

    Raises:
        CheckpointError: The written model gives other logits than the merged one.
    """
    ids = probe_tokens(model_config)
    trained = probe_logits(trained_model(Qlora().apply, weights, config), ids)
    found = {}
    for name, method in BASES:
        model = trained_model(method.apply, weights, config)
        fold_adapters(model)
        logits = probe_logits(model, ids)
        found[name] = (float((logits - trained).abs().mean()), float((logits - trained).abs().max()), logits)
    best = min(found, key=lambda name: found[name][0])
    if best != name:  # only one whole model is in memory at a time
        del model
        model = trained_model(dict(BASES)[best].apply, weights, config)
        fold_adapters(model)
    tensors = without_adapters(tensors_of(model))
    del model
    save_model(tensors, model_config, out, config.model.trust_remote_code)
    written = probe_logits(open_exported(out, config.model.trust_remote_code).eval(), ids)
    if not written.equal(found[best][2]):
        raise CheckpointError(f"{out}: the merged model gives other logits after it was written", "equal logits",
                              "check the disk, then export again")  # fmt: skip
    numbers = "; ".join(f"if merged into {name}, by {mean:.2g} on average and {most:.2g} at most"
                        for name, (mean, most, _) in found.items())  # fmt: skip
    return f"merged into {best}; the logits differ from those of the trained model {numbers}"
