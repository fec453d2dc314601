"""The scores of choices equal those of the plain model, and become answers."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from ftdist.base.errors import DataError
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.engine.engine import ForwardEngine
from ftdist.objective.head import Head, find_head
from ftdist.objective.sft import SupervisedFineTuning
from ftdist.parallel.mesh import Mesh
from ftdist.serve.choices import by_question, choice_set, result_of, right_answers
from ftdist.serve.questions import Question
from ftdist.train.evaluate import evaluate
from tests.unit.data_tools import word_tokenizer
from tests.unit.objective.test_head import GROUPED, build

QUESTIONS = [
    Question("a", "Two and two?", ("four", "twenty-two", "it"), 0),
    Question("b", "def f():\n    ", ("return", "yield x"), 1),
    Question("c", "é", (" a", "b"), 0),
]
WHOLE = ["Two and two? four", "Two and two? twenty-two", "Two and two? it", "def f():\n    return",
         "def f():\n    yield x", "é a", "é b"]  # fmt: skip
SCORED = [" four", " twenty-two", " it", "\n    return", "\n    yield x", " a", " b"]


class Alone(Mesh):
    def sum_array(self, values: np.ndarray) -> np.ndarray:
        return values


def test_a_choice_is_scored_with_the_white_space_before_it() -> None:
    tokenizer = bytes_tokenizer()
    for packing in (True, False):
        data = choice_set(QUESTIONS, tokenizer, 40, packing, 512)
        parts = [slice(*data.offsets[n : n + 2]) for n in range(len(WHOLE))]
        assert [tokenizer.decode(data.tokens[part].tolist()) for part in parts] == WHOLE
        scored = [data.tokens[part][data.trained[part] == 1] for part in parts]
        assert [tokenizer.decode(ids.tolist()) for ids in scored] == SCORED
        assert sorted(data.row_docs.tolist()) == list(range(7)) and (data.num_rows == 7) == (not packing)
    with pytest.raises(DataError, match=r"b: the question with one of its choices after it has 20 tokens"):
        choice_set(QUESTIONS[1:], tokenizer, 40, True, 19)
    assert choice_set(QUESTIONS, tokenizer, 8, True, None).num_rows >= 4, "a row takes the longest document"
    words = word_tokenizer(bos_token="<s>")
    text = choice_set(QUESTIONS[:1], words, 40, True, None).tokens
    assert (text[0] == words.bos_token_id) == (words("a").input_ids[:1] == [words.bos_token_id])


@torch.no_grad()
@pytest.mark.parametrize("packing", [True, False])
def test_scores_equal_those_of_the_plain_model(packing: bool) -> None:
    assert GROUPED["vocab_size"] >= 200
    model = build("llama", vocab_size=259)
    tokenizer = bytes_tokenizer()
    data = choice_set(QUESTIONS, tokenizer, 40, packing, None)
    mesh = Alone(0, 1, torch.device("cpu"))
    head = find_head(model, 259, mesh.device)
    assert isinstance(head, Head)
    for known in (head, None):
        objective = SupervisedFineTuning(259, head=known)
        measured = evaluate(ForwardEngine(model, model), objective, data, mesh, 2, packing, 0)
        assert measured is not None
        _assert_plain(model, tokenizer, measured.losses, data)


def _assert_plain(model: Any, tokenizer: Any, losses: np.ndarray, data: Any) -> None:
    scores = by_question(QUESTIONS, data, losses)
    assert [len(values) for values in scores] == [3, 2, 2]
    for whole, scored, value in zip(WHOLE, SCORED, chain.from_iterable(scores), strict=True):
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
        count = len(scored.encode())
        each = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-count:, 0]
        assert value == pytest.approx(float(each.double().sum()), rel=1e-5)


def test_the_largest_score_is_the_answer_with_and_without_the_length() -> None:
    scores = [[-4.0, -9.0, -3.0], [-7.0, -7.5], [-1.0, -2.0]]
    # a: "it" has the largest score, and "twenty-two" for each byte. b: "return" has it, and "yield x" for each byte.
    assert right_answers(QUESTIONS, scores) == {"accuracy": [False, False, True], "normalized": [False, True, True]}
    better = [[-2.0, -9.0, -3.0], *scores[1:]]
    found = result_of(QUESTIONS, scores, better)
    assert found["questions"] == 3 and found["answers"][0]["run"] == better[0]
    assert (found["measures"]["accuracy"]["base"]["correct"], found["measures"]["accuracy"]["gained"]) == (1, 1)
    assert found["measures"]["normalized"]["run"]["correct"] == 3
    assert np.isclose(found["measures"]["accuracy"]["p"], 1)
