"""Under ZeRO-3 no rank ever holds the whole model, measured while one of half a billion parameters is loaded and gets
adapters."""

import ctypes
import threading
import time
from pathlib import Path
from typing import Any, Tuple

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import tiny_config
from tests.helpers.training import start

WORLD = 4
LAYERS, HIDDEN = 12, 1536  # 0.43 billion parameters with the vocabulary below
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


def _anonymous_bytes() -> int:
    """Return the anonymous memory of this process in bytes. The memory-mapped file of weights is not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def _peak_while_loading(config: Any) -> Tuple[int, int]:
    """Return the peak of anonymous bytes above those before loading, and the bytes of this rank's shards."""

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
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(config, arch, BY_DOCUMENT, settings)
    METHODS[config.method.kind].apply(model, config)  # DoRA reads every weight: the lengths of its rows
    done.set()
    watcher.join()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.numel() == 0 for p in frozen), "a parameter is whole"
    adapters = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    shards = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in frozen)
    assert 0 < adapters < 0.05 * shards * ranks.world_size
    return peak[0] - base, shards


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("half-billion")
    arch = AutoConfig.for_model(
        "llama", vocab_size=32000, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(arch, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    model.save_pretrained(folder / "model")
    return folder


def test_peak_memory_per_rank_stays_far_below_the_model(model_folder: Path) -> None:
    weights = sum(path.stat().st_size for path in (model_folder / "model").glob("*.safetensors"))
    assert weights > 0.8e9
    config = tiny_config(
        model_folder, "zero.stage=3", "train.precision=bf16", "method.kind=lora", "method.use_dora=true"
    )
    for peak, shards in run_ranks(_peak_while_loading, WORLD, config):
        assert shards == pytest.approx(weights / WORLD, rel=0.02)
        assert peak < 0.75 * weights, f"a rank held {peak / 2**20:.0f} MiB of a model of {weights / 2**20:.0f} MiB"
