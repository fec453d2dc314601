"""What a resume may change, and what the config hash covers."""

from typing import Any

from ftdist.config.resumable import config_hash
from ftdist.config.schema import RunConfig


def test_the_config_hash_covers_what_a_resume_cannot_change() -> None:
    def hashed(**changes: Any) -> str:
        config = RunConfig()
        for key, value in changes.items():
            owner, name = key.split("__")
            setattr(getattr(config, owner), name, value)
        return config_hash(config)

    assert hashed() == hashed(zero__stage=0, launch__nproc_per_node=7, batch__grad_accum_steps=2, track__run_id="x")
    for other in (
        {"optim__lr": 1.0},
        {"batch__global_batch_size": 2},
        {"train__max_steps": 2},
        {"data__packing": False},
    ):
        assert hashed() != hashed(**other)
