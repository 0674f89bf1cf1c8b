"""Mutations that know what a file is: JSON stays JSON with one odd value, arrays keep a header, lines stay lines.

Bytes that are flipped blindly rarely get past a parser. One file of the input is changed in its own way; every other
time the engine's blind mutations have their turn.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from folders import pack, unpack

Blind = Callable[[bytes], bytes]
"""The engine's own mutation."""

_RAW: Final = "@raw@"
"""Begins a text that stands for itself in the document, where JSON's writer has no way to say it."""
ODD_NUMBERS: Final = (
    0,
    -1,
    1,
    2,
    7,
    255,
    256,
    65535,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    10**400,
    -(10**400),
    0.5,
    -0.5,
    1e-320,
    1e-45,
    1e300,
    1e308,
    -1e308,
    3.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    -0.0,
    f"{_RAW}{'9' * 5000}",
    f"{_RAW}1e999",
    f"{_RAW}-1e999",
    f"{_RAW}1e-999",
    f"{_RAW}0.{'3' * 400}",
)
ODD_TEXTS: Final = (
    "",
    " ",
    "x",
    "0",
    "1",
    "-1",
    "null",
    "\ud800",
    "a\udfffb",
    "\x00",
    "\x1b[31m",
    "\x1b]0;t\x07",
    "\n",
    "\r\n",
    "\u2028",
    "\ufeff",
    "\u202e",
    "\U0010ffff",
    "é",
    "../x",
    "/etc/passwd",
    "C:\\x",
    ".",
    "..",
    "a/b",
    "con",
    "a" * 300,
    "a" * 70000,
    "é" * 300,
    "{{ 1 }}",
    "%s",
    "{}",
    "[1]",
    "nan",
    "1e400",
    "٣",
    "²",
    "①",
)
ODD_OTHERS: Final = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [0],
    [-1],
    ["x"],
    [1, 1],
    [float("nan")],
    [10**400],
    {"x": 1},
    {"": None},
    [{}],
    [True],
    list(range(300)),
    f"{_RAW}{'[' * 100_000}",
    f"{_RAW}{'[' * 900}{']' * 900}",
    f'{_RAW}{{"a":1,"a":2}}',
    f"{_RAW}",
    f"{_RAW}NaN",
    f"{_RAW}-",
)
OPENINGS: Final = (
    b"(",
    b"[",
    b"{",
    b"-",
    b"|",
    b"2^",
    b"1/",
    rb"\frac{",
    rb"\sqrt",
    b"{{ ",
    b"{% if 1 %}",
    b"not ",
    b"'",
)
"""What begins something that may hold another of its kind."""
_WORDS: Final = re.compile(rb"\s+")
_NUMBER: Final = re.compile(rb"\d+")


def mutate(data: bytes, number: random.Random, blind: Blind, words: Sequence[bytes] = ()) -> bytes:
    """A changed copy of an input; `words` are texts that mean something to its target."""
    files = unpack(data)
    if not files or number.random() < 0.05:
        return blind(data)
    for _ in range(number.choice((1, 1, 1, 2, 4))):
        # What has a structure has most to break.
        name = number.choices(list(files), [3 if ".json" in each else 1 for each in files])[0]
        if number.random() < 0.02:
            files.pop(name)
            if not files:
                return blind(data)
            continue
        files[name] = _change(name, files[name], number, blind, words)
    return pack(files)


def _change(name: str, content: bytes, number: random.Random, blind: Blind, words: Sequence[bytes]) -> bytes:
    if number.random() < 0.25:
        return blind(content) if content else b"x"
    if name.endswith(".json"):
        return _change_json(content, number) or blind(content)
    if name.endswith(".jsonl"):
        return _change_lines(content, number) or blind(content)
    if name.endswith(".npy"):
        return _change_array(content, number)
    return _change_text(content, number, words)


def _change_json(content: bytes, number: random.Random) -> bytes | None:
    """The document with something odd in a few places; None if it is no document."""
    changed: bytes | None = None
    for _ in range(number.choice((1, 1, 2, 3))):
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return changed  # what was put in is no JSON, and is odd enough
        changed = _change_place(document, number)
        if changed is None:
            return None
        content = changed
    return changed


def _change_place(document: Any, number: random.Random) -> bytes | None:
    """The document with something odd in one place; None where that cannot be written."""
    places = list(_places(document))
    holder, key = number.choice(places) if places else (None, None)
    if holder is None or number.random() < 0.02:
        return _written(_odd(number))
    value = holder[key]
    match number.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, value)
        case 1:
            holder[number.choice(ODD_TEXTS)] = value
        case 2:
            holder[key] = [value] * number.choice((0, 1, 2, 300))
        case 3 if isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[key] = _near(value, number)
        case 3 if isinstance(value, str):
            holder[key] = _near_text(value, number)
        case 4:
            other, name = number.choice(places)
            holder[key], other[name] = other[name], value
        case _:
            holder[key] = _odd(number)
    return _written(document)


def _near(value: float, number: random.Random) -> float:
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda v: v + 1,
        lambda v: v - 1,
        lambda v: -v,
        lambda v: v * 10,
        lambda v: v * 1000,
        lambda v: v / 2,
    )
    try:
        return number.choice(changes)(value)
    except (OverflowError, ValueError):
        return 0


def _near_text(value: str, number: random.Random) -> str:
    place = number.randrange(len(value) + 1)
    return value[:place] + number.choice(ODD_TEXTS) + value[place + number.randrange(2) :]


def _odd(number: random.Random) -> Any:
    return number.choice(number.choice((ODD_NUMBERS, ODD_NUMBERS, ODD_TEXTS, ODD_OTHERS)))


def _places(document: Any) -> Any:
    """Every list or object of a document with every index or name in it."""
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            waiting.append(holder[key])


def _written(document: Any) -> bytes | None:
    try:
        # ensure_ascii writes half characters as escapes, which every reader takes.
        text = json.dumps(document)
    except (ValueError, RecursionError):  # swapped into itself
        return None
    return re.sub(rf'"{_RAW}((?:[^"\\]|\\.)*)"', lambda match: json.loads(f'"{match[1]}"'), text).encode()


def _change_lines(content: bytes, number: random.Random) -> bytes | None:
    lines = content.split(b"\n")
    place = number.randrange(len(lines))
    match number.randrange(6):
        case 0:
            lines.insert(place, lines[number.randrange(len(lines))])
        case 1:
            del lines[place]
        case 2:
            lines[place] = lines[place].removesuffix(b"}") + b"\r"
        case _:
            changed = _change_json(lines[place], number)
            if changed is None:
                return None
            lines[place] = changed
    return b"\n".join(lines)


def _change_array(content: bytes, number: random.Random) -> bytes:
    """A file of numpy's format with another header, or other numbers."""
    end = content.find(b"\n") + 1
    header, numbers = content[:end], bytearray(content[end:])
    match number.randrange(6):
        case 0:
            return content[: number.randrange(len(content) + 1)]
        case 1 if numbers:
            size = number.choice((2, 4))
            odd = number.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80"))
            place = number.randrange(0, len(numbers), size)
            numbers[place : place + size] = odd[-size:]
            return header + bytes(numbers)
        case 2:
            forms = (
                b"'descr': '|O'",
                b"'descr': '<f8'",
                b"'descr': '<U4'",
                b"'descr': [('a', '<f4')]",
                b"'descr': '<f2'",
            )
            header = re.sub(rb"'descr': '[^']*'", number.choice(forms), header)
        case 3:
            shapes = (
                b"()",
                b"(0,)",
                b"(-1,)",
                b"(99999999999,)",
                b"(2, 0)",
                b"(1, 1, 1)",
                b"(True,)",
                b"('x',)",
                b"((1,),)",
            )
            header = re.sub(rb"'shape': \([^)]*\)", b"'shape': " + number.choice(shapes), header)
        case 4:
            header = _with_number(header, number)
        case _:
            header = header.replace(b"False", number.choice((b"True", b"0", b"None", b"'x'")))
    return header + bytes(numbers)


def _with_number(content: bytes, number: random.Random) -> bytes:
    found = list(_NUMBER.finditer(content))
    if not found:
        return content
    place = number.choice(found)
    odd = number.choice((b"0", b"1", b"2", b"-1", b"1000", b"10000000000", b"9" * 40, b"9" * 5000, b"1e9", b"0x10"))
    return content[: place.start()] + odd + content[place.end() :]


def _change_text(content: bytes, number: random.Random, words: Sequence[bytes]) -> bytes:
    """A text with another number, a word more, a part or a bracket many times, or an odd character."""
    place = number.randrange(len(content) + 1)
    match number.randrange(6):
        case 0:
            return _with_number(content, number)
        case 5:
            return content[:place] + number.choice(OPENINGS) * number.choice((2, 40, 300)) + content[place:]
        case 1 if words:
            return content[:place] + number.choice(words) + content[place:]
        case 2:
            parts = _WORDS.split(content)
            part = number.choice(parts)
            return content.replace(part, number.choice(parts), 1) if part else content + b" "
        case 3:
            end = min(len(content), place + number.randrange(1, 40))
            return content[:end] + content[place:end] * number.choice((1, 3, 30, 1000)) + content[end:]
        case _:
            return content[:place] + number.choice(ODD_TEXTS).encode("utf-8", "surrogatepass") + content[place:]
