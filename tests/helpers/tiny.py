"""A tiny run for tests: a random Llama saved to a folder, generated chats, a frozen run directory."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftdist.base.json_files import write_json
from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.plan.batch import plan_batch
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.run.rundir import RunDir

LLAMA = {
    "model_type": "llama", "vocab_size": 259, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip

NONE_WHOLE = "zero.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"
"""DeepSpeed leaves parameters of up to 100,000 numbers whole on every rank: all of a tiny model, so that ZeRO-3 gathers
nothing. With this setting all parameters are sharded."""


def save_tiny_model(folder: Path, **changes: Any) -> Path:
    """Save a random fp32 model in a folder. This does not run autograd, so ranks can be forked afterwards.

    ``changes`` are fields of the model's config that differ from ``LLAMA``.
    """
    import torch
    from transformers import AutoConfig

    from ftdist.model.parts import auto_class

    fields = {**LLAMA, **changes}
    torch.manual_seed(1)
    arch = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = auto_class(arch).from_config(arch)
    model.save_pretrained(folder)
    return folder


def tiny_config(folder: Path, *overrides: str) -> RunConfig:
    """Return the config of a tiny run. ``overrides`` are ``key=value``; without one, the model is ``folder/model``."""
    values = OmegaConf.from_dotlist([
        "name=tiny", f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}", f"model.path={folder / 'model'}",
        "model.tokenizer=bytes", "data.sources.chats.builtin=fake", "data.sources.chats.max_documents=200",
        "data.heldout_share=0.1", "data.max_heldout_documents=8", "data.max_seq_len=128", "data.num_workers=1",
        "batch.global_batch_size=8", "batch.micro_batch_size=2", "train.precision=fp32", "train.max_steps=4",
        "train.num_samples=1", "train.sample_tokens=8", "launch.device=cpu", "launch.threads_per_rank=1",
        "track.wandb=disabled", "track.run_id=tiny", "launch.timeout_s=60", "report.forgetting.texts=0",
        "data.builtin_general=false", *overrides,
    ])  # fmt: skip
    config = OmegaConf.to_object(OmegaConf.merge(_schema(), values))
    assert isinstance(config, RunConfig)
    return config


@lru_cache
def _schema() -> DictConfig:
    """Return the schema with its defaults. A merge copies it. To make it takes longer than all the rest of a config."""
    return OmegaConf.structured(RunConfig)


def freeze_tiny(config: RunConfig, path: Path, world_size: int) -> RunDir:
    """Write the run directory that the launcher writes for its ranks, and prepare the data."""
    from ftdist.data.prepare import prepare

    prepare(config)
    run = make_run_dir(config, path, world_size)
    run.config.write_text(dump_config(config))
    write_json(run.status, {"state": "frozen"})
    return run


def make_run_dir(config: RunConfig, path: Path, world_size: int) -> RunDir:
    """Make the folders of a run directory, if they are not there, and write what DeepSpeed is given."""
    run = RunDir(path)
    run.logs.mkdir(parents=True, exist_ok=True)
    run.checkpoints.mkdir(exist_ok=True)
    plan = plan_batch(config.batch, world_size, config.data.max_seq_len)
    write_json(run.deepspeed, deepspeed_settings(config, plan))
    return run
