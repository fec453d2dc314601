"""``python -m ftdist.serve.evaluate RUN_DIR``: held-out loss of a checkpoint, on as many ranks as are started.

``--config`` names another run.yaml whose data is evaluated instead of the run's own.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from rich.console import Console

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.tables import plain_table, show_table
from ftdist.base.temporary import beside, remove_rests
from ftdist.base.terminal import task
from ftdist.checkpoint.export import MARK, export_checkpoint
from ftdist.config.frozen import load_config
from ftdist.config.schema import ModelConfig, RunConfig
from ftdist.data.tokenizer import load_tokenizer
from ftdist.engine.engine import build_eval_engine
from ftdist.model.attention import choose_backend
from ftdist.model.load import DTYPES, load_model, model_config
from ftdist.model.vocabulary import fit_vocabulary
from ftdist.parallel import ranks as rank_setup
from ftdist.parallel.ranks import Ranks
from ftdist.plan.batch import BatchPlan
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.run.prepared import data_folder
from ftdist.run.rundir import RunDir, checkpoint_step, read_json, read_manifest
from ftdist.track.report import perplexity
from ftdist.train.evaluate import evaluate, say_rows
from ftdist.train.main import open_heldout

Losses = Dict[str, Tuple[float, int]]


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="ftdist.serve.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step")
    parser.add_argument("--config", help="a run.yaml with the data to evaluate on")
    parser.add_argument("--attempt", type=int, default=0)
    args = parser.parse_args(argv)
    rank_setup.die_with_parent()
    run = RunDir.open(args.run_dir)
    config = load_config(args.config or run.config)
    ranks = rank_setup.read_ranks(config)
    rank_setup.redirect_output(run, ranks.rank, args.attempt)
    try:
        _run(config, run, ranks, run.find_checkpoint(args.checkpoint))
    except BaseException as error:  # the launcher shows it as one message
        rank_setup.leave(rank_setup.record_failure(run, ranks.rank, args.attempt, error), in_step=False)
    rank_setup.leave(EXIT_DONE, in_step=True)


def _run(config: RunConfig, run: RunDir, ranks: Ranks, checkpoint: Path) -> None:
    rank_setup.quiet_libraries()
    kept = run.export / MARK
    exported = kept.is_file() and read_json(kept)["step"] == checkpoint_step(checkpoint)
    scratch = beside(run.path / "eval")
    folder = run.export if exported else scratch / checkpoint.name
    if ranks.first:
        remove_rests(run.path / "eval")
    if ranks.first and not exported:
        scratch.mkdir()
        with task(f"reading {checkpoint.name}"):
            export_checkpoint(checkpoint, folder, load_config(run.config))
    folder = rank_setup.exchange_path("ftdist/eval_model", folder if ranks.first else None)
    rank_setup.start_process_group(config, ranks)
    losses = measure(config, folder, ranks)
    if ranks.first:
        _report(run, checkpoint, losses)
        shutil.rmtree(scratch, ignore_errors=True)


def measure(config: RunConfig, model_folder: Path, ranks: Ranks) -> Losses:
    """(sum of token losses, tokens) of the model in ``model_folder`` on each held-out set of the config's data."""
    data = data_folder(config)
    heldout = open_heldout(data)
    if not heldout:
        raise ConfigError("the config holds no held-out data", "data.heldout or data.heldout_share",
                          "e.g. +data.heldout.mine.path=test.jsonl")  # fmt: skip
    tokenizer = load_tokenizer(config)
    config = replace(config, model=replace(ModelConfig(), path=str(model_folder), attention=config.model.attention,
                                           trust_remote_code=config.model.trust_remote_code))  # fmt: skip
    plan = BatchPlan(config.batch.micro_batch_size, 1, ranks.world_size, config.data.max_seq_len)
    settings = deepspeed_settings(config, plan)
    arch = model_config(config)
    backend = choose_backend(config.model.attention, arch, ranks.device, DTYPES[config.train.precision])
    with task("loading the model", ranks.first):
        model = load_model(config, arch, backend, settings)
        vocab_size = fit_vocabulary(model, len(tokenizer), len(tokenizer), 1)
        engine = build_eval_engine(model.eval(), settings, ranks.device)
    losses: Losses = {}
    with task("evaluating", ranks.first) as say:
        for name, dataset in heldout.items():
            measured = evaluate(
                engine, dataset, plan.micro_batch_size, config.data.packing, tokenizer.pad_token_id, vocab_size, ranks,
                report=partial(say_rows, say, name),
            )  # fmt: skip
            assert measured is not None
            losses[name] = measured
    return losses


def _report(run: RunDir, checkpoint: Path, losses: Losses) -> None:
    table = plain_table("set", "loss (nats a token)", "perplexity", "tokens")
    for name, (loss, tokens) in losses.items():
        table.add_row(name, f"{loss / tokens:.4f}", perplexity(loss / tokens), f"{tokens:,}")
    print(f"held-out loss of {checkpoint.name}")
    show_table(Console(highlight=False), table)
    record = {
        "step": read_manifest(checkpoint)["step"],
        "time": time.time(),
        **{f"eval/{name}/loss": loss / tokens for name, (loss, tokens) in losses.items()},
    }
    with (run.path / "eval.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
