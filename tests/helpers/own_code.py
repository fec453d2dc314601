"""A model whose folder has Python code that builds it. Its attention knows nothing of rows of several documents."""

import json
from pathlib import Path

from tests.helpers.tiny import LLAMA

CONFIG = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "{model_type}"
"""
MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, input_ids=None, use_cache=None, **ignored):
        return super().forward(input_ids=input_ids, use_cache=False)
"""


def save_model_with_own_code(folder: Path, model_type: str) -> Path:
    """Save a random fp32 model in a folder.

    Args:
        model_type: What its config says. It can be a type of transformers, which the code replaces.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder.mkdir(parents=True)
    (folder / "configuration_own.py").write_text(CONFIG.format(model_type=model_type))
    (folder / "modeling_own.py").write_text(MODEL)
    classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    fields = {**LLAMA, "model_type": model_type, "auto_map": classes, "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(1)
    weights = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA)).state_dict()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
