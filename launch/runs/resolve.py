"""Fit a config to the machine: make every default explicit, and refuse what cannot work before anything starts."""

import glob
import math
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Optional, Tuple

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError, DataError
from ftdist.base.names import near_paths, require_utf8
from ftdist.base.output import quoted_path
from ftdist.base.shell import override_word
from ftdist.config.data import named_sources
from ftdist.config.launch import Device, LaunchConfig, LaunchKind, texts
from ftdist.config.login import resolve_mode
from ftdist.config.optim import optimizer_of
from ftdist.config.schema import Attention, RunConfig
from ftdist.config.track import check_track, use_variables
from ftdist.launch.attempt.machine import cpu_cores
from ftdist.launch.backends.foreground import resolve_device, resolve_ranks_per_node
from ftdist.launch.backends.registry import backend_of
from ftdist.launch.backends.slurm import srun_task
from ftdist.plan.batch import BatchPlan, plan_batch
from ftdist.plan.disk import checkpoints_at_once, require_space
from ftdist.plan.kernels import check_kernels
from ftdist.plan.layout import Layout, layout_of
from ftdist.run.adapters import find_adapters, tensor_shapes
from ftdist.run.hub import has_hub_data, hub_cache, repositories
from ftdist.run.locations import cache_root, check_model_folder, model_location
from ftdist.run.model_facts import read_facts
from ftdist.run.rundir import RUN_CONFIG


def resolve(config: RunConfig, ranks: Optional[Tuple[int, int]] = None) -> BatchPlan:
    """Fill in, in place, every value that depends on the machine, and check the values.

    Args:
        ranks: (nproc_per_node, nnodes) if torchrun has already started the ranks.

    Returns:
        How the global batch is divided among the ranks.

    Raises:
        ConfigError: the machine cannot run this config. The message says what to change.
    """
    resolve_paths(config)
    check_model_folder(config)
    find_adapters(config)
    resolve_ranks(config, ranks)
    note_few_gpus(config.launch)
    if config.launch.device is Device.cpu and config.model.attention in (Attention.varlen, Attention.flex):
        name = config.model.attention.name
        raise ConfigError(f"model.attention={name} cannot be used on CPU", "a CUDA device", "model.attention=documents")
    if config.launch.device is Device.cpu and config.optim.paged:
        raise ConfigError("optim.paged=true cannot be used on CPU: pages move between a GPU and host memory, and on "
                          "CPU bitsandbytes keeps plain states", "a CUDA device", "optim.paged=false")  # fmt: skip
    check_kernels(config.model.kernels, config.launch.device.name)
    plan = plan_batch(config.batch, layout_of(config).data, config.data.max_seq_len)
    config.batch.grad_accum_steps = plan.grad_accum_steps
    if config.data.num_workers is None and not backend_of(config).uses_scheduler:
        config.data.num_workers = cpu_cores()
    config.track.wandb = resolve_mode(config.track.wandb)
    use_variables(config.track)
    if sweep := os.environ.get("WANDB_SWEEP_ID"):  # started by `wandb agent`, which has named the W&B run
        config.track.run_id = config.track.run_id or os.environ.get("WANDB_RUN_ID")
        config.track.group = config.track.group or sweep
    if config.track.run_id is None:
        config.track.run_id = secrets.token_hex(4)
    check_track(config.track)
    return plan


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def resolve_cache(config: RunConfig) -> None:
    """Make the path of the cache explicit and absolute.

    Raises:
        ConfigError: the cache folder cannot be made.
    """
    config.cache_dir = _absolute(str(cache_root(config)))
    cache = Path(config.cache_dir)
    if not (cache if cache.exists() else _existing_parent(cache)).is_dir():
        raise ConfigError(f"cache_dir={cache} is not a folder", "the path of a folder", "cache_dir=FOLDER")


def resolve_paths(config: RunConfig) -> None:
    """Make every path absolute, so that a resume from another folder finds the same files.

    Raises:
        DataError: a source does not exist, but one with a similar name does.
        ConfigError: the cache folder cannot be made, or a path or the hub's cache is not in UTF-8.
    """
    for key, source in named_sources(config.data).items():
        _check_spelling(f"{key}.path", source.path)
    config.runs_dir = _absolute(config.runs_dir)
    config.run_dir = _absolute(config.run_dir or _new_run_dir(config.runs_dir, config.name))
    resolve_cache(config)
    for section, name in ((config.model, "path"), (config.model, "adapter"), (config.method, "init_from")):
        if (value := getattr(section, name)) is not None:
            setattr(section, name, _absolute(value))
    for source in named_sources(config.data).values():
        if source.path is not None:
            source.path = _absolute(source.path)
    for owner, name in ((config.model, "tokenizer"), (config.data, "chat_template")):
        value = getattr(owner, name)
        if value is not None and Path(value).expanduser().exists():
            setattr(owner, name, _absolute(value))
    for key, text in texts("", config):  # the current folder is part of the paths now
        require_utf8(key.removeprefix("."), text)
    if repositories(config) or has_hub_data(config):
        hub_cache()


def _check_spelling(key: str, path: Optional[str]) -> None:
    """Suggest similar names for a path that does not exist. If there are none, reading the file fails later."""
    if path is None or glob.has_magic(path) or Path(path).expanduser().exists():
        return
    if near := near_paths(path):
        raise DataError(f"{key}={path} does not exist", "the path of an existing file, or a glob pattern",
                        " or ".join(override_word(key, place) for place in near))  # fmt: skip


def _new_run_dir(runs_dir: str, name: str) -> str:
    """Return a new ``<date>-<time>-<name>``, with a number if another run was made in the same second."""
    place = new = f"{runs_dir}/{time.strftime('%Y%m%d-%H%M%S')}-{name.replace('/', '-')}"
    number = 1
    while os.path.lexists(new):
        number += 1
        new = f"{place}-{number}"
    return new


def resolve_ranks(config: RunConfig, ranks: Optional[Tuple[int, int]] = None) -> None:
    """Fill in the device, the number of machines, the ranks of each machine and the threads of each rank, in place.

    Args:
        ranks: (nproc_per_node, nnodes) if torchrun or srun has already started the ranks, whatever ``launch.kind`` is.

    Raises:
        ConfigError: the ranks cannot be started with these settings. The message says what to change.
    """
    if ranks is None:
        backend_of(config).resolve(config)
        return
    gpus = resolve_device(config.launch)
    config.launch.nproc_per_node, config.launch.nnodes = ranks
    srun_task.set_threads(config.launch)
    resolve_ranks_per_node(config.launch, ranks[0] if srun_task.has_own_gpu() else gpus)


def note_few_gpus(launch: LaunchConfig) -> None:
    """Print a note if the run has fewer GPUs than its settings are made for."""
    layout, needed = Layout(launch.nnodes, launch.nproc_per_node or 1), launch.made_for_gpus or 0
    if launch.device is Device.cuda and layout.world < needed:
        nodes = -(-needed // layout.nproc_per_node)
        more = "" if launch.kind is LaunchKind.local else f". For {needed}: launch.nnodes={nodes}"
        print(f"note: the settings are made for {count(needed, 'GPU')}, and the run has {layout.world}. With fewer "
              f"GPUs, each one holds a larger part of what ZeRO shards, and the run takes longer{more}",
              file=sys.stderr)  # fmt: skip


def check_run_dir(config: RunConfig) -> None:
    """Check that the run directory can be made.

    Raises:
        ConfigError: the directory holds a run, which is never overwritten, or other files; or it cannot be made.
    """
    assert config.run_dir is not None
    path = Path(config.run_dir)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if (path / RUN_CONFIG).exists():
            raise ConfigError(f"{path} already holds a run", "a run directory that does not exist yet",
                              f"ftdist resume {quoted_path(path)}, or another run_dir")  # fmt: skip
        raise ConfigError(
            f"{path} exists and is not empty", "a run directory that does not exist yet", "use another run_dir"
        )
    parent = path if path.exists() else _existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot make {path}: {parent} is not a folder that you may write to",
                          "a folder you may write to", "runs_dir=FOLDER")  # fmt: skip


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


def count_parameters(folder: Path) -> int:
    """Return the number of parameters in a folder's safetensors files, from their headers. 0 if there are none.

    Raises:
        ConfigError: a file is damaged.
    """
    total = 0
    for path in folder.glob("*.safetensors"):
        total += sum(math.prod(shape) for shape in tensor_shapes(path).values())
    return total


def check_disk(config: RunConfig) -> None:
    """Check that the checkpoints of a run fit on the disk, if the model is on this machine.

    Raises:
        ConfigError: the checkpoints do not fit. The message has the sizes that are needed and free.
    """
    facts = read_facts(config)
    trained = count_parameters(Path(model_location(config))) if config.method.facts.whole else (
        facts.trained if facts else 0)  # fmt: skip
    if trained:
        assert config.run_dir is not None
        count = checkpoints_at_once(config, config.train.max_steps)
        require_space(_existing_parent(Path(config.run_dir)), trained, optimizer_of(config.optim), count)
