"""LoRA, DoRA, QLoRA and partial training on four ranks: plain PEFT's numbers, and checkpoints that continue on two."""

import shutil
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ftdist.config.schema import Precision
from ftdist.verify.compare import ALLOWED
from tests.helpers.ranks import run_ranks
from tests.helpers.training import assemble, start, steps
from tests.ranks.test_methods import CASES, ROWS, SAVED_AT, _cases, case_config
from tests.ranks.test_methods import folder as folder
from tests.ranks.test_methods import plain_losses as plain_losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_four_ranks_give_the_numbers_of_plain_peft_and_their_checkpoints_continue_on_two(
    folder: Path, plain_losses: Dict[str, List[float]], tmp_path: Path
) -> None:
    numbers = [
        number for number, (method, _, accum, _) in enumerate(CASES) if accum <= ROWS // 4 and method != "dropout"
    ]
    assert {CASES[number][1] for number in numbers} == {0, 1, 2, 3}
    for number in numbers:
        shutil.copy(folder / f"{number}.pt", tmp_path / f"{numbers.index(number)}.pt")
    configs = [case_config(folder, 4, CASES[number]) for number in numbers]
    found = run_ranks(_cases, 4, configs, tmp_path, timeout_s=600)[0]
    for case in found:
        assert case.exact and not case.deviation.beyond(ALLOWED[Precision.fp32])
    halved = [case_config(folder, 2, CASES[number]) for number in numbers]
    continued = run_ranks(_continued, 2, halved, tmp_path, timeout_s=600)[0]
    for case, losses in zip(found, continued, strict=True):
        assert losses == pytest.approx(case.losses[SAVED_AT : SAVED_AT + 3], rel=1e-6)


def _continued(configs: List[Any], folder: Path) -> List[List[float]]:
    """Resume each run on this number of ranks. Returns its next losses."""
    ranks, losses = start(configs[0]), []
    for number, config in enumerate(configs):
        training = assemble(config, folder / f"run-{number}", ranks)
        assert training.state.step == SAVED_AT
        losses.append([loss for loss, _ in steps(training, 3)])
        training.engine.destroy()
    return losses
