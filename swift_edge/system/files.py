"""Files that are written whole or not at all, whatever else is at their place, and folders that swap names."""

import contextlib
import ctypes
import errno
import functools
import os
import re
import secrets
import socket
import stat
import sys
from pathlib import Path
from typing import Any, Final, Literal

from swift_edge.system.locks import lock_descriptor

STREAM_PLACES: Final = ("/dev/fd/", "/dev/std", "/proc/")
"""Where a name stands for what is open already, even if that is a regular file."""
_NAME_CHARACTERS: Final = 40
"""Characters of a file's name that its temporary file shows: with all of them it could be too long."""
_SWAP: Final = 2
"""The flag of `renameat2` and of `renamex_np` for a swap."""
_HERE: Final = -100
"""`AT_FDCWD`: paths are relative to the working folder."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, and rename it: whoever looks finds the old one or the new one.

    A file that is there keeps its mode, and its owner where this user may give files away; through a link its target is
    written. Devices and pipes take the bytes themselves. Raises `OSError`, also for a folder, a socket or a disk.
    """
    there = kind_at(path)
    if there == "stream":
        _write_into(path, data)
        return
    if there == "other":
        raise OSError(errno.EISDIR if path.is_dir() else errno.EINVAL, "not a file that can be replaced", str(path))
    target = Path(os.path.realpath(path))
    known = target.stat() if there == "file" else None
    clear_abandoned(target.parent, target.name)
    temporary, descriptor = _new_beside(target, 0o666 if known is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if known is not None:
                _take_over(temporary, descriptor, known)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
            if os.name != "nt":  # where an open file cannot be renamed
                os.replace(temporary, target)
        if os.name == "nt":
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def kind_at(path: Path) -> Literal["nothing", "file", "stream", "other"]:
    """What is at a place, links followed: a `file` can be replaced, a `stream` takes bytes, into the rest goes nothing.

    Streams are character devices, pipes, and whatever is the output of this process.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    if stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode):
        return "stream"
    if not stat.S_ISREG(found.st_mode):
        return "other"
    return "stream" if str(path).startswith(STREAM_PLACES) or _is_output(found) else "file"


def exchange(one: Path, other: Path) -> bool:
    """Let two folders of one disk swap their names in one step; False where the system or the disk cannot."""
    if sys.platform not in ("linux", "darwin"):
        return False
    library = _c_library()
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "linux":
            return bool(library.renameat2(_HERE, names[0], _HERE, names[1], _SWAP) == 0)
        return bool(library.renamex_np(*names, _SWAP) == 0)
    except AttributeError:  # a C library without it
        return False


def _is_output(found: os.stat_result) -> bool:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(found, os.fstat(descriptor)):
                return True
    return False


def _write_into(path: Path, data: bytes) -> None:
    # What a redirection has written to so far stays.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def _new_beside(target: Path, mode: int) -> tuple[Path, int]:
    """Make and lock a temporary file in the folder of `target`."""
    while True:
        temporary = target.with_name(f".{target.name[:_NAME_CHARACTERS]}.{_host()}.{secrets.token_hex(4)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, mode)
        lock_descriptor(descriptor)
        with contextlib.suppress(FileNotFoundError):  # taken for abandoned before it was locked
            if os.name == "nt" or os.path.samestat(os.stat(temporary), os.fstat(descriptor)):
                return temporary, descriptor
        os.close(descriptor)


def _take_over(temporary: Path, descriptor: int, known: os.stat_result) -> None:
    """Give a new file the owner, where that is allowed, and the mode of the one that it replaces."""
    if sys.platform != "win32":
        mine = os.fstat(descriptor)
        for owner, group in ((known.st_uid, known.st_gid), (-1, known.st_gid)):
            if (known.st_uid, known.st_gid) == (mine.st_uid, mine.st_gid):
                break
            with contextlib.suppress(OSError):
                os.fchown(descriptor, owner, group)
                break
    os.chmod(temporary, stat.S_IMODE(known.st_mode))


def clear_abandoned(folder: Path, target: str | None = None) -> None:
    """Remove temporary files of `target`, or of any file, whose writers have died: nobody holds the lock on them.

    Those of other machines stay, as not every network disk passes locks on.
    """
    if os.name == "nt":
        return
    name = ".+" if target is None else re.escape(target[:_NAME_CHARACTERS])
    pattern = re.compile(rf"\.{name}\.{re.escape(_host())}\.[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for found in os.listdir(folder):
            if pattern.fullmatch(found):
                _remove_unless_locked(folder / found)


def _remove_unless_locked(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            if lock_descriptor(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())[:_NAME_CHARACTERS]


@functools.cache
def _c_library() -> Any:
    return ctypes.CDLL(None)
