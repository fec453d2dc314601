"""The config hash: it covers what a resume cannot change, and a new key leaves it as it was."""

from typing import Any

import pytest

from ftdist.config import resumable
from ftdist.config.resumable import ADDED_LATER, config_hash
from ftdist.config.schema import RunConfig

FIRST_HASH = "8c0a5a749929b32f8a9185e9b8bdb96c05451cea7a65968e2381ec03c4e70291"
"""Hash of the default config before any key of ADDED_LATER existed; manifests of old checkpoints hold such hashes."""


def test_keys_added_later_leave_the_hash_of_old_runs_as_it_was() -> None:
    assert config_hash(RunConfig()) == FIRST_HASH


@pytest.mark.parametrize("key", ADDED_LATER)
def test_a_key_added_later_counts_when_it_has_another_value(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    anything: Any = "a value that this key never has"
    monkeypatch.setitem(resumable.ADDED_LATER, key, anything)
    assert config_hash(RunConfig()) != FIRST_HASH
