"""The number of tokens that well-known models were pretrained on, as their authors published it."""

import re
from dataclasses import dataclass
from pathlib import Path

from ftdist.config.schema import RunConfig

TOKENS_PER_PARAMETER = 20
"""Compute-optimal pretraining has about 20 tokens a parameter (Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556).
Models are usually trained on far more, so this is a low estimate."""
TUNED = r"(-instruct|-it|-chat|-base|-pt)?(-v\d+(\.\d+)?)?"
"""What authors add to the name of a model for its variants."""
PUBLISHED = (
    (r"smollm2-135m", 2e12, "https://arxiv.org/abs/2502.02737"),
    (r"smollm2-360m", 4e12, "https://arxiv.org/abs/2502.02737"),
    (r"smollm2-1\.7b", 11e12, "https://arxiv.org/abs/2502.02737"),
    (r"llama-2-\d+b(-hf)?", 2e12, "https://arxiv.org/abs/2307.09288"),
    (r"(meta-)?llama-3(\.1)?-(8|70|405)b", 15e12, "https://arxiv.org/abs/2407.21783"),
    (r"qwen2\.5-[\d.]+b", 18e12, "https://arxiv.org/abs/2412.15115"),
    (r"qwen3-[\d.]+b(-a[\d.]+b)?", 36e12, "https://arxiv.org/abs/2505.09388"),
    (r"gemma-3-1b", 2e12, "https://arxiv.org/abs/2503.19786"),
    (r"gemma-3-4b", 4e12, "https://arxiv.org/abs/2503.19786"),
    (r"gemma-3-12b", 12e12, "https://arxiv.org/abs/2503.19786"),
    (r"gemma-3-27b", 14e12, "https://arxiv.org/abs/2503.19786"),
    (r"pythia-[\d.]+[mb]", 3e11, "https://arxiv.org/abs/2304.01373"),
)
"""Names of models without their owner, tokens, and source."""


@dataclass(frozen=True)
class Pretraining:
    """The tokens that a model was pretrained on, or would need."""

    tokens: float
    source: str
    """Where the number was published. Empty: it is ``TOKENS_PER_PARAMETER`` times the number of parameters."""


def pretraining_of(config: RunConfig, parameters: int) -> Pretraining:
    """Return the tokens of the pretraining of a run's model, by its name.

    Args:
        parameters: Number of parameters of the model.
    """
    model = config.model
    name = Path(model.hub or model.builtin or model.path or "").name.lower().removesuffix(".gguf")
    for pattern, tokens, source in PUBLISHED:
        if re.fullmatch(pattern + TUNED, name):
            return Pretraining(tokens, source)
    return Pretraining(float(TOKENS_PER_PARAMETER * parameters), "")
