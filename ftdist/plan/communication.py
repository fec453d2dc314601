"""Sizes of DeepSpeed's communication buckets, which depend on the model, and the memory that they take.

``deepspeed.json`` has ``auto`` for a size that follows from the model. The ranks replace it when the model is there.
The reasons are explained in docs/step.md, "What ranks exchange at once".
"""

from dataclasses import dataclass
from typing import Any, Dict, Mapping

from ftdist.config.schema import Precision
from ftdist.config.zero import ModelState
from ftdist.plan.memory import BYTES

AUTO = "auto"
REDUCE, PREFETCH = "reduce_bucket_size", "stage3_prefetch_bucket_size"
SHORT_NAMES = {
    name: name.removeprefix("stage3_")
    for name in (PREFETCH, "stage3_max_live_parameters", "stage3_max_reuse_distance",
                 "stage3_param_persistence_threshold")
}  # fmt: skip
"""The other name that DeepSpeed accepts for a setting."""
SMALLEST, LARGEST = 5_000_000, 50_000_000
"""Numbers in a message: 10 and 100 MB in bf16. Smaller messages take longer for each number, because of their latency;
larger ones are not faster."""
REDUCTIONS = 16
"""Messages in which the gradients of a model are reduced, between these limits. All but the last can be sent while
the backward pass goes on."""
FIRST_FIXED = 50_000_000
"""The ``reduce_bucket_size`` of every run of the versions that had no ``auto``."""


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of parameters, each counted once."""

    parameters: int
    trained: int
    layer: int
    """Those of the largest layer; those of the whole model if its layers are not known."""


def exchange_settings(stage: int, given: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the entries of ``zero_optimization`` that the user has not given: ``auto``, or the same for all models.

    Args:
        given: ``zero.deepspeed.zero_optimization`` of the run config.
    """
    if not stage:
        return {}
    sharded = ModelState.parameters.is_sharded(stage)
    settings: Dict[str, Any] = {REDUCE: AUTO, "overlap_comm": sharded}
    if sharded:
        settings.update({
            PREFETCH: AUTO,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_param_persistence_threshold": 100_000,
        })  # fmt: skip
    return {name: value for name, value in settings.items() if not {name, SHORT_NAMES.get(name)} & given.keys()}


def sizes_of(model: ModelSizes) -> Dict[str, int]:
    """Return the values that replace ``auto``.

    A bucket for gradients is a sixteenth of them, and the weights that ZeRO-3 gathers ahead are one layer: both are
    between 5 and 50 million numbers, and never more than the model has.
    """
    return {
        REDUCE: max(1, min(model.trained, _between(model.trained // REDUCTIONS))),
        PREFETCH: min(model.parameters, _between(model.layer)),
    }


def _between(number: int) -> int:
    return min(max(number, SMALLEST), LARGEST)


def with_sizes(settings: Dict[str, Any], model: ModelSizes) -> Dict[str, Any]:
    """Return the settings of ``deepspeed.json`` with the sizes of a model."""
    sizes = sizes_of(model)
    zero = {
        name: sizes.get(name, value) if value == AUTO else value
        for name, value in settings["zero_optimization"].items()
    }
    return {**settings, "zero_optimization": zero}


def without_sizes(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Return the settings of ``deepspeed.json`` without the sizes that follow from the model, to load it."""
    zero = {name: value for name, value in settings["zero_optimization"].items() if value != AUTO}
    return {**settings, "zero_optimization": zero}


def is_same(name: str, frozen: Any, computed: Any) -> bool:
    """Return whether a value of ``deepspeed.json`` is the one that the run config gives. A run of an earlier version
    continues with its own size."""
    earlier = name == f"zero_optimization.{REDUCE}" and computed == AUTO and frozen == FIRST_FIXED
    return bool(frozen == computed) or earlier


def exchange_bytes(zero: Mapping[str, Any], model: ModelSizes, precision: Precision) -> int:
    """Return the bytes of the buffers and gathered weights that a rank holds on top of the model states.

    Stages 1 and 2 allocate the bucket in each micro-step, twice with ``overlap_comm``, and stage 3 when the run starts.
    At stage 3 the weights that are gathered ahead come on top, and those that stay from the forward to the backward
    pass: ``stage3_max_reuse_distance`` counts the weights between two uses, so at most half as many stay. What a module
    gathers while it runs is not counted (``ftdist.plan.memory.gathered_bytes``).

    Args:
        zero: The entries of ``zero_optimization`` by their long names, with sizes.
    """
    stage, width = zero["stage"], BYTES[precision]
    if not stage:
        return 0
    bucket = int(zero[REDUCE])
    if not ModelState.parameters.is_sharded(stage):
        return bucket * width * (2 if zero.get("overlap_comm") else 1)
    kept = min(model.parameters, zero["stage3_max_reuse_distance"] // 2)
    ahead = min(model.parameters - kept, zero[PREFETCH])
    return (bucket + kept + ahead) * width
