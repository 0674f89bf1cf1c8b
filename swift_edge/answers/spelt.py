"""Numbers in English words: `twenty-five`, `minus two thousand three hundred and one`."""

import re
from typing import Final

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
SMALL: Final = {word: value for value, word in enumerate(_SMALL)}
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TENS: Final = {word: 10 * value for value, word in enumerate(_TENS, start=2)}
GROUPS: Final = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MAGNITUDES: Final = {"hundred": 10**2, **GROUPS}
_WORD = rf"(?:{'|'.join(['hundred', *GROUPS, *TENS, *sorted(SMALL, key=len, reverse=True)])})(?![A-Za-z])"
SPELT: Final = re.compile(
    rf"[\W_]*+(?P<sign>(?:minus|negative)\s)?(?:a\s(?=hundred|thousand|million))?(?P<words>{_WORD}(?:(?:-|\s|,\s|\sand\s){_WORD}){{0,30}})",
    re.IGNORECASE,
)
OPEN: Final = re.compile(
    rf"[\s-](?:of|more|less|fewer|half|halves|thirds?|quarters?|fifths?|sixths|eighths|tenths|squared|cubed|point"
    rf"|over|that|which|who|can|could|and\sa)\b"
    rf"|,?\s?(?:or|and|to|-|,|&|/)\s?{_WORD}",
    re.IGNORECASE,
)
"""What follows words that are not the whole number, or one of several."""


def spelt_number(text: str) -> int | None:
    """Return the number that a text begins with in words; None where it begins with none, or goes on with another."""
    match = SPELT.match(text)
    if match is None or OPEN.match(text, match.end()):
        return None
    value = _value(re.findall("[a-z]+", match["words"].lower()))
    return value if value is None or not match["sign"] else -value


def _value(words: list[str]) -> int | None:
    """Return the value of words in an order that numbers have."""
    total, group, last_group, smallest = 0, 0, 10**15, 1000
    for word in words:
        if word == "and":
            continue
        if word in GROUPS:
            if GROUPS[word] >= last_group:
                return None
            last_group = GROUPS[word]
            total, group, smallest = total + (group or 1) * last_group, 0, 1000
        elif word == "hundred":
            if group > 99:
                return None
            group, smallest = (group or 1) * 100, 100
        else:
            value = SMALL[word] if word in SMALL else TENS[word]
            if value >= smallest:
                return None
            group, smallest = group + value, 10 if word in TENS else 0
    return total + group
