"""Compare ways to run documents through a model with plain transformers.

The numbers are compared on a small stand-in of the model, whose documents are longer than every limit in its config:
sliding windows, chunks, sparse attention, the original length of rotary embeddings. The loss of a micro-batch and the
gradient of each parameter must be equal to those that transformers computes with eager attention for each document
alone.
"""

import copy
import math
import re
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention
from ftdist.model.attention import DOCUMENTS
from ftdist.model.attention_plan import BOTH_WAYS, BY_DOCUMENT, PLAIN, AttentionPlan
from ftdist.model.cache_trial import cache_works
from ftdist.model.forward import forward_logits, set_plan
from ftdist.model.load import DTYPES
from ftdist.model.parts import build
from ftdist.model.random_weights import draw_like_trained
from ftdist.model.reasons import reason_of
from ftdist.model.standin import Unfit, config_of_standin

LENGTHS = (40, 23, 57, 9)
"""Lengths of the documents in tokens."""
VOCABULARY, FIRST_TOKEN = 300, 10
"""Number of tokens of a stand-in, and the first one that its documents use. Ids below it can have a meaning."""
CHANGED = 3  # tokens at the end of a document are changed, to find out whether other tokens see them
SMALL_GRADIENT = 1e-3
"""The difference of a parameter's gradient is divided by the norm of this gradient. A norm smaller than this share
of the norm of the whole gradient is replaced by the share."""


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences that rounding may cause."""

    loss: float
    gradient: float


EXACT = Tolerance(loss=1e-5, gradient=1e-3)
"""In fp32, for the gradient of each parameter."""
ROUGH = Tolerance(loss=5e-2, gradient=5e-1)
"""In bf16, for the gradient of all parameters together. It is this large because rounding can send a token to another
expert. A plan that mixes documents has already been found in fp32."""
Gradients = Dict[str, torch.Tensor]
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Choice:
    """How documents run through a model, and why."""

    plan: AttentionPlan
    rejected: List[str] = field(default_factory=list)
    """For each faster plan one line with its name and the reason why it is not used."""
    loss: float = 0.0
    """Relative difference of the loss in fp32."""
    gradient: float = 0.0
    """Largest relative difference of a parameter's gradient in fp32."""
    unproven: str = ""
    """The reason why the numbers could not be compared. It is "" if they were compared."""


class Trial:
    """A stand-in with fixed weights and documents, and the numbers that plain transformers computes for them."""

    def __init__(self, fields: Dict[str, Any], device: torch.device, one_document: bool = False,
                 like: Optional[PretrainedConfig] = None) -> None:  # fmt: skip
        """
        Args:
            fields: Config of the stand-in, with ``model_type``.
            one_document: Each document is a micro-batch of its own.
            like: Config of the real model, whose own code, if it has any, builds the stand-in.

        Raises:
            Unfit: The stand-in cannot be built.
        """
        self._device, self._one_document, self._training = device, one_document, True
        self._expected: Dict[torch.dtype, Tuple[float, Gradients]] = {}
        self._weights: Dict[str, torch.Tensor] = {}
        try:
            self._arch = config_of_standin(fields, like)
            draw = torch.Generator().manual_seed(0)
            last = min(VOCABULARY, self._arch.get_text_config().vocab_size)
            self._documents = [torch.randint(FIRST_TOKEN, last, (n,), generator=draw).to(device) for n in LENGTHS]
            self._weights = draw_like_trained(self._build(PLAIN, torch.float32))
        except Exception as error:
            raise Unfit(f"cannot be built ({reason_of(error)})", built=False) from error

    def choose(self, plans: Sequence[AttentionPlan], dtype: torch.dtype, generates: bool = True) -> Choice:
        """Return the first plan that is exact.

        Args:
            plans: The plans to try.
            dtype: Type of the weights.
            generates: Find out whether text can be generated with a cache. Otherwise none is used.

        Raises:
            ConfigError: No plan is exact, tokens see later tokens, or transformers cannot compute in this type.
            Unfit: Plain transformers cannot train the stand-in, or gives other numbers each time.
        """
        self._settle()
        if dtype is not torch.float32:
            try:
                self._plain(dtype)
            except Exception as error:
                raise _wrong_precision(self._arch.model_type, dtype, reason_of(error), self._kept(dtype)) from error
        if self._looks_ahead():
            where, fix = "", "use another model"
            if getattr(self._arch, "attention_type", "") == "block_sparse":
                where, fix = " in long documents, where it is sparse", "attention_type=original_full in its config"
            elif getattr(self._arch.get_text_config(), BOTH_WAYS, False):
                where, fix = f" ({BOTH_WAYS}=true)", f"{BOTH_WAYS}=false in its config, or use another model"
            raise ConfigError(f"tokens of {self._arch.model_type} can see later tokens{where}",
                              "a model in which no token sees a later one", fix)  # fmt: skip
        rejected: List[str] = []
        unsupported: set[Optional[str]] = set()
        for plan in plans:
            if plan.implementation in unsupported:
                continue
            try:
                loss, gradient, problem = self.measure(plan, dtype)
            except Exception as error:  # the plan does not work with this model
                loss, gradient, problem = 0.0, 0.0, reason_of(error, 160)
                unknown = isinstance(error, KeyError) and error.args[0] in (DOCUMENTS, plan.implementation)
                if unknown or "does not support an attention implementation" in problem:
                    problem = "the model does not support it"
                    unsupported.add(plan.implementation)
            if not problem:
                cached = generates and self.cache_works(plan)
                return Choice(replace(plan, cached=cached), rejected, loss, gradient)
            rejected.append(f"{plan.describe()}: {problem}")
        raise ConfigError(
            f"{self._arch.model_type} gives other numbers for packed documents than for each document alone: "
            f"{'; '.join(rejected[-2:])}",
            "a causal language model whose loss and gradients are those of plain transformers",
            "model.attention=auto" if len(plans) == 1 else "use another model",
        )

    @torch.no_grad()
    def _looks_ahead(self) -> bool:
        """Return whether the logits of the longest document depend on later tokens, as plain transformers runs it."""
        model, text = self._build(PLAIN, torch.float32).eval(), max(self._documents, key=len)[None]
        changed = text.clone()
        changed[0, -CHANGED:] = FIRST_TOKEN
        logits, again = (model(input_ids=ids, use_cache=False).logits[0, :-CHANGED] for ids in (text, changed))
        return not (logits - again).abs().max() <= EXACT.gradient * logits.abs().max()

    def measure_changed(self, plan: AttentionPlan, dtype: torch.dtype, change: Change,
                        rough: Tolerance) -> Tuple[float, float, str]:  # fmt: skip
        """Compare a plan with plain transformers. ``change`` is applied to the model of the plan. See ``measure``."""
        self._settle()
        return self.measure(plan, dtype, change, rough)

    def measure(self, plan: AttentionPlan, dtype: torch.dtype, change: Optional[Change] = None,
                rough: Tolerance = ROUGH) -> Tuple[float, float, str]:  # fmt: skip
        """Compare a plan with plain transformers.

        Returns:
            The relative difference of the loss and the largest one of a gradient, in fp32, and what is wrong ("" if
            nothing is).
        """
        # varlen does not run in fp32. BY_DOCUMENT has the same layout.
        in_fp32 = BY_DOCUMENT if plan.backend is Attention.varlen else plan
        loss, gradient, problem = self._compare(in_fp32, torch.float32, EXACT, change)
        if not problem and dtype is not torch.float32:
            problem = self._compare(plan, dtype, rough, change)[2]
        return loss, gradient, problem

    def _compare(self, plan: AttentionPlan, dtype: torch.dtype, allowed: Tolerance,
                 change: Optional[Change] = None) -> Tuple[float, float, str]:  # fmt: skip
        expected_loss, expected = self._plain(dtype)
        loss, found = self._run(plan, dtype, change)
        off = abs(loss - expected_loss) / abs(expected_loss)
        whole = float(torch.stack([g.float().norm() for g in expected.values()]).norm())
        if found.keys() != expected.keys():
            name = min(found.keys() ^ expected.keys())
            return off, 1.0, f"{name} gets a gradient in only one of the two"
        differences = {name: float((found[name] - g).float().norm()) for name, g in expected.items()}
        if allowed is EXACT:
            shares = {n: d / max(float(expected[n].norm()), SMALL_GRADIENT * whole) for n, d in differences.items()}
        else:
            shares = {"the whole model": float(torch.tensor(list(differences.values())).norm()) / whole}
        worst = max(shares, key=lambda name: (shares[name] != shares[name], shares[name]))
        if off <= allowed.loss and shares[worst] <= allowed.gradient:
            return off, shares[worst], ""
        return off, shares[worst], f"the loss is off by {off:.1g}, the gradient of {worst} by {shares[worst]:.1g}"

    def _plain(self, dtype: torch.dtype) -> Tuple[float, Gradients]:
        if dtype not in self._expected:
            self._expected[dtype] = self._run(PLAIN, dtype)
        return self._expected[dtype]

    def _kept(self, dtype: torch.dtype) -> List[str]:
        """Return the weights that transformers keeps in fp32 in any precision, if they make the model computable."""
        kept: List[str] = []

        def keep(model: Any) -> None:
            parts = [re.compile(part.replace("*", ".*")) for part in model._keep_in_fp32_modules_strict or ()]
            for name, weight in model.named_parameters():
                if any(part.search(name) for part in parts):
                    weight.data = weight.data.float()
                    kept.append(name)

        try:
            self._run(PLAIN, dtype, keep)
        except Exception:  # these weights are not the reason
            return []
        return kept

    def _settle(self) -> None:
        """Choose a mode in which the numbers are the same each time: training mode, or else evaluation mode.

        Raises:
            Unfit: There is no such mode, or plain transformers cannot train the stand-in.
        """
        try:
            if self._repeats():
                return
            self._training, self._expected = False, {}
            if self._repeats():
                return
            loss = self._plain(torch.float32)[0]
        except Unfit:
            raise
        except Exception as error:
            lengths = " and ".join(map(str, LENGTHS[:2]))
            raise Unfit(f"cannot be trained on documents of {lengths} tokens ({reason_of(error)})") from error
        raise Unfit("gives other numbers each time" if math.isfinite(loss) else "has a loss that is not finite")

    def _repeats(self) -> bool:
        """Return whether plain transformers gives the same numbers twice. Some routers draw random numbers."""
        loss, gradients = self._plain(torch.float32)
        with torch.no_grad():
            model = self._build(PLAIN, torch.float32)
            again = float(sum(self._losses(model, self._micro_batches())))
        if gradients and not any(bool(gradient.any()) for gradient in gradients.values()):
            raise Unfit("has gradients that are all 0")
        if math.isfinite(loss) and not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
            raise Unfit("has gradients that are not finite")
        return bool(abs(loss - again) <= EXACT.loss * abs(loss)) and bool(gradients)

    def _micro_batches(self) -> List[List[torch.Tensor]]:
        return [[document] for document in self._documents] if self._one_document else [self._documents]

    def _run(self, plan: AttentionPlan, dtype: torch.dtype, change: Optional[Change] = None) -> Tuple[float, Gradients]:
        """Return the sum of the losses of all tokens, and the gradients of the parameters that get one."""
        model = self._build(plan, dtype)
        if change:
            change(model)
        loss = 0.0
        for part in self._losses(model, self._micro_batches()):
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def _losses(self, model: Any, micro_batches: List[List[torch.Tensor]]) -> Iterator[torch.Tensor]:
        for documents in micro_batches:
            batch = micro_batch(documents)
            trained = torch.cat([torch.arange(a + 1, b) for a, b in pairwise(batch.limits)]).to(self._device)
            logits = forward_logits(model, batch, trained - 1)
            yield F.cross_entropy(logits.float(), batch.input_ids[0][trained], reduction="sum")

    def _build(self, plan: AttentionPlan, dtype: torch.dtype) -> Any:
        arch = copy.deepcopy(self._arch)
        with torch.random.fork_rng([]):
            model = build(arch, dtype=dtype, attn_implementation=plan.implementation)
        if self._weights:
            model.load_state_dict(self._weights)
        model.config.use_cache = False
        set_plan(model, plan)
        return model.to(self._device).train(self._training)

    def cache_works(self, plan: AttentionPlan) -> bool:
        """Return whether text can be generated with a cache."""
        return cache_works(self._build(plan, torch.float32).eval(), self._documents[0])


def micro_batch(documents: List[torch.Tensor]) -> SimpleNamespace:
    """Return a micro-batch (``ftdist.model.forward.Batch``) of one row, without labels.

    Args:
        documents: Token ids of each document, [n].
    """
    limits = [0, *accumulate(len(d) for d in documents)]
    device = documents[0].device
    return SimpleNamespace(
        input_ids=torch.cat(documents)[None],
        position_ids=torch.cat([torch.arange(len(d), device=device) for d in documents])[None],
        cu_seqlens=torch.tensor(limits, dtype=torch.int32, device=device),
        max_seqlen=max(len(d) for d in documents),
        limits=limits,
        real=None,
    )


def _wrong_precision(model_type: str, dtype: torch.dtype, reason: str, kept: List[str]) -> ConfigError:
    """Return the error for a model that can only be computed in fp32.

    Args:
        kept: The weights that transformers keeps in fp32, if the reason is that DeepSpeed does not.
    """
    name = next(precision.name for precision, own in DTYPES.items() if own is dtype)
    found = f"transformers cannot train a {model_type} model in {name}: {reason}"
    if kept:
        found = (f"a {model_type} model computes with weights in fp32 ({count(len(kept), 'weight')}, for example "
                 f"{kept[-1]}), but DeepSpeed trains all weights in {name}: {reason}")  # fmt: skip
    return ConfigError(found, "a precision in which the model computes", "train.precision=fp32")
