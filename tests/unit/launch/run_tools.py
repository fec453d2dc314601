"""Runs and configs for tests of the control plane."""

import argparse
from pathlib import Path
from typing import Any

from ftdist.config.data import SourceConfig
from ftdist.config.frozen import dump_config, load_config
from ftdist.config.launch import Device
from ftdist.config.schema import RunConfig
from ftdist.launch.config import compose
from ftdist.run.rundir import RunDir


def make_run(path: Path, **status: Any) -> RunDir:
    """Make a run directory with a small config and a status."""
    run = RunDir(path)
    run.logs.mkdir(parents=True)
    config = RunConfig()
    config.model.config, config.model.tokenizer = {"model_type": "llama"}, "bytes"
    config.data.sources["mine"] = SourceConfig(builtin="fake")
    config.train.max_steps = 10
    run.config.write_text(dump_config(config))
    run.write_status(**status)
    return run


def smoke(*words: str) -> RunConfig:
    """Compose ``experiment=smoke`` with overrides."""
    parser = argparse.ArgumentParser()
    compose.add_arguments(parser)
    return compose.compose(parser.parse_args(["experiment=smoke", *words]))


def stopped_run(path: Path) -> RunDir:
    """Make a run on 4 ranks that has stopped in its attempt 0."""
    run = make_run(path, state="preempted", attempt=0)
    config = load_config(run.config)
    config.launch.device, config.launch.nproc_per_node, config.launch.threads_per_rank = Device.cpu, 4, 1
    config.batch.global_batch_size, config.batch.micro_batch_size, config.batch.grad_accum_steps = 12, 1, 3
    run.config.write_text(dump_config(config))
    run.config.chmod(0o444)
    return run
