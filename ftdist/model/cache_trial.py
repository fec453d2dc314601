"""Find out on a stand-in whether text can be generated with a cache of keys and values."""

from typing import Any, Dict

import torch
from transformers import DynamicCache

LENGTHS = ((3, 24), (36, 40))
"""Lengths (of the prompt, of the whole text) with which a cache is tried. The first prompt is shorter than the
convolutions of some models, and its text becomes longer than every limit while tokens are generated. The second prompt
is longer than every limit from the beginning."""
ROUNDING = 1e-3
"""Largest difference of logits, relative to the largest logit."""


@torch.no_grad()
def cache_works(model: Any, text: torch.Tensor) -> bool:
    """Return whether tokens that are generated with a cache get the logits of the whole text.

    The prompt is read at once, and then one token after the other, as ``ftdist.train.evaluate`` does it.

    Args:
        model: A stand-in in evaluation mode, in fp32.
        text: Token ids, [40].
    """
    try:
        whole = model(input_ids=text[None], use_cache=False).logits[0]
        for prompt, end in LENGTHS:
            options: Dict[str, Any] = {"past_key_values": DynamicCache(config=model.config), "use_cache": True}
            parts = [text[None, :prompt], *text[None, prompt:end].split(1, dim=1)]
            cached = torch.stack([model(input_ids=part, **options).logits[0, -1] for part in parts])
            if not (cached - whole[prompt - 1 : end]).abs().max() <= ROUNDING * whole.abs().max():
                return False
    except Exception:  # the model has a cache of another kind
        return False
    return True
