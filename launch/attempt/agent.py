"""The agent of a W&B sweep, if it has started this process."""

import os
from typing import Optional

import psutil

SWEEP = "WANDB_SWEEP_ID"
"""The environment variable that `wandb agent` sets for its trials."""
COMMAND = "agent"


def sweep_agent() -> Optional[psutil.Process]:
    """Return the agent that started this process, directly or through a shell or torchrun. None if no agent did.

    The agent is the nearest ancestor that was itself started without the variable ``SWEEP``. Its command is
    ``wandb agent …``. If it is another command, a user has set the variable, and no agent waits for this process.
    """
    for ancestor in psutil.Process().parents() if SWEEP in os.environ else []:
        try:
            if SWEEP not in ancestor.environ():
                return ancestor if COMMAND in ancestor.cmdline() else None
        except psutil.Error:  # it belongs to another user, or has just ended
            return None
    return None
