"""Where a response states its answer: the last box, else the last of the usual phrasings.

Every search takes time in proportion to the text.
"""

import re
from collections.abc import Iterator
from typing import Final

MOST_PHRASES: Final = 20
"""Phrasings looked at, from the end; more would make long repetitive texts slow."""
BOX: Final = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
PHRASE: Final = re.compile(
    r"####[ \t]*"
    r"|(?:^|(?<=\n))[ \t]*[*_]{0,2}(?:A|Answer|Final answer)[*_]{0,2}[ \t]*[:=][*_]{0,2}[ \t]*"
    r"|\b(?:answer|option|choice)\b(?:\s(?:to|of|for)\s[^.\n:]{1,80}?)?[*_]{0,2}\s?"
    r"(?:is|are|was|:|=|would be|must be|should be)"
    r"[*_]{0,2}:?[*_]{0,2}[ \t]*(?:\n[ \t]*)?(?:(?:option|choice|therefore|thus|simply|clearly|indeed|also)\s)?",
    re.IGNORECASE,
)
SENTENCE_END: Final = re.compile(r"\n|[.!?](?=\s|$|[*_]+(?:\s|$))|\.$")
MARKUP: Final = re.compile(r"[*_`]{2,3}|^\s*[*`]+|[*`]+\s*$")
LISTING: Final = re.compile(r"\s*,?\s*(?:and|or)?\s*")
DISPLAYED: Final = re.compile(
    r"\$\$(.{1,1000}?)\$\$|\$([^$\n]{1,1000})\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL
)


def last_box(text: str) -> str | None:
    """Return what is in the last `\\boxed{...}` that is closed, with braces nested in any way; None without one."""
    starts = [match.end() for match in BOX.finditer(text)]
    # One pass from the left knows where every brace closes; a pass from each box would be slow on many of them.
    closings: dict[int, int] = {}
    opened: list[int] = []
    if starts:
        for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
            if match[0] == "{":
                opened.append(match.start())
            elif match[0] == "}" and opened:
                closings[opened.pop()] = match.start()
    for start in reversed(starts):
        if start in closings:
            return text[start + 1 : closings[start]].strip()
        if (bare := re.match(r"[0-9A-Za-z]", text[start : start + 1])) and text[start - 1 : start].isspace():
            return bare[0]
    return None


def stated(text: str) -> Iterator[str]:
    """Yield where the answer may stand, best first: the last box, then what follows the phrasings, last first."""
    if (box := last_box(text)) is not None:
        yield box
    for match in list(PHRASE.finditer(text))[: -MOST_PHRASES - 1 : -1]:
        sentence = first_sentence(text[match.end() : match.end() + 4000])
        if sentence:
            yield sentence


def first_sentence(text: str) -> str:
    """Return the text up to the end of its first sentence or line, without Markdown emphasis."""
    inside = [match.span() for match in DISPLAYED.finditer(text[:2000])]
    end = len(text)
    for match in SENTENCE_END.finditer(text):
        if not any(start < match.start() < stop for start, stop in inside):
            end = match.start()
            break
    return MARKUP.sub("", text[:end]).strip()


def displayed_first(text: str) -> str | None:
    """Return the first mathematics between dollar signs, with what is listed after it (`$1$ and $2$`)."""
    spans = list(DISPLAYED.finditer(text))
    if not spans:
        return None
    end = spans[0].end()
    for span in spans[1:]:
        if not LISTING.fullmatch(text[end : span.start()]):
            break
        end = span.end()
    return text[spans[0].start() : end]


def displayed(text: str) -> str | None:
    """Return the last mathematics between dollar signs or `\\(...\\)`; None without any."""
    content = None
    for match in DISPLAYED.finditer(text):
        content = next(group for group in match.groups() if group is not None)
    return content.strip() if content and content.strip() else None
