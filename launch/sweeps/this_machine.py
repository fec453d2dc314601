"""Run the trials of a sweep on this machine: each in a process of its own, on GPUs that no other trial uses."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED
from ftdist.config.frozen import load_config
from ftdist.config.launch import Device
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.machine import gpu_ids
from ftdist.launch.attempt.signals import end_with_launcher, touch_on_signals
from ftdist.launch.backends.registry import backend_of
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.sweeps.objective import describe_value
from ftdist.run.rundir import PAUSED

POLL_S = 0.2
END_S = 20.0
"""Seconds to wait for the trials to end after the sweep itself has failed. Then they are killed."""


@dataclass
class _Running:
    """A trial that is under way."""

    trial: Trial
    process: "subprocess.Popen[bytes]"
    gpus: List[str]
    log: Optional[Path]
    """File for what the trial's launcher prints. None if it prints to the terminal."""


def trials_at_once(config: RunConfig, gpus: int) -> int:
    """Return how many trials of this config run at the same time. Trials that use several machines run one at a time.

    Args:
        gpus: number of GPUs of this machine.
    """
    launch = config.launch
    if not backend_of(config).on_this_machine:
        return 1
    fit = max(1, gpus // (launch.nproc_per_node or 1)) if launch.device is Device.cuda else launch.trials_at_once or 1
    return min(fit, launch.trials_at_once or fit)


def run_trials(folder: SweepDir, trials: List[Trial]) -> Dict[int, int]:
    """Run trials and wait for them. Returns exit codes by number, without the trials that did not start because of a
    stop."""
    waiting = [(trial, load_config(trial.run.config)) for trial in trials]
    free, codes, asked = gpu_ids(), {}, False
    at_once = max(trials_at_once(config, len(free)) for _, config in waiting)
    running: List[_Running] = []
    try:
        with touch_on_signals(folder.cancel, lambda: _interrupt(running)):
            while waiting or running:
                if folder.cancel.exists() and not asked:
                    waiting, asked = [], True
                    _interrupt(running)
                while waiting and len(running) < at_once and (taken := _take(free, waiting[0][1])) is not None:
                    running.append(_start(waiting.pop(0)[0], taken, quiet=at_once > 1))
                for ended in [one for one in running if one.process.poll() is not None]:
                    running.remove(ended)
                    free += ended.gpus
                    codes[ended.trial.number] = _ended(ended)
                time.sleep(POLL_S)
    finally:
        _end(running)
    return codes


def _take(free: List[str], config: RunConfig) -> Optional[List[str]]:
    """Take GPUs for a trial from the free ones. Returns None if there are too few."""
    wanted = int(config.launch.nproc_per_node or 1)
    if not backend_of(config).on_this_machine or config.launch.device is not Device.cuda:
        return []
    if len(free) < wanted:
        return None
    taken, free[:wanted] = free[:wanted], []
    return taken


def _start(trial: Trial, gpus: List[str], quiet: bool) -> _Running:
    log = trial.run.logs / "launcher.log" if quiet else None
    print(f"trial {trial.number:03d} started" + (f" on GPU {','.join(gpus)}" if gpus else ""), flush=True)
    env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})}
    out = log.open("ab") if log else None
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftdist", "resume", str(trial.run.path)], env=env, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True, preexec_fn=end_with_launcher,
        )  # fmt: skip
    finally:
        if out is not None:
            out.close()
    return _Running(trial, process, gpus, log)


def _ended(one: _Running) -> int:
    code = one.process.returncode
    words = {EXIT_DONE: "finished", EXIT_PREEMPTED: "was stopped"}.get(code, f"failed with exit code {code}")
    run = one.trial.run
    if one.trial.state == PAUSED:
        words = f"paused at step {run.read_status().get('step')}"
    value = describe_value(run, load_config(run.config).sweep)
    print(f"trial {one.trial.number:03d} {words}{value}", flush=True)
    if one.log is not None and code not in (EXIT_DONE, EXIT_PREEMPTED):
        print(_error(one.log), flush=True)
    return code if code >= 0 else EXIT_FAILED


def _error(log: Path) -> str:
    """Return the error that a trial's launcher printed last, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith("error:")]
    return "\n".join(f"    {line}" for line in (lines[begins[-1] :] if begins else lines[-5:]))


def _interrupt(running: List[_Running]) -> None:
    """Send SIGINT to the trials. After the first SIGINT they save and stop, after the second they end immediately."""
    for one in running:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)


def _end(running: List[_Running]) -> None:
    for _ in range(2):
        _interrupt(running)
        time.sleep(POLL_S if running else 0)
    deadline = time.monotonic() + END_S
    for one in running:
        try:
            one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
