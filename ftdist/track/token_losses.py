"""The losses of single tokens at the first and at the newest evaluation of a run, for its report by word.

They are in ``RUN_DIR/evaluations/tokens-NNNNNNNN.npz``, without the tokens: the report reads these from the prepared
data.
"""

import zipfile
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np

from ftdist.base.temporary import replace_file
from ftdist.run.rundir import RunDir


def write_token_losses(run: RunDir, step: int, sets: Mapping[str, np.ndarray]) -> None:
    """Keep the losses of the tokens of each held-out set. Only those of the first and of this evaluation are kept.

    Raises:
        OSError: They cannot be written.
    """
    run.evaluations.mkdir(exist_ok=True)
    arrays: Dict[str, Any] = {str(number): one.astype(np.float32) for number, one in enumerate(sets.values())}
    with replace_file(_file(run, step)) as file:
        np.savez(file, names=np.array(list(sets), dtype=np.str_), **arrays)
    for path in run.evaluations.glob("tokens-*.npz"):
        if path not in (_file(run, 0), _file(run, step)):
            path.unlink(missing_ok=True)


def read_token_losses(run: RunDir, step: int) -> Dict[str, np.ndarray]:
    """Return the losses of the tokens of each held-out set; empty if they were not kept or are damaged.

    They are those of the tokens of ``ftdist.data.words.kept_limits``, in nats, and 0 for tokens that are not trained.
    """
    try:
        with np.load(_file(run, step), allow_pickle=False) as found:
            return {str(name): found[str(number)].astype(np.float64) for number, name in enumerate(found["names"])}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def _file(run: RunDir, step: int) -> Path:
    return run.evaluations / f"tokens-{step:08d}.npz"
