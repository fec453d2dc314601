"""What of a run's config and provenance may leave the machine."""

import dataclasses
from enum import Enum
from typing import Any, Dict

from ftdist.base.redact import REDACTED, SECRET_KEY, redact
from ftdist.config.schema import RunConfig

SECTIONS = ("name", "seed", "model", "data", "method", "batch", "optim", "zero", "train", "launch", "debug")
"""The parts of the config that are published: an allow-list, so that a new part is private until somebody thinks."""


def public_config(config: RunConfig) -> Dict[str, Any]:
    """The config as plain values, allow-listed, without anything that looks like a secret."""
    return {name: _public(getattr(config, name)) for name in SECTIONS}


def public_facts(provenance: Dict[str, Any]) -> Dict[str, Any]:
    """Where the run comes from. Never the diff or the command line: they can hold anything."""
    facts: Dict[str, Any] = {
        name: provenance[name] for name in ("python", "platform", "host", "packages") if name in provenance
    }
    git = provenance.get("git") or {}
    if "commit" in git:
        facts["git"] = {"commit": git["commit"], "changed_files": len(str(git.get("status", "")).splitlines())}
    return facts


def _public(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value):
        return {field.name: _public(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _public(item) for key, item in value.items() if not SECRET_KEY.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_public(item) for item in value]
    if isinstance(value, str) and redact(value) != value:
        return REDACTED
    return value
