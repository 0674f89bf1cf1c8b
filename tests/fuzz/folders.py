"""An input of a target is a folder in one piece: some small files, each after a line that names it.

    === swift_edge.json
    {"format_version": 1}
    === chat_template.jinja
    {{ messages }}

What stands before the first such line belongs to no file. So an input can be read, mutated file by file, and kept.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_MARK: Final = re.compile(rb"(?:^|\n)=== ([A-Za-z0-9_.-]{1,64})\n")
_MEMORY: Final = Path("/dev/shm")
"""Where files cost no disk, on systems that have such a place."""


def pack(files: Mapping[str, bytes]) -> bytes:
    """The files as one input."""
    return b"\n".join(b"=== " + name.encode() + b"\n" + content for name, content in files.items())


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of an input, by name; of two with one name the later one."""
    marks = list(_MARK.finditer(data))
    ends = [*(mark.start() for mark in marks[1:]), len(data)][: len(marks)]
    return {mark[1].decode(): data[mark.end() : end] for mark, end in zip(marks, ends, strict=True)}


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files into a folder; a name that is a folder's, as `..` is, is passed over."""
    for name, content in files.items():
        if name.strip("."):
            (folder / name).write_bytes(content)


def new_folder() -> Path:
    """A new folder, in memory where the system can and TMPDIR names no other place; it stays."""
    in_memory = "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK)
    return Path(tempfile.mkdtemp(prefix="swift-edge-fuzz-", dir=_MEMORY if in_memory else None))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the time of one input."""
    folder = new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
