"""The interface of a fine-tuning method: which parameters are trained, and how they are exported."""

from pathlib import Path
from typing import Any, Dict, Protocol

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.config.schema import RunConfig


class Method(Protocol):
    """A way to fine-tune a model. A checkpoint holds the parameters that require a gradient after ``apply``.

    To add a method, add a member of ``MethodKind``, its settings and its line in ``METHOD_FACTS``
    (``ftdist/config/method.py``), a class with these methods, a line in ``build.py``, and a file in ``conf/method/``.
    ``docs/design.md`` lists all steps.
    """

    def load_options(self, config: RunConfig) -> Dict[str, Any]:
        """Return more arguments for ``from_pretrained``, for instance a quantization config."""

    def apply(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Prepare a loaded model for training, and return it.

        This is called before DeepSpeed is initialized. With ZeRO-3 the parameters are already sharded.
        """

    def export(
        self, weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, config: RunConfig
    ) -> None:
        """Write what was trained to ``out`` in Hugging Face format, then read it again and compare it.

        Args:
            weights: The whole trained parameters and saved buffers of a checkpoint, by name, in the run's precision,
                without the rows that only pad the embedding.
            model_config: Config of the model.
            out: A folder that already holds the configs and the tokenizer.

        Raises:
            CheckpointError: The weights do not fit the model, or the written files do not hold the same weights.
        """
