"""Tasks of lm-eval (the extra ``tasks``): a local YAML file says what is asked, and which answers are right.

lm-eval builds the requests and computes the measures, on rank 0. The log-probabilities come from ftdist's evaluation,
in the same way as the losses of held-out sets. So a task runs twice: first its requests are collected, then they are
answered.
"""

import hashlib
import json
import logging
import re
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from ftdist.base.errors import ConfigError, DataError
from ftdist.config.data import TrainOn
from ftdist.data.loader import PreparedSet
from ftdist.data.render import Rendered, make_renderer, with_one_bos
from ftdist.serve.accuracy import compare
from ftdist.serve.choices import packed_documents
from ftdist.track.gain import DocumentLosses

Request = Tuple[str, str]
"""A text, and its continuation."""
Scores = List[Tuple[float, bool]]
"""For each request the log-probability of the continuation in nats, and whether greedy decoding would write it."""


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval, as a ``Task`` (``ftdist.serve.tasks``)."""

    file: str
    requests: List[Request]
    """All different requests, in the order in which lm-eval makes them."""
    sha256: str
    """Hash of the requests."""

    def documents(self, tokenizer: Any, max_seq_len: int, packing: bool, limit: Optional[int]) -> PreparedSet:
        return request_set(self, tokenizer, max_seq_len, packing, limit)

    def scores(self, data: PreparedSet, measured: DocumentLosses) -> Scores:
        return request_scores(data, measured)

    def right(self, scores: Scores) -> Dict[str, List[bool]]:
        return harness_answers(self, scores)

    def result(self, base: Scores, run: Scores) -> Dict[str, Any]:
        before, after = self.right(base), self.right(run)
        measures = {name: compare(before[name], after[name]) for name in before if name in after}
        answers = [{"text": text, "continuation": continuation, "base": b[0], "run": r[0]}
                   for (text, continuation), b, r in zip(self.requests, base, run, strict=True)]  # fmt: skip
        return {"questions": len(next(iter(before.values()))), "measures": measures, "answers": answers}


def load_harness_task(file: str) -> HarnessTask:
    """Return the task of a YAML file of lm-eval.

    Raises:
        ConfigError: lm-eval is not installed.
        DataError: The file is invalid, or the task asks for more than log-probabilities.
    """
    requests: Dict[Request, None] = {}
    _run(file, None, requests)
    found = list(requests)
    return HarnessTask(file, found, hashlib.sha256(json.dumps(found).encode()).hexdigest())


def request_set(
    task: HarnessTask, tokenizer: Any, max_seq_len: int, packing: bool, limit: Optional[int]
) -> PreparedSet:  # fmt: skip
    """Return a set with one document for each request, in which the continuation is trained. See ``choice_set``.

    White space at the end of the text belongs to the continuation. An empty text becomes the first token of a text.
    """
    renderer = make_renderer(tokenizer, TrainOn.auto)
    first = tokenizer.bos_token or tokenizer.eos_token
    made = []
    for text, continuation in ((text or first, continuation) for text, continuation in task.requests):
        whole = text + continuation
        made.append(with_one_bos(Rendered(whole, [(len(text.rstrip()), len(whole))]), renderer.bos))
    locations = [f"{task.file}: request {number}" for number in range(1, len(made) + 1)]
    return packed_documents(made, locations, renderer, max_seq_len, packing, limit)


def request_scores(data: PreparedSet, measured: DocumentLosses) -> Scores:
    """Return the scores of the requests, in their order.

    Args:
        data: From ``request_set``.
        measured: From ``evaluate``.
    """
    scores, greedy = np.empty(len(data.row_docs)), np.empty(len(data.row_docs), dtype=bool)
    scores[data.row_docs] = -measured.losses
    greedy[data.row_docs] = measured.metrics["accuracy"] == measured.weights
    return list(zip(scores.tolist(), greedy.tolist(), strict=True))


def harness_answers(task: HarnessTask, scores: Scores) -> Dict[str, List[bool]]:
    """Return whether each answer is right, for each measure of the task that is 0 or 1 for a question.

    Raises:
        DataError: The task has no such measure.
    """
    samples = _run(task.file, dict(zip(task.requests, scores, strict=True)), {})
    names = list(dict.fromkeys(name for one in samples for name in one["metrics"]))
    found = {name: [one[name] for one in samples if name in one] for name in names}
    binary = {name: [bool(value) for value in values] for name, values in found.items()
              if len(values) == len(samples) and all(isinstance(v, (bool, int, float, np.number)) and v in (0, 1)
                                                     for v in values)}  # fmt: skip
    if not binary:
        raise DataError(f"{task.file} has the measures {', '.join(names) or 'none'}", "one that is 0 or 1 for each "
                        "question, such as acc", "add it to metric_list")  # fmt: skip
    return binary


def _run(file: str, known: Optional[Dict[Request, Tuple[float, bool]]], requests: Dict[Request, None]) -> List[Any]:
    """Let lm-eval evaluate a model, and return its samples.

    Args:
        known: The answers to the requests. None: the requests are collected, and every answer is 0.
        requests: The requests are added to this dict.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.api.model import LM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(f"--tasks {file} is a task of lm-eval, which cannot be imported ({error})",
                          "lm-eval in this environment", "pip install 'ftdist[tasks]'") from error  # fmt: skip

    class Answered(LM):  # type: ignore[misc]  # lm-eval has no types
        def loglikelihood(self, asked: List[Any]) -> List[Tuple[float, bool]]:
            requests.update(dict.fromkeys(one.args for one in asked))
            return [(0.0, False) if known is None else known[one.args] for one in asked]

        def loglikelihood_rolling(self, asked: List[Any]) -> List[float]:
            raise _unsupported(file, "the log-probability of whole texts")

        def generate_until(self, asked: List[Any]) -> List[str]:
            raise _unsupported(file, "generated texts")

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        manager = TaskManager(include_path=str(Path(file).parent), include_defaults=False)
        name = _task_name(file)
        with redirect_stderr(StringIO()):  # progress bars
            found = simple_evaluate(Answered(), tasks=[name], task_manager=manager, bootstrap_iters=0)
        return list(found["samples"][name])
    except DataError:
        raise
    except Exception as error:  # lm-eval and the libraries that it uses raise many types of errors
        raise DataError(f"{file}: lm-eval cannot run it: {type(error).__name__}: {str(error)[:300]}",
                        "a task with the field task, and data that can be read", "correct it") from error  # fmt: skip


def _task_name(file: str) -> str:
    """Return the name of the task in a YAML file. The file can have tags of lm-eval, so that it is not parsed."""
    found = re.search(r"^task:\s*['\"]?([^'\"\s#]+)", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise DataError(f"{file} has no field task", "a task of lm-eval: a YAML file with the field task", "add it")
    return found[1]


def _unsupported(file: str, what: str) -> DataError:
    return DataError(f"{file} needs {what}", "a task of log-probabilities (output_type: multiple_choice or "
                     "loglikelihood)", "use such a task, or lm-eval itself on RUN_DIR/export")  # fmt: skip
