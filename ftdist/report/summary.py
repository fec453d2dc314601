"""The summary of a report: its main numbers, and about five sentences with them."""

from typing import Any, Callable, Dict, List, Optional, Tuple

from ftdist.base.counts import count
from ftdist.base.terminal import format_seconds
from ftdist.report.facts import first_and_last
from ftdist.report.texts import drawable, finite, number, percent

MAX_SETS = 3
"""Number of held-out sets that the sentences name."""

Report = Dict[str, Any]


def headline(report: Report) -> Dict[str, Optional[float]]:
    """Return the main numbers of a run. None: not measured.

    Returns:
        ``gain``: the last one of ``gains_of``. ``forgetting``: KL(base ‖ now) in
        nats per token at the last evaluation. ``goodput``: from 0 to 1. ``device_hours``. ``cost``: their price.
        ``energy_kwh``: None if it is not known of all machines and attempts.
    """
    curve = (report["forgetting"] or {}).get("curve") or []
    gains = list(gains_of(report)[1].items())
    return {
        "gain": finite(gains[-1][1]) if gains and gains[-1][0] > 0 else None,
        "forgetting": finite(curve[-1][1]) if curve else None,
        "goodput": finite(report["goodput"]["goodput"]), "device_hours": finite(report["cost"]["device_hours"]),
        "cost": finite(report["cost"]["price"]), "energy_kwh": energy_kwh(report),
    }  # fmt: skip


def energy_kwh(report: Report) -> Optional[float]:
    """Return the energy of a run, of GPUs and processors as far as the machines tell it, in kWh."""
    energy = report["cost"]["energy"]
    known = [kwh for kwh in (finite(energy[name]) for name in ("gpu_kwh", "cpu_kwh")) if kwh is not None]
    return sum(known) if known and energy["complete"] else None


def gains_of(report: Report) -> Tuple[str, Dict[int, float]]:
    """Return how much the held-out loss has fallen at each evaluation since before the first step.

    It is ``gain/loss`` of metrics.jsonl. Runs of earlier versions did not log it: the gain is then that of the first
    held-out set.

    Returns:
        What is measured; and by step the gain in nats per token. Empty if it was not measured before the first step.
    """
    name, points = next(iter(report["heldout"].items()), ("", []))
    losses = {step: drawable(loss) for step, loss in points}
    if 0 not in losses:
        return "", {}
    if not report["gains"] or len(report["heldout"]) == 1:
        return name, {step: losses[0] - loss for step, loss in losses.items()}
    all_of_them = {0: 0.0, **{step: drawable(gain) for step, gain in report["gains"]}}
    return report["gain_of"] or "all held-out sets", all_of_them


def sentences(report: Report, show: Callable[[str], str] = str) -> List[str]:
    """Return the summary.

    Args:
        show: Makes a text from outside one of the format of the report.
    """
    tokens, most = report["tokens"], report["max_steps"]
    steps = f"after {report['step'] or 0} of {count(most, 'step')}" if most else "before its first step"
    reason = f" ({show(report['reason'])})" if report["reason"] else ""
    found = [f"The run is {show(str(report['state']))}{reason} {steps}"
             + (f" and {count(tokens, 'token')}." if tokens else ".")]  # fmt: skip
    several = any(len(points) > 2 for points in report["heldout"].values())
    if (best := report["best"]) and (best["step"] != report["step"] or several):
        loss = f"held-out loss{' of ' + show(report['gain_of']) if report['gain_of'] else ''} {_nats(best['loss'])}"
        found.append(f"Its best checkpoint is that of step {best['step']} ({loss}).")
    found += [_gain(report, name, show) for name in list(report["heldout"])[:MAX_SETS]]
    if (more := len(report["heldout"]) - MAX_SETS) > 0:
        found.append(f"The losses of {count(more, 'more held-out set')} are below.")
    found += [_forgetting(report, show), *_general(report, show), _moved(report["moved"], show), _cost(report)]
    return found


def _gain(report: Report, name: str, show: Callable[[str], str]) -> str:
    before, after, change = first_and_last(report["heldout"][name])
    measured = report["gain"].get(name)
    parts = [change] if change else []
    if measured:
        low, high = (finite(measured["change"][end]) for end in ("low", "high"))
        if low is not None and high is not None:
            parts.append(f"95 % interval of the change: {low:+.4f} to {high:+.4f} nats per token")
    how = f" ({'; '.join(parts)})" if parts else ""
    gain = f"went from {before} to {after}{how}" if before else f"is {after}"
    return f"The held-out loss of {show(name)} {gain}."


def _forgetting(report: Report, show: Callable[[str], str]) -> str:
    found = report["forgetting"]
    if not found:
        return "Forgetting was not measured."
    step, distance, error = found["curve"][-1]
    at = f"On texts that the base model wrote, the model at step {step} differs from it by"
    warning = f" {show(found['warning'])}" if found["warning"] else ""
    return f"{at} {_nats(distance)} ± {_nats(error)} nats per token (forgetting).{warning}"


def _general(report: Report, show: Callable[[str], str]) -> List[str]:
    """Return a sentence about the general texts; none if they were not measured."""
    changes = []
    for name, found in list(report["general"].items())[:MAX_SETS]:
        before, after = (_nats(found[when]["value"]) for when in ("before", "after"))
        ends = [finite(found["change"][end]) for end in ("low", "high")]
        change = "" if None in ends else f"; 95 % interval of the change: {ends[0]:+.4f} to {ends[1]:+.4f}"
        changes.append(f"from {before} to {after} ({show(name)}{change})")
    return [f"The loss on general text went {', '.join(changes)}."] if changes else []


def _moved(moved: Optional[Dict[str, Any]], show: Callable[[str], str]) -> str:
    if moved is None:
        return "The change of the weights was not measured."
    return f"The trained weights moved by {percent(moved['relative'])} of the norm of the base (‖ΔW‖/‖W‖)."


def _cost(report: Report) -> str:
    cost, goodput = report["cost"], report["goodput"]
    price = "" if cost["price"] is None else f" at a price of {number(cost['price'])}"
    if goodput["goodput"] is None:
        return "Where the time went is not known."
    held = f"{number(cost['devices'])} device{'' if cost['devices'] == 1 else 's'}"
    return (f"The run held {held} for {number(cost['device_hours'])} device-hours{price}; "
            f"{percent(goodput['goodput'])} of {format_seconds(goodput['total_s'])} went into steps that "
            "count.")  # fmt: skip


def _nats(value: Any) -> str:
    known = finite(value)
    return "nan" if known is None else f"{known:.4f}"
