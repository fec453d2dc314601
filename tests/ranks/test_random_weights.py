"""A random model has the same weights whole and sharded, also where transformers draws vectors."""

import copy
from pathlib import Path
from typing import Any, Dict, List

from tests.helpers.families import OTHER_FAMILIES
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import tiny_config
from tests.helpers.training import start

DRAWN = ("gemma3_images", "gpt_oss", "qwen3_next")


def _differences(config: Any) -> Dict[str, List[str]]:
    """Return by family the names of the parameters that differ."""
    from ftdist.model.attention_plan import PLAIN
    from ftdist.model.load import load_model, load_whole, model_config
    from ftdist.model.vocabulary import gathered

    start(config)
    found = {}
    for family in DRAWN:
        config.model.config = copy.deepcopy(OTHER_FAMILIES[family])
        whole = dict(load_whole(config).named_parameters())
        settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
        model, found[family] = load_model(config, model_config(config), PLAIN, settings), []
        for name, weight in model.named_parameters():
            assert hasattr(weight, "ds_id")
            with gathered([weight], changed=False):
                if not weight.equal(whole[name]):
                    found[family].append(name)
    return found


def test_drawn_vectors_are_the_same_sharded_on_two_ranks(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "model.path=null", "zero.stage=3")
    assert run_ranks(_differences, 2, config) == [{family: [] for family in DRAWN}] * 2
