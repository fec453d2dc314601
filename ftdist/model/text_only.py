"""Find out on a stand-in whether a model that reads images or sound can be trained on text alone."""

import torch
from transformers import PretrainedConfig

from ftdist.model.load import build_whole
from ftdist.model.parts import build, other_parts
from ftdist.model.standin import config_of_standin, whole_standin_config

VOCABULARY, TOKENS, CHANGED = 300, 24, 3


def why_not_text_only(arch: PretrainedConfig) -> str:
    """Return why a model cannot be trained on text alone; "" if it can.

    It can if a stand-in computes logits from text alone, if no token changes the logits before it, and if only the
    language part gets a gradient.
    """
    build_whole()
    fields = whole_standin_config(arch, VOCABULARY)
    try:
        small = config_of_standin(fields, arch)
        with torch.random.fork_rng([]):
            model = build(small, dtype=torch.float32, attn_implementation="eager").eval()
    except Exception as error:  # the sizes of the stand-in do not fit together
        return f"no stand-in of it can be built ({_first_line(error)})"
    text = torch.randint(10, VOCABULARY - 10, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    changed = text.clone()
    changed[0, -CHANGED:] += 1
    try:
        logits = model(input_ids=text, use_cache=False).logits
        again = model(input_ids=changed, use_cache=False).logits
        logits.sum().backward()
    except Exception as error:  # the model needs images or sound
        return _first_line(error)
    ahead = float((logits - again)[:, :-CHANGED].detach().abs().max() / logits.detach().abs().max())
    if not ahead <= 1e-5:
        return "tokens can see later tokens"
    reached = [name for name, part in other_parts(model).items() if any(p.grad is not None for p in part)]
    return f"text also uses its part {reached[0]}" if reached else ""


def _first_line(error: Exception) -> str:
    """Return the kind of an error and its reason, which is the last line of a validation error."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1] if "validation error" in lines[0] else lines[0]
    return f"{type(error).__name__}: {line.strip()}"[:160]
