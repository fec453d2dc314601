"""Adapters that PEFT itself has written, as other programs give them to users."""

from pathlib import Path
from typing import Any


def save_peft_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Write an adapter with weights that change the model's output. ``settings`` are those of ``LoraConfig``.

    This does not run autograd, so ranks can be forked afterwards.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig

    from ftdist.model.parts import auto_class

    model = get_peft_model(
        auto_class(AutoConfig.from_pretrained(base)).from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, **settings}),
    )
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.05, generator=draw))
    model.save_pretrained(folder)
    return folder
