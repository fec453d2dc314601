"""Start a run from a saved adapter (``method.init_from``)."""

from pathlib import Path
from typing import Dict, List

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from ftdist.config.schema import RunConfig
from ftdist.method.adapters import ADAPTER
from ftdist.model.adapter import MAGNITUDE, Shape, misfit, no_place, stored_names, trained_shapes
from ftdist.model.vocabulary import gathered, whole_shape
from ftdist.run.adapters import INIT_FROM, PREFIX, adapter_folder
from ftdist.run.file_names import ADAPTER_WEIGHTS

Names = Dict[torch.nn.Parameter, List[str]]


def names_in_file(model: torch.nn.Module) -> Names:
    """Return the names that PEFT can give each trained parameter in a file. A tied parameter has several."""
    names: Names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            end = f".{MAGNITUDE}.{ADAPTER}.weight"
            name = name.removesuffix(f".{ADAPTER}.weight") if name.endswith(end) else name
            names.setdefault(parameter, []).append(PREFIX + name.replace(f".{ADAPTER}.", "."))
    return names


def check_continued(model: PreTrainedModel, config: RunConfig) -> Dict[torch.nn.Parameter, str]:
    """Check that the adapter of ``method.init_from`` fits a model with the method applied, which may have no weights.

    Returns:
        The name that PEFT gives each trained parameter in a file.

    Raises:
        ConfigError: A tensor is missing, belongs to no trained parameter, or has another shape; or see
        ``trained_shapes``.
    """
    folder = adapter_folder(INIT_FROM, str(config.method.init_from))
    shapes, names = trained_shapes(INIT_FROM, model, folder), names_in_file(model)
    found: Dict[torch.nn.Parameter, str] = {}
    for parameter, known in names.items():
        name = next((name for name in known if name in shapes), known[0])
        if not _fits(model, parameter, shapes.get(name)):
            raise misfit(INIT_FROM, folder, name, shapes.get(name), tuple(whole_shape(parameter)))
        found[parameter] = name
    other = shapes.keys() - {name for known in names.values() for name in known}
    if other:
        raise no_place(INIT_FROM, model, folder, min(other), shapes[min(other)])
    return found


def _fits(model: PreTrainedModel, parameter: torch.nn.Parameter, shape: Shape | None) -> bool:
    """Return whether a tensor of the file can be put into a parameter.

    An embedding, and an adapter of the output head, may have more rows than the file: for tokens that this run adds,
    and for padding. On the meta device new tokens are not yet added.
    """
    mine = tuple(whole_shape(parameter))
    owners = [one for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None]
    for owner in owners:
        rows = whole_shape(owner.weight)[0]
        if shape is not None and mine[0] == rows and any(parameter is one for one in owner.parameters()):
            return shape[1:] == mine[1:] and (parameter.is_meta or shape[0] <= rows)
    return shape == mine


@torch.no_grad()
def start_from_adapter(model: PreTrainedModel, config: RunConfig) -> None:
    """Load the weights of the adapter that ``method.init_from`` names into a model with the method applied.

    They are rounded to the precision of the run. With ZeRO-3 every rank must call it, before DeepSpeed is initialized.

    Raises:
        ConfigError: There is no such adapter, or it does not fit the model.
    """
    names, stored = check_continued(model, config), stored_names(model, Path(str(config.method.init_from)))
    with safe_open(Path(str(config.method.init_from)) / ADAPTER_WEIGHTS, framework="pt") as file:
        for parameter, name in names.items():
            with gathered([parameter]):
                if parameter.numel():
                    tensor = file.get_tensor(stored[name])
                    parameter[: len(tensor)].copy_(tensor)
