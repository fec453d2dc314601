"""The matrices of a frozen base model in 4 bits: NF4 with double quantization (Dettmers 2023,
https://arxiv.org/abs/2305.14314), by bitsandbytes.

A model is loaded in its 16-bit weights first, and then quantized layer by layer. So everything that changes a model
while it is loaded works as for other methods, and with ZeRO-3 no rank ever holds the whole model: one layer at a time
is gathered, quantized, and sharded again. The constants of the blocks stay whole on every rank.
"""

from functools import cache
from typing import Any, Collection, Dict, List

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftdist.base.errors import ConfigError
from ftdist.model.parts import layers_used_elsewhere, other_parts
from ftdist.model.vocabulary import gathered, whole_shape
from ftdist.plan.memory import NF4_BLOCK

QUANTIZATION: Dict[str, Any] = {"type": "nf4", "double": True, "block": NF4_BLOCK}
"""What checkpoints and exports record of the quantization."""
MULTIPLE = 8
"""bitsandbytes packs the numbers of a matrix into elements of 2 or 4 bytes. Numbers that do not fill
the last element would be lost."""


def import_bitsandbytes(wanted: str = "method=qlora", instead: str = "method=lora") -> Any:
    """Return the module.

    Args:
        wanted: The setting that needs it, for the message.
        instead: A setting that works without it, for the message.

    Raises:
        ConfigError: It is not installed, or cannot be loaded.
    """
    try:
        import bitsandbytes
    except Exception as error:  # a library that does not fit the machine raises several kinds
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{wanted} needs bitsandbytes: {reason}", "bitsandbytes 0.50",
                          f"pip install 'ftdist[quant]', or {instead}") from error  # fmt: skip
    return bitsandbytes


def is_quantized(tensor: Any) -> bool:
    """Return whether a tensor holds packed 4-bit numbers. Its own numbers then mean nothing."""
    return getattr(tensor, "quant_state", None) is not None


def quantized_layers(model: PreTrainedModel, kept: Collection[str]) -> List[str]:
    """Return the names of the layers that are quantized: the linear layers that text goes through, without the head and
    those whose weights are used elsewhere.

    Args:
        kept: Modules that are trained whole. They and all their submodules are not quantized.
    """
    tied = {id(owner.weight) for owner in (model.get_input_embeddings(), model.get_output_embeddings()) if owner}
    left = tied | {id(parameter) for part in other_parts(model).values() for parameter in part}
    used = layers_used_elsewhere(model)
    return [
        name for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and id(module.weight) not in left
        and name not in used
        and not any(name == own or name.startswith(f"{own}.") for own in kept)
        and whole_shape(module.weight).numel() % MULTIPLE == 0
    ]  # fmt: skip


@torch.no_grad()
def quantize(model: PreTrainedModel, names: Collection[str], dtype: torch.dtype) -> None:
    """Replace layers by layers of bitsandbytes with 4-bit weights. Their outputs are of type ``dtype``.

    The packed numbers are stored as elements of this type, because DeepSpeed shards tensors of one type together. With
    ZeRO-3 every rank must call it. On a rank with a GPU the layers are quantized there.
    """
    for name in names:
        old: Any = model.get_submodule(name)
        into, out = (old.nx, old.nf) if isinstance(old, Conv1D) else (old.in_features, old.out_features)
        new = _layer_class()(
            into, out, False, dtype, compress_statistics=True, quant_type=QUANTIZATION["type"], quant_storage=dtype,
            device="meta",
        )  # fmt: skip
        with gathered([old.weight], changed=False):
            new.weight = _packed(old, dtype, new)
        if hasattr(old.weight, "ds_id"):
            old.weight.convert_to_zero_parameters(param_list=[new.weight])
            shard = old.weight.ds_tensor  # DeepSpeed's references to it form a cycle, which may live for long
            shard.data = shard.data.new_empty(0)
        new.bias = old.bias
        new.train(old.training)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, new)
    model.is_loaded_in_4bit = True  # PEFT reads this attribute


@cache
def _layer_class() -> Any:
    """Return the class of the layers: that of bitsandbytes with another forward pass, which fits ZeRO-3.

    On a CPU with AVX512-BF16, the forward pass of bitsandbytes packs the weight in another order in evaluation, in
    place. ZeRO-3 gathers it in the order of its shards, and the numbers would be silently wrong from then on. It also
    keeps the gathered weight until the graph is freed, so that between forward and backward pass every rank would hold
    the whole base model.
    """
    bitsandbytes = import_bitsandbytes()

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: torch.Tensor, weight: Any, bias: Any, state: Any) -> torch.Tensor:
            ctx.save_for_backward(weight)  # the parameter itself, which ZeRO-3 gathers again for the backward pass
            ctx.state = state
            product: torch.Tensor = bitsandbytes.matmul_4bit(inputs, weight, bias=bias, quant_state=state)
            return product

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            (weight,), (gradient,) = ctx.saved_tensors, gradients
            numbers = bitsandbytes.functional.dequantize_4bit(weight, ctx.state).to(gradient.dtype)
            return gradient @ numbers, None, None, None

    class Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc, name-defined]
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            state, dtype = self.weight.quant_state, self.compute_dtype
            bias = None if self.bias is None else self.bias.to(dtype)
            product: torch.Tensor = Product.apply(inputs.to(dtype), self.weight, bias, state)
            return product.to(inputs.dtype)

    return Linear4bit


def _packed(layer: Any, dtype: torch.dtype, owner: Any = None) -> Any:
    """Return the weight [out, in] of a layer as a parameter of bitsandbytes with 4-bit numbers."""
    weight = layer.weight.detach()
    weight = weight.T if isinstance(layer, Conv1D) else weight
    packed = import_bitsandbytes().nn.Params4bit(
        weight.contiguous(), requires_grad=False, compress_statistics=True, quant_type=QUANTIZATION["type"],
        quant_storage=dtype, blocksize=QUANTIZATION["block"], module=owner,
    )  # fmt: skip
    return packed.to(weight.device)


@torch.no_grad()
def round_to_4_bits(model: PreTrainedModel, names: Collection[str]) -> None:
    """Replace the weights of layers by the numbers that their 4-bit weights stand for."""
    functional = import_bitsandbytes().functional
    for name in names:
        layer: Any = model.get_submodule(name)
        packed = _packed(layer, layer.weight.dtype)
        numbers = functional.dequantize_4bit(packed.data, packed.quant_state)
        layer.weight.copy_(numbers.T if isinstance(layer, Conv1D) else numbers)
