"""The training state as named tensors: what each rank saves, and how any number of ranks restores it."""

from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import torch
import torch.distributed as dist

from ftdist.checkpoint.protocol import rank_file
from ftdist.checkpoint.tensors import Stored, key_of
from ftdist.engine.engine import Engine
from ftdist.engine.optimizers import empty_state
from ftdist.engine.shards import held_slices, rewriting, slices_to_save
from ftdist.model.vocabulary import gathered
from ftdist.run.rundir import read_manifest

MASTER, BUFFER = "master", "buffer"
"""Kinds of entries in a tensor file. The other kinds are the names of the optimizer states."""


def tensors_to_save(engine: Engine) -> Dict[str, torch.Tensor]:
    """Return the tensors that this rank saves, by the key of their entry. They are views of live tensors, not
    copies."""
    tensors = {}
    for part in slices_to_save(engine):
        tensors[key_of(MASTER, part.start, part.name)] = part.of(part.flat)
        state = engine.optimizer.state[part.flat] if engine.updates else {}
        for name in engine.spec.states:
            if name in state:
                tensors[key_of(name, part.start, part.name)] = part.of(state[name])
    if dist.get_rank() == 0:
        tensors |= {key_of(BUFFER, 0, name): tensor.view(-1) for name, tensor in engine.buffers().items()}
    if engine.updates and (engine.stage or dist.get_rank() == 0):
        tensors |= {key_of(name, 0, owner): state.view(-1) for name, owner, state in _uncut(engine)}
    return tensors


def _uncut(engine: Engine) -> Iterator[Tuple[str, str, torch.Tensor]]:
    """Yield the states on this rank that cannot be cut with their parameters: name, owner, tensor.

    Without ZeRO the owner is the parameter, and every rank has all of them. Otherwise it is a flat part of this rank.
    """
    flats = {id(part.flat): part for part in held_slices(engine)}
    for number, part in enumerate(flats.values()):
        owner = f"part {number} of rank {dist.get_rank()}" if engine.stage else part.name
        state = engine.optimizer.state[part.flat]
        yield from ((name, owner, state[name]) for name in engine.spec.others if name in state)


def layout(engine: Engine) -> List[str]:
    """Return a description of where this rank holds its parameters. States that cannot be cut fit only this layout.

    The result is empty if the optimizer has no such states.
    """
    if not engine.spec.others:
        return []
    flats: Dict[int, int] = {}
    return [f"{flats.setdefault(id(part.flat), len(flats))} {part.flat.numel()} {part.offset} {part.name} {part.start} "
            f"{part.length}" for part in held_slices(engine)]  # fmt: skip


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
                states[flat] = empty_state(engine.optimizer, engine.spec, flat, updates)
        for part in slices:
            part.of(part.flat).copy_(stored.read(MASTER, part.name, part.start, part.length))
            state = states[part.flat] if updates else {}
            for name in engine.spec.states:
                if name in state:
                    part.of(state[name]).copy_(stored.read(name, part.name, part.start, part.length))
        for name, owner, tensor in _uncut(engine) if updates else ():
            tensor.copy_(stored.whole(name, owner, tensor.shape))
        for name, buffer in engine.buffers().items():
            buffer.copy_(stored.whole(BUFFER, name, buffer.shape))
    engine.updates = updates
