"""How much of the device's rate a step uses, and the rate of a matrix product."""

import time
from typing import Dict

import numpy as np
import torch

from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet
from ftdist.engine.engine import Engine
from ftdist.engine.size import model_size
from ftdist.parallel.mesh import Mesh
from ftdist.plan.cost import describe_estimate
from ftdist.plan.flops import step_flops

SIDES = {"cuda": 4096, "cpu": 512}
"""Side of the square matrices whose product is measured. Larger ones take longer and give nearly the same rate."""
PRODUCTS, ROUNDS = 4, 3


class Throughput:
    """Computes the model FLOPs utilization of a run. Every rank must make it."""

    def __init__(self, engine: Engine, mesh: Mesh, dtype: torch.dtype) -> None:
        """
        Args:
            engine: Its model and its parameters are counted.
            dtype: Type of the weights.
        """
        self._size = model_size(engine)
        self._rate = mesh.sum([matrix_rate(mesh.device, dtype)])[0]

    def metrics(self, tokens: int, squares: int, step_s: float) -> Dict[str, float]:
        """Return the metrics of a step, from its numbers over all ranks (see ``step_flops``) and its duration."""
        if self._size is None:
            return {}
        return {"perf/mfu": step_flops(self._size, tokens, squares) / step_s / self._rate}

    def estimate(self, config: RunConfig, data: PreparedSet, steps: int, devices: int) -> str:
        """Return a line about the time and cost of steps to come; "" if the size of the model is not known.

        Args:
            data: The training set. A step has as many tokens as ``batch.global_batch_size`` of its mean rows.
            devices: Number of ranks.
        """
        if self._size is None or not steps:
            return ""
        lengths = data.document_lengths()
        rows = steps * config.batch.global_batch_size / data.num_rows
        flops = step_flops(self._size, rows * lengths.sum(), rows * np.square(lengths).sum())
        return describe_estimate(steps, float(flops), self._rate, devices, config.report.price_per_device_hour)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second of a matrix product on this device: the best of some rounds."""
    side = SIDES.get(device.type, SIDES["cuda"])
    left = right = torch.full((side, side), 0.5, device=device, dtype=dtype)  # random numbers would move the seed
    best = 0.0
    for _ in range(ROUNDS):
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            left @ right
        _wait_for(device)
        best = max(best, PRODUCTS * 2 * side**3 / (time.perf_counter() - started))
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
