"""What is written under a temporary name, and what of them a killed process has left. [light]"""

import os
import platform
import re
import secrets
import shutil
from pathlib import Path

from ftdist.base.process import is_alive


def beside(path: Path) -> Path:
    """A name for a temporary file or folder beside ``path``, ``.<name>.<host>.<pid>.<random>``, to be made by
    ``open("x")`` or ``mkdir``: where others may write too, nobody can have put a link there."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}")


def remove_rests(targets: Path) -> None:
    """Remove temporary folders of processes of this machine that are gone. Those of other machines stay: whether their
    processes live cannot be seen from here.

    Args:
        targets: the folder of the targets, and a pattern of their names: ``RUN_DIR/export``, ``CACHE/data/*``.
    """
    own = re.compile(rf"\..+\.{re.escape(platform.node())}\.(\d+)\.[0-9a-f]{{8}}")
    for rest in targets.parent.glob(f".{targets.name}.*"):
        found = own.fullmatch(rest.name)
        if found and not is_alive(int(found.group(1))):
            shutil.rmtree(rest, ignore_errors=True)
