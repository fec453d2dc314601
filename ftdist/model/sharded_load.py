"""Sharded weights while transformers reads the files of a model: their whole shapes and values."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from transformers import modeling_utils
from transformers.core_model_loading import Transpose

from ftdist.model.vocabulary import gathered, whole_shape


class _WholeShapes:
    """Stands for a model with sharded parameters, and returns each parameter with its whole shape."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_parameter(self, name: str) -> Any:
        parameter = self._model.get_parameter(name)
        return SimpleNamespace(shape=whole_shape(parameter))


@contextmanager
def whole_shapes() -> Iterator[None]:
    """Let transformers see the whole shapes of parameters inside a ``with`` block.

    Files can hold a weight as it is or transposed (the experts of Qwen3-VL-MoE). transformers 5.23 finds out by
    comparing its shape with that of the parameter. With ZeRO-3 this is [0], and the weight would be transposed in any
    case."""
    convert = Transpose.convert

    def convert_by_whole_shape(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("model") is not None:
            options["model"] = _WholeShapes(options["model"])
        return convert(self, *args, **options)

    Transpose.convert = convert_by_whole_shape  # type: ignore[method-assign]
    try:
        yield
    finally:
        Transpose.convert = convert  # type: ignore[method-assign]


@contextmanager
def whole_values() -> Iterator[None]:
    """Let transformers compare whole parameters inside a ``with`` block.

    The config of a model can tie two weights although its files hold both. transformers then ties them only if they
    are equal. With ZeRO-3 both parameters are empty at that point, and would be tied in any case."""
    compare = modeling_utils._tied_params_are_equal

    def compare_whole(first: Any, second: Any) -> bool:
        with gathered([first, second], changed=False):
            return compare(first, second)

    modeling_utils._tied_params_are_equal = compare_whole
    try:
        yield
    finally:
        modeling_utils._tied_params_are_equal = compare
