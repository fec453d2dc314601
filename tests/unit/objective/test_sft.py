"""The loss of SFT, compared with a plain computation of one document at a time."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.data.loader import IGNORED, MicroBatch
from ftdist.model.attention_plan import BY_DOCUMENT
from ftdist.model.forward import set_plan
from ftdist.objective.head import find_head
from ftdist.objective.token_loss import segment_losses, token_loss
from tests.helpers.families import TINY

VOCAB = TINY["vocab_size"]


@pytest.fixture(scope="module")
def model() -> Any:
    arch = AutoConfig.for_model("llama", **TINY)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(arch, attn_implementation=BY_DOCUMENT.implementation)
    set_plan(model, BY_DOCUMENT)
    return model


def _batch(lengths: list, trained_from: list) -> MicroBatch:
    draw = torch.Generator().manual_seed(5)
    ids = [torch.randint(VOCAB, (n,), generator=draw) for n in lengths]
    labels = [d.clone() for d in ids]
    for label, start in zip(labels, trained_from, strict=True):
        label[: max(start, 1)] = IGNORED
    every = torch.cat(labels)
    return MicroBatch(
        input_ids=torch.cat(ids)[None], labels=every[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        limits=[0, *torch.tensor(lengths).cumsum(0).tolist()],
        max_seqlen=max(lengths), num_trained=int((every != IGNORED).sum()), num_tokens=sum(lengths),
        squares=sum(n * n for n in lengths),
    )  # fmt: skip


def _plain(model: Any, batch: MicroBatch) -> torch.Tensor:
    total = torch.zeros(())
    for a, b in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        logits = model(input_ids=batch.input_ids[:, a:b]).logits[0, :-1].float()
        labels = batch.labels[0, a + 1 : b]
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total


def test_the_loss_is_the_sum_over_the_trained_tokens_of_all_documents(model: Any) -> None:
    batch = _batch([5, 12, 3], [2, 7, 1])
    assert token_loss(model, batch, VOCAB).item() == pytest.approx(_plain(model, batch).item(), rel=1e-6)


def test_the_gradient_of_the_loss_is_that_of_the_plain_computation(model: Any) -> None:
    batch = _batch([5, 12, 3], [2, 7, 1])
    grads = []
    for loss in (token_loss(model, batch, VOCAB), _plain(model, batch)):
        model.zero_grad()
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.linalg.norm(grads[0] - grads[1]) <= 1e-6 * torch.linalg.norm(grads[1])


@torch.no_grad()
def test_the_losses_of_segments_are_those_of_their_documents(model: Any) -> None:
    lengths, begin = [5, 12, 3, 4], [2, 7, 3, 1]
    batch = _batch(lengths, begin)
    head = find_head(model, VOCAB, torch.device("cpu"))
    assert not isinstance(head, str)
    for found in (segment_losses(model, batch, VOCAB), segment_losses(model, batch, VOCAB, head)):
        assert found.weights.tolist() == [3, 5, 0, 3]
        limits = batch.limits
        for segment, loss in enumerate(found.losses):
            row = batch.input_ids[:, limits[segment] : limits[segment + 1]]
            logprobs = model(input_ids=row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])
            assert loss == pytest.approx(-float(logprobs[begin[segment] - 1 :].sum()), rel=1e-6)
            of_tokens = found.token_losses[limits[segment] : limits[segment + 1]]
            assert of_tokens[begin[segment] :] == pytest.approx(-logprobs[begin[segment] - 1 :, 0].numpy(), rel=1e-5)
            assert not of_tokens[: begin[segment]].any()
    nothing = segment_losses(model, _batch([4], [4]), VOCAB)
    assert nothing.losses.tolist() == [0.0] and nothing.token_losses.tolist() == [0.0] * 4


def test_the_first_token_of_a_document_is_not_predicted_from_the_one_before(model: Any) -> None:
    batch = _batch([5, 6], [0, 0])
    assert batch.num_trained == 9  # 4 + 5
    assert token_loss(model, batch, VOCAB).item() == pytest.approx(_plain(model, batch).item(), rel=1e-6)


def test_a_micro_batch_without_trained_tokens_runs_the_model_and_counts_nothing(model: Any) -> None:
    batch = _batch([4], [4])
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    loss = token_loss(model, batch, VOCAB)
    handle.remove()
    assert calls == [1]
    assert loss.item() == 0.0
    model.zero_grad()
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_padding_rows_of_the_embedding_get_no_probability(model: Any) -> None:
    batch = _batch([6], [1])
    batch.input_ids.clamp_(max=49)
    batch.labels.clamp_(max=49)
    logits = model(input_ids=batch.input_ids).logits[0, :-1, :50].float()
    expected = torch.nn.functional.cross_entropy(logits, batch.input_ids[0, 1:], reduction="sum")
    assert token_loss(model, batch, 50).item() == pytest.approx(expected.item(), rel=1e-6)


def test_logits_are_computed_at_trained_positions_only(model: Any) -> None:
    batch = _batch([30], [25])
    shapes = []
    handle = model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    token_loss(model, batch, VOCAB)
    handle.remove()
    assert shapes == [(1, 5, VOCAB)]
