"""Find out on a stand-in whether text can be generated with a cache of keys and values."""

from typing import Any, Dict

import torch
from transformers import DynamicCache

LENGTHS = ((3, 24), (36, 40))
"""Lengths (of the prompt, of the whole text) with which a cache is tried. The first prompt is shorter than the
convolutions of some models, and its text becomes longer than every limit while tokens are generated. The second prompt
is longer than every limit from the beginning."""
ROUNDING = 3e-2
"""Largest difference of logits, relative to the largest logit. Over all types of transformers 5.23, caches that work
gave up to 4e-3 in hybrids with Mamba-2 (zamba2, nemotron_h), whose layers amplify rounding, and up to 2e-5 elsewhere.
Caches that do not work gave 0.46 or more."""


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
