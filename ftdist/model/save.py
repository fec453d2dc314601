"""Write a whole model in Hugging Face format, read it again, and compare."""

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from ftdist.base.errors import USE_SAME_VERSIONS, CheckpointError
from ftdist.model.parts import auto_class
from ftdist.run.file_names import GENERATION_CONFIG

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
        model = auto_class(model_config).from_config(model_config, dtype=dtype, trust_remote_code=trust_remote_code)
    _add_tied_names(model, weights)
    _, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent or unexpected:
        raise CheckpointError(
            f"the checkpoint does not fit the model: missing weights {absent[:3]}, unexpected weights {unexpected[:3]}",
            "the parameters that were trained",
            USE_SAME_VERSIONS,
        )
    generation = (out / GENERATION_CONFIG).read_bytes()
    model.generation_config = GenerationConfig()  # transformers refuses to write some that it has read
    model.config.use_cache = True
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)
    (out / GENERATION_CONFIG).write_bytes(generation)
    written = {name: (_digest(tensor), tensor.dtype) for name, tensor in model.state_dict().items()}
    weights.clear()
    del model
    _compare(written, out, trust_remote_code)


def _add_tied_names(model: torch.nn.Module, weights: Dict[str, torch.Tensor]) -> None:
    """Add the other names of tied parameters. ``weights`` has only the first name of each, but transformers may keep
    another name."""
    names: Dict[int, List[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        known = [name for name in tied if name in weights]
        weights.update({name: weights[known[0]] for name in tied if known})


def _digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 hash of a tensor's values."""
    values: Any = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(values).hexdigest()


def _compare(written: Dict[str, Tuple[str, torch.dtype]], out: Path, trust_remote_code: bool) -> None:
    """Load the folder and compare its tensors with those that were written.

    Hashes are compared so that only one model is in memory at a time. The model is loaded with ``from_pretrained``,
    because transformers renames and splits the tensors of some models when it writes them. It reads some tensors in
    fp32 in any case, so values are compared in the type that was written.

    Args:
        written: Hash and type of each tensor that was written, by its name in the model.
    """
    arch = AutoConfig.from_pretrained(out, trust_remote_code=trust_remote_code)
    model = auto_class(arch).from_pretrained(out, dtype="auto", trust_remote_code=trust_remote_code)
    read = model.state_dict()
    for name, (digest, dtype) in written.items():
        if name not in read or _digest(read[name].to(dtype)) != digest:
            raise CheckpointError(f"{out}: '{name}' differs from the tensor that was written", "equal tensors",
                                  "check the disk, then export again")  # fmt: skip
