"""Numbers, letters, yes and no, Python literals and words: extraction, and a text that equal answers share.

`extract_*` takes a whole response and returns the answer as it was written, or None; `canonical_*` takes that answer.
None of them raises, evaluates anything, or takes more time than the length of the text allows.
"""

import ast
import cmath
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from swift_edge.answers.stated import last_box, stated

MOST_DIGITS: Final = 300
"""Longer numbers are compared as text."""
LARGEST_EXPONENT: Final = 300
"""Of ten, in 1e300."""
LONGEST_LITERAL: Final = 20_000
"""Characters; longer literals are compared as text."""
DEEPEST_LITERAL: Final = 40
"""Brackets within brackets; deeper literals are compared as text."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?![0-9A-Za-z]))?"
NUMBER: Final = re.compile(
    rf"(?<![0-9.,])(?:(?<![0-9A-Za-z)\]}}])[-+])?(?:[$€£]\s?)?(?:(?<![0-9A-Za-z)\]}} ])-)?"
    rf"(?:[0-9]+\s[0-9]+/[0-9]+|{_DECIMAL}(?:\s?/\s?{_DECIMAL})?)"
)
LATEX_FRACTION: Final = re.compile(
    r"((?<![0-9])[0-9]{1,20}\s?)?\\[dtc]?frac\s?(?:\{\s?(-?[0-9]{1,99})\s?\}|([0-9]))\s?(?:\{\s?([0-9]{1,99})\s?\}|([0-9]))"
)
LETTER: Final = re.compile(
    r"\(([A-Ja-j])\)|(?<![A-Za-z0-9'’\\])([A-Ja-j])\)|(?<![A-Za-z0-9'’\\])([A-J])(?![A-Za-z0-9'’])"
)
ARTICLE: Final = re.compile(r"\s+(?!(?:is|was|as|and|or|because|since)\b)[a-z]")
"""What follows `A` where it is an article, `I` where it is a pronoun: not `A is correct`."""
LETTER_ALONE: Final = re.compile(r"\W*([A-Za-z])\W*")
YES_NO: Final = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
CODE_BLOCK: Final = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
ANSWER_TAG: Final = re.compile(r"\[ANSWER\](.*?)(?:\[/ANSWER\]|\Z)", re.DOTALL)


def extract_number(text: str) -> str | None:
    """Return the number in the last box, else after the usual phrasings, else the last number of the text."""
    for place in stated(text):
        # What follows the last sign of equality is the result.
        for part in (place.rsplit("=", 1)[-1], place):
            if (match := NUMBER.search(_plain_number(part))) is not None:
                return match[0]
    last = None
    for match in NUMBER.finditer(_plain_number(text)):
        last = match[0]
    return last


def canonical_number(answer: str) -> str:
    """Write a number as an exact fraction: `"$1,234.50"` is `"2469/2"`. Percent signs and units are dropped."""
    match = NUMBER.search(_plain_number(answer))
    value = _fraction(match[0]) if match is not None else None
    return str(value) if value is not None else "text:" + " ".join(answer.split())


def extract_letter(text: str) -> str | None:
    """Return the option, upper case, in the last box, else after the usual phrasings, else the last that is named."""
    for place in stated(text):
        unwrapped = re.sub(r"\\[a-zA-Z]+\*?\s*|[{}$*]", " ", place).strip()
        if alone := LETTER_ALONE.fullmatch(unwrapped):
            return alone[1].upper()
        # "The answer is A" may go on with "because ...": at the start, a capital is no article.
        if match := re.match(r"\W*([A-J])(?![A-Za-z0-9'’])", unwrapped) or LETTER.search(unwrapped):
            return next(group for group in match.groups() if group).upper()
    if alone := LETTER_ALONE.fullmatch(text):
        return alone[1].upper()
    last = None
    for match in LETTER.finditer(text):
        # "A bat" and "I": an article and a pronoun.
        article = match[3] in ("A", "I") and ARTICLE.match(text[match.end() : match.end() + 9])
        if not article:
            last = next(group for group in match.groups() if group)
    return last.upper() if last else None


def canonical_letter(answer: str) -> str:
    """Return the letter alone: `"(b)"` and `"B."` are `"B"`."""
    return extract_letter(answer) or "text:" + " ".join(answer.split()).casefold()


def extract_yes_no(text: str) -> str | None:
    """Return `yes` or `no`: in the last box, else first after the usual phrasings, else the last of the text."""
    for place in stated(text):
        if match := YES_NO.search(place):
            return match[1].lower()
    last = None
    for match in YES_NO.finditer(text):
        last = match[1].lower()
    return last


def canonical_yes_no(answer: str) -> str:
    """Return `yes`, `no`, or the text."""
    return extract_yes_no(answer) or "text:" + " ".join(answer.split()).casefold()


def extract_literal(text: str) -> str | None:
    """Return a Python literal: the whole text, else a tag, box, phrasing, `==`, code block, or the last line."""
    first = None
    for place in _literal_places(text):
        candidate = place.strip()
        if not candidate:
            continue
        if _literal(candidate) is not None:
            return candidate
        first = first if first is not None else candidate
    return first


def canonical_literal(answer: str) -> str:
    """Write a literal so that values equal in Python have one text: `[1.0, 'a']` is `[1, 'a']`; sets are sorted.

    What is not a literal (`'a' + str(1)`) is never evaluated: it is compared as text.
    """
    value = _literal(answer.strip())
    return value if value is not None else "text:" + " ".join(answer.split())


def extract_text(text: str) -> str | None:
    """Return what is in the last box, else what follows the last usual phrasing, else the last line."""
    for place in stated(text):
        if place:
            return place
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


def canonical_exact(answer: str) -> str:
    """Return the answer without the white space around it."""
    return answer.strip()


def canonical_text(answer: str) -> str:
    """Return the words, without case, punctuation around them, `\\text{...}`, and differences of white space."""
    text = unicodedata.normalize("NFKC", re.sub(r"\\text(?:bf|it|rm)?\s*\{([^{}]*)\}", r" \1 ", answer)).casefold()
    # Case folding may undo the normal form; a second pass settles it.
    words = (word.strip(".,;:!?\"'`()[]{}*_$“”‘’") for word in unicodedata.normalize("NFKC", text).split())
    return " ".join(word for word in words if word)


def _plain_number(text: str) -> str:
    """Write minus signs, LaTeX fractions and LaTeX's thousands in plain characters."""
    text = text.replace("−", "-").replace("–", "-").replace("\\$", "$").replace("\\!", "").replace("{,}", ",")
    return LATEX_FRACTION.sub(_plain_fraction, text)


def _plain_fraction(match: re.Match[str]) -> str:
    numerator, denominator = match[2] or match[3], match[4] or match[5]
    return f"{match[1].strip()} {numerator}/{denominator}" if match[1] else f"{numerator}/{denominator}"


def _fraction(text: str) -> Fraction | None:
    compact = re.sub(r"[,$€£+]|(?<=[-/])\s|\s(?=/)", "", text)
    if len(compact) > MOST_DIGITS:
        return None
    negative, compact = compact.startswith("-"), compact.replace("-", "", 1) if compact.startswith("-") else compact
    value = Fraction(0)
    try:
        for summand in compact.split():
            numerator, _, denominator = summand.partition("/")
            value += _decimal(numerator) / _decimal(denominator or "1")
    except (ValueError, ZeroDivisionError):
        return None
    return -value if negative else value


def _decimal(text: str) -> Fraction:
    _, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > LARGEST_EXPONENT:
        raise ValueError
    return Fraction(text)


def _literal_places(text: str) -> Iterator[str]:
    yield text
    tags = ANSWER_TAG.findall(text)
    box = last_box(text)
    for place in [*tags[-1:], *([box] if box is not None else []), *stated(text)]:
        yield place
        yield place.strip("`$ ").rstrip(".")
    yield from CODE_BLOCK.findall(text)[-1:]
    for line in reversed(text.splitlines()[-20:]):
        stripped = line.strip().strip("`")
        if stripped.startswith("assert ") and "==" in stripped:
            yield stripped.rsplit("==", 1)[1]
        if stripped:
            yield stripped


def _literal(text: str) -> str | None:
    """Return the canonical text of a literal; None where it is none, or is beyond the limits."""
    if len(text) > LONGEST_LITERAL or _nesting(text) > DEEPEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about "\d" in a string
            return _value_text(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError):
        return None


def _nesting(text: str) -> int:
    """Return an upper bound of how deep brackets are nested; those within strings count too."""
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _value_text(value: object) -> str:
    if isinstance(value, (bool, int, float, complex)):
        return _number_text(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_value_text, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(_value_text(item) + "," for item in value) + ")"
    if isinstance(value, set):
        return "{" + ", ".join(sorted(map(_value_text, value))) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_value_text(key)}: {_value_text(item)}" for key, item in value.items())) + ":}"
    return repr(value)


def _number_text(value: complex) -> str:
    # Numbers equal in Python hash alike, whatever their type: 1, 1.0, True and 1+0j.
    if isinstance(value, complex) and (value.imag != 0 or not cmath.isfinite(value)):
        return f"{_number_text(value.real)}+{_number_text(value.imag)}j"
    real = value.real
    if isinstance(real, float) and not math.isfinite(real):
        return repr(real)
    exact = Fraction(real)
    return hex(exact.numerator) if exact.denominator == 1 else f"{exact.numerator:x}/{exact.denominator:x}"
