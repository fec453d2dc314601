"""A local task of lm-eval, answered by the evaluation of ftdist."""

import json
from pathlib import Path
from typing import Any, List, Tuple

import numpy as np
import pytest
import torch

from ftdist.base.errors import DataError, FtdistError
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.engine.engine import ForwardEngine
from ftdist.objective.head import Head, find_head
from ftdist.objective.sft import SupervisedFineTuning
from ftdist.parallel.mesh import Mesh
from ftdist.train.evaluate import evaluate
from tests.unit.data_tools import write_jsonl
from tests.unit.objective.test_head import build

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'ftdist[tasks]')")
from ftdist.serve import harness

ITEMS = [
    {"ask": "Two and two?", "options": ["four", "twenty-two"], "right": 0},
    {"ask": "The capital of Peru is", "options": ["Lima", "a very long answer", "no"], "right": 0},
    {"ask": "é ", "options": ["a", "b"], "right": 1},
]
TASK = """task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {data}
  cache_dir: {cache}
test_split: train
output_type: {kind}
doc_to_text: "{{{{ask}}}}"
doc_to_choice: options
doc_to_target: right
metric_list:
  - metric: acc
  - metric: acc_norm
"""


class Alone(Mesh):
    def sum_array(self, values: np.ndarray) -> np.ndarray:
        return values


def task_file(folder: Path, kind: str = "multiple_choice") -> str:
    path = folder / "capitals.yaml"
    path.write_text(TASK.format(data=write_jsonl(folder / "items.jsonl", ITEMS), cache=folder / "cache", kind=kind))
    return str(path)


def plain_scores(model: Any, requests: List[Tuple[str, str]]) -> List[Tuple[float, bool]]:
    """Return log-probabilities and whether greedy decoding writes the continuation, by one plain forward pass each."""
    found = []
    for text, continuation in requests:
        ids = bytes_tokenizer()(text + continuation, add_special_tokens=False, return_tensors="pt").input_ids
        begin = len(text.rstrip().encode())
        logits = model(ids).logits[0, begin - 1 : -1].double()
        targets = ids[0, begin:]
        found.append((float(logits.log_softmax(-1).gather(1, targets[:, None]).sum()),
                      bool((logits.argmax(-1) == targets).all())))  # fmt: skip
    return found


@torch.no_grad()
@pytest.mark.parametrize("packing", [True, False])
def test_a_task_is_answered_as_by_the_plain_model(tmp_path: Path, packing: bool) -> None:
    task = harness.load_harness_task(task_file(tmp_path))
    expected = [(item["ask"], f" {option}") for item in ITEMS for option in item["options"]]
    assert [(text.rstrip(), continuation) for text, continuation in task.requests] == [
        (text.rstrip(), continuation) for text, continuation in expected]  # fmt: skip
    model, tokenizer = build("llama", vocab_size=259), bytes_tokenizer()
    data = harness.request_set(task, tokenizer, 40, packing, None)
    mesh = Alone(0, 1, torch.device("cpu"))
    head = find_head(model, 259, mesh.device)
    assert isinstance(head, Head)
    objective = SupervisedFineTuning(259, head=head)
    measured = evaluate(ForwardEngine(model, model), objective, data, mesh, 2, packing, 0)
    assert measured is not None
    scores, plain = harness.request_scores(data, measured), plain_scores(model, task.requests)
    assert [one[0] for one in scores] == pytest.approx([one[0] for one in plain], abs=1e-4)
    assert [one[1] for one in scores] == [one[1] for one in plain]
    found = harness.harness_answers(task, scores)
    right, normalized, place = [], [], 0
    for item in ITEMS:
        values = np.array([plain[place + n][0] for n in range(len(item["options"]))])
        sizes = np.array([len(option) for option in item["options"]])
        right.append(bool(values.argmax() == item["right"]))
        normalized.append(bool((values / sizes).argmax() == item["right"]))
        place += len(sizes)
    assert found == {"acc": right, "acc_norm": normalized}


def test_right_and_wrong_follow_the_scores_and_an_empty_text_has_a_first_token(tmp_path: Path) -> None:
    task = harness.load_harness_task(task_file(tmp_path))
    best = [(0.0 if continuation in (" four", " Lima", " b") else -9.0, True) for _, continuation in task.requests]
    assert harness.harness_answers(task, best)["acc"] == [True, True, True]
    worst = [(-one, True) for one, _ in best]
    assert task.right(worst)["acc"] == [False, False, False]
    result = task.result(worst, best)
    assert (result["questions"], result["measures"]["acc"]["gained"]) == (3, 3)
    assert [(one["base"], one["run"]) for one in result["answers"]] == [
        (b[0], r[0]) for b, r in zip(worst, best, strict=True)
    ]
    alone = harness.HarnessTask("x.yaml", [("", "ab")], "")
    data = harness.request_set(alone, bytes_tokenizer(), 40, True, None)
    assert data.trained.tolist() == [0, 1, 1]


def test_what_needs_more_than_log_probabilities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs generated texts"):
        harness.load_harness_task(task_file(tmp_path, "generate_until"))
    bad = tmp_path / "bad.yaml"
    bad.write_text(json.dumps({"task_name": "x"}))
    with pytest.raises(FtdistError, match="has no field task"):
        harness.load_harness_task(str(bad))
