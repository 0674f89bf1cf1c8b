"""Bundles whose files were hashed before: a record of how the system described them then, in the user's cache folder.

A file that still has the size, the times of its last write and last change, the inode and the device that it had when
its hash was right is taken to be the same file; any difference, and it is hashed again. Damage of which the system
knows nothing, such as a failing disk's, shows when the hashes are computed all the same: `swift-edge inspect` does.
"""

import os
import time
from typing import Final

from swift_edge.bundle.manifest import Bundle
from swift_edge.errors import MIB
from swift_edge.system.cache_folder import VARIABLE, CacheRecord

RECORD_VERSION: Final = 1
LEAST_BYTES: Final = 32 * MIB
"""Smaller bundles are hashed every time: it takes 20 ms, and leaves nothing behind in the user's home."""
SETTLED_NS: Final = 2 * 10**9
"""Age below which another write could leave a file's times as they are: two seconds is the coarsest clock, FAT's."""


class VerifiedFiles:
    """The files of a bundle that its manifest gives hashes for, as they are now.

    >>> files = VerifiedFiles(bundle)  # before they are hashed: whatever changes meanwhile shows the next time
    >>> if not files.known():
    ...     check_hashes(bundle, bundle.manifest.fixed_files)
    ...     files.remember()
    """

    def __init__(self, bundle: Bundle) -> None:
        """Ask the system about every file."""
        seen = {name: os.stat(bundle.path / name) for name in bundle.manifest.fixed_files}
        self._large = sum(stat.st_size for stat in seen.values()) >= LEAST_BYTES
        newest = max((max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in seen.values()), default=0)
        self._settled = time.time_ns() - newest > SETTLED_NS
        folder = str(bundle.path.resolve())
        self._record = CacheRecord("verified", folder)
        self._state = {
            "version": RECORD_VERSION,
            "folder": folder,
            "files": {
                name: [
                    bundle.manifest.files[name].sha256,
                    stat.st_size,
                    stat.st_mtime_ns,
                    stat.st_ctime_ns,
                    stat.st_ino,
                    stat.st_dev,
                ]
                for name, stat in seen.items()
            },
        }

    def known(self) -> bool:
        """Whether the very same files have been hashed before, and their hashes were right."""
        return self._large and bool(self._record.read() == self._state)

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
