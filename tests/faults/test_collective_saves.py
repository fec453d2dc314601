"""Saves of several ranks, of which one fails, dies or is slow; and training during a save."""

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.checkpoint import durable
from ftdist.checkpoint.protocol import RankAgreement, find_newest, write_checkpoint
from ftdist.run.rundir import RunDir
from tests.faults.checkpoints import Alone, contained, contents
from tests.faults.disk import Disk
from tests.faults.table import fault
from tests.helpers.ranks import fork, free_port, run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import FIVE_STEPS, assemble, start, steps

WORLD = 2


def _join() -> RankAgreement:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    return RankAgreement()


def _save(run: RunDir, together: RankAgreement, step: int, disk: Any = None) -> str:
    durable.os = disk or os  # type: ignore[attr-defined]
    return write_checkpoint(run, contents(step, 0.0, together.rank, WORLD), together)


def _one_fails(path: Path, scratch: Path) -> Tuple[List[str], int]:
    together, run, texts = _join(), RunDir(path), []
    assert _save(run, together, 5) == ""
    index = 0
    while True:
        disk = Disk(path, scratch, failing=[index])
        texts.append(_save(run, together, 10, disk if together.rank else None))
        if texts[-1] == "":
            return texts[:-1], len(disk.operations)
        assert contained(run) == [(5, 0)]
        together.gather(None)  # all have looked
        index += 1


@fault(
    "saving",
    "one rank of several cannot write",
    "ENOSPC at each file operation of rank 1 of 2",
    "no rank waits for it; all report the same error with its number; the next save succeeds",
)
def test_all_ranks_report_that_one_rank_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    outcomes = run_ranks(_one_fails, WORLD, run.path, tmp_path / "scratch")
    assert outcomes[0][0] == outcomes[1][0] and len(outcomes[0][0]) == outcomes[1][1] > 5
    assert all(text.startswith("rank 1: No space left on device (rank-00001") for text in outcomes[0][0])
    assert contained(run) == [(5, 0), (10, 0)]
    assert [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")] == []


def _slow(path: Path) -> float:
    together, run = _join(), RunDir(path)

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, descriptor: int) -> None:
            time.sleep(1.0)
            assert not run.published_checkpoints()
            os.fsync(descriptor)

    assert _save(run, together, 5, Slow() if together.rank == 1 else os) == ""
    return float(contained(run)[0][0])


@fault(
    "saving",
    "one rank writes slowly",
    "one second before the fsync of rank 1 of 2",
    "nothing is published before the files of all ranks are on the disk",
)
def test_no_rank_publishes_before_all_have_written(tmp_path: Path) -> None:
    assert run_ranks(_slow, WORLD, tmp_path) == [5.0, 5.0]


def _fork_rank(rank: int, port: int, run: RunDir, scratch: Path, stop_at: int) -> int:
    pid = fork()
    if pid:
        return pid
    code = 3
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        together = _join()
        die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        problem = _save(run, together, 10, Disk(run.path, scratch, stop_at=stop_at, stop=die) if rank else None)
        code = 2 if problem else 0
    except RuntimeError:
        code = 2  # gloo: the connection was closed
    finally:
        os._exit(code)


@fault(
    "saving",
    "a rank is killed while it writes",
    "SIGKILL at each file operation of rank 1 of 2",
    "the other ranks notice at once; nothing is published; the next start removes the unfinished files",
)
def test_a_rank_is_killed_at_every_operation(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    write_checkpoint(run, contents(5), Alone())
    for stop_at in itertools.count():
        scratch = tmp_path / f"scratch-{stop_at}"
        scratch.mkdir()
        pids = [_fork_rank(rank, port, run, scratch, stop_at) for port in [free_port()] for rank in range(WORLD)]
        started = time.monotonic()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if codes == [0, 0]:  # it has no more operations
            break
        assert codes == [2, -signal.SIGKILL]
        assert time.monotonic() - started < 30
        assert contained(run) == [(5, 0)]
        assert find_newest(run, Alone(), pytest.fail) == run.checkpoint(5)
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000005"]
    assert stop_at > 5 and contained(run) == [(5, 0), (10, 0)]


class Waiting:
    """A disk that blocks all writes until ``go`` is set."""

    def __init__(self) -> None:
        import threading

        self.go, self.reached = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: Any) -> int:
        self.reached.set()
        assert self.go.wait(60)
        return os.write(descriptor, data)


def _beside(config: Any, path: Path) -> Dict[str, Any]:
    """Train while a checkpoint is written; its writes block until two more steps are done."""
    from ftdist.checkpoint.protocol import rank_file
    from ftdist.checkpoint.state import tensors_to_save
    from ftdist.checkpoint.tensors import Stored
    from ftdist.train.loop import _save as save

    ranks = start(config)
    training = assemble(config, path, ranks)
    losses = steps(training, 1)
    then = {key: tensor.clone() for key, tensor in tensors_to_save(training.engine).items()}
    disk = Waiting()
    durable.os = disk  # type: ignore[attr-defined]
    if not training.saver.background:
        disk.go.set()
    save(training)
    assert disk.reached.wait(60)
    published = len(training.run.published_checkpoints())
    losses += steps(training, 2)
    disk.go.set()
    training.saver.finish()
    checkpoint = training.run.published_checkpoints()[-1]
    stored = Stored([checkpoint / rank_file(rank) for rank in range(ranks.world_size)])
    for key, tensor in then.items():
        state, begin, name = key.split(":", 2)
        assert stored.read(state, name, int(begin), tensor.numel()).equal(tensor), key
    return {"losses": losses, "background": training.saver.background, "published": published}


@fault(
    "saving",
    "training continues while a checkpoint is written",
    "the disk blocks for two steps",
    "the checkpoint contains every number as it was when the save began; the steps are the same",
)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_background_save_holds_the_state_of_its_step(tmp_path: Path, stage: int) -> None:
    save_tiny_model(tmp_path / "model")
    outcomes = {}
    for background in ("true", "false"):
        config = tiny_config(tmp_path, *FIVE_STEPS, f"zero.stage={stage}", f"train.async_checkpoint={background}")
        run = freeze_tiny(config, tmp_path / f"run-{background}", WORLD)
        (outcomes[background], _) = run_ranks(_beside, WORLD, config, run.path)
    assert (outcomes["true"]["background"], outcomes["true"]["published"]) == (True, 0)
    assert (outcomes["false"]["background"], outcomes["false"]["published"]) == (False, 1)
    assert outcomes["true"]["losses"] == outcomes["false"]["losses"]


def _disk_fills(config: Any, path: Path, limited: bool) -> Tuple[List[Any], List[str]]:
    """Train five steps with a save after each. If ``limited``, rank 1 cannot write the second and third checkpoint."""
    import resource

    from ftdist.train.loop import _save as save

    ranks, notes = start(config), []
    training = assemble(config, path, ranks)
    training.saver.note = notes.append
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    free, losses = resource.getrlimit(resource.RLIMIT_FSIZE), []
    for step in range(1, 6):
        losses += steps(training, 1)
        full = limited and step in (2, 3)
        if ranks.rank == 1 and full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, free[1]))
        save(training)
        training.saver.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
    training.saver.finish()
    return losses, notes


@fault(
    "saving",
    "the disk is full for a while during a run",
    "RLIMIT_FSIZE on rank 1 of 2 during two of five saves",
    "one message for each; training continues with the same numbers; the other checkpoints are there",
)
@pytest.mark.parametrize("background", ["true", "false"])
def test_training_continues_when_the_disk_is_full(tmp_path: Path, background: str) -> None:
    save_tiny_model(tmp_path / "model")
    settings = (*FIVE_STEPS, "train.keep_checkpoints=9", f"train.async_checkpoint={background}")
    outcomes = []
    for limited in (False, True):
        run = freeze_tiny(tiny_config(tmp_path, *settings), tmp_path / f"run-{limited}", WORLD)
        outcomes.append(run_ranks(_disk_fills, WORLD, tiny_config(tmp_path, *settings), run.path, limited)[0])
    (losses, quiet), (same, notes) = outcomes
    assert losses == same and not quiet
    assert [note.split(" could not")[0] for note in notes] == ["the checkpoint of step 2", "the checkpoint of step 3"]
    assert all("rank 1: File too large (rank-00001.safetensors); training continues" in note for note in notes)
    assert [path.name[-1] for path in run.published_checkpoints()] == ["1", "4", "5"]
    assert not list(run.checkpoints.glob(".*"))


def _fails(config: Any, path: Path) -> int:
    import threading

    import torch

    from ftdist.parallel import ranks as rank_setup
    from ftdist.train import main
    from ftdist.train.loop import _save as save

    disk = Waiting()
    durable.os = disk  # type: ignore[attr-defined]

    def train(training: Any) -> str:
        steps(training, 1)
        save(training)
        threading.Timer(0.5, disk.go.set).start()
        torch.distributed.barrier()  # if one rank failed seconds earlier, the watchdog of the other would end it
        raise ValueError("broken")

    main.train = train
    with pytest.raises(ValueError, match="broken"):
        main.run_training(config, RunDir(path), rank_setup.read_ranks(config), 0)
    return len(RunDir(path).published_checkpoints())


@fault(
    "saving",
    "training fails while a checkpoint is written",
    "an exception on both ranks during the save",
    "the checkpoint is finished before the run ends",
)
def test_a_failing_run_finishes_its_background_save(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path, *FIVE_STEPS)
    run = freeze_tiny(config, tmp_path / "run", WORLD)
    assert run_ranks(_fails, WORLD, config, run.path) == [1, 1]


def _twice(config: Any, path: Path) -> List[bool]:
    import threading

    from ftdist.train.loop import _save as save

    training = assemble(config, path, start(config))
    disk = Waiting()
    durable.os = disk  # type: ignore[attr-defined]
    steps(training, 1)
    save(training)
    steps(training, 1)
    threading.Timer(0.5, disk.go.set).start()
    save(training)
    published = [bool(training.run.published_checkpoints())]
    training.saver.finish()
    return [*published, training.run.checkpoint(2).is_dir()]


@fault(
    "saving",
    "a checkpoint is due while the previous one is still being written",
    "the disk blocks for one step",
    "the save waits for the previous one; both are published",
)
def test_a_save_waits_for_the_previous_one(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path, *FIVE_STEPS)
    run = freeze_tiny(config, tmp_path / "run", WORLD)
    assert run_ranks(_twice, WORLD, config, run.path) == [[True, True]] * WORLD


def _no_memory(config: Any, path: Path) -> Tuple[bool, List[str]]:
    from ftdist.checkpoint import saver

    saver.free_memory = lambda: 1000  # type: ignore[assignment]
    notes: List[str] = []
    training = assemble(config, path, start(config))
    made = saver.Saver(training.engine, training.run, config, {}, notes.append)
    return made.background, notes


@fault(
    "saving",
    "host memory has no room for a copy of the state",
    "1000 bytes are reported as free",
    "one line says so; training waits while checkpoints are written",
)
def test_training_waits_for_saves_without_memory_for_a_copy(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path, *FIVE_STEPS)
    run = freeze_tiny(config, tmp_path / "run", 1)
    ((background, notes),) = run_ranks(_no_memory, 1, config, run.path)
    assert (
        not background
        and len(notes) == 1
        and "has not enough free memory to save checkpoints in the background" in notes[0]
    )
