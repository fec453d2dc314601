"""The oracle: plain PyTorch, one process, nothing of ftdist's data loader, attention, loss, engine or schedule.

It reads the prepared documents from the cache's files, puts each through an unmodified transformers model on its own,
and does what the documentation says: the sum of token losses over the trained tokens of the global batch, clipping,
AdamW, the learning rate.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch

Document = Tuple[np.ndarray, np.ndarray]


def read_rows(folder: Path) -> List[List[Document]]:
    """Rows of a prepared set; a row is a list of (token ids [n], trained [n])."""
    tokens = np.fromfile(folder / "tokens.i32", dtype=np.int32)
    trained = np.fromfile(folder / "trained.u8", dtype=np.uint8)
    at = np.fromfile(folder / "offsets.i64", dtype=np.int64)
    docs = np.fromfile(folder / "row_docs.i64", dtype=np.int64)
    row_at = np.fromfile(folder / "row_offsets.i64", dtype=np.int64)
    return [[(tokens[at[d] : at[d + 1]], trained[at[d] : at[d + 1]]) for d in docs[a:b]] for a, b in pairwise(row_at)]


def document_loss(model: torch.nn.Module, document: Document) -> Tuple[torch.Tensor, int]:
    """Sum of the losses of a document's trained tokens, and their number. The first token is never predicted."""
    ids = torch.from_numpy(document[0].astype(np.int64))[None]
    trained = torch.from_numpy(document[1].astype(bool))[1:]
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return losses[trained].sum(), int(trained.sum())


def expected_lr(config: Any, step: int) -> float:
    """Linear warm-up, then cosine to min_lr_ratio: written from the documentation, not from the code."""
    optim, total = config.optim, config.train.max_steps
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / (total - optim.warmup_steps)
    low = optim.lr * optim.min_lr_ratio
    return low + (optim.lr - low) * (1 + math.cos(math.pi * progress)) / 2


def oracle_run(
    config: Any, model: torch.nn.Module, rows: List[List[Document]], order: List[int]
) -> List[Dict[str, float]]:
    """Loss and gradient norm of each step; ``order`` is the global order of rows."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optim = config.optim
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps,
    )  # fmt: skip
    model.train()
    history = []
    size = config.batch.global_batch_size
    for step in range(config.train.max_steps):
        documents = [d for row in order[step * size : (step + 1) * size] for d in rows[row]]
        total = sum(int(d[1][1:].sum()) for d in documents)
        loss = 0.0
        for document in documents:
            part, _ = document_loss(model, document)
            (part / total).backward()
            loss += float(part)
        norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in model.parameters()))
        if optim.max_grad_norm and norm > optim.max_grad_norm:
            for p in model.parameters():
                p.grad.mul_(optim.max_grad_norm / norm)
        for group in optimizer.param_groups:
            group["lr"] = expected_lr(config, step)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"loss": loss / total, "grad_norm": norm})
    return history
