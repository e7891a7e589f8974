"""Check the access of this process to a file, without creating the file.

Root may construct an app whose processes change their user later (``gunicorn --preload --user``). The processes could
not open a file that root created. A symbolic link in place of the file could lead root to any file.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress


def check_writable(path: str) -> None:
    """Check that this process may read and write the file, or create it and its missing directories.

    :raises OSError: the access is denied; ``filename`` is the file or directory that denies it.
    """
    place, is_above, mode = os.path.abspath(path), False, None
    while mode is None:
        try:
            mode = os.stat(place).st_mode
        except FileNotFoundError:
            place, is_above = os.path.dirname(place), True
    if stat.S_ISDIR(mode) and not is_above:
        raise _error(errno.EISDIR, place)
    wanted = os.W_OK | os.X_OK if is_above else os.R_OK | os.W_OK
    if not os.access(place, wanted, effective_ids=os.access in os.supports_effective_ids):
        raise _error(errno.EACCES, place)


def check_link(path: str) -> None:
    """Check that root may open ``path``. A link of another user could lead root to any file.

    :raises OSError: this process runs as root, and another user may have created the link.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return
    try:
        found = os.lstat(path)
        folder = os.stat(os.path.dirname(os.path.abspath(path)))
    except (OSError, ValueError):
        return  # the file is missing, or opening it will report the error
    is_foreign = found.st_uid != 0 or folder.st_uid != 0 or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if stat.S_ISLNK(found.st_mode) and is_foreign:
        raise OSError(errno.ELOOP, "a link of another user, or in a directory of another user", path)


def this_user() -> str:
    """Return the user of this process, for messages."""
    try:
        import pwd  # not on Windows

        return f"user {pwd.getpwuid(os.geteuid()).pw_name}"
    except ImportError:
        return "this user"
    except KeyError:  # the user has no account
        return f"user {os.geteuid()}"


def owner_of(path: str) -> str:
    """Return the owner of a file, or of the nearest existing directory above it, for messages."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return owner_of(os.path.dirname(os.path.abspath(path)))
    except OSError:
        return "another user"
    try:
        import pwd  # not on Windows

        return f"user {pwd.getpwuid(found.st_uid).pw_name}"
    except (ImportError, KeyError):
        return f"user {found.st_uid}"


def _error(number: int, place: str) -> OSError:
    return OSError(number, os.strerror(number), place)


def make_folder(path: str) -> None:
    """Create a directory and its parents with mode 0700. As root, give each to the owner of its parent."""
    if os.path.isdir(path):
        return
    make_folder(above := os.path.dirname(path))
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        if os.geteuid() == 0:
            found = os.stat(above)
            os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)


def give_to_owner_of(folder: str, descriptor: int) -> None:
    """As root, give a file that this process has just made to the owner of its folder: the app may run as that user."""
    if os.geteuid() == 0:
        found = os.stat(folder)
        os.fchown(descriptor, found.st_uid, found.st_gid)
