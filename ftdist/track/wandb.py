"""The W&B sink. It is the only module that imports wandb.

All calls of the W&B client run in one daemon thread, which takes them from a bounded queue. A client that fails or
hangs therefore cannot stop or slow down training. The user is told in one line. W&B may then lack records, but
metrics.jsonl has them all.
"""

import os
import queue
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

from ftdist.base.counts import count
from ftdist.base.json_files import read_records
from ftdist.base.permissions import follow_umask
from ftdist.base.redact import redact
from ftdist.config.login import resolve_mode
from ftdist.config.schema import RunConfig, Wandb
from ftdist.config.track import NOT_USED, VARIABLES
from ftdist.run.rundir import RunDir
from ftdist.track.wandb_config import public_config, public_facts

QUEUE_SIZE = 10_000
"""Maximum number of records that wait for a slow client."""
INIT_TIMEOUT_S = 20.0
"""Time for the W&B server to answer. It is shorter than FINISH_TIMEOUT_S, so that a short run can still be recorded
offline."""
FINISH_TIMEOUT_S = 30.0
"""Time for the last records to be written or uploaded after training."""
STOP_TIMEOUT_S = 2.0
"""Time for wandb's service process to end by itself after everything is written."""
SET_HERE = {
    *VARIABLES.values(), *NOT_USED, "WANDB_MODE", "WANDB_RESUME", "WANDB_CONSOLE", "WANDB_SILENT", "WANDB_DISABLE_GIT",
    "WANDB_DISABLE_JOB_CREATION", "WANDB_SAVE_CODE", "WANDB_INIT_TIMEOUT",
}  # fmt: skip
"""Variables of wandb that have no effect, because ftdist passes these settings to wandb itself. The settings come from
the frozen config or are the same in every run. API keys and server addresses are not among them."""
TABLE_COLUMNS = ["step", "set", "index", "question", "prompt", "answer", "reference"]

Call = Callable[[Any], Any]


class WandbRun:
    """The W&B run of a training run, in rank 0. See ``track/base.py`` for its methods.

    ``log`` and ``samples`` return without waiting for the client. Errors of the client are never raised.
    """

    def __init__(self, config: RunConfig, run: RunDir, note: Callable[[str], None]) -> None:
        self._config, self._run, self._note = config, run, note
        self._queue: queue.Queue[Optional[Call]] = queue.Queue(QUEUE_SIZE)
        self._dropped = 0
        self._failed = False
        self._given_up = False
        self._exit_code = 0
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of one step. Texts and lists are left out: W&B has no charts for them."""
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, (str, list))}
        values = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
        self._put(lambda client: client.log({"step": step, **values}, step=step))

    def samples(self, step: int, rows: List[Dict[str, Any]]) -> None:
        """Log sample answers as a table.

        The table begins with the answers of the base model, so that the newest table shows what the model has learned.
        """
        base = [row for row in read_records(self._run.samples) if row.get("step") == 0] if step else []
        table = base + [{"step": step, **row} for row in rows]
        data = [[row.get(column) for column in TABLE_COLUMNS] for row in table]

        def log_table(client: Any) -> None:
            import wandb

            client.log({"step": step, "samples": wandb.Table(columns=TABLE_COLUMNS, data=data)}, step=step)

        self._put(log_table)

    def report(self, files: Mapping[str, str], numbers: Mapping[str, float]) -> None:
        """Record the files of the report as an artifact, and the main numbers in the summary of the run.

        A sweep can use the names in the summary: ``gain``, ``forgetting``, ``goodput``, ``device_hours``, ``cost``.
        """

        def log_report(client: Any) -> None:
            import wandb

            client.summary.update(dict(numbers))
            artifact = wandb.Artifact(f"report-{client.id}", type="report")
            folder = Path(client.dir).parent / "report"  # of this attempt, because an upload may come much later
            folder.mkdir(exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
                artifact.add_file(str(folder / name), policy="immutable", skip_cache=True)
            client.log_artifact(artifact)

        self._put(log_report)

    def rewind(self, step: int, evaluated: bool) -> None:
        """Do nothing, because W&B accepts each step only once. It ignores the steps that are repeated."""

    def finish(self, exit_code: int) -> None:
        """Send what is queued and close the W&B run, within ``FINISH_TIMEOUT_S``.

        No thread or process of wandb remains that could delay the end of this process.
        """
        self._exit_code = exit_code
        # If the queue is full, the client hangs, and the wait below times out.
        self._put(None)
        if not self._finished.wait(FINISH_TIMEOUT_S):
            self._given_up = True
            self._fail(f"not finished after {FINISH_TIMEOUT_S:g} s")
        else:
            self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            _kill_service()
        with suppress(OSError):  # wandb writes its files with rights of its own
            follow_umask(self._run.wandb)
        if self._dropped:
            self._note(f"W&B: {count(self._dropped, 'record')} dropped; metrics.jsonl has all")

    def _put(self, call: Optional[Call]) -> None:
        if self._finished.is_set():
            return
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._dropped += 1

    def _fail(self, reason: object) -> None:
        """Tell the user about the first failure, in one line. Later failures are not reported."""
        if not self._failed:
            self._failed = True
            words = " ".join(str(reason).split()) or type(reason).__name__
            goes_on = "" if self._given_up else "training continues, "  # W&B is given up only after training has ended
            self._note(f"W&B: {redact(words)[:200]}; {goes_on}metrics.jsonl is complete")

    def _work(self) -> None:
        """Run the client in its thread until ``finish`` is called."""
        try:
            client = self._start()
            while (call := self._queue.get()) is not None:
                try:
                    call(client)
                except Exception as error:  # a failed record must not prevent the next ones
                    self._dropped += 1
                    self._fail(error)
            client.finish(exit_code=self._exit_code)
        except BaseException as error:  # wandb has raised SystemExit and KeyboardInterrupt in its threads
            self._fail(error)
        finally:
            self._finished.set()
        _stop_service()

    def _start(self) -> Any:
        mode = resolve_mode(self._config.track.wandb)
        _remove_variables()
        # By default wandb sends crash reports to its vendor, which is unwanted on a training cluster, and keeps data
        # and a cache in the home directory, which may not exist on a compute node.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_DATA_DIR", str(self._run.wandb / "data"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(self._run.wandb / "cache"))
        if mode is Wandb.online:
            try:
                return self._init(Wandb.online)
            except Exception as error:
                if self._given_up:
                    raise
                self._fail(f"not online ({error}), recording offline")
                _kill_service()  # it holds the run ID, and may wait for the server for minutes
        return self._init(Wandb.offline)

    def _init(self, mode: Wandb) -> Any:
        import wandb

        track = self._config.track
        self._run.path.mkdir(parents=True, exist_ok=True)
        provenance = self._run.read_provenance()
        wandb.setup(wandb.Settings(silent=True))
        client = wandb.init(
            mode="online" if mode is Wandb.online else "offline",
            project=track.project,
            entity=track.entity,
            group=track.group,
            job_type=track.job_type,
            tags=track.tags,
            name=self._config.name,
            id=track.run_id,
            resume="allow",
            dir=str(self._run.path),  # wandb adds its own folder "wandb"
            config={**public_config(self._config), "provenance": public_facts(provenance)},
            settings=wandb.Settings(
                silent=True,
                console="off",  # wandb would record the live progress line
                disable_git=True,  # the config has the commit already; wandb would also upload the diff
                disable_job_creation=True,
                save_code=False,
                init_timeout=INIT_TIMEOUT_S,
                x_transaction_log_flush_interval=1.0,  # by default a SIGKILL loses the last 15 s
            ),
        )
        client.define_metric("step")
        client.define_metric("*", step_metric="step")
        return client


def _remove_variables() -> None:
    """Remove the variables in ``SET_HERE`` from the environment of this process.

    They have no effect, but wandb checks them before it reads the settings that were passed to it. With an invalid
    value, wandb would not start and the W&B record would be lost. In a W&B sweep they are kept, because its agent sets
    some of them for wandb.
    """
    if "WANDB_SWEEP_ID" not in os.environ:
        for name in SET_HERE:
            os.environ.pop(name, None)


def _stop_service() -> None:
    """Stop wandb's service process. Otherwise wandb's exit hook waits for it without a limit when Python ends."""
    try:
        import wandb

        wandb.teardown()
    except BaseException:  # the run is finished and recorded, so that no error matters here
        _kill_service()


def _kill_service() -> None:
    """Kill wandb's service process, which also ends every call that waits for it."""
    try:
        import psutil
        import wandb

        for child in psutil.Process().children():
            if child.name().startswith("wandb-core"):
                child.kill()
        wandb.teardown()  # removes wandb's exit hook
    except BaseException:  # the service has ended: there is nothing to wait for
        pass
