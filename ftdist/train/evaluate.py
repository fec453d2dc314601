"""Held-out loss as (sum of token losses, number of tokens), and answers to held-out prompts."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist

from ftdist.data.loader import micro_batch
from ftdist.model.forward import token_loss
from ftdist.parallel.ranks import Ranks, reduce_sum
from ftdist.track.report import TRUNCATION_MARK
from ftdist.train.preempt import Preemption


@torch.no_grad()
def evaluate(
    engine: Any, dataset: Any, rows_per_rank: int, packing: bool, pad_id: int, vocab_size: int, ranks: Ranks,
    preemption: Optional[Preemption] = None, report: Callable[[int, int], None] = lambda done, rows: None,
) -> Optional[Tuple[float, int]]:  # fmt: skip
    """Sum of the token losses of a whole held-out set and the number of its trained tokens, over all ranks.

    Rows are dealt out to the ranks in turn. All ranks run the same number of forwards: one that has no row left runs a
    row again and does not count it. None where the run was asked to stop meanwhile.

    Args:
        report: called with the rows that are done and all rows.
    """
    engine.eval()
    loss, tokens = 0.0, 0
    per_round = rows_per_rank * ranks.world_size
    for start in range(0, dataset.num_rows, per_round):
        mine = range(start + ranks.rank * rows_per_rank, start + (ranks.rank + 1) * rows_per_rank)
        rows = [row for row in mine if row < dataset.num_rows]
        batch = micro_batch(dataset, rows or [0], packing, pad_id).to(ranks.device)
        part = float(token_loss(engine, batch, vocab_size))
        if rows:
            loss, tokens = loss + part, tokens + batch.num_trained
        report(min(start + per_round, dataset.num_rows), dataset.num_rows)
        if preemption is not None and reduce_sum([float(preemption.asked())], ranks.device)[0]:
            engine.train()
            return None
    engine.train()
    total_loss, total_tokens = reduce_sum([loss, tokens], ranks.device)
    return total_loss, int(total_tokens)


def say_rows(say: Callable[[str], None], name: str, done: int, rows: int) -> None:
    """How far the evaluation of a set is, as ``evaluate`` reports it."""
    say(f"evaluating {name} {done}/{rows}")


@torch.no_grad()
def answer(
    engine: Any, prompt_ids: Sequence[int], max_tokens: int, stop_ids: Sequence[int], vocab_size: int,
    device: torch.device,
) -> List[int]:  # fmt: skip
    """Greedy continuation of one prompt, without the stop token. Every rank calls it alike: under ZeRO-3 each forward
    gathers parameters, so rank 0 decides each token and all go on together.
    """
    from transformers import DynamicCache

    engine.eval()
    model = engine.module
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([list(prompt_ids)], device=device)
    produced: List[int] = []
    while len(produced) < max_tokens:
        out = engine(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1, :vocab_size].argmax(-1, keepdim=True)
        if dist.is_initialized():
            dist.broadcast(ids, src=0)
        token = int(ids)
        if token in stop_ids:
            break
        produced.append(token)
    engine.train()
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
        text = training.tokenizer.decode(ids) + (TRUNCATION_MARK if len(ids) == limit else "")
        rows.append({"set": name, "index": index, "question": prompt["question"], "prompt": prompt["prompt_text"],
                     "answer": text, "reference": prompt["reference"]})  # fmt: skip
    return rows
