"""The coefficient of the balance loss of a run, and whether ftdist can compute the balance loss of its model."""

import copy
from typing import Optional

import torch
from transformers import PretrainedConfig

from ftdist.base.errors import ConfigError
from ftdist.model.load import build_whole
from ftdist.model.parts import build, is_multimodal
from ftdist.model.routers import RouterLogits, active_experts, expert_counts, probability_sums
from ftdist.model.standin import config_of_standin, standin_config, whole_standin_config

VOCABULARY, TOKENS = 300, 48
"""Number of tokens of the stand-in, and of the text with which its balance loss is compared."""
SAME = 1e-5
"""Largest relative difference of two balance losses that are equal up to rounding."""
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""Names of the field with the coefficient of the balance loss."""


def balance_coefficient(wanted: Optional[float], arch: PretrainedConfig) -> float:
    """Return the coefficient of the balance loss of a run; 0 if there is none.

    Args:
        wanted: ``objective.router_aux_loss``. None: what the model's config says.
        arch: Config of the model.

    Raises:
        ConfigError: A balance loss is requested, but ftdist cannot compute it for this model.
    """
    coefficient, asks = wanted, f"objective.router_aux_loss={wanted}"
    if wanted is None:
        asked = getattr(arch.get_text_config(), "output_router_logits", False) is True
        coefficient, asks = (
            (model_coefficient(arch) if asked else 0.0),
            "output_router_logits=true in the model's config",
        )
    if coefficient and (problem := why_not_balanced(arch)):
        raise ConfigError(f"{asks}, but {problem}", "a mixture of experts whose balance loss transformers computes",
                          "objective.router_aux_loss=0")  # fmt: skip
    return coefficient or 0.0


def model_coefficient(arch: PretrainedConfig) -> float:
    """Return the coefficient in the model's config. It is 0 if the model has no balance loss in transformers."""
    text = arch.get_text_config()
    return float(next((getattr(text, name) for name in COEFFICIENTS if getattr(text, name, None)), 0.0))


def why_not_balanced(arch: PretrainedConfig) -> str:
    """Return why ftdist cannot add a balance loss to the loss of a model; "" if it can.

    A stand-in of the model computes its balance loss, and the formula of ``ftdist.objective.balance`` must give the
    same.
    """
    build_whole()
    try:
        reduced = whole_standin_config if is_multimodal(arch) else standin_config
        fields = copy.deepcopy(reduced(arch, VOCABULARY))
        with torch.random.fork_rng([]), torch.no_grad():
            small = config_of_standin(fields, arch)
            model = build(small, dtype=torch.float32, attn_implementation="eager").eval()
            text = torch.arange(TOKENS)[None] * 5 % (VOCABULARY - 10) + 10
            found = RouterLogits()
            outputs = model(input_ids=text, use_cache=False, **found.arguments)
        found.add(outputs, torch.ones_like(text, dtype=torch.bool))
        rows = sum(len(layer) for layer in found.logits)
        counts = expert_counts(found.logits, active_experts(model))
        balance = float((counts * probability_sums(found.logits)).sum() / rows**2 * len(counts))
        expected = float(outputs.aux_loss)
    except Exception as error:  # a model without a balance loss fails in many ways
        return f"transformers computes no balance loss for {arch.model_type} ({type(error).__name__})"
    if abs(balance - expected) <= SAME * abs(expected):
        return ""
    return f"the balance loss of {arch.model_type} has a formula of its own"
