"""The losses of tokens are kept for the first and the newest evaluation."""

from pathlib import Path

import numpy as np
import pytest

from ftdist.run.rundir import RunDir
from ftdist.track.token_losses import read_token_losses, write_token_losses


def test_the_first_and_the_newest_evaluation_are_kept_and_damaged_files_are_like_missing_ones(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (0, 2, 4, 6, 4):  # a resume evaluates step 4 again
        write_token_losses(run, step, {"docs/ä": np.array([0.0, step + 0.1]), "empty": np.zeros(0)})
    assert sorted(path.name for path in run.evaluations.iterdir()) == ["tokens-00000000.npz", "tokens-00000004.npz"]
    found = read_token_losses(run, 4)
    assert found["docs/ä"].tolist() == pytest.approx([0.0, 4.1], rel=1e-7) and found["empty"].tolist() == []
    assert read_token_losses(run, 2) == {}
    (run.evaluations / "tokens-00000004.npz").write_bytes(b"PK\x03\x04 damaged")
    assert read_token_losses(run, 4) == {}
