"""What training moved: the change of every trained tensor of a checkpoint against the base model.

The base model is loaded once, whole, as the run loaded it. The checkpoint is read one tensor at a time, so two models
are never in memory.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import torch
from transformers.pytorch_utils import Conv1D

from ftdist.base.errors import CheckpointError
from ftdist.base.json_files import read_json
from ftdist.checkpoint.export import check_trained
from ftdist.checkpoint.protocol import STATE, rank_file
from ftdist.checkpoint.state import MASTER
from ftdist.checkpoint.tensors import Stored
from ftdist.config.schema import RunConfig
from ftdist.data.tokenizer import load_tokenizer
from ftdist.method.adapters import ADAPTER
from ftdist.method.qlora import layers_in_4_bits
from ftdist.model.adapter import MAGNITUDE, A, B, adapter_scale, folded
from ftdist.model.load import load_whole
from ftdist.model.quantized import round_to_4_bits
from ftdist.model.vocabulary import fit_vocabulary
from ftdist.report.neighbours import most_moved
from ftdist.report.rank import Rank, norm_and_rank_of_product, norm_of, rank_of
from ftdist.run.identity import changed_files, read_inputs
from ftdist.run.rundir import RunDir, read_manifest

LAYER = re.compile(r"(?:^|.*?\.)(\d+)\.(.+?)(?:\.weight)?")
"""The number of a layer, and the name of a tensor in it."""
EMBEDDING, HEAD, NORM, MATRIX, VECTOR = "embedding", "head", "norm", "matrix", "vector"


@dataclass(frozen=True)
class Change:
    """The change of one tensor."""

    name: str
    kind: str
    """``embedding``, ``head`` (if it is not the embedding), ``norm``, ``matrix``, or ``vector`` (biases)."""
    base_norm: float
    """‖W‖ of the base model."""
    norm: float
    """‖ΔW‖."""
    rank: Optional[Rank] = None
    """Rank of ΔW. None for a vector. For stacked matrices (experts), the rank of the matrix that moved most."""

    @property
    def relative(self) -> Optional[float]:
        """‖ΔW‖/‖W‖; None if the base is 0."""
        return _ratio(self.norm, self.base_norm)

    def as_dict(self) -> Dict[str, Any]:
        """Return the change as a part of the report."""
        rank, exceeds = (None, False) if self.rank is None else (self.rank.value, self.rank.exceeds)
        return {"name": self.name, "kind": self.kind, "relative": self.relative, "norm": self.norm,
                "base_norm": self.base_norm, "rank": rank, "rank_exceeds": exceeds}  # fmt: skip


def what_moved(run: RunDir, checkpoint: Path, config: RunConfig) -> Dict[str, Any]:
    """Compare the trained weights of a checkpoint with the base model of its run, cast to the type it was loaded in.

    The weights of the checkpoint are the fp32 master weights. So the change is 0 before the first step, also in bf16.

    Returns:
        ``tensors`` (each ``Change``), ``kinds`` (‖ΔW‖/‖W‖ of all tensors of a kind together), ``map`` (the matrices by
        layer and module), ``tokens`` (see ``most_moved``; empty if the embedding is not trained), and ``relative`` of
        all trained tensors together.

    Raises:
        CheckpointError: The checkpoint is damaged, or the run was started from other weights than are there now.
        ConfigError: The base model cannot be loaded.
    """
    check_trained(checkpoint, config)
    check_started_from(run, config)
    manifest, vocab_size = read_manifest(checkpoint), read_json(checkpoint / STATE)["vocab_size"]
    stored = Stored([checkpoint / rank_file(rank) for rank in range(manifest["world_size"])])
    model, tokenizer = load_whole(config), load_tokenizer(config)
    padding = config.model.pad_vocab_to_multiple_of
    fit_vocabulary(model, tokenizer.num_known_tokens, len(tokenizer), padding)
    found: List[Change] = []
    tokens: List[Dict[str, Any]] = []
    with torch.no_grad():
        if config.method.facts.adapters:
            found += adapter_changes(model, stored, manifest["parameters"], config)
        kinds, owners = kinds_of(model), _owners_of_rows(model)
        for name, parameter in model.named_parameters():
            if name not in manifest["parameters"]:
                continue
            before, after = parameter.float(), stored.whole(MASTER, name, manifest["parameters"][name])
            if any(parameter is one for one in owners):  # without the rows that only pad the embedding
                before, after = before[:vocab_size], after[:vocab_size]
            found.append(change_of(name, kinds[name], before, after))
            if parameter is owners[0]:
                tokens = most_moved(before, after, tokenizer)
    return {
        "checkpoint": checkpoint.name, "relative": _together(found), "tokens": tokens, "map": layer_map(found),
        "kinds": {kind: _together([one for one in found if one.kind == kind])
                  for kind in (MATRIX, EMBEDDING, HEAD, NORM, VECTOR) if any(one.kind == kind for one in found)},
        "tensors": [one.as_dict() for one in found],
    }  # fmt: skip


def check_started_from(run: RunDir, config: RunConfig) -> None:
    """Check that the base model is the one that the run was started with.

    Runs of older versions did not record their base model, and are not checked.

    Raises:
        CheckpointError: The files of the base model are different now.
    """
    record = read_inputs(run)
    if record is not None and (changed := changed_files(record, config, "model")):
        raise CheckpointError(f"{run.path} was started from other weights: {changed[0]}",
                              "the base model that the run was started with",
                              "restore its files, or leave this part out with --quick")  # fmt: skip


def change_of(name: str, kind: str, before: torch.Tensor, after: torch.Tensor) -> Change:
    """Return the change of one tensor, from its fp32 values before and after training."""
    change = after - before
    rank: Optional[Rank] = None
    if change.ndim > 1:
        matrices = change.reshape(-1, *change.shape[-2:])
        norms = torch.linalg.vector_norm(matrices, dim=(1, 2), dtype=torch.float64)
        rank = rank_of(matrices[int(norms.argmax())], seed_of(name))
    return Change(name, kind, norm_of(before), norm_of(change), rank)


def seed_of(name: str) -> int:
    """Return a seed that depends only on the name of a tensor."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def adapter_changes(model: Any, stored: Stored, shapes: Dict[str, List[int]], config: RunConfig) -> Iterator[Change]:
    """Yield the change of each layer with an adapter: scale · B·A, with DoRA that of the whole weight.

    Args:
        model: The base model without adapters. With ``method=qlora`` its matrices are rounded to 4 bits first, because
            the run computed with these.
        shapes: Shapes of the tensors in the checkpoint, by name.
    """
    method = config.method
    if method.facts.quantized:
        round_to_4_bits(model, layers_in_4_bits(model, config))
    scale = adapter_scale(method.r, method.lora_alpha, method.use_rslora)
    ends = {A: f".lora_A.{ADAPTER}.weight", B: f".lora_B.{ADAPTER}.weight", MAGNITUDE: f".{MAGNITUDE}.{ADAPTER}.weight"}
    for module in [name.removesuffix(ends[A]) for name in shapes if name.endswith(ends[A])]:
        layer = model.get_submodule(module)
        names = {key: module + end for key, end in ends.items() if module + end in shapes}
        tensors = {key: stored.whole(MASTER, name, shapes[name]) for key, name in names.items()}
        name, weight = f"{module}.weight", layer.weight.float()
        kind = HEAD if layer is model.get_output_embeddings() else MATRIX
        if MAGNITUDE in tensors:
            tensors[MAGNITUDE] *= _rounding_of_lengths(layer)
            yield change_of(name, kind, weight, folded(layer, tensors, scale))
        else:
            norm, rank = norm_and_rank_of_product(tensors[B], tensors[A], scale)
            yield Change(name, kind, norm_of(weight), norm, rank)


def _rounding_of_lengths(layer: Any) -> torch.Tensor:
    """Return the length of each row of a weight, as a multiple of the length in the type of the weight.

    The run divides the magnitudes by lengths in this type, which is where the magnitudes also started.
    """
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    return torch.linalg.norm(weight.float(), dim=1) / torch.linalg.norm(weight, dim=1).float()


def kinds_of(model: Any) -> Dict[str, str]:
    """Return the kind of each parameter, by name."""
    kinds = {name: MATRIX if parameter.ndim > 1 else VECTOR for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        own = [names[id(parameter)] for parameter in module.parameters(recurse=False)]
        if "norm" in type(module).__name__.lower():
            kinds.update(dict.fromkeys(own, NORM))
        elif isinstance(module, torch.nn.Embedding):
            kinds.update(dict.fromkeys(own, EMBEDDING))
        elif module is model.get_output_embeddings():
            kinds.update({name: HEAD for name in own if kinds[name] != EMBEDDING})
    return kinds


def layer_map(changes: List[Change]) -> Dict[str, Any]:
    """Return ‖ΔW‖/‖W‖ of the matrices by layer and module: ``layers``, ``modules`` and ``values`` [layer][module]."""
    values: Dict[int, Dict[str, Optional[float]]] = {}
    for change in changes:
        if change.kind == MATRIX and (found := LAYER.fullmatch(change.name)):
            values.setdefault(int(found.group(1)), {})[found.group(2)] = change.relative
    modules = list(dict.fromkeys(module for row in values.values() for module in row))
    layers = sorted(values)
    return {"layers": layers, "modules": modules,
            "values": [[values[layer].get(module) for module in modules] for layer in layers]}  # fmt: skip


def _owners_of_rows(model: Any) -> List[Any]:
    """Return the parameters with a row for each token: of the embedding, then of the head."""
    head = model.get_output_embeddings()
    return [model.get_input_embeddings().weight, *(head.parameters() if head is not None else [])]


def _together(changes: List[Change]) -> Optional[float]:
    """Return ‖ΔW‖/‖W‖ of several tensors as if they were one."""
    norm, base = (math.hypot(*(getattr(one, name) for one in changes)) for name in ("norm", "base_norm"))
    return _ratio(norm, base)


def _ratio(norm: float, base: float) -> Optional[float]:
    return norm / base if base else None if norm else 0.0
