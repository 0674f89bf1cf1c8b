"""Arrays in NumPy's files, alone (.npy) or in an archive (.npz): what a header claims is checked before it is believed.

NumPy's own reader makes room for whatever shape a header names, and unpacks whatever an archive holds.
"""

import ast
import contextlib
import io
import math
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.errors import size_text
from swift_edge.system.documents import opened, read_file

MOST_MEMBERS: Final = 1000
"""Files in an archive: a head has five, a checkpoint of two tensors about eight."""
_MAGIC: Final = b"\x93NUMPY"
_LENGTH_BYTES: Final = {(1, 0): 2, (2, 0): 4}
"""How long the length of the header is, by the format's version; the next is for names of fields: refused."""
_LONGEST_HEADER: Final = 10_000
_NUMBERS_OR_TEXT: Final = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|U\d{1,9})")
_MEMBER: Final = b"PK\x01\x02"
"""What each entry of an archive's directory begins with."""


def read_header(stream: BinaryIO, size: int) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Type and shape of an array in `size` bytes that begin here, and whether its first axis varies fastest.

    Raises `ValueError` for anything but numbers, truth values or text, and unless exactly its bytes follow.
    """
    start = stream.read(8)
    version = tuple(start[6:8])
    if start[:6] != _MAGIC or version not in _LENGTH_BYTES:
        raise ValueError(f"it begins with {start!r}; expected an array in NumPy's format 1.0 or 2.0")
    length_bytes = _LENGTH_BYTES[version]
    length = int.from_bytes(stream.read(length_bytes), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes; expected at most {_LONGEST_HEADER}")
    text = stream.read(length).decode("latin-1")
    try:
        header = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"its header is {text[:60]!r}; expected descr, fortran_order and shape")
    kind, shape = header["descr"], header["shape"]
    if not isinstance(kind, str) or not _NUMBERS_OR_TEXT.fullmatch(kind):
        raise ValueError(f"it holds {repr(kind)[:60]}; expected numbers")
    whole = isinstance(shape, tuple) and len(shape) <= 8 and all(type(each) is int and each >= 0 for each in shape)
    if not whole:
        raise ValueError(f"its shape is {repr(shape)[:60]}; expected whole numbers")
    dtype = np.dtype(kind)
    claimed, left = math.prod(shape) * dtype.itemsize, size - len(start) - length_bytes - length
    if claimed != left:
        raise ValueError(f"its shape is {repr(shape)[:60]} of {dtype}, but {left} bytes of numbers follow")
    return dtype, shape, header["fortran_order"] is True


def map_array(path: Path) -> NDArray[Any]:
    """Map the array of a file, read-only; raises `ValueError` where it is not sound, and `OSError`."""
    with opened(path, most=2**62) as (stream, size):
        dtype, shape, fortran = read_header(stream, size)
        if fortran and len(shape) > 1:
            raise ValueError("its first axis varies fastest; expected the last")
        return np.memmap(path, dtype, "r", stream.tell(), shape).view(np.ndarray)


@contextlib.contextmanager
def opened_archive(path: Path, most: int) -> Iterator[tuple[zipfile.ZipFile, bytes]]:
    """Open a zip archive that unpacks to at most `most` bytes, and give its own bytes as well.

    Raises `ValueError` for an archive with too many members, two of one name, or packed or encrypted in a way that
    cannot be bounded; `OSError`, and whatever `zipfile` makes of damage.
    """
    data = read_file(path, most)
    # The directory is read as a whole when the archive is opened, half a kilobyte of memory per entry.
    members = data.count(_MEMBER)
    if members > MOST_MEMBERS:
        raise ValueError(f"it has {members} members; expected at most {MOST_MEMBERS}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if len(names) < len(entries):
            raise ValueError("it has two members of one name; expected one of each")
        size = sum(entry.file_size for entry in entries)
        if size > most:
            raise ValueError(f"it unpacks to {size_text(size)}; expected at most {size_text(most)}")
        for entry in entries:
            # Other methods unpack a block at a time, and a block may hold gigabytes of zeros.
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"its {entry.filename[:60]!r} is encrypted, or packed in an unusual way")
        yield archive, data


def read_arrays(path: Path, names: Collection[str], most: int) -> dict[str, NDArray[Any]]:
    """Arrays of an archive by name, those of `names` that it has; raises as `opened_archive` and `read_header` do."""
    arrays = {}
    with opened_archive(path, most) as (archive, _):
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name not in names or name == entry.filename:
                continue
            data = archive.read(entry)
            stream = io.BytesIO(data)
            try:
                dtype, shape, fortran = read_header(stream, len(data))
            except ValueError as error:
                raise ValueError(f"its {name} does not read: {error}") from error
            numbers = np.frombuffer(data, dtype, offset=stream.tell())
            arrays[name] = numbers.reshape(shape, order="F" if fortran else "C")
    return arrays
