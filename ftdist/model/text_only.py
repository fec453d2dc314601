"""Find out on a stand-in whether a model that reads images or sound can be trained on text alone."""

from typing import Any

import torch
from transformers import PretrainedConfig

from ftdist.model.load import build_whole
from ftdist.model.parts import build, other_parts
from ftdist.model.reasons import reason_of
from ftdist.model.standin import Unfit, config_of_standin, own_sizes, whole_standin_config

VOCABULARY, TOKENS, CHANGED = 300, 24, 3


def why_not_text_only(arch: PretrainedConfig) -> str:
    """Return why a model cannot be trained on text alone; "" if it can.

    It can if a stand-in computes logits from text alone, if no token changes the logits before it, and if only the
    language part gets a gradient. If no stand-in can be built, a model with the sizes of the real one is tried, if it
    is small enough.

    Raises:
        Unfit: No stand-in can be built, and the model is large.
    """
    build_whole()
    try:
        model = _build(whole_standin_config(arch, VOCABULARY), arch)
    except Exception as error:  # the sizes of the stand-in do not fit together
        fields = own_sizes(arch)
        if fields is None:
            raise Unfit(f"cannot be built ({reason_of(error)})", built=False) from error
        model = _build(fields, arch)
    last = min(VOCABULARY, getattr(model.config.get_text_config(), "vocab_size", VOCABULARY))
    text = torch.randint(min(10, last // 2), last - 1, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    changed = text.clone()
    changed[0, -CHANGED:] += 1
    try:
        logits = model(input_ids=text, use_cache=False).logits
        again = model(input_ids=changed, use_cache=False).logits
        model.train()(input_ids=text, use_cache=False).logits.sum().backward()
    except Exception as error:  # the model needs images or sound
        return f"{'in training ' * model.training}it computes nothing from text alone ({reason_of(error, 160)})"
    ahead = float((logits - again)[:, :-CHANGED].detach().abs().max() / logits.detach().abs().max())
    if not ahead <= 1e-5:
        return "tokens can see later tokens"
    reached = [name for name, part in other_parts(model).items() if any(p.grad is not None for p in part)]
    return f"text also uses its part {reached[0]}" if reached else ""


def _build(fields: Any, arch: PretrainedConfig) -> Any:
    with torch.random.fork_rng([]):
        return build(config_of_standin(fields, arch), dtype=torch.float32, attn_implementation="eager").eval()
