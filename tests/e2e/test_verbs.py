"""The verbs status, eval, export, chat, prepare and preview."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest

from ftdist.base.errors import EXIT_USAGE
from ftdist.plan.goodput import goodput_of
from ftdist.run.rundir import RunDir
from tests.helpers.cli import ftdist, succeed
from tests.helpers.runs import PADDED_ZERO3, SMOKE, copy_of, finished_run

# Opens an exported folder as any user would, and the files of the checkpoint with safetensors alone.
OPEN = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, checkpoint = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
size = model.config.vocab_size
padded = AutoModelForCausalLM.from_config(type(model.config)(**{**model.config.to_dict(), "vocab_size": 384}))
masters = {}
for name, parameter in padded.named_parameters():
    slices = {}
    for file in Path(checkpoint).glob("rank-*"):
        entries = {tuple(key.split(":")): part for key, part in load_file(file).items()}
        slices |= {int(key[1]): part for key, part in entries.items() if key[0] == "master" and key[2] == name}
    masters[name] = torch.cat([slices[start] for start in sorted(slices)]).view(parameter.shape)
padded.load_state_dict(masters, strict=False)
inputs = tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], return_tensors="pt", return_dict=True)
print()
print(json.dumps({
    "vocab_size": size, "template": bool(tokenizer.chat_template), "dtype": str(model.dtype),
    "same_weights": all(torch.equal(p, masters[name][: len(p)]) for name, p in model.named_parameters()),
    "same_logits": torch.allclose(model(**inputs).logits, padded.eval()(**inputs).logits[..., :size], atol=1e-6),
}))
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a copy of a finished run, which a test may change."""
    return copy_of(finished_run(*PADDED_ZERO3), tmp_path / "run")


def heldout_metrics(run: RunDir) -> Dict[int, Dict[str, float]]:
    return {r["step"]: {name: r[name] for name in r if name.startswith("eval/heldout/")} for r in run.read_metrics()
            if "eval/heldout/loss" in r}  # fmt: skip


def test_status_shows_a_finished_run(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    head, row = succeed("status", tmp_path, cwd=tmp_path).out.splitlines()
    assert head.split() == ["run", "state", "step", "loss", "tokens/s", "goodput", "checkpoint"]
    loss = run.read_metrics()[-2]["train/loss"]
    assert row.split()[:4] == ["run", "done", "6/6", f"{loss:.4f}"]
    assert "step 6, " in row and row.rstrip().endswith("ago")
    goodput = goodput_of(run, alive=False)
    assert 0 < float(row.split()[5].rstrip("%")) < 100 and goodput.lost_steps == 0
    phases = ["preparing", "starting", "loading", "steps", "evaluating", "saving", "exporting"]
    assert list(goodput.seconds) == phases and goodput.attempts[0].ranks == 2
    assert ftdist("status", tmp_path / "empty").code == EXIT_USAGE


@pytest.mark.parametrize("checkpoint", ["best", pytest.param("4", marks=pytest.mark.slow)])
def test_eval_gives_the_loss_of_the_run(checkpoint: str, run: RunDir) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    of_a_killed_one = run.path / f".eval.{platform.node()}.{gone.pid}.0a1b2c3d"
    (of_a_killed_one / "step-00000004").mkdir(parents=True)
    done = succeed("eval", run.path, "--checkpoint", checkpoint)
    record = json.loads((run.path / "eval.jsonl").read_text())
    assert f"step-{record['step']:08d}" in done.out and f"{record['eval/heldout/loss']:.4f}" in done.out
    assert record["step"] == (4 if checkpoint == "4" else 6)
    expected = heldout_metrics(run)
    if record["step"] in expected:
        assert {name: record[name] for name in expected[record["step"]]} == pytest.approx(
            expected[record["step"]], rel=1e-5
        )
        assert 0 < record["eval/heldout/accuracy"] < 1 < record["eval/heldout/entropy"]
    assert not list(run.path.glob(".*")), "the exported models of this eval and of a killed one are removed"
    assert "│" not in done.out and not re.search(r" $", done.out, re.MULTILINE)


@pytest.mark.slow
def test_eval_lets_a_run_and_its_base_model_answer_questions(run: RunDir, tmp_path: Path) -> None:
    record = {"question": "two and two", "choices": [" is four", " is not"], "answer": 0}
    (tmp_path / "quiz.jsonl").write_text(json.dumps(record) + "\n")
    done = succeed("eval", run.path, "--tasks", "quiz.jsonl", cwd=tmp_path)
    result = json.loads((run.tasks / "quiz-step-00000006.json").read_text())
    [answer] = result["answers"]
    assert answer["base"] != answer["run"] and max(*answer["base"], *answer["run"]) < 0
    assert "quiz: 1 question" in done.out and "normalized" in done.out and not list(run.path.glob(".*"))
    alone = succeed("eval", run.export, "--tasks", "quiz.jsonl", "train.precision=bf16", cwd=tmp_path)
    share = 100 * result["measures"]["accuracy"]["run"]["share"]
    assert re.search(rf"quiz +accuracy +{share:.1f} % \(.*\) +1$", alone.out, re.MULTILINE), alone.out
    assert not list(tmp_path.glob("runs*"))


def test_eval_on_another_data_set(run: RunDir, tmp_path: Path) -> None:
    """In another folder, with a path that is relative to it."""
    (tmp_path / "mine.jsonl").write_text('{"prompt": "two and two", "completion": " is four"}\n' * 3)
    done = succeed("eval", run.path, "data.heldout.mine.path=mine.jsonl", "data.heldout_share=0", cwd=tmp_path)
    record = json.loads((run.path / "eval.jsonl").read_text())
    assert "eval/mine/loss" in record and "eval/heldout/loss" not in record
    rows = [re.findall(r"[\w.,]+", line) for line in done.out.split("held-out loss of")[1].splitlines()]
    assert ["mine", "27"] in [[row[0], row[-1]] for row in rows if row], (
        "three documents of eight bytes and the stop token"
    )


def test_an_export_opens_as_an_ordinary_model(run: RunDir, tmp_path: Path) -> None:
    done = succeed("export", run.path, "--checkpoint", "best", "--out", tmp_path / "model")
    assert str(tmp_path / "model") in done.out
    opened = succeed("-c", OPEN, tmp_path / "model", run.find_checkpoint("best"), command=[sys.executable])
    facts = json.loads(opened.out.splitlines()[-1])
    assert facts == {"vocab_size": 320, "template": True, "dtype": "torch.float32", "same_weights": True,
                     "same_logits": True}  # fmt: skip
    at_end = json.loads((run.report / "report.json").read_text())
    assert at_end["state"] == "done" and at_end["moved"] is None and at_end["cost"]["flops"] > 0, "written by rank 0"
    done = succeed("report", run.path, "--checkpoint", "best")
    moved = json.loads((run.report / "report.json").read_text())["moved"]
    assert str(run.report / "report.html") in done.out and 0 < moved["relative"] < 1
    assert moved["map"]["layers"] == [0, 1] and moved["tokens"], "a run with ZeRO-3 and a padded vocabulary"
    files = ("model.safetensors", "config.json", "tokenizer.json", "README.md")
    assert all((tmp_path / "model" / n).read_bytes() == (run.export / n).read_bytes() for n in files)


def test_export_refuses_a_folder_with_other_files(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    done = ftdist("export", run.path, "--out", tmp_path / "thesis")
    assert done.code == EXIT_USAGE and "--out" in done.err and done.err.count("error:") == 1
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_chat_reads_questions_from_a_pipe(run: RunDir) -> None:
    done = succeed("chat", run.path, "--max-tokens", 12, stdin="hello\n/new\nhello\n")
    assert not done.err and done.out.endswith("…\n"), "random weights do not stop"
    half = len(done.out) // 2
    assert done.out[:half] == done.out[half:], "after /new nothing is remembered, and answers are greedy"


def test_prepare_finds_data_that_is_prepared(tmp_path: Path) -> None:
    cache = f"cache_dir={tmp_path / 'cache'}"
    first = succeed("prepare", *SMOKE, cache, cwd=tmp_path)
    second = succeed("prepare", *SMOKE, cache, cwd=tmp_path, fresh=True)
    assert "(prepared in" in first.out and "(found)" in second.out
    assert first.out.splitlines()[1:] == second.out.splitlines()[1:], "the same table"
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == [Path(first.out.split()[1]).name]
    assert second.cpu_s < 5


def test_preview_shows_what_is_trained(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]}\n' * 3
    )
    data = ("data=file", "data.sources.file.path=chats.jsonl", "data.heldout_share=0")
    done = succeed("preview", *SMOKE, *data, f"cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    assert "question<|im_end|>" in done.out and "[[answer<|im_end|>]]" in done.out
    assert done.out.count("— document") == 3
    assert "\x1b" not in done.text, "plain text where it is not a terminal"
    assert not list((tmp_path / "cache").glob("data/*")), "preview writes nothing into the cache"
