"""Words: extraction, and a text that equal answers share.

`extract_text` takes a whole response and returns the answer as it was written, or None; `canonical_*` takes that.
"""

from typing import Final

from swift_edge.answers.stated import stated
from swift_edge.answers.typography import normal, without_text_commands

ARTICLES: Final = frozenset(["the", "a", "an"])
"""Before other words they say nothing: `The Great Gatsby`."""
AROUND: Final = ".,;:!?\"'`()[]{}*_$“”‘’"
"""Punctuation that says nothing at the ends of a word."""


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
    """Return the words, without case, a leading article, punctuation, `\\text{...}`, and differences of white space."""
    text = normal(without_text_commands(answer)).casefold()
    # Case folding may undo the normal form; a second pass settles it.
    all_words = normal(text).split()
    words = [word for word in map(_bare, all_words) if word]
    while len(words) > 1 and words[0] in ARTICLES:
        del words[0]
    return " ".join(words or all_words)


def _bare(word: str) -> str:
    bare = word.lstrip(AROUND)
    # .5 is not 5.
    point = "." if bare[:1].isdigit() and word[: len(word) - len(bare)].endswith(".") else ""
    return point + bare.rstrip(AROUND)
