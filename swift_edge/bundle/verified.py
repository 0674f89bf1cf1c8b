"""Bundles whose files were hashed before: a record of how the system described them then, in the user's cache folder.

A file that still has the size, the times of its last write and last change, the inode and the device that it had when
its hash was right is taken to be the same file; any difference, and it is hashed again. Damage of which the system
knows nothing, such as a failing disk's, shows when the hashes are computed all the same: `swift-edge inspect` does.
"""

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swift_edge.bundle.manifest import Bundle
from swift_edge.errors import MIB, BundleError
from swift_edge.system.cache_folder import VARIABLE, CacheRecord

RECORD_VERSION: Final = 1
LEAST_BYTES: Final = 32 * MIB
"""Smaller bundles are hashed every time: it takes 20 ms, and leaves nothing behind in the user's home."""
SETTLED_NS: Final = 2 * 10**9
"""Age below which another write could leave a file's times as they are: two seconds is the coarsest clock, FAT's."""

_HASHING: Final = threading.Lock()


class VerifiedFiles:
    """The files of a bundle that its manifest gives hashes for, as they are now.

    >>> files = VerifiedFiles(bundle)  # before they are hashed: whatever changes meanwhile shows the next time
    >>> known = files.known()
    >>> if not known:
    ...     check_hashes(bundle, bundle.manifest.fixed_files)
    >>> model = ...  # read or open the files
    >>> files.require_unchanged()  # what was read is what was hashed
    >>> if not known:
    ...     files.remember()
    """

    def __init__(self, bundle: Bundle) -> None:
        """Ask the system about every file."""
        self._bundle = bundle
        self._seen = {name: _described(bundle.path / name) for name in bundle.manifest.fixed_files}
        self._large = sum(size for size, *_ in self._seen.values()) >= LEAST_BYTES
        newest = max((max(mtime, ctime) for _, mtime, ctime, *_ in self._seen.values()), default=0)
        self._settled = time.time_ns() - newest > SETTLED_NS
        folder = str(bundle.path.resolve())
        self._record = CacheRecord("verified", folder)
        self._state = {
            "version": RECORD_VERSION,
            "folder": folder,
            "files": {name: [bundle.manifest.files[name].sha256, *seen] for name, seen in self._seen.items()},
        }

    def known(self) -> bool:
        """Whether the very same files have been hashed before, and their hashes were right."""
        return self._large and bool(self._record.read() == self._state)

    def require_unchanged(self) -> None:
        """Raise `BundleError` for a file that is another one now, or was written to since it was first asked about."""
        for name, seen in self._seen.items():
            path = self._bundle.path / name
            if not path.exists() or _described(path) != seen:
                raise changed_file(path, "while the bundle was opened")

    def remember(self) -> str | None:
        """Record that the hashes were right; returns what to tell the user who named a folder that cannot be used.

        Files written a moment ago are not recorded, nor is anything where it cannot be: the next start hashes again.
        """
        if not (self._large and self._settled):
            return None
        try:
            self._record.write(self._state)
        except OSError as error:
            if VARIABLE in os.environ:
                return (
                    f"{VARIABLE} names {os.environ[VARIABLE]!r}, where nothing can be written ({error.strerror}), "
                    f"so that bundles are hashed at every start; name another folder, or set it to off"
                )
        return None


class MappedFiles:
    """Files that a graph may read from at any time as long as it is open: they have to stay as they are.

    Cut short, they would end the process at the next look, without a word. The files themselves are held, so that
    others may take their places.
    """

    def __init__(self, bundle: Bundle, paths: Iterable[Path]) -> None:
        """Hold the files, before the graph is opened; `check_opened` and `require_unchanged` look at them."""
        self._files: list[_Mapped] = []
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, descriptor)
            name = Path(os.path.relpath(path, bundle.path)).as_posix()
            record = bundle.manifest.files.get(name)
            found = os.fstat(descriptor)
            sha256 = None if record is None else record.sha256
            self._files.append(_Mapped(path, descriptor, sha256, found.st_size, found.st_mtime_ns))

    def check_opened(self) -> None:
        """Raise `BundleError` if a file is no longer the one that is held: the graph may have opened the other one."""
        for file in self._files:
            if not file.path.exists() or not os.path.samestat(os.stat(file.path), os.fstat(file.descriptor)):
                raise changed_file(file.path, "while the bundle was opened")
        self.require_unchanged()

    def require_unchanged(self) -> None:
        """Raise `BundleError` for a file that was written to; costs a microsecond per file.

        One that was only touched is hashed once more, where its hash is known.
        """
        for file in self._files:
            found = os.fstat(file.descriptor)
            if (found.st_size, found.st_mtime_ns) == (file.size, file.mtime_ns):
                continue
            if found.st_size != file.size or (file.sha256 is not None and _sha256_of(file.descriptor) != file.sha256):
                raise changed_file(file.path, "while it was open")
            file.mtime_ns = found.st_mtime_ns


@dataclass(slots=True)
class _Mapped:
    """A file that is held, as it was when it was right."""

    path: Path
    descriptor: int
    sha256: str | None
    size: int
    mtime_ns: int


def _described(path: Path) -> list[int]:
    """What tells one state of a file from another: nobody can set the time of its last change."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _sha256_of(descriptor: int) -> str:
    # A second descriptor has the same place in the file, and other threads may be here, too.
    with _HASHING, open(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def changed_file(path: Path, when: str) -> BundleError:
    """The error for a file that did not stay as it was; `when` as in `while it was open`."""
    return BundleError(
        f"{path} was changed {when}; expected a file that stays as it is, or another one in its place: open the "
        "bundle again, or export or copy it again"
    )
