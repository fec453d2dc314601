"""File permissions: make all files follow the umask, and explain errors about permissions to the user.

Some libraries write files that only their owner can read: safetensors and ``tempfile`` use mode 0600. Another user, a
web server or a container could then read only some of the files of a model.
"""

import contextlib
import errno
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Optional

from ftdist.base.errors import FtdistError

MESSAGES = {
    errno.EROFS: ("a file system that can be written", "choose a folder on another disk"),
    errno.ENOSPC: ("free disk space", "free some space, then run the command again"),
    errno.EDQUOT: ("free space in your disk quota", "free some space, then run the command again"),
}
"""What is expected, and the fix, for errors of the operating system that need no further explanation."""


class AccessError(FtdistError):
    """The operating system does not let this user read or write a file."""


def follow_umask(folder: Path) -> None:
    """Give all files and folders below ``folder`` the permissions of a newly created file or folder."""
    with tempfile.TemporaryDirectory(dir=folder) as probe:
        (new_folder := Path(probe) / "folder").mkdir()
        (new_file := Path(probe) / "file").touch()
        modes = stat.S_IMODE(new_file.stat().st_mode), stat.S_IMODE(new_folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(modes[path.is_dir()])


def require_access(path: Path, write: bool = False) -> None:
    """Check that this user may read a file or folder. A path that does not exist is not refused.

    Args:
        write: Also check that it may be written.

    Raises:
        AccessError: The permissions of the path, or of a folder that leads to it, do not allow it.
    """
    if (blocker := _blocker(path, write)) is not None:
        raise _no_permission(path, blocker, write)


def require_readable_folder(folder: Path) -> None:
    """Check that this user may read a folder and every file in it.

    Raises:
        AccessError: See ``require_access``.
    """
    require_access(folder)
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            require_access(path)


def explain_os_error(error: OSError) -> FtdistError:
    """Return an error for the user: what the operating system refused, where, and the fix. Never raises an error."""
    if not isinstance(error.filename, (str, bytes, os.PathLike)):  # None, or the number of an open file
        return FtdistError(error.strerror or str(error))
    path = Path(os.fsdecode(error.filename))
    if error.errno in (errno.EACCES, errno.EPERM):
        with contextlib.suppress(OSError):  # the path was removed meanwhile: report what the system said
            if (blocker := _blocker(path, write=False)) is not None:
                return _no_permission(path, blocker, write=False)
            real = _real(path)
            blocker = next(place for place in (real, *real.parents) if os.path.lexists(place))
            return _no_permission(path, blocker, write=True)
    return FtdistError(f"{path}: {error.strerror}", *MESSAGES.get(error.errno or 0, ()))


def _real(path: Path) -> Path:
    """Return where ``path`` leads, as far as this user can follow its links. ``Path.resolve`` can raise errors."""
    return Path(os.path.realpath(path))


def _blocker(path: Path, write: bool) -> Optional[Path]:
    """Return the first file or folder whose permissions forbid access to the target of ``path``, or None."""
    path = _real(path)
    for folder in reversed(path.parents):
        if not os.path.lexists(folder):
            return None
        if not os.access(folder, os.X_OK):
            return folder
    needed = os.R_OK | (os.W_OK if write else 0) | (os.X_OK if os.path.isdir(path) else 0)  # noqa: PTH112 - never raises
    return path if os.path.lexists(path) and not os.access(path, needed) else None


def describe_rights(path: Path) -> str:
    """Return why a file or folder cannot be used: its file system is read-only, or else its owner and mode."""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return "is on a read-only file system"
    found = path.lstat()
    return f"belongs to {user_name(found.st_uid)} and has mode {stat.S_IMODE(found.st_mode):04o}"


def _no_permission(path: Path, blocker: Path, write: bool) -> AccessError:
    found = blocker.lstat()
    owner, me = user_name(found.st_uid), user_name(os.geteuid())
    what, letters = ("write", "rwX") if write else ("read", "rX")
    return AccessError(
        f"no permission to {what} {path}: {blocker} belongs to {owner} and has mode {stat.S_IMODE(found.st_mode):04o}",
        f"{what} permission for the user {me}",
        f"ask {owner} for it (chmod -R o+{letters} …, or a common group), or use a copy or folder of your own",
    )


def user_name(number: int) -> str:
    """Return the name of a user."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # in a container a user may have no name
        return f"user {number}"
