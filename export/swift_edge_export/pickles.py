"""A look into the pickles of torch's files before torch reads them; nothing in them is run."""

from __future__ import annotations

import io
import pickletools
import zipfile
from typing import IO

from swift_edge.errors import MIB

MOST_CHARACTERS = 4000
"""Most of a text in a pickle: what torch says of one that it refuses, it searches in quadratic time."""
_PICKLE_BYTES = 64 * MIB
_OLD_PICKLES = 5
"""Pickles at the beginning of a file of a torch before 1.6: what it is, versions, the machine, tensors, their names."""


def refuse_long_texts(file: IO[bytes]) -> None:
    """Raise ValueError where a pickle in a file of torch holds a longer text than any weight's name, or is damaged."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(_OLD_PICKLES):
            _walk(file)
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith("data.pkl"):
                continue
            if entry.file_size > _PICKLE_BYTES:
                raise ValueError(f"its {entry.filename[:60]!r} has {entry.file_size} bytes; expected names and shapes")
            _walk(io.BytesIO(archive.read(entry)))


def _walk(file: IO[bytes]) -> None:
    for _, argument, _ in pickletools.genops(file):
        if isinstance(argument, str | bytes | bytearray) and len(argument) > MOST_CHARACTERS:
            raise ValueError(f"its pickle holds a text of {len(argument)} characters; expected names of weights")
