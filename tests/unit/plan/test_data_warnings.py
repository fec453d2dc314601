"""Warnings about a data set that is small for the settings of its run."""

from typing import Any, Dict, List

import pytest

from ftdist.config.schema import RunConfig
from ftdist.plan.data_warnings import data_warnings


def warned(rows: int = 100, kept: int = 100, heldout: int = 0) -> List[str]:
    config = RunConfig()
    config.batch.global_batch_size, config.data.heldout_share = 8, 0.1
    meta: Dict[str, Any] = {
        "sets": {"train": {"rows": rows}},
        "sources": {"a": {"kept": kept - 1, "heldout": heldout}, "b": {"kept": 1, "heldout": 0}},
    }
    return data_warnings(config, meta)


def test_an_epoch_shorter_than_a_step_is_warned_about() -> None:
    assert warned(rows=8) == []
    assert warned(rows=7) == [
        "one epoch has 7 rows, fewer than batch.global_batch_size=8: each step takes some rows more than once"
    ]


@pytest.mark.parametrize(
    ("kept", "heldout", "says"),
    [
        (9, 3, ""),  # a quarter
        (8, 3, "3 of 11 documents (27%) are held out by data.heldout_share=0.1"),
        (60, 39, "39 of 99 documents (39%) are held out by data.heldout_share=0.1"),
        (60, 40, ""),  # enough documents: this is what was asked for
        (50, 0, ""),
    ],
)
def test_a_large_held_out_part_of_a_tiny_data_set_is_warned_about(kept: int, heldout: int, says: str) -> None:
    found = warned(kept=kept, heldout=heldout)
    assert (len(found) == 1 and found[0].startswith(says)) if says else not found
