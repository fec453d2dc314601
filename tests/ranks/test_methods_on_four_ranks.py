"""LoRA, DoRA, QLoRA and partial training on four ranks: exact resumes, and checkpoints that continue on two. QLoRA at
every stage, offloaded, and with DoRA."""

from pathlib import Path
from typing import Any, List

import pytest

from ftdist.config.schema import Precision
from ftdist.verify.compare import ALLOWED
from tests.helpers.plain_methods import METHODS
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import NONE_WHOLE, tiny_config
from tests.helpers.training import assemble, start, steps
from tests.ranks.test_methods import CASES, ROWS, SAVED_AT, SETTINGS, SHARDED, _cases, _references, case_config
from tests.ranks.test_methods import folder as folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_resume_on_four_ranks_is_exact_and_its_checkpoint_continues_on_two(folder: Path, tmp_path: Path) -> None:
    """Every parameter is sharded. No dropout, because each number of ranks draws other masks."""
    changes = (NONE_WHOLE, "method.lora_dropout=0")
    whole, halved = ([case_config(folder, ranks, number, *changes) for number in range(len(CASES))] for ranks in (4, 2))
    found = run_ranks(_cases, 4, whole, tmp_path, timeout_s=600)[0]
    assert all(case.exact for case in found)
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


OPTIMIZER, WEIGHTS = "zero.offload_optimizer=cpu", "zero.offload_param=cpu"
QUANTIZED = [("zero.stage=0",), ("zero.stage=1",), ("zero.stage=1", OPTIMIZER), ("zero.stage=2", OPTIMIZER),
             ("zero.stage=3", OPTIMIZER, WEIGHTS), ("zero.stage=2", "method.use_dora=true")]  # fmt: skip


def test_qlora_at_every_stage_offloaded_and_with_dora(folder: Path, tmp_path: Path) -> None:
    def configs(world_size: int) -> List[Any]:
        micro = f"batch.micro_batch_size={ROWS // world_size // 2}"
        return [tiny_config(folder, *SETTINGS, *METHODS["qlora"], micro, SHARDED, *more) for more in QUANTIZED]

    run_ranks(_references, 1, dict(enumerate(configs(1))), tmp_path, timeout_s=600)
    for case, more in zip(run_ranks(_cases, 2, configs(2), tmp_path, timeout_s=600)[0], QUANTIZED, strict=True):
        assert case.exact and not case.deviation.beyond(ALLOWED[Precision.fp32]), more
        assert case.answers[0] == case.answers[1] and case.heldout[0] == pytest.approx(case.heldout[1], rel=1e-6)
