"""Questions with several choices, from a file or from the standard library.

The built-in task asks which docstring belongs to a function of the standard library. If the run was trained on these
docstrings, it asks only about those that the run does not train.
"""

import hashlib
import json
import platform
import random
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError, DataError
from ftdist.base.permissions import explain_os_error
from ftdist.config.schema import RunConfig
from ftdist.data.builtin_sources import Docstring, docstring_chat, stdlib_docstrings
from ftdist.data.encode import EncodeSettings, encode
from ftdist.data.loader import open_set
from ftdist.data.prepare import TRAIN, encode_settings, list_sources
from ftdist.data.row_order import row_ids
from ftdist.data.tokenizer import load_tokenizer
from ftdist.plan.run_length import num_steps
from ftdist.run.identity import read_inputs, recorded_folder
from ftdist.run.rundir import RunDir
from ftdist.run.task_results import DOCSTRINGS

QUESTIONS = 300
"""Maximum number of questions of the built-in task."""
CHOICES = 4
MIN_SUMMARY, MAX_SUMMARY = 20, 300
"""Limits of the length of a choice in characters. Shorter ones say nothing."""
MAX_ARGUMENTS = 160
RECORD = 'a record {"question": "…", "choices": ["…", "…"], "answer": 0}'


@dataclass(frozen=True)
class Question:
    """A question with several choices, of which one is right."""

    location: str
    """Where it comes from: ``file:line``, or the name of a function."""
    question: str
    choices: Tuple[str, ...]
    answer: int
    """Number of the right choice, from 0."""


def content_hash(questions: Sequence[Question]) -> str:
    """Return a SHA-256 hash of questions in their order. The place of their file does not matter."""
    text = json.dumps([{**asdict(one), "location": ""} for one in questions], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def load_questions(place: str, run: RunDir, config: RunConfig) -> List[Question]:
    """Return the questions of a task.

    Args:
        place: The name of a built-in task, or the path of a file.
        run: The run that the task is for.
        config: Its config.

    Raises:
        DataError: A record of the file is invalid; or fewer than ``CHOICES`` docstrings are left that were not trained.
        ConfigError: See ``untrained_docstrings``.
    """
    if place != DOCSTRINGS:
        return read_questions(place)
    return docstring_questions(*split_docstrings(run, config))


def read_questions(path: str) -> List[Question]:
    """Return the questions of a file with one JSON record on each line: ``question``, ``choices`` and ``answer``.

    Raises:
        DataError: The file has no records, or a record is invalid. The message names its line.
        AccessError: This user may not read the file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text in UTF-8 ({error})", RECORD, "save the file in UTF-8") from error
    except OSError as error:
        raise explain_os_error(error) from error
    questions = [_question(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise DataError(f"{path} has no records", f"on each line {RECORD}", "fill the file, or name another one")
    return questions


def _question(location: str, line: str) -> Question:
    fix = f"correct line {location.rpartition(':')[2]}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: the line is not valid JSON ({error})", RECORD, fix) from error
    if problem := _problem(record):
        raise DataError(f"{location}: {problem[0]}", problem[1], fix)
    return Question(location, record["question"], tuple(record["choices"]), record["answer"])


def _problem(record: Any) -> Optional[Tuple[str, str]]:
    """Return what is wrong with a record and what is expected. None if nothing is."""
    if not isinstance(record, dict) or not {"question", "choices", "answer"} <= record.keys():
        names = f"an object with {', '.join(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
        return f"the record is {names}", RECORD
    question, choices, answer = record["question"], record["choices"], record["answer"]
    if not isinstance(question, str) or not question.strip():
        return f"the question is {json.dumps(question)}", "a text that is not empty"
    if not isinstance(choices, list) or len(choices) < 2:
        return f"choices is {json.dumps(choices)}", "a list of at least two texts"
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip() or choices.count(choice) > 1:
            return f"the choice {json.dumps(choice)} is empty, no text or there twice", "different texts"
    if type(answer) is not int or not 0 <= answer < len(choices):
        return f"the answer is {json.dumps(answer)}", f"the number of a choice, 0 to {len(choices) - 1}"
    try:
        (question + "".join(choices)).encode("utf-8")
    except UnicodeEncodeError:
        return "a text has an unpaired surrogate", "valid Unicode text"
    return None


def docstring_questions(usable: Sequence[Docstring], trained: Sequence[Docstring]) -> List[Question]:
    """Return questions that ask which docstring belongs to a function. The choices are the first paragraphs of its own
    docstring and of others.

    The other choices are from the same package if it has enough. A paragraph that a trained docstring contains is not
    used, neither as the right choice nor as another one. The same docstrings always give the same questions.

    Args:
        usable: Docstrings that were not trained.
        trained: Docstrings that were trained.

    Raises:
        DataError: Fewer than ``CHOICES`` are left.
    """
    seen = "\n\n".join(_plain(item.text) for item in trained)
    summaries: Dict[str, Docstring] = {}
    for item in usable:
        summary = item.text.split("\n\n")[0]
        fits = MIN_SUMMARY <= len(summary) <= MAX_SUMMARY and len(item.arguments) <= MAX_ARGUMENTS
        if item.kind == "function" and fits and _plain(summary) not in seen:
            summaries.setdefault(summary, item)
    if len(summaries) < CHOICES:
        raise DataError(f"only {len(summaries)} docstrings that the run does not train are left for questions",
                        f"at least {CHOICES}", "a run that holds out more (data.heldout_share), or a file of "
                        "questions (--tasks questions.jsonl)")  # fmt: skip
    packages = defaultdict(list)
    for summary, item in summaries.items():
        packages[_package(item)].append(summary)
    return [_ask(summary, item, packages[_package(item)], list(summaries))
            for summary, item in list(summaries.items())[:QUESTIONS]]  # fmt: skip


def _ask(summary: str, item: Docstring, near: List[str], all_of_them: List[str]) -> Question:
    draw = random.Random(f"{DOCSTRINGS}/{item.name}")
    others = [other for other in near if other != summary]
    chosen = draw.sample(others, min(CHOICES - 1, len(others)))
    far = [other for other in all_of_them if other != summary and other not in chosen]
    choices = [summary, *chosen, *draw.sample(far, CHOICES - 1 - len(chosen))]
    draw.shuffle(choices)
    text = f"Python function: {item.name}({item.arguments})\nDocstring:"
    return Question(item.name, text, tuple(choices), choices.index(summary))


def _package(item: Docstring) -> str:
    return item.module.split(".")[0]


def _plain(text: str) -> str:
    """Return a text with one space for each white space."""
    return " ".join(text.split())


def split_docstrings(run: RunDir, config: RunConfig) -> Tuple[List[Docstring], List[Docstring]]:
    """Return the docstrings of the standard library that a run does not train, and those that it trains.

    A docstring counts as trained if it is in a row that the run reads until its last step, whatever step the checkpoint
    has. So all checkpoints of a run get the same questions. A run whose data has no source ``builtin=stdlib_docs``
    trains none.

    Raises:
        ConfigError: The run was trained on the docstrings of another version of Python, or they cannot be recognized.
    """
    all_sources = [one for one in list_sources(config) if one.set_name == TRAIN]
    sources = [one for one in all_sources if one.source.builtin == DOCSTRINGS]
    docstrings = list(stdlib_docstrings())
    if not sources:
        return docstrings, []
    inputs = read_inputs(run) or {"files": {}}
    for source in sources:
        recorded = inputs["files"].get(source.config_key)
        version = recorded.get("python") if isinstance(recorded, dict) else None
        if version not in (None, platform.python_version()):
            raise ConfigError(f"{run.path} was trained on the docstrings of Python {version}, and this is Python "
                              f"{platform.python_version()}", f"Python {version}, so that it is known which docstrings "
                              "the run has not seen", f"run ftdist eval with Python {version}")  # fmt: skip
    tokenizer = load_tokenizer(config)
    trained = trained_documents(run, config)
    settings = [encode_settings(config, source, tokenizer) for source in sources]
    made = [set().union(*(_documents(one, item) for one in settings)) for item in docstrings]
    unknown = trained - set().union(*made)
    if unknown and len(sources) == len(all_sources):
        raise ConfigError(f"{len(unknown):,} of {count(len(trained), 'document')} that {run.path} trains are not "
                          "recognized as docstrings of this Python",
                          "every trained document recognized, so that no question is about one of them",
                          "use the ftdist and Python that started the run, or --tasks questions.jsonl")  # fmt: skip
    pairs = list(zip(docstrings, made, strict=True))
    return [item for item, own in pairs if not own & trained], [item for item, own in pairs if own & trained]


def trained_documents(run: RunDir, config: RunConfig) -> Set[bytes]:
    """Return the token ids, as bytes, of all documents in the rows that a run reads until its last step."""
    data = open_set(recorded_folder(run, config), TRAIN)
    left_out = [record["train/batches_left_out"] for record in run.read_metrics() if "train/batches_left_out" in record]
    steps = num_steps(config, data.num_rows, run.read_status().get("max_steps"))
    batches = steps + sum(last - first + 1 for first, last in left_out)
    count = min(batches * config.batch.global_batch_size, data.num_rows)  # the first pass reads each row once
    return {ids.tobytes() for row in row_ids(config.seed, data.num_rows, 0, count) for ids, _ in data.row(int(row))}


def _documents(settings: EncodeSettings, item: Docstring) -> Set[bytes]:
    """Return the token ids, as bytes, of the documents that the preparation makes of a docstring."""
    encoded = encode(settings, [docstring_chat(item)])
    ends = np.cumsum(encoded.lengths)
    return {encoded.ids[end - length : end].astype("<i4").tobytes()
            for end, length in zip(ends.tolist(), encoded.lengths.tolist(), strict=True)}  # fmt: skip
