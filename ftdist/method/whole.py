"""The base model with the trained weights of a checkpoint, whole in one process, for exports."""

from typing import Callable, Dict

import torch
from transformers import PreTrainedModel

from ftdist.base.counts import count
from ftdist.base.errors import CheckpointError
from ftdist.config.schema import RunConfig
from ftdist.data.tokenizer import load_tokenizer
from ftdist.model.load import load_whole
from ftdist.model.vocabulary import fit_vocabulary


def trained_model(
    apply: Callable[[PreTrainedModel, RunConfig], PreTrainedModel], weights: Dict[str, torch.Tensor], config: RunConfig
) -> PreTrainedModel:
    """Load the base model, apply a method, and put the trained weights in.

    Args:
        apply: ``Method.apply`` of the run's method. weights: The trained parameters and saved buffers by name, without
        the rows that only pad the embedding.

    Returns:
        The model in evaluation mode, in the run's precision.

    Raises:
        CheckpointError: The weights are not those of the parameters that the method trains.
    """
    model, tokenizer = load_whole(config), load_tokenizer(config)
    fit_vocabulary(model, tokenizer.num_known_tokens, len(tokenizer), 1)
    model = apply(model, config).eval()
    model.to(model.device)  # layers may have been quantized on a GPU
    put_weights(model, weights)
    return model


@torch.no_grad()
def put_weights(model: torch.nn.Module, weights: Dict[str, torch.Tensor]) -> None:
    """Replace the trained parameters and the saved buffers of a whole model.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors = {**trained, **{name: buffer for name, buffer in model.named_buffers() if name in weights}}
    other = sorted(tensors.keys() ^ weights.keys())
    other += [name for name in tensors.keys() & weights.keys() if tensors[name].shape != weights[name].shape]
    if other:
        raise CheckpointError(
            f"the checkpoint does not fit the model: {count(len(other), 'tensor differs', 'tensors differ')}, for "
            f"example {other[0]}",
            "the tensors that the run trains", "restore the run.yaml of the run",
        )  # fmt: skip
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])


def tensors_of(model: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """Return the parameters and saved buffers of a model, by name."""
    saved = model.state_dict().keys()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in saved}
