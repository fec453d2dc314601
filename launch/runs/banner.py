"""What the launcher prints before and after the ranks run: machine, batch, one sample, and what to do next."""

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED
from ftdist.base.output import quoted_path, short_path
from ftdist.base.tables import plain_table, show_table
from ftdist.base.terminal import format_seconds
from ftdist.config.optim import rate_warning
from ftdist.config.schema import RunConfig, Wandb
from ftdist.config.track import ignored_variables
from ftdist.launch.attempt.machine import machine_summary
from ftdist.plan.batch import BatchPlan
from ftdist.plan.data_warnings import data_warnings
from ftdist.plan.memory import placement
from ftdist.run.adapters import base_name, base_warning
from ftdist.run.file_names import ADAPTER_CONFIG
from ftdist.run.model_facts import describe_method, describe_model, length_problem, read_facts
from ftdist.run.prepared import is_ready, read_meta
from ftdist.run.rundir import RunDir, checkpoint_step
from ftdist.run.sample import describe_data, print_sample


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def cell(text: str) -> Text:
    """Return text for a cell of a table. Brackets are not markup, and control characters are removed."""
    return Text("".join(character for character in text if character.isprintable()))


def show_machine() -> None:
    """Print the hardware of this machine and the versions of the libraries."""
    console = _console()
    for what, value in machine_summary().items():
        console.print(f"[bold]{what:10}[/bold] {value}")


def show_run(config: RunConfig, plan: BatchPlan, data: Path) -> None:
    """Print the settings of a run: model, data, batch, precision, one sample, and the run directory.

    Args:
        data: folder of the prepared data. If it does not exist yet, a Slurm job prepares it later.
    """
    console = _console()
    facts = read_facts(config)  # None if a Slurm job will check the model
    warnings = [length_problem(config, facts) if facts else "", rate_warning(config.method.kind, config.optim),
                base_warning(config)]  # fmt: skip
    for what, value in (
        ("model", describe_model(config)),
        *([("method", describe_method(config))] if not config.method.facts.whole else []),
        ("data", describe_data(read_meta(data)) if is_ready(data) else ", ".join(config.data.sources)),
        ("batch", plan.describe()),
    ):
        console.print(f"[bold]{what:10}[/bold]", Text(value))
    for warning in filter(None, warnings):
        console.print(Text(f"warning: {warning}", style="yellow"))
    show_data_warnings(config, data)
    table = plain_table(f"ZeRO-{config.zero.stage}", "held in", "where", texts=3)
    for row in placement(config):
        table.add_row(*row)
    show_table(console, table)
    if is_ready(data):
        print_sample(data, console)
    console.print(f"[bold]{'run':10}[/bold] {escape(short_path(str(config.run_dir)))}")


def show_data_warnings(config: RunConfig, data: Path) -> None:
    """Print warnings about prepared data that is small for the settings of the run."""
    for warning in data_warnings(config, read_meta(data)) if is_ready(data) else ():
        _console().print(Text(f"warning: {warning}", style="yellow"))


def show_ignored_variables(config: RunConfig, asked: Wandb) -> None:
    """Name the variables of wandb that have no effect. See ``ignored_variables`` for the arguments."""
    for line in ignored_variables(config, asked):
        print(f"note: {line}", flush=True)


def show_resume(run: RunDir) -> None:
    """Print from which step a run resumes. The ranks print more, but loading their libraries takes seconds."""
    published = run.published_checkpoints()
    place, of = short_path(run.path), run.read_status().get("max_steps")
    if published:
        step = f"step {checkpoint_step(published[-1])}" + (f" of {of}" if of else "")
        print(f"resuming {place} after {step}", flush=True)
    elif run.bad_checkpoints() or run.checkpoint_folders():  # the ranks do not start such a run from its beginning
        print(f"looking for a checkpoint of {place} that can be trusted", flush=True)
    else:
        print(f"starting {place} from its beginning: it has no checkpoint", flush=True)


def show_next(run: RunDir, code: int, seconds: float) -> None:
    """Print how long a run took and what to do next. Rank 0 has printed the losses and where the results are.

    Args:
        code: exit code of the run.
        seconds: time since the command began.
    """
    console = _console()
    place, took = escape(quoted_path(run.path)), format_seconds(seconds)  # brackets in names are not markup
    if code == EXIT_PREEMPTED:
        console.print(f"stopped after {took}; resume with: [bold]ftdist resume {place}[/bold]")
    if code != EXIT_DONE or run.read_status().get("state") != "done":  # a job that has only been submitted
        return
    chat = [f"ftdist chat {place}"] if run.export.is_dir() else []
    merge = []
    if (run.export / ADAPTER_CONFIG).is_file():
        merge = [f"ftdist export {place} --merged"]
        if not base_name(str(run.export)):  # random weights: only a merged model can be loaded
            chat, merge = [], [*merge, f"ftdist chat {escape(quoted_path(run.merged))}"]
    here = [] if shutil.which("ftdist") else [f"source {escape(quoted_path(sys.prefix))}/bin/activate"]
    runs = escape(quoted_path(run.path.parent))
    status = "ftdist status" if runs == "runs" else f"ftdist status {runs}"
    # No checkpoint is the best one if there is no held-out data, or if every checkpoint forgets too much.
    no_best = run.published_checkpoints() and run.best_checkpoint() is None
    evaluate = f"ftdist eval {place}" + ("" if no_best else " --checkpoint best")
    records = run.read_metrics()
    has_heldout = not records or any(key.startswith("eval/") for record in records for key in record)
    commands = [*here, *chat, *merge, *[evaluate] * has_heldout, status]
    console.print(f"[bold]{'time':13}[/bold] {took}")
    console.print(f"[bold]{'next':13}[/bold] " + f"\n{'':13} ".join(commands))
    if run.report_page.is_file():
        console.print(f"[bold]{'report':13}[/bold] {escape(short_path(run.report_page))}", soft_wrap=True)
