"""The report as Markdown: its numbers, and hostile texts that stay texts."""

import json
import re
from pathlib import Path
from typing import Any, Dict

from ftdist.plan.cost import cost_of
from ftdist.plan.goodput import LOST, Attempt, Goodput
from ftdist.plan.pretraining import Pretraining
from ftdist.report.main import write_report
from ftdist.report.markdown import as_markdown, plain, quoted
from ftdist.report.texts import percent
from ftdist.run.rundir import RunDir
from ftdist.run.timeline import LOADING, QUEUE, STEPS


def _tensor(name: str, kind: str, relative: Any, rank: Any = None, exceeds: bool = False) -> Dict[str, Any]:
    return {"name": name, "kind": kind, "relative": relative, "norm": 0.25, "base_norm": 1.0, "rank": rank,
            "rank_exceeds": exceeds}  # fmt: skip


REPORT = {
    "run": "a|b<script>", "folder": "/runs/a", "state": "done", "reason": "", "train": [], "best": None,
    "data": {"sources": {"docs_": {"documents": 4635, "tokens": 464664, "trained": 228338, "dropped": 2}},
             "warnings": ["a *warning*"], "sample": [["question <|x|>\n", False], ["答\u202e", True]]},
    "gains": [], "gain_of": None, "evaluations": {"do<b>cs": [{"step": 4, "loss": {"value": 1.5, "low": 1.0, "high":
    "nan"}, "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}]}, "step": 4, "max_steps": 4, "tokens": 1234567,
    "heldout": {"do<b>cs": [[0, 3.0], [4, 1.5]]}, "forgetting": None,
    "tasks": [{"task": "quiz<b>", "step": 4, "questions": 10, "measures": {"accuracy": {
        "base": {"share": 0.5, "low": 0.2366, "high": 0.7634}, "run": {"share": 0.8, "low": 0.49, "high": 0.943},
        "gained": 4, "lost": 1, "p": 0.375}}}],
    "gain": {"do<b>cs": {"documents": 1200, "tokens": 9, "metrics": {"accuracy": {
        "before": {"value": 0.25, "low": 0.2, "high": 0.3}, "after": {"value": 0.5, "low": 0.4, "high": 0.6},
        "change": {"value": 0.25, "low": 0.2, "high": 0.3}}},
        "before": {"value": 3.0, "low": 2.5, "high": 3.5}, "after": {
        "value": 1.5, "low": 1.0, "high": "nan"}, "change": {"value": -1.5, "low": -1.75, "high": -1.25}}},
    "documents": {"do<b>cs": {"gained": [{"text": "<i>x|\n", "tokens": 9, "before": 3.0, "after": 1.0, "change": -2.0}],
                              "lost": []}},
    "words": {"missing": "", "min_times": 5, "sets": {"do<b>cs": {
        "gained": [{"word": "x|_<i>", "times": 1200, "tokens": 2400, "before": 3.0, "after": 1.0, "change": -2.0,
                    "each": -4.0, "total": -4800.0}],
        "lost": [], "gained_each": [], "lost_each": [],
        "rarity": [{"group": "never", "words": 1, "times": 1200, "tokens": 2400, "before": 3.0, "after": 1.0,
                    "change": -2.0}],
        "roles": [{"role": "tool call", "documents": 7, "tokens": 1100,
                   "before": {"value": 3.0, "low": 2.5, "high": 3.5}, "after": {"value": 1.0, "low": 0.5, "high": 1.5},
                   "change": {"value": -2.0, "low": -2.5, "high": -1.5}}],
        "documents": 10, "all": 1000}}},
    "general_losses": {"built<b>in": [[0, 2.0], [9, 2.25]]},
    "general": {"built<b>in": {"documents": 54, "tokens": 9, "before": {"value": 2.0, "low": 1.5, "high": 2.5},
        "after": {"value": 2.25, "low": 1.75, "high": 2.75}, "change": {"value": 0.25, "low": 0.125, "high": 0.375}}},
    "answers": [{"question": "<i>?", "before": "|", "after": "`", "reference": "*"}],
    "settings": [{"key": "optim.lr", "value": "<u>", "default": None}], "faults": ["bad <step>"],
    "step_times": {"step_s": 2.0, "forward_s": 0.5, "agreement_s": 0.25, "mfu": 0.4, "goodput": 0.5},
    "commands": {"repeat": "ftdist train ```<x>", "folder": "/a_b", "continue": "ftdist resume x", "git": None},
    "cost": cost_of(Goodput([Attempt(0, 0.0, {STEPS: 1800.0}, ranks=4)]), 1234567, 1.8e15, 2.5, 10**8,
                    Pretraining(2e12, "https://arxiv.org/abs/2502.02737")).as_dict()
    | {"energy": {"gpu_kwh": 1.5, "cpu_kwh": 0.25, "complete": False}},
    "moved": {
        "checkpoint": "step-00000004", "relative": 0.0123, "kinds": {"matrix": 0.02, "norm": 0.0, "vector": None},
        "tensors": [
            _tensor("layers.0.q_proj.weight", "matrix", 0.02, 3), _tensor("layers.1.q_proj.weight", "matrix", 0.3, 256,
            True), _tensor("norm.weight", "norm", 0.0), _tensor("bias", "vector", None),
        ],
        "map": {"layers": [0, 1], "modules": ["q_proj"], "values": [[0.02], [0.3]]},
        "tokens": [{"id": 1, "text": "|`\n", "moved": 0.5, "nearest_before": ["<img>"], "nearest_after": ["\u202e"]}],
    },
    "goodput": {"waiting_s": 9.0, **Goodput([
        Attempt(0, 5.0, {STEPS: 75.0, LOST: 15.0, LOADING: 10.0}, 0, 9, "failed", 2),
        Attempt(1, 200.0, {QUEUE: 25.0}, state="killed"), Attempt(2, 225.0, {QUEUE: 25.0}),
    ], 0.0, 4).as_dict()},
}  # fmt: skip


def test_the_numbers_are_in_tables_with_the_most_moved_first(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert write_report(run, REPORT) == run.report / "report.html"
    text = (run.report / "report.md").read_text(encoding="utf-8")
    assert json.loads((run.report / "report.json").read_text()) == REPORT
    lines = text.splitlines()
    assert "together differ from the base model by 1.23 % of its norm (‖ΔW‖/‖W‖), the matrices by 2 %." in text
    assert {"| matrices | 2 % |", "| norms | 0 |", "| biases | new |", "| 1 | 30 % |"} <= set(lines)
    assert "Goodput: 50 % of 2:30 went into steps that count, in 3 attempts; 4 steps were done again" in text
    assert {"| queue | 50.0 s | 33.3 % |", "| lost | 15.0 s | 10 % |", "| 0 | 2 | 0 to 9 | 1:40 | 75 % | failed |",
            "| 1 | ? |  | 25.0 s | 0 | killed |",
            "| 2 | ? |  | 25.0 s | 0 | not known |"} <= set(lines)  # fmt: skip
    assert {
        "| do&lt;b&gt;cs | loss | 3.0000 (2.5000 to 3.5000) | 1.5000 | -1.5000 (-1.7500 to -1.2500) | "
        "1,200 |",
        "| do&lt;b&gt;cs | accuracy | 25.00 % (20.00 to 30.00) | 50.00 % (40.00 to 60.00) | "
        "25.00 % (20.00 to 30.00) | 1,200 |",
        "| built&lt;b&gt;in | loss | 2.0000 (1.5000 to 2.5000) | 2.2500 (1.7500 to 2.7500) | "
        "0.2500 (0.1250 to 0.3750) | 54 |",
    } <= set(lines)  # fmt: skip
    assert r"| do&lt;b&gt;cs | &lt;i&gt;x\|  | 9 | 3.0000 | 1.0000 | -2.0000 |" in text and "lost most" not in text
    assert {r"| do&lt;b&gt;cs | x\|\_&lt;i&gt; | 1,200 | 2,400 | 3.0000 | 1.0000 | -4 | -4800 |",
            "| do&lt;b&gt;cs | never | 1 | 1,200 | 2,400 | 3.0000 | 1.0000 | -2.0000 |",
            "| do&lt;b&gt;cs | tool call | 7 | 1,100 | 3.0000 (2.5000 to 3.5000) | 1.0000 (0.5000 to 1.5000) "
            "| -2.0000 (-2.5000 to -1.5000) |"} <= set(lines)  # fmt: skip
    assert {"| do&lt;b&gt;cs | 0 | 3.0000 | 20.09 |  |",
            "| do&lt;b&gt;cs | 4 | 1.5000 | 4.48 | 50.00 % (40.00 to 60.00) |",
            "| general text: built&lt;b&gt;in | 9 | 2.2500 | 9.49 |  |"} <= set(lines)  # fmt: skip
    assert r"at least 5 times" in text and "Of do&lt;b&gt;cs, the first 10 of 1,000 documents were read." in text
    assert ("The loss on general text went from 2.0000 to 2.2500 (built&lt;b&gt;in; 95 % interval of the change: "
            "+0.1250 to +0.3750).") in text  # fmt: skip
    assert "The held-out loss of do&lt;b&gt;cs went from 3.0000 to 1.5000 (-50.0 %; 95 % interval" in text
    assert {
        "| tokens | 1,234,567 | 2e+12 (published: https://arxiv.org/abs/2502.02737) |",
        "| device-hours | 2 | 1,333,333 |", "| FLOPs | 1.8e+15 | 1.2e+21 (6 · N · D, N = 1e+08) |",
        "| price | 5 | 3,333,333 |",
    } <= set(lines)  # fmt: skip
    assert {"| forward | 0.5 s | 25 % |", "| agreement | 0.25 s | 12.5 % |"} <= set(lines) and "| mfu" not in text
    assert "Waiting for slower ranks: rank 0 spent 9.0 s (6 %) of the steps in `agreement`" in text
    assert "1e+12 FLOPs a second on all devices" in text and "0.00015 % of the operations of pretraining" in text
    assert ("| quiz&lt;b&gt; | 4 | accuracy | 10 | 50.0 % (23.7 to 76.3) | 80.0 % (49.0 to 94.3) | 4 | 1 | 0.38 |"
            in lines)  # fmt: skip
    assert r"| docs\_ | 4,635 | 464,664 | 228,338 | 2 |" in lines and "- Warning: a \\*warning\\*" in lines
    assert {r'| no | "question \<\|x\|\>\\n" |'.replace(r"\<", "&lt;").replace(r"\>", "&gt;"),
            '| yes | "答\\\\u202e" |'} <= set(lines)  # fmt: skip
    assert "## Tasks" not in as_markdown({**REPORT, "tasks": []})
    assert "````\nftdist train ```<x>\nftdist resume x\n````\n" in text
    first = next(number for number, line in enumerate(lines) if line.startswith("| layers.1"))
    assert lines[first] == r"| layers.1.q\_proj.weight | 30 % | 0.25 | > 256 |"
    assert lines[first + 1] == r"| layers.0.q\_proj.weight | 2 % | 0.25 | 3 |"


def test_texts_from_outside_are_shown_as_text() -> None:
    text = as_markdown(REPORT)
    assert "# a\\|b&lt;script&gt;" in text and not {"<script>", "<img>", "<b>", "<u>", "<step>"} & set(
        re.findall("<.*?>", text)
    )
    assert r'"\|\`\\n"' in text and "\u202e" not in text
    assert plain("\x00\x1b[1m\u202ea\tb") == r"\\x00\\x1b\[1m\\u202ea b", "no character controls a terminal"
    assert (plain("# a\n**b**"), quoted(" x")) == (r"\# a \*\*b\*\*", '" x"')
    assert [percent(value) for value in (None, 0.0, 1e-5, 12.0)] == ["new", "0", "0.001 %", "1,200 %"]


def test_an_interval_that_is_not_known_is_left_out() -> None:
    unknown = {"value": 1.5, "low": "nan", "high": "nan"}
    measured = {"documents": 1, "tokens": 9, **dict.fromkeys(("before", "after", "change"), unknown)}
    evaluation = {"step": 4, "loss": unknown, "perplexity": unknown, "accuracy": unknown}
    report = {**REPORT, "heldout": {"a": [[0, 1.5], [4, 1.5]]}, "gain": {"a": measured}, "general": {"b": measured},
              "general_losses": {}, "evaluations": {"a": [evaluation]}, "tasks": [],
              "words": {**REPORT["words"], "sets": {}}}  # fmt: skip
    text = as_markdown(report)
    assert "nan" not in text
    assert "| a | 4 | 1.5000 | 4.48 | 150.00 % |" in text and "| b | loss | 1.5000 | 1.5000 | 1.5000 | 1 |" in text
    assert "from 1.5000 to 1.5000 (b)." in text
