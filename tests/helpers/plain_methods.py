"""Training methods as plain PEFT and transformers do them: what ftdist's methods are compared with."""

import os
from pathlib import Path
from typing import Any, Dict, List, Tuple

LORA = ("method.kind=lora", "method.r=4")
METHODS: Dict[str, Tuple[str, ...]] = {
    "full": (),
    "lora": LORA,
    "rslora": (*LORA, "method.use_rslora=true", "method.target_modules=[self_attn.q_proj,mlp.*,lm_head]"),
    "dora": (*LORA, "method.use_dora=true"),
    "last_layer": (
        *LORA,
        "method.use_dora=true",
        "method.layers_to_transform=[-1]",
        "method.modules_to_save=[lm_head]",
    ),
    "qlora": ("method.kind=qlora", "method.r=4"),
    "partial": ("method.kind=partial", "method.last_layers=1", "method.trainable=[norms,embeddings]"),
}
"""Methods that tests compare with plain PEFT, as settings. ``last_layer`` also trains the whole output head."""


def plain_model(config: Any) -> Any:
    """Return the model as plain PEFT makes it, with the A that ftdist draws."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ftdist.method.build import METHODS as OURS
    from ftdist.verify.reference_method import apply_plainly, put_by_name
    from ftdist.verify.reference_model import merged_plainly, plain_base

    def whole() -> Any:
        model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        return merged_plainly(model, config.model.adapter) if config.model.adapter else model

    def fresh() -> Any:
        return plain_base(config) if config.method.kind.name == "qlora" else whole()

    if config.method.init_from:
        return PeftModel.from_pretrained(fresh(), config.method.init_from, is_trainable=True)
    ours = OURS[config.method.kind].apply(whole(), config)
    plain = apply_plainly(fresh(), config.method)
    put_by_name(plain, dict(ours.named_parameters()))
    return plain


def trainer_losses(model: Any, config: Any, rows: Any, order: List[int], steps: int, folder: Path) -> List[float]:
    """Train with the ``Trainer`` of transformers, and return the loss of each step.

    Each document of a step is a row of its own, padded: the Trainer knows nothing of packing. A step is one batch.

    Args:
        folder: Where the Trainer may write. It writes no files.
    """
    import torch
    from transformers import Trainer, TrainingArguments

    os.environ.pop("LOCAL_RANK", None)  # with it, the Trainer wraps the model in DistributedDataParallel
    optim, each, losses = config.optim, config.batch.global_batch_size, []
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1]},
              {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.lr, betas=(0.9, 0.95), eps=1e-8,
        weight_decay=optim.weight_decay,
    )  # fmt: skip

    class Noting(Trainer):
        def training_step(self, *args: Any, **options: Any) -> Any:
            loss = super().training_step(*args, **options)
            losses.append(float(loss))
            return loss

    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=1, train_sampling_strategy="sequential",
        lr_scheduler_type="constant", max_grad_norm=optim.max_grad_norm, use_cpu=True, save_strategy="no",
        logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    batches = [[d for row in order[n * each : (n + 1) * each] for d in rows[row]] for n in range(steps)]
    Noting(
        model, arguments, data_collator=lambda items: _padded(items[0]), train_dataset=batches,
        optimizers=(adamw, None),
    ).train()  # fmt: skip
    return losses


def _padded(documents: List[Any]) -> Dict[str, Any]:
    """Return a batch with a row for each document. Labels are -100 where no loss is computed."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = [torch.tensor(ids, dtype=torch.long) for ids, _ in documents]
    labels = [torch.where(torch.tensor(trained.astype(bool)), ids, -100)
              for ids, (_, trained) in zip(tokens, documents, strict=True)]  # fmt: skip
    masks = [torch.ones_like(ids) for ids in tokens]
    batch = {"input_ids": pad_sequence(tokens, True), "attention_mask": pad_sequence(masks, True),
             "labels": pad_sequence(labels, True, -100)}  # fmt: skip
    batch["labels"][:, 0] = -100  # the first token of a document has no loss, so it must not be counted
    return batch
