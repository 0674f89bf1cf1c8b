"""Typography to plain characters: full-width letters, digits of all scripts, fraction and superscript characters.

The work is in proportion to the length of the text.
"""

import re
import unicodedata
from typing import Final

MOST_MARKS: Final = 30
"""Combining characters in a row, as in Unicode's stream-safe text: normalising takes the square of a longer run."""
LONGEST_EXPANSION: Final = 4
"""Characters that one character is written as."""
JOINER: Final = "\u034f"
"""The character that Unicode puts between marks to end a run of them."""
SUPERSCRIPTS: Final = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
SUBSCRIPTS: Final = "₀₁₂₃₄₅₆₇₈₉₊₋"
INDEX_DIGITS: Final = str.maketrans(SUPERSCRIPTS + SUBSCRIPTS, "0123456789+-" * 2)
FRACTION_CHARACTER: Final = re.compile("([0-9])?([¼-¾⅐-⅞↉])")
SMALL_FRACTION: Final = re.compile(f"(?<![{SUPERSCRIPTS[:10]}])([{SUPERSCRIPTS[:10]}]++)/([{SUBSCRIPTS[:10]}]++)")
SUPERSCRIPT: Final = re.compile(f"[{SUPERSCRIPTS}]+")
SUBSCRIPT: Final = re.compile(f"[{SUBSCRIPTS}]+")
INVISIBLE: Final = dict.fromkeys(
    [
        *map(ord, "\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ]
)
"""Characters that show nothing: soft hyphens, joiners, and marks of the direction of writing."""
PLAIN: Final = INVISIBLE | str.maketrans(dict.fromkeys("−–‐‑‒", "-") | dict.fromkeys("⁄∕", "/"))
TEXT_COMMAND: Final = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|math(?:rm|bf|it|sf)|boldsymbol|bm|emph|underline)\s*\{([^{}]*)\}"
)
"""Commands of LaTeX that say how a text looks."""
PLAIN_QUOTES: Final = str.maketrans("‘’‛´“”„٬٫", "''''\"\"\",.")


def plain_characters(text: str) -> str:
    """Write a text in plain characters as far as they have one: `"１½ 10⁶ ٣"` is `"1 1/2 10^6 3"`."""
    if text.isascii():
        return text
    text = SMALL_FRACTION.sub(lambda match: f"{match[1]}/{match[2]}".translate(INDEX_DIGITS), text.translate(PLAIN))
    text = SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(INDEX_DIGITS), text)
    text = SUBSCRIPT.sub(lambda match: "_" + match[0].translate(INDEX_DIGITS), text)
    text = plain_digits(text)
    text = FRACTION_CHARACTER.sub(_spelt_fraction, text)
    others = {ord(character): unicodedata.normalize("NFKC", character) for character in set(text) if character > "\x7f"}
    # Some characters stand for whole sentences.
    short = {code: plain for code, plain in others.items() if len(plain) <= LONGEST_EXPANSION}
    return text.translate(short).translate(PLAIN).translate(PLAIN_QUOTES)


def plain_digits(text: str) -> str:
    """Write the decimal digits of every script as 0 to 9."""
    others = {character for character in set(text) if character.isdecimal() and not character.isascii()}
    return text.translate({ord(character): str(unicodedata.decimal(character)) for character in others})


def normal(text: str) -> str:
    """Return the normal form NFKC, in linear time; a run of very many combining characters is kept in pieces."""
    if text.isascii():
        return text
    marks = {character for character in set(text) if unicodedata.combining(unicodedata.normalize("NFKD", character)[0])}
    if not marks:
        return unicodedata.normalize("NFKC", text)
    run = re.compile(f"[{re.escape(''.join(marks))}]{{{MOST_MARKS}}}")
    return unicodedata.normalize("NFKC", run.sub(lambda match: match[0] + JOINER, text))


def without_text_commands(text: str) -> str:
    r"""Take text out of commands, two in each other too: `r"\text{a \textbf{b}}"` is `" a  b  "`."""
    return TEXT_COMMAND.sub(r" \1 ", TEXT_COMMAND.sub(r" \1 ", text))


def _spelt_fraction(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match[2]).partition("⁄")
    return f"{match[1]} {numerator}/{denominator}" if match[1] else f"{numerator}/{denominator}"
