"""Liger's kernels, which Triton's interpreter runs on a CPU: the numbers of the plain reference on two ranks.

The reference runs in the process of a rank whose model uses the kernels. So it also shows that other models stay plain.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.config.data import SourceConfig
from ftdist.config.schema import Precision
from ftdist.verify.compare import ALLOWED, Deviation
from tests.helpers.families import FAMILIES
from tests.helpers.interpreter import interpret_triton
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import each_training
from tests.invariance import write_data

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("liger_kernel") is None,
                       reason="liger-kernel is not installed (pip install 'ftdist[liger]')"),
]  # fmt: skip
STEPS, ROWS = 2, 2
CASES = [("llama", 2, "full"), ("llama", 3, "none"), ("qwen3", 2, "none"), ("qwen3", 3, "selective")]
"""Family, ZeRO stage, gradient checkpointing. Few and small ones: the interpreter takes a minute for 1,000 tokens."""
NORMS = {"llama": 3, "qwen3": 5}
"""Number of norms in a model of one layer."""


def _config(folder: Path, family: str, stage: int, recompute: str) -> Any:
    config = tiny_config(
        folder, f"model.path={folder / family}", f"model.tokenizer={folder / 'tokenizer'}", "model.kernels=liger",
        "data.heldout_share=0", "data.max_heldout_documents=null", "data.max_seq_len=48",
        f"batch.global_batch_size={ROWS}", f"batch.micro_batch_size={ROWS // 2}", f"zero.stage={stage}",
        f"train.gradient_checkpointing={recompute}", "train.num_samples=0", "train.export=false", "optim.lr=3e-3",
        "train.max_steps=6", "optim.warmup_steps=2", "launch.timeout_s=300",
    )  # fmt: skip
    config.data.sources = {"mine": SourceConfig(path=str(folder / "train.jsonl"))}
    return config


def _compare(configs: List[Any], folder: Path) -> List[Tuple[Deviation, Dict[str, int]]]:
    import torch
    from transformers import AutoModelForCausalLM

    from ftdist.model.load import build_whole
    from ftdist.run.prepared import data_folder
    from ftdist.verify.compare import measure_deviation, run_reference
    from ftdist.verify.reference import read_rows, row_order

    interpret_triton()
    found: List[Any] = []
    for training in each_training(configs, folder):
        config, expected = training.config, None
        if training.ranks.first:
            build_whole()
            model = AutoModelForCausalLM.from_pretrained(
                config.model.path, dtype=torch.float32, attn_implementation="eager"
            )
            assert not any("Liger" in repr(module) for module in model.modules())
            rows = read_rows(data_folder(config) / "train")
            assert any(len(row) > 1 for row in rows), "rows with several documents"
            expected = run_reference(model, config, rows, row_order(config.seed, len(rows), STEPS * ROWS), STEPS, [])
        torch.distributed.barrier()
        found.append((measure_deviation(training, expected, STEPS), dict(training.engine.module.ftdist_kernels)))
    return found


def test_two_ranks_with_the_kernels_give_the_numbers_of_the_reference(tmp_path: Path, record_property: Any) -> None:
    write_data(tmp_path)
    for family in {case[0] for case in CASES}:
        save_tiny_model(tmp_path / family, **{**FAMILIES[family], "num_hidden_layers": 1})
    configs = [_config(tmp_path, *case) for case in CASES]
    freeze_tiny(configs[0], tmp_path / "prepared", 2)
    found = run_ranks(_compare, 2, configs, tmp_path, timeout_s=500)[0]
    for case, (deviation, used) in zip(CASES, found, strict=True):
        print(case, deviation)
        assert used == {"LigerRMSNorm": NORMS[case[0]], "LigerSwiGLUMLP": 1, "rotary embeddings": 1}, case
        beyond = deviation.beyond(ALLOWED[Precision.fp32])
        assert not beyond, (case, beyond)
    record_property("combinations", len(CASES))
