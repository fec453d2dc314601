"""Write a whole model in Hugging Face format, then read it again and compare."""

import hashlib
from pathlib import Path
from typing import Dict

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from ftdist.base.errors import CheckpointError

SHARD_SIZE = "5GB"


def save_model(
    weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, trust_remote_code: bool
) -> None:
    """Write weights to ``out``, which already holds the configs, and compare what was written. Empties ``weights``.

    Raises:
        CheckpointError: The weights do not fit the model, or they read back differently.
    """
    dtype = next(iter(weights.values())).dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, dtype=dtype, trust_remote_code=trust_remote_code)
    _, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent or unexpected:
        raise CheckpointError(f"the checkpoint does not fit the model: lacks {absent[:3]}, has {unexpected[:3]}")
    generation_config = model.generation_config.from_pretrained(out)
    model.generation_config = generation_config
    model.config.use_cache = True
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)
    written = _digests(model)
    weights.clear()
    del model
    _compare(written, out, trust_remote_code)


def _digests(model: torch.nn.Module) -> Dict[str, str]:
    """A hash of each tensor that a model saves, by its name in the model."""
    tensors = model.state_dict().items()
    return {name: hashlib.sha256(t.cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
            for name, t in tensors}  # fmt: skip


def _compare(written: Dict[str, str], out: Path, trust_remote_code: bool) -> None:
    """By hashes, so that two models never lie in memory; as a user will open it, since transformers renames and splits
    some models' tensors when it writes them."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=trust_remote_code)
    read = _digests(model)
    for name, digest in written.items():
        if read.get(name) != digest:
            raise CheckpointError(f"{out}: '{name}' reads back differently from what was written", "equal tensors",
                                  "check the disk, then export again")  # fmt: skip
