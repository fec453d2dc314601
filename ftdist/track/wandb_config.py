"""The parts of a run's config and provenance that may be published, for example on W&B."""

import dataclasses
from enum import Enum
from typing import Any, Dict

from ftdist.base.redact import REDACTED, SECRET_KEY, redact
from ftdist.config.schema import RunConfig

SECTIONS = (
    "name", "seed", "model", "data", "method", "objective", "batch", "optim", "zero", "train", "launch",
    "debug", "sweep", "report",
)  # fmt: skip
"""Sections of the config that may be published. A new section stays private until it is added here."""


def public_config(config: RunConfig) -> Dict[str, Any]:
    """Return the sections of the config that may be published, as plain values and without secrets."""
    return {name: _public(getattr(config, name)) for name in SECTIONS}


def public_facts(provenance: Dict[str, Any]) -> Dict[str, Any]:
    """Return the part of provenance.json that may be published.

    The git diff and the command line are left out, because they can hold anything.
    """
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
