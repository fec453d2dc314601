"""The training loop: a few short functions over one state object."""

import contextlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, Optional

import torch

from ftdist.data.loader import micro_batch
from ftdist.data.row_order import row_ids, train_rows
from ftdist.parallel.device_memory import peak_memory_gib
from ftdist.train.bad_steps import bad_record, note_step, roll_back, why_bad
from ftdist.train.evaluate import answer_prompts, evaluate, say_rows
from ftdist.train.schedule import learning_rate
from ftdist.train.state import Training

SAVE_WORTH_SAYING_S = 1.0


@dataclass(frozen=True)
class StepResult:
    loss: float
    """Mean cross-entropy over the trained tokens of the global batch, nats a token, before the update."""
    grad_norm: float
    """Before clipping."""
    lr: float
    tokens: int
    trained_tokens: int
    stop: bool
    """Some rank was asked to stop."""
    bad: Optional[str]
    """Why the update was left out; None if it was made."""
    metrics: Dict[str, float] = field(default_factory=dict)
    """Means of the objective's own metrics, by the name under which they are logged."""


def train(training: Training) -> bool:
    """Run from training.done to the end. Returns False if it stopped early for preemption: a resume goes on."""
    last, rolled_back = training.max_steps, False
    while True:
        done = training.done
        if _evaluation_due(training) and not _evaluate_all(training):
            return _stop_early(training)
        if _saving_due(training) and not rolled_back:
            _save(training)
        if done.step == last:
            training.saver.finish()
            write_status(training)
            return True
        started = time.perf_counter()
        result = train_step(training, done.step)
        training.busy("")  # since the run began, whose first step may compile
        done.step += 1
        done.tokens_seen += result.tokens
        done.trained_tokens += result.trained_tokens
        note_step(done, training.config.train, result.bad, result.grad_norm)
        if result.bad or done.step % training.config.train.log_every == 0 or done.step == last:
            _log_step(training, result, time.perf_counter() - started)
        rolled_back = done.bad_in_a_row >= training.config.train.max_bad_steps
        if rolled_back:
            roll_back(training, str(result.bad))
        if result.stop:  # a run that has just gone back stands at a checkpoint
            return False if rolled_back else _stop_early(training)


def _evaluation_due(training: Training) -> bool:
    """Before the first step, after the last, and every eval_every; not again where a resumed run had done it."""
    done = training.done
    due = done.step in (0, training.max_steps) or _due(done.step, training.config.train.eval_every)
    return due and done.evaluated_step != done.step


def _saving_due(training: Training) -> bool:
    """Not among bad steps, which may come of weights that have gone bad: what to go back to is older."""
    done = training.done
    due = bool(done.step) and _due(done.step, training.config.train.checkpoint_every) and not done.bad_in_a_row
    return due or done.step == training.max_steps


def train_step(training: Training, index: int) -> StepResult:
    """Optimizer step ``index`` (0 is the first): forward and backward over the accumulation steps, then the update.

    The loss is sum of token losses / trained tokens, both over the whole global batch: all micro-steps of all ranks.
    """
    config, mesh, plan, engine, objective = (
        training.config, training.mesh, training.plan, training.engine, training.objective
    )  # fmt: skip
    batches = [_train_batch(training, index, micro).to(mesh.device) for micro in range(plan.grad_accum_steps)]
    mine = [(objective.weight(batch), batch.num_trained, batch.num_tokens) for batch in batches]
    weight, trained_tokens, tokens = mesh.sum([sum(counts) for counts in zip(*mine, strict=True)])
    lr = learning_rate(config.optim, index, training.max_steps)
    engine.set_lr(lr)
    loss_sum = torch.zeros((), dtype=torch.float64, device=mesh.device)
    metric_sums = dict.fromkeys(objective.metrics, 0.0)
    for number, batch in enumerate(batches, 1):
        found = objective.loss(engine, batch)
        engine.backward(found.loss / weight)
        loss_sum += found.loss.detach().double()
        metric_sums = {name: total + found.metrics[name] for name, total in metric_sums.items()}
        if number < len(batches):
            engine.step()
    # Summed before the update: a loss that is not finite on one rank keeps all of them from updating.
    total, stop, *sums = mesh.sum([float(loss_sum), float(training.preemption.asked()), *metric_sums.values()])
    mean, norms = total / weight, training.done.grad_norms
    end = engine.step(lambda norm: why_bad(config.train, norms, mean, norm) is None)
    bad = why_bad(config.train, norms, mean, end.grad_norm)
    metrics = {name: value / weight for name, value in zip(metric_sums, sums, strict=True)}
    return StepResult(mean, end.grad_norm, lr, int(tokens), int(trained_tokens), stop > 0, bad, metrics)


def _train_batch(training: Training, index: int, micro_step: int) -> Any:
    """This rank's rows of a micro-step: a slice of the run's one global order, whatever the number of ranks."""
    start, count = train_rows(training.done.batch_index(index), micro_step, training.mesh.data_rank, training.plan)
    rows = row_ids(training.config.seed, training.train_set.num_rows, start, count)
    return micro_batch(training.train_set, rows.tolist(), training.config.data.packing, training.tokenizer.pad_token_id)


def _due(done: int, every: Optional[int]) -> bool:
    return every is not None and done % every == 0


def _log_step(training: Training, result: StepResult, step_s: float) -> None:
    done, ranks = training.done, training.ranks
    if not ranks.first:
        return
    tokens_per_s, memory = result.tokens / step_s, peak_memory_gib(ranks.device)
    training.tracker.log(done.step, {
        "train/loss": result.loss,
        "train/grad_norm": result.grad_norm,
        "train/lr": result.lr,
        **result.metrics,
        "train/trained_tokens": done.trained_tokens,
        "train/tokens_seen": done.tokens_seen,
        "perf/step_s": step_s,
        "perf/tokens_per_s_per_gpu": tokens_per_s / ranks.world_size,
        "mem/peak_gib": memory,
        **(bad_record(training, done.step - 1, result.bad) if result.bad else {}),
    })  # fmt: skip
    training.progress.update(done.step, loss=result.loss, tokens_per_s=tokens_per_s, mem_gib=memory, lr=result.lr,
                             grad_norm=result.grad_norm)  # fmt: skip
    write_status(training, step=done.step, max_steps=training.max_steps, loss=result.loss, tokens_per_s=tokens_per_s)


def write_status(training: Training, **changes: Any) -> None:
    """What ``ftdist status`` shows. A full disk must not end a run."""
    if training.saver.published is not None:
        step, when = training.saver.published
        changes |= {"last_checkpoint_step": step, "last_checkpoint_time": when}
    if training.ranks.first:
        with contextlib.suppress(OSError):
            training.run.write_status(state="running", **changes)


def _evaluate_all(training: Training) -> bool:
    """Loss of every held-out set, and sample answers. Returns False if asked to stop meanwhile: nothing is recorded."""
    metrics: Dict[str, float] = {}
    loss_sum, num_tokens = 0.0, 0
    with training.progress.during("evaluating") as say:
        for name, dataset in training.heldout.items():
            measured = evaluate(
                training.engine, training.objective, dataset, training.mesh, training.plan.micro_batch_size,
                training.config.data.packing, training.tokenizer.pad_token_id, training.preemption,
                report=partial(say_rows, say, name),
            )  # fmt: skip
            if measured is None:
                return False
            metrics[f"eval/{name}/loss"] = measured[0] / measured[1]
            loss_sum, num_tokens = loss_sum + measured[0], num_tokens + measured[1]
        rows = answer_prompts(training, say)
    if not metrics:
        return True
    training.done.evaluated_step = training.done.step
    training.done.eval_loss = loss_sum / num_tokens
    if training.ranks.first:
        step_done = training.done.step
        training.tracker.log(step_done, metrics)
        if rows:
            training.tracker.samples(step_done, rows)
        values = [f"{name.split('/')[1]} {value:.4f}" for name, value in metrics.items()]
        shown = ", ".join(values) if len(values) > 1 else f"{training.done.eval_loss:.4f}"
        training.progress.note(f"step {step_done}: held-out loss {shown}")
    return True


def _save(training: Training, due: bool = True) -> None:
    done = training.done
    state = {**done.as_dict(), "vocab_size": training.vocab_size, "run_id": training.config.track.run_id,
             "due": due}  # fmt: skip
    started = time.perf_counter()
    training.busy("saving")
    with training.progress.during("saving a checkpoint"):
        training.saver.save(state)
    training.busy("")
    took = time.perf_counter() - started
    if took > SAVE_WORTH_SAYING_S:
        training.progress.note(f"step {done.step}: training waited {took:.1f} s for the checkpoint")


def _stop_early(training: Training) -> bool:
    """Among bad steps nothing is saved, as above: what has been done since the newest checkpoint is done again."""
    if training.done.bad_in_a_row:
        training.progress.note("asked to stop while steps are bad: a resume goes on from the checkpoint before them")
    else:
        _save(training, due=_saving_due(training))
    training.saver.finish()
    write_status(training)
    return False
