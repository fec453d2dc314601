"""A trial of a sweep pauses at its rungs, and goes on as if it had not."""

from pathlib import Path
from typing import Any, List

from ftdist.config.frozen import load_config
from ftdist.run.rundir import RunDir
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import assemble, start

BASE = ("train.max_steps=3", "train.num_samples=0", "train.export=false", "optim.lr=1e-3")


def _with_rungs(first: Path, second: Path) -> List[Any]:
    """Run ``first`` to its end, and ``second`` with pauses. Returns how each start ended, and its last step."""
    from ftdist.train.loop import train

    config, ends = load_config(RunDir(first).config), []
    ranks = start(config)
    for path, rungs in ((first, []), (second, [2]), (second, [2]), (second, [])):
        config.sweep.rungs = rungs
        training = assemble(config, path, ranks)
        ends.append((train(training), training.state.step))
        training.tracker.finish(0)
        training.engine.destroy()
    return ends


def test_a_trial_pauses_at_a_rung_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """If it is started again without a decision, it pauses again where it is."""
    save_tiny_model(tmp_path / "model")
    runs = [freeze_tiny(tiny_config(tmp_path, *BASE), tmp_path / name, 1) for name in ("whole", "paused")]
    (ends,) = run_ranks(_with_rungs, 1, *(run.path for run in runs))
    assert ends == [("done", 3), ("paused", 2), ("paused", 2), ("done", 3)]
    timed = ("time", "perf/", "mem/")
    whole, paused = ([{k: v for k, v in record.items() if not k.startswith(timed)} for record in run.read_metrics()]
                     for run in runs)  # fmt: skip
    at_rung = [record for record in paused if record["step"] == 2 and any(name.startswith("eval/") for name in record)]
    assert len(at_rung) == 1 and [record for record in paused if record not in at_rung] == whole
