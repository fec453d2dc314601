"""Write a model as a GGUF file, one tensor after the other."""

from pathlib import Path
from typing import Any, Dict, List

import torch

from ftdist.checkpoint.gguf_family import Family, rope_factors, settings_of, tensor_names, to_llama_cpp
from ftdist.checkpoint.gguf_types import GgufType, pack, packed_size, type_of
from ftdist.checkpoint.gguf_vocabulary import Vocabulary

ROPE_FACTORS = "rope_freqs.weight"
QUANTIZATION_VERSION = 2


def heads_of(text: Any) -> Any:
    """Return the number of query heads, and of key-value heads."""
    return text.num_attention_heads, text.num_key_value_heads


def places_of(model: Any, family: Family) -> Dict[str, str]:
    """Return the name in the file of each tensor that is written, by its name in the model. A tied tensor is written
    once."""
    text = model.config.get_text_config()
    first: Dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in first or first[id(parameter)].startswith("lm_head"):
            first[id(parameter)] = name
    return tensor_names(family, text.num_hidden_layers, list(first.values()))


def write_gguf(
    file: Path, model: Any, vocabulary: Vocabulary, special: Dict[str, Any], family: Family, kind: GgufType, name: str
) -> None:
    """Write a model to a GGUF file.

    Args:
        model: The whole model. Its tensors are converted one at a time.
        special: What the file says of special tokens, by llama.cpp's keys (``special_tokens``).
        kind: Type of the matrices.
        name: Name of the model, for the user.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

    text = model.config.get_text_config()
    writer = GGUFWriter(file, family.arch)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(LlamaFileType["ALL_F32" if kind.name == "F32" else f"MOSTLY_{kind.name}"])
    if kind.blocks:
        writer.add_quantization_version(QUANTIZATION_VERSION)
    for key, value in settings_of(text, family).items():
        _add(writer, f"{family.arch}.{key}", value)
    _add_vocabulary(writer, vocabulary)
    for key, value in special.items():
        _add(writer, f"tokenizer.{key}", value)
    tensors, places = dict(model.named_parameters()), places_of(model, family)
    factors = rope_factors(text)
    for own, place in places.items():
        shape = tuple(tensors[own].shape)
        kind_of_it = type_of(kind, place, shape)
        _announce(writer, place, shape, kind_of_it, GGMLQuantizationType)
    if factors is not None:
        _announce(writer, ROPE_FACTORS, tuple(factors.shape), "F32", GGMLQuantizationType)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for own, place in places.items():
        tensor = to_llama_cpp(place, tensors[own].detach(), family, heads_of(text))
        writer.write_tensor_data(pack(tensor, type_of(kind, place, tuple(tensor.shape))))
    if factors is not None:
        writer.write_tensor_data(pack(factors, "F32"))
    writer.close()


def _announce(writer: Any, place: str, shape: Any, name: str, types: Any) -> None:
    import numpy as np

    writer.add_tensor_info(place, shape, np.dtype(np.float32), packed_size(shape, name), raw_dtype=types[name])


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[type(value)](key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)


def special_tokens(tokenizer: Any, stops: List[int]) -> Dict[str, Any]:
    """Return what a file says of special tokens, by llama.cpp's keys without ``tokenizer.`` before them.

    In training, the chat template alone wrote the text of a chat. So llama.cpp may add a BOS token only if the
    tokenizer adds one to plain text and the template writes one, too. It then removes that of the template.

    Args:
        stops: Ids of the tokens that end an answer. A file can name one EOS token and one
            end-of-turn token.
    """
    values: Dict[str, Any] = {}
    for key, token in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = getattr(tokenizer, f"{token}_token_id")
        if number is not None:
            values[f"ggml.{key}_token_id"] = int(number)
    other = [number for number in stops if number != tokenizer.eos_token_id]
    if other:
        values["ggml.eot_token_id"] = other[0]
    ids = tokenizer("a")["input_ids"]
    first = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    if tokenizer.chat_template:
        values["chat_template"] = tokenizer.chat_template
        shown = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        first = first and shown.startswith(tokenizer.bos_token)
    values["ggml.add_bos_token"] = first
    values["ggml.add_eos_token"] = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return values


@torch.no_grad()
def logits_of(model: Any, ids: List[int]) -> torch.Tensor:
    """Return the logits of a model in fp32, [n, vocabulary]."""
    logits: torch.Tensor = model.float().eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits
