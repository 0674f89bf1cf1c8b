"""What a GGUF file holds: metadata by key, and where each tensor lies.

Read here and not by the reader of the package `gguf`, which believes every count and length that a file states: this
one compares them with the size of the file before it reads, and takes time and memory in proportion to what is there.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from swift_edge.errors import MIB, ExportError, UnsupportedModelError, one_line
from swift_edge.records import shown
from swift_edge.system.extras import import_extra

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)
HEADER_BYTES = 256 * MIB
"""Most of what stands before the tensors: with a vocabulary of 262,144 tokens it has 10 MB."""
MOST_KEYS = 10_000
"""More keys than any file has: those of well-known models have about 40."""
MOST_TENSORS = 100_000
MOST_TEXTS = 4_000_000
"""Most texts of a list: the longest known, of merges, have half a million."""
LONGEST_KEY = 2**16
_MOST_AXES = 4
_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 2**16
_TEXT, _LIST = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# The least that an entry takes: lengths, types and offsets of one with an empty name.
_LEAST_KEY_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is, and how it is stored."""

    path: Path
    """the file"""
    shape: tuple[int, ...]
    """as in torch: outputs first"""
    kind: str
    """type of its numbers or blocks, such as `F32` or `Q4_0`"""
    offset: int
    """of its first byte, from the start of the file"""
    nbytes: int
    """its size"""


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """Everything but the weights themselves."""

    path: Path
    """the file, or the first of several"""
    metadata: Mapping[str, Any]
    """by key: bool, int, float, str, a list of str, or an array of numbers"""
    tensors: Mapping[str, Tensor]
    """by their names in the file"""


def read_contents(path: Path) -> Contents:
    """Read one file up to its tensors.

    Raises:
        ExportError: it is no GGUF file, is cut, or states what cannot be.
        UnsupportedModelError: it is of another version, or holds tensors of an unknown type.
        MissingExtraError: the package `gguf` is not installed.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Reader(path, file, size).contents()
    except OSError as error:
        raise damaged(path, f"does not read ({one_line(error)})") from error


def gguf_package() -> Any:
    """The package `gguf`, which knows the types, their numbers and the names of tensors; MissingExtraError without."""
    return import_extra("gguf", "export of a GGUF file", "export")


def damaged(path: Path, what: str) -> ExportError:
    """The error of a file in which something cannot be; `what` goes on from its name."""
    return ExportError(f"{path} {what}; download or convert it again")


class _Reader:
    """Reads a file from its start; nothing is believed that would lead beyond its end."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self._path = path
        self._file = file
        self._end = min(size, HEADER_BYTES)
        self._size = size
        self._place = 0

    def contents(self) -> Contents:
        tensor_count, key_count = self._counts()
        metadata = self._metadata(key_count)
        listed = self._listed(tensor_count)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        power = isinstance(alignment, int) and 1 <= alignment <= _LARGEST_ALIGNMENT and not alignment & (alignment - 1)
        if not power:
            raise damaged(self._path, f"has {shown(alignment)} as general.alignment, expected a power of two")
        start = -(-self._place // alignment) * alignment
        return Contents(self._path, metadata, self._tensors(listed, start, alignment))

    def _counts(self) -> tuple[int, int]:
        if self._size < len(MAGIC) or self._bytes(4, "its magic") != MAGIC:
            raise ExportError(f"{self._path} does not begin with GGUF; expected a file of the format of llama.cpp")
        (version,) = struct.unpack("<I", self._bytes(4, "its version"))
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            found = "written for big-endian machines" if swapped else f"GGUF of version {version}"
            raise UnsupportedModelError(
                f"{self._path} is {found}; expected version {' or '.join(map(str, VERSIONS))}, little-endian: "
                "convert the model again with a current llama.cpp"
            )
        tensors, keys = struct.unpack("<QQ", self._bytes(16, "its counts"))
        for count, what, least, most in (
            (keys, "keys of metadata", _LEAST_KEY_BYTES, MOST_KEYS),
            (tensors, "tensors", _LEAST_TENSOR_BYTES, MOST_TENSORS),
        ):
            if count > min(most, (self._end - self._place) // least):
                raise damaged(self._path, f"states {count} {what}, more than a file of {self._size} bytes holds")
        return tensors, keys

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._text("a key of its metadata", LONGEST_KEY)
            if key in metadata:
                raise damaged(self._path, f"has the key {shown(key)} twice")
            metadata[key] = self._value(key)
        return metadata

    def _value(self, key: str) -> Any:
        (kind,) = struct.unpack("<I", self._bytes(4, f"the type of {shown(key)}"))
        if kind == _TEXT:
            return self._text(shown(key))
        if kind != _LIST:
            value = self._numbers(kind, 1, key)[0]
            # The shortest text of a single float is what was written once: 0.6, not 0.6000000238.
            return float(str(value)) if value.dtype == np.float32 else value.item()
        kind, count = struct.unpack("<IQ", self._bytes(12, f"the length of {shown(key)}"))
        if kind != _TEXT:
            return self._numbers(kind, count, key)
        if count > min(MOST_TEXTS, (self._end - self._place) // 8):
            raise damaged(self._path, f"states {count} texts in {shown(key)}, more than it holds or any model has")
        return [self._text(shown(key)) for _ in range(count)]

    def _numbers(self, kind: int, count: int, key: str) -> np.ndarray[Any, Any]:
        if kind not in _SCALARS:
            raise damaged(self._path, f"has {shown(key)} of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        content = self._bytes(count * dtype.itemsize, shown(key))
        return np.frombuffer(content, dtype)

    def _text(self, what: str, most: int = HEADER_BYTES) -> str:
        (length,) = struct.unpack("<Q", self._bytes(8, what))
        if length > most:
            raise damaged(self._path, f"states {length} bytes for {what}")
        try:
            return self._bytes(length, what).decode()
        except UnicodeDecodeError:
            raise damaged(self._path, f"has bytes that are no UTF-8 in {what}") from None

    def _listed(self, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        """Names, shapes as in torch, types and offsets, as the file states them."""
        listed = []
        for _ in range(count):
            name = self._text("the name of a tensor", LONGEST_KEY)
            (axes,) = struct.unpack("<I", self._bytes(4, f"the axes of {shown(name)}"))
            if not 1 <= axes <= _MOST_AXES:
                raise damaged(self._path, f"has {shown(name)} of {axes} axes, expected 1 to {_MOST_AXES}")
            shape = struct.unpack(f"<{axes}Q", self._bytes(8 * axes, f"the shape of {shown(name)}"))
            kind, offset = struct.unpack("<IQ", self._bytes(12, f"the offset of {shown(name)}"))
            listed.append((name, shape[::-1], kind, offset))
        return listed

    def _tensors(
        self, listed: Sequence[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> dict[str, Tensor]:
        kinds = _kinds()
        tensors: dict[str, Tensor] = {}
        total = 0
        for name, shape, number, offset in listed:
            if name in tensors:
                raise damaged(self._path, f"has the tensor {shown(name)} twice")
            if number not in kinds:
                raise UnsupportedModelError(
                    f"{self._path} holds {shown(name)} in the type {number}, which the package gguf does not know; "
                    "expected one of its types: upgrade it, or take a file in another quantisation"
                )
            kind, block, block_bytes = kinds[number]
            numbers = math.prod(shape)
            if numbers == 0 or shape[-1] % block:
                raise damaged(self._path, f"has {shown(name)} of shape {list(shape)}, not whole blocks of {block}")
            nbytes = numbers // block * block_bytes
            total += nbytes
            if offset % alignment:
                raise damaged(self._path, f"has {shown(name)} at {offset}, not a multiple of {alignment}")
            # Tensors that lie over each other would have more bytes together than the file has.
            if start + offset + nbytes > self._size or start + total > self._size:
                raise damaged(
                    self._path, f"is cut or damaged: {shown(name)} ends behind its {self._size} bytes, or others do"
                )
            tensors[name] = Tensor(self._path, shape, kind, start + offset, nbytes)
        return tensors

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._end - self._place:
            limit = "" if self._size <= HEADER_BYTES else f", within the first {HEADER_BYTES // MIB} MiB"
            raise damaged(self._path, f"is cut or damaged: it ends within {what}{limit}")
        content = self._file.read(count)
        if len(content) != count:
            raise damaged(self._path, f"became shorter while it was read, within {what}")
        self._place += count
        return content


def _kinds() -> dict[int, tuple[str, int, int]]:
    """Name, numbers per block and bytes per block of every type, by its number."""
    gguf = gguf_package()
    return {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
