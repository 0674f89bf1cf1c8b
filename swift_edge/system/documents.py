"""Files that others wrote: text, JSON documents and JSON lines, bounded before they are read.

What is read is a regular file, whose size is known before a byte of it is; a device or a pipe has no end, or never
begins. JSON lines, which are read once and in order, may come from a pipe that is open already: they are counted as
they come. JSON is UTF-8, a byte order mark in front is passed over. What swift-edge wrote is read strictly, as JSON is
defined; what others wrote as Python reads it, who mostly wrote it with Python: their fields are checked one by one.
"""

import contextlib
import itertools
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from swift_edge.errors import GIB, MIB, size_text
from swift_edge.system.files import STREAM_PLACES

DOCUMENT_BYTES: Final = 16 * MIB
"""Most of a JSON document: a manifest has some kilobytes, what a tokenizer's config says of many tokens a few MB."""
LINES_BYTES: Final = 4 * GIB
"""Most of a file of JSON lines."""
LINE_BYTES: Final = 64 * MIB
"""Most of one of its lines: 64 responses of 32,000 tokens with their ids have 20 MB."""
MOST_LEVELS: Final = 64
"""Most levels of lists and objects in one another."""

HALF_CHARACTER: Final = re.compile("[\ud800-\udfff]")
"""Half of a character beyond the first 65,536: no text has one, but JSON, file names and Python can spell it."""
_ESCAPED_HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""As half characters are written in JSON; two in a row are a whole one."""
_KINDS: Final = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class DocumentError(ValueError):
    """A file, or a line of it, that does not read: the text names the place and what was found."""


@contextlib.contextmanager
def opened(path: Path, most: int = DOCUMENT_BYTES) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file of at most `most` bytes, and tell its size.

    Raises `DocumentError` for any other, and `OSError` for what the system refuses.
    """
    with _opened(path) as stream:
        status = os.fstat(stream.fileno())
        _require_file(path, status, most)
        yield stream, status.st_size


@contextlib.contextmanager
def opened_lines(path: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file of JSON lines, and tell its size: None for what a shell pipes in, as in `--data <(zcat x.gz)`.

    A named pipe is refused: it may have no writer, ever. Raises as `opened` does.
    """
    with _opened(path) as stream:
        status = os.fstat(stream.fileno())
        if stat.S_ISFIFO(status.st_mode) and str(path).startswith(STREAM_PLACES):
            os.set_blocking(stream.fileno(), True)
            yield stream, None
        else:
            _require_file(path, status, LINES_BYTES)
            yield stream, status.st_size


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open whatever is there, and wait for nobody."""
    if "\0" in str(path):
        raise DocumentError(f"{str(path)!r} names no file: it holds a zero byte")
    # A pipe would be waited for until somebody writes to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if path.is_dir():  # opening one fails in other words on each system
        raise DocumentError(f"{path} is a folder; expected a file")
    with open(os.open(path, flags), "rb") as stream:
        yield stream


def _require_file(path: Path, status: os.stat_result, most: int) -> None:
    kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), None)
    if kind is not None:
        raise DocumentError(f"{path} is a {kind}; expected a file, whose size is known")
    if status.st_size > most:
        raise DocumentError(f"{path} has {size_text(status.st_size)}; expected at most {size_text(most)}")


def read_file(path: Path, most: int = DOCUMENT_BYTES) -> bytes:
    """Content of a file that `opened` takes, whole."""
    with opened(path, most) as (stream, size):
        data = stream.read(size + 1)
    if len(data) > size:
        raise DocumentError(f"{path} grew while it was read; expected a file that is complete")
    return data


def read_text(path: Path, most: int = DOCUMENT_BYTES) -> str:
    """Content of a text file; raises `DocumentError` if it is not UTF-8, and as `read_file` does."""
    return _text(read_file(path, most), str(path))


def read_json(path: Path, *, strict: bool = True) -> Any:
    """Content of a JSON file; raises as `read_text` and `parse_json` do."""
    return parse_json(read_text(path), str(path), strict=strict)


def json_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    """Lines of a file as bytes, each with its place for messages.

    Raises `DocumentError` for a line without an end, and for lines without one.
    """
    read = 0
    for number in itertools.count(1):
        line = stream.readline(LINE_BYTES + 1)
        place = f"{path} line {number}"
        read += len(line)
        if read > LINES_BYTES:
            raise DocumentError(f"{path} goes on after {size_text(LINES_BYTES)}; expected at most that")
        if len(line) > LINE_BYTES:
            raise DocumentError(f"{place} is longer than {size_text(LINE_BYTES)}; expected one JSON object per line")
        if not line:
            return
        yield place, line


def parse_json(text: str | bytes, place: str, *, strict: bool = True) -> Any:
    """The value that JSON text stands for; raises `DocumentError`, whose text begins with `place`.

    Refused are half characters, as the escape of one surrogate alone gives, and more than `MOST_LEVELS` levels; if it
    is `strict`, names that an object has twice, NaN and numbers beyond those of a float, too. Otherwise these are read
    as Python reads them.
    """
    odd = isinstance(text, str) and HALF_CHARACTER.search(text) is not None
    if isinstance(text, bytes):
        text = _text(text, place)
    try:
        document = (_STRICT if strict else _LENIENT).decode(text)
    except RecursionError:
        raise _too_deep(place) from None
    except (json.JSONDecodeError, _StrictError) as error:
        raise DocumentError(f"{place} is not JSON ({error}); expected valid JSON") from error
    except ValueError:  # from Python's own limit, which it tells in words for programmers
        digits = sys.get_int_max_str_digits()
        raise DocumentError(f"{place} holds a number of more than {digits} digits; expected fewer") from None
    if odd or _ESCAPED_HALF.search(text) or text.count("[") + text.count("{") > MOST_LEVELS:
        _check_levels(document, place)
    return document


class _StrictError(ValueError):
    """What Python reads as JSON, and is none."""


def _text(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise DocumentError(f"{place} is not UTF-8 ({found}); expected UTF-8") from error


def _check_levels(document: Any, place: str) -> None:
    """Look at names and texts level by level: going down as deep as the document would end in a `RecursionError`."""
    level: list[tuple[str, Any]] = [("the text", [document])]
    for _ in range(MOST_LEVELS + 1):
        below: list[tuple[str, Any]] = []
        for field, holder in level:
            if isinstance(holder, dict):
                named = list(holder.items())
                _check_characters("".join(holder), "a name", place)
            else:
                named = [(field, value) for value in holder if isinstance(value, (str, dict, list))]
            for name, value in named:
                if isinstance(value, str):
                    _check_characters(value, name, place)
                elif isinstance(value, (dict, list)):
                    below.append((name, value))
        level = below
        if not level:
            return
    raise _too_deep(place)


def _check_characters(text: str, field: str, place: str) -> None:
    half = HALF_CHARACTER.search(text)
    if half is not None:
        raise DocumentError(
            f"{place}: {field[:80]} has half a character (U+{ord(half[0]):04X}); expected valid Unicode"
        )


def _too_deep(place: str) -> DocumentError:
    return DocumentError(f"{place} is not JSON that can be read: it is nested too deep; expected {MOST_LEVELS} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _StrictError(f"an object has the name {json.dumps(twice[:80])} twice")
    return document


def _constant(name: str) -> float:
    raise _StrictError(f"{name} is no number of JSON, which has null instead")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _StrictError(f"{digits[:80]} is beyond the numbers of a float")
    return value


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
_LENIENT: Final = json.JSONDecoder()
