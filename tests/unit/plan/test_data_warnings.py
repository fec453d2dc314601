"""Warnings about a data set that is small for the settings of its run."""

from pathlib import Path
from typing import Any, Dict, List

import pytest

from ftdist.config.schema import RunConfig
from ftdist.launch.runs import banner
from ftdist.plan.data_warnings import data_warnings
from ftdist.run.prepared import read_meta
from tests.helpers.tiny import tiny_config


def warned(rows: int = 100, kept: int = 100, heldout: int = 0) -> List[str]:
    config = RunConfig()
    config.batch.global_batch_size, config.data.heldout_share = 8, 0.1
    meta: Dict[str, Any] = {
        "sets": {"train": {"rows": rows}},
        "sources": {"a": {"kept": kept - 1, "heldout": heldout}, "b": {"kept": 1, "heldout": 0}},
    }
    return data_warnings(config, meta)


def test_an_epoch_shorter_than_a_step_gives_a_warning() -> None:
    assert warned(rows=8) == []
    assert warned(rows=7) == [
        "one epoch has 7 rows, fewer than batch.global_batch_size=8: each step takes some rows more than once"
    ]


@pytest.mark.parametrize(
    ("kept", "heldout", "says"),
    [
        (9, 3, "3 of 12 documents (25%) are held out because of data.heldout_share=0.1"),  # a quarter
        (10, 3, ""),
        (8, 3, "3 of 11 documents (27%) are held out because of data.heldout_share=0.1"),
        (60, 39, "39 of 99 documents (39%) are held out because of data.heldout_share=0.1"),
        (60, 40, ""),  # enough documents: this is what was asked for
        (50, 0, ""),
    ],
)
def test_a_large_held_out_part_of_a_tiny_data_set_gives_a_warning(kept: int, heldout: int, says: str) -> None:
    found = warned(kept=kept, heldout=heldout)
    assert (len(found) == 1 and found[0].startswith(says)) if says else not found


def test_the_banner_warns_about_prepared_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ftdist.data.prepare import prepare

    config = tiny_config(
        tmp_path, "model.path=null", "model.config.model_type=llama", "data.sources.chats.max_documents=10",
        "data.heldout_share=0.5", "data.max_heldout_documents=null", "batch.global_batch_size=64",
    )  # fmt: skip
    banner.show_data_warnings(config, tmp_path / "nothing")
    assert capsys.readouterr().out == ""
    folder = prepare(config)
    sets = read_meta(folder)["sets"]
    rows, heldout = sets["train"]["rows"], sets["heldout"]["documents"]
    capsys.readouterr()
    banner.show_data_warnings(config, folder)
    said = capsys.readouterr().out
    assert f"warning: one epoch has {rows} rows, fewer than batch.global_batch_size=64" in said
    assert f"warning: {heldout} of 10 documents" in said
