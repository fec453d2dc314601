"""Compute the held-out loss of a checkpoint: ``python -m ftdist.serve.evaluate RUN_DIR``, on any number of ranks.

``--config`` names another run.yaml whose data is evaluated instead of the run's own. With ``--tasks``, the checkpoint
and its base model answer questions instead.
"""

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

import argparse
import json
import shutil
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional

from rich.console import Console

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.json_files import read_json
from ftdist.base.output import accept_any_text
from ftdist.base.tables import plain_table, show_table
from ftdist.base.temporary import remove_leftovers, temporary_path
from ftdist.base.terminal import task
from ftdist.checkpoint.export import export_checkpoint
from ftdist.config.frozen import load_config
from ftdist.config.schema import RunConfig
from ftdist.parallel import rank_process
from ftdist.parallel.ranks import Ranks, exchange_path, read_ranks, start_process_group
from ftdist.run.file_names import EXPORT_MARK
from ftdist.run.identity import recorded_folder
from ftdist.run.prepared import GENERAL
from ftdist.run.rundir import RunDir, checkpoint_step, read_manifest
from ftdist.run.task_results import task_places
from ftdist.serve.opened import open_model
from ftdist.serve.tasks import answer_alone, compare_on_tasks
from ftdist.track.gain import DocumentLosses
from ftdist.track.report import perplexity
from ftdist.train.evaluate import evaluate, report_rows
from ftdist.train.main import open_general, open_heldout

Losses = Dict[str, DocumentLosses]
"""The losses and metrics of each held-out set, and of each general set, whose name begins with ``general/``."""


def main(argv: Optional[List[str]] = None) -> None:
    """Run one rank of the evaluation, and end its process."""
    parser = argparse.ArgumentParser(prog="ftdist.serve.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", help="a run directory")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step number")
    parser.add_argument("--config", help="a run.yaml whose data is evaluated; its folder has a deepspeed.json")
    parser.add_argument("--tasks", help="tasks that are answered instead: names or files, with commas between them")
    parser.add_argument("--base", action="store_true", help="only the base model of the config answers the tasks")
    parser.add_argument("--attempt", type=int, default=0, help="number in the names of the log files")
    args = parser.parse_args(argv)
    rank_process.die_with_parent()
    run = RunDir.open(args.run_dir)
    config, settings = load_config(args.config or run.config), run.deepspeed
    if args.config:
        settings = Path(args.config).with_name(run.deepspeed.name)
    ranks = read_ranks(config)
    if args.base:
        work = partial(_answer_alone, config, settings, run, ranks, args.tasks)
    else:
        work = partial(_run, config, settings, run, ranks, args.checkpoint, args.tasks)
    rank_process.run_rank(run, ranks.rank, args.attempt, work)


def _answer_alone(config: RunConfig, settings_file: Path, run: RunDir, ranks: Ranks, tasks: str) -> int:
    rank_process.quiet_libraries()
    start_process_group(config, ranks)
    answer_alone(config, settings_file, run, ranks, task_places(tasks))
    return EXIT_DONE


def _run(config: RunConfig, settings_file: Path, run: RunDir, ranks: Ranks, which: str, tasks: Optional[str]) -> int:
    rank_process.quiet_libraries()
    checkpoint = run.find_checkpoint(which)
    kept = run.export / EXPORT_MARK
    whole = config.method.facts.whole
    exported = not whole or _step_of_export(kept) == checkpoint_step(checkpoint)
    scratch = temporary_path(run.path / "eval")
    folder = checkpoint if not whole else run.export if exported else scratch / checkpoint.name
    if ranks.first:
        remove_leftovers(run.path / "eval")
    if ranks.first and not exported:
        scratch.mkdir()
        with task(f"reading {checkpoint.name}"):
            export_checkpoint(checkpoint, folder, load_config(run.config))
    folder = exchange_path("ftdist/eval_model", folder if ranks.first else None)
    start_process_group(config, ranks)
    if tasks:
        compare_on_tasks(config, settings_file, run, checkpoint, folder, ranks, task_places(tasks))
    else:
        losses = measure(config, settings_file, folder, ranks)
        if ranks.first:
            _report(run, checkpoint, losses)
    if ranks.first:
        shutil.rmtree(scratch, ignore_errors=True)
    return EXIT_DONE


def measure(config: RunConfig, settings_file: Path, model_folder: Path, ranks: Ranks) -> Losses:
    """Compute the loss and the metrics of a model on each held-out and general set of the config's data.

    Every rank must call it.

    Args:
        settings_file: The settings of DeepSpeed (``deepspeed.json``).
        model_folder: The model in Hugging Face format; a checkpoint if the method trains only a part of it.

    Raises:
        ConfigError: The config has no held-out data.
        CheckpointError: The checkpoint is damaged, or was trained on another base model.
    """
    data = recorded_folder(RunDir(settings_file.parent), config)
    heldout = open_heldout(data)
    if not heldout:
        raise ConfigError("the config has no held-out data", "data.heldout or data.heldout_share",
                          "set one of them, for example +data.heldout.mine.path=test.jsonl")  # fmt: skip
    sets = {**heldout, **{f"{GENERAL}/{name}": dataset for name, dataset in open_general(data).items()}}
    opened = open_model(config, settings_file, model_folder, ranks)
    losses: Losses = {}
    with task("evaluating", ranks.first) as say:
        for name, dataset in sets.items():
            measured = evaluate(
                opened.engine, opened.objective, dataset, opened.mesh, opened.plan.micro_batch_size,
                config.data.packing, opened.tokenizer.pad_token_id, report=partial(report_rows, say, name),
            )  # fmt: skip
            assert measured is not None
            losses[name] = measured
    return losses


def _step_of_export(mark: Path) -> Optional[int]:
    """Return the step of an export. None if there is none, or if its mark is damaged."""
    with suppress(OSError, ValueError, LookupError):
        return int(read_json(mark)["step"])
    return None


def _report(run: RunDir, checkpoint: Path, losses: Losses) -> None:
    """Print the table of losses, and append all metrics to eval.jsonl."""
    table = plain_table("set", "loss (nats per token)", "perplexity", "accuracy", "tokens")
    means = {name: measured.means() for name, measured in losses.items()}
    for name, found in means.items():
        cells = [f"{found['loss']:.4f}", perplexity(found["loss"]), f"{100 * found['accuracy']:.1f} %"]
        table.add_row(name, *cells, f"{losses[name].weight:,}")
    print(f"held-out loss of {checkpoint.name}")
    show_table(Console(highlight=False), table)
    record = {
        "step": read_manifest(checkpoint)["step"],
        "time": time.time(),
        **{
            f"{name if name.startswith(f'{GENERAL}/') else f'eval/{name}'}/{metric}": value
            for name, found in means.items()
            for metric, value in found.items()
        },
    }
    with (run.path / "eval.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    resume_collector()
    accept_any_text()
    main(sys.argv[1:])
