"""Training methods as plain PEFT and PyTorch do them: what ftdist's methods are compared with."""

from typing import Any, List


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


def plain_loop(model: Any, config: Any, rows: Any, order: List[int], steps: int) -> List[float]:
    """Train as a script with PEFT and transformers does: the model's own loss, PyTorch's clipping and AdamW.

    Returns the mean loss of each step.
    """
    import torch

    optim, each = config.optim, config.batch.global_batch_size
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1]},
              {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.lr, betas=(0.9, 0.95), eps=1e-8,
        weight_decay=optim.weight_decay,
    )  # fmt: skip
    losses = []
    for step in range(steps):
        documents = [document for row in order[step * each : (step + 1) * each] for document in rows[row]]
        total = sum(int(trained[1:].sum()) for _, trained in documents)
        mean = 0.0
        for ids, trained_tokens in documents:
            tokens = torch.tensor(ids, dtype=torch.long)[None]
            labels = torch.where(torch.tensor(trained_tokens.astype(bool))[None], tokens, -100)
            loss = model(input_ids=tokens, labels=labels, num_items_in_batch=torch.tensor(total)).loss
            if trained_tokens[1:].any():
                loss.backward()
                mean += float(loss)
        torch.nn.utils.clip_grad_norm_(trained, optim.max_grad_norm)
        adamw.step()
        adamw.zero_grad()
        losses.append(mean)
    return losses
