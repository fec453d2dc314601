"""The measurements of the cells. Each function runs in a process of its own and returns plain values."""

import platform
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional

import torch

from ftdist.model.attention_plan import AttentionPlan
from ftdist.model.forward import plan_of
from ftdist.model.recompute import keeps_attention
from ftdist.plan.activations import kept_activations, layer_sizes
from ftdist.plan.layout import Layout
from ftdist.plan.loss_head import head_bytes, most_tokens
from ftdist.plan.memory import memory_of
from ftdist.train.loop import train_step
from ftdist.train.throughput import Throughput, matrix_rate
from tests.bench.figures import spread
from tests.bench.gpu import guard
from tests.bench.gpu.cells import COMPILED, Cell, Sizes, Subject
from tests.bench.gpu.clock import peak, reset_peak, settle
from tests.bench.gpu.head import measure_head
from tests.bench.gpu.saving import measure_saving
from tests.bench.gpu.subject import assemble, config_of, parameters, start, trained
from tests.helpers.alone import Skip

GIB = 2**30
MARGIN = 4 * GIB
"""Memory that a cell needs besides what is predicted: buffers, the CUDA context."""


def run_cell(cell: Cell, sizes: Sizes, folder: Path, device_type: str) -> Dict[str, Any]:
    """Measure one cell."""
    device = torch.device(device_type, 0) if device_type == "cuda" else torch.device(device_type)
    if device_type == "cuda":
        torch.cuda.set_device(device)
    elif COMPILED in cell.settings:  # a rehearsal: layers are traced, but nothing is compiled
        from ftdist.model import compiled

        compiled.BACKEND = "eager"
    if cell.kind == "device":
        return about_device(device)
    if cell.kind == "head":
        return measure_head(sizes, device)
    subject, own = sizes.subjects[cell.subject], folder / "".join(filter(str.isalnum, cell.name))
    own.mkdir()
    (folder / "cache").mkdir(exist_ok=True)
    (own / "cache").symlink_to(folder / "cache")  # which attention is exact is found out once
    if cell.kind == "reference":
        return guard.reference(cell, subject, own, folder, device)
    if cell.kind == "saving":
        require_memory(prediction(config_of(cell, subject, own, device), subject)["total_bytes"], device)
        return measure_saving(cell, subject, own, device)
    return training(cell, subject, sizes.steps, own, folder, device)


def about_device(device: torch.device) -> Dict[str, Any]:
    """Describe the device, and measure the rate of a matrix product."""
    import deepspeed
    import transformers

    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else None
    return {
        "name": torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU",
        "memory_bytes": memory,
        "matrix_rate": matrix_rate(device, torch.bfloat16),
        "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
    }  # fmt: skip


def training(cell: Cell, subject: Subject, steps: int, own: Path, folder: Path, device: torch.device) -> Dict[str, Any]:
    """Measure the steps of a run. Their numbers are compared with the reference first."""
    if not guard.file_of(folder, cell.subject).exists():
        raise Skip("there is no reference to compare it with")
    config = config_of(cell, subject, own, device)
    ranks = start(config)
    require_memory(prediction(config, subject)["total_bytes"], device)
    began = time.perf_counter()
    run = assemble(config, subject, own, ranks)
    assembled_s = time.perf_counter() - began
    plan = plan_of(run.engine)
    predicted = prediction(config, subject, plan, run.engine.module)
    predicted["exchange_bytes"] = run.engine.exchange_bytes(config.train.precision)
    predicted["total_bytes"] += predicted["exchange_bytes"]
    deviation = guard.compare(run, cell, folder)
    throughput = Throughput(run.engine, run.mesh, torch.bfloat16)
    train_step(run, guard.STEPS)
    settle(device)
    reset_peak(device)
    run.clock.end_step()
    seconds: List[float] = []
    mfu: List[float] = []
    data: List[float] = []
    tokens = 0
    for index in range(guard.STEPS + 1, guard.STEPS + 1 + steps):
        started = time.perf_counter()
        result = train_step(run, index)
        settle(device)
        seconds.append(time.perf_counter() - started)
        mfu.append(throughput.metrics(result.tokens, result.squares, seconds[-1])["perf/mfu"])
        phases, tokens = run.clock.end_step(), result.tokens
        data.append(phases["perf/data_s"] / seconds[-1])
    compiled = run.engine.compiled
    return {
        "attention": plan.describe(), "step_s": asdict(spread(seconds)), "tokens_per_s": tokens / median(seconds),
        "mfu": median(mfu), "data_share": median(data), "phases": phases, "assembled_s": assembled_s,
        "predicted": predicted, "peak_bytes": peak(device),
        "compiled": None if compiled is None else {"parts": compiled.count, "seconds": compiled.seconds},
        **guard.as_figures(deviation, config.train.precision),
    }  # fmt: skip


def prediction(
    config: Any, subject: Subject, plan: Optional[AttentionPlan] = None, model: Any = None
) -> Dict[str, float]:
    """Return what ``ftdist.plan`` says about the memory of the device, in bytes.

    Args:
        plan: How documents run through the model. None: not known yet.
        model: The model. None: its parameters are counted without weights.
    """
    if model is None:
        from ftdist.model.load import model_config
        from ftdist.model.parts import auto_class

        with torch.device("meta"):
            model = auto_class(model_config(config)).from_config(model_config(config))
        frozen = subject.method != "full"
        count, updated = parameters(model), 0 if frozen else parameters(model)
    else:
        count, updated = parameters(model), trained(model)
    states = memory_of(config, count, Layout.of_world(1), updated).device.total
    fields = subject.model
    sizes = layer_sizes(fields["hidden_size"], fields["num_attention_heads"], fields["num_key_value_heads"], None,
                        fields["intermediate_size"])  # fmt: skip
    assert sizes is not None
    kept = kept_activations(config.train, sizes, fields["num_hidden_layers"], subject.rows * subject.tokens,
                            plan is not None and keeps_attention(config.train, plan))  # fmt: skip
    tokens, device = subject.rows * subject.tokens, config.launch.device.name
    head = head_bytes(fields["hidden_size"], fields["vocab_size"], tokens, most_tokens(device, fields["vocab_size"]),
                      config.train.precision, device, bool(updated) and subject.method == "full")  # fmt: skip
    working = max(kept.working, head)  # the head is computed before a layer is recomputed
    return {"states_bytes": states, "activations_bytes": kept.device, "working_bytes": working,
            "total_bytes": states + kept.device + working}  # fmt: skip


def require_memory(needed: float, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0]
    if needed + MARGIN > free:
        raise Skip(f"does not fit: it needs about {(needed + MARGIN) / GIB:.0f} GiB, and {free / GIB:.0f} GiB are free")
