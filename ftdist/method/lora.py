"""LoRA: adapters are trained, the base model is frozen. An export is an adapter in PEFT's format, or a merged model."""

import warnings
from pathlib import Path
from typing import Any, Dict

import torch
import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.base.errors import USE_SAME_VERSIONS, CheckpointError
from ftdist.config.schema import RunConfig
from ftdist.method.adapters import ADAPTER, add_adapters, as_peft_reads, fold_adapters, without_adapters
from ftdist.method.select import modules_to_save
from ftdist.method.whole import tensors_of, trained_model
from ftdist.model.isolation import ROUNDING
from ftdist.model.load import DTYPES
from ftdist.model.opened import open_exported
from ftdist.model.parts import auto_class
from ftdist.model.save import save_model
from ftdist.run.adapters import PREFIX
from ftdist.run.file_names import ADAPTER_WEIGHTS
from ftdist.run.locations import model_location

PROBE_TOKENS = 64


class Lora:
    """Trains adapters beside the linear layers. With ``use_dora`` also the magnitudes of their rows."""

    def load_options(self, config: RunConfig) -> Dict[str, Any]:
        return {}

    def apply(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        add_adapters(model, config)
        if config.method.lora_dropout:  # each rank drops different inputs
            rank = dist.get_rank() if dist.is_initialized() else 0
            torch.manual_seed(config.seed + rank)
        return model

    def export(
        self, weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, config: RunConfig
    ) -> None:
        """Write the adapter as PEFT does, read it with PEFT, and compare."""
        (out / "config.json").unlink()  # PEFT's folders do not hold the config of the base model
        model = _on_meta(model_config, config)
        add_adapters(model, config)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if {name: p.shape for name, p in trained.items()} != {name: weights[name].shape for name in trained}:
            raise CheckpointError("the checkpoint does not fit the adapters of the config",
                                  "the layers that were trained", USE_SAME_VERSIONS)  # fmt: skip
        written = _in_peft_format(model, weights, config)
        _write(model, written, out, config)
        _compare(written, _on_meta(model_config, config), out)


def _on_meta(model_config: PretrainedConfig, config: RunConfig) -> PreTrainedModel:
    """Return the base model without weights. An adapter is exported without reading the weights of its base."""
    dtype = DTYPES[config.train.precision]
    with torch.device("meta"):
        return auto_class(model_config).from_config(
            model_config, dtype=dtype, trust_remote_code=config.model.trust_remote_code
        )


def _in_peft_format(
    model: PreTrainedModel, weights: Dict[str, torch.Tensor], config: RunConfig
) -> Dict[str, torch.Tensor]:
    """Return the trained tensors by their names in PEFT's file."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, weights, ADAPTER, save_embedding_layers=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module_name, module in modules_to_save(model, config.method).items():
        found |= {f"{module_name}.{name}": weights[names[id(p)]].clone() for name, p in module.named_parameters()}
    return {PREFIX + name: tensor.contiguous() for name, tensor in found.items()}


def _write(model: PreTrainedModel, tensors: Dict[str, torch.Tensor], out: Path, config: RunConfig) -> None:
    from safetensors.torch import save_file

    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings = model.peft_config[ADAPTER]
    settings.modules_to_save = list(modules_to_save(model, config.method)) or None
    settings.base_model_name_or_path = None if config.model.config else model_location(config)
    settings.revision = config.model.revision
    settings.target_modules = sorted(settings.target_modules)  # PEFT keeps a set, in any order
    settings.inference_mode = True
    settings.save_pretrained(out)


def _compare(written: Dict[str, torch.Tensor], base: PreTrainedModel, out: Path) -> None:
    """Read the adapter with PEFT, and compare the tensors and the modules that they belong to."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, load_peft_weights

    settings = PeftConfig.from_pretrained(out)
    base.name_or_path = settings.base_model_name_or_path  # PEFT warns about the other name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a deprecated attribute of the model
        warnings.filterwarnings("ignore", "Model has .tie_word_embeddings=True")  # the adapter holds all tied modules
        opened = get_peft_model(base, settings, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    places = get_peft_model_state_dict(opened, save_embedding_layers=False)
    read = as_peft_reads(opened, load_peft_weights(str(out), device="cpu"))
    different = [name for name, tensor in written.items()
                 if name not in read or not read[name].equal(tensor)
                 or name not in places or places[name].shape != tensor.shape]  # fmt: skip
    if different or read.keys() != places.keys():
        name = (different or sorted(read.keys() ^ places.keys()))[0]
        raise CheckpointError(f"{out}: '{name}' differs from the tensor that was written", "equal tensors",
                              "check the disk, then export again")  # fmt: skip


def export_merged(
    weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, config: RunConfig
) -> str:
    """Write the base model with the adapters folded in, read it again, and compare its logits.

    Returns:
        One line with the largest difference of the logits.

    Raises:
        CheckpointError: The logits differ by more than rounding.
    """
    model = trained_model(Lora().apply, weights, config)
    ids = probe_tokens(model_config)
    before = probe_logits(model, ids)
    fold_adapters(model)
    tensors = without_adapters(tensors_of(model))
    del model
    save_model(tensors, model_config, out, config.model.trust_remote_code)
    merged = open_exported(out, config.model.trust_remote_code).eval()
    after = probe_logits(merged, ids)
    largest = float((after - before).abs().max())
    share, limit = largest / float(before.abs().max()), ROUNDING[DTYPES[config.train.precision]]
    line = f"merged: logits differ from those with the adapter by at most {largest:.2g} ({share:.1e} of the largest)"
    if not share <= limit:
        raise CheckpointError(line, f"at most {limit:.0e} of the largest logit", "export the adapter instead")
    return line


def probe_tokens(model_config: PretrainedConfig) -> torch.Tensor:
    """Return random token ids for a comparison of logits, [1, n]."""
    text = model_config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or 0  # -1 in XLNet: none
    length = min(PROBE_TOKENS, limit) if limit > 0 else PROBE_TOKENS
    return torch.randint(text.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def probe_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model for token ids, [1, n, vocab] in fp32."""
    return model(input_ids=ids, use_cache=False).logits.float()
