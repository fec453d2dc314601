"""A run is the same whatever starts its ranks; and what a run prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import environment, interrupt, kill_tree, start, succeed, wait_until
from tests.helpers.group import ftdist_with_forked_ranks
from tests.helpers.runs import BARE, PADDED_ZERO3, SMOKE, assert_same, finished_run, newest_step

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ftdist"]

# Every line that a smoke run may print. Lines of libraries are noise.
NUMBER = r"[\d.,]+(e[+-]?\d+)?k?"
LINES = [
    r"(cores|memory|GPUs|libraries) +\S.*",
    r"data \S+ \((prepared in [\d.]+ s|found)\)",  # found: another test has prepared the same data
    r"source +documents +tokens +trained +truncated +split +dropped +share",
    rf"fake +({NUMBER} +){{6}}{NUMBER}%",
    r"set +rows +documents +tokens +trained +rows filled +stop token",
    rf"(train|heldout) +({NUMBER} +){{4}}{NUMBER}% +<\|im_end\|>",
    rf"general/builtin +({NUMBER} +){{4}}{NUMBER}% +none",
    rf"model +random weights: llama, {NUMBER} parameters",
    rf"data +fake: {NUMBER} rows, {NUMBER} tokens, {NUMBER} of them trained; {NUMBER} documents held out",
    r"batch +4 rows a step \(1 per rank × 2 accumulation steps × 2 ranks\) × 512 tokens = 2,048 tokens a step",
    r"ZeRO-2 +held in +where",
    r"(weights, activations|gradients|optimizer states|loss) +(bf16|fp32).*",
    r"\[\[ trained \]\]  not trained",
    r"<\|im_start\|>(user|assistant)",
    r"[a-z ]+[?.]<\|im_end\|>|\[\[[a-z ]+\.<\|im_end\|>\]\]",  # the sample: made-up words
    r"run +\S+",
    r"(loading|exporting) the model: [\d.]+ s",
    r"attention: documents; changing one document changes the logits of the others by 0, changing a token changes "
    r"earlier logits by 0",
    rf"activations: recomputed layers keep their inputs\. For 512 tokens all layers keep about {NUMBER} MiB, and the "
    rf"layer that is being recomputed takes {NUMBER} MiB more",
    rf"loss: the head computes 512 tokens at a time and needs up to {NUMBER} MiB, "
    "with the gradient of its weight in fp32",
    rf"estimate: 6 steps need {NUMBER} operations\. At the rate measured for matrix products \({NUMBER} a second on 2 "
    rf"devices\) they take [\d:]+, or {NUMBER} device-hours\. Real steps take this time divided by their MFU",
    r"step \d: training waited [\d.]+ s for the checkpoint",
    r"in [\d.]+ s, the base model wrote the \d+ texts on which forgetting is measured "
    r"\(report\.forgetting\.texts=0 turns this off\)",
    r"step \d: held-out loss [\d.]+; loss on general text [\d.]+; KL\(base ‖ now\) -?[\d.]+ ± [\d.]+",
    rf"step \d/6  loss {NUMBER}  {NUMBER} tok/s  {NUMBER} GiB  lr {NUMBER}  norm {NUMBER}  ([\d:]+|\?) left",
    r"held-out loss +before +after +change +perplexity",
    rf"heldout +{NUMBER} +{NUMBER} +-{NUMBER} % +\d+ → \d+",
    r"change \(nats per token\) +loss +95 % interval +documents",
    rf"heldout +[+-]{NUMBER} +[+-]{NUMBER} to [+-]{NUMBER} +\d+",
    r"token accuracy +before +after +change +95 % interval",
    rf"heldout +{NUMBER} % +{NUMBER} % +[+-]{NUMBER} +[+-]{NUMBER} to [+-]{NUMBER}",
    r"forgetting \(nats per token\) +before +after",
    rf"loss on general text: builtin +{NUMBER} +{NUMBER} \(change [+-]{NUMBER} to [+-]{NUMBER}\)",
    rf"KL\(base ‖ now\) +{NUMBER} +-?{NUMBER} ± {NUMBER}",
    r"time to measure it +([\d.]+ s|[\d:]+), [\d.]+% of the run",
    r"time of a step +seconds +share",
    r"(data|forward|backward|agreement|update|other) +[\d.]+ +[\d.]+%",
    r"all +[\d.]+ +MFU [\d.]+%",
    r"question 1 +[a-z ]+\??",
    r"reference +\S.*",
    r" {14}[a-z ]+[?.…]*",  # the rest of a text
    r"model +\S+/export",
    r"W&B +offline; upload it with: wandb sync \S+/offline-run-\*",
    r"time +([\d.]+ s|\d+:\d\d)",
    r"next +source \S+/bin/activate",  # where the environment is not active
    r"(next)? +ftdist chat \S+",
    r" +ftdist eval \S+ --checkpoint best",
    r" +ftdist status",
    r"report +\S+/report/report\.html",
    r"The run is done after 6 of 6 steps and [\d,]+ tokens\.",
    rf"The held-out loss of heldout went from {NUMBER} to {NUMBER} \(-{NUMBER} %.*\)\.",
    rf"Its best checkpoint is that of step 6 \(held-out loss {NUMBER}\)\.",
    r"Forgetting was not measured\.|On (\d+ )?texts that the base model wrote, .*",
    rf"The loss on general text went from {NUMBER} to {NUMBER} \(builtin; .*\)\.",
    r"The change of the weights was not measured\.",
    rf"The run held {NUMBER} devices? for {NUMBER} device-hours; {NUMBER} % of [\d.:]+( s)? went into steps that "
    r"count\.",
]


def test_a_run_prints_only_known_lines() -> None:
    printed = (finished_run(*SMOKE).path.parent / "output.txt").read_text()
    printed = re.sub(
        r"\nbase model .*?\nreference", "\nreference", printed, flags=re.DOTALL
    )  # a sample of random weights may contain any characters
    strange = [
        line for line in printed.splitlines() if line and not any(re.fullmatch(known, line.rstrip()) for known in LINES)
    ]
    assert not strange
    assert printed.splitlines()[-1].endswith("/report/report.html")
    # Also inside lines that match a pattern above.
    assert not re.search(r"warn|deprecat|it/s|\d%\|", printed, re.IGNORECASE)
    assert len(printed.splitlines()) < 90


@pytest.mark.parametrize("overrides", [SMOKE, PADDED_ZERO3], ids=["smoke", "ZeRO-3"])
def test_logs_hold_only_the_output_of_rank_0(overrides: tuple[str, ...]) -> None:
    run = finished_run(*overrides)
    logs = sorted(run.logs.glob("*.log"))
    assert [log.name for log in logs] == ["launcher.attempt-0.log", *(f"rank-0000{r}.attempt-0.log" for r in (0, 1))]
    said = logs[1].read_text()
    assert said and said in (run.path.parent / "output.txt").read_text().replace("\r\n", "\n")
    assert not logs[0].read_text() and not logs[2].read_text()


def test_a_run_under_the_users_torchrun_is_the_same(tmp_path: Path) -> None:
    run, temporary = RunDir(tmp_path / "run"), tmp_path / "temporary"
    temporary.mkdir()
    done = succeed("train", *SMOKE, f"run_dir={run.path}", command=TORCHRUN, TMPDIR=str(temporary))
    assert done.out.count("tokens a step") == 1, "only rank 0 prints"
    assert re.search(r"^time +\S+.*\n *next .*ftdist status \S+$", done.out.rstrip(), re.MULTILINE | re.DOTALL)
    left = [path.name for path in temporary.iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor_")], "only the cache of torch may stay"
    status = run.read_status()
    assert (status["state"], status["backend"], status["attempt"]) == ("done", "local", 0)
    assert_same(run, finished_run(*SMOKE))


def test_ctrl_c_under_torchrun_saves_a_checkpoint(tmp_path: Path) -> None:
    """torchrun passes the signal on to its ranks, and itself ends with a traceback."""
    run = RunDir(tmp_path / "run")
    long = ("train.max_steps=5000", "optim.schedule=constant", "train.eval_every=null")
    process = start("train", *SMOKE, *BARE, *long, f"run_dir={run.path}", command=TORCHRUN)
    wait_until(process, lambda: newest_step(run) >= 2)
    done = interrupt(process)
    assert f"resume with: ftdist resume {run.path}" in done.out and "error: " not in done.out
    assert run.read_status()["state"] == "preempted" and run.find_checkpoint("last")


def test_torchrun_shows_the_config_once(tmp_path: Path) -> None:
    done = succeed("train", *SMOKE, "--cfg", "job", "-p", "optim.lr", command=TORCHRUN, cwd=tmp_path)
    assert done.out == "0.001\n"


def test_a_run_killed_under_torchrun_resumes_without_it(tmp_path: Path) -> None:
    """No launcher was left to record the end of the run in status.json."""
    run = RunDir(tmp_path / "run")
    process = start("train", *SMOKE, "track=disabled", f"run_dir={run.path}", command=TORCHRUN)
    wait_until(process, lambda: newest_step(run) >= 3)
    kill_tree(process)
    assert "dead?" in succeed("status", run.path).out
    assert ftdist_with_forked_ranks("resume", run.path) == 0
    assert_same(run, finished_run(*SMOKE))


@pytest.mark.slow  # tests/nodes runs the commands of a dry run for two nodes
def test_the_command_of_a_dry_run_works(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a run")
    done = succeed("train", *SMOKE, "track=disabled", f"run_dir='{run.path}'", "--dry-run", cwd=tmp_path)
    assert run.read_status()["state"] == "frozen" and not run.metrics.exists()
    command = done.out.splitlines()[-1]
    typed = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert typed.returncode == 0, typed.stderr
    assert run.read_status()["state"] == "done"
    assert_same(run, finished_run(*SMOKE))


@pytest.mark.parametrize("command", [None, TORCHRUN], ids=["ftdist", "torchrun"])
def test_a_resume_of_a_finished_run_changes_nothing_and_succeeds(command: list[str] | None) -> None:
    run = finished_run(*SMOKE)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    done = succeed("resume", run.path, **({"command": command} if command else {}))
    assert done.out.count("is done; to train longer, start a new run: ftdist train") == 1
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
