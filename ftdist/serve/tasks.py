"""Tasks before and after: a checkpoint and its base model answer the same questions."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol

from rich.console import Console
from rich.text import Text

from ftdist.base.counts import count
from ftdist.base.output import short_path
from ftdist.base.tables import plain_table, show_table
from ftdist.base.terminal import task
from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet
from ftdist.parallel.ranks import Ranks, on_rank_0
from ftdist.report.texts import share_with_interval
from ftdist.run.rundir import RunDir, checkpoint_step
from ftdist.run.task_results import DOCSTRINGS, is_harness_task, write_result
from ftdist.serve.accuracy import accuracy
from ftdist.serve.choices import ChoiceTask
from ftdist.serve.harness import load_harness_task
from ftdist.serve.opened import open_model
from ftdist.serve.questions import QUESTIONS, load_questions
from ftdist.track.gain import DocumentLosses
from ftdist.train.evaluate import evaluate, report_rows


class Task(Protocol):
    """Questions, and how they are answered: ``ChoiceTask`` or ``HarnessTask``."""

    @property
    def sha256(self) -> str:
        """Hash of the questions."""

    def documents(
        self, tokenizer: Any, max_seq_len: int, packing: bool, limit: Optional[int]
    ) -> PreparedSet:  # fmt: skip
        """Return the documents that a model is given. See ``choice_set``."""

    def scores(self, data: PreparedSet, measured: DocumentLosses) -> Any:
        """Return the scores of a model.

        Args:
            data: From ``documents``.
            measured: From ``evaluate``, of these documents.
        """

    def right(self, scores: Any) -> Dict[str, List[bool]]:
        """Return for each measure and each question whether the answer is right."""

    def result(self, base: Any, run: Any) -> Dict[str, Any]:
        """Return the number of questions, the measures and all answers, as a value that JSON can hold.

        Args:
            base: The scores of the base model.
            run: The scores of the checkpoint.
        """


Tasks = Dict[str, Task]


def compare_on_tasks(
    config: RunConfig, settings_file: Path, run: RunDir, checkpoint: Path, folder: Path, ranks: Ranks,
    places: Dict[str, str],
) -> None:  # fmt: skip
    """Let the base model and a checkpoint answer the questions, write the results and print them.

    Every rank must call it. The models are loaded one after the other.

    Args:
        config: The config of the run.
        settings_file: The settings of DeepSpeed (``deepspeed.json``).
        folder: The model of the checkpoint, see ``open_model``.
        places: From ``task_places``.

    Raises:
        DataError: A file of questions is invalid, see ``load_questions``.
    """
    tasks = _load(config, run, ranks, places)
    base = answer(config, settings_file, None, ranks, tasks)
    now = answer(config, settings_file, folder, ranks, tasks)
    if not ranks.first:
        return
    found = [
        {"task": name, "file": None if places[name] == DOCSTRINGS else places[name],
         "sha256": one.sha256, "step": checkpoint_step(checkpoint), "checkpoint": checkpoint.name,
         **one.result(base[name], now[name])}
        for name, one in tasks.items()
    ]  # fmt: skip
    written = [write_result(run, one) for one in found]
    show(found)
    print("answers: " + ", ".join(map(short_path, written)))


def answer_alone(
    config: RunConfig, settings_file: Path, run: RunDir, ranks: Ranks, places: Dict[str, str]
) -> None:  # fmt: skip
    """Let the base model of a config answer the questions, and print the shares. See ``compare_on_tasks``."""
    tasks = _load(config, run, ranks, places)
    scores = answer(config, settings_file, None, ranks, tasks)
    if not ranks.first:
        return
    table = plain_table("task", "measure", "right", "questions", texts=2)
    for name, one in tasks.items():
        for measure, right in one.right(scores[name]).items():
            table.add_row(*map(Text, (name, measure, share_with_interval(asdict(accuracy(right))), f"{len(right):,}")))
    show_table(Console(highlight=False), table)
    print("In brackets: 95 % interval.")


def _load(config: RunConfig, run: RunDir, ranks: Ranks, places: Dict[str, str]) -> Tasks:
    with task("reading the questions", ranks.first):
        return on_rank_0(
            ranks,
            lambda: {
                name: load_harness_task(place)
                if is_harness_task(place)
                else ChoiceTask(load_questions(place, run, config))
                for name, place in places.items()
            },
        )


def answer(
    config: RunConfig, settings_file: Path, folder: Optional[Path], ranks: Ranks, tasks: Tasks
) -> Dict[str, Any]:
    """Return the scores of a model for each task. See ``open_model`` for the arguments. Every rank must call it."""
    opened, packing, scores = open_model(config, settings_file, folder, ranks), config.data.packing, {}
    with task("answering", ranks.first) as say:
        for name, one in tasks.items():
            data = one.documents(opened.tokenizer, config.data.max_seq_len, packing, opened.max_positions)
            measured = evaluate(
                opened.engine, opened.objective, data, opened.mesh, opened.plan.micro_batch_size, packing,
                opened.tokenizer.pad_token_id, report=partial(report_rows, say, name),
            )  # fmt: skip
            assert measured is not None
            scores[name] = one.scores(data, measured)
    opened.close()
    return scores


def show(results: List[Dict[str, Any]]) -> None:
    """Print the results of some tasks as a table."""
    table = plain_table("task", "measure", "base model", results[0]["checkpoint"], "gained", "lost", "p", texts=2)
    for one in results:
        for measure, found in one["measures"].items():
            shares = [share_with_interval(found[of]) for of in ("base", "run")]
            cells = [one["task"], measure, *shares, str(found["gained"]), str(found["lost"]), f"{found['p']:.2g}"]
            table.add_row(*map(Text, cells))
    console = Console(highlight=False)
    for one in results:
        few = "" if one["file"] or one["questions"] >= QUESTIONS else ", fewer than " \
              f"{QUESTIONS}: the run trains the other docstrings"  # fmt: skip
        print(f"{one['task']}: {count(one['questions'], 'question')}{few}")
    show_table(console, table)
    print("In brackets: 95 % interval. p: McNemar's exact test.")
