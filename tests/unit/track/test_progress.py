"""Progress of a run: the live line on a terminal, and the plain lines in a pipe."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from ftdist.base.terminal import task
from ftdist.track.progress import Progress, ProgressLine

CHILD = """
import time
import ftdist.track.progress
from ftdist.base.terminal import task
from ftdist.track.progress import Progress

ftdist.base.terminal.LONG_TASK_S = 0.1
with task("loading the model [135M]"):
    time.sleep(0.3)
progress = Progress(True, {total}, {start})
progress.note("held-out loss [before] 3.2")
for step in range({start} + 1, {total} + 1):
    progress.update(step, loss=1.0 / step, tokens_per_s=5210.0, mem_gib=12.34, lr=1e-5, grad_norm=0.5)
    time.sleep({sleep})
with progress.during("evaluating") as say:
    for row in range(3):
        say(f"evaluating [docs] {{row + 1}}/3")
        time.sleep(0.3)
print("somebody prints")
progress.close()
print("after")
"""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def child(total: int, start: int = 0, sleep: float = 0.0) -> list[str]:
    return [sys.executable, "-c", CHILD.format(total=total, start=start, sleep=sleep)]


def on_a_terminal(command: list[str], columns: int, exit_code: int = 0) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        command, stdout=theirs, stdin=theirs, stderr=subprocess.PIPE, env={**env, "TERM": "xterm"}
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # Linux raises EIO when the other side has closed
        pass
    os.close(ours)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == exit_code and errors == b"", errors
    return said.decode()


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.thorough
def test_a_terminal_shows_one_live_line(columns: int) -> None:
    raw = on_a_terminal(child(total=40, sleep=0.03), columns)
    said = ESCAPE.sub("", raw)
    lines = re.split(r"[\r\n]+", said)
    assert max(map(len, lines)) <= columns
    live = [line for line in lines if line.startswith("step")]
    assert len(live) > 3 and re.match(r"step \d+/40 ", live[1])
    wanted = r"step 40/40 ━+  loss 0.0250  5.2k tok/s  12.3 GiB  0:00 left" if columns == 80 else "step 40/40 "
    assert any(re.match(wanted, line) for line in live), live[-1]
    assert any(line.startswith("held-out loss [before] 3.2") for line in lines)
    assert any(re.match(r"loading the model \[135M\]: 0\.[3-9] s", line) for line in lines)
    assert any(re.match(r"step 40/40 .*  evaluating \[docs\] 2/3  0:0\d", line) for line in live)
    assert any(line.startswith("somebody prints") for line in lines)
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l"), "the cursor is still hidden"
    assert said.rstrip().endswith("after")


def test_a_process_that_is_killed_leaves_the_cursor_visible() -> None:
    killed = (
        "import os; from ftdist.track.progress import Progress; live = Progress(True, 9, 0); os.kill(os.getpid(), 9)"
    )
    raw = on_a_terminal([sys.executable, "-c", killed], 80, exit_code=-9)
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")


@pytest.mark.thorough
def test_a_pipe_gets_about_fifty_plain_lines() -> None:
    done = subprocess.run(child(total=4000), capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout and done.stderr == ""
    lines = done.stdout.splitlines()
    steps = [line for line in lines if line.startswith("step")]
    assert 45 <= len(steps) <= 52
    assert steps[0].startswith("step    1/4000  loss 1.0000  5.2k tok/s  12.3 GiB  lr 1.0e-05  norm 0.50  ")
    assert steps[-1].startswith("step 4000/4000 ") and steps[-1].endswith("0:00 left")
    assert lines[0] == "loading the model [135M] …", "the label of a long task must be printed while it runs"
    assert re.fullmatch(r"loading the model \[135M\]: 0\.[3-9] s", lines[1])
    assert lines[2] == "held-out loss [before] 3.2"
    assert lines[-3:] == ["evaluating [docs] 1/3 …", "somebody prints", "after"]


@pytest.mark.thorough
def test_the_run_continues_when_the_reader_of_its_output_ends() -> None:
    ending = "\nimport os; os.write(2, b'alive')"
    command = child(total=3000)
    command[-1] += ending
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(20)
    process.stdout.close()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"alive")


@pytest.mark.thorough
def test_a_short_or_resumed_run_shows_every_step() -> None:
    done = subprocess.run(child(total=1020, start=1000), capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("step")] == [
        f"{step}/1020" for step in range(1001, 1021)
    ]


def test_disabled_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(False, 10, 0)
    progress.update(1, 1.0, 1.0, 1.0, 1.0, 1.0)
    progress.note("x")
    with progress.during("saving") as say, task("loading", enabled=False):
        say("saving still")
    progress.close()
    assert capsys.readouterr().out == ""


def test_every_sets_the_steps_between_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(True, 10, 0, every=4)
    for step in range(1, 11):
        progress.update(step, 1.0, 1.0, 1.0, 1.0, 1.0)
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["1/10", "4/10", "8/10", "10/10"]


def test_an_evaluation_does_not_change_the_estimated_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("ftdist.track.progress.time.monotonic", lambda: clock[0])
    progress = Progress(True, 100, 0)
    assert progress.seconds_left() is None
    for step in range(1, 21):
        clock[0] += 500.0 if step == 10 else 2.0
        progress.update(step, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert progress.seconds_left() == pytest.approx(160.0)


@pytest.mark.parametrize(("step", "filled"), [(0, 0), (10, 5), (40, 20)])
def test_without_colors_the_bar_is_as_long_as_the_share_of_steps_done(step: int, filled: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="standard", no_color=True)
    console.print(ProgressLine(step, 40, "loss 1.0"))
    assert out.getvalue() == f"step {step}/40 {'━' * filled}  loss 1.0\n"
