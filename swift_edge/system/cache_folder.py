"""The user's cache folder: small records that may be thrown away at any time, and are made again when missed."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from swift_edge.system.documents import DocumentError, read_json
from swift_edge.system.files import write_whole

VARIABLE: Final = "SWIFT_EDGE_CACHE"
MOST_RECORDS: Final = 100
"""Records of a kind that are kept, the latest; each is a kilobyte."""


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
    xdg = Path(environment.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else home / ".cache") / "swift-edge"


class CacheRecord:
    """A JSON document of a kind about one thing; None and nothing happens where the user wants no cache.

    >>> record = CacheRecord("verified", str(folder))
    >>> record.write({"version": 1})
    """

    def __init__(self, kind: str, subject: str) -> None:
        """Name the record of a kind about `subject`, which may be of any length."""
        folder = cache_folder()
        name = hashlib.sha256(subject.encode(errors="surrogateescape")).hexdigest()[:32]
        self._path = None if folder is None else folder / kind / f"{name}.json"

    @property
    def is_kept(self) -> bool:
        """Whether the user wants records at all."""
        return self._path is not None

    def read(self) -> Any:
        """What was written; None where there is nothing, or nothing that can be read."""
        if self._path is None:
            return None
        try:
            return read_json(self._path)
        except (OSError, DocumentError):
            return None

    def write(self, document: Mapping[str, Any]) -> None:
        """Write it, and let go of the oldest of its kind; raises `OSError`."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(document).encode())
        with contextlib.suppress(OSError):  # another process drops them, too; and this one is written
            records = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            for record in records[:-MOST_RECORDS]:
                record.unlink()
