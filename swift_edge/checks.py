"""Checks of what callers give: values out of their range, whole numbers, and texts that name hidden states."""

import math
import reprlib
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from swift_edge.errors import InvalidOptionError

_MOST_BITS = 200
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 10


def is_whole(value: object, least: float) -> bool:
    """Whether `value` is an integer of at least `least`, and not a truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number, and not a truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def expect(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise `InvalidOptionError`, with what an option is and what was expected, unless the condition holds."""
    if not condition:
        require(False, name, shown(value), expected)


def shown(value: object) -> str:
    """A value as messages show it: as Python writes it, cut short; never an error, and no work for a long one.

    >>> shown("abc"), shown(10**6000), shown(range(10**9))
    ("'abc'", 'an integer of 19932 bits', 'range(0, 1000000000)')
    """
    if isinstance(value, (int, np.integer)) and int(value).bit_length() > _MOST_BITS:
        return f"an integer of {int(value).bit_length()} bits"
    if isinstance(value, str):
        value = str(value[:80])
    try:
        text = _REPR.repr(value)
    except Exception:  # it may be an object from anywhere
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Do the same where what was found is told in words."""
    if not condition:
        raise InvalidOptionError(f"{name} is {value}; expected {expected}")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise `InvalidOptionError` unless an option is an integer of at least `least`."""
    # A float would pass a comparison and fail later, where nobody knows its name.
    expect(is_whole(value, least), name, value, f"an integer of at least {least}")


def parse_layers(text: str, available: Sequence[int]) -> tuple[int, ...]:
    """Hidden states out of those `available`, ascending, from `all`, `last:K` or `i,j,...`.

    A negative number counts from the last: `parse_layers("0,-1", (0, 4, 8))` is `(0, 8)`. Raises `InvalidOptionError`
    for another form, and for a hidden state that is not there.
    """
    if text == "all":
        return tuple(available)
    try:
        if text.startswith("last:"):
            count = int(text.removeprefix("last:"))
            if not 1 <= count <= len(available):
                raise ValueError
            return tuple(available[-count:])
        numbers = [int(part) for part in text.split(",")]
        layers = {available[number] if number < 0 else available[available.index(number)] for number in numbers}
        return tuple(sorted(layers))
    except (ValueError, IndexError):
        listed = ",".join(map(str, available))
        if len(available) > 2 and available[-1] - available[0] == len(available) - 1:
            listed = f"{available[0]} to {available[-1]}"
        raise InvalidOptionError(
            f"layers is {text!r}; expected all, last:K with K from 1 to {len(available)}, "
            f"or some of {listed}, separated by commas"
        ) from None
