"""Attention backends that keep the documents of a packed row apart.

A micro-batch is one sequence ``[1, T]`` of documents, one after another. ``cu_seqlens`` says where each document begins
and ends. A backend is a function that transformers calls in each attention layer. It gets ``cu_seqlens`` from the
keyword arguments of the model's forward (``document_kwargs``).
"""

from itertools import pairwise
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from ftdist.base.errors import ConfigError

Output = Tuple[torch.Tensor, None]
DOCUMENTS, VARLEN = "ftdist_documents", "ftdist_varlen"
"""Names of this module's backends in transformers."""
SHARED_KEYS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
"""Whether PyTorch's variable-length kernel supports grouped-query attention. Older versions get repeated keys and
values."""


def document_kwargs(cu_seqlens: torch.Tensor, max_seqlen: int, limits: List[int]) -> Dict[str, Any]:
    """Return the keyword arguments for the model's forward that tell each layer where the documents begin.

    Args:
        cu_seqlens: [n + 1] int32: document i consists of the tokens ``cu_seqlens[i]`` to ``cu_seqlens[i + 1] - 1``.
        max_seqlen: Length of the longest document.
        limits: The numbers of ``cu_seqlens`` as a list on the host. The list is stored on the tensor, so that no layer
            has to copy the numbers from the device.
    """
    cu_seqlens.ftdist_documents = _Documents(limits)  # type: ignore[attr-defined]
    return {
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max_seqlen,
        "max_length_k": max_seqlen,
    }


class _Documents:
    """The limits of the documents of a micro-batch, and the attention masks that all layers share."""

    def __init__(self, limits: List[int]) -> None:
        self.limits = limits
        self._masks: Dict[Tuple[int, int, Optional[int]], torch.Tensor] = {}

    def mask(self, q_len: int, kv_len: int, window: Optional[int], device: torch.device) -> torch.Tensor:
        """Return which keys each query sees, [q_len, kv_len] bool.

        Query i is at position kv_len - q_len + i. It sees its own position and the window - 1 positions before it.
        """
        shape = (q_len, kv_len, window)
        if shape not in self._masks:
            position = torch.arange(kv_len - q_len, kv_len, device=device)[:, None]
            behind = position - torch.arange(kv_len, device=device)
            self._masks[shape] = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return self._masks[shape]


def _known_documents(cu_seqlens: torch.Tensor) -> _Documents:
    known: Optional[_Documents] = getattr(cu_seqlens, "ftdist_documents", None)
    return known or _Documents(cu_seqlens.tolist())


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    scaling: Optional[float] = None,
    dropout: float = 0.0,
    sliding_window: Optional[int] = None,
    cu_seq_lens_q: Optional[torch.Tensor] = None,
    **kwargs: Any,
) -> Output:
    """Compute causal scaled-dot-product attention for one document after another.

    Args:
        query: [1, heads, T, head_dim].
        key: [1, key-value heads, S, head_dim]. In training, S is T. In generation with a cache, it is larger.
        value: Same shape as ``key``.
        attention_mask: Not used.
        scaling: Factor of the scores. None means 1 / sqrt(head_dim).
        dropout: Probability of dropout.
        sliding_window: Number of positions that a token sees, including its own. None means all.
        cu_seq_lens_q: [n + 1] int32, see ``document_kwargs``. None (in generation) means one document.

    Returns:
        ``(output, None)``: the output is [1, T, heads, head_dim].
    """
    _refuse_score_changes(kwargs)
    if cu_seq_lens_q is None:
        out = _one_document(query, key, value, scaling, dropout, sliding_window, _Documents([]))
    else:
        documents = _known_documents(cu_seq_lens_q)
        spans = [slice(a, b) for a, b in pairwise(documents.limits)]
        parts = [
            _one_document(query[:, :, at], key[:, :, at], value[:, :, at], scaling, dropout, sliding_window, documents)
            for at in spans
        ]
        out = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return out.transpose(1, 2), None


def _one_document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    scaling: Optional[float], dropout: float, window: Optional[int], documents: _Documents,
) -> torch.Tensor:  # fmt: skip
    q_len, kv_len, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    if window is None or kv_len <= window:
        causal = q_len == kv_len and q_len > 1
        if causal or q_len == 1:
            return F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, scale=scaling, is_causal=causal, enable_gqa=grouped
            )
    mask = documents.mask(q_len, kv_len, window, query.device)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
    )


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    scaling: Optional[float] = None,
    dropout: float = 0.0,
    sliding_window: Optional[int] = None,
    cu_seq_lens_q: Optional[torch.Tensor] = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> Output:
    """Compute the same attention with PyTorch's variable-length flash kernel, on CUDA.

    Arguments and result are those of ``documents_attention``. ``max_length_q`` is the length of the longest document.
    See https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
    """
    if cu_seq_lens_q is None:
        row = (module, query, key, value, attention_mask)
        return documents_attention(*row, scaling, dropout, sliding_window, **kwargs)
    from torch.nn.attention.varlen import varlen_attn

    _refuse_score_changes(kwargs)
    if dropout:
        raise ConfigError(f"model.attention=varlen does not support the attention dropout {dropout} of this model",
                          "a backend that supports dropout",
                          "model.attention=documents")  # fmt: skip
    options: Dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if SHARED_KEYS:
            options = {"enable_gqa": True}
        else:
            key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, heads, dim]
    out = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0), **options,
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)  # the kernel returns a tuple only if auxiliary outputs are requested
    return out[None], None


def _refuse_score_changes(kwargs: Dict[str, Any]) -> None:
    """Refuse keyword arguments that change attention scores, because this backend would silently ignore them."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            found = f"this model's attention uses '{name}'"
            raise ConfigError(found, "a backend that supports it", "model.attention=auto")


AttentionInterface.register(DOCUMENTS, documents_attention)
AttentionInterface.register(VARLEN, varlen_attention)
