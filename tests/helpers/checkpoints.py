"""Checkpoints with given weights, written without training."""

from pathlib import Path
from typing import Any, Dict

from ftdist.config.schema import RunConfig
from ftdist.run.rundir import MANIFEST, RunDir, manifest_text


def write_checkpoint_of(run: RunDir, config: RunConfig, weights: Dict[str, Any], step: int, **manifest: Any) -> Path:
    """Write a checkpoint with these fp32 master weights. Two ranks hold a half of each tensor.

    ``manifest`` are further fields of the manifest, or ``vocab_size`` of state.json.
    """
    from ftdist.checkpoint import durable
    from ftdist.checkpoint.protocol import STATE, rank_file, to_json
    from ftdist.checkpoint.state import MASTER
    from ftdist.checkpoint.tensors import encode, key_of

    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    halves: tuple[Dict[str, Any], Dict[str, Any]] = ({}, {})
    for name, tensor in weights.items():
        flat = tensor.detach().float().contiguous().view(-1)
        middle = flat.numel() // 2
        halves[0][key_of(MASTER, 0, name)], halves[1][key_of(MASTER, middle, name)] = flat[:middle], flat[middle:]
    state = {"step": step, "vocab_size": manifest.pop("vocab_size", 259)}
    files = {STATE: durable.write_file(folder / STATE, [to_json(state)])}
    for rank, half in enumerate(halves):
        files[rank_file(rank)] = durable.write_file(folder / rank_file(rank), encode(half))
    contents = {
        "format": 1, "step": step, "world_size": 2, "precision": config.train.precision.name, "files": files,
        "parameters": {name: list(tensor.shape) for name, tensor in weights.items()}, "buffers": {}, "eval_loss": None,
        **manifest,
    }  # fmt: skip
    (folder / MANIFEST).write_text(manifest_text(contents), encoding="utf-8")
    return folder
