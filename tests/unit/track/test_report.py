"""The report at the end of a run, as text."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from rich.console import Console

from ftdist.run.rundir import RunDir
from ftdist.track.gain import DocumentLosses, write_evaluation
from ftdist.track.report import final_report

WHOLE = b":W&B\xe1\xbe\x00" + struct.pack("<IHB", zlib.crc32(b"\1" + bytes(20)), 20, 1) + bytes(20)
"""What a file of W&B begins with: its first bytes, and a record."""


def write(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def report(run: RunDir, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    final_report(run, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def sample(step: int, index: int, answer: str) -> dict[str, Any]:
    return {
        "step": step, "set": "docs", "index": index, "question": f"What is [bold]{index}[/bold]?",
        "prompt": "<|user|>…", "answer": answer, "reference": f"It is {index}.",
    }  # fmt: skip


def wandb_file(run: RunDir, folder: str, content: Optional[bytes]) -> None:
    """Make a folder of an offline W&B run. Without content there is no file in it."""
    (run.wandb / folder).mkdir(parents=True)
    if content is not None:
        (run.wandb / folder / "run-abc.wandb").write_bytes(content)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    return RunDir(tmp_path / "run with space")


def test_the_report_shows_losses_answers_and_paths(run: RunDir) -> None:
    for name in ("offline-run-1-abc", "offline-run-2-abc"):
        wandb_file(run, name, WHOLE)
    run.export.mkdir()
    write(
        run.metrics,
        {"step": 0, "eval/docs/loss": 3.0, "eval/other/loss": 2.0, "forgetting/kl": 0.0, "forgetting/kl_error": 0.0},
        {"step": 5, "train/loss": 2.5},
        {"step": 5, "eval/docs/loss": 2.5, "eval/other/loss": "nan"},
        {"step": 10, "eval/docs/loss": 2.0, "eval/other/loss": 1.5, "forgetting/kl": 0.25, "forgetting/kl_error": 0.01,
         "perf/forgetting_seconds": 90.0},
    )  # fmt: skip
    write(
        run.samples,
        *(sample(0, index, f"As a model {index}") for index in range(3)),
        *(sample(5, index, "middle") for index in range(3)),
        *(sample(10, index, f"Return it {index}\nsecond line ") for index in range(3)),
    )
    tokens = np.array([4.0, 4.0])
    for step, loss, right in ((0, 3.0, 1.0), (10, 2.875, 2.0)):
        right_tokens = {"accuracy": np.array([right, right]), "entropy": 3 * tokens}
        write_evaluation(run, step, {"docs": DocumentLosses(loss * tokens, tokens, right_tokens)})
    said = report(run)
    lines = said.splitlines()
    rows = [line.split() for line in lines]
    assert ["docs", "25.0", "%", "50.0", "%", "+25.00", "+25.00", "to", "+25.00"] in rows
    assert ["docs", "-0.1250", "-0.1250", "to", "-0.1250", "2"] in rows
    del lines[3:7]
    assert lines[0].split() == ["held-out", "loss", "before", "after", "change", "perplexity"]
    assert lines[1].split() == ["docs", "3.0000", "2.0000", "-33.3", "%", "20.09", "→", "7.39"]
    assert lines[2].split() == ["other", "2.0000", "1.5000", "-25.0", "%", "7.39", "→", "4.48"]
    assert lines[3].split() == ["forgetting", "(nats", "per", "token)", "before", "after"]
    assert lines[4].split() == ["KL(base", "‖", "now)", "0.0000", "0.2500", "±", "0.0100"]
    assert lines[5].split()[:5] == ["time", "to", "measure", "it", "1:30,"]
    answers = [line for line in lines if line.startswith(("question", "base", "trained", "reference"))]
    assert [" ".join(line.split()) for line in answers] == [
        "question 1 What is [bold]0[/bold]?", "base model As a model 0", "trained model Return it 0",
        "reference It is 0.",
        "question 2 What is [bold]1[/bold]?", "base model As a model 1", "trained model Return it 1",
        "reference It is 1.",
    ]  # fmt: skip
    assert "middle" not in said
    assert lines[lines.index(answers[2]) + 1].strip() == "second line"
    assert lines[-3:] == [
        "run           run with space",
        "model         run with space/export",
        "W&B           offline; upload it with: wandb sync 'run with space/wandb'/offline-run-*",
    ]
    console = Console(file=io.StringIO(), width=80)
    final_report(run, console, ["It is [bold]done[/bold].", "x " * 60])
    with_summary = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert with_summary[-6:] == ["It is [bold]done[/bold].", "x " * 60, "", *lines[-3:]]
    (run.export / "adapter_config.json").touch()
    assert "adapter       run with space/export\n" in report(run)


BROKEN = {
    "no file": None, "empty": b"", "only the first bytes": WHOLE[:7], "cut in a record": WHOLE[:-1],
    "another file": b"x" * 40, "zeros": WHOLE[:7] + bytes(40),
    "a changed byte": WHOLE[:-1] + b"x",
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_record_of_wandb_that_cannot_be_uploaded_is_not_offered(content: Optional[bytes], run: RunDir) -> None:
    wandb_file(run, "offline-run-1-abc", content)
    said = report(run)
    assert "wandb sync" not in said
    assert "W&B           the offline record is empty or damaged; metrics.jsonl is complete" in said
    wandb_file(run, "offline-run-2-abc", WHOLE)
    assert "upload it with: wandb sync 'run with space/wandb/offline-run-2-abc'\n" in report(run, 200)


def test_the_report_shows_the_mean_time_of_a_step_after_the_first(run: RunDir) -> None:
    run.path.mkdir()
    first = {"perf/step_s": 90.0, "perf/data_s": 1.0, "perf/forward_s": 80.0, "perf/mfu": 0.01}
    phases = {"perf/data_s": 0.001, "perf/forward_s": 0.5, "perf/backward_s": 1.25, "perf/mfu": 0.4}
    later = [{"perf/step_s": 2.0 + more, **phases} for more in (-0.5, 0.0, 5.0)]
    write(run.metrics, *({"step": step, **times} for step, times in enumerate([first, *later], 1)))
    table = [line.split() for line in report(run).splitlines()[:6]]
    assert table == [
        ["time", "of", "a", "step", "seconds", "share"], ["data", "0.001", "0.0%"],
        ["forward", "0.500", "14.3%"], ["backward", "1.250", "35.7%"],
        ["other", "1.749", "50.0%"], ["all", "3.500", "MFU", "40.0%"],
    ]  # fmt: skip
    write(run.metrics, {"step": 1, "train/loss": 1.0, "perf/step_s": 2.0})  # a run of an earlier version
    assert "time of a step" not in report(run)


def test_long_answers_are_cut_and_empty_answers_are_named(run: RunDir) -> None:
    run.path.mkdir()
    write(run.samples, sample(0, 0, "\n \n"), sample(9, 0, "word " * 1000))
    said = " ".join(report(run).split())
    assert "base model (nothing) trained model word word" in said
    assert said.count("word") == 80 and "word … reference" in said


def test_a_run_without_evaluations_reports_its_path(run: RunDir) -> None:
    run.path.mkdir()
    assert report(run, 300).split("\n") == ["", "run           run with space", ""]


def test_without_a_first_evaluation_nothing_is_compared(run: RunDir) -> None:
    run.path.mkdir()
    write(run.metrics, {"step": 10, "eval/docs/loss": "nan"})
    write(run.samples, sample(10, 0, "x"))
    said = report(run)
    assert said.splitlines()[1].split() == ["docs", "nan", "nan"]
    assert "base model" not in said


def test_the_perplexity_of_a_huge_loss_is_shown_as_infinite(run: RunDir) -> None:
    run.path.mkdir()
    write(run.metrics, {"step": 0, "eval/docs/loss": 6.0}, {"step": 1, "eval/docs/loss": 900.0})
    assert "403 → ∞" in report(run)


def test_a_set_with_one_document_has_no_interval(run: RunDir) -> None:
    run.path.mkdir()
    write(run.metrics, *({"step": step, "eval/docs/loss": 3.0, "general/b/loss": 2.0} for step in (0, 9)))
    one = np.array([4.0])
    for step in (0, 9):
        write_evaluation(
            run, step, dict.fromkeys(("docs", "general/b"), DocumentLosses(3 * one, one, {"accuracy": one}))
        )
    said = report(run)
    rows = [line.split() for line in said.splitlines()]
    assert "nan" not in said and ["docs", "+0.0000", "not", "known", "1"] in rows
    assert ["docs", "100.0", "%", "100.0", "%", "+0.00", "not", "known"] in rows
    assert "3.0000 (change not known)" in said
