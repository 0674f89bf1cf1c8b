"""The files that a graph reads its weights from, besides its own: found in its protobuf, without the package onnx.

Only what is on the way to a tensor is looked at; everything else is stepped over, unread.
"""

import os
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from swift_edge.bundle.manifest import MANIFEST_NAME, Bundle, file_inside
from swift_edge.errors import BundleError, ManifestError, MissingFileError
from swift_edge.records import shown

_KEY: Final = b"location"
"""The key under which a tensor names its file. A graph without these bytes has no such tensor."""
_CHUNK: Final = 2**20

_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Messages of ONNX that lead to a tensor's external data, by the numbers of their fields."""
_KEY_FIELD, _VALUE_FIELD = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_external_data(bundle: Bundle) -> None:
    """Check where the graph reads its weights from.

    These files have to be in the manifest, whose hashes are checked; those of a folder without one, inside that folder.
    Raises `ManifestError`, `UnsafePathError`, `MissingFileError`, or `BundleError` for a file that is no graph.
    """
    base = bundle.model_path.parent.relative_to(bundle.path).as_posix()
    names = sorted({posixpath.normpath(posixpath.join(base, name)) for name in external_files(bundle.model_path)})
    for name in names:
        if bundle.origin == "swift-edge":
            if name not in bundle.manifest.fixed_files:
                raise ManifestError(
                    f"{bundle.path / MANIFEST_NAME} does not list {shown(name)}, which {bundle.model_path.name} reads "
                    "weights from; expected its SHA-256 there: export or copy the bundle again"
                )
        elif not file_inside(bundle.path, name).is_file():
            raise MissingFileError(bundle.path, name)


def external_files(path: Path) -> set[str]:
    """Names of the files that the tensors of a graph are in, as the graph has them; raises `BundleError`."""
    if not _mentions(path, _KEY):
        return set()
    data = path.read_bytes()
    try:
        return {os.fsdecode(name) for name in _locations(data)}
    except (IndexError, ValueError) as error:
        raise BundleError(f"{path} does not read as a graph ({error}); export or copy the bundle again") from error


def _mentions(path: Path, text: bytes) -> bool:
    with path.open("rb") as stream:
        before = b""
        while chunk := stream.read(_CHUNK):
            if text in before + chunk:
                return True
            before = chunk[-len(text) :]
    return False


def _locations(data: bytes) -> Iterator[bytes]:
    """Every value under the key, in whatever order a file has its fields."""
    messages = [("model", 0, len(data))]
    while messages:
        kind, at, end = messages.pop()
        key = value = b""
        inner = _MESSAGES.get(kind, {})
        while at < end:
            tag, at = _varint(data, at, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                _, at = _varint(data, at, end)
            elif wire == _BYTES:
                length, at = _varint(data, at, end)
                if length > end - at:
                    raise ValueError(f"a field of {length} bytes where {end - at} are left")
                if number in inner and data.find(_KEY, at, at + length) >= 0:  # the rest is stepped over as a whole
                    messages.append((inner[number], at, at + length))
                elif kind == "entry" and number == _KEY_FIELD:
                    key = data[at : at + length]
                elif kind == "entry" and number == _VALUE_FIELD:
                    value = data[at : at + length]
                at += length
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"a field of the unknown type {wire}")
        if at != end:
            raise ValueError("a field that is longer than its message")
        if key == _KEY:
            yield value


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ValueError("a number that does not end")
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
