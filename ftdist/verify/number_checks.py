"""Checks of numbers, on the ranks: isolation, loss, gradient, update, saving, resuming, export, determinism.

The engine is built from the same config several times (with ``--quick`` only once, for 1):

1. in fp32, where rounding cannot hide a bug, compared with the reference;
2. as configured, for two steps;
3. loaded from the last checkpoint of run 2, without training;
4. resumed from the first checkpoint of run 2;
5. as configured once more.

A model that draws random numbers in training (dropout, noise of routers) is checked in evaluation mode. Otherwise no
two forward passes would give the same numbers.
"""

import copy
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import torch
import torch.distributed as dist

from ftdist.base.counts import count
from ftdist.base.errors import FtdistError
from ftdist.base.json_files import write_json
from ftdist.checkpoint.export import export_checkpoint
from ftdist.config.schema import Precision, RunConfig
from ftdist.config.zero import ModelState
from ftdist.data.loader import micro_batch
from ftdist.engine.shards import unsharded
from ftdist.engine.whole import Tensors, whole_weights
from ftdist.method.adapters import adapters_off
from ftdist.model.forward import forward_logits
from ftdist.model.isolation import ROUNDING, measure_isolation
from ftdist.model.load import DTYPES, build_whole, load_whole
from ftdist.model.opened import open_exported
from ftdist.model.parts import build, freeze_other_parts
from ftdist.objective.coefficient import balance_coefficient
from ftdist.parallel.ranks import Ranks
from ftdist.plan.batch import never_two_documents, plan_batch
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.run.checks import Check, differing, failed, judge, not_run, passed
from ftdist.run.prepared import data_folder
from ftdist.run.rundir import RunDir
from ftdist.train.loop import train, train_step
from ftdist.train.main import assemble
from ftdist.train.preempt import Preemption
from ftdist.train.state import Training
from ftdist.verify.compare import (
    ALLOWED,
    Deviation,
    Expected,
    allowed_with,
    largest,
    largest_difference,
    measure_deviation,
    run_reference,
)
from ftdist.verify.reference import read_rows, row_order
from ftdist.verify.reference_method import apply_plainly, put_by_name, weights_of_another_adapter
from ftdist.verify.reference_model import changed_weights, plain_base, weights_of_another_model

Report = Callable[[Check], None]
ISOLATION, LOSS, UPDATE, PRECISION = (
    "packing isolation", "loss and gradient", "optimizer step", "loss in the run's precision",
)  # fmt: skip
RELOAD, RESUME, EXPORT, REPEAT = (
    "save, reload: same logits", "save, resume: same step", "export: same logits", "repeated step: same numbers",
)  # fmt: skip
BASE = "adapters off: the base model"
"""A check of methods with adapters. It is not among ``NUMBERS``."""
NUMBERS = (ISOLATION, LOSS, UPDATE, PRECISION, RELOAD, RESUME, EXPORT, REPEAT)
"""Names of all checks of numbers."""
AFTER_REFERENCE = NUMBERS[3:]
"""Names of the checks that need more than the comparison with the reference."""
# A real model is deeper than the models of the invariance suite, and rounding adds up over its layers. A bug causes
# much larger differences.
ALLOWED_FP32 = replace(ALLOWED[Precision.fp32], loss=1e-5, gradient=1e-4, heldout=1e-5)
# Relative differences from fp32 weights and activations. In a gradient, rounding adds up over the layers. For
# comparison: a bug that halves the gradient changes it by 50 %.
BF16_LOSS, BF16_GRAD_NORM = 1e-2, 1e-1


def check_numbers(config: RunConfig, folder: Path, ranks: Ranks, quick: bool, report: Report) -> None:
    """Run all checks of this module. Every rank must call it.

    Args:
        folder: Folder for the run directories of the checks.
        quick: Only run the comparison with the reference.
        report: Receives each check when it has ended. On ranks other than 0 it must do nothing.
    """
    expected = _compare_with_reference(config, folder / "fp32", ranks, report)
    if quick:
        for name in AFTER_REFERENCE:
            report(not_run(name, "--quick"))
        return
    _check_run(config, RunDir(folder / "run"), ranks, expected, report)


def _start(config: RunConfig, run: RunDir, ranks: Ranks) -> Training:
    """Assemble a run in its own run directory, which rank 0 creates. Every rank must call it.

    The model is in evaluation mode if it draws random numbers in training.
    """
    plan = plan_batch(config.batch, ranks.world_size, config.data.max_seq_len)
    settings = deepspeed_settings(config, plan)  # on every rank, so that all ranks fail if a setting is refused
    if ranks.first:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.logs.mkdir(exist_ok=True)
        write_json(run.deepspeed, settings)
    dist.barrier()
    training = assemble(config, run, ranks, Preemption(run, ranks.rank))
    if draws_random_numbers(training):
        training.engine.module.eval()
    return training


@torch.no_grad()
def draws_random_numbers(training: Training) -> bool:
    """Return whether a forward pass in training draws random numbers. Every rank must call it."""
    device = training.ranks.device
    batch = micro_batch(training.train_set, [0], True, training.tokenizer.pad_token_id).to(device)
    states = []
    for _ in range(2):
        states.append(torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state())
        if len(states) == 1:
            forward_logits(training.engine, batch, torch.zeros(1, dtype=torch.long, device=device))
    return training.mesh.sum([float(not states[0].equal(states[1]))])[0] > 0


def _compare_with_reference(config: RunConfig, folder: Path, ranks: Ranks, report: Report) -> Optional[Expected]:
    """Compare the engine in fp32 with the reference. Returns the results of the reference on rank 0."""
    config = replace(config, train=replace(config.train, precision=Precision.fp32))
    training = _start(config, RunDir(folder), ranks)
    _check_isolation(training, report)
    weights, steps = whole_weights(training.engine), config.train.max_steps or 1
    whole = unsharded(training.engine) if ModelState.parameters.is_sharded(training.engine.stage) else []
    expected, other = _run_reference(training, weights, steps) if ranks.first else (None, [])
    del weights
    deviation = measure_deviation(training, expected, steps)
    training.engine.destroy()
    if deviation is not None:
        _report_deviation(deviation, other, whole, training, report)
    return expected


def _check_isolation(training: Training, report: Report) -> None:
    if never_two_documents(training.config):
        return report(not_run(ISOLATION, "data.packing=false and batch.micro_batch_size=1: one document at a time"))
    device, dtype = training.ranks.device, torch.float32
    proof = measure_isolation(training.engine, training.vocab_size, device)
    worst = max(proof.crossing, proof.alone)
    problems = ["documents of one row see each other: set model.attention=mask, or use another model"]
    report(judge(ISOLATION, problems if not worst <= ROUNDING[dtype] else [],
                 f"changing one document changes the logits of the others by {proof.crossing:g}; a packed "
                 f"document differs from the same one alone by {proof.alone:.1g} "
                 f"(limit {ROUNDING[dtype]:.0e})"))  # fmt: skip


def _run_reference(training: Training, weights: Tensors, steps: int) -> Tuple[Expected, List[str]]:
    """Run the reference from the weights with which the engine starts.

    Returns:
        The results of the reference, and the names of the starting weights that differ from those of the config's
        model.
    """
    config, data = training.config, data_folder(training.config)
    arch = copy.deepcopy(training.engine.module.config)
    build_whole()
    other = weights_of_another_model(config, weights) if not config.model.config else []
    if config.method.facts.quantized:
        model = plain_base(config, attn_implementation="eager")
        if (rows := arch.get_text_config().vocab_size) != model.config.get_text_config().vocab_size:
            model.resize_token_embeddings(rows, mean_resizing=False)
    else:
        model = build(arch, dtype=torch.float32, attn_implementation="eager")
    if config.method.facts.whole:
        trained = training.engine.trained_shapes()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
    else:
        freeze_other_parts(model)
        model = apply_plainly(model, config.method)
    other += weights_of_another_adapter(model, config.method.init_from, weights)
    put_by_name(model, weights)
    model.to(training.ranks.device)
    rows = read_rows(data / "train")
    heldout = [document for name in training.heldout for row in read_rows(data / name) for document in row]
    order = row_order(config.seed, len(rows), steps * config.batch.global_batch_size)
    balance = balance_coefficient(config.objective.router_aux_loss, arch)
    more = (training.vocab_size, balance, training.engine.module.training)
    return run_reference(model, config, rows, order, steps, heldout, *more), other


def _report_deviation(
    deviation: Deviation, other: List[str], whole: List[str], training: Training, report: Report
) -> None:
    beyond = deviation.beyond(allowed := allowed_with(training.config, ALLOWED_FP32))
    updates = [text for text in beyond if text.startswith("update")]
    what = f"{count(training.ranks.world_size, 'rank')}, ZeRO-{training.config.zero.stage}, in fp32"
    if not training.engine.module.training:
        what += ", in evaluation mode because the model draws random numbers in training"
    problems = differing(other, "the weights of the loaded model")
    left = count(len(whole), "parameter")
    problems += [f"ZeRO-3 leaves {left} whole on every rank, for example {whole[0]}"] if whole else []
    report(judge(LOSS, [*problems, *(text for text in beyond if text not in updates)],
                 f"loss differs by {deviation.loss:.1e} (limit {allowed.loss:.0e}), a gradient by at most "
                 f"{deviation.gradient:.1e} ({allowed.gradient:.0e}), held-out loss by {deviation.heldout:.1e}; "
                 f"{what}"))  # fmt: skip
    report(judge(UPDATE, updates, f"after two steps, the difference between the weights is {deviation.update:.1e} "
                                  f"times the size of the update (limit {allowed.update:.0e})"))  # fmt: skip


def _check_run(config: RunConfig, run: RunDir, ranks: Ranks, expected: Optional[Expected], report: Report) -> None:
    """Train as configured, then check precision, reloading, export, resuming and repeating."""
    training = _start(config, run, ranks)
    bases = [_base_logits(training)]
    train(training)
    bases.append(_base_logits(training))
    if config.method.facts.adapters:
        report(_check_base(config, *bases))
    (logits, batch), weights, record = _probe(training), whole_weights(training.engine), _recorded_steps(run)
    training.tracker.finish(0)
    training.engine.destroy()
    if expected is not None:
        report(_check_precision(config, record, expected))

    reloaded = _start(config, run, ranks)
    (again, _), found = _probe(reloaded), whole_weights(reloaded.engine)
    reloaded.engine.destroy()
    moved = float((again - logits).abs().max())
    problems = ["the model of the reloaded checkpoint gives other logits"] if moved else []
    report(judge(RELOAD, [*problems, *_different_weights(found, weights)], f"logits differ by {moved:g}"))
    if ranks.first:
        report(_check_export(config, run, batch, logits, weights))
        shutil.rmtree(run.checkpoint(config.train.max_steps or 0))
    dist.barrier()
    _check_resume(config, run, ranks, weights, record, report)
    _check_repeat(config, run, ranks, record, report)


def _base_logits(training: Training) -> torch.Tensor:
    """Return the logits of ``_probe`` without the adapters, if there are any."""
    with adapters_off(training.engine.module):
        return _probe(training)[0]


def _check_base(config: RunConfig, before: torch.Tensor, after: torch.Tensor) -> Check:
    """Compare the logits without the adapters before and after training."""
    if config.method.modules_to_save:
        return not_run(BASE, "method.modules_to_save trains modules of the base model")
    moved = float((after - before).abs().max())
    return judge(BASE, ["training has changed the base model"] if not before.equal(after) else [],
                 f"without the adapters, the logits before and after training differ by {moved:g}")  # fmt: skip


def _check_resume(
    config: RunConfig, run: RunDir, ranks: Ranks, weights: Tensors, record: List[Any], report: Report
) -> None:
    """Resume from the first checkpoint, the newest one that is left, and compare with the uninterrupted run."""
    resumed = _start(config, run, ranks)
    train(resumed)
    resumed.tracker.finish(0)
    found = whole_weights(resumed.engine)
    resumed.engine.destroy()
    after = _recorded_steps(run)
    problems = [] if after == record else [f"uninterrupted {record[-1]}, resumed {after[-1]}"]
    problems += _different_weights(found, weights)  # the recorded numbers do not depend on the moments, the weights do
    last = f"loss {float(after[-1]['train/loss']):.6f}, {count(after[-1]['train/trained_tokens'], 'trained token')}"
    report(judge(RESUME, problems, last))


def _different_weights(found: Tensors, expected: Tensors) -> List[str]:
    """Describe the weights that are not bit for bit those of the uninterrupted run."""
    other = [name for name, weight in expected.items() if not found[name].equal(weight)]
    return differing(other, "those of the uninterrupted run")


def _recorded_steps(run: RunDir) -> List[Any]:
    """Return what metrics.jsonl records of each step, without times."""
    kept = ("step", "train/loss", "train/grad_norm", "train/trained_tokens", "train/tokens_seen")
    return [{name: record[name] for name in kept} for record in run.read_metrics() if "train/loss" in record]


def _check_precision(config: RunConfig, record: List[Any], expected: Expected) -> Check:
    if config.train.precision is Precision.fp32:
        return passed(PRECISION, "nothing to compare: the run uses fp32, and so does the check against the reference")
    loss = largest_difference([float(entry["train/loss"]) for entry in record], expected.losses)
    norm = largest_difference([float(entry["train/grad_norm"]) for entry in record], expected.grad_norms)
    good = loss <= BF16_LOSS and norm <= BF16_GRAD_NORM
    return judge(PRECISION, [] if good else ["bf16 and fp32 give different numbers"],
                 f"bf16 differs from fp32: loss by {loss:.1e} (limit {BF16_LOSS:.0e}), gradient norm by {norm:.1e} "
                 f"({BF16_GRAD_NORM:.0e})")  # fmt: skip


def _probe(training: Training) -> Tuple[torch.Tensor, Any]:
    """Return the logits [n, vocab] of the first document of the first row, and the batch of this row."""
    batch = micro_batch(training.train_set, [0], True, training.tokenizer.pad_token_id).to(training.ranks.device)
    positions = torch.arange(int(batch.cu_seqlens[1]), device=training.ranks.device)
    with torch.no_grad(), training.engine.evaluation():
        logits = forward_logits(training.engine, batch, positions).float()
    return logits, batch


def _check_export(config: RunConfig, run: RunDir, batch: Any, logits: torch.Tensor, weights: Tensors) -> Check:
    """Compare the logits and the weights of the exported model with those of the run.

    Logits may differ by rounding. In bf16 such a difference could hide that a small update is missing, so the weights
    must be equal.
    """
    merged = ""
    try:
        export_checkpoint(run.find_checkpoint("last"), run.export, config)
        if config.method.facts.adapters:
            merged = "; " + export_checkpoint(run.find_checkpoint("last"), run.merged, config, merged=True)
    except FtdistError as error:
        return failed(EXPORT, " ".join(str(error).split()))
    base = load_whole(config) if merged else None  # random weights are in no folder
    model = open_exported(run.export, config.model.trust_remote_code, base).to(logits.device).eval()
    with torch.no_grad():
        exported = model(input_ids=batch.input_ids[:, : len(logits)]).logits[0].float()
    expected = logits[:, : exported.shape[1]]  # without the rows that only pad the embedding
    difference = float((exported - expected).abs().max() / expected.abs().max())
    limit = ROUNDING[DTYPES[config.train.precision]]
    whole = config.method.facts.adapters and config.model.adapter  # its weights are sums
    other = [] if whole else changed_weights(model, weights)
    problems = ["the exported model gives other logits"] if not difference <= limit else []
    problems += differing(other, "those of the run")
    measured = f"logits of the exported model differ by {difference:.1g} (limit {limit:.0e})"
    return judge(EXPORT, problems, measured + ("" if other else ", its weights are equal") + merged)


def _check_repeat(config: RunConfig, run: RunDir, ranks: Ranks, record: List[Any], report: Report) -> None:
    """Run the same steps once more. Torch names the operations that are not deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training = _start(config, RunDir(run.path.with_name("again")), ranks)
        again = [train_step(training, index) for index in range(config.train.max_steps or 1)]
        training.engine.destroy()
    torch.use_deterministic_algorithms(False)
    named = sorted({str(w.message).split(" does not have")[0] for w in caught if "deterministic" in str(w.message)})
    pairs = [(a.loss, float(b["train/loss"])) for a, b in zip(again, record, strict=True)]
    pairs += [(a.grad_norm, float(b["train/grad_norm"])) for a, b in zip(again, record, strict=True)]
    difference = largest(abs(a - b) for a, b in pairs)
    problems = ["repeating the step gave different numbers, although PyTorch reported no non-deterministic operation"]
    measured = f"differs by {difference:.1e}; not deterministic: {', '.join(named)}" if difference else "bit for bit"
    report(judge(REPEAT, problems if difference and not named else [], measured))
