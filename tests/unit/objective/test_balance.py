"""The balance loss of experts is that of transformers over the whole global batch, however the batch is split."""

from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from ftdist.base.errors import ConfigError
from ftdist.model.attention_plan import BY_DOCUMENT, PLAIN, AttentionPlan, Layout
from ftdist.model.exactness import micro_batch
from ftdist.model.forward import set_plan
from ftdist.model.parts import auto_class
from ftdist.objective.balance import BALANCE, BalanceLoss
from ftdist.objective.coefficient import balance_coefficient
from ftdist.objective.sft import SupervisedFineTuning
from ftdist.verify.reference import transformers_balance_loss
from tests.helpers.families import FAMILIES, QWEN3_VL_MOE

LENGTHS = ((11, 5, 9), (20, 3))
"""Lengths of the documents of each micro-batch. The last one of the first is padding."""
COEFFICIENT = 0.25


PADDED = AttentionPlan(PLAIN.backend, "sdpa", Layout.padded)
MIXTRAL = FAMILIES["mixtral"]


def _model(plan: AttentionPlan, fields: Dict[str, Any] = MIXTRAL) -> Any:
    arch = AutoConfig.for_model(**fields)
    torch.manual_seed(0)
    model = auto_class(arch).from_config(arch, attn_implementation=plan.implementation)
    set_plan(model, plan)
    return model


def _batches() -> List[Any]:
    draw = torch.Generator().manual_seed(1)
    batches = [micro_batch([torch.randint(10, 250, (n,), generator=draw) for n in lengths]) for lengths in LENGTHS]
    batches[0].real = torch.arange(25)[None] < 16
    for batch in batches:
        batch.labels = torch.full_like(batch.input_ids, -100)  # the first batch has no trained token
    batches[1].labels[0, 21:] = 7
    return batches


def _documents(batch: Any) -> List[Any]:
    return [(ids.numpy(), np.ones(len(ids))) for ids in batch.input_ids[0].split(batch.cu_seqlens.diff().tolist())]


def _gradients(model: Any) -> Dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "embed" not in name}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("plan", "fields"),
    [(BY_DOCUMENT, MIXTRAL), (PADDED, MIXTRAL), (PLAIN, MIXTRAL), (PADDED, QWEN3_VL_MOE)],
    ids=lambda value: value.layout.name if isinstance(value, AttentionPlan) else value["model_type"],
)
def test_the_shares_of_micro_batches_add_up_to_the_loss_of_the_global_batch(
    plan: AttentionPlan, fields: Dict[str, Any]
) -> None:
    model, batches = _model(plan, fields), _batches()
    loss = transformers_balance_loss(model, [*_documents(batches[0])[:-1], *_documents(batches[1])])
    (COEFFICIENT * loss).backward()
    expected = _gradients(model)
    objective = SupervisedFineTuning(259, BalanceLoss(COEFFICIENT))
    objective.begin_step(model, batches, list)
    shares = [objective.loss(model, batch).penalty for batch in batches]
    sum(shares).backward()
    assert sum(shares).item() == pytest.approx(COEFFICIENT * loss.item(), rel=1e-5)
    for name, gradient in _gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6, rtol=1e-4), name
    assert objective.end_step()[BALANCE] == pytest.approx(loss.item(), rel=1e-5)


def test_with_one_micro_batch_the_counts_are_summed_over_ranks_without_another_forward() -> None:
    """A second rank that has the same batch doubles all sums, so the loss of the two is that of one."""
    model, [_, batch] = _model(BY_DOCUMENT), _batches()
    calls: List[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    objective = SupervisedFineTuning(259, BalanceLoss(1.0))
    objective.begin_step(model, [batch], lambda values: [2 * value for value in values])
    penalty = objective.loss(model, batch).penalty
    assert penalty is not None and len(calls) == 1
    expected = transformers_balance_loss(model, _documents(batch))
    assert 2 * penalty.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_evaluation_has_no_balance_loss() -> None:
    model, batches = _model(BY_DOCUMENT), _batches()
    with torch.no_grad():
        assert SupervisedFineTuning(259, BalanceLoss(1.0)).loss(model, batches[1]).penalty is None


@pytest.mark.parametrize(
    ("model_type", "fields", "wanted", "coefficient"),
    [
        ("mixtral", {}, None, 0.0),
        ("mixtral", {"output_router_logits": True}, None, 0.001),
        ("mixtral", {"output_router_logits": True}, 0.0, 0.0),
        ("qwen3_moe", {"output_router_logits": True, "router_aux_loss_coef": 0.3}, None, 0.3),
        ("jetmoe", {"output_router_logits": True}, None, 0.01),  # it has another name for the coefficient
        ("gpt_oss", {}, 0.7, 0.7),
        ("qwen3_vl_moe", {}, 0.7, 0.7),  # with images
        ("llama", {}, None, 0.0),
    ],
)
def test_the_coefficient_is_that_of_the_run_or_that_of_the_model(
    model_type: str, fields: Dict[str, Any], wanted: Any, coefficient: float
) -> None:
    assert balance_coefficient(wanted, AutoConfig.for_model(model_type, **fields)) == coefficient


@pytest.mark.parametrize(
    ("model_type", "why"), [("llama", "no balance loss"), ("deepseek_v3", "no balance loss"), ("doge", "doge")]
)
def test_a_model_without_this_loss_is_refused(model_type: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        balance_coefficient(0.1, AutoConfig.for_model(model_type))
    assert caught.value.fix == "objective.router_aux_loss=0"
