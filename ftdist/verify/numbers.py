"""Checks of numbers, on the ranks: isolation, loss, gradient, update, saving, resuming, export, determinism.

The engine runs three times or four from the same beginning: in fp32, where a bug cannot hide in rounding, against the
reference; then as configured, to the end of two steps; resumed from its first checkpoint; and once more.
"""

import copy
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import torch
import torch.distributed as dist

from ftdist.base.errors import FtdistError
from ftdist.base.json_files import write_json
from ftdist.checkpoint.export import export_checkpoint
from ftdist.config.schema import Precision, RunConfig
from ftdist.data.loader import micro_batch
from ftdist.engine.whole import Tensors, whole_weights
from ftdist.model.forward import forward_logits
from ftdist.model.isolation import ROUNDING, measure_isolation
from ftdist.model.load import DTYPES, build_whole
from ftdist.parallel.ranks import Ranks
from ftdist.plan.batch import plan_batch
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.run.checks import Check, failed, judge, not_run, passed
from ftdist.run.locations import model_location
from ftdist.run.prepared import data_folder
from ftdist.run.rundir import RunDir
from ftdist.train.loop import train, train_step
from ftdist.train.main import assemble, never_two_documents
from ftdist.train.preempt import Preemption
from ftdist.train.state import Training
from ftdist.verify.compare import ALLOWED, Deviation, Expected, deviate, expect, largest, relative
from ftdist.verify.reference import read_rows, row_order

Report = Callable[[Check], None]
ISOLATION, LOSS, UPDATE, PRECISION = ("packing isolation", "loss and gradient", "optimizer step", "loss as configured")
RELOAD, RESUME, EXPORT, ADAPTER, REPEAT = (
    "save, reload: same logits", "save, resume: same step", "export: same logits", "adapter: same logits",
    "same step twice",
)  # fmt: skip
NUMBERS = (ISOLATION, LOSS, UPDATE, PRECISION, RELOAD, RESUME, EXPORT, ADAPTER, REPEAT)
# A real model is deeper than those of the invariance suite: rounding adds up over its layers. A bug moves far more.
ALLOWED_FP32 = replace(ALLOWED[Precision.fp32], loss=1e-5, gradient=1e-4, heldout=1e-5)
# Relative, against fp32 weights and activations. Rounding adds up over layers in a gradient; halving it is 50 %.
BF16_LOSS, BF16_GRAD_NORM = 1e-2, 1e-1


def number_checks(config: RunConfig, folder: Path, ranks: Ranks, quick: bool, report: Report) -> None:
    """Every rank calls it; the first reports."""
    expected = _against_the_reference(config, folder / "fp32", ranks, report)
    if quick:
        for name in NUMBERS[3:]:
            report(not_run(name, "--quick"))
        return
    _saving(config, RunDir(folder / "run"), ranks, expected, report)


def _start(config: RunConfig, run: RunDir, ranks: Ranks) -> Training:
    """Assemble a run in a directory of its own, which the first rank makes. Every rank calls it."""
    plan = plan_batch(config.batch, ranks.world_size, config.data.max_seq_len)
    settings = deepspeed_settings(config, plan)  # on every rank, so that all of them fail if it is refused
    if ranks.first:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.logs.mkdir(exist_ok=True)
        write_json(run.deepspeed, settings)
    dist.barrier()
    return assemble(config, run, ranks, Preemption(run, ranks.rank))


def _against_the_reference(config: RunConfig, folder: Path, ranks: Ranks, report: Report) -> Optional[Expected]:
    """Returns what the reference came to, on the first rank."""
    config = replace(config, train=replace(config.train, precision=Precision.fp32))
    training = _start(config, RunDir(folder), ranks)
    _isolation(training, report)
    weights, steps = whole_weights(training.engine), config.train.max_steps or 1
    expected, other = _expected(training, weights, steps) if ranks.first else (None, [])
    del weights
    deviation = deviate(training, expected, steps)
    training.engine.destroy()
    if deviation is not None:
        _report_deviation(deviation, other, training, report)
    return expected


def _isolation(training: Training, report: Report) -> None:
    if never_two_documents(training.config):
        return report(not_run(ISOLATION, "data.packing=false and batch.micro_batch_size=1: one document at a time"))
    device, dtype = training.ranks.device, torch.float32
    proof = measure_isolation(training.engine, training.vocab_size, device)
    largest = max(proof.crossing, proof.alone)
    problems = ["documents of one row see each other: model.attention=mask, or another model"]
    report(judge(ISOLATION, problems if not largest <= ROUNDING[dtype] else [],
                 f"changing one moves the others' logits by {proof.crossing:g}; alone or packed differs by "
                 f"{proof.alone:.1g} (allowed {ROUNDING[dtype]:.0e})"))  # fmt: skip


def _expected(training: Training, weights: Tensors, steps: int) -> Tuple[Expected, List[str]]:
    """What the reference comes to, and the weights with which the run begins that are not those of its model."""
    from transformers import AutoModelForCausalLM

    config, data = training.config, data_folder(training.config)
    arch = copy.deepcopy(training.engine.module.config)
    build_whole()
    other = _other_weights(config, weights) if not config.model.config else []
    model = AutoModelForCausalLM.from_config(arch, dtype=torch.float32, attn_implementation="eager")
    model.load_state_dict(weights, strict=False)  # the same beginning; tied weights come once
    model.tie_weights()
    model.to(training.ranks.device)
    rows = read_rows(data / "train")
    heldout = [document for name in training.heldout for row in read_rows(data / name) for document in row]
    order = row_order(config.seed, len(rows), steps * config.batch.global_batch_size)
    return expect(model, config, rows, order, steps, heldout, training.vocab_size), other


def _other_weights(config: RunConfig, weights: Tensors) -> List[str]:
    """Names of the weights that transformers reads otherwise, without rows that were added to an embedding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_location(config), dtype=torch.float32, revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
    return [name for name, weight in model.named_parameters()
            if name not in weights or not weights[name][: len(weight)].cpu().equal(weight)]  # fmt: skip


def _report_deviation(deviation: Deviation, other: List[str], training: Training, report: Report) -> None:
    allowed, beyond = ALLOWED_FP32, deviation.beyond(ALLOWED_FP32)
    updates = [text for text in beyond if text.startswith("update")]
    what = f"{training.ranks.world_size} ranks, ZeRO-{training.config.zero.stage}, in fp32"
    problems = [f"{len(other)} weights are not the model's, {other[0]} for one"] if other else []
    report(judge(LOSS, [*problems, *(text for text in beyond if text not in updates)],
                 f"loss {deviation.loss:.1e} (allowed {allowed.loss:.0e}), furthest gradient {deviation.gradient:.1e} "
                 f"({allowed.gradient:.0e}), held-out loss {deviation.heldout:.1e}; {what}"))  # fmt: skip
    report(judge(UPDATE, updates, f"weights after two steps {deviation.update:.1e} (allowed {allowed.update:.0e})"))


def _saving(config: RunConfig, run: RunDir, ranks: Ranks, expected: Optional[Expected], report: Report) -> None:
    training = _start(config, run, ranks)
    train(training)
    (logits, batch), weights, record = _probe(training), whole_weights(training.engine), _steps(run)
    training.tracker.finish(0)
    training.engine.destroy()
    if expected is not None:
        report(_precision(config, record, expected))

    reloaded = _start(config, run, ranks)
    (again, _), read = _probe(reloaded), whole_weights(reloaded.engine)
    reloaded.engine.destroy()
    moved = float((again - logits).abs().max())
    problems = ["a reloaded checkpoint computes something else"] if moved else []
    report(judge(RELOAD, [*problems, *_unlike(read, weights)], f"moved by {moved:g}"))
    if ranks.first:
        report(_export(config, run, batch, logits, weights))
        shutil.rmtree(run.checkpoint(config.train.max_steps or 0))
    dist.barrier()

    resumed = _start(config, run, ranks)
    train(resumed)
    resumed.tracker.finish(0)
    read = whole_weights(resumed.engine)
    resumed.engine.destroy()
    after = _steps(run)
    problems = [] if after == record else [f"uninterrupted {record[-1]}, resumed {after[-1]}"]
    problems += _unlike(read, weights)  # only they tell of moments that were not restored
    last = f"loss {float(after[-1]['train/loss']):.6f}, {after[-1]['train/trained_tokens']} trained tokens"
    report(judge(RESUME, problems, last))
    report(not_run(ADAPTER, "all parameters are trained: there is no adapter"))
    _repeat(config, run, ranks, record, report)


def _unlike(found: Tensors, expected: Tensors) -> List[str]:
    """What to say of weights that are not bit for bit those that they should be."""
    other = [name for name, weight in expected.items() if not found[name].equal(weight)]
    return [f"{len(other)} weights are not those of the uninterrupted run, {other[0]} for one"] if other else []


def _steps(run: RunDir) -> List[Any]:
    """What each step came to, without how long it took."""
    kept = ("step", "train/loss", "train/grad_norm", "train/trained_tokens", "train/tokens_seen")
    return [{name: record[name] for name in kept} for record in run.read_metrics() if "train/loss" in record]


def _precision(config: RunConfig, record: List[Any], expected: Expected) -> Check:
    if config.train.precision is Precision.fp32:
        return passed(PRECISION, "fp32 is what was compared")
    loss = relative([float(entry["train/loss"]) for entry in record], expected.losses)
    norm = relative([float(entry["train/grad_norm"]) for entry in record], expected.grad_norms)
    good = loss <= BF16_LOSS and norm <= BF16_GRAD_NORM
    return judge(PRECISION, [] if good else ["bf16 computes something else than fp32"],
                 f"bf16 is off from fp32: loss {loss:.1e} (allowed {BF16_LOSS:.0e}), gradient norm {norm:.1e} "
                 f"({BF16_GRAD_NORM:.0e})")  # fmt: skip


def _probe(training: Training) -> Tuple[torch.Tensor, Any]:
    """Logits of the first row's first document, and that row."""
    batch = micro_batch(training.train_set, [0], True, training.tokenizer.pad_token_id).to(training.ranks.device)
    positions = torch.arange(int(batch.cu_seqlens[1]), device=training.ranks.device)
    with torch.no_grad(), training.engine.evaluation():
        logits = forward_logits(training.engine, batch, positions).float()
    return logits, batch


def _export(config: RunConfig, run: RunDir, batch: Any, logits: torch.Tensor, weights: Tensors) -> Check:
    """Logits may differ by rounding, which in bf16 would hide a small update that is missing: weights may not."""
    from transformers import AutoModelForCausalLM

    try:
        export_checkpoint(run.find_checkpoint("last"), run.export, config)
    except FtdistError as error:
        return failed(EXPORT, " ".join(str(error).split()))
    model = AutoModelForCausalLM.from_pretrained(run.export, dtype="auto").to(logits.device).eval()
    with torch.no_grad():
        exported = model(input_ids=batch.input_ids[:, : len(logits)]).logits[0].float()
    expected = logits[:, : exported.shape[1]]  # without the rows that pad the embedding
    off = float((exported - expected).abs().max() / expected.abs().max())
    limit = ROUNDING[DTYPES[config.train.precision]]
    other = [name for name, weight in model.named_parameters()
             if not weight.equal(weights[name][: len(weight)].to(weight.device, weight.dtype))]  # fmt: skip
    problems = ["the exported model computes something else"] if not off <= limit else []
    problems += [f"{len(other)} weights are not the run's, {other[0]} for one"] if other else []
    return judge(EXPORT, problems, f"from_pretrained differs by {off:.1g} (allowed {limit:.0e}), its weights by 0")


def _repeat(config: RunConfig, run: RunDir, ranks: Ranks, record: List[Any], report: Report) -> None:
    """Once more from the beginning, while torch names the operations that are not deterministic."""
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
    off = largest(abs(a - b) for a, b in pairs)
    problems = ["the same step came to other numbers, and no operation is known for it"] if off and not named else []
    measured = "bit for bit" if not off else f"differs by {off:.1e}; not deterministic: {', '.join(named)}"
    report(judge(REPEAT, problems, measured))
