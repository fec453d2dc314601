"""Files of a model that do not fit its config, read with ZeRO-3 by two ranks."""

import json
from pathlib import Path
from typing import Any, Dict, List

from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import NONE_WHOLE, save_tiny_model, tiny_config
from tests.helpers.training import start


def _read(configs: List[Any]) -> List[Any]:
    """Return for each config the names of the weights that are not read, or the error."""
    from ftdist.base.errors import ConfigError
    from ftdist.model.attention_plan import BY_DOCUMENT
    from ftdist.model.load import load_model, model_config
    from ftdist.plan.batch import plan_batch
    from ftdist.plan.deepspeed import deepspeed_settings

    ranks = start(configs[0])
    found: List[Any] = []
    for config in configs:
        settings = deepspeed_settings(config, plan_batch(config.batch, ranks.world_size, 128))
        try:
            found.append(load_model(config, model_config(config), BY_DOCUMENT, settings).ftdist_unread)
        except ConfigError as error:
            found.append(error.found)
    return found


def _change(folder: Path, weights: Dict[str, Any], **fields: Any) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({**load_file(file), **weights}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_weights_that_are_not_read_or_not_finite_are_named_and_wrong_ties_are_refused(tmp_path: Path) -> None:
    import torch

    more, tied, equal = (save_tiny_model(tmp_path / name) for name in ("more", "tied", "equal"))
    _change(more, {"mtp.0.weight": torch.ones(2), "model.layers.7.mlp.weight": torch.ones(2),
                   "model.rotary_emb.inv_freq": torch.ones(2)})  # fmt: skip
    _change(tied, {}, tie_word_embeddings=True)
    _change(equal, {"lm_head.weight": torch.ones(259, 64), "model.embed_tokens.weight": torch.ones(259, 64)},
            tie_word_embeddings=True)  # fmt: skip
    bad = save_tiny_model(tmp_path / "bad")
    _change(bad, {"model.norm.weight": torch.tensor([1.0] * 63 + [float("nan")])})  # in the part of the last rank
    configs = [tiny_config(tmp_path, "zero.stage=3", NONE_WHOLE, f"model.path={f}") for f in (more, tied, equal, bad)]
    for unread, refused, accepted, not_finite in run_ranks(_read, 2, configs, timeout_s=120):
        assert "model.norm.weight holds NaN or infinity" in not_finite
        assert unread == ["model.layers.7.mlp.weight", "mtp.0.weight"]
        assert "ties lm_head.weight to model.embed_tokens.weight, but its files have both" in refused
        assert accepted == []
