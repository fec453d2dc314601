"""Partial fine-tuning: the parameters that the config names are trained, all others are frozen."""

from pathlib import Path
from typing import Any, Dict

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.config.schema import RunConfig
from ftdist.method.select import partial_parameters, refuse_untrained_tokens, train_only
from ftdist.method.whole import tensors_of, trained_model
from ftdist.model.parts import freeze_other_parts
from ftdist.model.save import save_model


class PartialFineTuning:
    """Trains what ``method.trainable`` and ``method.last_layers`` name. An export is a complete model."""

    def load_options(self, config: RunConfig) -> Dict[str, Any]:
        return {}

    def apply(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        freeze_other_parts(model)
        train_only(model, partial_parameters(model, config.method))
        refuse_untrained_tokens(model, config, "method.trainable=[embeddings,head]")
        return model

    def export(
        self, weights: Dict[str, torch.Tensor], model_config: PretrainedConfig, out: Path, config: RunConfig
    ) -> None:
        model = trained_model(self.apply, weights, config)
        save_model(tensors_of(model), model_config, out, config.model.trust_remote_code)
