"""The W&B mode of a run, determined without importing wandb and without asking the user."""

import netrc
import os
from pathlib import Path
from typing import Mapping
from urllib.parse import urlsplit

from ftdist.config.schema import Wandb

DEFAULT_URL = "https://api.wandb.ai"


def resolve_mode(asked: Wandb, environment: Mapping[str, str] = os.environ) -> Wandb:
    """Return the W&B mode to use: online, offline or disabled.

    ``auto`` follows wandb's own variable WANDB_MODE and the variable WANDB_DISABLED of transformers, if they are set.
    Otherwise the mode is online if the user is logged in, else offline. ``online`` without a login becomes offline,
    because wandb would ask for a key and wait for an answer.

    Args:
        asked: The setting ``track.wandb``.
        environment: The environment variables.
    """
    if asked is Wandb.auto:
        said = environment.get("WANDB_MODE", "").lower()
        if environment.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
            said = "disabled"
        named = {"offline": Wandb.offline, "dryrun": Wandb.offline, "disabled": Wandb.disabled}
        asked = named.get(said, Wandb.online)
    if asked is Wandb.online and not logged_in(environment):
        return Wandb.offline
    return asked


def logged_in(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether wandb would find a key, in its variables or in the netrc file that ``wandb login`` writes."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or DEFAULT_URL).hostname
    for name in (environment.get("NETRC"), "~/.netrc", "~/_netrc"):
        if name and (path := Path(name).expanduser()).is_file():
            try:
                return host in netrc.netrc(path).hosts
            except (OSError, netrc.NetrcParseError):
                return False
    return False
