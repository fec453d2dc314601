"""The head of a model is found, and losses from its hidden states equal those from the model's own logits."""

from itertools import pairwise
from typing import Any, Dict, Tuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.data.loader import IGNORED
from ftdist.method.adapters import adapters_off
from ftdist.model.attention_plan import PLAIN, AttentionPlan, Layout
from ftdist.model.exactness import micro_batch
from ftdist.model.forward import set_plan
from ftdist.objective.chunked import LogitTransform
from ftdist.objective.head import Head, find_head
from ftdist.objective.token_loss import segment_losses, token_loss
from ftdist.plan import loss_head
from tests.helpers.families import COMMON, GROUPED

VOCAB = 250
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
FAMILIES: Dict[str, Tuple[Dict[str, Any], LogitTransform]] = {
    "llama": (GROUPED, LogitTransform()),
    "llama, tied": ({**GROUPED, "tie_word_embeddings": True}, LogitTransform()),
    "gemma2, soft cap": ({**GROUPED, "head_dim": 16}, LogitTransform(cap=30.0)),
    "cohere, scale": (GROUPED, LogitTransform(scale=0.0625)),
    "granite, divisor": ({**GROUPED, "logits_scaling": 8.0}, LogitTransform(scale=0.125)),
    "falcon_h1, multiplier": ({**GROUPED, **MAMBA, "lm_head_multiplier": 0.25}, LogitTransform(scale=0.25)),
    "phi, bias": (COMMON, LogitTransform()),
    "nanochat, soft cap": (COMMON, LogitTransform(cap=15.0)),
    "mamba, no attention": (COMMON, LogitTransform()),
}


def build(family: str, **more: Any) -> Any:
    fields = {**FAMILIES[family][0], **more}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.partition(",")[0], **fields),
                                             attn_implementation="eager")  # fmt: skip
    with torch.no_grad():  # weights that make large logits, so that a scale or a cap matters
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * (1.0 if weight.dim() < 2 else 2.0 * weight.shape[-1] ** -0.5))
    set_plan(model, PLAIN)
    return model


def batch() -> Any:
    draw = torch.Generator().manual_seed(3)
    found = micro_batch([torch.randint(VOCAB, (n,), generator=draw) for n in (5, 12, 7)])
    found.labels = found.input_ids.clone()
    found.labels[0, [0, 1, 5, 6, 7, 17]] = IGNORED
    return found


def loss_and_gradients(model: Any, head: Any) -> Tuple[float, Dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = token_loss(model, batch(), VOCAB, head)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def assert_same_scores(model: Any, head: Any) -> None:
    """Compare losses and metrics of segments with those of the model's own logits in fp64."""
    documents, count, every = batch(), 0, []
    for begin, end in pairwise(documents.limits):
        logits = model(input_ids=documents.input_ids[:, begin:end]).logits[0, :-1, :VOCAB].double()
        every.append(logits)
        documents.labels[0, begin + 2 : end : 3] = logits.argmax(-1)[1::3]  # a random model is hardly ever right
    found, own = segment_losses(model, documents, VOCAB, head), segment_losses(model, documents, VOCAB)
    for segment, (begin, end) in enumerate(pairwise(documents.limits)):
        targets = documents.labels[0, begin + 1 : end]
        here = targets != IGNORED
        logits, targets = every[segment][here], targets[here]
        expected = {
            "loss": torch.nn.functional.cross_entropy(logits, targets, reduction="sum"),
            "accuracy": (logits.argmax(-1) == targets).sum(),
            "entropy": torch.distributions.Categorical(logits=logits).entropy().sum(),
        }
        count += int(expected["accuracy"])
        for one in (found, own):
            sums = {"loss": one.losses[segment], **{name: values[segment] for name, values in one.metrics.items()}}
            assert sums == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    assert 0 < count < found.weights.sum(), "some targets are the most probable tokens, and some are not"


def assert_same(model: Any, head: Any) -> None:
    loss, gradients = loss_and_gradients(model, head)
    expected, plain = loss_and_gradients(model, None)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == plain.keys()
    whole = float(torch.stack([g.norm() for g in plain.values()]).norm())
    for name, gradient in gradients.items():
        assert float((gradient - plain[name]).norm()) <= 1e-5 * max(float(plain[name].norm()), 1e-2 * whole), name
    model.eval()
    assert_same_scores(model, head)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_head.CHUNK_BYTES, "cpu", 4 * VOCAB * 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_equal_those_of_the_models_own_logits(family: str) -> None:
    model = build(family)
    head = find_head(model, VOCAB, torch.device("cpu"))
    assert isinstance(head, Head), head
    transform = FAMILIES[family][1]
    assert head.transform.scale == pytest.approx(transform.scale, rel=1e-6) and head.transform.cap == transform.cap
    assert_same(model, head)


@pytest.mark.parametrize("layout", [Layout.padded, Layout.alone], ids=lambda layout: layout.name)
def test_documents_that_do_not_share_a_row(layout: Layout) -> None:
    model = build("gemma2, soft cap")
    set_plan(model, AttentionPlan(PLAIN.backend, layout, cached=False))
    head = find_head(model, VOCAB, torch.device("cpu"))
    assert isinstance(head, Head)
    assert_same(model, head)


def test_the_forward_of_the_head_is_restored_also_after_an_error() -> None:
    model = build("llama")
    head = find_head(model, VOCAB, torch.device("cpu"))
    wrong = batch()
    wrong.input_ids[0, 0] = 10_000
    with pytest.raises(IndexError):
        token_loss(model, wrong, VOCAB, head)
    assert "forward" not in vars(model.lm_head)


class Doubled(torch.nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden)


def test_a_head_that_is_no_linear_layer_is_left_alone() -> None:
    model = build("llama")
    model.lm_head.__class__ = Doubled
    assert find_head(model, VOCAB, torch.device("cpu")) == "its head is not a linear layer (Doubled)"


def test_a_head_that_gets_several_hidden_states_of_each_token_is_left_alone() -> None:
    """ProphetNet predicts several tokens at a time, and its logits are those of the first."""
    arch = AutoConfig.for_model("prophetnet", vocab_size=VOCAB, hidden_size=32, num_decoder_layers=1,
                                decoder_ffn_dim=32, num_decoder_attention_heads=2)  # fmt: skip
    model = AutoModelForCausalLM.from_config(arch, attn_implementation="eager")
    set_plan(model, PLAIN)
    assert find_head(model, VOCAB, torch.device("cpu")) == "its head gets several hidden states of each token"


@pytest.mark.parametrize("change", [lambda logits: logits.square(), lambda logits: logits.roll(1, -1),
                                    lambda logits: logits + 1.0], ids=["square", "roll", "shift"])  # fmt: skip
def test_a_forward_that_does_something_else_with_logits_is_found(change: Any) -> None:
    model = build("llama")

    def after(_: Any, __: Any, outputs: Any) -> Any:
        outputs.logits = change(outputs.logits)
        return outputs

    model.register_forward_hook(after)
    assert "not known" in find_head(model, VOCAB, torch.device("cpu"))


def test_a_head_with_a_hook_that_changes_its_output_is_found() -> None:
    model = build("llama")
    model.model.norm.register_forward_hook(lambda *_: None)  # a hook that changes nothing does not matter
    assert isinstance(find_head(model, VOCAB, torch.device("cpu")), Head)
    model.lm_head.register_forward_hook(lambda _, __, out: out * 3.0)
    assert find_head(model, VOCAB, torch.device("cpu")).transform.scale == pytest.approx(3.0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_head_with_a_lora_layer(dropout: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = build("cohere, scale", tie_word_embeddings=False)
    config = LoraConfig(r=3, lora_alpha=7, lora_dropout=dropout, target_modules=["lm_head"], init_lora_weights=False)
    inject_adapter_in_model(config, model)
    head = find_head(model, VOCAB, torch.device("cpu"))
    assert isinstance(head, Head) and head.transform.scale == pytest.approx(0.0625)
    model.train(dropout == 0.0)
    assert_same(model, head)
    model.eval()
    with_adapter = token_loss(model, batch(), VOCAB, head)
    with adapters_off(model):
        without = token_loss(model, batch(), VOCAB, head)
        assert without == pytest.approx(token_loss(model, batch(), VOCAB).item(), rel=1e-5)
    assert abs(without - with_adapter) > 1e-3 * with_adapter
    if dropout:  # in training it is active
        model.train()
        assert loss_and_gradients(model, head)[0] != loss_and_gradients(model, head)[0]


def test_a_head_with_a_dora_layer_is_left_alone() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = build("llama")
    inject_adapter_in_model(LoraConfig(r=3, use_dora=True, target_modules=["lm_head"]), model)
    assert "not a linear layer" in find_head(model, VOCAB, torch.device("cpu"))
