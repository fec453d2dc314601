"""One rank of ``ftdist verify``: ``python -m ftdist.verify.main FOLDER``.

Rank 0 checks the model and the data while the other ranks wait. Then all ranks check the numbers.
"""

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

import argparse
import copy
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import List, Optional

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_DONE, ConfigError, DataError, FtdistError
from ftdist.base.output import accept_any_text
from ftdist.config.frozen import dump_config, load_config
from ftdist.config.optim import rate_warning
from ftdist.config.schema import RunConfig
from ftdist.data.prepare import prepare
from ftdist.data.row_order import row_ids, train_rows
from ftdist.method.check import check_run, method_on_meta, trained_table
from ftdist.parallel import rank_process
from ftdist.parallel.ranks import Ranks, exchange_path, read_ranks, start_process_group
from ftdist.plan.batch import BatchPlan, plan_resumed
from ftdist.plan.run_length import num_steps
from ftdist.plan.warmup import fit_warmup
from ftdist.run import checks
from ftdist.run.base_model import check_adapter_bases
from ftdist.run.model_facts import check_fit
from ftdist.run.prepared import read_meta
from ftdist.run.rundir import RunDir
from ftdist.train.schedule import learning_rate
from ftdist.verify.number_checks import NUMBERS, check_numbers
from ftdist.verify.reference import expected_lr, row_order
from ftdist.verify.token_checks import NAMES as TOKEN_CHECKS
from ftdist.verify.token_checks import check_tokens, read_documents
from ftdist.verify.trial import Missing, Trial, make_trial, missing_model, missing_tokenizer, use_generated_chats

TRAINED = "what is trained"
MODEL, TOKENIZER, DATA = "model can be trained", "tokenizer can be used", "data can be trained on"
ORDER, RATE = "data order", "learning rate"
SAME_RATE = 1e-12
"""Largest difference of two learning rates that count as equal, as a share of the peak."""


def main(argv: Optional[List[str]] = None) -> None:
    """Run one rank of the checks, and end its process."""
    parser = argparse.ArgumentParser(prog="ftdist.verify.main", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder with run.yaml, to which the checks are written")
    parser.add_argument("--wanted-ranks", type=int, default=1, help="number of ranks of the run")
    parser.add_argument("--quick", action="store_true", help="use a small stand-in model and skip the checks of saving")
    args = parser.parse_args(argv)
    rank_process.die_with_parent()
    run = RunDir.open(args.folder)
    config = load_config(run.config)
    ranks = read_ranks(config)
    rank_process.run_rank(run, ranks.rank, 0, lambda: _run(config, run, ranks, args.wanted_ranks, args.quick))


def _run(config: RunConfig, run: RunDir, ranks: Ranks, wanted_ranks: int, quick: bool) -> int:
    os.dup2(2, 1)  # here the lines of a training run go to the log, not to the terminal
    rank_process.quiet_libraries()
    file = run.path / "trial.yaml"
    if ranks.first:
        steps = check_before_ranks(config, run.path, wanted_ranks, ranks.world_size, quick)
        file.write_text(dump_config(steps) if steps else "", encoding="utf-8")
    file = exchange_path("ftdist/trial", file if ranks.first else None)
    if file.stat().st_size:
        start_process_group(config, ranks)
        run_number_checks(load_config(file), run.path, ranks, quick)
    return EXIT_DONE


def _one_line(error: FtdistError) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())


def run_number_checks(config: RunConfig, folder: Path, ranks: Ranks, quick: bool) -> None:
    """Run the checks of numbers and write their results to ``folder``. Every rank must call it.

    An error that would stop the run on all ranks before its first step makes the next check fail. The checks after that
    one are not run.
    """

    def report(check: checks.Check) -> None:
        if ranks.first:
            checks.append(folder, check)

    try:
        check_numbers(config, folder, ranks, quick, report)
    except ConfigError as error:
        done = {check.name for check in checks.read_checks(folder)}
        left = [name for name in NUMBERS if name not in done]
        for name in left:
            not_run = checks.not_run(name, "the run stops before this check")
            report(checks.failed(name, _one_line(error)) if name == left[0] else not_run)


def check_before_ranks(
    config: RunConfig, folder: Path, wanted_ranks: int, ranks: int, quick: bool
) -> Optional[RunConfig]:
    """Run the checks that need no other rank, and write their results to ``folder``.

    Args:
        wanted_ranks: Number of ranks of the run.
        ranks: Number of ranks of this check.
        quick: Read fewer documents and use a stand-in model.

    Returns:
        The config for the checks of numbers, or None if they cannot run.
    """
    no_model = missing_model(config)
    checks.append(folder, model := _check_model(config, no_model))
    if model.outcome == checks.FAILED:
        return None
    if not config.method.facts.whole and not no_model:
        checks.append(folder, check_trained_parts(config))
    try:
        missing = Missing(no_model, missing_tokenizer(config, no_model))
    except ConfigError as error:
        checks.append(folder, checks.failed(TOKENIZER, _one_line(error)))
        return None
    trial = make_trial(config, folder, wanted_ranks, ranks, quick, missing)
    own = _check_data(trial, folder, quick)
    # The data cannot be used, as a check has already reported. The numbers do not depend on the data.
    if own is None and not trial.tokenizer_missing and not quick:
        use_generated_chats(trial.steps_config, trial)
    try:
        prepared = prepare(trial.steps_config)
    except FtdistError:  # nothing would be trained, because the rows of the stand-in are short
        use_generated_chats(trial.steps_config, trial)
        prepared = prepare(trial.steps_config)
    checks.append(folder, check_data_order(config, _num_rows(own or prepared), wanted_ranks))
    checks.append(folder, check_learning_rate(config, _max_steps(config, trial, own)))
    if warning := rate_warning(config.method.kind, config.optim):
        trial.notes.append(f"warning: {warning}")
    (folder / checks.NOTES).write_text(json.dumps(trial.notes), encoding="utf-8")
    return trial.steps_config


def _check_model(config: RunConfig, missing: Optional[ConfigError]) -> checks.Check:
    """Run the checks of the model that a run makes before it starts."""
    if missing:
        return checks.not_run(MODEL, missing.found)
    try:
        facts = check_run(config)
        check_fit(config, facts)
        check_adapter_bases(config)
    except ConfigError as error:
        return checks.failed(MODEL, _one_line(error))
    return checks.passed(MODEL, f"{facts.model_type}, {facts.parameters:,} parameters")


def check_trained_parts(config: RunConfig) -> checks.Check:
    """List what the method trains, and how many parameters these are."""
    model = method_on_meta(config)
    numbers = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained, whole = sum(count for count, is_trained in numbers if is_trained), sum(count for count, _ in numbers)
    share = f"{trained:,} of {whole:,} parameters ({trained / whole:.2%})"
    return checks.judge(TRAINED, [] if trained else ["nothing is trained"], "\n".join([share, *trained_table(model)]))


def _check_data(trial: Trial, folder: Path, quick: bool) -> Optional[Path]:
    """Prepare the first documents of each source, and run the checks of tokens.

    Returns:
        The prepared data, or None if the data or the tokenizer cannot be used.
    """
    if trial.tokenizer_missing:
        checks.append(folder, checks.not_run(f"tokenization, {len(TOKEN_CHECKS)} checks", trial.tokenizer_missing))
        _check_records(trial, folder)
        return None
    try:
        prepared = prepare(trial.data_config)
        found = check_tokens(trial.data_config, prepared, trial.vocab_rows, quick)
    except (ConfigError, DataError) as error:
        # Data on the hub cannot be read without network. That is not an error of the config.
        outcome = checks.not_run if ".hub=" in error.found else checks.failed
        checks.append(folder, outcome(DATA, _one_line(error)))
        return None
    for check in found:
        checks.append(folder, check)
    return prepared


def _check_records(trial: Trial, folder: Path) -> None:
    """Check that the records can be read. This is all that can be checked without the tokenizer."""
    try:
        read_documents(trial.data_config, from_hub=False)
    except (ConfigError, DataError) as error:
        checks.append(folder, checks.failed(DATA, _one_line(error)))


def _num_rows(folder: Path) -> int:
    return int(read_meta(folder)["sets"]["train"]["rows"])


def check_data_order(config: RunConfig, rows: int, wanted_ranks: int) -> checks.Check:
    """Compare the rows that the ranks use in two epochs with the reference, for this and another number of ranks."""
    size, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    if size == 1:
        return checks.not_run(ORDER, "with batch.global_batch_size=1 there is only one possible number of ranks")
    # Another number of ranks with the same micro-batch, or else with a smaller one.
    other = next((n, m) for m in range(micro, 0, -1) for n in range(1, size + 1)
                 if n != wanted_ranks and size % (n * m) == 0)  # fmt: skip
    expected = row_order(config.seed, rows, 2 * rows)
    problems = []
    for ranks, at_once in ((wanted_ranks, micro), other):
        plan = plan_resumed(replace(config.batch, micro_batch_size=at_once), ranks, config.data.max_seq_len)
        if _rows_taken(config.seed, rows, plan) != expected:
            problems.append(f"{count(ranks, 'rank uses', 'ranks use')} other rows than the reference")
    if sorted(expected[:rows]) != list(range(rows)):
        problems.append("an epoch does not use every row exactly once")
    epoch, both = count(rows, "row"), f"{wanted_ranks} and {count(other[0], 'rank')}"
    return checks.judge(ORDER, problems, f"rows {expected[0]} … {expected[-1]} in two epochs of {epoch}, on {both}")


def _rows_taken(seed: int, rows: int, plan: BatchPlan) -> List[int]:
    """Return the rows of two epochs in the order of steps, micro-steps and ranks."""
    order: List[int] = []
    for step in range(-(-2 * rows // plan.global_batch_size)):
        for micro_step in range(plan.grad_accum_steps):
            for rank in range(plan.dp_world_size):
                order += row_ids(seed, rows, *train_rows(step, micro_step, rank, plan)).tolist()
    return order[: 2 * rows]


def _max_steps(config: RunConfig, trial: Trial, own: Optional[Path]) -> int:
    """Return the number of steps of the run, or 0 if it is not known.

    It is not known if the run counts epochs and only the first documents of its data were read.
    """
    if config.train.max_steps:
        return config.train.max_steps
    if own is None:
        return 0
    read = read_meta(own)["sources"]
    for name, source in config.data.sources.items():
        limit = trial.data_config.data.sources[name].max_documents or 0
        if source.max_documents != limit and read[name]["documents"] >= limit:
            return 0
    return num_steps(config, _num_rows(own))


def check_learning_rate(config: RunConfig, max_steps: int) -> checks.Check:
    """Compare the learning rate of every step of the run with the formulas of docs/step.md."""
    if not max_steps:
        return checks.not_run(RATE, "train.epochs is set: the number of steps is known only when all data is prepared")
    optim, allowed = copy.copy(config.optim), SAME_RATE * config.optim.lr
    fit_warmup(optim, max_steps)
    found = [learning_rate(optim, step, max_steps) for step in range(max_steps)]
    wrong = [step for step, rate in enumerate(found) if not abs(rate - expected_lr(optim, step, max_steps)) <= allowed]
    problems = [f"{len(wrong)} of {max_steps} steps have a wrong rate, for example step {wrong[0] + 1}: "
                f"{found[wrong[0]]:g}"] if wrong else []  # fmt: skip
    return checks.judge(RATE, problems, f"{optim.schedule.name}, highest {max(found):g}, {found[-1]:g} in the last of "
                                        f"{count(max_steps, 'step')}")  # fmt: skip


if __name__ == "__main__":
    resume_collector()
    accept_any_text()
    main(sys.argv[1:])
