"""Under ZeRO-3 no rank ever holds the whole model, measured while one of 0.2 billion parameters is loaded and gets
adapters, and in the steps of a mixture of experts."""

import ctypes
import threading
import time
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

from ftdist.config.method import MethodKind
from ftdist.plan.layout import Layout
from ftdist.plan.memory import loading_bytes
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import assemble, save, start

WORLD = 4
LAYERS, VOCABULARY = 12, 32000
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


def _anonymous_bytes() -> int:
    """Return the anonymous memory of this process in bytes. The memory-mapped file of weights is not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def _peak_while_loading(config: Any) -> Tuple[int, int, int]:
    """Return the peaks of anonymous bytes above those before loading, while the model is loaded and while the method is
    applied, and the bytes of this rank's shards."""
    import bitsandbytes  # noqa: F401 - so that it is not counted
    import peft  # noqa: F401

    from ftdist.method.build import METHODS
    from ftdist.model.attention_plan import BY_DOCUMENT
    from ftdist.model.load import load_model, model_config
    from ftdist.plan.batch import plan_batch
    from ftdist.plan.deepspeed import deepspeed_settings

    # glibc keeps freed blocks below a threshold that grows at run time. They are no memory that the model needs.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 131072)
    libc.mallopt(M_TRIM_THRESHOLD, 131072)
    ranks = start(config)
    arch = model_config(config)
    settings = deepspeed_settings(config, plan_batch(config.batch, ranks.world_size, 128))
    base, peak, done = _anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _anonymous_bytes())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(config, arch, BY_DOCUMENT, settings)
    loaded, peak[0] = peak[0] - base, 0
    METHODS[config.method.kind].apply(model, config)  # DoRA reads every weight: the lengths of its rows
    done.set()
    watcher.join()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.numel() == 0 for p in frozen), "a parameter is whole"
    adapters = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    shards = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in frozen)
    assert 0 < adapters < 0.1 * shards * ranks.world_size
    return loaded, peak[0] - base, shards


def _save_model(folder: Path, hidden: int) -> int:
    """Save a model with equal weights in bf16. Returns the bytes of its file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    arch = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=LAYERS,
        num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(arch, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    for weight in model.parameters():
        torch.nn.init.constant_(weight, 0.01)  # empty memory can hold NaN, which is refused
    model.save_pretrained(folder / "model")
    return sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("method", "hidden"),
    [(("method.kind=lora", "method.use_dora=true"), 1024),  # 0.22 billion parameters
     pytest.param(("method.kind=qlora",), 768, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],  # 0.13 billion
    ids=["dora", "qlora"],
)  # fmt: skip
def test_peak_memory_per_rank_stays_far_below_the_model(tmp_path: Path, method: Tuple[str, ...], hidden: int) -> None:
    weights, largest = _save_model(tmp_path, hidden), 2 * VOCABULARY * hidden  # the largest tensor: the embedding
    config = tiny_config(tmp_path, "zero.stage=3", "train.precision=bf16", *method)
    kept = weights if config.method.kind is MethodKind.lora else largest + (weights - largest) / 4
    loading = loading_bytes(config, weights // 2, Layout.of_world(WORLD))
    assert loading == pytest.approx(weights / WORLD, rel=0.01)
    for loaded, applied, shards in run_ranks(_peak_while_loading, WORLD, config, timeout_s=800):
        sizes = [f"{size / 2**20:.0f} MiB" for size in (weights, largest, loaded, applied, shards)]
        print("weights, largest tensor, peak while loading, peak while the method is applied, shards:", *sizes)
        assert shards == pytest.approx(kept / WORLD, rel=0.02)
        assert max(loaded, applied) < loading + 3 * largest < 0.85 * weights, "a rank held too much of the model"


EXPERTS, EXPERT_LAYERS, WIDTH, GROUPS, LENGTH = 16, 4, 128, 16, 64
LARGE = 100_000
"""Tensors of at least this many bytes are counted: weights and gradients of experts, but no activations."""
FETCH_LATE = tuple(  # DeepSpeed gathers a module when it runs, and not before
    f"zero.deepspeed.zero_optimization.stage3_{name}=0"
    for name in ("param_persistence_threshold", "prefetch_bucket_size", "max_live_parameters", "max_reuse_distance")
)


def _with_and_without_groups(grouped: Any, whole: Any, path: Path, settings: Path) -> Tuple[Any, Any, bool, Any]:
    """Return ``_large_tensors`` with and without groups of experts, whether a checkpoint that was saved with groups
    holds the same weights when it is read without them, and what ``_evaluated`` returns with and without groups."""
    from ftdist.engine.whole import whole_weights

    first = _large_tensors(grouped, path / "grouped")
    second = _large_tensors(whole, path / "whole")
    resumed = assemble(whole, path / "grouped", start(whole))
    after = whole_weights(resumed.engine)
    same = first[1].keys() == after.keys() and all(after[name].equal(value) for name, value in first[1].items())
    resumed.engine.destroy()
    evaluated = [_evaluated(config, settings, resumed.ranks) for config in (grouped, whole)]
    return first, second, same and resumed.state.step == 2, evaluated


def _evaluated(config: Any, settings: Path, ranks: Any) -> Tuple[Any, int]:
    """Return the logits of a text in an engine for evaluation, and the size of the largest parameter of its experts."""
    import torch

    from ftdist.serve.opened import open_model

    opened = open_model(config, settings, None, ranks)
    with torch.no_grad(), opened.engine.evaluation():
        logits = opened.engine(input_ids=torch.arange(5, 25)[None], use_cache=False).logits
    experts = [p for name, p in opened.engine.module.named_parameters() if ".experts." in name]
    opened.close()
    return logits, max(p.ds_numel for p in experts)


def _large_tensors(config: Any, path: Path) -> Tuple[Dict[str, float], Any]:
    """Take two steps and save a checkpoint.

    Returns:
        What was measured, and the weights. ``forward`` and ``backward`` are the most bytes of large new tensors in the
        forward of the second step and in its backward, ``gradients`` the bytes of this rank's part of the gradients.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from ftdist.engine.whole import whole_weights
    from ftdist.train.loop import train_step

    class Allocations(TorchDispatchMode):
        """Follows the memory of the results of all operations."""

        def __init__(self) -> None:
            super().__init__()
            self.live: Dict[int, Tuple[StorageWeakRef, int]] = {}
            self.peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            results = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(results):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= LARGE:
                    reference = StorageWeakRef(tensor.untyped_storage())
                    self.live[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
            self.live = {key: found for key, found in self.live.items() if not found[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.live.values()))
            return results

    training = assemble(config, path, start(config))
    found = train_step(training, 0)
    measured: Dict[str, float] = {"loss 1": found.loss, "norm 1": found.grad_norm}
    backward = training.engine.backward

    def watched(loss: torch.Tensor) -> None:
        measured["forward"], allocations.peak = allocations.peak, 0
        backward(loss)
        measured["backward"] = allocations.peak

    training.engine.backward = watched
    with Allocations() as allocations:
        found = train_step(training, 1)
    measured |= {"loss 2": found.loss, "norm 2": found.grad_norm}
    parameters = list(training.engine.module.parameters())
    measured["gradients"] = sum(p.ds_tensor.numel() * p.element_size() for p in parameters)
    training.state.step = 2
    save(training)
    weights = whole_weights(training.engine)
    training.engine.destroy()
    return measured, weights


def test_gathered_experts_are_freed_after_each_layer_or_group(tmp_path: Path) -> None:
    from ftdist.config.schema import Precision
    from ftdist.plan.memory import gathered_bytes

    save_tiny_model(
        tmp_path / "model", model_type="qwen3_moe", num_experts=EXPERTS, num_experts_per_tok=1, hidden_size=WIDTH,
        moe_intermediate_size=WIDTH, num_hidden_layers=EXPERT_LAYERS, head_dim=16, decoder_sparse_step=1,
        mlp_only_layers=[],
    )  # fmt: skip
    settings = ("zero.stage=3", "train.gradient_checkpointing=none", "batch.global_batch_size=2",
                "batch.micro_batch_size=1", "train.num_samples=0",
                "data.heldout_share=0", "data.max_heldout_documents=null", f"data.max_seq_len={LENGTH}", *FETCH_LATE,
                "zero.deepspeed.zero_optimization.reduce_bucket_size=1000")  # fmt: skip
    whole, grouped = (tiny_config(tmp_path, *settings, f"zero.expert_groups={groups}") for groups in (1, GROUPS))
    deepspeed = freeze_tiny(whole, tmp_path / "prepared", 2).deepspeed
    found = run_ranks(_with_and_without_groups, 2, grouped, whole, tmp_path / "runs", deepspeed)
    for *runs, same, ((logits, largest), (expected_logits, whole_largest)) in found:
        for (measured, _), groups in zip(runs, (GROUPS, 1), strict=True):
            experts = EXPERTS * 3 * WIDTH * WIDTH // groups
            print(f"{groups} groups: {measured}")
            # Those of one layer, not of EXPERT_LAYERS. DeepSpeed gathers them into one buffer and copies each from it.
            assert measured["forward"] <= 1.02 * 2 * gathered_bytes(experts, Precision.fp32, trained=False)
            assert measured["backward"] <= gathered_bytes(experts, Precision.fp32) + measured["gradients"]
        (with_groups, weights), (without, expected) = runs
        for name in ("loss 1", "norm 1", "loss 2", "norm 2"):
            assert with_groups[name] == pytest.approx(without[name], rel=1e-5)
        assert all((weights[name] - value).norm() <= 1e-4 * value.norm() for name, value in expected.items())
        assert same, "a checkpoint does not depend on the groups"
        assert GROUPS * largest == whole_largest, "an evaluation gathers one group at a time"
        assert (logits - expected_logits).norm() <= 1e-5 * expected_logits.norm()
