"""Small stand-in models. A stand-in has the architecture of a model with every kind of its layers, but few weights."""

import copy
import re
from typing import Any, Dict, List, Optional, Tuple

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig

from ftdist.base.counts import count
from ftdist.config.optim import OptimizerSpec
from ftdist.config.schema import Precision, ZeroConfig
from ftdist.model.parts import build, runs_own_code
from ftdist.model.standin_layers import PER_LAYER, select_layers
from ftdist.model.standin_sizes import fit_parts, in_proportion, reduce_sizes
from ftdist.plan.layout import Layout
from ftdist.plan.memory import rank_memory

# Fields that are not copied: they do not describe the architecture.
OMITTED_FIELDS = ("id2label", "label2id", "dtype", "torch_dtype", "architectures", "transformers_version",
                  "_name_or_path", "quantization_config", "auto_map")  # fmt: skip
OTHER_HEADS = ("summary_", "classifier_", "cls_")
"""Prefixes of fields of other heads, which a causal language model does not have."""
DROPOUT = re.compile("dropout|pdrop|layerdrop")
OTHER_DEPTHS = ("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers", "num_blocks", "depth",
                "num_layers", "n_layer", "n_layers")  # fmt: skip
"""Numbers of layers besides ``num_hidden_layers``, for instance those of an encoder that is not built."""
VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "unpadded_vocab_size",
                "encoder_hash_byte_group_vocab", "ngram_vocab_size_base")  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "cls_token_id", "sep_token_id",
          "mask_token_id", "blank_token_id", "unk_index", "mask_index", "pad_index", "bos_index",
          "eos_index")  # fmt: skip

MAX_TRIAL_PARAMETERS = 100_000_000
"""A model of at most this many parameters can be tried itself, on a few short documents."""
ENCODER_LAYERS = ("vision_feature_layer",)
"""Numbers of the layers of an image encoder whose outputs are used."""
SPECIAL_NAMES, IMAGE_NAMES = ("<image>", "<|extra_200|>"), ("IMGIMG", "<|visual token")
"""Tokens, and the beginnings of names of tokens, in the ``vocabulary_map`` of models that write images as tokens."""

# Pairs of a part of a repository name and a model type. The first pair whose part is in the name is used.
FAMILIES = (("smollm3", "smollm3"), ("smollm", "llama"), ("tinyllama", "llama"), ("llama", "llama"), ("qwen3", "qwen3"),
            ("qwen2", "qwen2"), ("gemma3", "gemma3_text"), ("gemma2", "gemma2"), ("mixtral", "mixtral"),
            ("mistral", "mistral"), ("phi4", "phi3"), ("phi3", "phi3"), ("olmo2", "olmo2"), ("gptneox", "gpt_neox"),
            ("pythia", "gpt_neox"), ("gpt2", "gpt2"))  # fmt: skip


class Unfit(Exception):
    """A stand-in is of no use: it cannot be built or trained. The cause can be its sizes, and not the architecture.

    Args:
        reason: What is wrong with it, as the end of a sentence.
        built: Whether it can be built.
    """

    def __init__(self, reason: str, built: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.built = reason, built


def model_type_from_name(repository: str) -> str:
    """Guess the model type from the name of a hub repository. Returns an empty string if the name is unknown.

    This is for repositories that cannot be read from this machine.
    """
    name = repository.rpartition("/")[2].lower().replace("-", "").replace("_", "").replace(".", "")
    return next((model_type for part, model_type in FAMILIES if part in name), "")


def default_model_config(model_type: str) -> PretrainedConfig:
    """Return the config of a model type with its default sizes."""
    return AutoConfig.for_model(model_type)


def standin_config(arch: PretrainedConfig, vocab_size: int) -> Dict[str, Any]:
    """Return the value of ``model.config`` for the stand-in of a model, without dropout.

    A stand-in has one layer of each kind (see ``ftdist.model.standin_layers``) and small sizes (see
    ``ftdist.model.standin_sizes``). For a model with images or sound, it is a model of the language part if
    transformers has such a model. Otherwise it has the other parts too, with small sizes.

    Args:
        arch: Config of the real model.
        vocab_size: Number of rows of the stand-in's embedding.
    """
    text = None if _several_parts(arch) else arch.get_text_config()
    return _reduced(text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else arch, vocab_size)


def whole_standin_config(arch: PretrainedConfig, vocab_size: int) -> Dict[str, Any]:
    """Return the value of ``model.config`` for a stand-in that has every part of a model, including parts for
    images."""
    return _reduced(arch, vocab_size)


def own_sizes(arch: PretrainedConfig, most: int = MAX_TRIAL_PARAMETERS) -> Optional[Dict[str, Any]]:
    """Return the value of ``model.config`` for a model with every size of the real one, without dropout.

    Returns:
        None if it has more than ``most`` parameters, or cannot be built.
    """
    try:
        small = count_parameters(arch) <= most
    except Exception:  # invalid sizes raise many kinds of exceptions
        return None
    return _of_same_size(arch) if small else None


def _of_same_size(arch: PretrainedConfig) -> Dict[str, Any]:
    fields = {name: value for name, value in copy.deepcopy(arch.to_dict()).items() if name not in OMITTED_FIELDS}
    for name, value in fields.items():
        if isinstance(value, dict) and isinstance(getattr(arch, name, None), PretrainedConfig):
            fields[name] = _of_same_size(getattr(arch, name))
        elif _is_dropout(name, value):
            fields[name] = 0.0
    return {**fields, "model_type": arch.model_type}


def _is_dropout(name: str, value: Any) -> bool:
    return bool(DROPOUT.search(name)) and isinstance(value, float) and not name.startswith(OTHER_HEADS)


def config_of_standin(fields: Dict[str, Any], arch: Optional[PretrainedConfig] = None) -> PretrainedConfig:
    """Return the transformers config of a stand-in.

    Args:
        fields: What ``standin_config`` or ``whole_standin_config`` returns.
        arch: Config of the real model. If Python code in its folder or hub repository builds the model, it builds the
            stand-in too.
    """
    values = dict(fields)
    model_type = values.pop("model_type")
    if arch is None or not runs_own_code(arch):
        return AutoConfig.for_model(model_type, **values)
    small = type(arch)(**values)
    small.auto_map, small.name_or_path = dict(arch.auto_map), arch.name_or_path
    return small


def _several_parts(arch: PretrainedConfig) -> bool:
    """Whether a model has more than one part that reads text (MusicGen)."""
    return hasattr(arch, "text_encoder") and hasattr(arch, "decoder")


def _reduced(arch: PretrainedConfig, vocab_size: int) -> Dict[str, Any]:
    real = {name: value for name, value in arch.to_dict().items() if name not in OMITTED_FIELDS}
    names = getattr(arch, "attribute_map", {})
    fields = copy.deepcopy(real)
    depth_name = names.get("num_hidden_layers", "num_hidden_layers")
    if isinstance(real.get(depth_name), int):
        layers, described = select_layers(real, real[depth_name])
        fields.update({**described, depth_name: len(layers)})
    for name in OTHER_DEPTHS:
        if isinstance(real.get(name), int) and name != depth_name:
            fields[name] = min(real[name], 2)
    reduce_sizes(fields, real, names)
    if fields.get(PER_LAYER):
        fields[PER_LAYER] = {layer: in_proportion(own, real, fields) for layer, own in fields[PER_LAYER].items()}
    for name, value in real.items():
        if isinstance(value, dict) and isinstance(getattr(arch, name, None), PretrainedConfig):
            fields[name] = _reduced(getattr(arch, name), vocab_size)
        elif _is_dropout(name, value):
            fields[name] = 0.0
        elif name in VOCABULARIES and isinstance(value, int):
            fields[name] = vocab_size
        elif name in TOKENS:
            fields[name] = _inside(value, vocab_size)
        elif name in ENCODER_LAYERS and value is not None:  # the stand-in of the encoder has few layers
            fields[name] = [-1] * len(value) if isinstance(value, (list, tuple)) else -1
        elif name == "vocabulary_map" and value:
            fields[name] = _special_names(value)
    fields["model_type"] = arch.model_type
    fit_parts(fields)
    return fields


def _inside(token: Any, vocab_size: int) -> Any:
    """Return a token, or list of tokens, that is in a vocabulary of this size."""
    if isinstance(token, (list, tuple)):
        return [_inside(one, vocab_size) for one in token]
    return min(token, vocab_size - 1) if isinstance(token, int) else token


def _special_names(tokens: Dict[str, int]) -> Dict[str, int]:
    """Return the tokens that a model with a table of images (Chameleon, Emu3) looks for, and the first two images."""
    images = [name for name in tokens if name.startswith(IMAGE_NAMES)][:2]
    kept = [name for name in SPECIAL_NAMES if name in tokens] + images
    return {name: number for number, name in enumerate(kept, 3)}


def active_dropouts(arch: PretrainedConfig) -> List[str]:
    """Return the names of the dropout fields that are not 0. With dropout, two forwards never give the same result."""
    fields = arch.get_text_config().to_dict().items()
    found = [name for name, value in fields if DROPOUT.search(name) and value and not isinstance(value, str)]
    return [name for name in found if not name.startswith(OTHER_HEADS)]


def count_parameters(arch: PretrainedConfig) -> int:
    """Return the number of parameters of a model, without creating its weights."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in build(arch).parameters())


def fits_in_memory(parameters: int, ranks: int, memory: int, optimizer: OptimizerSpec) -> Tuple[bool, str]:
    """Whether a real model can be verified on this machine, using half of the memory.

    In the worst case, each rank holds all weights, gradients, master weights and optimizer states, all in fp32. The
    reference run needs the same amount again.

    Args:
        parameters: Number of parameters.
        ranks: Number of ranks.
        memory: Free memory in bytes.
        optimizer: What the optimizer keeps for a parameter.

    Returns:
        ``(fits, description of the memory that is needed)``.
    """
    one = rank_memory(parameters, parameters, Precision.fp32, ZeroConfig(stage=1), Layout.of_world(1), optimizer)
    needed = one.device.total * (ranks + 1)
    what = f"{parameters / 1e6:,.0f}M parameters on {count(ranks, 'rank')}"
    return needed <= memory / 2, f"{needed / 2**30:.1f} GiB for {what}"
