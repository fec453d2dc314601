"""What a fine-tuning method is: which parameters are trained, and what an export of them holds."""

from pathlib import Path
from typing import Any, Dict, Protocol

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.config.schema import RunConfig


class Method(Protocol):
    """Which parameters are trained. A checkpoint holds those that require a gradient after ``apply``."""

    def load_options(self, config: RunConfig) -> Dict[str, Any]:
        """Return further arguments of ``from_pretrained``, for instance a quantization config."""

    def apply(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Prepare a loaded model for training. It is called before DeepSpeed is initialised; ZeRO-3 has already sharded
        the parameters."""

    def export(
        self, weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, config: RunConfig
    ) -> None:
        """Write the trained model to ``out`` in Hugging Face format.

        Args:
            weights: The trained parameters and saved buffers of a checkpoint, whole, by name, in the run's precision.
            out: A folder that already holds the configs and the tokenizer.

        Raises:
            CheckpointError: What was written reads back differently, or the weights do not fit the model.
        """
