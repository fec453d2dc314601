"""Runs on a CPU and on a GPU: their numbers, what happens when memory runs out, and what they leave behind."""

from pathlib import Path
from typing import Any, Dict, List

import pytest

STEPS, ROWS = 3, 4
SETTINGS = (
    f"train.max_steps={STEPS + 1}", f"batch.global_batch_size={ROWS}", "batch.micro_batch_size=2", "optim.lr=1e-3",
    "optim.weight_decay=0.1", "train.num_samples=0", "data.heldout_share=0", "train.export=false",
    "data.max_heldout_documents=null", "data.sources.chats.max_documents=60",
)  # fmt: skip


def _config(device: str, folder: Path, *overrides: str) -> Any:
    from tests.helpers.tiny import tiny_config

    return tiny_config(folder, *SETTINGS, f"launch.device={device}", *overrides)


def _prepare(config: Any, folder: Path) -> None:
    from tests.helpers.tiny import freeze_tiny, save_tiny_model

    if not (folder / "model").exists():
        save_tiny_model(folder / "model")
    freeze_tiny(config, folder / "frozen", 1)


def _deviations(device: str, folder: Path, precision: str, cases: List[List[str]]) -> Dict[str, Any]:
    """Return for each case what is beyond rounding, compared with plain PyTorch on the same device."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftdist.config.schema import Precision
    from ftdist.model.load import DTYPES
    from ftdist.run.prepared import data_folder
    from ftdist.verify.compare import ALLOWED, measure_deviation, run_reference
    from ftdist.verify.reference import read_rows, row_order
    from tests.helpers.training import each_training

    configs = [_config(device, folder, f"train.precision={precision}", *case) for case in cases]
    _prepare(configs[0], folder)
    rows, kind = read_rows(data_folder(configs[0]) / "train"), Precision[precision]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=DTYPES[kind]).to(torch.device(device))
    expected = run_reference(model, configs[0], rows, row_order(0, len(rows), STEPS * ROWS), STEPS, [])
    found = [measure_deviation(training, expected, STEPS) for training in each_training(configs, folder)]
    return {" ".join(case): deviation.beyond(ALLOWED[kind]) for case, deviation in zip(cases, found, strict=True)}


CASES = [
    ["zero.stage=0"], ["zero.stage=1", "train.gradient_checkpointing=none"],
    ["zero.stage=2", "zero.offload_optimizer=cpu", "train.offload_activations=true"],
    ["zero.stage=3", "train.gradient_checkpointing=selective"], ["zero.stage=2", "optim.paged=true"],
    ["zero.stage=3", "zero.offload_optimizer=cpu", "zero.offload_param=cpu", "objective.loss_head=logits"],
]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_equals_plain_pytorch(run: Any, precision: str) -> None:
    """At every ZeRO stage, with offload of each kind, in both precisions."""
    found = run(_deviations, precision, CASES)
    assert found == {" ".join(case): [] for case in CASES}


def _losses(device: str, folder: Path) -> Dict[str, Any]:
    from tests.helpers.training import each_training, steps

    config = _config(device, folder, "zero.stage=2", "model.attention=documents")
    _prepare(config, folder)
    [found] = [steps(training, STEPS) for training in each_training([config], folder / device)]
    return {"steps": found}


def test_in_fp32_losses_and_norms_are_those_on_a_cpu(run: Any, device: str) -> None:
    expected = run(_losses, on="cpu")["steps"]
    for found, there in zip(run(_losses)["steps"], expected, strict=True):
        assert found == pytest.approx(there, rel=1e-4)


PAGED = [("adamw", 0), ("lion", 2), ("adamw_8bit", 3)]


def _pages(device: str, folder: Path) -> Dict[str, Any]:
    """Return for each paged optimizer: whether a resume is exact, which states are in pages, before and after it, and
    the losses, also of the optimizer without pages."""
    from tests.helpers.tiny import save_tiny_model
    from tests.helpers.training import assemble, fingerprint, save, start, steps

    save_tiny_model(folder / "model", hidden_size=256, intermediate_size=512)  # smaller tensors are not paged
    found = {}
    for number, (kind, stage) in enumerate(PAGED):
        common = ("train.precision=bf16", f"optim.optimizer={kind}", f"zero.stage={stage}")
        config = _config(device, folder, *common, "optim.paged=true")
        _prepare(config, folder)
        ranks, path = start(config), folder / str(number)
        training = assemble(config, path, ranks)
        losses = [loss for loss, _ in steps(training, 2)]
        save(training)
        before, paged = fingerprint(training.engine), _in_pages(training.engine)
        more = steps(training, 1)
        training.engine.destroy()
        resumed = assemble(config, path, ranks)
        exact, after = fingerprint(resumed.engine) == before, _in_pages(resumed.engine)
        exact &= steps(resumed, 1) == more
        resumed.engine.destroy()
        plain = assemble(_config(device, folder, *common), folder / f"plain-{number}", ranks)
        expected = [loss for loss, _ in steps(plain, STEPS)]
        plain.engine.destroy()
        found[f"{kind} {stage}"] = exact, paged, after, [*losses, more[0][0]], expected
    return found


def _in_pages(engine: Any) -> List[str]:
    """Return the names of the states of which some are in pages."""
    return sorted({name for state in engine.optimizer.state.values() for name, value in state.items()
                   if getattr(value, "is_paged", False)})  # fmt: skip


def test_paged_states_give_the_same_run_and_a_resume_is_exact(run: Any, device: str) -> None:
    """On a CPU, where a run with them is refused, bitsandbytes keeps plain states."""
    for case, (exact, paged, after, losses, expected) in run(_pages).items():
        assert exact, case
        states = ["state1"] if "lion" in case else ["state1", "state2"]
        assert paged == after == (states if device == "cuda" else []), case
        assert losses == (expected if "8bit" in case else pytest.approx(expected, rel=1e-4)), case


def _sums(device: str, folder: Path) -> Dict[str, Any]:
    import torch
    import torch.distributed as dist

    from ftdist.parallel.mesh import data_parallel
    from ftdist.parallel.ranks import on_rank_0
    from tests.helpers.training import start

    config = _config(device, folder)
    ranks = start(config)
    mesh, on_host = data_parallel(ranks), torch.ones(2)
    dist.all_reduce(on_host)  # gloo, whatever the device
    objects = [{"a": 1}]
    dist.broadcast_object_list(objects, src=0, device=ranks.device if device == "cuda" else None)
    group = dist.distributed_c10d._get_default_group()
    return {
        "device": ranks.device.type, "backend": group._get_backend(ranks.device).name(),
        "sums": mesh.sum([1.5, torch.tensor(2.5, device=ranks.device), 2]), "host": on_host.tolist(),
        "objects": objects, "result": on_rank_0(ranks, lambda: "done"),
    }  # fmt: skip


def test_sums_go_through_the_backend_of_the_device(run: Any, device: str) -> None:
    """NCCL for tensors on a GPU, gloo for those in host memory."""
    found = run(_sums)
    assert found["device"] == device and found["backend"] == {"cpu": "gloo", "cuda": "nccl"}[device]
    assert found["sums"] == [1.5, 2.5, 2.0] and found["host"] == [1.0, 1.0]
    assert found["objects"] == [{"a": 1}] and found["result"] == "done"


def _batches(device: str, folder: Path) -> Dict[str, Any]:
    import torch

    from tests.helpers.training import each_training

    config = _config(device, folder)
    _prepare(config, folder)
    [found] = [_pinned(training, device) for training in each_training([config], folder)]
    torch.cuda.synchronize() if device == "cuda" else None
    return {"as wanted": found}


def _pinned(training: Any, device: str) -> List[bool]:
    import torch

    found = []
    for batch in training.batches.read(0).micro_batches:
        there = batch.to(training.mesh.device)
        for name, tensor in vars(batch).items():
            if isinstance(tensor, torch.Tensor):
                pinned = tensor.is_pinned() if device == "cuda" else not tensor.is_cuda
                found.append(pinned and torch.equal(getattr(there, name).cpu(), tensor))
    return found


def test_batches_come_from_pinned_memory(run: Any) -> None:
    found = run(_batches)["as wanted"]
    assert len(found) == 8 and all(found)  # four tensors of two micro-batches


def _out_of_memory(device: str, folder: Path) -> Dict[str, Any]:
    """A step asks for more memory than there is. Afterwards the run goes on."""
    import dataclasses

    import torch

    from ftdist.train.loop import train_step
    from ftdist.train.out_of_memory import explain_out_of_memory, is_out_of_memory
    from tests.helpers.training import each_training, steps

    config = _config(device, folder, "zero.stage=2")
    _prepare(config, folder)
    for training in each_training([config], folder):
        steps(training, 1)
        loss = training.objective.loss

        def greedy(model: Any, batch: Any, loss: Any = loss) -> Any:
            found = loss(model, batch)
            torch.empty(2**50, dtype=torch.uint8, device=model.module.device).zero_()
            return found

        training.objective.loss = greedy
        try:
            train_step(training, 1)
        except Exception as error:
            recognised = is_out_of_memory(error)
            explained = explain_out_of_memory(error, config, training.ranks, training)
            text, kind = str(explained), type(explained).__name__
        training.objective.loss = loss
        training.batches = dataclasses.replace(training).batches
        after = steps(training, 1)
    return {"recognised": recognised, "text": text, "kind": kind, "after": after}


def test_when_memory_runs_out_the_error_says_what_fills_it(run: Any) -> None:
    found = run(_out_of_memory)
    assert found["recognised"] and found["kind"] == "TrainError"
    assert "memory ran out at step 2" in found["text"] and "for optimizer states" in found["text"]
    assert "fix: zero.stage=3" in found["text"] or "(frees about" in found["text"]


def _left(device: str, folder: Path) -> Dict[str, Any]:
    """Run several times in one process, and return the bytes of tensors on the device that each run leaves."""
    import gc

    configs = [_config(device, folder, f"zero.stage={stage}") for stage in (0, 2, 0, 2)]
    _prepare(configs[0], folder)
    before, left = _bytes_on(device), []  # libraries have constants
    for number, config in enumerate(configs):
        _two_steps(config, folder / str(number))
        gc.collect()
        left.append(_bytes_on(device) - before)
    return {"left": left}


def _two_steps(config: Any, path: Path) -> None:
    from tests.helpers.training import assemble, start, steps

    training = assemble(config, path, start(config))
    steps(training, 2)
    training.engine.destroy()


def _bytes_on(device: str) -> int:
    import gc

    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_allocated())
    tensors = (o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.layout is torch.strided)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_a_run_leaves_nothing_allocated(run: Any, device: str) -> None:
    """On a GPU, the libraries of CUDA keep a workspace. After ZeRO-3, DeepSpeed 0.19 keeps its engine."""
    left = run(_left)["left"]
    assert max(left) <= {"cpu": 0, "cuda": 64 * 2**20}[device]
    assert max(left[2:]) <= max(left[:2])
