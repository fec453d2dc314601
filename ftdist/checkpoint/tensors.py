"""The tensor files of a checkpoint: one safetensors file for each rank. Each entry is a slice of a whole tensor.

The key of an entry is ``state:start:name``, for instance ``exp_avg:4096:model.norm.weight``. The entry holds
elements of the flattened tensor ``name``, beginning at index ``start``. Any slice can be read, whatever the number of
ranks that wrote the files.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from safetensors import safe_open

from ftdist.base.errors import CheckpointError

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64",
          torch.uint8: "U8", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}  # fmt: skip


def key_of(state: str, start: int, name: str) -> str:
    """Return the key of an entry."""
    return f"{state}:{start}:{name}"


def encode(tensors: Dict[str, torch.Tensor]) -> Iterator[Any]:
    """Yield the content of a safetensors file tensor by tensor, so that it can be hashed while it is written.

    The format is 8 bytes with the length of the header, the header in JSON, then the data of the tensors
    (https://huggingface.co/docs/safetensors).
    """
    header, end = {}, 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        if tensor.numel():
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


class Stored:
    """The tensors of a checkpoint. Slices are read from memory-mapped files when they are asked for.

    Verify the files before you use this class.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._parts: Dict[Tuple[str, str], List[Tuple[int, int, Any]]] = {}
        for path in files:
            file = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118 - not a dict
                state, start, name = key.split(":", 2)
                part = file.get_slice(key)
                self._parts.setdefault((state, name), []).append((int(start), part.get_shape()[0], part))

    def names(self, state: str) -> List[str]:
        """Return the names of the tensors that have entries of this state, for instance of ``exp_avg``."""
        return [name for kind, name in self._parts if kind == state]

    def read(self, state: str, name: str, start: int, length: int) -> torch.Tensor:
        """Return elements ``start … start + length − 1`` of a flattened tensor, [length].

        Raises:
            CheckpointError: The files do not hold all of these elements.
        """
        found = []
        for begin, count, part in sorted(self._parts.get((state, name), []), key=lambda entry: entry[0]):
            low, high = max(begin, start), min(begin + count, start + length)
            if low < high:
                found.append(part[low - begin : high - begin])
        have = sum(tensor.numel() for tensor in found)
        if have != length:
            raise CheckpointError(f"the checkpoint holds {have} of {length} elements of {state} of {name}",
                                  "a checkpoint with all elements",
                                  "move its folder out of checkpoints/, then use an older checkpoint")  # fmt: skip
        return found[0] if len(found) == 1 else torch.cat(found)

    def whole(self, state: str, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Return a whole tensor in its shape.

        Raises:
            CheckpointError: The files do not hold all of its elements.
        """
        return self.read(state, name, 0, math.prod(shape)).view(tuple(shape))
