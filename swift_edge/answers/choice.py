"""Letters of options, yes and no: the one that a response commits itself to.

A response that leaves several open (`A or C`, `yes and no`) is returned as it was written, and equals none of them.
"""

import re
from collections.abc import Iterator
from typing import Final

from swift_edge.answers.stated import affirmed, stated
from swift_edge.answers.typography import plain_characters

LONGEST_HEDGE: Final = 60
"""Characters that are returned of a response that names several."""
WORDS: Final = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|math(?:rm|bf|it|sf|bb|cal)|boldsymbol|bm|left|right|[,;:! ])\s*"
)
COMMAND: Final = re.compile(r"\\[A-Za-z]+\s?(?:[A-Z](?![A-Za-z]))?")
MATHEMATICS: Final = re.compile(r"[=^_+<>\\]")
WORD: Final = re.compile(r"[a-z]{3}")
LABELLED: Final = re.compile(r"\W*\(?([A-J])[).:]\s")
ALONE: Final = re.compile(r"\W*([A-Za-z])\W*")
FIRST: Final = re.compile(
    r"[\W_]*(?:(?:the\s)?(?:option|choice|answer|letter)\W{1,3})?"
    # "The answer is A" may go on with "because ...": at the start, a capital is no article; I is a pronoun.
    r"(?:([A-HJ])|(I)(?=\W*$|[.):,]|\s(?:is|because|since|as)\b)|([a-j])(?=\W*$|[.):,](?:\W|$))"
    r"|([b-hj])(?=\s(?:is|because|since|as|and|or)\b))"
    r"(?![A-Za-z0-9'’=^_]|[.\-+*/][A-Za-z0-9]|\s?[=+^*/<>])",
)
"""The letter at the start of what is stated."""
NAMED: Final = re.compile(
    r"\(([A-Ja-j])\)|(?<![A-Za-z0-9'’\\])([A-Ja-j])\)"
    r"|(?<![A-Za-z0-9'’\\^_])([A-J])(?![A-Za-z0-9'’_]|[.\-][A-Za-z0-9]|\s?[=+^<>])"
)
CHOSEN: Final = re.compile(
    r"(?<![A-Za-z])(?i:options?|choices?|choose|chose|chosen|pick|picked|select|selected|go(?:ing)? (?:with|for)|say"
    r"|letter|is|be)"
    r"[\s:*_`(\[]{1,6}([A-Ja-j])(?=[)\]*_`'\".,;:!?]|\s*$|\s(?:is|because|since|as|and|or)\b)(?![.'’][A-Za-z])"
    r"|(?:^|\n)[\s*_`(\[]{0,6}(?:([A-Ja-j])[.):\]](?=\s)|([b-hj])(?=\s(?:because|since)\b))",
)
"""A letter that the words before it, or the start of a line, make an option; lower-case letters too."""
DECIDED: Final = re.compile(
    r"(?<![A-Za-z])I(?:'d|'ll|'m| would| will| am)?\s(?:say|choose|pick|select|go with|going with)\s"
    r"(?:option\s|choice\s|answer\s)?[(*\"]{0,3}([A-Ja-j])(?=[)*\".,;:!?]|\s*$|\s(?:is|because|since|as|and|or|over|instead|rather|not)\b)"
)
LEADING: Final = re.compile(
    r"[\W_]*(?:(?:option|choice)\s)?\(?([A-HJ])(?:[.)][*_]{0,2}\s(?!(?:is|are|was|says|would|could|can|cannot|seems|states)\b"
    r"|[A-Z]\.)|\s*\n|,?\s(?:because|since|as)\b)",
)
"""An option that a text starts with, before it says why."""
OPTION_LIST: Final = re.compile(r"\n[\s*_(]{0,6}[A-J][.):]|\b(?:or|and)\s\(?[A-J][.):]")
ARTICLE: Final = re.compile(r"\s+(?!(?:is|was|as|and|or|because|since)\b)[a-z]")
"""What follows `A` where it is an article, `I` where it is a pronoun: not `A is correct`."""
SEVERAL: Final = re.compile(
    r"[)\].*'\"`$]{0,3}\s*(?:&|/|,?\s?(?<![A-Za-z])(?:and/or|and|or)(?![A-Za-z]))\s*(?:(?:maybe|perhaps|possibly|also|else|even|both|either"
    r"|option|choice|answer)\s){0,2}[(\[*'\"`$]{0,3}([A-J]|(?<=\()[a-j]|[b-hj](?=[.),]|\s*$))(?![A-Za-z0-9'’])"
    r"|[)\]]?[,;]\s{0,2}[(\[]?([A-J])[)\]]?(?:,?\s?(?:(?:and|or)\s)?[(\[]?[A-J](?![A-Za-z])[)\]]?){0,9}\s*(?:$|[.;!])"
)
"""What follows a letter that is one of several."""
LETTERS: Final = re.compile(r"[\W_]*((?!BAD|BED|ACE|AGE)[A-J]{2,5})[\W_]*")
NOT_CHOSEN: Final = re.compile(
    r"(?:\bnot|n't|n’t|\bneither|\bnor|\beliminates?|\beliminated|\brules? out)\s(?:be\s|option\s|choice\s)?[(*]{0,2}$",
    re.I,
)

YES_NO: Final = re.compile(r"(?<![\w-])(yes|no)(?!\w|['’-]\w)", re.IGNORECASE)
QUESTION: Final = re.compile(r"(?<!\w)(?:yes\s?(?:or|/|\|)\s?no|no\s?(?:or|/|\|)\s?yes)(?!\w)", re.IGNORECASE)
BOTH: Final = re.compile(
    r"(?<!\w)(?:yes\W{1,3}(?:and|but also|&)\W{1,3}no|no\W{1,3}(?:and|but also|&)\W{1,3}yes|yes, no|no, yes"
    r"|(maybe|perhaps|possibly|either|both|partly) (?:yes|no)\W{1,3}(?:(?:and|or|but)\W{1,3})?(?:\1 )?(?:yes|no)"
    r"|(?:yes|no)\W{1,3}(?:and|or)\W{1,3}(?:maybe|perhaps|possibly) (?:yes|no))(?!\s?\w)",
    re.IGNORECASE,
)
CONCLUDING: Final = re.compile(
    r"(?:^|[.!?:;\n\"“*_(\[{>—–-]|(?<![A-Za-z])(?:is|so|therefore|thus|hence|be|but|wait|actually|rather),?)"
    r"\s*[\"'“*_]{0,3}$",
    re.IGNORECASE,
)
"""Before a yes or no that revises the one that a text begins with."""
SENTENCE: Final = re.compile(
    r"(?:^|[.!?:;,\n\"“*_(\[{>—–-]|(?<![A-Za-z])(?:is|so|therefore|thus|hence|be|say|that))\s*$", re.IGNORECASE
)
ANSWERING: Final = re.compile(
    r"\W*$|\s?[^\w\s]|\n|\s+(?:I|it|its|it's|they|he|she|we|you|that|this|these|those|there|the|a|an|not|way|because|since|as|and|but|so|if"
    r"|[A-Z][a-z]+)\b"
)
"""What follows `no` where it is an answer; before other words (`no doubt`) it is a determiner."""


def extract_letter(text: str) -> str | None:
    """Return the option, upper case, in the last box, else after the usual phrasings, else the last that is named.

    Where several are left open, they are returned as they were written.
    """
    text = plain_characters(text)
    for place in stated(text):
        if (said := affirmed(place)) is not None and (letter := _letter_in(said)) is not None:
            return letter
    if (alone := ALONE.fullmatch(text)) is not None:
        return alone[1].upper()
    if (letters := LETTERS.fullmatch(text)) is not None:
        return letters[1]
    if (match := _decision(text)) is not None:
        return _committed(text, match)
    return _last_letter(text)


def _decision(text: str) -> re.Match[str] | None:
    """Return what a text says it chooses, or the option that it starts with, unless it lists the options."""
    decided = None
    for match in DECIDED.finditer(text):
        decided = match
    if decided is not None:
        return decided
    leading = LEADING.match(text)
    return None if leading is None or OPTION_LIST.search(text, leading.end(1)) else leading


def reference_letter(text: str) -> str | None:
    """Return the letter of a reference; None where it names none, or several."""
    letter = extract_letter(text)
    return letter if letter is not None and len(letter) == 1 else None


def canonical_letter(answer: str) -> str:
    """Return the letter alone: `"(b)"` and `"B."` are `"B"`."""
    letter = extract_letter(answer)
    return letter if letter is not None and len(letter) == 1 else "text:" + " ".join(answer.split()).casefold()


def _letter_in(place: str) -> str | None:
    unwrapped = re.sub(r"[{}$*]", " ", WORDS.sub(" ", place)).strip()
    if (alone := ALONE.fullmatch(unwrapped)) is not None:
        return alone[1].upper()
    if (letters := LETTERS.fullmatch(unwrapped)) is not None:
        return letters[1]
    without_commands = COMMAND.sub(" ", unwrapped)
    if without_commands != unwrapped or MATHEMATICS.search(unwrapped):
        # Mathematics has letters that are no options, but may follow one: (B) x + 1.
        if not WORD.search(without_commands):
            labelled = LABELLED.match(unwrapped)
            return labelled[1] if labelled else None
        unwrapped = without_commands.strip()
    if (match := FIRST.match(unwrapped)) is None:
        match = next((found for found in NAMED.finditer(unwrapped) if _is_option(unwrapped, found)), None)
    if match is None:
        match = CHOSEN.search(unwrapped)
    return None if match is None else _committed(unwrapped, match)


def _committed(text: str, match: re.Match[str]) -> str:
    """Return the letter of a match, or what is around it where more than one letter is left open."""
    letter = _letter_of(match)
    end = match.end() if match.re is not LEADING else match.end(1)
    listed = SEVERAL.match(text[end : end + LONGEST_HEDGE])
    if listed is not None and (listed[1] or listed[2]).upper() != letter:
        return text[match.start() : match.end() + LONGEST_HEDGE].strip()
    return letter


def _letter_of(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()


def _is_option(text: str, match: re.Match[str]) -> bool:
    # "A bat" and "I": an article and a pronoun.
    if match[3] in ("A", "I") and ARTICLE.match(text[match.end() : match.end() + 9]):
        return False
    return NOT_CHOSEN.search(text[max(0, match.start() - 20) : match.start()]) is None


def _last_letter(text: str) -> str | None:
    last = before = None
    for match in _letters(text):
        last, before = match, last
    if last is None:
        return None
    if before is not None and _letter_of(before) != _letter_of(last):
        listed = SEVERAL.match(text[before.end() : before.end() + LONGEST_HEDGE])
        if listed is not None and before.end() + listed.end() > last.start():
            return text[before.start() : last.end()].strip()
    return _committed(text, last)


def _letters(text: str) -> Iterator[re.Match[str]]:
    """Yield the options that a text names, in their order."""
    named = (match for match in NAMED.finditer(text) if _is_option(text, match))
    chosen = CHOSEN.finditer(text)
    first, second = next(named, None), next(chosen, None)
    while first is not None or second is not None:
        if second is None or (first is not None and first.end() <= second.end()):
            assert first is not None
            yield first
            first = next(named, None)
        else:
            yield second
            second = next(chosen, None)


def extract_yes_no(text: str) -> str | None:
    """Return `yes` or `no`: in the last box, else first after the usual phrasings, else the last of the text.

    Where a text begins with its answer, only what reads as a conclusion revises it (`many say yes` does not).
    `no` before a noun is no answer (`there is no doubt`). `yes and no` is returned as it was written.
    """
    text = plain_characters(text)
    for place in stated(text):
        if (found := next(_answers(place), None)) is not None:
            return found[1]
    last = None
    leads = False
    for start, answer in _answers(text):
        if last is None:
            leads = not text[:start].strip(" \n*_\"'“")
        elif leads and CONCLUDING.search(text[max(0, start - 16) : start]) is None:
            continue
        last = answer
    return last


def reference_yes_no(text: str) -> str | None:
    """Return the yes or no of a reference; None where it is neither, or both."""
    found = extract_yes_no(text)
    return found if found in ("yes", "no") else None


def canonical_yes_no(answer: str) -> str:
    """Return `yes`, `no`, or the text."""
    return reference_yes_no(answer) or "text:" + " ".join(answer.split()).casefold()


def _answers(text: str) -> Iterator[tuple[int, str]]:
    """Yield every yes and no that answers, and `yes and no` where that is said, with where it begins."""
    both = {match.start(): match[0] for match in BOTH.finditer(text)}
    skipped = [match.span() for match in (*BOTH.finditer(text), *QUESTION.finditer(text))]
    inside = {position for start, end in skipped for position in range(start, end)}
    for match in YES_NO.finditer(text):
        if match.start() in both:
            yield match.start(), both[match.start()]
        elif match.start() not in inside and _answers_here(text, match):
            opposite = re.search(r"\bnot\s[\"'*]{0,2}$", text[max(0, match.start() - 8) : match.start()], re.IGNORECASE)
            said = match[1].lower()
            yield match.start(), ("no" if said == "yes" else "yes") if opposite else said


def _answers_here(text: str, match: re.Match[str]) -> bool:
    if match[1].lower() == "yes":
        return True
    after = text[match.end() : match.end() + 30]
    if re.match(r"[\s]*[\"'*_)\]}.!?,;:]|\s*$|\s*\n", after):
        return True
    return SENTENCE.search(text[max(0, match.start() - 12) : match.start()]) is not None and (
        ANSWERING.match(after) is not None
    )
