"""Compare a GGUF file with the model that it was written from.

The file is read with transformers' own reader, which shares no code with the writer: settings, token ids and logits.
The reader does not know all families. The tensors of the others are read with the package ``gguf`` and put into the
model.
"""

from pathlib import Path
from typing import Any, Dict, List

import torch

from ftdist.base.errors import CheckpointError
from ftdist.checkpoint.gguf_family import READ_FIELDS, Family, context_length, from_llama_cpp, settings_of, to_llama_cpp
from ftdist.checkpoint.gguf_types import GgufType
from ftdist.checkpoint.gguf_vocabulary import Vocabulary, splitters
from ftdist.checkpoint.gguf_write import heads_of, logits_of, places_of
from ftdist.checkpoint.probes import TEXT, first_difference, rendered_chats, texts_of
from ftdist.model.parts import auto_class

PROBE_TOKENS = 96


def check_tokens(file: Path, tokenizer: Any, vocabulary: Vocabulary) -> int:
    """Compare the tokenizer that transformers makes of a file with the original.

    Returns:
        The number of token ids that were compared.

    Raises:
        CheckpointError: A text has other token ids, or a chat is rendered in another way.
    """
    from transformers import PreTrainedTokenizerFast

    read = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
    if vocabulary.model == "gpt2":  # transformers does not know all names
        read.backend_tokenizer.pre_tokenizer = splitters()[vocabulary.pre]
    chats = rendered_chats(tokenizer), rendered_chats(read)
    if chats[0] != chats[1]:
        raise CheckpointError(f"{file}: transformers renders a chat in another way than before the export",
                              "equal chats", "use the export in Hugging Face format")  # fmt: skip
    count = 0
    for text in (*texts_of(tokenizer), *chats[0]):
        ids, found = (t(text, add_special_tokens=False)["input_ids"] for t in (tokenizer, read))
        count += len(ids)
        if ids != found:
            raise CheckpointError(f"{file}: its tokenizer gives other token ids than the run's for "
                                  f"{first_difference(tokenizer, ids, found)}",
                                  "equal token ids", "use the export in Hugging Face format")  # fmt: skip
    return count


def check_tensors(file: Path, model: Any, family: Family, kind: GgufType) -> float:
    """Compare the tensors of a file with those of the model.

    Returns:
        The largest relative error of a tensor, in the Frobenius norm.

    Raises:
        CheckpointError: The error is larger than the rounding of the type.
    """
    tensors, worst = dict(model.named_parameters()), 0.0
    read = _read_tensors(file)
    for own, place in places_of(model, family).items():
        expected = to_llama_cpp(place, tensors[own].detach(), family, heads_of(model.config.get_text_config()))
        error = float((read(place).view(expected.shape) - expected).norm() / expected.norm().clamp(min=1e-12))
        worst = max(worst, error)
        if not error <= kind.weights:
            raise CheckpointError(f"{file}: the tensor '{place}' has a relative error of {error:.1e} (Frobenius norm)",
                                  f"at most {kind.weights:g} for {kind.name}",
                                  "check the disk, then export again")  # fmt: skip
    return worst


def _read_tensors(file: Path) -> Any:
    """Return a function that reads one tensor of a file by its name, in fp32."""
    from gguf import GGUFReader, dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    return lambda name: torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy())


def check_settings(file: Path, text: Any, family: Family) -> None:
    """Compare the config that transformers reads from a file with what was written.

    Raises:
        CheckpointError: A setting differs.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    read, written = load_gguf_checkpoint(str(file))["config"], settings_of(text, family)
    for name, key in READ_FIELDS.items():
        if name in read and key in written and abs(read[name] - written[key]) > 1e-6 * abs(written[key]):
            raise CheckpointError(f"{file}: transformers reads {name} as {read[name]}", f"{written[key]}",
                                  "use the export in Hugging Face format")  # fmt: skip


def probe_ids(tokenizer: Any, text: Any, family: Family) -> List[int]:
    """Return the first tokens of the probe text, as many as the context of the file has."""
    length = min(PROBE_TOKENS, context_length(text, family))
    ids: List[int] = tokenizer(TEXT, add_special_tokens=False)["input_ids"][:length]
    return ids


def read_logits(file: Path, model: Any, family: Family, ids: List[int]) -> torch.Tensor:
    """Return the logits of a file, [n, vocabulary].

    Args:
        model: The original, on any device. Its settings are used where a GGUF file has none that transformers reads
            (the scaling of rotary embeddings, limits of logits); ``check_settings`` has compared the others.
    """
    if not family.read:
        return logits_of(_put_into(file, model, family), ids)
    from transformers import AutoConfig, GgufConfig

    config = model.config.get_text_config()
    if config.model_type == "mistral":  # llama.cpp and the reader know it as a Llama
        values = {
            name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")
        }
        config = AutoConfig.for_model(family.arch, **values)
    opened = auto_class(config).from_pretrained(
        file.parent, gguf_file=file.name, config=config, dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )  # fmt: skip
    return logits_of(opened, ids)


@torch.no_grad()
def _put_into(file: Path, model: Any, family: Family) -> Any:
    tensors: Dict[str, torch.Tensor] = dict(model.named_parameters())
    read = _read_tensors(file)
    for own, place in places_of(model, family).items():
        tensor = read(place).view(tensors[own].shape)
        tensors[own].copy_(from_llama_cpp(place, tensor, family, heads_of(model.config.get_text_config())))
    return model


def compare_logits(expected: torch.Tensor, found: torch.Tensor, kind: GgufType, file: Path) -> float:
    """Return the error of the logits: root of the mean square, relative to the standard deviation of the original's.

    Raises:
        CheckpointError: It is larger than the type allows.
    """
    error = float((found[:, : expected.shape[1]] - expected).pow(2).mean().sqrt() / expected.std())
    if not error <= kind.logits:
        raise CheckpointError(f"{file}: the logits differ by {error:.1e} of their standard deviation",
                              f"at most {kind.logits:g} for {kind.name}",
                              "choose a type with more bits, such as Q8_0")  # fmt: skip
    return error
