"""One rank of a training run: ``python -m ftdist.train.main RUN_DIR``, started by torchrun.

This module builds the parts of a run, starts the training loop, and records how the run ended.
"""

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

import argparse
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from rich.console import Console
from transformers import PretrainedConfig, PreTrainedModel

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, DataError
from ftdist.base.output import accept_any_text
from ftdist.base.process import bind_rank
from ftdist.base.temporary import remove_leftovers
from ftdist.base.terminal import task
from ftdist.checkpoint.export import export_checkpoint
from ftdist.checkpoint.probes import check_saved
from ftdist.checkpoint.saver import Saver, hf_files
from ftdist.config.debug import DebugConfig
from ftdist.config.frozen import load_config
from ftdist.config.optim import optimizer_of
from ftdist.config.schema import Kernels, RunConfig
from ftdist.data.loader import PreparedSet, open_set
from ftdist.data.tokenizer import load_tokenizer
from ftdist.engine.engine import Engine, build_engine
from ftdist.method.build import METHODS
from ftdist.method.continued import start_from_adapter
from ftdist.model.attention_plan import AttentionPlan
from ftdist.model.export_trial import prove_export
from ftdist.model.forward import expert_load
from ftdist.model.isolation import prove_isolation
from ftdist.model.kernels import describe_kernels, prove_kernels, use_kernels
from ftdist.model.load import DTYPES, identity_of_base, load_model, model_config
from ftdist.model.parts import is_multimodal, processor_files
from ftdist.model.plan_choice import choose_plan
from ftdist.model.vocabulary import fit_vocabulary
from ftdist.objective.build import build_objective, choose_head
from ftdist.objective.coefficient import balance_coefficient
from ftdist.parallel import rank_process
from ftdist.parallel.energy import EnergyMeter
from ftdist.parallel.mesh import data_parallel
from ftdist.parallel.ranks import Ranks, exchange_path, on_rank_0, read_ranks, start_process_group
from ftdist.plan.batch import never_two_documents, plan_resumed
from ftdist.plan.deepspeed import read_settings
from ftdist.plan.disk import checkpoints_to_come, require_space
from ftdist.plan.run_length import num_steps
from ftdist.plan.warmup import fit_warmup
from ftdist.report.at_end import report_at_end, report_failure
from ftdist.run.identity import recorded_folder
from ftdist.run.locations import model_location
from ftdist.run.prepared import GENERAL, copy_bad_records, is_ready, read_meta
from ftdist.run.rundir import NEAR_LIMIT, STOPPED, RunDir
from ftdist.run.timeline import EXPORTING, LOADING
from ftdist.track.jsonl import record_gap, rewind_record
from ftdist.track.progress import Progress
from ftdist.track.report import final_report
from ftdist.track.tracker import Tracker
from ftdist.train.describe import (
    describe_attention,
    describe_experts,
    describe_gathered,
    describe_head,
    describe_layers,
)
from ftdist.train.evaluate import add_stop_tokens
from ftdist.train.loop import train
from ftdist.train.out_of_memory import explain_out_of_memory
from ftdist.train.preempt import Preemption
from ftdist.train.state import Training, TrainState
from ftdist.train.watchdog import Watchdog

LAST_SAVE_S = 30.0
"""After an error, time to wait for a checkpoint that is being written."""


def main(argv: Optional[List[str]] = None) -> None:
    """Run one rank, and end its process."""
    args = _parse(argv)
    rank_process.die_with_parent()
    path = Path(args.run_dir or ".")
    if args.to_store or args.from_store:
        path = exchange_path("ftdist/run_dir", path if args.to_store else None)
    run = RunDir.open(path)
    config = load_config(run.config)
    ranks = read_ranks(config)
    bind_rank(ranks.local_rank)
    attempt = args.attempt + ranks.restart
    rank_process.run_rank(run, ranks.rank, attempt, lambda: run_training(config, run, ranks, attempt))


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ftdist.train.main", description="One rank of a run, started by torchrun.")
    parser.add_argument("run_dir", nargs="?", help="a run directory")
    parser.add_argument("--attempt", type=int, default=0, help="number of this start of the run, from 0")
    parser.add_argument("--to-store", action="store_true", help="send the run directory to the other ranks")
    parser.add_argument("--from-store", action="store_true", help="receive the run directory from rank 0")
    args = parser.parse_args(argv)
    if (args.run_dir is None) != args.from_store:
        parser.error("give a run directory, or --from-store")
    return args


def run_training(config: RunConfig, run: RunDir, ranks: Ranks, attempt: int) -> int:
    """Start the process group, train, export, and record how the run ended. Returns the exit code of the process."""
    rank_process.quiet_libraries()
    preemption = Preemption(run, ranks.rank, attempt, config.launch.slurm.stop_before_limit_s)
    start_process_group(config, ranks)
    if ranks.first:  # the parent process is torchrun, or the process that the user's own torchrun started
        remove_leftovers(run.path / "*")  # files that a killed attempt had not yet renamed
        run.write_status(state="starting", attempt=attempt, pid=os.getppid(), host=platform.node())
        run.record_phase(LOADING, attempt, ranks=ranks.world_size)
    watchdog = Watchdog(run, ranks, attempt, config.launch.stall_timeout_s, config.launch.timeout_s)
    meter = EnergyMeter(run, ranks, attempt)
    training: Optional[Training] = None
    try:
        training = assemble(config, run, ranks, preemption)
        training.busy = watchdog.busy
        state = train(training)
        watchdog.close()
    except BaseException as error:
        error = explain_out_of_memory(error, config, ranks, training)
        # This comes before the tracker is closed, which may be slow.
        rank_process.record_failure(run, ranks.rank, attempt, error, watchdog.find_cause(error))
        watchdog.report_failure(error)
        if training is not None:
            training.saver.join(LAST_SAVE_S)  # the checkpoint that is being written is still valid
            training.progress.close()
            meter.close()
            if config.report.at_end and ranks.first:
                report_failure(run, training.tracker, error)
            training.tracker.finish(EXIT_FAILED)
        raise
    training.progress.close()
    finished, reason = state == "done", training.state.stop_reason
    if state == "preempted":
        reason = NEAR_LIMIT if preemption.near_limit else STOPPED
    meter.record()  # the report has it
    summary = end_training(config, run, attempt, training.tracker, reason) if finished and ranks.first else []
    # The exit code is 0 even if the run was stopped. Torchrun would treat any other code as a crash.
    training.tracker.finish(EXIT_PREEMPTED if state == "preempted" else EXIT_DONE)
    if ranks.first:
        run.write_status(state=state, exit_reason=reason)
        if finished:
            final_report(run, Console(highlight=False), summary)
    meter.close()
    return EXIT_DONE


def end_training(config: RunConfig, run: RunDir, attempt: int, tracker: Tracker, stopped: str = "") -> List[str]:
    """Export the model and write the report of a run that is done. Only rank 0 calls it.

    Args:
        stopped: Why ``train.stop_when`` has ended the run. Then its best checkpoint is exported.

    Returns:
        See ``report_at_end``.
    """
    if config.train.export or config.report.at_end:
        run.record_phase(EXPORTING, attempt)
    if config.train.export:
        with task("exporting the model"):
            best = run.best_checkpoint() if stopped else None
            export_checkpoint(best or run.find_checkpoint("last"), run.export, config)
    return report_at_end(run, tracker, stopped) if config.report.at_end else []


def assemble(config: RunConfig, run: RunDir, ranks: Ranks, preemption: Preemption) -> Training:
    """Build the parts of a run, and load the newest checkpoint if there is one. Every rank must call it.

    Raises:
        DataError: The data is not prepared.
        ConfigError: The model cannot be trained as the config asks, or the disk has no room for the checkpoints.
        CheckpointError: There are checkpoints, but none can be used.
    """
    _set_debug_modes(config.debug)
    folder = _data_folder(config, run, ranks)
    meta = read_meta(folder)
    plan = plan_resumed(config.batch, ranks.world_size, config.data.max_seq_len)
    train_set = open_set(folder, "train")
    tokenizer = load_tokenizer(config)
    arch, dtype = model_config(config), DTYPES[config.train.precision]
    one_document = never_two_documents(config)
    on_rank_0(ranks, lambda: prove_export(config, arch, len(tokenizer)))
    choice = on_rank_0(ranks, lambda: choose_plan(config, arch, ranks.device, dtype, one_document))
    kernels = on_rank_0(ranks, lambda: prove_kernels(config, arch, choice.plan, ranks.device, dtype, one_document))
    balance = on_rank_0(ranks, lambda: balance_coefficient(config.objective.router_aux_loss, arch))
    settings = read_settings(run.deepspeed, plan)
    with task("loading the model", ranks.first):
        model, vocab_size = _model_to_train(config, arch, choice.plan, settings, tokenizer, meta)
        if config.method.init_from and not on_rank_0(ranks, lambda: bool(run.checkpoint_folders())):
            start_from_adapter(model, config)
        engine = build_engine(config, model, settings, ranks.world_size)
    proof = prove_isolation(engine, vocab_size, ranks.device, dtype, choice.plan.describe(), one_document)
    mesh = data_parallel(ranks)
    head, why = choose_head(config, engine, vocab_size, mesh)
    about = describe_layers(config, engine, arch, choice.plan) + describe_head(config, head, vocab_size, why)
    about += describe_kernels(engine.module, kernels)
    if experts := describe_experts(config, arch, balance, bool(expert_load(engine))):
        about += experts + describe_gathered(config, engine.module)
    for line in describe_attention(config, arch, choice, proof, one_document) + about:
        _print_on_rank_0(ranks, line)
    max_steps = num_steps(config, train_set.num_rows, run.read_status().get("max_steps"))
    if note := fit_warmup(config.optim, max_steps):  # with train.epochs, a Slurm job knows the steps only now
        _print_on_rank_0(ranks, note)
    if ranks.first:
        _check_disk(config, run, engine, max_steps)
    others = processor_files(model_location(config), config.model.revision) if is_multimodal(arch) else []
    files = hf_files(engine.module, tokenizer, others)
    on_rank_0(ranks, lambda: check_saved(files, tokenizer, config))
    base = None if config.method.facts.whole else on_rank_0(ranks, lambda: identity_of_base(config))
    saver = Saver(engine, run, config, files, lambda text: _print_on_rank_0(ranks, text), base)
    state = _resume(saver, run, ranks, config.train.log_every)
    progress = Progress(ranks.first, max_steps, state.step if state else 0)
    saver.note = progress.note
    tracker = Tracker(config, run, ranks.rank, resumed=state is not None, note=progress.note)
    return Training(
        config=config, run=run, ranks=ranks, plan=plan, mesh=mesh, engine=engine,
        objective=build_objective(config, vocab_size, head, balance), tokenizer=tokenizer, vocab_size=vocab_size,
        train_set=train_set, heldout=open_heldout(folder), general=open_general(folder), prompts=meta["prompts"],
        max_steps=max_steps, tracker=tracker, progress=progress, preemption=preemption, saver=saver,
        state=state or TrainState(),
    )  # fmt: skip


def _model_to_train(
    config: RunConfig, arch: PretrainedConfig, plan: AttentionPlan, settings: Dict[str, Any], tokenizer: Any,
    meta: Dict[str, Any],
) -> Tuple[PreTrainedModel, int]:  # fmt: skip
    """Load the model, and apply the method of the run to it.

    Returns:
        The model, and the number of rows of its embedding that are real tokens.
    """
    method = METHODS[config.method.kind]
    model = load_model(config, arch, plan, settings, method.load_options(config))
    vocab_size = fit_vocabulary(
        model, tokenizer.num_known_tokens, len(tokenizer), config.model.pad_vocab_to_multiple_of
    )
    if config.model.kernels is not Kernels.none:
        use_kernels(model)
    add_stop_tokens(model.generation_config, tokenizer.eos_token_id, meta["sets"]["train"]["stop_token_id"])
    return method.apply(model, config), vocab_size


def _data_folder(config: RunConfig, run: RunDir, ranks: Ranks) -> Path:
    """Return the folder of the run's prepared data, and copy the list of bad records to the run directory."""
    folder = recorded_folder(run, config)
    if not is_ready(folder):
        found = f"no prepared data at {folder}"
        raise DataError(found, "data that ftdist prepare wrote", "run ftdist resume, which prepares it again")
    if ranks.first:
        copy_bad_records(folder, run.path)
    return folder


def _set_debug_modes(debug: DebugConfig) -> None:
    if debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(debug.detect_anomaly)


def open_heldout(folder: Path) -> Dict[str, PreparedSet]:
    """Open the held-out sets of prepared data, by name."""
    return {name: open_set(folder, name) for name in read_meta(folder)["sets"] if name != "train"}


def open_general(folder: Path) -> Dict[str, PreparedSet]:
    """Open the general sets of prepared data in which a token counts, by name. Earlier versions prepared none."""
    sets = read_meta(folder).get(GENERAL, {})
    return {name: open_set(folder, f"{GENERAL}/{name}") for name, stats in sets.items()
            if stats["trained_tokens"]}  # fmt: skip


def _print_on_rank_0(ranks: Ranks, text: str) -> None:
    if ranks.first:
        print(text, flush=True)


def _resume(saver: Saver, run: RunDir, ranks: Ranks, log_every: int) -> Optional[TrainState]:
    """Load the newest undamaged checkpoint, and remove the records of later steps. Returns None if there is none."""
    saved = saver.load_newest()
    if saved is None:
        return None
    state = TrainState.from_dict(saved)
    if ranks.first:
        rewind_record(run, state.step, evaluated=state.evaluated_step == state.step)
        if gap := record_gap(run, state.step, log_every):
            _print_on_rank_0(ranks, gap)
    _print_on_rank_0(ranks, f"resumed after step {state.step}")
    return state


def _check_disk(config: RunConfig, run: RunDir, engine: Engine, max_steps: int) -> None:
    """Check that all checkpoints of the run will fit on the disk."""
    trained = sum(math.prod(shape) for shape in engine.trained_shapes().values())
    require_space(run.path, trained, optimizer_of(config.optim), checkpoints_to_come(config, run, max_steps))


if __name__ == "__main__":
    resume_collector()
    accept_any_text()
    main(sys.argv[1:])
