"""A checkpoint loaded into a fresh engine continues bit for bit; on other ranks, equal up to rounding."""

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set, Tuple

import pytest

from ftdist.train.base_texts import BaseTexts
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import NONE_WHOLE, freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import FIVE_STEPS, assemble, fingerprint, forgetting, save, start, steps

STEPS, SAVED_AT = 5, 2
FP32, BF16 = "train.precision=fp32", "train.precision=bf16"
OFFLOAD, PARAMS = "zero.offload_optimizer=cpu", "zero.offload_param=cpu"
BF16_OPTIMIZER = "zero.deepspeed.data_types.grad_accum_dtype=fp32"  # selects another class of DeepSpeed
ROUND_ROBIN = "zero.deepspeed.zero_optimization.round_robin_gradients=true"
SUB_GROUPS = "zero.deepspeed.zero_optimization.sub_group_size=20000"
KINDS = [
    (0, FP32), (0, BF16), (1, FP32), (1, BF16), (2, FP32), (2, BF16), (3, FP32), (3, BF16), (1, BF16, BF16_OPTIMIZER),
    (1, BF16, OFFLOAD), (2, BF16, OFFLOAD), (2, FP32, ROUND_ROBIN), (3, BF16, OFFLOAD), (3, BF16, OFFLOAD, PARAMS),
    (3, FP32, OFFLOAD, PARAMS), (3, BF16, SUB_GROUPS, NONE_WHOLE),
]  # fmt: skip
FORGETTING = ("report.forgetting.texts=3", "report.forgetting.tokens=6")
MEASURED = ((0, BF16), (1, FP32), (2, BF16), (3, FP32), (3, BF16))
"""Kinds in which forgetting is measured too."""
UNCHANGED = {"forgetting/kl": 0.0, "forgetting/kl_error": 0.0}
OPTIMIZERS = {"AdamW", "FP16_UnfusedOptimizer", "BF16_Optimizer", "DeepSpeedZeroOptimizer",
              "DeepSpeedZeroOptimizer_Stage3"}  # fmt: skip


def _exact(configs: List[Any], folder: Path) -> Set[str]:
    """Save, train on, resume and train again, in each config. Returns the names of the optimizer classes."""
    ranks, optimizers = start(configs[0]), set()
    for number, config in enumerate(configs):
        training = assemble(config, folder / f"run-{number}", ranks)
        optimizers.add(type(training.engine.zero_optimizer).__name__)
        what = f"stage {config.zero.stage}, {config.train.precision.name}, {config.zero.deepspeed}"
        assert forgetting(training) == (UNCHANGED if config.report.forgetting.texts else {}), what
        first = steps(training, SAVED_AT)
        save(training)
        before = fingerprint(training.engine)
        moved = forgetting(training)
        assert fingerprint(training.engine) == before, what
        rest = steps(training, STEPS - SAVED_AT)
        after = fingerprint(training.engine)
        training.engine.destroy()

        resumed = assemble(config, folder / f"run-{number}", ranks)
        assert resumed.state.step == SAVED_AT, what
        assert fingerprint(resumed.engine) == before, what
        assert resumed.engine.no_gradient.names == [], what
        assert forgetting(resumed) == moved and moved != UNCHANGED, what
        assert steps(resumed, STEPS - SAVED_AT) == rest, what
        assert fingerprint(resumed.engine) == after, what
        assert len(set(first + rest)) == STEPS
        resumed.engine.destroy()
    return optimizers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout, so that the random states matter. Its size is not divisible by the number of ranks."""
    folder = tmp_path_factory.mktemp("resume")
    save_tiny_model(folder / "model", hidden_size=48, intermediate_size=100, attention_dropout=0.1, vocab_size=261)
    return folder


def _config(folder: Path, stage: int, *overrides: str) -> Any:
    return tiny_config(folder, *FIVE_STEPS, f"zero.stage={stage}", *overrides)


def test_resume_is_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    configs = [_config(folder, *kind, *(FORGETTING if kind in MEASURED else ())) for kind in KINDS]
    freeze_tiny(configs[0], tmp_path / "run", 2)
    assert run_ranks(_exact, 2, configs, tmp_path)[0] == OPTIMIZERS


@pytest.mark.slow
def test_resume_is_bit_for_bit_on_three_ranks(folder: Path, tmp_path: Path) -> None:
    """No size is divisible by three, so every part is padded."""
    configs = [_config(folder, *kind, "batch.global_batch_size=9") for kind in KINDS]
    freeze_tiny(configs[0], tmp_path / "run", 3)
    run_ranks(_exact, 3, configs, tmp_path)


WORLDS = (4, 2, 1, 4)
"""Number of ranks of each attempt of a run. The first attempt takes two steps, the others one; each saves."""
STAGES = ((3, 1, 2, 0), (1, 3, 0, 2), (0, 3, 1, 3), (2, 0, 3, 1))
"""ZeRO stages of the attempts of four runs. Together, every stage is followed by every other one."""


def _attempt(configs: List[Any], folder: Path, count: int) -> List[Any]:
    """Take the next steps of every run. Returns the loaded state, the steps, the saved state, the random state, and
    what forgetting was before and after."""
    import torch

    from ftdist.checkpoint.state import tensors_to_save

    def whole() -> Dict[str, Any]:
        return {key: tensor.float().numpy().tobytes() for key, tensor in tensors_to_save(training.engine).items()}

    ranks, outcomes = start(configs[0]), []
    for number, config in enumerate(configs):
        training = assemble(config, folder / f"run-{number}", ranks)
        before = forgetting(training)["forgetting/kl"]
        loaded, results = whole(), steps(training, count)
        save(training)
        after = forgetting(training)["forgetting/kl"]
        outcomes.append((loaded, results, whole(), torch.get_rng_state().sum().item(), (before, after)))
        training.engine.destroy()
    return outcomes


def _merged(parts: Sequence[Dict[str, Any]]) -> Dict[str, str]:
    """Return the hash of every whole tensor, joined from the slices of all ranks."""
    slices: Dict[str, List[Tuple[int, bytes]]] = {}
    for part in parts:
        for key, data in part.items():
            state, begin, name = key.split(":", 2)
            slices.setdefault(f"{state} {name}", []).append((int(begin), data))
    return {name: hashlib.sha256(b"".join(data for _, data in sorted(found))).hexdigest()
            for name, found in slices.items()}  # fmt: skip


def test_resume_on_other_ranks_and_stages(folder: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", hidden_size=48, intermediate_size=100)
    plain = (f"model.path={model}", *FORGETTING)
    straight = _config(folder, 0, *plain)
    freeze_tiny(straight, tmp_path / "run", 1)
    ((_, expected, _, _, (unchanged, forgotten)),) = run_ranks(_attempt, 1, [straight], tmp_path / "straight", STEPS)[0]
    assert unchanged == 0 and abs(forgotten) > 1e-4
    texts = BaseTexts.load(tmp_path / "straight" / "run-0" / "base_texts.npz")
    saved: List[Dict[str, str]] = []
    done, kl = 0, [0.0] * len(STAGES)
    for attempt, world_size in enumerate(WORLDS):
        count = 2 if attempt == 0 else 1
        configs = [_config(folder, stages[attempt], *plain) for stages in STAGES]
        ranks = run_ranks(_attempt, world_size, configs, tmp_path, count)
        for number, stages in enumerate(STAGES):
            what = f"ZeRO-{stages[attempt]} on {world_size} ranks, attempt {attempt} of run {number}"
            if attempt:
                assert _merged([rank[number][0] for rank in ranks]) == saved[number], what
            losses = [loss for loss, _ in ranks[0][number][1]]
            assert losses == pytest.approx([loss for loss, _ in expected[done : done + count]], rel=1e-6), what
            assert len({rank[number][4] for rank in ranks}) == 1, what
            kl_before, kl_after = ranks[0][number][4]
            assert kl_before == pytest.approx(kl[number], abs=1e-6), what
            kl[number] = kl_after
        saved = [_merged([rank[number][2] for rank in ranks]) for number in range(len(STAGES))]
        done += count
    assert done == STEPS and kl == pytest.approx([forgotten] * len(STAGES), abs=1e-6)
    for number in range(len(STAGES)):
        drawn = BaseTexts.load(tmp_path / f"run-{number}" / "base_texts.npz")
        assert drawn.tokens.tolist() == texts.tokens.tolist() and drawn.losses == pytest.approx(texts.losses, rel=1e-6)
    draws = [rank[0][3] for rank in ranks]
    assert len(set(draws)) == len(draws), "ranks that are new draw the same random numbers"


def _exported(configs: List[Any], folder: Path) -> None:
    """Export the checkpoint of every stage and compare it with the weights of the engine."""
    import torch
    from deepspeed.utils import safe_get_full_fp32_param
    from safetensors.torch import load_file

    from ftdist.checkpoint.export import export_checkpoint

    ranks = start(configs[0])
    for number, config in enumerate(configs):
        training = assemble(config, folder / f"run-{number}", ranks)
        counter = torch.arange(6.0).view(2, 3)
        training.engine.module.register_buffer("counter", counter)  # part of the model that is not trained
        steps(training, 1)
        save(training)
        counter.zero_()
        training.saver.load_newest()
        assert counter.flatten().tolist() == [0, 1, 2, 3, 4, 5]
        del training.engine.module.counter
        steps(training, 1)
        save(training)
        masters = {}
        for name, parameter in training.engine.module.named_parameters():
            master = safe_get_full_fp32_param(parameter)  # a collective
            masters[name] = (parameter if master is None else master).detach().to(torch.bfloat16).clone()
        checkpoint = training.run.published_checkpoints()[-1]
        if ranks.first:
            export_checkpoint(checkpoint, folder / f"export-{number}", config)
            written = load_file(folder / f"export-{number}" / "model.safetensors")
            assert written.keys() == masters.keys()
            assert all(written[name].equal(masters[name]) for name in masters), f"stage {config.zero.stage}"
        training.engine.destroy()


def test_exports_hold_the_weights_of_every_stage(folder: Path, tmp_path: Path) -> None:
    configs = [_config(folder, stage, BF16) for stage in range(4)]
    freeze_tiny(configs[0], tmp_path / "run", 2)
    run_ranks(_exported, 2, configs, tmp_path)
