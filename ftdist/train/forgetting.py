"""Forgetting: how far the model has moved from the base model on texts that the base model wrote itself.

It is the divergence KL(base ‖ now) per token. The texts are drawn from the base model, so the sum of
log p_base - log p_now over the tokens of a text is an unbiased estimate of KL(base ‖ now) between the distributions of
whole texts. The divergence per token is the sum of these differences over all texts, divided by the number of their
tokens.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, Optional

import numpy as np

from ftdist.base.counts import count
from ftdist.base.terminal import format_seconds
from ftdist.parallel.ranks import on_rank_0
from ftdist.track.gain import DocumentLosses
from ftdist.train.base_texts import BaseTexts, as_set, draw_texts, prompts_of, rows_of
from ftdist.train.evaluate import evaluate, report_rows

KL, KL_ERROR = "forgetting/kl", "forgetting/kl_error"
"""Names of the metrics."""
NO_LIMIT = ". train.stop_when.max_forgetting has no effect any more"


@dataclass(frozen=True)
class Divergence:
    """KL(base ‖ now) in nats per token."""

    kl: float
    error: float
    """Standard error. The tokens of a text depend on each other, so the texts are the independent draws."""


def divergence(before: np.ndarray, now: np.ndarray, tokens: np.ndarray) -> Divergence:
    """Return the divergence of the model from the base model.

    The error is that of a ratio of two means, linearized (Cochran 1977, Sampling Techniques, section 6.4).

    Args:
        before: [texts] losses of the base model in nats, as sums over the tokens of each text.
        now: [texts] losses of the present model on the same texts.
        tokens: [texts] numbers of drawn tokens.
    """
    ratios, count, total = now - before, len(tokens), float(tokens.sum())
    kl = float(ratios.sum()) / total
    squares = float(np.square(ratios - kl * tokens).sum())
    return Divergence(kl, math.sqrt(count / (count - 1) * squares) / total)


class Forgetting:
    """Measures forgetting at the evaluations of a run. The texts are drawn once, and kept in the run directory.

    The base model is the model before the first step. For new adapters it is the model without them. If the run
    continues trained adapters (``method.init_from``), it is the model with these adapters.
    """

    def __init__(self, training: Any) -> None:
        """
        Args:
            training: The parts of the run (``ftdist.train.state.Training``).
        """
        self._training = training
        self._wanted = training.config.report.forgetting.texts > 0
        self._texts: Optional[BaseTexts] = None

    def measure(self, say: Callable[[str], None]) -> Optional[Dict[str, float]]:
        """Return the metrics of forgetting. Every rank must call it. Before the first step, it draws the texts.

        Args:
            say: Shows the progress.

        Returns:
            Empty if forgetting is not measured. None if the run was asked to stop.
        """
        if not self._wanted:
            return {}
        training = self._training
        self._texts = self._texts or on_rank_0(training.ranks, self._kept)
        if self._texts is None and training.state.step > 0:
            self._wanted, limited = False, training.config.train.stop_when.max_forgetting is not None
            training.progress.note(f"forgetting is not measured: {training.run.base_texts.name}, to which the texts of "
                                   "the base model are written before the first step, is missing or cannot be read"
                                   f"{NO_LIMIT if limited else ''}")  # fmt: skip
            return {}
        if self._texts is None:
            begun = time.monotonic()
            self._texts = self._draw(say)
            if self._texts is not None:
                took = format_seconds(time.monotonic() - begun)
                training.progress.note(f"in {took}, the base model wrote the {len(self._texts.losses)} texts on which "
                                       "forgetting is measured (report.forgetting.texts=0 turns this off)")  # fmt: skip
        now = self._losses(self._texts, say) if self._texts else None
        if self._texts is None or now is None:
            return None
        found = divergence(self._texts.losses, now.losses, now.weights)
        return {KL: found.kl, KL_ERROR: found.error}

    def _kept(self) -> Optional[BaseTexts]:
        """Return the texts in the run directory; None if they are not there or damaged."""
        path = self._training.run.base_texts
        try:
            return BaseTexts.load(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._training.progress.note(f"{path.name} cannot be read: {error}")
            return None

    def _draw(self, say: Callable[[str], None]) -> Optional[BaseTexts]:
        """Draw the texts, compute their losses, and keep them. None if the run was asked to stop."""
        training, config = self._training, self._training.config
        wanted, longest = config.report.forgetting, config.data.max_seq_len
        prompts = prompts_of(training.tokenizer, config.data, wanted.texts, longest - 1)
        limits = [min(wanted.tokens, longest - len(prompt)) for prompt in prompts]
        stops = training.engine.module.generation_config.eos_token_id

        def stopped(column: int) -> bool:
            say(f"the base model writes {count(len(prompts), 'text')}, token {column}")
            return bool(training.mesh.sum([float(training.preemption.requested())])[0])

        drawn = draw_texts(
            training.engine, prompts, limits, stops if isinstance(stops, list) else [stops], training.vocab_size,
            training.ranks.device, stopped,
        )  # fmt: skip
        if drawn is None:
            return None
        data = as_set(prompts, drawn, longest)
        texts = BaseTexts(data.tokens, data.trained, data.offsets, np.zeros(len(drawn)))
        before = self._losses(texts, say)
        if before is None:
            return None
        texts = BaseTexts(data.tokens, data.trained, data.offsets, before.losses)
        if training.ranks.first:
            try:
                texts.save(training.run.base_texts)
            except OSError as error:
                training.progress.note(f"{training.run.base_texts.name} cannot be written ({error}). If the run is "
                                       "resumed, forgetting is no longer measured")  # fmt: skip
        return texts

    def _losses(self, texts: BaseTexts, say: Callable[[str], None]) -> Optional[DocumentLosses]:
        """Compute the losses of the drawn tokens in the same way as the losses of held-out documents."""
        training, data = self._training, self._training.config.data
        rows = rows_of(texts.tokens, texts.drawn, texts.offsets, data.max_seq_len if data.packing else 1)
        return evaluate(
            training.engine, training.objective, rows, training.mesh, training.plan.micro_batch_size, data.packing,
            training.tokenizer.pad_token_id, training.preemption, partial(report_rows, say, "forgetting"),
        )  # fmt: skip
