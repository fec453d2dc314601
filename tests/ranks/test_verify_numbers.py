"""Bugs put into a running engine: the numeric checks of ``ftdist verify`` must find each one."""

import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import start

Patch = Callable[[pytest.MonkeyPatch], None]


def _moments_lost(patch: pytest.MonkeyPatch) -> None:
    from ftdist.checkpoint import saver

    def restore(engine: Any, *rest: Any) -> None:
        real(engine, *rest)
        for state in engine.optimizer.state.values():
            state["exp_avg"].zero_()

    real = saver.restore
    patch.setattr(saver, "restore", restore)


def _other_beta2(patch: pytest.MonkeyPatch) -> None:
    from ftdist.train import main

    def build(config: Any, *rest: Any) -> Any:
        return real(dataclasses.replace(config, optim=dataclasses.replace(config.optim, beta2=0.999)), *rest)

    real = main.build_engine
    patch.setattr(main, "build_engine", build)


def _half_a_gradient_in_bf16(patch: pytest.MonkeyPatch) -> None:
    from ftdist.engine.engine import Engine

    real = Engine.backward
    patch.setattr(Engine, "backward", lambda engine, loss: real(
        engine, loss / 2 if engine._wrapped.bfloat16_enabled() else loss))  # fmt: skip


def _another_model(patch: pytest.MonkeyPatch) -> None:
    from ftdist.train import main

    def load(*arguments: Any) -> Any:
        model = real(*arguments)
        model.model.norm.weight.data.mul_(1.5)
        return model

    real = main.load_model
    patch.setattr(main, "load_model", load)


def _an_export_that_reads_back_differently(patch: pytest.MonkeyPatch) -> None:
    from ftdist.base.errors import CheckpointError
    from ftdist.verify import number_checks

    def export(*arguments: Any) -> None:
        raise CheckpointError("'lm_head.weight' reads back differently")

    patch.setattr(number_checks, "export_checkpoint", export)


BUGS: Dict[str, Patch] = {
    "save, resume: same step": _moments_lost, "optimizer step": _other_beta2, "loss and gradient": _another_model,
    "loss in the run's precision": _half_a_gradient_in_bf16,
    "export: same logits": _an_export_that_reads_back_differently,
}  # fmt: skip


def _checks(config: Any, dropout: Any, saved: Any, folder: Path) -> Dict[str, List[Any]]:
    """Run all checks without a bug, then with each bug. Returns the checks, by bug.

    Args:
        dropout: A config whose model has dropout, which is checked without a bug as well.
        saved: A config with ZeRO-3 and ``modules_to_save``, compared with the reference while one of its modules is
            said to be whole. tests/ranks/test_methods.py makes a module whole on two ranks, and it is found.
    """
    from ftdist.verify import number_checks
    from ftdist.verify.number_checks import check_numbers

    ranks = start(config)
    found: Dict[str, List[Any]] = {}
    for number, (bug, put_in) in enumerate({"": lambda patch: None, **BUGS}.items()):
        with pytest.MonkeyPatch.context() as patch:
            put_in(patch)
            found[bug] = []
            check_numbers(config, folder / str(number), ranks, False, found[bug].append)
    found["dropout"] = []
    check_numbers(dropout, folder / "dropout", ranks, False, found["dropout"].append)
    found["whole"] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(number_checks, "unsharded", lambda engine: ["lm_head.weight"])
        number_checks._compare_with_reference(saved, folder / "whole", ranks, found["whole"].append)
    return found


def test_each_bug_fails_the_check_that_looks_for_it(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_tiny_model(tmp_path / "dropout", attention_dropout=0.3)
    settings = ("train.precision=bf16", "train.max_steps=2", "train.checkpoint_every=1", "train.export=false",
                "train.num_samples=0", "zero.stage=1", "optim.lr=1e-5", "optim.warmup_steps=2")  # fmt: skip
    config = tiny_config(tmp_path, *settings)
    freeze_tiny(config, tmp_path / "prepared", 1)
    dropout = tiny_config(tmp_path, *settings, f"model.path={tmp_path / 'dropout'}")
    saved = tiny_config(tmp_path, *settings, "zero.stage=3", "method.kind=lora", "method.modules_to_save=[lm_head]")
    found = run_ranks(_checks, 1, config, dropout, saved, tmp_path, timeout_s=300)[0]
    [whole] = [check for check in found.pop("whole") if check.outcome == "failed"]
    assert whole.name == "loss and gradient"
    assert whole.cause == "ZeRO-3 leaves 1 parameter whole on every rank, for example lm_head.weight"
    failed = {bug: [check.name for check in checks if check.outcome == "failed"] for bug, checks in found.items()}
    assert not failed.pop("")
    assert not failed.pop("dropout"), "no two forward passes are equal in training mode"
    assert "in evaluation mode" in next(check.measured for check in found["dropout"] if "gradient" in check.name)
    assert all(bug in names for bug, names in failed.items()), failed
    assert len({len(checks) for checks in found.values()}) == 1  # a failure does not end the checks
