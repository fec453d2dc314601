"""Find out on a stand-in whether transformers can compute a model in the precision of a run."""

from typing import Any, Dict

import torch
from transformers import PretrainedConfig

from ftdist.model.load import build_whole
from ftdist.model.parts import build, is_multimodal
from ftdist.model.reasons import reason_of
from ftdist.model.standin import config_of_standin, standin_config, whole_standin_config

VOCABULARY, TOKENS = 300, 24


def why_only_fp32(arch: PretrainedConfig, dtype: torch.dtype) -> str:
    """Return why a model cannot be computed in a type although it can be in fp32, for instance because its code adds
    tensors of fp32. "" if there is no such reason."""
    build_whole()
    try:
        fields = (whole_standin_config if is_multimodal(arch) else standin_config)(arch, VOCABULARY)
    except Exception:  # the stand-in of an unknown architecture can fail in many ways
        return ""
    problem = _problem(fields, arch, dtype)
    return problem if problem and not _problem(fields, arch, torch.float32) else ""


def _problem(fields: Dict[str, Any], arch: PretrainedConfig, dtype: torch.dtype) -> str:
    text = torch.arange(10, 10 + TOKENS)[None]
    try:
        with torch.random.fork_rng([]):
            model = build(config_of_standin(fields, arch), dtype=dtype, attn_implementation="eager")
        model.train()(input_ids=text, use_cache=False).logits.float().sum().backward()
    except Exception as error:  # tensors of different types, or something that fails in fp32 too
        return reason_of(error)
    return ""
