"""A plain DeepSpeed loop as in its documentation, without ftdist's loader, loss, attention, engine and loop."""

from pathlib import Path
from typing import Any, Dict, List

import deepspeed
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from ftdist.config.optim import values_of
from ftdist.config.schema import Precision, RunConfig
from ftdist.data.row_order import row_ids
from ftdist.verify.reference import read_rows

Batch = Dict[str, torch.Tensor]


class BareLoop:
    """A loop with the model, rows, ZeRO stage, optimizer, clipping and accumulation of ``config``."""

    def __init__(self, config: RunConfig, data: Path, ranks: Any, steps: int) -> None:
        micro = config.batch.micro_batch_size
        self.accumulate = config.batch.global_batch_size // (micro * ranks.world_size)
        settings = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": config.optim.max_grad_norm,
            "bf16": {"enabled": config.train.precision is Precision.bf16},
            "zero_optimization": {"stage": config.zero.stage},
            "steps_per_print": 2**31 - 1,
        }
        # Kept as long as the model: under ZeRO-3 transformers then shards parameters while it reads them.
        self._zero3 = HfDeepSpeedConfig(settings) if config.zero.stage == 3 else None
        dtype = torch.bfloat16 if config.train.precision is Precision.bf16 else torch.float32
        model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=dtype, attn_implementation="sdpa")
        model.config.use_cache = False
        model.train()
        values = values_of(config.optim)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.optim.lr, betas=(values["beta1"], values["beta2"]), eps=values["eps"],
            weight_decay=config.optim.weight_decay, fused=True,
        )  # fmt: skip
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.batches = _tensorise(config, data, ranks, self.accumulate, steps)

    def step(self, index: int) -> float:
        """Take a step and return the loss of this rank. All rows have equally many trained tokens."""
        total = torch.zeros((), device=self.engine.device)
        for batch in self.batches[index * self.accumulate : (index + 1) * self.accumulate]:
            loss = self.engine(**batch).loss
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        return float(total) / self.accumulate


def _tensorise(config: RunConfig, data: Path, ranks: Any, accumulate: int, steps: int) -> List[Batch]:
    """Return the micro-batches of this rank for all steps, on its device: ``input_ids``, ``labels`` [rows, tokens]."""
    rows = [torch.tensor(ids, dtype=torch.long) for ((ids, _),) in read_rows(data)]
    micro, size = config.batch.micro_batch_size, config.batch.global_batch_size
    order = row_ids(config.seed, len(rows), 0, steps * size)
    batches = []
    for start in range(0, steps * size, micro * ranks.world_size):
        mine = order[start + ranks.rank * micro : start + (ranks.rank + 1) * micro]
        ids = torch.stack([rows[int(row)] for row in mine]).to(ranks.device)
        batches.append({"input_ids": ids, "labels": ids})
    assert len(batches) == steps * accumulate
    return batches
