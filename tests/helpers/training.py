"""The parts of a training run, for tests that call them on forked ranks (see run_ranks).

Heavy imports are inside the functions, so that a test module that imports this one is collected quickly.
"""

import hashlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from ftdist.config.schema import RunConfig
from tests.helpers.tiny import make_run_dir

FIVE_STEPS = (
    "train.max_steps=5", "batch.global_batch_size=8", "optim.lr=3e-3", "optim.weight_decay=0.1", "train.num_samples=0",
    "data.heldout_share=0", "train.export=false", "data.max_heldout_documents=null",
    "train.gradient_checkpointing=none",
)  # fmt: skip
"""Settings of a short run without evaluation and export, for ``tiny_config``."""


def start(config: RunConfig) -> Any:
    """Read this rank's environment and join the process group, unless it has joined already. Returns its ``Ranks``."""
    import torch.distributed as dist

    from ftdist.parallel.rank_process import quiet_libraries
    from ftdist.parallel.ranks import read_ranks, start_process_group

    ranks = read_ranks(config)
    if not dist.is_initialized():
        quiet_libraries()
        start_process_group(config, ranks)
    return ranks


def assemble(config: RunConfig, path: Path, ranks: Any) -> Any:
    """Return the ``Training`` that ``ftdist.train.main`` builds for a run directory; the folders are made if needed."""
    import torch.distributed as dist

    from ftdist.run.rundir import RunDir
    from ftdist.train import main
    from ftdist.train.preempt import Preemption

    run = RunDir(path)
    if ranks.first:
        make_run_dir(config, path, ranks.world_size)
    dist.barrier()
    return main.assemble(config, run, ranks, Preemption(run, ranks.rank))


def each_training(configs: List[RunConfig], folder: Path) -> Iterator[Any]:
    """Assemble each config in turn in one process group. An engine is destroyed before the next one is built."""
    ranks = start(configs[0])
    for number, config in enumerate(configs):
        training = assemble(config, folder / f"run-{ranks.world_size}-{number}", ranks)
        yield training
        training.engine.destroy()


def steps(training: Any, count: int) -> List[Tuple[float, float]]:
    """Take the next optimizer steps. Returns the loss and the gradient norm of each."""
    from ftdist.train.loop import train_step

    results = []
    for _ in range(count):
        result = train_step(training, training.state.step)
        training.state.step += 1
        results.append((result.loss, result.grad_norm))
    return results


def forgetting(training: Any) -> Dict[str, float]:
    """Measure forgetting as an evaluation does. Before the first step, the base texts are drawn."""
    found: Dict[str, float] = training.forgetting.measure(lambda label: None)
    return found


def save(training: Any) -> None:
    """Save a checkpoint and wait until it is published."""
    from ftdist.train.loop import _save

    _save(training)
    training.saver.finish()


def fingerprint(engine: Any) -> Dict[str, str]:
    """Hash everything that this rank holds.

    These are the flat master weights and moments as DeepSpeed stores them (with padding), the step counts, the weights
    that the model computes with, and the random state.
    """
    import torch

    from ftdist.engine.shards import held_slices

    found = {"rng": torch.get_rng_state()}
    for part in held_slices(engine):
        found[f"master {part.name}"] = part.flat.detach()
        state = engine.optimizer.state[part.flat]
        found |= {f"{key} {part.name}": torch.as_tensor(value).view(-1) for key, value in state.items()}
    for name, parameter in engine.module.named_parameters():
        found[f"weight {name}"] = getattr(parameter, "ds_tensor", parameter.detach())
    return {key: hashlib.sha256(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
            for key, tensor in found.items()}  # fmt: skip


def gathers_of_a_step(training: Any) -> List[List[bool]]:
    """Take a step. Returns, for each gather of ZeRO-3, whether each parameter that it gathers is a tied weight."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    from ftdist.train.loop import train_step

    # After the last evaluation one parameter is still whole, and this step does not gather it.
    train_step(training, 3)
    head, embedding = training.engine.module.lm_head.weight, training.engine.module.model.embed_tokens.weight
    coordinator = training.engine.zero_optimizer.parameter_offload.get_param_coordinator()
    name, calls = "_PartitionedParameterCoordinator__all_gather_params", []
    gather = getattr(coordinator, name)

    def noted(params: Any, *rest: Any) -> Any:
        calls.append([p is head is embedding for p in params if p.ds_status is ZeroParamStatus.NOT_AVAILABLE])
        return gather(params, *rest)

    setattr(coordinator, name, noted)
    train_step(training, 3)
    return calls
