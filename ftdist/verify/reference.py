"""The reference: training in plain PyTorch, in one process.

It does not use ftdist's loader, attention, loss, engine or schedule. It reads the prepared documents from the files of
the cache and runs each document on its own through the model as transformers builds it. Then it follows the formulas of
docs/step.md: the sum of the token losses divided by the number of trained tokens of the global batch, clipping, the
optimizer, the learning rate. It is short and slow. Everything that makes ftdist fast is compared with it.
"""

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch

from ftdist.verify.reference_method import own_names
from ftdist.verify.reference_optimizer import PlainOptimizer, embeddings_and_head

Document = Tuple[np.ndarray, np.ndarray]
"""Token ids [n], and for each token whether it is trained [n]."""
Rows = List[List[Document]]
"""The documents of each row."""


def read_rows(folder: Path) -> Rows:
    """Return the rows of a prepared set. The layout of its files is in docs/design.md."""
    tokens = np.fromfile(folder / "tokens.i32", dtype=np.int32)
    trained = np.fromfile(folder / "trained.u8", dtype=np.uint8)
    at = np.fromfile(folder / "offsets.i64", dtype=np.int64)
    docs = np.fromfile(folder / "row_docs.i64", dtype=np.int64)
    row_at = np.fromfile(folder / "row_offsets.i64", dtype=np.int64)
    return [[(tokens[at[d] : at[d + 1]], trained[at[d] : at[d + 1]]) for d in docs[a:b]] for a, b in pairwise(row_at)]


def row_order(seed: int, num_rows: int, count: int) -> List[int]:
    """Return the indices of the first ``count`` rows of a run.

    The order of an epoch is the order that sorts ``num_rows`` raw numbers of PCG64, seeded with (seed, epoch).
    """
    order: List[int] = []
    epoch = 0
    while len(order) < count:
        raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
        order += np.argsort(raw, kind="stable").tolist()
        epoch += 1
    return order[:count]


def expected_lr(optim: Any, step: int, total: int) -> float:
    """Return the learning rate of step ``step`` (0 is the first) of ``total``, by the formulas of docs/step.md."""
    low, kind = optim.lr * optim.min_lr_ratio, optim.schedule.name
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if kind == "constant" or (kind == "wsd" and step < total - optim.decay_steps):
        return optim.lr
    start = total - optim.decay_steps if kind == "wsd" else optim.warmup_steps
    progress = (step - start) / (total - start)
    return low + (optim.lr - low) * ((1 + math.cos(math.pi * progress)) / 2 if kind == "cosine" else 1 - progress)


def forget_longest(model: torch.nn.Module) -> None:
    """Reset dynamic rotary embeddings, which keep the frequencies of the longest document so far."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, 0)


def token_losses(model: torch.nn.Module, ids: np.ndarray, vocab_size: Optional[int] = None) -> torch.Tensor:
    """Return the cross-entropy in nats of each token of one document except the first, [n - 1] in fp32.

    Each token is predicted from the tokens before it.
    """
    device = next(model.parameters()).device
    forget_longest(model)
    row = torch.from_numpy(ids.astype(np.int64))[None].to(device)
    logits = model(input_ids=row, use_cache=False).logits[0, :-1, :vocab_size].float()
    return torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none")


def document_loss(model: torch.nn.Module, document: Document, vocab_size: Optional[int] = None) -> torch.Tensor:
    """Return the sum of the losses of a document's trained tokens."""
    losses = token_losses(model, document[0], vocab_size)
    return losses[torch.from_numpy(document[1].astype(bool))[1:].to(losses.device)].sum()


def num_trained(documents: List[Document]) -> int:
    """Return the number of trained tokens. The first token of a document is never predicted and does not count."""
    return sum(int(trained[1:].sum()) for _, trained in documents)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, documents: List[Document], vocab_size: Optional[int] = None) -> float:
    """Return the held-out loss in nats per token."""
    was_training = model.training
    model.eval()
    total = sum(float(document_loss(model, document, vocab_size)) for document in documents)
    model.train(was_training)
    return total / num_trained(documents)


class Reference:
    """Trains a model of any precision on fp32 master weights."""

    def __init__(
        self, model: torch.nn.Module, optim: Any, max_steps: int, vocab_size: Optional[int] = None,
        balance: float = 0.0, training: bool = True,
    ) -> None:  # fmt: skip
        """
        Args:
            optim: The config of the optimizer.
            max_steps: Number of steps of the run, for the learning rate.
            vocab_size: Number of rows of the embedding that are real tokens; None for all.
            balance: Coefficient of the balance loss of a mixture of experts. 0: none.
            training: Whether the model is in training mode. If not, it is in evaluation mode.
        """
        self.balance = balance
        self.model, self.optim, self.max_steps, self.vocab_size = model.train(training), optim, max_steps, vocab_size
        self.named = {name: p for name, p in own_names(model).items() if p.requires_grad}
        self.masters = {name: p.detach().float().clone() for name, p in self.named.items()}
        self.outer = embeddings_and_head(self.named, model)
        """Names of the embeddings and the output head."""
        self.optimizer = PlainOptimizer(self.masters, optim, self.outer)
        self.gradients: Dict[str, torch.Tensor] = {}
        """Gradients of the last step after clipping, in fp32."""
        self.untouched = set(self.named)
        """Names of the parameters that never got a gradient. They stay as they are, without weight decay."""

    def step(self, index: int, documents: List[Document]) -> Dict[str, float]:
        """Run optimizer step ``index`` (0 is the first) on the documents of a whole global batch.

        Returns:
            ``loss``, ``grad_norm`` (before clipping) and ``lr`` of the step.
        """
        total, loss = num_trained(documents), 0.0
        sums = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        if self.balance:
            balance_loss = transformers_balance_loss(self.model, documents)
            (self.balance * balance_loss).backward()
            self._add_gradients(sums)
        for document in documents:
            if not document[1][1:].any():
                continue
            part = document_loss(self.model, document, self.vocab_size)
            (part / total).backward()
            loss += float(part.detach())
            self._add_gradients(sums)
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in sums.values()))
        if self.optim.max_grad_norm and norm > self.optim.max_grad_norm:
            sums = {name: g * (self.optim.max_grad_norm / norm) for name, g in sums.items()}
        lr = expected_lr(self.optim, index, self.max_steps)
        updated = {name: g for name, g in sums.items() if name not in self.untouched}
        self.optimizer.step(updated, lr)
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(self.masters[name])
        self.gradients = sums
        return {"loss": loss / total, "grad_norm": norm, "lr": lr}

    def _add_gradients(self, sums: Dict[str, torch.Tensor]) -> None:
        """Add the gradients of a backward pass to ``sums``, and clear them."""
        for name, p in self.named.items():
            if p.grad is not None:
                sums[name] += p.grad.float()
                self.untouched.discard(name)
            p.grad = None


def transformers_balance_loss(model: torch.nn.Module, documents: List[Document]) -> torch.Tensor:
    """Return the balance loss of transformers, for the router logits of all documents together."""
    device = next(model.parameters()).device
    inner: Any = model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # without PEFT's wrapper
    rows = [torch.from_numpy(ids.astype(np.int64))[None].to(device) for ids, _ in documents]
    found = [inner(input_ids=row, use_cache=False, output_router_logits=True).router_logits for row in rows]
    layers = tuple(torch.cat([logits.flatten(0, -2) for logits in layer]) for layer in zip(*found, strict=True))
    compute = sys.modules[type(inner).__module__].load_balancing_loss_func
    says = inner if hasattr(inner, "num_experts_per_tok") else inner.config.get_text_config()
    loss: torch.Tensor = compute(layers, layers[0].shape[-1], says.num_experts_per_tok)
    return loss
