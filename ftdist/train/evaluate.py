"""Held-out loss as (sum of token losses, number of tokens), and answers to held-out prompts."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist

from ftdist.data.loader import PreparedSet, micro_batch
from ftdist.engine.engine import ForwardEngine
from ftdist.objective.base import Objective
from ftdist.parallel.mesh import Mesh
from ftdist.track.report import CUT
from ftdist.train.preempt import Preemption


@torch.no_grad()
def evaluate(
    engine: ForwardEngine, objective: Objective, dataset: PreparedSet, mesh: Mesh, rows_per_rank: int, packing: bool,
    pad_id: int, preemption: Optional[Preemption] = None,
    report: Callable[[int, int], None] = lambda done, rows: None,
) -> Optional[Tuple[float, int]]:  # fmt: skip
    """Return the loss sum of a whole held-out set and its weight (the number of trained tokens), over all ranks.

    Rows are given to the ranks in turn. All ranks run the same number of forwards: a rank that has no row left runs a
    row again and does not count it. Returns None if the run was asked to stop meanwhile.

    Args:
        rows_per_rank: Number of rows that a rank puts through the model at a time.
        report: Is called with the number of rows that are done, and of all rows.
    """
    loss, weight = 0.0, 0
    per_round = rows_per_rank * mesh.data_size
    with engine.evaluation():
        for start in range(0, dataset.num_rows, per_round):
            mine = range(start + mesh.data_rank * rows_per_rank, start + (mesh.data_rank + 1) * rows_per_rank)
            rows = [row for row in mine if row < dataset.num_rows]
            batch = micro_batch(dataset, rows or [0], packing, pad_id).to(mesh.device)
            part = float(objective.loss(engine, batch).loss)
            if rows:
                loss, weight = loss + part, weight + objective.weight(batch)
            report(min(start + per_round, dataset.num_rows), dataset.num_rows)
            if preemption is not None and mesh.sum([float(preemption.asked())])[0]:
                return None
    total_loss, total_weight = mesh.sum([loss, weight])
    return total_loss, int(total_weight)


def say_rows(say: Callable[[str], None], name: str, done: int, rows: int) -> None:
    """How far the evaluation of a set is, as ``evaluate`` reports it."""
    say(f"evaluating {name} {done}/{rows}")


@torch.no_grad()
def answer(
    engine: ForwardEngine, prompt_ids: Sequence[int], max_tokens: int, stop_ids: Sequence[int], vocab_size: int,
    device: torch.device,
) -> List[int]:  # fmt: skip
    """Return the greedy continuation of one prompt, without the stop token.

    Every rank must make the same call: with ZeRO-3 each forward gathers parameters. Rank 0 decides each token, and all
    ranks go on with it.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=engine.module.config)
    ids = torch.tensor([list(prompt_ids)], device=device)
    produced: List[int] = []
    with engine.evaluation():
        while len(produced) < max_tokens:
            out = engine(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = out.logits[:, -1, :vocab_size].argmax(-1, keepdim=True)
            if dist.is_initialized():
                dist.broadcast(ids, src=0)
            token = int(ids)
            if token in stop_ids:
                break
            produced.append(token)
    return produced


def set_stop_tokens(generation_config: Any, *token_ids: Optional[int]) -> None:
    """Generation, here and with the exported model, stops at these too: the tokenizer's end of sequence, and the token
    that ends a trained answer (another one where a template of another model is used)."""
    known = generation_config.eos_token_id
    ids = {*(known if isinstance(known, list) else [known]), *token_ids} - {None}
    generation_config.eos_token_id = min(ids) if len(ids) == 1 else sorted(ids)


def answer_prompts(training: Any, say: Callable[[str], None]) -> List[Dict[str, Any]]:
    """Answers to the first train.num_samples prompts of each held-out set, as rows for the sample table; one that was
    still going on at train.sample_tokens ends with "…". ``say`` is told which is under way."""
    config, stops = training.config, training.engine.module.generation_config.eos_token_id
    limit = config.train.sample_tokens
    asked = [(name, index, prompt) for name, prompts in training.prompts.items()
             for index, prompt in enumerate(prompts[: config.train.num_samples])]  # fmt: skip
    rows = []
    for number, (name, index, prompt) in enumerate(asked, 1):
        say(f"answering {number}/{len(asked)}")
        ids = answer(training.engine, prompt["prompt_ids"], limit, stops if isinstance(stops, list) else [stops],
                     training.vocab_size, training.ranks.device)  # fmt: skip
        text = training.tokenizer.decode(ids) + (CUT if len(ids) == limit else "")
        rows.append({"set": name, "index": index, "question": prompt["question"], "prompt": prompt["prompt_text"],
                     "answer": text, "reference": prompt["reference"]})  # fmt: skip
    return rows
