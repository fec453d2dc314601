"""What a model computes in training and in evaluation."""

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.model.forward import evaluation_mode
from ftdist.model.random_weights import draw_like_trained


@torch.no_grad()
def test_an_evaluation_does_not_change_weights() -> None:
    """RWKV halves weights in place in evaluation mode. Engine, checkpoints and exports had the halved ones."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64}
    arch = AutoConfig.for_model("rwkv", num_hidden_layers=3, rescale_every=1, **sizes)
    model = AutoModelForCausalLM.from_config(arch).train()
    draw_like_trained(model)
    plain, before = copy.deepcopy(model).eval(), copy.deepcopy(model.state_dict())
    text = torch.arange(12)[None]
    with evaluation_mode(model):
        logits = model(input_ids=text, use_cache=False).logits
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    torch.testing.assert_close(logits, plain(input_ids=text, use_cache=False).logits, rtol=0, atol=0)
    assert not all(weight.equal(before[name]) for name, weight in plain.state_dict().items())  # transformers
