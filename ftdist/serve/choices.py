"""Score the choices of questions: the log-probability of each choice after its question.

Each choice with its question is a document. The documents run through the model as held-out documents do.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ftdist.base.errors import DataError
from ftdist.config.data import TrainOn
from ftdist.data.loader import PreparedSet
from ftdist.data.pack import one_per_row, pack
from ftdist.data.render import Rendered, Renderer, make_renderer, with_one_bos
from ftdist.data.tokenise import tokenise
from ftdist.run.task_results import MEASURES
from ftdist.serve.accuracy import compare
from ftdist.serve.questions import Question, content_hash
from ftdist.track.gain import DocumentLosses

Scores = List[List[float]]
"""For each question the log-probability of each choice in nats."""


@dataclass(frozen=True)
class ChoiceTask:
    """Questions with several choices, as a ``Task`` (``ftdist.serve.tasks``)."""

    questions: List[Question]

    @property
    def sha256(self) -> str:
        return content_hash(self.questions)

    def documents(self, tokenizer: Any, max_seq_len: int, packing: bool, limit: Optional[int]) -> PreparedSet:
        return choice_set(self.questions, tokenizer, max_seq_len, packing, limit)

    def scores(self, data: PreparedSet, measured: DocumentLosses) -> Scores:
        return by_question(self.questions, data, measured.losses)

    def right(self, scores: Scores) -> Dict[str, List[bool]]:
        return right_answers(self.questions, scores)

    def result(self, base: Scores, run: Scores) -> Dict[str, Any]:
        return result_of(self.questions, base, run)


def choice_set(
    questions: Sequence[Question], tokenizer: Any, max_seq_len: int, packing: bool, limit: Optional[int]
) -> PreparedSet:
    """Return a set with one document for each choice, in the order of the questions. The tokens of the choice have
    labels.

    The document is the question, a space, and the choice. There is no added space if the question ends with white space
    or the choice begins with it. White space at the end of the question belongs to the choice, because most tokenizers
    join it with the word after it. A text begins with the BOS token if the tokenizer begins texts with one.

    Args:
        max_seq_len: Length of a row in tokens. If a document is longer, the rows are as long as the longest document.
        packing: Put several documents into each row.
        limit: Number of positions of the model. None: not known.

    Raises:
        DataError: A document has more tokens than the model has positions.
    """
    renderer = make_renderer(tokenizer, TrainOn.auto)
    pairs = [(one, choice) for one in questions for choice in one.choices]
    texts = [with_one_bos(_rendered(*pair), renderer.bos) for pair in pairs]
    return packed_documents(texts, [one.location for one, _ in pairs], renderer, max_seq_len, packing, limit)


def packed_documents(
    texts: Sequence[Rendered], locations: Sequence[str], renderer: Renderer, max_seq_len: int, packing: bool,
    limit: Optional[int],
) -> PreparedSet:  # fmt: skip
    """Return a set with these texts as documents, in their order. See ``choice_set``.

    Args:
        locations: Where each text comes from, for errors.
    """
    documents = tokenise(list(texts), renderer)
    lengths = np.array([len(document.ids) for document in documents])
    if limit and lengths.max() > limit:
        where = locations[int(lengths.argmax())]
        raise DataError(f"{where}: the question with one of its choices after it has {lengths.max():,} tokens",
                        f"at most {limit:,}, the positions of the model", "shorten it")  # fmt: skip
    rows = pack(lengths, max(max_seq_len, int(lengths.max()))) if packing else one_per_row(lengths)
    return PreparedSet(
        np.concatenate([document.ids for document in documents]),
        np.concatenate([document.trained for document in documents]),
        np.concatenate([[0], np.cumsum(lengths)]),
        *rows,
    )


def _rendered(one: Question, choice: str) -> Rendered:
    space = "" if one.question[-1:].isspace() or choice[:1].isspace() else " "
    text = one.question + space + choice
    return Rendered(text, [(len(one.question.rstrip()), len(text))])


def by_question(questions: Sequence[Question], data: PreparedSet, losses: np.ndarray) -> Scores:
    """Return the scores of the choices.

    Args:
        data: From ``choice_set``.
        losses: Negative log-probability of each document's choice in nats, [documents], in the order of the rows.
    """
    scores = np.empty(len(losses))
    scores[data.row_docs] = -losses
    ends = np.cumsum([len(one.choices) for one in questions])
    return [part.tolist() for part in np.split(scores, ends[:-1])]


def right_answers(questions: Sequence[Question], scores: Scores) -> Dict[str, List[bool]]:
    """Return for each measure (``MEASURES``), and each question, whether the right choice has the largest score."""
    found: Dict[str, List[bool]] = {measure: [] for measure in MEASURES}
    for one, values in zip(questions, scores, strict=True):
        sizes = [len(choice.encode()) for choice in one.choices]
        each = [value / size for value, size in zip(values, sizes, strict=True)]
        for measure, compared in zip(MEASURES, (values, each), strict=True):
            found[measure].append(compared.index(max(compared)) == one.answer)
    return found


def result_of(questions: Sequence[Question], base: Scores, run: Scores) -> Dict[str, Any]:
    """Return the measures of a task, and all answers, as a value that JSON can hold."""
    before, after = right_answers(questions, base), right_answers(questions, run)
    answers = [{"location": one.location, "question": one.question, "choices": one.choices, "answer": one.answer,
                "base": b, "run": r} for one, b, r in zip(questions, base, run, strict=True)]  # fmt: skip
    measures = {measure: compare(before[measure], after[measure]) for measure in MEASURES}
    return {"questions": len(questions), "measures": measures, "answers": answers}
