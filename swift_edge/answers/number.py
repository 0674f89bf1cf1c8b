"""Numbers: where a response states one, all that belongs to it, and an exact fraction that equal ones share.

A number is read whole: sign, currency, separators, fraction, power, `million`. What is only part of something else (one
side of a range, an hour, a factor of `3\\pi`, one of two answers) is no number and equals none. Units are dropped.
"""

import re
from fractions import Fraction
from typing import Final, NamedTuple

from swift_edge.answers.spelt import MAGNITUDES, spelt_number
from swift_edge.answers.stated import affirmed, stated
from swift_edge.answers.typography import plain_characters, without_text_commands

MOST_DIGITS: Final = 300
"""Of numbers that are computed; longer ones are compared by their digits."""
LARGEST_EXPONENT: Final = 300
"""Of ten, in 1e300."""
LONGEST_BARE: Final = 80
"""Characters of a text that is an answer and no more."""
LONGEST_CLAUSE: Final = 400
"""Characters between a number and the sign of equality that is looked for after it."""
MOST_EQUATIONS: Final = 50
"""In a row, `1 + 2 = 3 + 0 = 3`."""
CONTEXT: Final = 60
"""Characters before and after a number that say whether it is part of something else."""

# Separators of thousands, each kind by itself: 1,234.5; 1,00,000; 1 234,5; 1'234.5; 1_234; 1.234.567; 1.234,5.
_GROUPED = (
    r"[1-9][0-9]{0,2}+(?:,[0-9]{3})++(?![0-9])(?:\.[0-9]++)?"
    r"|[1-9][0-9]?+(?:,[0-9]{2}(?![0-9]))++,[0-9]{3}(?![0-9])(?:\.[0-9]++)?"
    r"|[1-9][0-9]{0,2}+(?: [0-9]{3}(?![0-9]))++(?:[.,][0-9]++)?"
    r"|[1-9][0-9]{0,2}+(?:'[0-9]{3}(?![0-9]))++(?:\.[0-9]++)?"
    r"|[0-9]{1,3}+(?:_[0-9]{3}(?![0-9]))++(?:\.[0-9]++)?"
    r"|[1-9][0-9]{0,2}+(?:(?:\.[0-9]{3}(?![0-9])){2,}+(?:,[0-9]++)?|(?:\.[0-9]{3}(?![0-9]))++,[0-9]++)(?![.0-9])"
)
# A comma before other than three digits is a decimal comma, but not in (2,3).
_COMMA = r"(?<![(\[{,])(?:0,[0-9]++|[0-9]++,(?:[0-9]{1,2}|[0-9]{4,}+)(?![0-9]))(?!,[0-9])"
_DECIMAL = rf"(?:{_GROUPED}|{_COMMA}|[0-9]++(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][-+]?[0-9]++(?![0-9A-Za-z]))?"
_POWER = r"\s?\^\s?[-+]?[0-9]++(?!\.[0-9])"
_TERM = rf"(?:{_DECIMAL})(?:\s?[×·*xX]\s?10{_POWER}|{_POWER})?"
_MIXED = r"[0-9]++(?: | and )[1-9][0-9]?\s?/\s?[0-9]++(?![0-9]*[/.])"
_CURRENCY = (
    r"(?:(?:US|CA|AU|HK|NZ|[ACRS])?[$]|[€£¥₹₩₽₺₫₱¢]|(?<![A-Za-z])(?:USD|EUR|GBP|INR|JPY|CNY|RMB|CAD|AUD|CHF|Rs\.?|RM))"
)
FACTORS: Final = MAGNITUDES | {
    "lakh": 10**5, "crore": 10**7, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "k": 10**3, "m": 10**6,
    "mn": 10**6, "b": 10**9, "bn": 10**9,
}  # fmt: skip
# A glued k is a thousand; K, M and B may be units, but not of money.
_MAGNITUDE = (
    r"(?:(?:[ -]?(?:hundred|thousand|million|billion|trillion|lakh|crore)s?(?![A-Za-z]))|\s?[万萬亿億]){1,2}"
    r"|(?<=[0-9])k(?![A-Za-z0-9])"
)
_MONEY = rf"(?:(?<=[$€£¥₹])|(?<=[$€£¥₹] ))(?:{_DECIMAL})(?:[kKmMbB]|[mM]n|[bB]n)(?![A-Za-z0-9])"
_NUMBER = rf"(?:{_MONEY}|(?:{_MIXED}|{_TERM}(?:\s?/\s?[-+]?{_TERM}){{0,9}})(?:{_MAGNITUDE})?)"
NUMBER: Final = re.compile(
    r"(?:(?<![0-9A-Za-z_^])|(?<=USD)|(?<=EUR)|(?<=GBP)|(?<=INR)|(?<=RMB)|(?<=Rs)|(?<=RM))(?<!\^[-+ ])(?<![0-9][.,])"
    rf"{_NUMBER}",
    re.IGNORECASE,
)
WHOLE: Final = re.compile(
    rf"\s*(?P<sign>-|minus\s|negative\s|\+)?\s*(?:{_CURRENCY})?\s?(?P<inner>[-+]?)\s?(?P<number>{_NUMBER})",
    re.IGNORECASE,
)
PREFIX: Final = re.compile(
    rf"(?:(?P<sign>[-+]\s?|(?<![A-Za-z])(?:minus|negative)\s))?(?:{_CURRENCY}\s?)?(?:[-+]\s?)?$", re.IGNORECASE
)
SIGNED_WORD: Final = re.compile(r"(?:^|[^\w\s)\]}-]|(?<![A-Za-z])(?:is|are|was|were|be|equals|of|to|at|by|or|and))\s*$")
"""Before a minus sign that a space follows; after other words it is a dash."""

_OPERAND = r"(?:[$€£]?\.?[0-9]|\\|\(|[A-Za-z](?![A-Za-z]))"
_SIGNED = r"[-+$€£]{0,2}\s?\.?[0-9]"
_NAMED = rf"(?:[A-Za-z]\w{{0,10}}\s?=\s?)?{_SIGNED}"
_HEDGE = r"(?:(?:either|maybe|perhaps|possibly|also|even|about|else|negative|minus)\s){0,2}"
_HARMLESS = (
    r"\\(?:text|math|mbox|hbox|quad|qquad|circ|degree|approx|sim|implies|therefore|because|to|rightarrow|Rightarrow"
    r"|boxed|fbox|framebox|displaystyle|left|right|euro|pounds|dots|ldots|cdots|item|end|begin|square|checkmark"
    r"|n(?![a-z]))"
)
_CUBED = r"(?:mm|cm|dm|m|km|in|inch|inches|ft|yd|mi)[23](?![0-9])"
_MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]{0,6}\.?"
_MEASURES = (
    r"(?:hours?|hrs?|h|minutes?|mins?|m|weeks?|days?|years?|months?|feet|foot|ft|pounds?|lbs?|kg|km|kilograms?"
    r"|kilomet(?:er|re)s?|'|dollars?|°)"
)
AFTER: Final = re.compile(
    rf"""
      \s?(?!{_HARMLESS})\\[A-Za-z] | \.\\[A-Za-z] | \s?[πτ√∞]        # 3\pi, 2\sqrt{{3}}, 0.\overline{{3}}
    | (?!x\s+[a-z]{{2}})[abeijnqruvxyz](?![A-Za-z0-9'’.]|\.[A-Za-z0-9])  # 5x, but 3x as many
    | \s[xyz]\s*(?:$|[-+*^=)}}$])
    | (?!{_CUBED})[A-Za-z]{{1,3}}[0-9]                                # 4x4, 0x1F, but 5cm2
    | (?-i:[KMB])(?![A-Za-z0-9])                                      # kelvin or thousand
    | \s?[-~]\s?[$€£]?\.?[0-9] | —\s?[0-9] | \s?-\s?[xyzn](?![A-Za-z])  # ranges and differences
    | \s?(?:[±×÷·]|\+/?-?)\s?{_OPERAND} | \*(?!\*)[0-9(A-Za-z\\] | \s\*\s{_OPERAND}
    | \s?x\s?[0-9] | \s(?:minus|plus|times|divided\sby|multiplied\sby)\s[0-9]
    | \s?\^(?!\s?\{{?\s?(?:\\circ|°)) | \s?/\s?(?:[(0-9\\]|[xyzn](?![A-Za-z])) | !\s?[*/+}})^]
    | \([-+]?(?:[0-9]|[xyzn](?![A-Za-z])) | \)\s?(?:\^|[*/×·]\s?[0-9(]|\()
    | :[0-9] | \s:\s[0-9] | [.,'][0-9] | _[0-9A-Za-z{{]               # times, versions, bases
    | \s?(?:[<>≤≥≠]=?|!=)\s?[A-Za-z0-9\\]
    | \s(?:squared|cubed)(?!\s(?!is\b|equals\b|plus\b|minus\b|times\b)[A-Za-z])  # not 25 squared units
    | \s(?:factorial\b|to\sthe\s(?:\w+\s)?power\b)
    | ,?\s(?:(?:with\s)?(?:an?\s)?remainder\b|r\s?[0-9]) | \smod(?:ulo)?\s[0-9]
    | \s(?:more|less|fewer)\sthan\s[$€£]?\.?[0-9] | \s(?:halves|thirds|fifths|sixths|eighths|tenths)\b
    | (?:st|nd|rd|th)?\s(?:of\s)?{_MONTH},?\s[0-9]
    """,
    re.IGNORECASE | re.ASCII | re.VERBOSE,
)
"""What makes the number before it part of something else."""
LISTED: Final = re.compile(
    rf"""
      [\s*$%°)]{{0,4}}(?:\s?[;&|] | ,?\s?(?<![A-Za-z])(?:\(\s?or|and|or|and/or|to|through|versus|vs\.?)\s)\s?
      {_HEDGE}{_NAMED}
    | [*$%°]{{0,4}}\s?,\s{{0,2}}{_NAMED}[0-9.,]{{0,20}}[$%°*}}\])\\]{{0,4}}\s*(?:$|[,;.)\]}}!]|(?:and|or)\b)
    | ,\s{{0,2}}(?:[A-Za-z]\w{{0,10}}\s?=\s?[-+]?[0-9] | [-+]?(?:\\infty|∞) | [a-z]\))
    | \s?[A-Za-z%°$]{{1,15}}(?:\s[A-Za-z]{{1,15}})?,?\s(?:and|or|and/or)\s{_HEDGE}{_SIGNED}
    | \s?{_MEASURES},?\s?(?:and\s)?[0-9] | \s?[A-Za-z]{{1,15}}\s[x×]\s[0-9] | \sand\sa\s(?:half|third|quarter)
    | [ \t][-+$€£]?\.?[0-9]
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What follows a number that is one of several: `5, 6`, `5 or 6`, `1 hour 30 minutes`."""
BEFORE: Final = re.compile(
    rf"""(?:
      (?!{_HARMLESS})\\[A-Za-z]++(?:_\S{{1,4}}\s)?\s?[{{(\[]?\s? | \}}\s?\{{ | [√±∓∛π]\s?\(?
    | (?<![A-Za-z])(?:sqrt|log|ln|lg|sin|cos|tan|exp|abs)\s?\(?\s?
    | [0-9A-Za-z)\]}}π](?:[/×·÷]|\*)\(? | [0-9A-Za-z)\]}}π]\s?(?:[/×·÷~]|\*\*?|\sx)\s\(? | [0-9](?:[x~—])
    | (?<![A-Za-z])[A-Za-z]\( | [0-9)\]}}]\(
    | [0-9]\s?: | [0-9][.,'_]
    | [A-Za-z0-9)}}]\s?(?:[<>≤≥≠]=?|!=)\s? | (?:^|[ (])[<>≤≥≠]=?\s?
    | [0-9][$%°)]{{0,3}}\s(?:\(?or|to|through|and)\s\$? | [0-9]\s?[A-Za-z]{{1,12}}\sor\s\$?
    | (?<![A-Za-z])(?:(?:square|cube|cubic)\sroot\sof|half\sof|twice|double|triple)\s[$€£]?
    | (?<![A-Za-z])between\s[^.]{{1,20}}\sand\s
    | [0-9]\s?{_MEASURES},?\s(?:and\s)?
    | (?<![A-Za-z]){_MONTH}\s[0-9]{{1,2}}(?:st|nd|rd|th)?,?\s
    | (?:n't|\bnot)\s(?:be\s)?
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
"""What makes the number after it part of something else."""
_SIZE = r"[$€£]?\.?[0-9][0-9.,/]{0,20}"
SPAN: Final = re.compile(
    rf"(?<![0-9A-Za-z.,])[-+]?{_SIZE}\s?(?P<unit>%|°[CF]?|[A-Za-z]{{1,15}})"
    rf"(?:\s?[-~—]\s?|,?\s(?:to|through)\s)[-+]?{_SIZE}\s?(?P=unit)(?![A-Za-z])"
    rf"|(?<![0-9A-Za-z.,])[-+]?{_SIZE}(?:[%°]-|-to-|\.{{2,3}}){_SIZE}",
    re.IGNORECASE,
)
"""A range with its unit at both ends, `5 kg to 10 kg`; where only the first has one, a dash may be a dash."""
OPERAND_BEFORE: Final = re.compile(r"(?:[0-9)\]}!%]|(?<![A-Za-z])[A-Za-z]|\\[A-Za-z]+)\s?$")
"""Before a sign: it stands between two operands."""
CLAUSE_END: Final = re.compile(
    r"[,;](?=\s|$)|\s\((?=\s?[A-Za-z=]{2})|\b(?:because|since|as|if|when|where|while|which|so|given|but|assuming|with)\b|\n"
)
_ARGUMENT = r"(?:\{\s?([-+]?[0-9.,]{1,99})\s?\}|([0-9]))"
_NUMERATOR = r"(?:\{\s?([-+]?[0-9.,/]{1,99})\s?\}|([0-9]))"
LATEX_FRACTION: Final = re.compile(
    rf"((?<![0-9])[0-9]{{1,20}}\s?)?\\[dtc]?frac\s?{_NUMERATOR}\s?{_ARGUMENT}(?![0-9]*[}}^])"
)
TAG: Final = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,15}/?>")
LAYOUT: Final = re.compile(r"(\\\\)|\\(?:left|right|displaystyle|,|;|:| )(?![A-Za-z])|(?<=[0-9])~(?=[0-9])")
BRACED: Final = re.compile(r"(?<![\\}])\{\s?([-+]?[0-9][0-9.,]*+)\s?\}")
STARS: Final = re.compile(r"(?<=[0-9])(?:\*\*| \*\* )(?=[-+]?[0-9])")
BRACKETED_POWER: Final = re.compile(r"\^\s?\(\s?([-+]?[0-9]++)\s?\)")
STARTS: Final = re.compile(
    r"[\s*_$(\[{<>#]*+(?:[-+]\s?|minus\s|negative\s|USD\s?|EUR\s?)?[$€£¥₹]?\s?[-+]?\.?[0-9]", re.IGNORECASE
)
SAYS_MORE: Final = re.compile(r"[.!?]\s|\b(?:is|are|was|equals|makes|leaves|remain|so)\b")
REMARK: Final = re.compile(r"(?:[ \t]?[A-Za-z%°^*²³/0-9.$]{1,20}){0,3}?[ \t.!*$]*(?:\n\s*)?\(")
"""After a number that starts the text: a unit, and a remark in brackets."""


class Found(NamedTuple):
    """What a place says in numbers."""

    shown: str
    single: bool
    """Whether it is one number and no part of something else; else it is shown with what is around it."""


def extract_number(text: str) -> str | None:
    """Return the number that a response answers, in plain characters, with what is read as part of it.

    It is in the last box, else after the usual phrasings, else the last number of the text. Where that is several
    numbers, or only part of something (`5 or 6`, `3\\pi`), that is returned, and equals no number.
    """
    found = _answered(text)
    # Out of its place, a part may read as a number, which it is not.
    return None if found is None or (not found.single and _is_number(found.shown)) else found.shown


def reference_number(text: str) -> str | None:
    """Return the number of a reference, read as a response is; None where that is no single number."""
    found = _answered(text)
    return found.shown if found is not None and found.single and _is_number(found.shown) else None


def canonical_number(answer: str) -> str:
    """Write a number as an exact fraction: `"$1,234.50"` is `"2469/2"`. Percent signs and units are dropped."""
    found = _answer_in(readable(answer))
    value = _value(found.shown) if found is not None and found.single else None
    return value if value is not None else "text:" + " ".join(answer.split())


def _is_number(answer: str) -> bool:
    return not canonical_number(answer).startswith("text:")


def _answered(text: str) -> Found | None:
    for place in stated(text):
        if (said := affirmed(place)) is not None and (found := _answer_in(readable(said))) is not None:
            return found
    plain = readable(text)
    if _is_bare(plain):
        return _answer_in(plain)
    last = None
    for match in NUMBER.finditer(plain):
        last = match
    return _answer_in(plain) if last is None else _checked(plain, last, in_place=False)


def readable(text: str) -> str:
    """Write minus signs, digits, fractions, powers and LaTeX around numbers in plain characters."""
    text = plain_characters(text)
    if "<" in text:
        text = TAG.sub(" ", text)
    if "\\" in text or "{" in text:
        text = text.replace("\\$", "$").replace("\\%", "%").replace("\\!", "").replace("{,}", ",").replace("{.}", ".")
        text = LAYOUT.sub(lambda match: match[1] or " ", text)
        text = text.replace("\\times", "×").replace("\\cdot", "·").replace("\\div", "÷")
        text = re.sub(" {2,}", " ", without_text_commands(text))
        text = LATEX_FRACTION.sub(_plain_fraction, LATEX_FRACTION.sub(_plain_fraction, text))
        text = BRACED.sub(r"\1", text)
    return BRACKETED_POWER.sub(r"^\1", STARS.sub("^", text))


def _plain_fraction(match: re.Match[str]) -> str:
    numerator, denominator = (match[2] or match[3]).strip(), (match[4] or match[5]).strip()
    return f"{match[1].strip()} {numerator}/{denominator}" if match[1] else f"{numerator}/{denominator}"


def _is_bare(plain: str) -> bool:
    """Tell whether a text is an answer and no more, or one with a remark in brackets; it starts with its number."""
    stripped = plain.strip()
    if not (start := STARTS.match(stripped)):
        return False
    if len(stripped) <= LONGEST_BARE and "\n" not in stripped and not SAYS_MORE.search(stripped):
        return True
    number = NUMBER.search(stripped, max(0, start.end() - 2))
    return number is not None and REMARK.match(stripped[number.end() : number.end() + CONTEXT]) is not None


def _answer_in(plain: str) -> Found | None:
    """Return the number that a place states: its first, or the result of an equation that starts with it."""
    match = NUMBER.search(plain)
    if match is None:
        spelt = spelt_number(plain)
        return None if spelt is None else Found(str(spelt), single=True)
    for _ in range(MOST_EQUATIONS):
        if LISTED.match(_after(plain, match)):
            return _around(plain, match)
        longest = match.end() + LONGEST_CLAUSE
        ending = CLAUSE_END.search(plain, match.end(), longest)
        equals = plain.find("=", match.end(), ending.start() if ending else longest)
        result = NUMBER.search(plain, equals) if equals >= 0 else None
        if result is None:
            break
        match = result
    return _checked(plain, match, in_place=True)


def _after(plain: str, match: re.Match[str]) -> str:
    return plain[match.end() : match.end() + CONTEXT]


def _around(plain: str, match: re.Match[str]) -> Found:
    return Found(plain[max(0, match.start() - CONTEXT) : match.end() + CONTEXT].strip(), single=False)


def _checked(plain: str, match: re.Match[str], *, in_place: bool) -> Found:
    """Return a number with its sign and currency; with its surroundings where it is only part of something."""
    before = plain[max(0, match.start() - CONTEXT) : match.start()]
    prefix = PREFIX.search(before)
    assert prefix is not None
    rest, sign = before[: prefix.start()], prefix["sign"]
    start = match.start() - len(before) + prefix.start()
    if sign and OPERAND_BEFORE.search(rest):
        return _around(plain, match)
    if sign and re.search(r"[A-Za-z-]$", rest):  # covid-19, a dash
        start, rest = match.start(), ""
    elif sign and sign[0] in "-+" and sign[-1].isspace():
        bullet = not in_place and rest.endswith("\n")
        if bullet or not SIGNED_WORD.search(rest):
            start, rest = match.start(), ""
    if BEFORE.search(rest) or AFTER.match(_after(plain, match)) or _in_span(plain, match):
        return _around(plain, match)
    return Found(plain[start : match.end()], single=True)


def _in_span(plain: str, match: re.Match[str]) -> bool:
    """Tell whether a number is an end of a range."""
    first, last = max(0, match.start() - CONTEXT), match.end() + CONTEXT
    return any(span.start() < match.end() and match.start() < span.end() for span in SPAN.finditer(plain, first, last))


def _value(text: str) -> str | None:
    """Return a number as an exact fraction, a very long one as its digits; None where it is none."""
    whole = WHOLE.fullmatch(text)
    if whole is None:
        return None
    sign = (whole["sign"] or "").strip().lower()
    negative = (sign in ("-", "minus", "negative")) != (whole["inner"] == "-")
    number, magnitude = _magnitude(whole["number"])
    try:
        value = _mixed(number) * magnitude
    except (ValueError, ZeroDivisionError, OverflowError):
        digits = _digits(number)
        return None if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", digits) is None else "digits:" + "-" * negative + digits
    return str(-value if negative else value)


def _magnitude(number: str) -> tuple[str, int]:
    """Split `5 million` into the number and what it counts."""
    factor = 1
    while match := re.search(r"[ -]?([A-Za-z万萬亿億]+)$", number):
        factor *= FACTORS[match[1].lower().removesuffix("s")]
        number = number[: match.start()].rstrip()
    return number, factor


def _mixed(number: str) -> Fraction:
    if re.fullmatch(_MIXED, number) is None:
        return _quotient(number)
    whole, _, fraction = number.replace(" and ", " ", 1).partition(" ")
    part = _quotient(fraction)
    if part >= 1:
        raise ValueError
    return _decimal(whole) + part


def _quotient(text: str) -> Fraction:
    first, *divisors = (part.strip() for part in text.split("/"))
    # 12/25/2024 is a day.
    if len(divisors) == 2 and (len(first) == 4 or len(divisors[1]) == 4):
        raise ValueError
    value = _term(first)
    for divisor in divisors:
        value /= -_term(divisor[1:].strip()) if divisor.startswith("-") else _term(divisor.removeprefix("+").strip())
    return value


def _term(text: str) -> Fraction:
    base, _, exponent = text.partition("^")
    if not exponent:
        return _decimal(base)
    if scientific := re.fullmatch(r"(.+?)\s?[×·*xX]\s?10", base.strip()):
        return _decimal(scientific[1]) * _power(Fraction(10), int(exponent.strip()[:9]))
    return _power(_decimal(base), int(exponent.strip()[:9]))


def _power(base: Fraction, exponent: int) -> Fraction:
    if base in (0, 1):
        return base ** max(-1, min(1, exponent))
    if max(len(str(base.numerator)), len(str(base.denominator))) * abs(exponent) > 2 * LARGEST_EXPONENT:
        raise ValueError
    return base**exponent


def _digits(text: str) -> str:
    """Write a decimal with a point and without separators and zeros that say nothing."""
    text = re.sub("[ '_]", "", text)
    if "." in text and "," in text:
        text = text.replace(".", "").replace(",", ".") if text.index(".") < text.index(",") else text.replace(",", "")
    elif text.count(".") > 1:
        text = text.replace(".", "")
    elif re.fullmatch(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}", text):
        text = text.replace(",", "")
    whole, _, part = text.replace(",", ".").partition(".")
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{part}" if part else "")


def _decimal(text: str) -> Fraction:
    mantissa, _, exponent = text.strip().lower().partition("e")
    digits = _digits(mantissa)
    if len(digits) > MOST_DIGITS or len(exponent) > 9 or abs(int(exponent or 0)) > LARGEST_EXPONENT:
        raise ValueError
    return Fraction(digits) * (Fraction(10) ** int(exponent or 0))
