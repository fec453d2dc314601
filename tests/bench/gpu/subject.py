"""What a cell trains: a model with random weights, made on the device, and rows of random tokens."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List

import numpy as np
import torch

from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet
from ftdist.engine.engine import build_engine
from ftdist.method.build import METHODS
from ftdist.model.attention_plan import AttentionPlan
from ftdist.model.load import DTYPES, model_config, ready_to_train
from ftdist.model.parts import auto_class
from ftdist.model.plan_choice import choose_plan
from ftdist.objective.build import build_objective, choose_head
from ftdist.parallel.mesh import data_parallel
from ftdist.parallel.rank_process import quiet_libraries
from ftdist.parallel.ranks import Ranks, read_ranks, start_process_group
from ftdist.plan.batch import plan_batch
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.run.rundir import RunDir
from ftdist.train.preempt import Preemption
from ftdist.train.state import Training
from tests.bench.gpu.cells import Cell, Subject
from tests.helpers.tiny import make_run_dir, tiny_config

ROWS = 32
SHORTEST = 16
"""Documents have at least this many tokens (but for the last one of a row), and at most half of a row."""


def config_of(cell: Cell, subject: Subject, folder: Path, device: torch.device) -> RunConfig:
    """Return the config of a cell."""
    return tiny_config(
        folder, "model.path=null", f"model.config={json.dumps(subject.model)}", f"method.kind={subject.method}",
        f"data.max_seq_len={subject.tokens}", f"batch.global_batch_size={subject.rows}",
        f"batch.micro_batch_size={subject.rows}", "train.precision=bf16", "train.max_steps=1000", "train.export=false",
        "train.num_samples=0", "optim.schedule=constant", "optim.lr=1e-5", f"launch.device={device.type}",
        "launch.timeout_s=300", "zero.stage=2", *cell.settings,
    )  # fmt: skip


def random_rows(subject: Subject) -> PreparedSet:
    """Return rows that are full of documents of very different lengths. All tokens are trained."""
    draw = np.random.default_rng(0)
    lengths: List[int] = []
    ends = [0]
    for _ in range(ROWS):
        left = subject.tokens
        while left:
            lengths.append(min(left, subject.tokens // 2, SHORTEST + int(draw.exponential(subject.tokens / 6))))
            left -= lengths[-1]
        ends.append(len(lengths))
    tokens = draw.integers(subject.model["vocab_size"], size=ROWS * subject.tokens, dtype=np.int32)
    offsets = np.cumsum([0, *lengths])
    return PreparedSet(tokens, np.ones(len(tokens), np.uint8), offsets, np.arange(len(lengths)), np.asarray(ends))


def start(config: RunConfig) -> Ranks:
    """Make this process the only rank of a run."""
    quiet_libraries()
    ranks = read_ranks(config)
    start_process_group(config, ranks)
    return ranks


def random_model(config: RunConfig, attention: str, device: torch.device) -> Any:
    """Return the model of the config with the weights that transformers draws, which are the same in each process."""
    arch = model_config(config)
    torch.manual_seed(config.seed)
    with torch.device(device):
        return auto_class(arch).from_config(arch, dtype=DTYPES[config.train.precision], attn_implementation=attention)


def apply_method(model: Any, config: RunConfig, plan: AttentionPlan) -> Any:
    """Return the model as a run trains it."""
    return METHODS[config.method.kind].apply(ready_to_train(model, config, plan), config)


def assemble(config: RunConfig, subject: Subject, folder: Path, ranks: Ranks) -> Training:
    """Return the parts of a run, as ``ftdist.train.main`` builds them, but without files of a model and of data."""
    run, device = RunDir(folder / "run"), ranks.device
    make_run_dir(config, run.path, 1)
    batches = plan_batch(config.batch, 1, config.data.max_seq_len)
    plan = choose_plan(config, model_config(config), device, DTYPES[config.train.precision]).plan
    assert plan.implementation is not None
    model = apply_method(random_model(config, plan.implementation, device), config, plan)
    engine = build_engine(config, model, deepspeed_settings(config, batches), 1)
    vocab_size, mesh = subject.model["vocab_size"], data_parallel(ranks)
    head, why = choose_head(config, engine, vocab_size, mesh)
    assert not why, why
    return Training(
        config=config, run=run, ranks=ranks, plan=batches, mesh=mesh, engine=engine,
        objective=build_objective(config, vocab_size, head), tokenizer=SimpleNamespace(pad_token_id=0),
        vocab_size=vocab_size, train_set=random_rows(subject), heldout={}, general={}, prompts={},
        max_steps=config.train.max_steps or 1, tracker=None, progress=SimpleNamespace(note=print),
        preemption=Preemption(run, 0), saver=None,
    )  # type: ignore[arg-type]  # fmt: skip


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def trained(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
