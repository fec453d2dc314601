"""Full fine-tuning: all parameters are trained; of a model with images or sound, those of its language part."""

from pathlib import Path
from typing import Any, Dict

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.config.schema import RunConfig
from ftdist.model.fixed import keep_fixed
from ftdist.model.parts import freeze_other_parts
from ftdist.model.save import save_model


class FullFineTuning:
    """Trains every parameter that text uses. An export is a complete model."""

    def load_options(self, config: RunConfig) -> Dict[str, Any]:
        return {}

    def apply(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        freeze_other_parts(model)
        keep_fixed(model)
        return model

    def export(
        self, weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, config: RunConfig
    ) -> None:
        save_model(weights, model_config, out, config.model.trust_remote_code)
