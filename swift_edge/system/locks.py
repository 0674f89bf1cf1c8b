"""Locks on places that are written to: one writer at a time, and whoever comes second is told who the first one is.

The lock is the kernel's, on a small file in or beside the place: it ends with the process that holds it, however that
ends, so that a file that is left over locks nothing. Where the disk has no such locks, the process that the file names
is looked for; one on another machine is taken to be alive.
"""

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from swift_edge.errors import PlaceInUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_NAME: Final = ".lock"
"""Name of the lock of a folder, inside it."""

_SAFELY: Final = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
"""In a folder from elsewhere the name may be that of a link, or of a pipe that nobody writes to."""
_LOCKED_BYTE: Final = 2**30
"""Windows locks bytes, which nobody else can read then: one that the file does not have."""
_HELD: Final = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
_PATIENCE_S: Final = 0.2
"""Seconds in which a lock that was only looked at is free again, and its holder has said who it is."""


@dataclass(frozen=True, slots=True)
class _Owner:
    """What a lock file says."""

    pid: int
    host: str
    since: str
    started: str
    """When the process was started, in the system's words: another one may have the same number later."""

    @classmethod
    def me(cls) -> "_Owner":
        return cls(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"), _start_of(os.getpid()))

    @property
    def alive(self) -> bool:
        if self.host != socket.gethostname() or sys.platform == "win32":
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return self.started == _start_of(self.pid)


class Lock:
    """A place that is held by this process until `release`, or until it ends."""

    def __init__(self, path: Path, place: Path) -> None:
        """Lock `place` with the file `path`.

        Raises `PlaceInUseError` where somebody else holds it, another thread of this process too, and `OSError` where
        the file cannot be made.
        """
        self._path = path
        self._pid = os.getpid()
        self._descriptor = _taken(path, place)
        self._closing = weakref.finalize(self, os.close, self._descriptor)

    def release(self) -> None:
        """Let go, and remove the file; can be called again."""
        if not self._closing.alive:
            return
        mine = os.getpid() == self._pid  # a child that was forked leaves the lock alone
        with contextlib.suppress(OSError):
            if mine and sys.platform != "win32":
                # First: whoever waits for the lock sees that its file is gone, and makes another.
                self._path.unlink()
                # A child that was forked meanwhile has the descriptor, too.
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._closing()
        if mine and sys.platform == "win32":
            with contextlib.suppress(OSError):
                self._path.unlink()


@contextlib.contextmanager
def held(path: Path, place: Path) -> Iterator[None]:
    """Hold the lock of a place; raises what `Lock` does."""
    lock = Lock(path, place)
    try:
        yield
    finally:
        lock.release()


def lock_beside(place: Path) -> Path:
    """Where the lock of a file or of a folder that is replaced as a whole lies: beside it."""
    name = place.name
    if len(os.fsencode(name)) > 200:  # with a dot and an ending it would be too long
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return place.with_name(f".{name}.lock")


def require_free(path: Path, place: Path) -> None:
    """Raise `PlaceInUseError` if somebody holds the lock of a place now; nothing is locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFELY)
    except OSError:
        return
    try:
        owner = _read(path)
        free = _try_lock(descriptor)
        if free is None:
            free = owner is None or not owner.alive
    finally:
        os.close(descriptor)
    if not free:
        raise _in_use(path, place)


def lock_descriptor(descriptor: int) -> bool:
    """Lock an open file until it is closed; False where somebody else has locked it, or the disk has no locks."""
    return bool(_try_lock(descriptor))


def _taken(path: Path, place: Path) -> int:
    """Open the file and lock it."""
    deadline = time.monotonic() + _PATIENCE_S  # a look at the lock takes it for a moment
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o666)
        except PermissionError:
            # Left over by another user: it cannot be written, but replaced, unless that one is at work.
            if not path.exists():
                raise
            require_free(path, place)
            path.unlink()
            continue
        try:
            if _is_mine(descriptor, path):
                with contextlib.suppress(OSError):  # on a full disk it is held all the same, by nobody in particular
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps(asdict(_Owner.me())).encode())
                return descriptor
            if time.monotonic() > deadline:
                raise _in_use(path, place)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.01)


def _is_mine(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened could be locked, and is still the one at `path`."""
    locked = _try_lock(descriptor)
    if locked is None:
        owner = _read(path)
        locked = owner is None or not owner.alive
    try:
        return locked and os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:  # the one before has just released it
        return False


def _try_lock(descriptor: int) -> bool | None:
    """Lock an open file, unless it is locked; None where the disk has no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def _in_use(path: Path, place: Path) -> PlaceInUseError:
    """The error that names who holds the lock."""
    deadline = time.monotonic() + _PATIENCE_S
    while (owner := _read(path)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if owner is None:
        return PlaceInUseError(place, "another process")
    return PlaceInUseError(place, f"process {owner.pid} on {owner.host} since {owner.since}")


def _read(path: Path) -> _Owner | None:
    """Who the lock file names; None where it does not say."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFELY)
        try:
            owner = _Owner(**json.loads(os.read(descriptor, 4096)))
        finally:
            os.close(descriptor)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = all(isinstance(text, str) for text in (owner.host, owner.since, owner.started))
    return owner if texts and isinstance(owner.pid, int) and 0 < owner.pid < 2**31 else None


def _start_of(pid: int) -> str:
    """When a process was started, in clock ticks since the machine was; empty where the system does not say."""
    try:
        # The name of the program, in brackets, may hold anything.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError, UnicodeDecodeError):
        return ""
