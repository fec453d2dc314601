"""Evaluation keeps the losses of the tokens of the first documents of a set."""

from itertools import pairwise
from typing import List

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.data.loader import PreparedSet
from ftdist.engine.engine import ForwardEngine
from ftdist.model.attention_plan import BY_DOCUMENT
from ftdist.model.forward import set_plan
from ftdist.objective.sft import SupervisedFineTuning
from ftdist.parallel.mesh import Mesh
from ftdist.train.evaluate import evaluate
from tests.helpers.families import TINY

VOCAB = 11


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_token_losses_are_those_of_the_plain_model_on_any_number_of_ranks(
    packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    arch = AutoConfig.for_model("llama", **{**TINY, "vocab_size": VOCAB, "initializer_range": 0.4})
    model = AutoModelForCausalLM.from_config(arch, attn_implementation=BY_DOCUMENT.implementation)
    draw = np.random.default_rng(0)
    offsets, order = np.array([0, 4, 7, 13, 15]), np.array([2, 0, 3, 1, 0])
    dataset = PreparedSet(draw.integers(0, VOCAB, 15, dtype=np.int32), draw.integers(0, 2, 15, dtype=np.uint8),
                          offsets, order, np.array([0, 2, 3, 4, 5]))  # fmt: skip
    plain: List[float] = []
    for begin, end in (offsets[[document, document + 1]] for document in order):
        ids, trained = torch.tensor(dataset.tokens[begin:end]).long(), dataset.trained[begin + 1 : end]
        with torch.no_grad():
            logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        plain += [0.0, *(-logprobs.numpy() * trained)]
    set_plan(model, BY_DOCUMENT)
    engine = ForwardEngine(model, model)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for ranks, kept in ((1, 100), (2, 100), (3, 100), (2, len(plain) - 1)):
            monkeypatch.setattr("ftdist.data.words.KEPT_TOKENS", kept)
            meshes = [Mesh(rank, ranks, torch.device("cpu")) for rank in range(ranks)]
            found = [evaluate(engine, SupervisedFineTuning(VOCAB), dataset, mesh, 2, packing, 0) for mesh in meshes]
            losses = sum(one.token_losses for one in found if one)  # each has the part of one rank
            first = plain if kept == 100 else plain[: len(plain) - 4]
            assert losses.tolist() == pytest.approx(first, rel=1e-5), "whole documents are kept"
            limits = np.cumsum([0, *dataset.document_lengths()])[: 6 if kept == 100 else 5].astype(int)
            of_documents = sum(one.losses for one in found if one)
            assert [losses[a:b].sum() for a, b in pairwise(limits)] == pytest.approx(of_documents[: len(limits) - 1])
    finally:
        dist.destroy_process_group()
