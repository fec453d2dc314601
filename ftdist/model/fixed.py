"""Parameters that a model class itself never trains, for instance biases that balance the load of experts.

They require no gradient when the model is loaded. Full fine-tuning saves them with the buffers, so that an export is
complete.
"""

from typing import Dict

import torch

from ftdist.model.vocabulary import gathered

MARK = "ftdist_fixed"


def keep_fixed(model: torch.nn.Module) -> None:
    """Mark the parameters that require no gradient now, so that checkpoints hold them."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            setattr(parameter, MARK, True)


@torch.no_grad()
def fixed_parameters(model: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """Return copies of the marked parameters, whole, by name. With ZeRO-3 every rank must call it."""
    found = {}
    for name, parameter in model.named_parameters():
        if getattr(parameter, MARK, False) and not parameter.requires_grad:
            with gathered([parameter]):
                found[name] = parameter.detach().clone()
    return found
