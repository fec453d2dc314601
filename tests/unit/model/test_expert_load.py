"""The tokens of each expert are counted as by hand, for every way in which routers choose."""

import math
from collections import Counter
from typing import Any, Dict, List

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.model.attention_plan import BY_DOCUMENT, PLAIN, AttentionPlan, Layout
from ftdist.model.exactness import VOCABULARY, micro_batch
from ftdist.model.expert_load import ENTROPY, LARGEST
from ftdist.model.forward import expert_load, set_plan
from ftdist.model.standin import default_model_config, standin_config
from ftdist.objective.sft import SupervisedFineTuning

LENGTHS = (11, 5, 9)
"""Lengths of the documents of a micro-batch. The last one is padding."""
SDPA = AttentionPlan(PLAIN.backend, "sdpa", Layout.row)
PADDED = AttentionPlan(PLAIN.backend, "eager", Layout.padded)


def _model(model_type: str, plan: AttentionPlan) -> Any:
    fields = standin_config(default_model_config(model_type), VOCABULARY)
    arch = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(arch, dtype=torch.float32, attn_implementation=plan.implementation)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "correction_bias" in name:
                tensor.copy_(torch.linspace(0, 1, len(tensor)))  # experts are not chosen by their scores alone
    set_plan(model, plan)
    return model


def _batch() -> Any:
    draw = torch.Generator().manual_seed(1)
    batch = micro_batch([torch.randint(10, 250, (n,), generator=draw) for n in LENGTHS])
    batch.real = torch.arange(sum(LENGTHS))[None] < sum(LENGTHS[:2])
    batch.labels = torch.where(batch.real, batch.input_ids, -100)
    return batch


def _by_hand(model: Any, choice: Dict[str, Any]) -> List[Counter]:
    """Return how often each expert of each layer is chosen when each document runs alone."""
    counts: List[Counter] = []
    batch = _batch()

    def hook(layer: int) -> Any:
        def count(module: Any, args: Any, kwargs: Any, outputs: Any) -> None:
            for row in choice["read"](module, args, kwargs, outputs).tolist():
                counts[layer].update(row)

        return count

    handles = []
    for module in model.modules():
        if type(module).__name__ == choice["module"]:
            handles.append(module.register_forward_hook(hook(len(counts)), with_kwargs=True))
            counts.append(Counter())
    for document in batch.input_ids[0].split(list(LENGTHS))[:2]:
        with torch.no_grad():
            model(input_ids=document[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return counts


EXPERTS = {"read": lambda module, args, kwargs, outputs: args[1]}
LOGITS = {"read": lambda module, args, kwargs, outputs: outputs[0].topk(module.top_k, dim=-1).indices}
CHOICES = {
    "mixtral": {"module": "MixtralTopKRouter", **LOGITS},
    "deepseek_v3": {"module": "DeepseekV3Experts", **EXPERTS},
    "gpt_oss": {"module": "GptOssTopKRouter", **LOGITS},
    "llama4_text": {"module": "Llama4Router", "read": lambda *call: (call[-1][0] > 0).nonzero()[:, 1:]},
}


@pytest.mark.parametrize(
    ("model_type", "plan", "recompute"),
    [
        ("mixtral", BY_DOCUMENT, False), ("mixtral", BY_DOCUMENT, True), ("mixtral", PADDED, False),
        ("mixtral", PLAIN, False), ("deepseek_v3", BY_DOCUMENT, False), ("gpt_oss", PADDED, False),
        ("llama4_text", SDPA, False),
    ],
    ids=lambda value: value.layout.name if isinstance(value, AttentionPlan) else str(value),
)  # fmt: skip
def test_the_metrics_are_those_of_counts_by_hand(model_type: str, plan: AttentionPlan, recompute: bool) -> None:
    model, batch = _model(model_type, plan), _batch()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    objective = SupervisedFineTuning(VOCABULARY)
    for _ in range(2):  # the second step starts again from 0
        objective.begin_step(model, [batch, batch], lambda values: [3 * value for value in values])  # of three ranks
        for _ in range(2):
            objective.loss(model, batch).loss.backward()
        with torch.no_grad():
            objective.loss(model, batch)  # an evaluation is not counted
        metrics = objective.end_step()
    counts = _by_hand(model.eval(), CHOICES[model_type])
    assert counts and all(len(layer) > 1 for layer in counts)
    experts = model.config.num_local_experts
    shares = [[layer[number] / layer.total() for number in range(experts)] for layer in counts]
    entropies = [-sum(s * math.log(s) for s in layer if s) / math.log(experts) for layer in shares]
    assert metrics[ENTROPY] == pytest.approx(sum(entropies) / len(entropies), rel=1e-12)
    assert metrics[LARGEST] == pytest.approx(max(max(layer) for layer in shares) * experts, rel=1e-12)
    assert 0 < metrics[ENTROPY] < 1 < metrics[LARGEST] <= experts


def test_other_models_have_no_such_metrics() -> None:
    model = _model("llama", BY_DOCUMENT)
    assert not expert_load(model)
    objective = SupervisedFineTuning(VOCABULARY)
    objective.begin_step(model, [_batch()], list)
    assert objective.end_step() == {}


def test_a_model_that_drops_tokens_is_not_counted() -> None:
    model = _model("mixtral", BY_DOCUMENT)
    load = expert_load(model)
    with load.counting(torch.ones(1, 3, dtype=torch.bool)):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert load.metrics(list) == {}
    load.reset()
    with load.counting(torch.ones(1, 4, dtype=torch.bool)):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert load.metrics(list)[LARGEST] > 1
