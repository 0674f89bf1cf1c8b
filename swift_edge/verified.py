"""Bundles whose files were hashed before: a record of how the system described them then, in the user's cache folder.

A file that still has the size, the times of its last write and last change, the inode and the device that it had when
its hash was right is taken to be the same file; any difference, and it is hashed again. Damage of which the system
knows nothing, such as a failing disk's, shows when the hashes are computed all the same: `swift-edge inspect` does.

Knows names, hashes and `stat`. Does not read the files, and never says that one is wrong.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from swift_edge.errors import MIB
from swift_edge.files import write_whole
from swift_edge.manifest import Bundle

VARIABLE: Final = "SWIFT_EDGE_CACHE"
RECORD_VERSION: Final = 1
LEAST_BYTES: Final = 32 * MIB
"""Smaller bundles are hashed every time: it takes 20 ms, and leaves nothing behind in the user's home."""
MOST_RECORDS: Final = 100
"""Records kept, the latest; each is a kilobyte, and belongs to one folder."""
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
        self._state = {
            "version": RECORD_VERSION,
            "folder": str(bundle.path.resolve()),
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
        record = self._record()
        if record is None:
            return False
        try:
            return bool(json.loads(record.read_bytes()) == self._state)
        except (OSError, ValueError, RecursionError):
            return False

    def remember(self) -> str | None:
        """Record that the hashes were right; returns what to tell the user who named a folder that cannot be used.

        Files written a moment ago are not recorded, nor is anything where it cannot be: the next start hashes again.
        """
        record = self._record()
        if record is None or not self._settled:
            return None
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(self._state).encode())
            _drop_oldest(record.parent)
        except OSError as error:
            if VARIABLE in os.environ:
                return (
                    f"{VARIABLE} names {os.environ[VARIABLE]!r}, where nothing can be written ({error.strerror}), "
                    f"so that bundles are hashed at every start; name another folder, or set it to off"
                )
        return None

    def _record(self) -> Path | None:
        """Where the record of this folder is; None where there is none to keep."""
        folder = cache_folder() if self._large else None
        if folder is None:
            return None
        name = hashlib.sha256(str(self._state["folder"]).encode(errors="surrogateescape")).hexdigest()
        return folder / "verified" / f"{name[:32]}.json"


def cache_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path | None:
    """The folder for what may be thrown away at any time, existing or not; None where the user wants none.

    `SWIFT_EDGE_CACHE` names it; `off`, or nothing, is none. Otherwise it lies where the platform's custom has it.
    """
    named = environment.get(VARIABLE)
    if named is not None:
        return Path(named) if named not in ("", "off") else None
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        return None
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local") / "swift-edge" / "Cache"
    if platform == "darwin":
        return home / "Library" / "Caches" / "swift-edge"
    given = Path(environment.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else home / ".cache") / "swift-edge"


def _drop_oldest(folder: Path) -> None:
    """Let the latest records stay."""
    with contextlib.suppress(FileNotFoundError):  # another process drops them, too
        records = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for record in records[:-MOST_RECORDS]:
            record.unlink()
