"""Settings of early ends that cannot work are refused."""

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.checks import check_config
from ftdist.config.schema import RunConfig
from tests.unit.compose_tools import composed

GOOD = ("experiment=smoke", "train.eval_every=4", "train.checkpoint_every=2")


@pytest.mark.parametrize("words", [
    ["train.stop_when.patience=1"], ["train.stop_when.max_forgetting=0.1"], ["train.best=heldout"],
])  # fmt: skip
def test_good_settings_are_accepted(words: list[str]) -> None:
    check_config(composed(*GOOD, *words))


@pytest.mark.parametrize(("words", "said"), [
    (["train.stop_when.patience=0"], "at least 1"),
    (["train.stop_when.patience=1", "data.heldout_share=0"], "no held-out data"),
    (["train.stop_when.max_forgetting=0.1", "data.heldout_share=0"], "no held-out data"),
    (["train.stop_when.patience=1", "train.eval_every=null"], "train.eval_every is not"),
    (["train.stop_when.patience=1", "train.checkpoint_every=3"], "train.checkpoint_every=4"),
    (["train.stop_when.patience=1", "train.checkpoint_every=null"], "train.checkpoint_every=null"),
    (["train.stop_when.max_forgetting=0"], "more than 0"),
    (["train.stop_when.max_forgetting=0.1", "report.forgetting.texts=0"], "forgetting is not measured"),
    (["train.best=wiki"], "one of the held-out sets: heldout"),
])  # fmt: skip
@pytest.mark.thorough
def test_settings_that_cannot_work_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(composed(*GOOD, *words))
    assert said in str(caught.value)


def test_a_run_never_ends_early_by_default() -> None:
    train = RunConfig().train
    assert (train.best, train.stop_when.patience, train.stop_when.max_forgetting) == (None, None, None)
