"""The shapes of sharded weights while transformers reads the files of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from transformers.core_model_loading import Transpose


class _WholeShapes:
    """Answers for a model with sharded parameters what shape each parameter has as a whole."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_parameter(self, name: str) -> Any:
        parameter = self._model.get_parameter(name)
        return SimpleNamespace(shape=getattr(parameter, "ds_shape", parameter.shape))


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
