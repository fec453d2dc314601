"""Ways to run the documents of a micro-batch through a model, from the fastest to the most general one.

None of them is exact for all models. ``ftdist.model.exactness`` compares them with plain transformers on a stand-in of
the model, and chooses the first one that gives the same numbers."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import List, Optional

import torch
from transformers import PretrainedConfig

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention
from ftdist.model.attention import DOCUMENTS, VARLEN
from ftdist.model.parts import runs_own_code

FUSED_LAYERS = {"full_attention", "sliding_attention", "linear_attention"}
"""Kinds of attention layers for which ``documents`` and ``varlen`` can be exact. These two compute causal attention,
with or without a sliding window. Linear attention has kernels of its own, which are told where the documents begin."""

BOTH_WAYS = "use_bidirectional_attention"
"""Field of models that read a text, or the prompt that ``token_type_ids`` marks, in both directions (EmbeddingGemma,
PaliGemma). For a text without marks, transformers 5.23 leaves the choice to the attention: PaliGemma is causal with
eager attention, and sees later tokens with SDPA."""


class Layout(Enum):
    """How the documents of a micro-batch are arranged for the model."""

    row = "row"
    """One row [1, T]. Positions restart in each document. Keyword arguments say where the documents begin."""
    masks = "masks"
    """One row [1, T] as in ``row``, and the masks of all kinds of layers are given to the model. This is for models
    that do not give the positions to the code of transformers that makes masks."""
    padded = "padded"
    """Each document is a row of its own, [documents, longest document]. Shorter documents are padded on the right. The
    only input of the model is the tokens."""
    alone = "alone"
    """One forward pass for each document. The only input of the model is the tokens."""


_DETAILS = {
    Layout.row: "", Layout.masks: "masks given", Layout.padded: "one document a row",
    Layout.alone: "one forward pass for each document",
}  # fmt: skip


@dataclass(frozen=True)
class AttentionPlan:
    """One way to run documents."""

    backend: Attention
    """The value of ``model.attention`` that selects it. It is never ``auto``."""
    implementation: Optional[str]
    """Value of ``attn_implementation`` in transformers. None: the default of transformers."""
    layout: Layout = Layout.row
    cached: bool = True
    """Whether text can be generated with a cache of keys and values. Otherwise the whole text runs again for each
    new token."""

    def describe(self) -> str:
        """Return a name for messages, such as ``mask (eager)``."""
        own = self.backend in (Attention.documents, Attention.varlen, Attention.flex)
        details = ["" if own else f"{self.implementation}", _DETAILS[self.layout]]
        shown = ", ".join(detail for detail in details if detail)
        return f"{self.backend.name} ({shown})" if shown else self.backend.name


PLAIN = AttentionPlan(Attention.rows, "eager", Layout.alone)
"""The reference for all other plans: each document alone, through the eager attention of transformers."""
BY_DOCUMENT = AttentionPlan(Attention.documents, DOCUMENTS)
"""SDPA on one document after another: the fastest plan on any device."""
_VARLEN = AttentionPlan(Attention.varlen, VARLEN)
_FLEX = AttentionPlan(Attention.flex, "flex_attention")
_SDPA, _EAGER = AttentionPlan(Attention.mask, "sdpa"), AttentionPlan(Attention.mask, "eager")


def _with_masks(plan: AttentionPlan) -> List[AttentionPlan]:
    return [plan, replace(plan, layout=Layout.masks)]


_MASK = [*_with_masks(_SDPA), *_with_masks(_EAGER)]
_ROWS = [
    AttentionPlan(Attention.rows, "sdpa", Layout.padded),
    AttentionPlan(Attention.rows, "eager", Layout.padded),
    PLAIN,
]


def candidates(
    wanted: Attention, arch: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> List[AttentionPlan]:
    """Return the plans to try, the fastest first.

    If Python code in its folder or hub repository builds the model, each document is a row of its own: such a model can
    have layers of any kind, and limits that no stand-in makes shorter.

    Args:
        wanted: ``model.attention`` of the config.
        arch: Config of the model.
        device: Device that the model is trained on.
        dtype: Type of the weights.

    Raises:
        ConfigError: ``wanted`` does not run on this device or with this type.
    """
    cuda = device.type == "cuda"
    flash = cuda and dtype is torch.bfloat16
    if wanted is Attention.varlen and not flash:
        found = f"model.attention=varlen does not run on {device.type} in {dtype}".replace("torch.", "")
        raise ConfigError(found, "a CUDA device and train.precision=bf16", "model.attention=documents")
    if wanted is Attention.flex and not cuda:
        found = f"model.attention=flex does not run on {device.type}"
        raise ConfigError(
            found, "a CUDA device (flex attention has no backward pass on CPU)", "model.attention=documents"
        )
    if wanted is Attention.auto and runs_own_code(arch):
        return _ROWS
    fused = [_VARLEN, BY_DOCUMENT] if flash else [BY_DOCUMENT]
    flex = _with_masks(_FLEX)
    return {
        Attention.auto: [
            *(fused if fused_layers_only(arch) else []), *_with_masks(_SDPA), *(flex if cuda else []),
            *_with_masks(_EAGER), *_ROWS,
        ],
        Attention.documents: [BY_DOCUMENT], Attention.varlen: [_VARLEN], Attention.flex: flex,
        Attention.mask: _MASK, Attention.rows: _ROWS,
    }[wanted]  # fmt: skip


def plans_anywhere(wanted: Attention) -> List[AttentionPlan]:
    """Return plans that run on a CPU in any type. If none of them is exact, no plan for ``wanted`` is exact.

    ``documents`` has the layout of ``varlen``.
    """
    return {
        Attention.auto: [PLAIN], Attention.flex: [PLAIN], Attention.documents: [BY_DOCUMENT],
        Attention.varlen: [BY_DOCUMENT], Attention.mask: _MASK, Attention.rows: _ROWS,
    }[wanted]  # fmt: skip


def fused_layers_only(arch: PretrainedConfig) -> bool:
    """Return whether ``documents`` and ``varlen`` know every kind of attention layer of a model.

    They would compute chunked or sparse attention, for example, as if it were full attention.
    """
    text = arch.get_text_config()
    kinds = {kind for kind in getattr(text, "layer_types", None) or [] if "attention" in str(kind)}
    return kinds <= FUSED_LAYERS
