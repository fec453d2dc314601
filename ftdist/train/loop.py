"""The training loop. ``train_step`` is one optimizer step; ``train`` adds evaluation, checkpoints and logging."""

import contextlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, Optional

import torch

from ftdist.model.load import DTYPES
from ftdist.parallel.device_memory import peak_memory_gib
from ftdist.plan.cost import HOUR_S, held_devices
from ftdist.plan.goodput import goodput_of
from ftdist.run.prepared import GENERAL
from ftdist.run.rundir import PAUSED
from ftdist.run.timeline import EVALUATING, SAVING, STEPS
from ftdist.track.gain import DocumentLosses, write_evaluation
from ftdist.track.report import FORGETTING_TIME
from ftdist.track.token_losses import write_token_losses
from ftdist.train.bad_steps import count_step, report_bad_step, roll_back, why_bad
from ftdist.train.evaluate import answer_prompts, evaluate, report_rows
from ftdist.train.forgetting import KL, KL_ERROR
from ftdist.train.profile import StepProfiler
from ftdist.train.schedule import learning_rate
from ftdist.train.state import HELDOUT, Training
from ftdist.train.stop_when import count_evaluation, gain_metrics
from ftdist.train.throughput import Throughput

LONG_SAVE_S = 1.0
"""If training waits longer than this for a checkpoint, one line says so."""


@dataclass(frozen=True)
class StepResult:
    """The numbers of one optimizer step, over all ranks."""

    loss: float
    """Mean loss before the update. For SFT it is the mean cross-entropy of the trained tokens in nats per token."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    lr: float
    """Learning rate of the update."""
    tokens: int
    """Number of input tokens, without padding."""
    trained_tokens: int
    """Number of tokens with a label."""
    squares: int
    """Sum of the squares of the lengths of the documents."""
    stop: bool
    """Whether any rank was asked to stop."""
    bad: Optional[str]
    """Why the update was left out; None if it was made."""
    metrics: Dict[str, float] = field(default_factory=dict)
    """Means of the objective's own metrics, by the name under which they are logged."""


def train(training: Training) -> str:
    """Run from ``training.state`` to the last step.

    Returns:
        The state in which the run ends: ``done``; ``preempted`` if it was asked to stop; ``paused`` at a rung of a
        sweep. In the last two states a resume continues it.
    """
    with StepProfiler(
        training.config.debug.profile, training.run.path / "profile", training.ranks.rank, training.progress.note
    ) as profiler:
        return _run_steps(training, profiler)


def _run_steps(training: Training, profiler: StepProfiler) -> str:
    last, rolled_back, named = training.max_steps, False, False
    throughput = Throughput(training.engine, training.mesh, DTYPES[training.config.train.precision])
    if line := throughput.estimate(
        training.config, training.train_set, last - training.state.step, training.ranks.world_size
    ):
        training.progress.note(line)
    rung = next((step for step in training.config.sweep.rungs if step >= training.state.step), None)
    training.timeline.enter(STEPS, training.state.step)
    while True:
        state = training.state
        if _evaluation_due(training) and not _evaluate_all(training):
            return _stop_early(training)
        if state.step == rung and not state.stop_reason:
            return _stop_early(training, PAUSED)
        if _saving_due(training) and not rolled_back:
            _save(training)
        if state.step == last or state.stop_reason:
            if state.stop_reason:
                training.progress.note(f"the run ends after step {state.step}: {state.stop_reason}")
            _finish_saving(training)
            write_status(training, step=state.step, max_steps=last)
            return "done"
        started = time.perf_counter()
        with profiler.step(state.step + 1):
            result = train_step(training, state.step)
            step_s = time.perf_counter() - started
        training.busy("")  # ends the activity "starting", because the first step may compile kernels for a long time
        if training.engine.no_gradient.names and not named:
            training.progress.note(training.engine.no_gradient.describe())
        named = True
        if compiled := training.engine.compiled and training.engine.compiled.news():
            training.progress.note(f"step {state.step + 1}: {compiled}")
        state.step += 1
        state.tokens_seen += result.tokens
        state.trained_tokens += result.trained_tokens
        count_step(state, training.config.train, result.bad, result.grad_norm)
        times = training.clock.end_step()
        if result.bad or state.step % training.config.train.log_every == 0 or state.step == last:
            _log_step(training, result, step_s, times | throughput.metrics(result.tokens, result.squares, step_s))
        rolled_back = state.bad_in_a_row >= training.config.train.max_bad_steps
        training.timeline.beat(state.step)
        if rolled_back:
            roll_back(training, str(result.bad))
            training.timeline.enter(STEPS, training.state.step)
        if result.stop:
            # After a rollback the state is that of a checkpoint, so there is nothing to save.
            return "preempted" if rolled_back else _stop_early(training)


def _evaluation_due(training: Training) -> bool:
    """Return whether to evaluate now: before the first step, after the last one, every ``eval_every`` steps, at rungs.

    A resumed run does not repeat the evaluation of its checkpoint.
    """
    state = training.state
    due = state.step in (0, training.max_steps, *training.config.sweep.rungs) or _due(
        state.step, training.config.train.eval_every
    )
    return due and state.evaluated_step != state.step


def _saving_due(training: Training) -> bool:
    """Return whether to save a checkpoint now.

    After a bad step none is saved, because the weights may have been bad already. The run then rolls back to a
    checkpoint from before the bad steps.
    """
    state = training.state
    due = bool(state.step) and _due(state.step, training.config.train.checkpoint_every) and not state.bad_in_a_row
    return due or state.step == training.max_steps or bool(state.stop_reason)


def train_step(training: Training, index: int) -> StepResult:
    """Run optimizer step ``index`` (0 is the first): forward and backward of each micro-step, then the update.

    The loss of the step is the sum of the objective's losses divided by the sum of its weights (for SFT the number of
    trained tokens). Both sums are over the whole global batch: all micro-steps of all ranks.
    """
    config, mesh, engine, objective = training.config, training.mesh, training.engine, training.objective
    reader, clock = training.batches, training.clock
    with clock.phase("data", on_host=True):
        step = reader.read(training.state.batch_index(index))
    with clock.phase("agreement"):
        weight, *numbers = reader.totals(step)
    batches = [batch.to(mesh.device) for batch in step.micro_batches]
    if index + 1 < training.max_steps:
        reader.begin(training.state.batch_index(index + 1))
    lr = learning_rate(config.optim, index, training.max_steps)
    engine.set_lr(lr)
    objective.begin_step(engine, batches, mesh.sum)
    loss_sum = torch.zeros((), dtype=torch.float64, device=mesh.device)
    metric_sums = dict.fromkeys(objective.metrics, 0.0)
    for number, batch in enumerate(batches, 1):
        with clock.phase("forward"):
            found = objective.loss(engine, batch)
        share = found.loss / weight
        with clock.phase("backward"):
            engine.backward(share if found.penalty is None else share + found.penalty)
        loss_sum += found.loss.detach().double()
        metric_sums = {name: total + found.metrics[name] for name, total in metric_sums.items()}
        if number < len(batches):
            with clock.phase("update"):
                engine.step()
    # The loss is summed before the update, so that a loss that is not finite on one rank stops the update on all ranks.
    of_step = objective.end_step()
    # The counts of the next step are summed with it, so that a step has one agreement of all ranks.
    asked, counts = float(training.preemption.requested()), reader.counts_ahead()
    with clock.phase("agreement"):
        total, stop, *sums = mesh.sum([loss_sum, asked, *metric_sums.values(), *counts])
    reader.keep_totals(sums[len(metric_sums) :])
    mean, norms = total / weight, training.state.grad_norms
    with clock.phase("update"):
        end = engine.step(lambda norm: why_bad(config.train, norms, mean, norm) is None)
    bad = why_bad(config.train, norms, mean, end.grad_norm)
    metrics = {name: value / weight for name, value in zip(metric_sums, sums, strict=False)} | of_step
    trained_tokens, tokens, squares = map(int, numbers)
    return StepResult(mean, end.grad_norm, lr, tokens, trained_tokens, squares, stop > 0, bad, metrics)


def _due(step: int, every: Optional[int]) -> bool:
    return every is not None and step % every == 0


def _log_step(training: Training, result: StepResult, step_s: float, times: Dict[str, float]) -> None:
    state, ranks = training.state, training.ranks
    if not ranks.first:
        return
    tokens_per_s, memory = result.tokens / step_s, peak_memory_gib(ranks.device)
    training.tracker.log(state.step, {
        "train/loss": result.loss,
        "train/grad_norm": result.grad_norm,
        "train/lr": result.lr,
        **result.metrics,
        "train/trained_tokens": state.trained_tokens,
        "train/tokens_seen": state.tokens_seen,
        "perf/step_s": step_s,
        "perf/tokens_per_s_per_gpu": tokens_per_s / ranks.world_size,
        **times,
        "mem/peak_gib": memory,
        **(report_bad_step(training, state.step - 1, result.bad) if result.bad else {}),
    })  # fmt: skip
    training.progress.update(state.step, loss=result.loss, tokens_per_s=tokens_per_s, mem_gib=memory, lr=result.lr,
                             grad_norm=result.grad_norm)  # fmt: skip
    write_status(training, step=state.step, max_steps=training.max_steps, loss=result.loss, tokens_per_s=tokens_per_s)


def write_status(training: Training, **changes: Any) -> None:
    """Update the fields of ``status.json``, which ``ftdist status`` shows. A full disk must not end the run."""
    if training.saver.published is not None:
        step, when = training.saver.published
        changes |= {"last_checkpoint_step": step, "last_checkpoint_time": when,
                    "save_s": round(training.saver.longest_save_s, 3)}  # fmt: skip
    if training.ranks.first:
        with contextlib.suppress(OSError):
            training.run.write_status(state="running", **changes)


def _evaluate_all(training: Training) -> bool:
    """Compute the loss of every held-out set and the sample answers, and record them.

    Returns:
        False if the run was asked to stop during the evaluation. Nothing is recorded then.
    """
    metrics: Dict[str, float] = {}
    documents: Dict[str, DocumentLosses] = {}
    loss_sum, num_tokens, general_s = 0.0, 0, 0.0
    step, progress = training.state.step, training.progress
    with training.timeline.during(EVALUATING, step), progress.during("evaluating") as say:
        for key, dataset in training.evaluated_sets().items():
            begun = time.monotonic()
            measured = evaluate(
                training.engine, training.objective, dataset, training.mesh, training.plan.micro_batch_size,
                training.config.data.packing, training.tokenizer.pad_token_id, training.preemption,
                report=partial(report_rows, say, key.removeprefix(HELDOUT)),
            )  # fmt: skip
            if measured is None:
                return False
            metrics |= {f"{key}/{metric}": value for metric, value in measured.means().items()}
            documents[key.removeprefix(HELDOUT)] = measured
            if key.startswith(HELDOUT):
                loss_sum, num_tokens = loss_sum + measured.loss, num_tokens + measured.weight
            else:
                general_s += time.monotonic() - begun
        begun = time.monotonic()
        forgetting = training.forgetting.measure(say)
        times = {FORGETTING_TIME: general_s + time.monotonic() - begun}
        if forgetting is None:
            return False
        rows = answer_prompts(training, say)
    if not metrics and not forgetting:
        return True
    state, train = training.state, training.config.train
    mean = loss_sum / num_tokens if num_tokens else None
    state.evaluated_step, state.eval_loss = state.step, metrics[f"eval/{train.best}/loss"] if train.best else mean
    gain = gain_metrics(state, forgetting.get(KL))
    if state.step in (0, training.max_steps) or _due(state.step, train.eval_every):  # not only at a rung
        count_evaluation(state, train.stop_when, forgetting.get(KL))
    if training.ranks.first:
        with contextlib.suppress(OSError):  # without the file, the report has no intervals
            write_evaluation(training.run, state.step, documents)
            heldout = {name: documents[name].token_losses for name in training.heldout}
            write_token_losses(training.run, state.step, heldout)
        found = goodput_of(training.run, alive=True)
        hours = held_devices(found)[0] / HOUR_S
        goodput = {} if found.value is None else {"perf/goodput": found.value, "perf/device_hours": hours}
        training.tracker.log(state.step, {**metrics, **forgetting, **gain, **goodput, **times})
        if rows:
            training.tracker.samples(state.step, rows)
        training.progress.note(f"step {state.step}: {describe_evaluation(metrics, forgetting)}")
    return True


def describe_evaluation(metrics: Dict[str, float], forgetting: Dict[str, float]) -> str:
    """Return the results of an evaluation as text.

    Args:
        metrics: ``eval/<name>/loss`` and other metrics of each held-out set, and ``general/<name>/loss``.
        forgetting: The metrics of forgetting, or empty.
    """
    parts = []
    for prefix, what in ((HELDOUT, "held-out loss"), (f"{GENERAL}/", "loss on general text")):
        losses = {name.split("/")[1]: f"{value:.4f}" for name, value in metrics.items()
                  if name.startswith(prefix) and name.endswith("/loss")}  # fmt: skip
        named = [f"{name} {loss}" for name, loss in losses.items()] if len(losses) > 1 else list(losses.values())
        parts += [f"{what} {', '.join(named)}"] if losses else []
    if forgetting:
        parts.append(f"KL(base ‖ now) {forgetting[KL]:.4f} ± {forgetting[KL_ERROR]:.4f}")
    return "; ".join(parts)


def _save(training: Training, due: bool = True) -> None:
    """Save a checkpoint. ``due`` is False if it is saved only because the run was asked to stop."""
    contents = {**training.state.as_dict(), "vocab_size": training.vocab_size,
                "run_id": training.config.track.run_id, "due": due}  # fmt: skip
    started = time.perf_counter()
    training.busy("saving")
    with training.timeline.during(SAVING, training.state.step), training.progress.during("saving a checkpoint"):
        training.saver.save(contents)
    training.busy("")
    waited_s = time.perf_counter() - started
    if waited_s > LONG_SAVE_S:
        training.progress.note(f"step {training.state.step}: training waited {waited_s:.1f} s for the checkpoint")


def _finish_saving(training: Training) -> None:
    """Wait until the newest checkpoint is on the disk."""
    training.timeline.enter(SAVING, training.state.step)  # no step follows
    training.saver.finish()


def _stop_early(training: Training, state: str = "preempted") -> str:
    """Save a checkpoint because the run stops before its last step. Returns ``state``, the result of ``train``.

    After a bad step nothing is saved: a resume repeats the steps since the newest checkpoint.
    """
    if training.preemption.near_limit:
        training.progress.note(f"stopping: {training.preemption.near_limit}")
    if training.state.bad_in_a_row:
        training.progress.note(
            "stopping after a bad step: no checkpoint is saved. A resume continues from the last checkpoint before the "
            "bad steps"
        )
    else:
        _save(training, due=_saving_due(training))
    _finish_saving(training)
    write_status(training, step=training.state.step, max_steps=training.max_steps)
    return state
