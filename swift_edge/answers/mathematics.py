"""Where a response states its mathematics, and whether it is what a reference says.

The answer is, in this order: the last box, with those beside it; what follows the usual phrasings; the whole text where
it reads as mathematics; the last mathematics between dollar signs; the end of the last line that reads as mathematics;
the last number.

Boxes belong together where nothing but a listing is between them: `\\boxed{2}` and `\\boxed{3}` are the answer `2, 3`,
so a response that boxes two guesses is wrong. Boxes that stand apart are steps and a result, the last of which counts;
but where a reference lists several answers, a response is right as well if all its boxes together are that list.
"""

import re
from typing import Final

from swift_edge.answers import number
from swift_edge.answers.latex import agree_latex, canonical_latex, reads_as_mathematics
from swift_edge.answers.stated import DISPLAYED, LISTING, Box, boxes, displayed, displayed_first, sentences

DOLLAR: Final = r"\mathdollar "
"""How a dollar sign is spelled while mathematics is looked for."""
MOST_BOXES: Final = 12
"""Boxes that may be one answer together."""
LONGEST_LINK: Final = 40
"""Characters between two boxes, or two pieces of mathematics, of one answer."""
LONGEST_SENTENCE: Final = 1_000
"""Characters that are read after a phrasing."""
MOST_WORDS: Final = 16
"""Words at the end of a line, or at the start of a sentence, that may be the answer."""
LINK: Final = re.compile(
    r"[\s$,;.\\()\[\]]*(?:and|or|&|\\text\{\s*(?:and|or)\s*\})?[\s$,;\\()\[\]]*(?:[a-zA-Z](?:_[0-9])?\s*=\s*)?[\s$]*"
)
SAID_OF_LETTER: Final = re.compile(
    r"\s*,?\s*(?:for|where|with)\b[^.;:!?\n$]{0,40}(?:\$|\\\()\s*[a-zA-Z]\s*(?:\\in\b[^$]{0,40})?(?:\$|\\\))"
    r"(?:\s+is\s[^.;:!?\n$]{0,40})?"
)
"""After an answer, of a letter in it: `$x = k\\pi$, where $k$ is an integer`."""
REASON: Final = re.compile(
    r"[,;]?\s+(?:because|since|as|so|which|where|when|for|if|from|after|due|given|that|by)\b", re.IGNORECASE
)
SEVERAL: Final = re.compile(r"\b(?:are|solutions|roots|values|answers|zeros|zeroes)\b")
WORDS: Final = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{2}|\\text")
"""What makes a text more than mathematics that does not read."""
NAMED: Final = re.compile(r"\\(?:begin|end|operatorname|text[a-z]*|mbox|mathrm)\s*\{[^{}]*\}")
SOME_WORD: Final = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{2,}")
MOST_UNIT_WORDS: Final = 3
"""Words beside mathematics that may be a unit: miles per hour."""
PROSE: Final = re.compile(r"[aAI]\s|[a-zA-Z]{2,}(?!\s*[=(^_{\[])")
"""How words begin that are no mathematics."""


def extract_latex(text: str) -> str | None:
    """Return the answer of a response as it was written, several of them with commas between; None without one."""
    # A dollar sign that is meant as one would look like the end of mathematics.
    answer = _extracted(text.replace(r"\$", DOLLAR))
    return None if answer is None else answer.replace(DOLLAR, r"\$")


def reference_latex(text: str) -> str | None:
    """Return the answer of a reference: what it boxes, else the whole; None without one."""
    if found := _boxes(text):
        return _joined(_last_together(text, found))
    return text.strip() or None


def grade_latex(text: str, expected: str) -> bool:
    """Tell whether a response gives the answer of a reference."""
    answer = extract_latex(text)
    if answer is None:
        return False
    if agree_latex(answer, expected):
        return True
    found = _boxes(text)
    return 1 < len(found) <= MOST_BOXES and agree_latex(_joined(found), expected)


def _extracted(text: str) -> str | None:
    if found := _boxes(text):
        return _joined(_last_together(text, found))
    if (sentence := next(sentences(text, LONGEST_SENTENCE), None)) is not None:
        return _first_in(sentence)
    if len(text) <= LONGEST_SENTENCE and not _is_prose(text) and _is_mathematics(text):
        return text.strip()
    if shown := _last_displayed(text):
        return shown
    if len(text) <= LONGEST_SENTENCE and not WORDS.search(text):
        return text.strip() or None
    return _last_in(text) or number.extract_number(text) or _short(text)


def _is_mathematics(text: str) -> bool:
    """Tell mathematics, with a unit perhaps, from a sentence with a letter that could be a variable."""
    words = len(SOME_WORD.findall(NAMED.sub(" ", text)))
    shown = words == 0 or re.search(r"[0-9\\=<>^]", text) is not None
    return shown and words <= MOST_UNIT_WORDS and reads_as_mathematics(text)


def _is_prose(text: str) -> bool:
    """Tell whether mathematics between dollar signs stands among words."""
    around = DISPLAYED.sub(" ", text)
    return around != text and re.search(r"(?!and\b|or\b)\b[a-zA-Z]{2}", around) is not None


def _boxes(text: str) -> list[Box]:
    """Return the boxes that are closed and not empty, first to last, those within others left out."""
    outermost: list[Box] = []
    for box in boxes(text):
        if not outermost or box.start >= outermost[-1].end:
            outermost.append(box)
    return [box for box in outermost if box.content] if outermost and outermost[-1].content else []


def _last_together(text: str, found: list[Box]) -> list[Box]:
    """Return the last box, and those before it that belong to it."""
    first = len(found) - 1
    while first > 0 and len(found) - first < MOST_BOXES:
        between = text[found[first - 1].end : found[first].start]
        if len(between) > LONGEST_LINK or not between.strip() or not LINK.fullmatch(between):
            break
        first -= 1
    return found[first:]


def _joined(found: list[Box]) -> str:
    different = {canonical_latex(box.content): box.content for box in found} if len(found) > 1 else {}
    return ", ".join(different.values()) if len(different) > 1 else found[-1].content


def _first_in(sentence: str) -> str:
    """Return the mathematics that a sentence begins with, else the sentence."""
    shown = displayed_first(sentence)
    start = sentence.find(shown) if shown else 0
    if shown and not re.search("[0-9]", sentence[:start]):
        said = SAID_OF_LETTER.match(sentence, start + len(shown))
        return sentence[start : said.end()] if said else shown
    claim = REASON.split(sentence.strip("$ "), maxsplit=1)[0]
    if _is_mathematics(claim):
        return claim
    words = claim.split()[:MOST_WORDS]
    for count in range(len(words), 0, -1):
        candidate = " ".join(words[:count]).rstrip(",;:")
        if _is_mathematics(candidate):
            return candidate
    return claim


def _last_displayed(text: str) -> str | None:
    """Return the last mathematics between dollar signs, with what is listed before it (`they are $1$ and $2$`)."""
    spans = list(DISPLAYED.finditer(text))
    if len(spans) > 1 and not reads_as_mathematics(spans[-1][0]):  # a mark at the end of a proof
        del spans[-1]
    if not spans:
        return None
    if len(spans) > 1 and (said := SAID_OF_LETTER.match(text, spans[-2].end())) and said.end() >= spans[-1].end():
        return text[spans[-2].start() : said.end()]
    first = len(spans) - 1
    while first > 0 and len(spans) - first < MOST_BOXES:
        between = text[spans[first - 1].end() : spans[first].start()]
        if not between.strip() or not LISTING.fullmatch(between):
            break
        first -= 1
    if SEVERAL.search(text[max(0, spans[first].start() - LONGEST_LINK) : spans[first].start()]):
        return text[spans[first].start() : spans[-1].end()]
    content = displayed(spans[-1][0])
    if content is not None and r"\begin{align" in content:
        rows = [row for row in content.split(r"\end{align")[0].split("\\\\") if row.strip()]
        return rows[-1].strip()  # of a derivation, the result
    return content


def _last_in(text: str) -> str | None:
    """Return the longest end of the last line that reads as mathematics and is more than a number."""
    lines = text[-LONGEST_SENTENCE:].strip().splitlines()
    words = lines[-1].rstrip(".!").split() if lines else []
    for start in range(max(0, len(words) - MOST_WORDS), len(words)):
        candidate = " ".join(words[start:])
        if re.search(r"[\\^=<>()]", candidate) and not PROSE.match(candidate) and _is_mathematics(candidate):
            return candidate
    return None


def _short(text: str) -> str | None:
    """Return a text of a word or two, or `\\text{...}`: what is no mathematics may still be the answer."""
    stripped = text.strip(" .\n\t")
    few = stripped and len(stripped.split()) <= 2 and len(stripped) <= LONGEST_LINK
    return stripped if few or re.fullmatch(r"\\text[a-z]*\{[^{}]{1,80}\}", stripped) else None
