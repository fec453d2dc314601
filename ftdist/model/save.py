"""Write a whole model in Hugging Face format, read it again, and compare."""

import hashlib
from pathlib import Path
from typing import Dict

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from ftdist.base.errors import CheckpointError

GENERATION = "generation_config.json"
SHARD_SIZE = "5GB"
"""Maximum size of one weights file."""


def save_model(
    weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, trust_remote_code: bool
) -> None:
    """Write weights to a folder, load the folder as a user would, and compare the weights.

    Args:
        weights: Weights by parameter name, all of one type. The dict is empty afterwards.
        model_config: Config of the model.
        out: Folder that already contains the generation config.
        trust_remote_code: Whether the model may run Python code of its own.

    Raises:
        CheckpointError: The weights do not fit the model, or they are different after loading.
    """
    dtype = next(iter(weights.values())).dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, dtype=dtype, trust_remote_code=trust_remote_code)
    _, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent or unexpected:
        raise CheckpointError(
            f"the checkpoint does not fit the model: missing weights {absent[:3]}, unexpected weights {unexpected[:3]}"
        )
    generation = (out / GENERATION).read_bytes()
    model.generation_config = GenerationConfig()  # transformers would refuse to write some that it has read
    model.config.use_cache = True
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)
    (out / GENERATION).write_bytes(generation)
    written = _digests(model)
    weights.clear()
    del model
    _compare(written, out, trust_remote_code)


def _digests(model: torch.nn.Module) -> Dict[str, str]:
    """Return the SHA-256 hash of each tensor that a model saves, by its name in the model."""
    tensors = model.state_dict().items()
    return {name: hashlib.sha256(t.cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
            for name, t in tensors}  # fmt: skip


def _compare(written: Dict[str, str], out: Path, trust_remote_code: bool) -> None:
    """Load the folder and compare the hashes of its tensors with those that were written.

    Hashes are compared so that only one model is in memory at a time. The model is loaded with ``from_pretrained``,
    because transformers renames and splits the tensors of some models when it writes them.
    """
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=trust_remote_code)
    read = _digests(model)
    for name, digest in written.items():
        if read.get(name) != digest:
            raise CheckpointError(f"{out}: '{name}' differs from the tensor that was written", "equal tensors",
                                  "check the disk, then export again")  # fmt: skip
