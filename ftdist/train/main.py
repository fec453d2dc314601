"""``python -m ftdist.train.main RUN_DIR``: one rank of a run. Wiring only; started by torchrun."""

import argparse
import math
import os
import platform
import sys
from pathlib import Path
from typing import Dict, List, Optional

import torch
from rich.console import Console

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, DataError
from ftdist.base.terminal import task
from ftdist.checkpoint.export import export_checkpoint
from ftdist.checkpoint.saver import Saver, hf_files
from ftdist.config.schema import DebugConfig, RunConfig, load_config
from ftdist.data.loader import PreparedSet, open_set
from ftdist.data.tokenizer import load_tokenizer
from ftdist.engine.engine import Engine, build_engine
from ftdist.method.build import METHODS
from ftdist.model.attention import choose_backend
from ftdist.model.isolation import prove_isolation
from ftdist.model.load import DTYPES, load_model, model_config
from ftdist.model.vocabulary import fit_vocabulary
from ftdist.objective.build import build_objective
from ftdist.parallel import rank_process
from ftdist.parallel.mesh import data_parallel
from ftdist.parallel.ranks import Ranks, exchange_path, read_ranks, start_process_group
from ftdist.plan.batch import plan_resumed
from ftdist.plan.deepspeed import read_settings
from ftdist.plan.disk import checkpoints_to_come, require_space
from ftdist.plan.optimizers import optimizer_of
from ftdist.plan.run_length import num_steps
from ftdist.run.prepared import data_folder, is_ready, read_meta
from ftdist.run.rundir import STOPPED, RunDir
from ftdist.track.jsonl import record_gap, rewind_record
from ftdist.track.progress import Progress
from ftdist.track.report import final_report
from ftdist.track.tracker import Tracker
from ftdist.train.bad_steps import restored
from ftdist.train.evaluate import set_stop_tokens
from ftdist.train.loop import train
from ftdist.train.out_of_memory import explained
from ftdist.train.preempt import Preemption
from ftdist.train.state import Done, Training
from ftdist.train.watchdog import Watchdog

LAST_SAVE_S = 30.0


def main(argv: Optional[List[str]] = None) -> None:
    args = _parse(argv)
    rank_process.die_with_parent()
    path = Path(args.run_dir or ".")
    if args.to_store or args.from_store:
        path = exchange_path("ftdist/run_dir", path if args.to_store else None)
    run = RunDir.open(path)
    config = load_config(run.config)
    ranks = read_ranks(config)
    attempt = args.attempt + ranks.restart
    rank_process.redirect_output(run, ranks.rank, attempt)
    try:
        code = run_training(config, run, ranks, attempt)
    except BaseException as error:  # whatever it was, the launcher shows it as one message
        rank_process.leave(rank_process.record_failure(run, ranks.rank, attempt, error), in_step=False)
    rank_process.leave(code, in_step=True)


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ftdist.train.main", description="One rank of a run; started by torchrun.")
    parser.add_argument("run_dir", nargs="?", help="a frozen run directory")
    parser.add_argument("--attempt", type=int, default=0, help="number of this start of the run, from 0")
    parser.add_argument("--to-store", action="store_true", help="tell the other ranks the run directory")
    parser.add_argument("--from-store", action="store_true", help="ask rank 0 for the run directory")
    args = parser.parse_args(argv)
    if (args.run_dir is None) != args.from_store:
        parser.error("give a run directory, or --from-store")
    return args


def run_training(config: RunConfig, run: RunDir, ranks: Ranks, attempt: int) -> int:
    """Everything between the process group and the exit code."""
    rank_process.quiet_libraries()
    preemption = Preemption(run, ranks.rank, attempt)
    start_process_group(config, ranks)
    if ranks.first:  # the parent is torchrun, or what the user's own torchrun has started
        run.write_status(state="starting", attempt=attempt, pid=os.getppid(), host=platform.node())
    watchdog = Watchdog(run, ranks, attempt, config.launch.stall_timeout_s, config.launch.timeout_s)
    training: Optional[Training] = None
    try:
        training = assemble(config, run, ranks, preemption)
        training.busy = watchdog.busy
        finished = train(training)
        watchdog.close()
    except BaseException as error:
        error = explained(error, config, ranks, training)
        # Before a tracker that may be slow.
        rank_process.record_failure(run, ranks.rank, attempt, error, watchdog.blame_for(error))
        watchdog.announce(error)
        if training is not None:
            training.saver.join(LAST_SAVE_S)  # what failed does not concern a checkpoint that is being written
            training.progress.close()
            training.tracker.finish(EXIT_FAILED)
        raise
    training.progress.close()
    if finished and ranks.first and config.train.export:
        with task("exporting the model"):
            export_checkpoint(run.find_checkpoint("last"), run.export, config)
    # A run that stops for preemption ends well: torchrun would take any other code for a crash.
    training.tracker.finish(EXIT_DONE if finished else EXIT_PREEMPTED)
    if ranks.first:
        run.write_status(state="done" if finished else "preempted", exit_reason="" if finished else STOPPED)
        if finished:
            final_report(run, Console(highlight=False))
    return EXIT_DONE


def assemble(config: RunConfig, run: RunDir, ranks: Ranks, preemption: Preemption) -> Training:
    """Data, model, engine, and where the run stands, in the order in which each needs the one before."""
    _set_debug_modes(config.debug)
    folder = data_folder(config)
    if not is_ready(folder):
        found = f"no prepared data at {folder}"
        raise DataError(found, "the cache that prepare wrote", "ftdist resume prepares it again")
    meta = read_meta(folder)
    plan = plan_resumed(config.batch, ranks.world_size, config.data.max_seq_len)
    train_set = open_set(folder, "train")
    tokenizer = load_tokenizer(config)
    arch = model_config(config)
    dtype = DTYPES[config.train.precision]
    backend = choose_backend(config.model.attention, arch, ranks.device, dtype)
    settings = read_settings(run.deepspeed, plan)
    with task("loading the model", ranks.first):
        method = METHODS[config.method.kind]
        model = load_model(config, arch, backend, settings, method.load_options(config))
        vocab_size = fit_vocabulary(
            model, tokenizer.num_known_tokens, len(tokenizer), config.model.pad_vocab_to_multiple_of
        )
        set_stop_tokens(model.generation_config, tokenizer.eos_token_id, meta["sets"]["train"]["stop_token_id"])
        engine = build_engine(config, method.apply(model, config), settings, ranks.world_size)
    one_document = never_two_documents(config)
    proof = prove_isolation(engine, vocab_size, ranks.device, dtype, backend.name, one_document)
    moved = "" if one_document else f"changing a document moves the others' logits by {proof.crossing:g}, "
    _say(ranks, f"attention: {backend.name}; {moved}changing a token moves those before it by {proof.looking_ahead:g}")
    max_steps = num_steps(config, train_set.num_rows)
    if ranks.first:
        _check_disk(config, run, engine, max_steps)
    saver = Saver(engine, run, config, hf_files(engine.module, tokenizer), lambda text: _say(ranks, text))
    done = _resume(saver, run, ranks, config.train.log_every)
    progress = Progress(ranks.first, max_steps, done.step if done else 0)
    saver.note = progress.note
    tracker = Tracker(config, run, ranks.rank, resumed=done is not None, note=progress.note)
    return Training(
        config=config, run=run, ranks=ranks, plan=plan, mesh=data_parallel(ranks), engine=engine,
        objective=build_objective(config, vocab_size), tokenizer=tokenizer, vocab_size=vocab_size,
        train_set=train_set, heldout=open_heldout(folder), prompts=meta["prompts"], max_steps=max_steps,
        tracker=tracker, progress=progress, preemption=preemption, saver=saver, done=done or Done(),
    )  # fmt: skip


def never_two_documents(config: RunConfig) -> bool:
    """Whether the model sees one document at a time."""
    return not config.data.packing and config.batch.micro_batch_size == 1


def _set_debug_modes(debug: DebugConfig) -> None:
    if debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(debug.detect_anomaly)


def open_heldout(folder: Path) -> Dict[str, PreparedSet]:
    return {name: open_set(folder, name) for name in read_meta(folder)["sets"] if name != "train"}


def _say(ranks: Ranks, text: str) -> None:
    if ranks.first:
        print(text, flush=True)


def _resume(saver: Saver, run: RunDir, ranks: Ranks, log_every: int) -> Optional[Done]:
    """Continue from the newest good checkpoint, if there is one: engine, counters, the record up to it."""
    state = saver.load_newest()
    if state is None:
        return None
    done = restored(state)
    if ranks.first:
        rewind_record(run, done.step, evaluated=done.evaluated_step == done.step)
        if gap := record_gap(run, done.step, log_every):
            _say(ranks, gap)
    _say(ranks, f"resumed after step {done.step}")
    return done


def _check_disk(config: RunConfig, run: RunDir, engine: Engine, max_steps: int) -> None:
    """Check that all checkpoints of the run will fit on the disk."""
    trained = sum(math.prod(shape) for shape in engine.trained_shapes().values())
    require_space(run.path, trained, optimizer_of(config), checkpoints_to_come(config, run, max_steps))


if __name__ == "__main__":
    main(sys.argv[1:])
