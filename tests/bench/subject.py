"""The model and the data of a benchmark, sized so that a step takes a few tenths of a second."""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.machine import cpu_cores, visible_gpus
from tests.helpers.tiny import freeze_tiny, make_run_dir, save_tiny_model, tiny_config

CPU_RANKS = 2
ROWS = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz     "


def num_ranks() -> int:
    return len(visible_gpus()) or CPU_RANKS


def make_subject(folder: Path, quick: bool, *overrides: str) -> RunConfig:
    """Save a random Llama and prepare rows of one document each, whose tokens are all trained. Returns the config.

    With one document in a row, a loop without packing does the same work.
    """
    from ftdist.parallel.rank_process import quiet_libraries

    quiet_libraries()
    cuda = bool(visible_gpus())
    width, layers, seq_len, rows = (2048, 16, 2048, 4) if cuda else (256, 8, 256, 1)
    if quick:
        width, layers, seq_len = width // 2, 2, seq_len // 2
    save_tiny_model(
        folder / "model", vocab_size=4096, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 128, max_position_embeddings=seq_len,
    )  # fmt: skip
    _write_texts(folder / "texts.jsonl", seq_len - 1)  # the end-of-text token fills the row
    ranks = num_ranks()
    config = tiny_config(
        folder, "data.sources.chats.builtin=null", "data.sources.chats.max_documents=null",
        f"data.sources.chats.path={folder / 'texts.jsonl'}", "data.heldout_share=0", "data.max_heldout_documents=null",
        f"data.max_seq_len={seq_len}", "data.train_on=all", f"batch.micro_batch_size={rows}",
        f"batch.global_batch_size={2 * rows * ranks}", f"train.precision={'bf16' if cuda else 'fp32'}",
        "train.max_steps=1000000", "train.num_samples=0", "train.export=false", "optim.schedule=constant",
        f"launch.device={'cuda' if cuda else 'cpu'}", f"launch.threads_per_rank={max(1, cpu_cores() // ranks)}",
        "launch.timeout_s=300", "train.gradient_checkpointing=none", *overrides,
    )  # fmt: skip
    freeze_tiny(config, folder / "run", ranks)
    return config


def _write_texts(path: Path, length: int) -> None:
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(ROWS):
            file.write(json.dumps({"text": "".join(draw.choices(LETTERS, k=length))}) + "\n")


def start_rank(config: RunConfig) -> Any:
    """Make this forked process a rank of the run. It prints nothing and does not outlive the benchmark."""
    from ftdist.parallel import rank_process
    from ftdist.parallel import ranks as rank_setup

    rank_process.die_with_parent()
    rank_process.quiet_libraries()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    ranks = rank_setup.read_ranks(config)
    rank_setup.start_process_group(config, ranks)
    return ranks


def assemble_run(config: RunConfig, path: Path, ranks: Any) -> Any:
    """Return the ``Training`` that ``ftdist.train.main`` builds, in a new run directory."""
    import torch.distributed as dist

    from ftdist.run.rundir import RunDir
    from ftdist.train.main import assemble
    from ftdist.train.preempt import Preemption

    run = RunDir(path)
    if ranks.first:
        make_run_dir(config, path, ranks.world_size)
    dist.barrier()
    return assemble(config, run, ranks, Preemption(run, ranks.rank))


def parameter_count(engine: Any) -> int:
    from ftdist.model.vocabulary import whole_shape

    return sum(whole_shape(parameter).numel() for parameter in engine.module.parameters())
