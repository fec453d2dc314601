"""The one message for an attempt that failed: which rank failed first, and why."""

import contextlib
import platform
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import EXIT_FAILED, LaunchError
from ftdist.base.json_files import read_json
from ftdist.base.shell import shell_words
from ftdist.run.rundir import NUMBER, RunDir

LAST_LINES = 30
"""Maximum number of lines of a log that a message quotes."""
REPORTED = re.compile(
    r"time\s*:\s*(\S+)\s+host\s*:\s*(\S+)\s+rank\s*:\s*(\d+)[^\n]*\s+exitcode\s*:\s*(-?\d+) \(pid: (\d+)\)"
)
"""One failure in torchrun's report. The report names every rank of its machine whose exit code was not 0."""
FORCED = re.compile(r"Unable to shutdown process (\d+)")
"""A rank that torchrun killed, because it did not end on SIGTERM after another rank had failed."""
KILLED_UNDER_DEEPSPEED = re.compile(
    r"^(?:(?P<host>\S+): )?\[.*exits with return code = -(?P<signal>\d+)"
    r"|^mpirun noticed that process rank \d+ with PID \d+ on node (?P<node>\S+) exited on signal (?P<number>\d+)",
    re.MULTILINE,
)
"""The first process that was killed, as DeepSpeed's launcher and mpirun print it. They write no report."""
TERMINATED = re.compile(r"got signal: 15\b|Received \S*SIGTERM death signal|: task \d+: Terminated\b")
"""How torchrun and srun report that SIGTERM ended torchrun."""
SLURM_FAILED = re.compile(
    r"^srun: error: (.*(?:Node failure|launch \S* ?failed|launch .* failed|Unable to create step|Unable to confirm"
    r" allocation|Communication connection failure|Socket timed out|Zero Bytes were transmitted).*)", re.MULTILINE
)  # fmt: skip
"""srun's messages about a node that is lost or does not answer."""
OWN_ERROR = re.compile(r"^error: (.+(?:\n  .+)*)", re.MULTILINE)
"""An error that ftdist itself printed before the ranks started."""
RAISED = re.compile(r"^(?!\S*ChildFailedError)((?:\w+\.)*[A-Z]\w*(?:Error|Exception): .+)", re.MULTILINE)
"""The last line of the traceback of a rank that could not record its error, for example because a library is missing.
Torchrun's own error is left out."""
UNREACHABLE = re.compile(r"^pdsh@\S+: (\S+): ssh exited with exit code 255", re.MULTILINE)
BROKEN_EXCHANGE = re.compile(r"gloo/|NCCL|Dist(?:Backend|Network|Store)Error|Connection (?:closed|reset) by peer")
"""Errors of a rank that has lost the connection to another one. Such a rank did not fail first."""


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended, as torchrun reports it."""

    time: str
    host: str
    rank: int
    code: int
    pid: int

    @property
    def killed(self) -> bool:
        """Whether a signal ended it. torchrun itself sends SIGTERM to the other ranks after one has failed."""
        return self.code < 0 and -self.code != signal.SIGTERM

    @property
    def aborted(self) -> bool:
        """Whether it aborted itself. PyTorch aborts the process when a collective has lost another rank."""
        return -self.code == signal.SIGABRT


def explain_failure(run: RunDir, attempt: int, logs: List[Path], code: int) -> LaunchError:
    """Return the error that explains why an attempt failed.

    Causes are looked for in this order, and the first one that is found is reported: a rank that blocked the others; a
    rank that was killed and therefore recorded no error; the earliest error that does not follow from the loss of
    another rank; a rank that aborted; the earliest error of all.

    Args:
        attempt: number of the attempt.
        logs: output of the process that started the ranks, one file for each machine.
        code: exit code of the process that started the ranks, or minus the number of the signal that ended it.
    """
    where = f"logs: {run.logs}"
    resume = shell_words(["ftdist", "resume", str(run.path)])
    texts = [_text(path) for path in logs]
    ended = [found for path, text in zip(logs, texts, strict=True) for found in _reported(text, _machine(path))]
    first = _first_error(run, attempt)
    follows = first is not None and _follows_from_another(first)
    suspects = [e for e in ended if e.killed and (not e.aborted or first is None or follows)]
    if first is not None and first.get("stalled"):
        suspects = []  # the ranks determined which one blocked them, and then ended
    if killed := min(suspects, key=lambda e: (e.aborted, e.time), default=None):
        who = f"rank {killed.rank} on {killed.host}"
        why = f"was killed by {signal_name(-killed.code)}{_why(-killed.code)}"
        return LaunchError(f"{who} {why}{_last_lines(run, killed.rank, attempt)}\n  {where}", fix=resume)
    if by := next(filter(None, map(KILLED_UNDER_DEEPSPEED.search, texts)), None):
        number, host = int(by["signal"] or by["number"]), by["host"] or by["node"]
        place = f" on {host}" if host else ""
        said = f"a rank{place} was killed by {signal_name(number)}{_why(number)}\n  {where}"
        return LaunchError(said, fix=resume)
    if first is not None:
        who = f"rank {first['rank']}" + (f" on {first['host']}" if "host" in first else "")
        last = "" if first.get("known", True) else _last_lines(run, first["rank"], attempt)
        lost = _lost(run, attempt, ended) if follows else ""
        error = LaunchError(f"{who}: {first['message']}{lost}{last}\n  {where}")
        error.exit_code = first["exit_code"] if isinstance(first.get("exit_code"), int) else EXIT_FAILED
        return error
    if by := next(filter(None, map(OWN_ERROR.search, texts)), None):
        return LaunchError(f"{by[1]}\n  {where}")
    if by := next(filter(None, map(UNREACHABLE.search, texts)), None):
        host = by[1]
        spoken = re.search(f"^{re.escape(host)}: (.+)", by.string, re.MULTILINE)
        return LaunchError(f"{host} cannot be reached: {spoken[1] if spoken else 'ssh failed'}\n  {where}",
                           f"a host that `ssh {host} true` reaches without a password", resume)  # fmt: skip
    if code > 0 and (by := next(filter(None, map(RAISED.search, texts)), None)):
        until = _quoted(by.string[: by.end()])
        return LaunchError(f"a rank ended before it could record its error: {by[1]}{until}\n  {where}",
                           fix=f"remove the cause, then: {resume}")  # fmt: skip
    if code < 0:
        return LaunchError(f"the ranks were ended by {signal_name(-code)}\n  {where}", fix=resume)
    found = "all ranks exited with code 0, but the run did not reach its last step"
    if code:
        found = f"the ranks ended with exit code {code} without recording an error"
    return LaunchError(f"{found}{_quoted(''.join(texts))}\n  {where}", fix=resume)


def ended_from_outside(run: RunDir, attempt: int, logs: List[Path], code: int) -> str:
    """Return the external reason why the ranks of a job ended, or an empty text if one of them failed.

    The reason is that something sent SIGTERM to the ranks of a node, that Slurm could not start the ranks, or that it
    lost their node. The same job can then continue on other nodes. If SIGTERM comes before torchrun has started its
    ranks, the signal ends torchrun. Later, torchrun exits with code 1.

    Args:
        attempt: number of the attempt.
        logs: the logs of the nodes, then that of the job.
        code: exit code of srun.
    """
    texts = [_text(path) for path in logs]
    if texts:  # requeued jobs append to their log
        texts[-1] = texts[-1].rpartition(f"attempt {attempt} of job")[2]
    ended = [found for text in texts for found in _reported(text)]
    failed = _first_error(run, attempt) is not None or any(found.killed or found.code > 0 for found in ended)
    if failed or any(OWN_ERROR.search(text) for text in texts):
        return ""
    if lost := next(filter(None, map(SLURM_FAILED.search, texts)), None):
        return f"Slurm could not run the ranks ({lost[1].strip()[:100]})"
    if code == 128 + signal.SIGTERM or ended or any(TERMINATED.search(text) for text in texts):
        return "ended by SIGTERM"  # if ranks are reported, SIGTERM ended all of them
    return ""


def _machine(log: Path) -> str:
    """Return the name of the machine whose torchrun wrote a log. With ``launch=nodes`` it is in a file beside it."""
    joined = log.with_suffix(".joined")
    return joined.read_text(encoding="utf-8", errors="replace") if joined.is_file() else platform.node()


def _reported(text: str, machine: str = "localhost") -> List[RankEnd]:
    """Return the failures in torchrun's report.

    Args:
        machine: the name of torchrun's machine. It replaces localhost in the report.
    """
    forced = set(FORCED.findall(text))
    return [
        RankEnd(time, machine if host == "localhost" else host, int(rank), int(code), int(pid))
        for time, host, rank, code, pid in REPORTED.findall(text)
        if pid not in forced
    ]


def _first_error(run: RunDir, attempt: int) -> Optional[Dict[str, Any]]:
    records: List[Dict[str, Any]] = []
    for path in run.logs.glob(f"rank-*.attempt-{attempt}.error.json"):
        with contextlib.suppress(ValueError, OSError):  # the rank ended while it wrote the file
            record = read_json(path)
            if isinstance(record.get("time"), NUMBER) and {"rank", "message"} <= record.keys():
                records.append(record)
    return min(records, key=lambda record: (_follows_from_another(record), record["time"]), default=None)


def _follows_from_another(record: Dict[str, Any]) -> bool:
    return not record.get("known") and bool(BROKEN_EXCHANGE.search(record["message"]))


def _lost(run: RunDir, attempt: int, ended: List[RankEnd]) -> str:
    """Return a line with the ranks that left neither an error nor a report. Usually their machine was lost."""

    def ranks(kind: str) -> set[int]:
        return {int(path.name[5:10]) for path in run.logs.glob(f"rank-*.attempt-{attempt}.{kind}")}

    lost = sorted(ranks("log") - ranks("error.json") - {found.rank for found in ended})
    return f"\n  these ranks ended without recording an error: {', '.join(map(str, lost))}" if lost else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _last_lines(run: RunDir, rank: int, attempt: int) -> str:
    log = run.log_file(rank, attempt)
    text = _text(log)
    if text.strip():
        return f"\n  the last lines of {log.name}:{_quoted(text)}"
    return f"\n  {log.name} is empty" if log.is_file() else ""


def _quoted(text: str) -> str:
    return "".join(f"\n  | {line}" for line in text.splitlines()[-LAST_LINES:])


def signal_name(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _why(number: int) -> str:
    if number != signal.SIGKILL:
        return ""
    return ". The usual cause is that the machine ran out of memory (`dmesg | tail` shows whether it did)"
