"""Evaluation: the losses of the documents of a held-out set, and the model's answers to held-out prompts."""

from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch
import torch.distributed as dist

from ftdist.data.loader import PreparedSet, micro_batch
from ftdist.data.words import kept_limits
from ftdist.engine.engine import ForwardEngine
from ftdist.model.forward import keeps_logits, plan_of
from ftdist.objective.base import Objective
from ftdist.parallel.mesh import Mesh
from ftdist.track.gain import DocumentLosses
from ftdist.track.report import TRUNCATION_MARK
from ftdist.train.preempt import Preemption


@torch.no_grad()
def evaluate(
    engine: ForwardEngine, objective: Objective, dataset: PreparedSet, mesh: Mesh, rows_per_rank: int, packing: bool,
    pad_id: int, preemption: Optional[Preemption] = None,
    report: Callable[[int, int], None] = lambda done, rows: None,
) -> Optional[DocumentLosses]:  # fmt: skip
    """Compute the losses of a whole held-out set. Every rank must call it.

    The rows are distributed over the ranks. All ranks run the same number of forward passes: a rank that has no row
    left runs row 0 again and does not count it. On any number of ranks, a forward pass has the same rows.

    Args:
        rows_per_rank: Number of rows that a rank runs in one forward pass.
        preemption: If it is given, the evaluation ends early when the run is asked to stop.
        report: Is called with the number of rows done so far and the number of all rows.

    Returns:
        The losses over all ranks. None if the run was asked to stop during the evaluation.
    """
    names = objective.document_metrics
    found, limits = np.zeros((2 + len(names), len(dataset.row_docs))), kept_limits(dataset)
    tokens = np.zeros(limits[-1])
    rows_per_round = rows_per_rank * mesh.data_size
    with engine.evaluation():
        for start in range(0, dataset.num_rows, rows_per_round):
            mine = range(start + mesh.data_rank * rows_per_rank, start + (mesh.data_rank + 1) * rows_per_rank)
            rows = [row for row in mine if row < dataset.num_rows]
            batch = micro_batch(dataset, rows or [0], packing, pad_id)
            begins = torch.tensor(batch.limits[:-1])
            real = slice(None) if batch.real is None else batch.real[0][begins].numpy()  # without padding
            measured = objective.segment_losses(engine, batch.to(mesh.device))
            if rows:
                documents = slice(*dataset.row_offsets[[rows[0], rows[-1] + 1]])
                sums = measured.losses, measured.weights, *(measured.metrics[name] for name in names)
                found[:, documents] = [values[real] for values in sums]
                _keep(tokens, limits, documents.start, measured.token_losses, batch.real)
            report(min(start + rows_per_round, dataset.num_rows), dataset.num_rows)
            if preemption is not None and mesh.sum([float(preemption.requested())])[0]:
                return None
    summed = mesh.sum_array(np.concatenate([found.ravel(), tokens]))
    losses, weights, *metrics = summed[: found.size].reshape(found.shape)
    return DocumentLosses(losses, weights, dict(zip(names, metrics, strict=True)), summed[found.size :])


def _keep(
    kept: np.ndarray, limits: np.ndarray, document: int, losses: np.ndarray, real: Optional[torch.Tensor]
) -> None:
    """Write the losses of the tokens of a micro-batch to their places among the kept ones.

    Args:
        limits: Where the documents begin, see ``kept_limits``.
        document: The first document of the micro-batch.
        real: [1, tokens]: False for padding.
    """
    if document < len(limits):
        place = kept[limits[document] :]
        losses = losses if real is None else losses[real[0].numpy()]
        place[: len(losses)] = losses[: len(place)]


def report_rows(say: Callable[[str], None], name: str, done: int, rows: int) -> None:
    """Show how far the evaluation of the held-out set ``name`` is. For the argument ``report`` of ``evaluate``."""
    say(f"evaluating {name} {done}/{rows}")


@torch.no_grad()
def generate_answer(
    engine: ForwardEngine, prompt_ids: Sequence[int], max_tokens: int, stop_ids: Sequence[int], vocab_size: int,
    device: torch.device,
) -> List[int]:  # fmt: skip
    """Return the greedy continuation of one prompt, without the stop token.

    Every rank must make the same call, because with ZeRO-3 each forward pass gathers parameters. Rank 0 decides each
    token, and all ranks continue with it.

    Args:
        max_tokens: Maximum number of tokens to generate.
        stop_ids: Ids of the tokens that end an answer.
        vocab_size: Number of rows of the embedding that are real tokens. Other ids are never generated.
    """
    ids = torch.tensor([list(prompt_ids)], device=device)
    generated: List[int] = []
    with engine.evaluation():
        for new in next_tokens(engine, ids, vocab_size, lambda logits: logits.argmax(-1)):
            if int(new) in stop_ids:
                break
            generated.append(int(new))
            if len(generated) == max_tokens:
                break
    return generated


def next_tokens(
    engine: ForwardEngine, ids: torch.Tensor, vocab_size: int, choose: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Continue several texts of the same length token by token. Yields the next tokens [texts], and never ends.

    Every rank must make the same calls, see ``generate_answer``. The engine must be in evaluation mode.

    Args:
        ids: [texts, length].
        vocab_size: Number of rows of the embedding that are real tokens. Other ids are never generated.
        choose: Returns the next tokens [texts] for the logits [texts, vocab_size]. All ranks use those of rank 0.
    """
    from transformers import DynamicCache

    cached = plan_of(engine).cached
    options: Dict[str, Any] = {"use_cache": False}
    if cached:
        options = {"past_key_values": DynamicCache(config=engine.module.config), "use_cache": True}
    if keeps_logits(engine.module):
        options["logits_to_keep"] = 1
    while True:
        new = choose(engine(input_ids=ids, **options).logits[:, -1, :vocab_size])
        if dist.is_initialized():
            dist.broadcast(new, src=0)
        yield new
        ids = new[:, None] if cached else torch.cat([ids, new[:, None]], dim=1)


def add_stop_tokens(generation_config: Any, *token_ids: Optional[int]) -> None:
    """Add tokens at which generation stops, during evaluation and with the exported model.

    Args:
        token_ids: The tokenizer's end of sequence, and the token that ends a trained answer. They differ if the chat
            template was made for another model. None is ignored.
    """
    known = generation_config.eos_token_id
    ids = {*(known if isinstance(known, list) else [known]), *token_ids} - {None}
    generation_config.eos_token_id = min(ids) if len(ids) == 1 else sorted(ids)


def answer_prompts(training: Any, say: Callable[[str], None]) -> List[Dict[str, Any]]:
    """Answer the first ``train.num_samples`` prompts of each held-out set. Every rank must call it.

    Args:
        say: Shows which prompt is being answered.

    Returns:
        The rows of the table of samples. An answer that was cut, at ``train.sample_tokens`` or at the end of the
        model's table of positions, ends with "…".
    """
    config, stops = training.config, training.engine.module.generation_config.eos_token_id
    selected = [(name, index, prompt) for name, prompts in training.prompts.items()
                for index, prompt in enumerate(prompts[: config.train.num_samples])]  # fmt: skip
    rows = []
    for number, (name, index, prompt) in enumerate(selected, 1):
        say(f"answering {number}/{len(selected)}")
        limit = config.train.sample_tokens
        if training.longest_text is not None:
            limit = max(min(limit, training.longest_text - len(prompt["prompt_ids"])), 0)
        ids = generate_answer(
            training.engine, prompt["prompt_ids"], limit, stops if isinstance(stops, list) else [stops],
            training.vocab_size, training.ranks.device,
        ) if limit else []  # fmt: skip
        text = training.tokenizer.decode(ids) + (TRUNCATION_MARK if len(ids) == limit else "")
        rows.append({"set": name, "index": index, "question": prompt["question"], "prompt": prompt["prompt_text"],
                     "answer": text, "reference": prompt["reference"]})  # fmt: skip
    return rows
