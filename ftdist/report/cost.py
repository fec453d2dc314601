"""The cost of a run for its report. The sizes are those of the model without its weights."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np

from ftdist.base.errors import FtdistError
from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet, open_set
from ftdist.engine.size import model_size
from ftdist.method.check import method_on_meta
from ftdist.model.check import build_on_meta
from ftdist.plan.cost import cost_of
from ftdist.plan.flops import step_flops
from ftdist.plan.goodput import Goodput
from ftdist.plan.pretraining import pretraining_of
from ftdist.run.file_hashes import sha256_of
from ftdist.run.identity import read_inputs, recorded_folder
from ftdist.run.prepared import is_ready
from ftdist.run.rundir import RunDir

CONFIG = "config.json"


def run_cost(run: RunDir, config: RunConfig, goodput: Goodput, tokens: int, price: Optional[float]) -> Dict[str, Any]:
    """Return the cost of a run as a part of the report.

    Args:
        tokens: Input tokens of the steps that count.
        price: Price of a device for an hour. None: that of ``report.price_per_device_hour``.

    Operations and pretraining are not known if the ``config.json`` of the model is gone or has changed.
    """
    folder, flops = recorded_folder(run, config), None
    price = config.report.price_per_device_hour if price is None else price
    size = parameters = None
    with suppress(FtdistError, OSError):
        if _same_config(run, config):
            size = model_size(method_on_meta(config))
            parameters = sum(parameter.numel() for parameter in build_on_meta(config).parameters())
    if parameters is None:
        return cost_of(goodput, tokens, None, price, None, None).as_dict()
    if size is not None and is_ready(folder):  # the prepared data may have been removed from the cache
        flops = step_flops(size, tokens, tokens * squares_per_token(open_set(folder, "train")))
    return cost_of(goodput, tokens, flops, price, parameters, pretraining_of(config, parameters)).as_dict()


def _same_config(run: RunDir, config: RunConfig) -> bool:
    """Return whether the ``config.json`` of the model is the one that the run was started with.

    Raises:
        OSError: It is gone.
    """
    record, folder = read_inputs(run), config.model.path
    files = record["files"].get("model") if record is not None else None
    if not folder or not isinstance(files, dict) or CONFIG not in files:
        return True  # the run recorded none
    with (Path(folder) / CONFIG).open("rb") as file:
        return sha256_of(file) == files[CONFIG]


def squares_per_token(data: PreparedSet) -> float:
    """Return the mean length of the document of a token: the sum of squared lengths divided by the sum of lengths."""
    lengths = data.document_lengths()
    return float(np.square(lengths).sum() / lengths.sum()) if len(lengths) else 0.0
