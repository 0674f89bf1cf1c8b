"""What an answer was read as: a number, a list, a tuple, a set of reals, words; and when two readings agree.

Equality is that of the canonical texts. Agreement is wider, for grading: a decimal agrees with the number it rounds,
and readings that a form leaves open (the right side of an equation, a column for a point) agree where one of them does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from swift_edge.answers import residue
from swift_edge.answers.residue import NoValueError, Residue

TOLERANCE: Final = 5e-6
"""Largest relative error of a written decimal: six significant digits."""
LARGEST: Final = 1e300
"""Size of numbers that are compared."""
ROUNDING: Final = 1e-15
"""Relative error of floating-point numbers."""
MOST_COMPARISONS: Final = 5_000
"""Pairs of readings that are looked at before two answers count as different."""

Kind: TypeAlias = Literal["text", "value", "list", "tuple", "matrix"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read an answer."""

    kind: Kind
    text: str
    """Equal answers share it."""
    value: Residue | None = None
    """Of a number or an expression."""
    decimals: int | None = None
    """Digits after the point, where a number was written as a decimal."""
    parts: tuple["Reading", ...] = ()
    """Of a list, in no order; of a tuple or a matrix, in theirs."""
    shape: str = ""
    """What a tuple or a matrix must share beside its parts: brackets, columns."""
    others: tuple["Reading", ...] = field(default=(), compare=False)
    """What else it may be taken for when it is graded."""

    def also(self, *others: "Reading") -> "Reading":
        """Add further readings."""
        more = tuple(each for other in others for each in (replace(other, others=()), *other.others))
        return replace(self, others=(*self.others, *more))


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the real line."""

    low: Reading
    high: Reading
    closed: tuple[bool, bool]
    """Whether the ends belong to it."""


LEAST: Final = Reading("value", (-residue.INFINITY).text(), -residue.INFINITY)
GREATEST: Final = Reading("value", residue.INFINITY.text(), residue.INFINITY)
ALL_REALS: Final = Span(LEAST, GREATEST, (False, False))
NOTHING: Final = Reading("text", r"\emptyset")


def of_text(text: str) -> Reading:
    """Read words."""
    return Reading("text", text)


def of_value(value: Residue, decimals: int | None = None) -> Reading:
    """Read a number or an expression."""
    return Reading("value", value.text(), value, decimals)


def of_list(parts: Sequence[Reading]) -> Reading:
    """Read answers in no order; one alone is itself."""
    flat: dict[str, Reading] = {}
    for part in parts:
        flat.update({each.text: each for each in (part.parts if part.kind == "list" else (part,))})
    if len(flat) == 1:
        return next(iter(flat.values()))
    kept = tuple(flat[text] for text in sorted(flat))
    return Reading("list", "{" + " | ".join(part.text for part in kept) + "}", parts=kept)


def of_tuple(parts: Sequence[Reading], opening: str = "(", closing: str = ")") -> Reading:
    """Read answers in their order; two of them may be the ends of an interval."""
    items = ", ".join(part.text for part in parts)
    return Reading("tuple", f"{opening}{items}{closing}", parts=tuple(parts), shape=opening + closing)


def of_spans(spans: Sequence[Span]) -> Reading:
    """Read a part of the real line, its pieces put together."""
    merged = _merged(spans)
    if not merged:
        return NOTHING
    if all(span.low.text == span.high.text for span in merged):
        return of_list([span.low for span in merged])
    pieces = [of_tuple((span.low, span.high), "(["[span.closed[0]], ")]"[span.closed[1]]) for span in merged]
    if len(pieces) == 1:
        return pieces[0]
    return Reading("tuple", "union " + " ".join(piece.text for piece in pieces), parts=tuple(pieces), shape="union")


def spans_of(reading: Reading) -> tuple[Span, ...] | None:
    """The part of the real line that a reading may be; None for anything else. Numbers are points of it."""
    if reading.text == NOTHING.text:
        return ()
    if reading.kind == "value":
        return (Span(reading, reading, (True, True)),)
    if reading.kind == "list" or reading.shape == "union":
        found = [spans_of(part) for part in reading.parts]
        return None if None in found else tuple(span for each in found if each is not None for span in each)
    if reading.kind == "tuple" and len(reading.parts) == 2 and reading.shape[0] in "([" and reading.shape[1] in ")]":
        low, high = reading.parts
        if low.kind == high.kind == "value":
            return (Span(low, high, (reading.shape[0] == "[", reading.shape[1] == "]")),)
    return None


def intersection(one: Sequence[Span], other: Sequence[Span]) -> list[Span]:
    """What both have; `NoValueError` where ends cannot be compared."""
    found = []
    for a in one:
        for b in other:
            low = max(((a.low, a.closed[0]), (b.low, b.closed[0])), key=lambda end: (_float(end[0]), not end[1]))
            high = min(((a.high, a.closed[1]), (b.high, b.closed[1])), key=lambda end: (_float(end[0]), end[1]))
            span = Span(low[0], high[0], (low[1], high[1]))
            if not _is_empty(span):
                found.append(span)
    return found


def without_points(spans: Sequence[Span], points: Sequence[Reading]) -> list[Span]:
    """What is left without some points; `NoValueError` where they cannot be compared."""
    left = list(spans)
    for point in points:
        sides = (Span(LEAST, point, (False, False)), Span(point, GREATEST, (False, False)))
        left = intersection(left, sides)
    return left


def agree(one: Reading, other: Reading) -> bool:
    """Tell whether an answer is right for a reference; symmetric, not transitive."""
    return _Comparison().agree(one, other)


class _Comparison:
    def __init__(self) -> None:
        self.count = 0

    def agree(self, one: Reading, other: Reading) -> bool:
        # Two forms agree by what one of them is, not by what both might be: 6 a.m. and 6 p.m. may both be 6:00.
        return any(self.alike(one, b) for b in (other, *other.others)) or any(self.alike(a, other) for a in one.others)

    def alike(self, a: Reading, b: Reading) -> bool:
        self.count += 1
        if a.text == b.text:
            return True
        if a.kind != b.kind or self.count > MOST_COMPARISONS:
            return False
        if a.kind == "value":
            return _near(a, b)
        if a.kind == "text" or len(a.parts) != len(b.parts) or a.shape != b.shape:
            return False
        if a.kind != "list":
            return all(self.agree(mine, theirs) for mine, theirs in zip(a.parts, b.parts, strict=True))
        rest = list(b.parts)
        for mine in a.parts:
            match = next((place for place, theirs in enumerate(rest) if self.agree(mine, theirs)), None)
            if match is None:
                return False
            del rest[match]
        return True


def _near(a: Reading, b: Reading) -> bool:
    """Tell whether one is a decimal that rounds the other, in six significant digits or more."""
    assert a.value is not None
    assert b.value is not None
    mine, theirs = a.value.size, b.value.size
    if a.decimals is None and b.decimals is None:
        return False
    # NaN compares as false.
    if not all(abs(part) < LARGEST for size in (mine, theirs) for part in (size.real, size.imag)):
        return False
    difference = abs(mine - theirs) - ROUNDING * max(abs(mine), abs(theirs))
    if difference > TOLERANCE * min(abs(mine), abs(theirs)):
        return False
    if a.decimals is not None and b.decimals is not None:
        return difference <= 0.501 * 10.0 ** -min(a.decimals, b.decimals)
    digits = a.decimals if a.decimals is not None else b.decimals
    exact = b.value if a.decimals is not None else a.value
    assert digits is not None
    whole = exact.rational()
    # A fraction may have been cut off; a whole number was not.
    step = 0.501 if whole is not None and whole.denominator == 1 else 1.0
    return difference <= step * 10.0**-digits


def _float(reading: Reading) -> float:
    assert reading.value is not None
    for text, value in ((LEAST.text, -math.inf), (GREATEST.text, math.inf)):
        if reading.text == text:
            return value
    return residue.float_of(reading.value)


def _is_empty(span: Span) -> bool:
    if span.low.text == span.high.text:
        return not all(span.closed)
    return _float(span.low) >= _float(span.high)


def _merged(spans: Sequence[Span]) -> list[Span]:
    try:
        ordered = sorted(spans, key=lambda span: (_float(span.low), not span.closed[0]))
    except NoValueError:
        # Ends with variables have no order.
        return sorted(spans, key=lambda span: (span.low.text, span.high.text, span.closed))
    merged: list[Span] = []
    for span in ordered:
        last = merged[-1] if merged else None
        if last is None or _float(span.low) > _float(last.high):
            merged.append(span)
            continue
        touching = span.low.text == last.high.text
        if touching and not (span.closed[0] or last.closed[1]):
            merged.append(span)
            continue
        high = max(((last.high, last.closed[1]), (span.high, span.closed[1])), key=lambda end: (_float(end[0]), end[1]))
        closed_low = last.closed[0] or (span.low.text == last.low.text and span.closed[0])
        merged[-1] = Span(last.low, high[0], (closed_low, high[1]))
    return merged
