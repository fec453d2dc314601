"""The metrics of an objective: they are logged as means over all micro-steps and ranks of a step."""

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.config.schema import RunConfig
from ftdist.objective.base import LossSum
from ftdist.objective.sft import SupervisedFineTuning
from ftdist.run.prepared import data_folder
from ftdist.track.gain import read_evaluation
from ftdist.track.token_losses import read_token_losses
from ftdist.verify.reference import read_rows, row_order
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import assemble, start

RANKS, STEPS = 2, 2
METRIC = "labels/mean_id"


class LabelIds(SupervisedFineTuning):
    """Supervised fine-tuning with one metric: the mean id of the trained tokens."""

    metrics = (METRIC,)

    def loss(self, model: Any, batch: Any) -> LossSum:
        labels = batch.labels[batch.labels >= 0]
        return LossSum(super().loss(model, batch).loss, {METRIC: float(labels.sum())})


def _train(config: RunConfig, path: Path) -> None:
    from ftdist.train.loop import train

    training = assemble(config, path, start(config))
    training.objective = LabelIds(training.vocab_size)
    assert training.plan.grad_accum_steps == 2
    train(training)
    training.tracker.finish(0)


def _expected_means(config: RunConfig) -> List[float]:
    """Return the mean id of the trained tokens of each step, from the files of the prepared data."""
    rows, size = read_rows(data_folder(config) / "train"), config.batch.global_batch_size
    order = row_order(config.seed, len(rows), STEPS * size)
    means = []
    for step in range(STEPS):
        documents = [document for row in order[step * size : (step + 1) * size] for document in rows[row]]
        ids = [int(token) for tokens, trained in documents for token in tokens[1:][trained[1:] == 1]]
        means.append(sum(ids) / len(ids))
    return means


def _plain_means(config: RunConfig, name: str) -> Tuple[Dict[str, float], List[float]]:
    """Return loss, accuracy and entropy of a token of a set before the first step, and the losses of all trained
    tokens, one document after another."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float64)
    logprobs, rights, entropies = [], [], []
    for ids, trained in (document for row in read_rows(data_folder(config) / name) for document in row):
        tokens = torch.tensor(ids).long()
        with torch.no_grad():
            found = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
        here = torch.tensor(trained[1:] == 1)
        found, targets = found[here], tokens[1:][here]
        logprobs.append(found.gather(1, targets[:, None])[:, 0])
        rights.append((found.argmax(-1) == targets).double())
        entropies.append(-(found.exp() * found).sum(-1))
    loss, accuracy, entropy = (float(torch.cat(values).mean()) for values in (logprobs, rights, entropies))
    return {"loss": -loss, "accuracy": accuracy, "entropy": entropy}, (-torch.cat(logprobs)).tolist()


def test_the_logged_metric_is_the_mean_over_all_ranks_and_micro_steps(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(
        tmp_path, f"train.max_steps={STEPS}", "batch.global_batch_size=8", "batch.micro_batch_size=2",
        "train.num_samples=0", "train.export=false", "train.log_every=1", "data.builtin_general=true",
    )  # fmt: skip
    run = freeze_tiny(config, tmp_path / "run", RANKS)
    run_ranks(_train, RANKS, config, run.path)
    records: List[Dict[str, Any]] = [record for record in run.read_metrics() if "train/loss" in record]
    expected = _expected_means(config)
    assert [record[METRIC] for record in records] == pytest.approx(expected, rel=1e-12)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3), "the steps cannot be told apart"
    [before, _] = [record for record in run.read_metrics() if "eval/heldout/loss" in record]
    for name in ("eval/heldout", "general/builtin"):
        found = {metric: before[f"{name}/{metric}"] for metric in ("loss", "accuracy", "entropy")}
        means, plain = _plain_means(config, name.removeprefix("eval/"))
        assert found == pytest.approx(means, rel=1e-6)
        if name == "eval/heldout":
            losses = read_token_losses(run, 0)
            assert list(losses) == ["heldout"], "words are those of held-out documents"
            assert losses["heldout"][losses["heldout"] != 0].tolist() == pytest.approx(plain, rel=1e-5)
    state = json.loads((run.published_checkpoints()[-1] / "state.json").read_text())
    [_, after] = [record for record in run.read_metrics() if "eval/heldout/loss" in record]
    assert state["eval_loss"] == after["eval/heldout/loss"] != after["general/builtin/loss"]
    kept = read_evaluation(run, STEPS)
    assert {name: one.means() for name, one in kept.items()} == {
        name.removeprefix("eval/"): {metric: after[f"{name}/{metric}"] for metric in ("loss", "accuracy", "entropy")}
        for name in ("eval/heldout", "general/builtin")
    }
