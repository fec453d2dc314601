"""Folders that are written under a temporary name, and what of them a killed process has left. [light]"""

import os
import platform
import re
import shutil
from pathlib import Path


def temporary(target: Path) -> Path:
    """The name, beside ``target``, under which this process writes it: ``.<name>.<host>.<pid>``."""
    return target.with_name(f".{target.name}.{platform.node()}.{os.getpid()}")


def remove_rests(targets: Path) -> None:
    """Remove temporary folders of processes of this machine that are gone. Those of other machines stay: whether their
    processes live cannot be seen from here.

    Args:
        targets: the folder of the targets, and a pattern of their names: ``RUN_DIR/export``, ``CACHE/data/*``.
    """
    own = re.compile(rf"\..+\.{re.escape(platform.node())}\.(\d+)")
    for rest in targets.parent.glob(f".{targets.name}.*"):
        found = own.fullmatch(rest.name)
        if found and not _is_alive(int(found.group(1))):
            shutil.rmtree(rest, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
