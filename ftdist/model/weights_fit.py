"""Check that the weights in the files of a model fit it: each weight is there, in the shape that the config says.

transformers fills in random numbers for weights that are missing or have another shape, and converts integers. Before
the run, all three are refused from names, types and shapes alone (``check_stored_weights``). Each rank refuses missing
weights and other shapes again, after it has read the files (``check_loaded``).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set

import torch
from transformers import PreTrainedModel, modeling_utils
from transformers.conversion_mapping import get_model_conversion_mapping

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.model.parts import names_in_model, unread_weights
from ftdist.model.stored_weights import TYPES, StoredTensor, stored_tensors
from ftdist.run.hub import model_folder
from ftdist.run.locations import WEIGHTS, is_converted, model_location
from ftdist.run.weight_files import TRAINED_TYPES, tensor_header

OTHER_TYPE = torch.uint8
"""The type with which a tensor of a type that is not in ``TYPES`` is loaded. Only buffers have such a type."""


def check_stored_weights(config: RunConfig, model: PreTrainedModel) -> None:
    """Check the files with the weights of a model, without reading the weights.

    Args:
        model: The model of the config, without weights.

    Raises:
        ConfigError: A file is damaged, a weight is missing, or it has another shape than the config says, or is not a
            floating-point number of 16 bits or more. A buffer can have any type.
    """
    folder = None if is_converted(config) else model_folder(config)
    if folder is None or not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return  # without weights, no run gets this far
    stored = stored_tensors(folder)
    _check_types(folder, model, {name: found.type for name, found in stored.items()})
    _prove_weights_fit(config, model, stored)


def _check_types(folder: Path, model: PreTrainedModel, stored: Dict[str, str]) -> None:
    types = {name: found for name, found in stored.items() if found not in TRAINED_TYPES}
    if not types:
        return
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    places = names_in_model(model, types, get_model_conversion_mapping(model))
    found = sorted(name for name, place in places.items() if {place, f"{model.base_model_prefix}.{place}"} & weights)
    if found:
        raise ConfigError(f"{found[0]} has the type {types[found[0]]} in the files of {folder}",
                          f"weights of the types {', '.join(TRAINED_TYPES)}",
                          "use a copy of the model whose weights are not quantized")  # fmt: skip


def _prove_weights_fit(config: RunConfig, model: PreTrainedModel, stored: Dict[str, StoredTensor]) -> None:
    """Load the weights without their numbers, on the meta device, and check what transformers reports."""
    types = {name: dtype for dtype, name in TYPES.items()}
    tensors = {
        name: torch.empty(found.shape, dtype=types.get(found.type, OTHER_TYPE), device="meta")
        for name, found in stored.items()
    }
    try:
        with _tied_weights_are_equal(), unread_weights() as unread:
            loaded, report = type(model).from_pretrained(
                None, config=copy.deepcopy(model.config), state_dict=tensors, dtype=model.dtype, device_map="meta",
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:
        if (detail := size_mismatch(error)) is None:
            return  # some code needs numbers: then only the ranks find out whether the weights fit
        raise other_shapes(config, detail) from error
    check_loaded(config, loaded, report, unread)


@contextmanager
def _tied_weights_are_equal() -> Iterator[None]:
    """Inside a ``with`` block, let transformers treat two weights as equal if the config ties them and the files hold
    both. They cannot be compared without their numbers; the ranks compare them later."""
    compare = modeling_utils._tied_params_are_equal
    modeling_utils._tied_params_are_equal = lambda first, second: True
    try:
        yield
    finally:
        modeling_utils._tied_params_are_equal = compare


def check_loaded(config: RunConfig, model: PreTrainedModel, report: Dict[str, Any], unread: Sequence[str]) -> None:
    """Check what transformers says about the weights that it has read.

    Args:
        report: ``output_loading_info`` of ``from_pretrained``.
        unread: Names of weights in the files that the model does not have.

    Raises:
        ConfigError: A weight is missing or has another shape, or the files have two different weights where the config
            says that they are the same one.
    """
    if report["mismatched_keys"]:
        name, in_file, here = min(report["mismatched_keys"])
        raise other_shapes(config, f"{name} is {_sizes(in_file)} in the files, and {_sizes(here)} by the config")
    _check_tied(config, model)
    if report["missing_keys"]:
        raise _missing(config, sorted(report["missing_keys"]), unread)


def size_mismatch(error: Exception) -> str | None:
    """Return the line of an error of transformers that names a weight with a wrong shape; None for other errors."""
    return next((line.strip()[:200] for line in str(error).splitlines() if "size mismatch" in line), None)


def other_shapes(config: RunConfig, detail: str) -> ConfigError:
    """Return the error for a weight that does not have the shape of the config."""
    found = f"the weights of {model_location(config)} do not have the shapes that its config.json says: {detail}"
    return ConfigError(found, "weights that fit their config", "use a folder whose files belong together")


def _sizes(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _check_tied(config: RunConfig, model: PreTrainedModel) -> None:
    """Refuse a model whose files have two different weights where its config says that they are the same one.

    transformers does not tie them, but an export of the model would.
    """
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    untied = sorted(tied.keys() - model.all_tied_weights_keys.keys())
    if untied:
        raise ConfigError(
            f"the config of {model_location(config)} ties {untied[0]} to {tied[untied[0]]}, but its files have both of "
            "them, with different values",
            "a config that fits the weights",
            "use a copy with tie_word_embeddings=false in its config.json",
        )


def _missing(config: RunConfig, names: List[str], unread: Sequence[str]) -> ConfigError:
    """Return the error for weights that transformers did not find. With ZeRO-3, transformers can be the cause."""
    folder, some = Path(model_location(config)), ", ".join(names[:3])
    files: Set[str] = set()
    for file in folder.glob("*.safetensors"):
        files.update(tensor_header(file))
    if files.issuperset(names):
        found = f"transformers does not load {count(len(names), 'weight')} of {folder} with ZeRO-3 ({some} …)"
        return ConfigError(found, "a model whose weights all have the names that it reads", "zero.stage=2")
    found, expected = (
        f"{model_location(config)} lacks {count(len(names), 'weight')} ({some} …)",
        "every weight of the model",
    )
    if not unread:
        return ConfigError(found, expected, "use a complete model folder")
    others = f"{count(len(unread), 'weight')} that the model does not have ({min(unread)} …)"
    return ConfigError(f"{found}, and holds {others}", f"{expected}, with the name that save_pretrained gives it",
                       "use a complete model folder, or rename the weights")  # fmt: skip
