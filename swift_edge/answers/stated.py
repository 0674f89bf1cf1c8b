"""Where a response states its answer: the last box, else the last of the usual phrasings.

Every search takes time in proportion to the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MOST_PHRASES: Final = 20
"""Phrasings looked at, from the end; more would make long repetitive texts slow."""
LONGEST_SENTENCE: Final = 4000
CONTEXT: Final = 80
"""Characters after the end of a sentence that say whether it is one."""
BOX: Final = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
PHRASE: Final = re.compile(
    r"####[ \t]*"
    r"|<answer>\s{0,9}"
    # A line that says Answer: before what it is, or a heading before it.
    r"|(?:^|(?<=\n))[ \t]*[*_]{0,2}(?:A|Answer|Final answer)[*_]{0,2}[ \t]*[:=][*_]{0,2}[ \t]*(?:\n{1,2}[ \t]*)?"
    r"|(?:^|(?<=\n))[ \t]*(?:\#{1,6}[ \t]*[*_]{0,2}|[*_]{2})(?:the )?(?:final )?answer:?[*_]{0,2}:?[ \t]*\n\s{0,9}"
    r"|\b(?:answer|option|choice)\b(?:\s(?:to|of|for)\s[^.\n:]{1,80}?)?[*_]{0,2}\s?"
    r"(?:(?:is|are|was|would be|must be|should be)(?![A-Za-z'’])|[:=])"
    r"[*_]{0,2}:?[*_]{0,2}[ \t]*(?:\n{1,2}[ \t]*)?"
    r"(?:(?:option|choice|therefore|thus|simply|clearly|indeed|also|probably|likely|definitely|actually|now)\s)?",
    re.IGNORECASE,
)
BULLET: Final = re.compile(r"(?:[-+•]|\*(?!\*))[ \t]+")
STOP: Final = re.compile(
    # Mathematics, strings and code are not searched for ends of sentences.
    r"\$\$.{1,1000}?\$\$|\$(?!\s)[^$\n]{1,1000}(?<!\s)\$(?![0-9])|\\\(.{1,1000}?\\\)|\\\[.{1,1000}?\\\]"
    r"|(?<![\w'\"`\\])(?:'(?:\\.|[^'\\\n]){0,999}+'|\"(?:\\.|[^\"\\\n]){0,999}+\""
    r"|`[^`\n]{0,999}+`|“[^“”\n]{0,999}+”)(?![\w'\"`])"
    r"|(?P<end>\n|</?answer>|[。！？]|[.!?](?=\s|$|[*_\"”]+(?:\s|$)))",
    re.DOTALL,
)
ABBREVIATION: Final = re.compile(
    r"(?<![A-Za-z0-9.])(?:[A-Z]|(?:[A-Za-z]\.)+[A-Za-z]|St|Dr|Mrs?|Ms|Prof|Mt|Ft|Gen|Col|Sgt|Lt|Capt|Rev|Hon|Gov|Sen|Rep|Fr"
    r"|Inc|Ltd|Co|Corp|Jr|Sr|Bros|Ave|Blvd|Rd|No|Nos|Fig|Vol|vs|cf|ca|approx|etc|al|viz)$"
)
SENTENCE_START: Final = re.compile(
    r"(?:The|This|That|These|Those|It|Its|He|She|They|We|I|You|There|Here|So|Thus|Therefore|Hence|Because|Since|In|On|At|For"
    r"|From|If|As|And|But|Or|Then|Now|However|Also|Let|Note|First|Finally|To|By|With|When|While|My|Our|Your|His|Her|Their|A"
    r"|An|Is|Are|Was|Explanation|Reason|Answer|Final|Option|Both|All|Each|Please|Good|Great)(?![\w.])"
)
"""After an abbreviation, these begin a sentence; other words go on with it (`St. Louis`, `U.S. Army`)."""
NAME_GOES_ON: Final = re.compile(r"[ \t][A-Z][\w&'-]*(?:[ \t][A-Z][\w&'-]*)?\.?[ \t]*(?:\n|$)")
"""After an exclamation mark or question mark within a name (`Yahoo! Inc`)."""
STRONG: Final = re.compile(
    r"(?<![\w*])(\*\*\*?)(?=[^\s*])((?:[^*\n]|\*(?!\*))+?)(?<!\s)\1(?![\w*])|(?<![\w_])(__)(?=[^\s_])((?:[^_\n]|_(?!_))+?)(?<!\s)__(?![\w_])"
)
EMPHASIS: Final = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+)(?<!\s)\*(?![\w*])")
LISTING: Final = re.compile(r"\s*,?\s*(?:and|or)?\s*")
BETWEEN_BOXES: Final = re.compile(
    r"[\s$.]*(?:,|;|,?\s*(?:and|or))[\s$]*(?:or|either|maybe|perhaps)?[\s$]*(?:[A-Za-z]\w?\s*=\s*)?"
)
DISPLAYED: Final = re.compile(
    r"\$\$(.{1,1000}?)\$\$|\$([^$\n]{1,1000})\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL
)
NEGATED: Final = re.compile(r"(?:definitely |certainly |clearly )?(?:not|neither)\s", re.IGNORECASE)
CORRECTED: Final = re.compile(r"\b(?:but(?: rather)?|instead)\s+(?:is |it is |it's )?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Box:
    """A `\\boxed{...}` of a text."""

    start: int
    """Where the command begins."""
    end: int
    """Behind its last brace."""
    content: str
    """What it holds, without white space around it."""


def boxes(text: str) -> list[Box]:
    """Return the boxes that are closed, first to last, also those within others."""
    starts = [(match.start(), match.end()) for match in BOX.finditer(text)]
    if not starts:
        return []
    # One pass from the left knows where every brace closes; a pass from each box would be slow on many of them.
    closings: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closings[opened.pop()] = match.start()
    found = []
    for start, brace in starts:
        if brace in closings:
            found.append(Box(start, closings[brace] + 1, text[brace + 1 : closings[brace]].strip()))
        elif re.match(r"[0-9A-Za-z]", text[brace : brace + 1]) and text[brace - 1 : brace].isspace():
            found.append(Box(start, brace + 1, text[brace]))
    return found


def _box_and_alternatives(text: str) -> str | None:
    """Return the last box; with the one before it where both are one list (`\\boxed{5} or \\boxed{6}`)."""
    found = boxes(text)
    if not found:
        return None
    before, last = found[-2:] if len(found) > 1 else (None, found[-1])
    if before is not None and last.start - before.end < LONGEST_SENTENCE:
        between = text[before.end : last.start]
        if between.strip(" $") and BETWEEN_BOXES.fullmatch(between):
            return f"{before.content}, {last.content}"
    return last.content


def stated(text: str) -> Iterator[str]:
    """Yield where the answer may stand, best first: the last box, then what follows the phrasings, last first."""
    if (box := _box_and_alternatives(text)) is not None:
        yield box
    yield from sentences(text)


def sentences(text: str, longest: int = LONGEST_SENTENCE) -> Iterator[str]:
    """Yield the sentences that follow the phrasings, the last first, cut off after `longest` characters."""
    for match in list(PHRASE.finditer(text))[: -MOST_PHRASES - 1 : -1]:
        place = text[match.end() : match.end() + longest]
        if "\n" in match[0].lstrip() and (bullet := BULLET.match(place)) is not None:
            place = place[bullet.end() :]
        if sentence := first_sentence(place):
            yield sentence


def affirmed(place: str) -> str | None:
    """Return what a place says the answer is: of `not A but B`, what follows; None for `not A`."""
    if NEGATED.match(place) is None:
        return place
    corrected = CORRECTED.search(place)
    return None if corrected is None else place[corrected.end() :]


def first_sentence(text: str) -> str:
    """Return the text up to the end of its first sentence or line, without Markdown emphasis."""
    end = next(
        (found for match in STOP.finditer(text) if (found := _end_of_sentence(text, match)) is not None), len(text)
    )
    return _without_emphasis(text[:end])


def _end_of_sentence(text: str, match: re.Match[str]) -> int | None:
    """Return where a sentence ends; None where a point belongs to an abbreviation or a name, or to mathematics."""
    mark = match["end"]
    if mark is None:
        return None
    start, after = match.start(), text[match.end() : match.end() + CONTEXT]
    if mark == ".":
        before = text[max(0, start - 20) : start]
        if (short := ABBREVIATION.search(before)) is not None:
            follows = re.match(r"[ \t]+(?=\S)", after)
            if follows is None:
                return match.end() if "." in short[0] else start
            return start if SENTENCE_START.match(after, follows.end()) else None
    elif mark in "!?" and NAME_GOES_ON.match(after) and not SENTENCE_START.match(after.lstrip()):
        return None
    return start


def _without_emphasis(text: str) -> str:
    """Take Markdown's marks from around words: not from `2**10`, `*args` or `__init__`."""
    text = EMPHASIS.sub(r"\1", STRONG.sub(_unmarked, text.strip()))
    for mark in ("**", "__", "`", "*"):
        # The phrase before it has taken the other one.
        if text.endswith(mark) and text.count(mark) % 2:
            text = text.removesuffix(mark)
    if text.startswith("**") and text.count("**") == 1 and text[2:3].isspace():
        text = text[2:]
    if len(text) > 2 and text[0] == text[-1] == "`" and "`" not in text[1:-1]:
        text = text[1:-1]
    return text.strip()


def _unmarked(match: re.Match[str]) -> str:
    if match[3]:
        return match[0] if re.fullmatch(r"[a-z][a-z0-9_]*", match[4]) else match[4]
    return match[2]


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
