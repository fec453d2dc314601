"""Attention that does not cross documents in a packed row.

A micro-batch is one row ``[1, T]`` of documents laid end to end, delimited by ``cu_seqlens``. Each backend here is a
function that transformers calls in every layer; the limits reach it as keyword arguments of the model's forward.
"""

from itertools import pairwise
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PretrainedConfig

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention

Output = Tuple[torch.Tensor, None]
DOCUMENTS, VARLEN = "ftdist_documents", "ftdist_varlen"


def choose_backend(
    wanted: Attention, model_config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> Attention:
    """``auto``: the fastest that keeps documents apart on this device and knows this model's kind of attention.

    Raises:
        ConfigError: ``wanted`` does not run here.
    """
    flash = device.type == "cuda" and dtype is torch.bfloat16
    if wanted is Attention.varlen and not flash:
        found = f"model.attention=varlen on {device.type} in {dtype}".replace("torch.", "")
        raise ConfigError(found, "a CUDA device and train.precision=bf16", "model.attention=documents")
    if wanted is Attention.flex and device.type != "cuda":
        found = f"model.attention=flex on {device.type}"
        raise ConfigError(found, "a CUDA device (on CPU it has no backward)", "model.attention=documents")
    if wanted is not Attention.auto:
        return wanted
    if _needs_scores(model_config):
        return Attention.mask
    return Attention.varlen if flash else Attention.documents


def implementation(backend: Attention, model_config: PretrainedConfig) -> str:
    """The name under which transformers knows the backend."""
    if backend is Attention.mask:
        return "eager" if _needs_scores(model_config) else "sdpa"
    return {Attention.documents: DOCUMENTS, Attention.varlen: VARLEN, Attention.flex: "flex_attention"}[backend]


def _needs_scores(model_config: PretrainedConfig) -> bool:
    """Soft-capped scores (Gemma 2) and attention sinks (gpt-oss) change the scores: fused kernels do not know them."""
    text_config = model_config.get_text_config()
    return bool(getattr(text_config, "attn_logit_softcapping", None)) or text_config.model_type == "gpt_oss"


def document_kwargs(cu_seqlens: torch.Tensor, max_seqlen: int) -> Dict[str, Any]:
    """What the model's forward is given so that each layer knows where documents begin. cu_seqlens: [n+1] int32."""
    return {
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max_seqlen,
        "max_length_k": max_seqlen,
    }


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
    """Causal scaled-dot-product attention, one document at a time.

    query: [1, heads, T, dim]; key, value: [1, kv heads, S, dim]. Without ``cu_seq_lens_q`` (generation) the whole row
    is one document. Returns [1, T, heads, dim].
    """
    _refuse_unknown(kwargs)
    if cu_seq_lens_q is None:
        out = _one_document(query, key, value, scaling, dropout, sliding_window)
    else:
        limits = cu_seq_lens_q.tolist()
        out = torch.cat(
            [
                _one_document(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scaling, dropout, sliding_window)
                for a, b in pairwise(limits)
            ],
            dim=2,
        )
    return out.transpose(1, 2), None


def _one_document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    scaling: Optional[float], dropout: float, window: Optional[int],
) -> torch.Tensor:  # fmt: skip
    q_len, kv_len, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    if window is None or kv_len <= window:
        causal = q_len == kv_len and q_len > 1
        if causal or q_len == 1:
            return F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, scale=scaling, is_causal=causal, enable_gqa=grouped
            )
    # Query i stands at position kv_len - q_len + i and sees the last `window` positions up to its own.
    position = torch.arange(kv_len - q_len, kv_len, device=query.device)[:, None]
    behind = position - torch.arange(kv_len, device=query.device)
    mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
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
    """PyTorch's variable-length flash kernel (CUDA), shapes as in documents_attention.

    https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
    """
    if cu_seq_lens_q is None:
        row = (module, query, key, value, attention_mask)
        return documents_attention(*row, scaling, dropout, sliding_window, **kwargs)
    from torch.nn.attention.varlen import varlen_attn

    _refuse_unknown(kwargs)
    if dropout:
        raise ConfigError(f"attention dropout {dropout} with model.attention=varlen", "a backend that knows dropout",
                          "model.attention=documents")  # fmt: skip
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, heads, dim]
    out = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)  # a tuple only where more was asked for
    return out[None], None


def _refuse_unknown(kwargs: Dict[str, Any]) -> None:
    """A keyword that changes the scores and that this kernel would drop must not be dropped in silence."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            found = f"this model's attention uses '{name}'"
            raise ConfigError(found, "a backend that knows it", "model.attention=mask")


AttentionInterface.register(DOCUMENTS, documents_attention)
AttentionInterface.register(VARLEN, varlen_attention)
