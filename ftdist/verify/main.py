"""``python -m ftdist.verify.main FOLDER``: one rank of the checks. Rank 0 looks at the data before ranks meet."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import List, Optional

from ftdist.batching import plan_batch
from ftdist.config import RunConfig, dump_config, load_config
from ftdist.data.order import permutation, row_ids, train_rows
from ftdist.data.prepare import prepare
from ftdist.errors import EXIT_DONE, ConfigError, DataError, FtdistError
from ftdist.model.check import check_model
from ftdist.model.facts import check_fit
from ftdist.model.load import model_config
from ftdist.rundir import RunDir
from ftdist.train import ranks as rank_setup
from ftdist.train.ranks import Ranks
from ftdist.verify import checks, tokens
from ftdist.verify.numbers import NUMBERS, number_checks
from ftdist.verify.trial import Trial, make_trial, use_generated_chats

MODEL, ORDER = "the model can be trained", "data order"


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="ftdist.verify.main", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="holds run.yaml; checks are written there")
    parser.add_argument("--wanted-ranks", type=int, default=1, help="ranks of the run")
    parser.add_argument("--quick", action="store_true", help="a stand-in, and no saving")
    args = parser.parse_args(argv)
    rank_setup.die_with_parent()
    run = RunDir.open(args.folder)
    config = load_config(run.config)
    ranks = rank_setup.read_ranks(config)
    rank_setup.redirect_output(run, ranks.rank, 0)
    os.dup2(2, 1)  # what a run prints of itself is not wanted here
    try:
        _run(config, run, ranks, args.wanted_ranks, args.quick)
    except BaseException as error:  # the launcher shows it as one message
        rank_setup.leave(rank_setup.record_failure(run, ranks.rank, 0, error), in_step=False)
    rank_setup.leave(EXIT_DONE, in_step=True)


def _run(config: RunConfig, run: RunDir, ranks: Ranks, wanted_ranks: int, quick: bool) -> None:
    rank_setup.quiet_libraries()
    file = run.path / "trial.yaml"
    if ranks.first:
        steps = before_ranks(config, run.path, wanted_ranks, ranks.world_size, quick)
        file.write_text(dump_config(steps) if steps else "", encoding="utf-8")
    file = rank_setup.exchange_path("ftdist/trial", file if ranks.first else None)
    if not file.stat().st_size:
        return
    rank_setup.start_process_group(config, ranks)

    number_checks_or_cause(load_config(file), run.path, ranks, quick)


def number_checks_or_cause(config: RunConfig, folder: Path, ranks: Ranks, quick: bool) -> None:
    """The checks of numbers. What would stop the run itself before its first step, on all ranks alike, fails the one
    that was to come next; those after it are not run."""

    def report(check: checks.Check) -> None:
        if ranks.first:
            checks.append(folder, check)

    try:
        number_checks(config, folder, ranks, quick, report)
    except ConfigError as error:
        done = {check.name for check in checks.read(folder)}
        left = [name for name in NUMBERS if name not in done]
        for name in left:
            cause = " ".join(str(error).split())
            report(checks.failed(name, cause) if name == left[0] else checks.not_run(name, "the run would stop before"))


def before_ranks(config: RunConfig, folder: Path, wanted_ranks: int, ranks: int, quick: bool) -> Optional[RunConfig]:
    """Checks of data. Returns what the ranks are to run; None where there is nothing to run."""
    checks.append(folder, model := _check_model(config))
    if model.outcome == checks.FAILED:
        return None
    trial = make_trial(config, folder, wanted_ranks, ranks, quick)
    rows = _check_data(trial, folder, quick)
    try:
        prepared = prepare(trial.steps)
    except FtdistError:  # said already; numbers do not depend on the data
        use_generated_chats(trial.steps, trial)
        prepared = prepare(trial.steps)
    checks.append(folder, _order(config, rows or _rows(prepared), wanted_ranks))
    (folder / checks.NOTES).write_text(json.dumps(trial.notes), encoding="utf-8")
    return trial.steps


def _check_model(config: RunConfig) -> checks.Check:
    """What a run does before it is frozen."""
    try:
        if config.model.hub:
            model_config(config)
    except ConfigError as error:  # the hub cannot be reached from here
        return checks.not_run(MODEL, error.found)
    try:
        facts = check_model(config)
        check_fit(config, facts)
    except ConfigError as error:
        return checks.failed(MODEL, " ".join(str(error).split()))
    return checks.passed(MODEL, f"{facts.model_type}, {facts.parameters:,} parameters")


def _rows(folder: Path) -> int:
    from ftdist.data.cache import read_meta

    return int(read_meta(folder)["sets"]["train"]["rows"])


def _check_data(trial: Trial, folder: Path, quick: bool) -> int:
    """Rows of the run's own data (of its first documents); 0 where it cannot be read."""
    if trial.tokenizer_missing:
        checks.append(folder, checks.not_run(f"tokenisation, {len(tokens.NAMES)} checks", trial.tokenizer_missing))
        return 0
    try:
        prepared = prepare(trial.data)
        found = tokens.token_checks(trial.data, prepared, trial.vocab_rows, quick)
    except (ConfigError, DataError) as error:
        outcome = checks.not_run if ".hub=" in error.found else checks.failed  # the hub cannot be reached from here
        checks.append(folder, outcome("the data can be trained on", " ".join(str(error).split())))
        return 0
    for check in found:
        checks.append(folder, check)
    return _rows(prepared)


def _order(config: RunConfig, rows: int, wanted_ranks: int) -> checks.Check:
    """The rows of the first epoch, as the ranks take them, for this number of ranks and another."""
    batch, length = config.batch, config.data.max_seq_len
    size, taken = batch.global_batch_size, {}
    others = [n for n in (1, 2, 4, 8, 16) if n != wanted_ranks and size % (n * batch.micro_batch_size) == 0]
    for world_size in (wanted_ranks, *others[:1]):
        plan = plan_batch(type(batch)(size, batch.micro_batch_size), world_size, length)
        order: List[int] = []
        for step in range(-(-rows // size)):
            for micro in range(plan.grad_accum_steps):
                for rank in range(world_size):
                    start, number = train_rows(step, micro, rank, plan)
                    order += row_ids(config.seed, rows, start, number).tolist()
        taken[world_size] = order[:rows]
    expected = permutation(config.seed, 0, rows).tolist()
    problems = [f"{n} ranks take other rows" for n, order in taken.items() if order != expected]
    if sorted(expected) != list(range(rows)):
        problems.append("an epoch does not take every row once")
    ranks = " and ".join(map(str, taken))
    return checks.judge(ORDER, problems, f"rows {expected[0]} … {expected[-1]} of {rows} on {ranks} ranks")


if __name__ == "__main__":
    main(sys.argv[1:])
