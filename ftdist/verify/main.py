"""``python -m ftdist.verify.main FOLDER``: one rank of the checks. Rank 0 looks at the data before ranks meet."""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import List, Optional

from ftdist.base.errors import EXIT_DONE, ConfigError, DataError, FtdistError
from ftdist.config.schema import RunConfig, dump_config, load_config
from ftdist.data.prepare import prepare
from ftdist.data.row_order import row_ids, train_rows
from ftdist.model.check import check_model
from ftdist.parallel import rank_process
from ftdist.parallel.ranks import Ranks, exchange_path, read_ranks, start_process_group
from ftdist.plan.batch import BatchPlan, plan_resumed
from ftdist.plan.run_length import num_steps
from ftdist.run import checks
from ftdist.run.model_facts import check_fit
from ftdist.run.prepared import read_meta
from ftdist.run.rundir import RunDir
from ftdist.train.schedule import learning_rate
from ftdist.verify import tokens
from ftdist.verify.numbers import NUMBERS, number_checks
from ftdist.verify.reference import expected_lr, row_order
from ftdist.verify.trial import Missing, Trial, make_trial, missing_model, missing_tokenizer, use_generated_chats

MODEL, TOKENIZER, DATA = "the model can be trained", "the tokenizer can be used", "the data can be trained on"
ORDER, RATE = "data order", "learning rate"
SAME_RATE = 1e-12  # of the peak


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="ftdist.verify.main", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="holds run.yaml; checks are written there")
    parser.add_argument("--wanted-ranks", type=int, default=1, help="ranks of the run")
    parser.add_argument("--quick", action="store_true", help="a stand-in, and no saving")
    args = parser.parse_args(argv)
    rank_process.die_with_parent()
    run = RunDir.open(args.folder)
    config = load_config(run.config)
    ranks = read_ranks(config)
    rank_process.redirect_output(run, ranks.rank, 0)
    os.dup2(2, 1)  # what a run prints of itself is not wanted here
    try:
        _run(config, run, ranks, args.wanted_ranks, args.quick)
    except BaseException as error:  # the launcher shows it as one message
        rank_process.leave(rank_process.record_failure(run, ranks.rank, 0, error), in_step=False)
    rank_process.leave(EXIT_DONE, in_step=True)


def _run(config: RunConfig, run: RunDir, ranks: Ranks, wanted_ranks: int, quick: bool) -> None:
    rank_process.quiet_libraries()
    file = run.path / "trial.yaml"
    if ranks.first:
        steps = before_ranks(config, run.path, wanted_ranks, ranks.world_size, quick)
        file.write_text(dump_config(steps) if steps else "", encoding="utf-8")
    file = exchange_path("ftdist/trial", file if ranks.first else None)
    if not file.stat().st_size:
        return
    start_process_group(config, ranks)

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
    no_model = missing_model(config)
    checks.append(folder, model := _check_model(config, no_model))
    if model.outcome == checks.FAILED:
        return None
    try:
        missing = Missing(no_model, missing_tokenizer(config, no_model))
    except ConfigError as error:
        checks.append(folder, checks.failed(TOKENIZER, " ".join(str(error).split())))
        return None
    trial = make_trial(config, folder, wanted_ranks, ranks, quick, missing)
    own = _check_data(trial, folder, quick)
    if own is None and not trial.tokenizer_missing and not quick:  # said already; numbers do not depend on the data
        use_generated_chats(trial.steps, trial)
    try:
        prepared = prepare(trial.steps)
    except FtdistError:  # nothing of it is trained in rows as short as the stand-in's
        use_generated_chats(trial.steps, trial)
        prepared = prepare(trial.steps)
    checks.append(folder, data_order(config, _rows(own or prepared), wanted_ranks))
    checks.append(folder, rate_is_as_configured(config, _max_steps(config, trial, own)))
    (folder / checks.NOTES).write_text(json.dumps(trial.notes), encoding="utf-8")
    return trial.steps


def _check_model(config: RunConfig, missing: Optional[ConfigError]) -> checks.Check:
    """What a run does before it is frozen."""
    if missing:
        return checks.not_run(MODEL, missing.found)
    try:
        facts = check_model(config)
        check_fit(config, facts)
    except ConfigError as error:
        return checks.failed(MODEL, " ".join(str(error).split()))
    return checks.passed(MODEL, f"{facts.model_type}, {facts.parameters:,} parameters")


def _check_data(trial: Trial, folder: Path, quick: bool) -> Optional[Path]:
    """The run's own data (the first documents of each source), prepared; None where it cannot be."""
    if trial.tokenizer_missing:
        checks.append(folder, checks.not_run(f"tokenisation, {len(tokens.NAMES)} checks", trial.tokenizer_missing))
        _check_records(trial, folder)
        return None
    try:
        prepared = prepare(trial.data)
        found = tokens.token_checks(trial.data, prepared, trial.vocab_rows, quick)
    except (ConfigError, DataError) as error:
        outcome = checks.not_run if ".hub=" in error.found else checks.failed  # the hub cannot be reached from here
        checks.append(folder, outcome(DATA, " ".join(str(error).split())))
        return None
    for check in found:
        checks.append(folder, check)
    return prepared


def _check_records(trial: Trial, folder: Path) -> None:
    """Without a tokenizer: whether they can be read."""
    try:
        tokens.read_documents(trial.data, from_hub=False)
    except (ConfigError, DataError) as error:
        checks.append(folder, checks.failed(DATA, " ".join(str(error).split())))


def _rows(folder: Path) -> int:
    return int(read_meta(folder)["sets"]["train"]["rows"])


def data_order(config: RunConfig, rows: int, wanted_ranks: int) -> checks.Check:
    """The rows of two epochs, as the ranks take them, for this number of ranks and another."""
    size, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    if size == 1:
        return checks.not_run(ORDER, "batch.global_batch_size=1: no other number of ranks can share one row")
    # Another number of ranks with as many rows at a time, else with fewer.
    other = next((n, m) for m in range(micro, 0, -1) for n in range(1, size + 1)
                 if n != wanted_ranks and size % (n * m) == 0)  # fmt: skip
    expected = row_order(config.seed, rows, 2 * rows)
    problems = []
    for ranks, at_once in ((wanted_ranks, micro), other):
        plan = plan_resumed(replace(config.batch, micro_batch_size=at_once), ranks, config.data.max_seq_len)
        if _rows_taken(config.seed, rows, plan) != expected:
            problems.append(f"{ranks} ranks take other rows than the reference")
    if sorted(expected[:rows]) != list(range(rows)):
        problems.append("an epoch does not take every row once")
    return checks.judge(ORDER, problems, f"rows {expected[0]} … {expected[-1]} of two epochs of {rows}, on "
                                         f"{wanted_ranks} and {other[0]} ranks")  # fmt: skip


def _rows_taken(seed: int, rows: int, plan: BatchPlan) -> List[int]:
    """Of two epochs, in the order of steps, micro-steps and ranks."""
    order: List[int] = []
    for step in range(-(-2 * rows // plan.global_batch_size)):
        for micro_step in range(plan.grad_accum_steps):
            for rank in range(plan.dp_world_size):
                order += row_ids(seed, rows, *train_rows(step, micro_step, rank, plan)).tolist()
    return order[: 2 * rows]


def _max_steps(config: RunConfig, trial: Trial, own: Optional[Path]) -> int:
    """Return the steps of the run; 0 if it counts epochs and only the first documents of its data were read."""
    if config.train.max_steps:
        return config.train.max_steps
    if own is None:
        return 0
    read = read_meta(own)["sources"]
    for name, source in config.data.sources.items():
        limit = trial.data.data.sources[name].max_documents or 0
        if source.max_documents != limit and read[name]["documents"] >= limit:
            return 0
    return num_steps(config, _rows(own))


def rate_is_as_configured(config: RunConfig, max_steps: int) -> checks.Check:
    """At every step of the run, against the formulas of docs/step.md."""
    if not max_steps:
        return checks.not_run(RATE, "train.epochs: the steps are known once the whole data is prepared")
    optim, allowed = config.optim, SAME_RATE * config.optim.lr
    found = [learning_rate(optim, step, max_steps) for step in range(max_steps)]
    wrong = [step for step, rate in enumerate(found) if not abs(rate - expected_lr(optim, step, max_steps)) <= allowed]
    problems = [f"{len(wrong)} of {max_steps} steps have another, step {wrong[0] + 1} {found[wrong[0]]:g} for one"
                ] if wrong else []  # fmt: skip
    return checks.judge(RATE, problems, f"{optim.schedule.name}, {max(found):g} at its highest, {found[-1]:g} in the "
                                        f"last of {max_steps:,} steps")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
