"""The training state as named tensors: what each rank saves, and how any number of ranks restores it."""

from pathlib import Path
from typing import Dict

import torch
import torch.distributed as dist

from ftdist.checkpoint.protocol import rank_file
from ftdist.checkpoint.tensors import Stored, key_of
from ftdist.engine.engine import Engine
from ftdist.engine.shards import rewriting, slices_to_save
from ftdist.model.vocabulary import gathered
from ftdist.run.rundir import read_manifest

MASTER, BUFFER = "master", "buffer"
"""Kinds of entries in a tensor file. The other kinds are the names of the optimizer states."""


def tensors_to_save(engine: Engine) -> Dict[str, torch.Tensor]:
    """Return the tensors that this rank saves, by the key of their entry. They are views of live tensors, not
    copies."""
    states, tensors = engine.optimizer.state, {}
    for part in slices_to_save(engine):
        tensors[key_of(MASTER, part.start, part.name)] = part.of(part.flat)
        for name in engine.state_names if engine.updates else ():
            tensors[key_of(name, part.start, part.name)] = part.of(states[part.flat][name])
    if dist.get_rank() == 0:
        tensors |= {key_of(BUFFER, 0, name): tensor.view(-1) for name, tensor in engine.buffers().items()}
    return tensors


@torch.no_grad()
def load_trained(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put the trained weights and the saved buffers of a checkpoint into a model without an engine.

    With ZeRO-3 every rank must call it.

    Args:
        model: The base model with the method of the run applied.
        checkpoint: The folder of the checkpoint. Verify its files first.
    """
    manifest = read_manifest(checkpoint)
    stored = Stored([checkpoint / rank_file(rank) for rank in range(manifest["world_size"])])
    for name, parameter in model.named_parameters():
        if name in manifest["parameters"]:
            with gathered([parameter]):
                if parameter.numel():
                    parameter.copy_(stored.whole(MASTER, name, manifest["parameters"][name]))
    for name, buffer in model.named_buffers():
        if name in manifest["buffers"]:
            buffer.copy_(stored.whole(BUFFER, name, buffer.shape))


def restore(engine: Engine, stored: Stored, updates: int) -> None:
    """Restore the state of the engine from a checkpoint. Every rank must call it.

    The checkpoint may have been saved by another number of ranks or at another ZeRO stage.

    Args:
        updates: Number of optimizer updates before the checkpoint. At 0 there are no optimizer states yet.
    """
    states = engine.optimizer.state
    with rewriting(engine) as slices:
        if updates == 0:
            states.clear()
        for flat in {id(part.flat): part.flat for part in slices}.values():
            flat.zero_()  # sets the padding too, which no slice covers
            if updates:
                states[flat] = {"step": torch.tensor(float(updates), device=flat.device),
                                **{name: torch.zeros_like(flat) for name in engine.state_names}}  # fmt: skip
        for part in slices:
            part.of(part.flat).copy_(stored.read(MASTER, part.name, part.start, part.length))
            for name in engine.state_names if updates else ():
                part.of(states[part.flat][name]).copy_(stored.read(name, part.name, part.start, part.length))
        for name, buffer in engine.buffers().items():
            buffer.copy_(stored.whole(BUFFER, name, buffer.shape))
    engine.updates = updates
