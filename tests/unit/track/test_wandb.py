"""The real W&B client in a separate process: its run file is read back, and servers do not answer."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftdist.base.json_files import read_records
from ftdist.run.rundir import RunDir
from ftdist.track.report import has_record
from tests.unit.wandb_reader import read_runs

pytestmark = pytest.mark.process
CANARY = "CANARY-5b7e0c"
LIMIT_S = 40
HEADLINE = {"gain": 0.5, "forgetting": 0.125, "goodput": 0.75, "device_hours": 2.0, "cost": 5.0, "energy_kwh": 1.25}
"""The names that ``ftdist.report.summary.headline`` returns: a W&B sweep can use them."""
INVALID = {"WANDB_RUN_ID": " ", "WANDB_PROJECT": "team/proj", "WANDB_MODE": "offlin", "WANDB_TAGS": "a" * 65,
           "WANDB_RESUME": "perhaps", "WANDB_CONSOLE": "loud", "WANDB_INIT_TIMEOUT": "soon"}  # fmt: skip

CHILD = """
import json, os, sys, time
from ftdist.config.schema import RunConfig, Wandb
from ftdist.base.json_files import write_json
from ftdist.run.rundir import RunDir
from ftdist.track import wandb as wandb_run
from ftdist.track.tracker import Tracker
assert "wandb" not in sys.modules

ask = json.loads(sys.argv[1])
for name, value in ask.get("patch", {}).items():
    setattr(wandb_run, name, value)
config = RunConfig(name="kitten")
config.track.wandb = Wandb[ask.get("wandb", "offline")]
config.track.run_id, config.track.group, config.track.tags = "abcd1234", "litter", ["soft"]
config.model.config = {"model_type": "llama", "auth_token": CANARY, "deep": [{"api_key": CANARY}]}
config.zero.deepspeed = {"comet": {"api_key": CANARY}, "gradient_clipping": 1.0}
config.data.chat_template = f"https://me:{CANARY}@example.org/template"
run = RunDir(ask["run"])
run.path.mkdir(parents=True, exist_ok=True)
git = {"commit": "c0ffee", "diff": CANARY, "status": " M a"}
write_json(run.provenance, {"python": "3.x", "argv": [CANARY], "git": git})

tracker = Tracker(config, run, 0, ask.get("resumed", False), note=lambda text: print("NOTE", text, flush=True))
longest = 0.0
first, last = ask["steps"]
for step in range(first, last):
    started = time.perf_counter()
    tracker.log(step, {"train/loss": 1.0 / (step + 1), "count": step})
    longest = max(longest, time.perf_counter() - started)
    if step % ask.get("samples_every", 10) == 0:
        row = {"set": "cats", "index": 0, "question": "what?", "prompt": "p", "reference": "r"}
        tracker.samples(step, [{**row, "answer": f"meow {step}"}])
    time.sleep(ask.get("sleep", 0))
print("LOGGED", longest, flush=True)
time.sleep(ask.get("wait", 0))
if ask.get("report"):
    tracker.log(last, {"gain/loss": 0.5, "gain/net": 0.375, "forgetting/kl": 0.125})
    tracker.report({"report.html": "<p>é", "report.json": "{}"}, ask["report"])
started = time.perf_counter()
tracker.finish(3)
print("FINISHED", time.perf_counter() - started, flush=True)
if ask.get("os_exit"):
    os._exit(3)
""".replace("CANARY", repr(CANARY)).replace(f"{{{CANARY!r}}}", CANARY)


def command(run: Path, steps: tuple[int, int] = (0, 100), **ask: Any) -> list[str]:
    return [sys.executable, "-c", CHILD, json.dumps({"run": str(run), "steps": steps, **ask})]


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return {**kept, "HOME": str(home), **variables}


def track(tmp_path: Path, env: dict[str, str] | None = None, **ask: Any) -> tuple[RunDir, dict[str, str], list[str]]:
    """Run a tracked process to its end: (run directory, timings, notes)."""
    run = RunDir(tmp_path / "run")
    done = subprocess.run(
        command(run.path, **ask), env=env or environment(tmp_path), capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == (3 if ask.get("os_exit") else 0), done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if not line.startswith("NOTE"))
    return run, said, [line[5:] for line in done.stdout.splitlines() if line.startswith("NOTE")]


def assert_record_is_complete(run: RunDir, steps: range = range(100)) -> None:
    assert [record["step"] for record in read_records(run.metrics)] == list(steps)


def processes_of(tmp_path: Path) -> list[str]:
    """Return the names of the processes that a tracked process left running. They have its home directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("HOME") == str(tmp_path / "home"):
                found.append(process.name())
        except psutil.Error:
            pass
    return found


def wait_for_no_process(tmp_path: Path) -> None:
    until = time.monotonic() + 5
    while (left := processes_of(tmp_path)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


@pytest.fixture(autouse=True)
def no_wandb_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    wait_for_no_process(tmp_path)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_the_offline_run_file_holds_config_history_tables_and_exit_code(tmp_path: Path) -> None:
    # wandb itself would refuse each of the other values, although all these settings are passed to it.
    env = environment(tmp_path, WANDB_X_STATS_SAMPLING_INTERVAL="0.2", **INVALID)
    run, _, notes = track(tmp_path, env, wait=0.7, report=HEADLINE)
    assert notes == []
    (found,) = read_runs(run.wandb)
    assert has_record(found.folder)
    assert (found.run_id, found.run.display_name, found.run.run_group) == ("abcd1234", "kitten", "litter")
    assert (found.run.project, found.run.job_type, list(found.run.tags)) == ("ftdist", "train", ["soft"])
    assert found.config["optim"]["lr"] == 1e-5 and found.config["zero"]["stage"] == 2
    assert found.config["model"]["config"] == {"model_type": "llama", "deep": [{}]}
    assert found.config["provenance"]["git"] == {"commit": "c0ffee", "changed_files": 1}
    assert found.rows("step") == found.rows("_step") == list(range(101))
    assert found.rows("train/loss") == [1.0 / (step + 1) for step in range(100)]
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in found.metrics)
    assert found.exit_code == 3
    assert found.num_stats > 0, "no system metrics"
    tables = [json.loads((found.folder / "files" / path).read_text()) for path in found.rows("samples/path")]
    assert len(tables) == 10
    assert tables[-1]["columns"] == ["step", "set", "index", "question", "prompt", "answer", "reference"]
    assert [(row[0], row[5]) for row in tables[-1]["data"]] == [(0, "meow 0"), (90, "meow 90")]
    assert found.summary.items() >= HEADLINE.items()
    assert [found.rows(name) for name in ("gain/loss", "gain/net", "forgetting/kl")] == [[0.5], [0.375], [0.125]]
    (artifact,) = [one for one in found.artifacts if one.type == "report"]
    assert artifact.name == "report-abcd1234"
    assert [entry.path for entry in artifact.manifest.contents] == ["report.html", "report.json"]
    home = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not home, f"files outside of the run directory: {home}"


def test_no_secret_reaches_wandb(tmp_path: Path) -> None:
    run, _, _ = track(tmp_path)
    files = [path for path in run.wandb.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" and b"c0ffee" in path.read_bytes() for path in files)
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def test_a_resume_after_os_exit_continues_the_same_wandb_run(tmp_path: Path) -> None:
    track(tmp_path, steps=(0, 50), os_exit=True)
    run, _, _ = track(tmp_path, steps=(50, 100), resumed=True, os_exit=True)
    first, second = read_runs(run.wandb)
    assert first.run_id == second.run_id == "abcd1234"
    assert first.rows("_step") + second.rows("_step") == list(range(100))
    assert (first.exit_code, second.exit_code) == (3, 3)
    assert_record_is_complete(run)


def test_sigkill_loses_about_a_second_of_wandb_and_no_record(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    # Log slowly: a full block of 32 KiB would be written at once.
    asked = command(run.path, steps=(0, 100_000), sleep=0.1, samples_every=1000)
    child = subprocess.Popen(asked, env=environment(tmp_path), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not run.metrics.exists() or len(read_records(run.metrics)) < 130:
        assert time.monotonic() < until
        time.sleep(0.2)
    services = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    for service in services:  # as a batch system does; otherwise wandb's service would still write its records
        service.kill()
    child.wait()
    steps = len(read_records(run.metrics))
    assert_record_is_complete(run, range(steps))
    (found,) = read_runs(run.wandb)
    kept = found.rows("step")
    assert kept == list(range(len(kept)))
    # Measured: 8 on an idle machine, and 55 with wandb's default interval. A loaded machine needs more than a second.
    assert steps - len(kept) < 45, f"{len(kept)} of {steps} rows"


def test_a_file_in_place_of_the_wandb_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("not a folder")
    run, said, notes = track(tmp_path)
    assert_record_is_complete(run)
    assert len(notes) == 1 and notes[0].endswith("training continues, metrics.jsonl is complete"), notes
    assert float(said["FINISHED"]) < 5


def test_a_broken_wandb_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise SystemExit('a broken\\ninstallation')")
    run, _, notes = track(tmp_path, environment(tmp_path, PYTHONPATH=str(tmp_path)))
    assert_record_is_complete(run)
    assert notes == ["W&B: a broken installation; training continues, metrics.jsonl is complete"]


def test_a_server_that_never_answers_leaves_an_offline_run(tmp_path: Path, silent_server: str) -> None:
    env = environment(tmp_path, WANDB_BASE_URL=silent_server, WANDB_API_KEY="a" * 40)
    started = time.monotonic()
    run, said, notes = track(tmp_path, env, wandb="auto", patch={"INIT_TIMEOUT_S": 2.0})
    assert time.monotonic() - started < 15
    assert len(notes) == 1 and "recording offline" in notes[0], notes
    assert_record_is_complete(run)
    assert float(said["LOGGED"]) < 0.5
    (found,) = [one for one in read_runs(run.wandb) if one.folder.name.startswith("offline-run")]
    assert found.rows("step") == list(range(100)) and found.exit_code == 3


@pytest.mark.slow  # has time limits that a loaded machine may exceed
@pytest.mark.parametrize("os_exit", [False, True])
def test_a_wandb_that_hangs_delays_neither_a_step_nor_the_end(
    tmp_path: Path, silent_server: str, os_exit: bool
) -> None:
    env = environment(tmp_path, WANDB_BASE_URL=silent_server, WANDB_API_KEY="a" * 40)
    patch = {"INIT_TIMEOUT_S": 100.0, "FINISH_TIMEOUT_S": 1.0, "QUEUE_SIZE": 20}
    asked = command(tmp_path / "run", wandb="online", patch=patch, os_exit=os_exit)
    started = time.monotonic()
    done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == (3 if os_exit else 0), done.stderr
    notes = [line for line in done.stdout.splitlines() if line.startswith("NOTE")]
    assert time.monotonic() - started < 10
    assert_record_is_complete(RunDir(tmp_path / "run"))
    assert "not finished after 1 s" in notes[0]
    assert "records dropped" in notes[1] and len(notes) == 2
    assert "FINISHED" in done.stdout


def test_wandb_never_asks_the_user(tmp_path: Path) -> None:
    """On a terminal and without a login, wandb by itself would ask for a key."""
    ours, theirs = pty.openpty()
    try:
        for mode in ("auto", "online"):
            run = RunDir(tmp_path / mode)
            child = subprocess.Popen(
                command(run.path, (0, 20), wandb=mode),
                env=environment(tmp_path),
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
            )
            assert child.wait(LIMIT_S) == 0
            (found,) = read_runs(run.wandb)
            assert found.folder.name.startswith("offline-run") and found.rows("step") == list(range(20))
        said = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert all(line.split(" ")[0] in ("LOGGED", "FINISHED") for line in said.splitlines() if line), said


def test_disabled_wandb_writes_nothing(tmp_path: Path) -> None:
    run, _, notes = track(tmp_path, wandb="disabled")
    assert not run.wandb.exists() and notes == []
    assert_record_is_complete(run)
