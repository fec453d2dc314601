"""Log-probabilities in chunks, compared with ``log_softmax`` of whole logits."""

import copy
from typing import List, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F

from ftdist.config.schema import Precision
from ftdist.objective.chunked import LogitTransform, scores_of_logits, token_logprobs, token_scores
from ftdist.plan.loss_head import chunk_size, head_bytes, most_tokens

N, HIDDEN, ROWS, VOCAB, RANK = 11, 6, 19, 17, 2
TRANSFORMS = {
    "plain": LogitTransform(),
    "scaled": LogitTransform(scale=0.3),
    "capped": LogitTransform(cap=2.0),
    "scaled and capped": LogitTransform(scale=1.7, cap=3.0),
}


def inputs(dtype: torch.dtype, low_rank: bool = False) -> Tuple[List[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return the factors as a flat list (hidden, weight, …), a bias and targets."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    factors = [random(N, HIDDEN), random(ROWS, HIDDEN)] + ([random(N, RANK), random(ROWS, RANK)] if low_rank else [])
    targets = torch.randint(VOCAB, (N,), generator=draw)
    targets[:2] = torch.tensor([0, VOCAB - 1])
    return factors, random(ROWS), targets


def plain(factors: List[torch.Tensor], bias: torch.Tensor, targets: torch.Tensor, how: LogitTransform) -> torch.Tensor:
    outputs = sum(h @ w.T for h, w in zip(factors[0::2], factors[1::2], strict=True)) + bias
    logits = outputs * how.scale if how.cap is None else how.cap * torch.tanh(outputs * how.scale / how.cap)
    return logits[:, :VOCAB].float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def chunked(
    factors: List[torch.Tensor], bias: Optional[torch.Tensor], targets: torch.Tensor,
    how: LogitTransform = TRANSFORMS["plain"], chunk: int = 4, equal: bool = False,
) -> torch.Tensor:  # fmt: skip
    return token_logprobs(list(zip(factors[0::2], factors[1::2], strict=True)), bias, targets, VOCAB, how, equal, chunk)


@pytest.mark.parametrize("how", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("low_rank", [False, True], ids=["one factor", "two factors"])
def test_gradients_equal_finite_differences_in_fp64(how: LogitTransform, low_rank: bool) -> None:
    factors, bias, targets = inputs(torch.float64, low_rank)
    assert torch.autograd.gradcheck(lambda b, *f: chunked(list(f), b, targets, how), (bias, *factors))


@pytest.mark.parametrize("how", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("equal", [False, True], ids=["each token", "their sum"])
@pytest.mark.parametrize("chunk", [1, 4, N, 100])
def test_values_and_gradients_equal_the_plain_computation(how: LogitTransform, chunk: int, equal: bool) -> None:
    factors, bias, targets = inputs(torch.float32, low_rank=True)
    others, other_bias = copy.deepcopy((factors, bias))
    # A preference loss weights its tokens differently.
    weights = torch.full((N,), 0.3) if equal else torch.linspace(-1, 2, N)
    found, expected = chunked(factors, bias, targets, how, chunk, equal), plain(others, other_bias, targets, how)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, plains in zip([bias, *factors], [other_bias, *others], strict=True):
        torch.testing.assert_close(mine.grad, plains.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_scores_equal_those_of_whole_logits_in_fp64(how: LogitTransform, chunk: int) -> None:
    """Log-probability, whether the target has the largest logit, and entropy. Rows of padding do not count."""
    factors, bias, targets = inputs(torch.float64, low_rank=True)
    with torch.no_grad():
        bias[VOCAB:] = 100.0
        outputs = sum(h @ w.T for h, w in zip(factors[0::2], factors[1::2], strict=True)) + bias
        scaled = outputs * how.scale
        logits = (scaled if how.cap is None else how.cap * torch.tanh(scaled / how.cap))[:, :VOCAB]
    targets[2:6] = logits.argmax(-1)[2:6]
    chosen = logits.log_softmax(-1)
    correct = (logits.argmax(-1) == targets).double()
    assert 4 <= correct.sum() < N
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    expected = torch.stack([chosen.gather(1, targets[:, None])[:, 0], correct, entropies], 1)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = [tensor.to(dtype) for tensor in factors]
        pairs = list(zip(given[0::2], given[1::2], strict=True))
        found = token_scores(pairs, bias.to(dtype), targets, VOCAB, how, chunk)
        assert not found.requires_grad
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol)
        copy_of = logits.to(dtype).clone()
        torch.testing.assert_close(scores_of_logits(copy_of, targets, chunk).double(), expected, rtol=rtol, atol=rtol)
        assert torch.equal(copy_of, logits.to(dtype)), "the logits of the caller are not overwritten"


def test_of_equal_logits_the_first_is_chosen_and_impossible_tokens_have_no_entropy() -> None:
    logits = torch.tensor([[1.0, 1.0, float("-inf")], [float("-inf"), 5.0, float("-inf")]])
    found = scores_of_logits(torch.cat([logits, logits]), torch.tensor([0, 1, 1, 0]))
    assert found[:, 1].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(found[:, 2], torch.tensor([2.0, 1.0, 2.0, 1.0]).log())


def test_rows_of_padding_have_no_probability_and_no_gradient() -> None:
    factors, bias, targets = inputs(torch.float32)
    with torch.no_grad():
        bias[VOCAB:] = 100.0
    chunked(factors, bias, targets).sum().backward()
    assert not factors[1].grad[VOCAB:].any() and not bias.grad[VOCAB:].any()
    torch.testing.assert_close(bias.grad.sum(), torch.tensor(0.0), rtol=0, atol=1e-5)


def test_what_is_not_trained_gets_no_gradient() -> None:
    factors, _, targets = inputs(torch.float32)
    factors[1].requires_grad_(False)
    for equal in (False, True):
        factors[0].grad = None
        chunked(factors, None, targets, equal=equal).sum().backward()
        assert factors[0].grad is not None and factors[1].grad is None
    with torch.no_grad():
        assert not chunked(factors, None, targets, equal=True).requires_grad


def test_gradients_of_a_weight_are_summed_over_chunks_in_fp32() -> None:
    """One large term and many small ones: in bf16, the sum would stay at the large one."""
    many = 512
    hidden = torch.ones(many + 1, 1, dtype=torch.bfloat16)
    hidden[0] = 256.0
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    token_logprobs([(hidden, weight)], None, torch.zeros(many + 1, dtype=torch.long), 2, chunk=1).sum().backward()
    # Both tokens have the probability 1/2, so each position adds half of its hidden state.
    torch.testing.assert_close(weight.grad[:, 0].float(), torch.tensor([384.0, -384.0]))


def test_rounding_in_bf16_is_not_biased() -> None:
    """Over 200 steps, the mean deviation from fp64 is not larger than that of the plain computation in bf16."""
    draw = torch.Generator().manual_seed(1)
    deviations: List[Tuple[float, float]] = []
    for _ in range(200):
        hidden = torch.randn(24, 32, generator=draw)
        weight = torch.randn(64, 32, generator=draw) * 0.3
        targets = torch.randint(64, (24,), generator=draw)
        exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None]).sum()
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
        found = token_logprobs([(hidden, weight)], None, targets, 64, chunk=7).double().sum()
        whole = -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum").double()
        deviations.append((float(found - exact), float(whole - exact)))
    mine, plains = torch.tensor(deviations, dtype=torch.float64).mean(0).tolist()
    assert abs(mine) <= abs(plains) + 1e-4


@pytest.mark.parametrize("equal", [False, True], ids=["each token", "their sum"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("precision", Precision, ids=lambda precision: precision.name)
def test_the_memory_of_the_head_is_the_predicted_one(equal: bool, trained: bool, precision: Precision) -> None:
    """The logits of a chunk are in memory, and never those of all tokens."""
    tokens, rows, chunk, hidden_size = 500, 4096, 32, 24
    dtype = torch.float32 if precision is Precision.fp32 else torch.bfloat16
    hidden = torch.randn(tokens, hidden_size, dtype=dtype, requires_grad=True)
    weight = torch.randn(rows, hidden_size, dtype=dtype, requires_grad=trained)
    targets = torch.randint(rows, (tokens,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        token_logprobs([(hidden, weight)], None, targets, rows, equal=equal, chunk=chunk).sum().backward()
    held = most = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        held += event.nbytes()
        most = max(most, held)
    predicted = head_bytes(hidden_size, rows, tokens, chunk, precision, "cpu", trained)
    # In bf16, products on a CPU have a working memory of their own.
    assert most == pytest.approx(predicted, rel=0.02 if precision is Precision.fp32 else 0.12)
    assert most < 4 * tokens * rows


def test_a_chunk_has_as_many_tokens_as_its_memory_allows() -> None:
    assert (most_tokens("cpu", 49152), most_tokens("cuda", 151936)) == (682, 883)
    assert (chunk_size(700, 682), chunk_size(682, 682), chunk_size(1, 682)) == (350, 682, 1)
