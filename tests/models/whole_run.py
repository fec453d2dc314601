"""One type of model through a whole run on two ranks with ZeRO-3: load, steps, checkpoint, export, and reading it.

Heavy imports are inside the functions, so that a test module that imports this one is collected quickly.
"""

import copy
import functools
import shutil
from pathlib import Path
from typing import Any, Optional, Tuple

STEPS = 2
RANDOM = ("phimoe",)
"""Types whose router draws random numbers in training, so that no two steps are the same."""
LOGITS = 1e-4
"""Largest difference between the logits of the run and of its export, relative to the largest logit."""


def config_of(folder: Path, model: Path, precision: str = "fp32") -> Any:
    """Return the config of a run of a model in a folder. The data is the same for all models."""
    from ftdist.config.schema import Precision

    config = copy.deepcopy(_any_config(folder))
    config.model.path, config.train.precision = str(model), Precision[precision]
    return config


@functools.cache
def _any_config(folder: Path) -> Any:
    from tests.helpers.tiny import NONE_WHOLE, tiny_config

    return tiny_config(
        folder, "zero.stage=3", NONE_WHOLE, f"train.max_steps={STEPS}",
        "data.sources.chats.max_documents=40", "data.heldout_share=0", "data.max_heldout_documents=null",
        "data.max_seq_len=96", "batch.global_batch_size=4", "batch.micro_batch_size=2", "train.num_samples=0",
        "train.gradient_checkpointing=none", "train.async_checkpoint=false", "optim.lr=1e-3", "optim.weight_decay=0.1",
        "train.export=false", "launch.timeout_s=60",
    )  # fmt: skip


def run_model(folder: Path, name: str, stage: int = 3) -> Tuple[str, str]:
    """Take the model ``folder/models/name`` through a run. Every rank must call it.

    Returns:
        What is wrong with the steps, and what is wrong with the export ("" if nothing is), on rank 0.
    """
    from ftdist.verify.compare import Allowed, measure_deviation
    from tests.helpers.training import assemble, save, start

    allowed = Allowed(loss=1e-5, grad_norm=1e-4, gradient=1e-3, update=1e-4, heldout=1e-5)
    config = config_of(folder, folder / "models" / name)
    config.zero.stage = stage
    ranks = start(config)
    training = assemble(config, folder / "runs" / name, ranks)
    expected = _reference(training)
    deviation = measure_deviation(training, expected, STEPS)
    training.state.step = STEPS
    save(training)
    logits = _logits(training)
    training.tracker.finish(0)
    training.engine.destroy()
    if deviation is None:
        return "", ""
    wrong = _export(training, logits)
    shutil.rmtree(training.run.path)
    beyond = [] if name in RANDOM else deviation.beyond(allowed)
    return "; ".join(beyond), wrong


def _reference(training: Any) -> Optional[Any]:
    """Return what plain transformers computes in the same steps from the same folder, one document at a time, on rank
    0."""
    import torch

    from ftdist.engine.whole import whole_weights
    from ftdist.model.load import build_whole
    from ftdist.model.parts import auto_class
    from ftdist.run.prepared import data_folder
    from ftdist.verify.compare import run_reference
    from ftdist.verify.reference import read_rows, row_order

    weights, config = whole_weights(training.engine), training.config
    if not training.ranks.first:
        return None
    build_whole()
    readers = auto_class(training.engine.module.config)
    model = readers.from_pretrained(config.model.path, dtype=torch.float32, attn_implementation="eager")
    other = [name for name, weight in model.named_parameters() if not weight.equal(weights[name])]
    assert not other, f"{len(other)} weights are loaded differently, for example {other[0]}"
    trained = training.engine.trained_shapes()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    rows = read_rows(data_folder(config) / "train")
    order = row_order(config.seed, len(rows), STEPS * config.batch.global_batch_size)
    return run_reference(model, config, rows, order, STEPS, [], training.vocab_size)


def _logits(training: Any) -> Tuple[Any, Any]:
    """Return the tokens of a document, and their logits."""
    import torch

    from ftdist.model.exactness import micro_batch
    from ftdist.model.forward import forward_logits

    ids = torch.randint(10, 250, (37,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), training.engine.evaluation():
        return ids, forward_logits(training.engine, micro_batch([ids]), torch.arange(len(ids))).float()


def _export(training: Any, probe: Tuple[Any, Any]) -> str:
    """Export the run, and return how the logits of the export differ."""
    import torch

    from ftdist.checkpoint.export import export_checkpoint
    from ftdist.model.parts import auto_class

    run, (ids, expected) = training.run, probe
    export_checkpoint(run.find_checkpoint("last"), run.export, training.config)
    model = auto_class(training.engine.module.config).from_pretrained(run.export, dtype="auto").eval()
    with torch.no_grad():
        found = model(input_ids=ids[None], use_cache=False).logits[0].float()
    off = float((found - expected[:, : found.shape[1]]).abs().max() / expected.abs().max())
    return "" if off <= LOGITS else f"the logits of the export differ by {off:.1g}"
