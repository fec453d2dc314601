"""What a run cost, beside what training its model from zero would cost on the same devices."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

from ftdist.base.terminal import format_clock
from ftdist.plan.goodput import Goodput
from ftdist.plan.pretraining import Pretraining
from ftdist.run.timeline import QUEUE, STEPS

HOUR_S = 3600.0


@dataclass(frozen=True)
class Cost:
    """Times, operations and money of a run."""

    tokens: int
    """Input tokens of the steps that count."""
    flops: Optional[float]
    """Floating point operations of these tokens (``ftdist.plan.flops``). None: the sizes of the model are not known."""
    steps_s: float
    """Seconds of wall time in steps that count."""
    device_s: float
    """Seconds in which the run held devices, times their number."""
    devices: float
    """Mean number of devices over this time."""
    price_per_device_hour: Optional[float]
    parameters: Optional[int]
    """Number of parameters of the model. None: its files are gone."""
    pretraining: Optional[Pretraining]
    """None: the number of parameters is not known."""

    @property
    def flops_per_s(self) -> Optional[float]:
        """The measured rate of all devices together, in steps that count."""
        return self.flops / self.steps_s if self.flops and self.steps_s else None

    @property
    def pretraining_flops(self) -> Optional[float]:
        """6 · N · D (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361)."""
        if self.parameters is None or self.pretraining is None:
            return None
        return 6.0 * self.parameters * self.pretraining.tokens

    def as_dict(self) -> Dict[str, Any]:
        """Return the cost as a part of a report. What is not known is null."""
        rate, from_zero, pretraining = self.flops_per_s, self.pretraining_flops, self.pretraining
        seconds = from_zero / rate if from_zero and rate else None
        hours = None if seconds is None else seconds / HOUR_S * self.devices
        return {
            "tokens": self.tokens, "flops": self.flops, "flops_per_s": rate, "device_hours": self.device_s / HOUR_S,
            "devices": self.devices, "price": self._price(self.device_s / HOUR_S),
            "from_zero": {
                "parameters": self.parameters, "tokens": pretraining.tokens if pretraining else None,
                "source": pretraining.source if pretraining else "",
                "flops": from_zero, "device_hours": hours, "price": None if hours is None else self._price(hours),
                "seconds": seconds, "share": self.flops / from_zero if self.flops and from_zero else None,
            },
        }  # fmt: skip

    def _price(self, device_hours: float) -> Optional[float]:
        return None if self.price_per_device_hour is None else device_hours * self.price_per_device_hour


def cost_of(
    goodput: Goodput, tokens: int, flops: Optional[float], price: Optional[float],
    parameters: Optional[int], pretraining: Optional[Pretraining],
) -> Cost:  # fmt: skip
    """Return the cost of a run.

    Devices are held in all phases but the queue, also in steps that were lost. A device is a GPU, or on CPU a rank.
    For an attempt that ended before its ranks met, the number of ranks of the other attempts is used.

    Args:
        goodput: Where the wall time of the run went.
        tokens: Input tokens of the steps that count. flops: Their operations.
        price: Price of a device for an hour.
        parameters: Number of parameters of the model, without adapters. pretraining: None if it is not known.
    """
    device_s, devices = held_devices(goodput)
    return Cost(tokens, flops, goodput.seconds.get(STEPS, 0.0), device_s, devices, price, parameters, pretraining)


def held_devices(goodput: Goodput) -> Tuple[float, float]:
    """Return the device-seconds that the run held (seconds times devices), and the mean number of devices."""
    known = [attempt.ranks for attempt in goodput.attempts if attempt.ranks]
    default = known[0] if known else 1
    held = [(attempt.ranks or default, sum(attempt.seconds.values()) - attempt.seconds.get(QUEUE, 0.0))
            for attempt in goodput.attempts]  # fmt: skip
    device_s, wall_s = sum(ranks * seconds for ranks, seconds in held), sum(seconds for _, seconds in held)
    return device_s, device_s / wall_s if wall_s else float(default)


def describe_estimate(steps: int, flops: float, rate: float, devices: int, price: Optional[float]) -> str:
    """Return a line for the start of the training: a lower bound of the time that its steps need.

    Args:
        steps: Number of steps to come.
        flops: Their floating point operations (``ftdist.plan.flops``).
        rate: Measured rate of matrix products, in operations a second on all devices.
        price: Price of a device for an hour. None: not known.
    """
    hours = flops / rate / HOUR_S * devices
    money = "" if price is None else f", and cost {hours * price:.3g}"
    many = f"{devices} devices" if devices > 1 else "one device"
    needed, they = (f"{steps:,} steps need", "they take") if steps != 1 else ("1 step needs", "it takes")
    return (
        f"estimate: {needed} {flops:.3g} operations. At the rate measured for matrix products "
        f"({rate:.3g} a second on {many}) {they} {format_clock(flops / rate)}, or {hours:.3g} device-hours{money}. "
        "Real steps take this time divided by their MFU"
    )
