"""From how mathematics is typed to one spelling of it: spacing, Unicode, thousands, repeating decimals, words."""

import re
import unicodedata
from typing import Final

from swift_edge.answers.expression import DEGREES, FUNCTIONS, WORD

SPACING: Final = re.compile(
    r"(\\\\)|\\(?:left|right)\s*\.|\\(?:left|right|middle|[bB]igg?[lrm]?|(?:display|text|script)style|limits|nolimits|quad|qquad|hspace\{[^{}]*\}"
    r"|mathstrut|boxed|fbox|vec|overrightarrow|hat|widehat|underline|strut|hfill|newline|rm|bf|it|cal)(?![a-zA-Z])"
    r"|\\(?:begin|end)\{(?:align|aligned|gather|gathered|equation|split|displaymath|math)\*?\}"
    r"|\\[,;:> ]|\\!|~|\$|\\\(|\\\)|\\\[|\\\]|[\u200b-\u200d\u2060\ufeff]"
)
ROW_GAP: Final = re.compile(r"\\\\\s*\[\s*-?[0-9.]+\s*(?:pt|em|ex|mm|cm|in|mu|bp|sp)\s*\]")
"""How far apart rows are: `\\\\[4pt]`."""
UNSEEN: Final = re.compile(
    r"\\(?:(?:text)?color|colorbox|[hv]?phantom|[hv]space\*?|tag\*?|label)\s*(?:\[[^\]{}]*\])?\s*\{[^{}]*\}"
)
"""Colours, gaps and labels, with what they are given."""
SYSTEM: Final = re.compile(r"\\left\s*\\(?:\{|lbrace)((?:(?!\\right\s*\\(?:\}|rbrace)).)*?)\\right\s*\.", re.DOTALL)
ONE_COLUMN: Final = re.compile(r"\\begin\s*\{array\}\s*\{[lcr\s]*\}([^&]*?=[^&]*?)\\end\s*\{array\}")
"""Equations below each other."""
DEGREE_SIGN: Final = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\^\s*\{?\s*°\s*\}?|\\degrees?(?![a-zA-Z])|\\textdegree|º")
CURRENCY: Final = re.compile(r"\\\$|[€£¥₹¢]|\\(?:pounds|euro|cents?|mathdollar|textdollar)(?![a-zA-Z])")
ALIGNED: Final = re.compile(r"&\s*(?==|<|>|\\(?:le|ge|ne|approx|equiv))|(?<=[=<>])\s*&")
WRAPPER: Final = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|normal|up|md)?|mbox|hbox|math(?:rm|bf|it|sf|cal|frak|tt|ds)|operatorname\*?|boldsymbol"
    r"|bm|pmb|unit)\s*\{([^{}]*)\}"
)
OLD_WRAPPER: Final = re.compile(r"\{\s*\\(?:rm|bf|it|tt)\s+([^{}\\]*)\}")
ORDINAL: Final = re.compile(
    r"(?<=[0-9])\s*(?:\^\s*)?(?:\{\s*)?(?:\\(?:text|mathrm|textrm|rm)\s*\{?)?\s*(?:st|nd|rd|th)\b\s*(?:\}\s*){0,2}"
)
FACTORIAL_EQUALS: Final = re.compile(r"(?<=[0-9)}])!=")
"""Not the sign of inequality: 5!=120."""
UNIT_BEFORE: Final = re.compile(
    r"\\(?:text|mathrm|textrm)\s*\{[^{}]*\}(?:\^\{?-?[0-9]\}?)?(?:\s|\\cdot|\\times|\\,|/|~)+$"
)
HALF_OF_DAY: Final = re.compile(rf"(?<=[0-9])\s*(?:{WORD})?([apAP])\.?\s?[mM]\b\.?")
"""Of a time of day: a.m., p.m."""
UNIT_LETTERS: Final = frozenset("msgLlhJNWVKCF")
"""Single letters that are a unit where they stand upright after a number."""
REPEATING: Final = re.compile(
    r"(?<![0-9])([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))(?![0-9])"
)
ELLIPSIS: Final = r"\s*(?:\.\.\.|…|\\(?:[lc]?dots|dotsc|dotsb)(?![a-zA-Z]))"
GOING_ON: Final = re.compile(rf"(?<![0-9.])([0-9]*)\.([0-9]*?)([0-9]{{1,6}}?)(\3{{2,}}){ELLIPSIS}")
BROKEN_OFF: Final = re.compile(rf"(?<![0-9.])([0-9]*\.[0-9]+){ELLIPSIS}")
ROOTS: Final = {"∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
SPACE: Final = r"(?:\s*\\[,;:!> ]\s*|~|[ \u00a0\u2009\u202f])"
THOUSANDS: Final = re.compile(
    rf"(?<![0-9.,_^])[0-9]{{1,3}}(?:(?:(?:\{{,\}}|,\\!)\s?[0-9]{{3}})+|(?:,[0-9]{{3}})+|(?:{SPACE}[0-9]{{3}})+(?!\s*/))(?![0-9])"
)
DECIMAL_GROUPS: Final = re.compile(
    rf"(?<![0-9])[0-9]*\.[0-9]{{3}}(?:{SPACE}[0-9]{{3}})+(?:{SPACE}[0-9]{{1,2}})?(?![0-9])"
)
RUNS: Final = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+|[₀-₉]+|[¼½¾⅐-⅞]|[^\x00-\x7f]")


def clean(answer: str) -> str:
    """Take out what is only typography, mark words, and write thousands and repeating decimals as plain numbers."""
    text = RUNS.sub(_plain_characters, answer.strip()) if not answer.isascii() else answer.strip()
    text = FACTORIAL_EQUALS.sub("! =", ORDINAL.sub(" ", text))
    text = THOUSANDS.sub(_join_thousands, text)
    text = DECIMAL_GROUPS.sub(lambda match: re.sub(r"[^0-9.]", "", match[0]), text)
    text = CURRENCY.sub(" ", DEGREE_SIGN.sub(DEGREES, text)).replace(r"\%", "%")
    text = ALIGNED.sub(" ", UNSEEN.sub(" ", ROW_GAP.sub(r"\\\\", text)))
    if "&" not in text:
        text = re.sub(r"\\(?:begin|end)\{cases\}", " ", SYSTEM.sub(r" \1 ", ONE_COLUMN.sub(r" \1 ", text)))
    text = OLD_WRAPPER.sub(r"\\mathrm{\1}", text)
    text = SPACING.sub(lambda match: match[1] or " ", text)
    for _ in range(3):
        text = WRAPPER.sub(_unwrap, text)
    text = HALF_OF_DAY.sub(lambda match: f" {WORD}{match[1].lower()}m ", text)
    text = GOING_ON.sub(lambda match: _repeating(match[1], match[2], match[3]), REPEATING.sub(_overlined, text))
    text = BROKEN_OFF.sub(r"\1 ", text)
    return text.strip().rstrip(".,;:").strip()


def _plain_characters(match: re.Match[str]) -> str:
    run = match[0]
    kind = unicodedata.decomposition(run[0]).partition(" ")[0]
    plain = unicodedata.normalize("NFKC", run).replace("−", "-")
    if run in ROOTS:
        return ROOTS[run]
    if kind == "<super>" and run[0] != "º":
        return f"^{{{plain}}}"
    if kind == "<sub>":
        return f"_{{{plain}}}"
    if kind == "<fraction>" and "⁄" in plain:
        above, _, below = plain.partition("⁄")
        return rf"\frac{{{above}}}{{{below}}}" if below else run
    if kind in ("<wide>", "<font>", "<compat>"):
        return plain
    digit = unicodedata.decimal(run[0], None) if len(run) == 1 else None
    return run if digit is None else str(digit)


def _join_thousands(match: re.Match[str]) -> str:
    before = match.string[: match.start()]
    inside = any(before.count(opening) > before.count(closing) for opening, closing in ("()", "[]", (r"\{", r"\}")))
    # (1,100) is a pair; (1{,}100, 2) is not.
    return match[0] if inside and re.search(r"[0-9],[0-9]", match[0]) else re.sub(r"[^0-9]", "", match[0])


def _unwrap(match: re.Match[str]) -> str:
    content = match[2].strip()
    if content in FUNCTIONS:
        return f" \\{content} "
    if "\\" in content or not re.search("[A-Za-z]", content):
        return f" {content} "
    if re.fullmatch(r"\(?[A-Za-z]\)?", content):
        upright = not match[1].endswith(("bf", "it", "cal", "frak", "symbol", "bm", "pmb"))
        before = match.string[max(0, match.start() - 60) : match.start()]
        after_number = before.rstrip(" ~")[-1:] in tuple("0123456789})") or UNIT_BEFORE.search(before)
        unit = upright and content in UNIT_LETTERS and after_number
        return f" {WORD}{content} " if unit else f" {content} "
    return (
        " "
        + " ".join(_word(piece) for piece in re.split(r"[\s,;]+|(?<=[a-zA-Z])/(?=[a-zA-Z])", content) if piece)
        + " "
    )


def _word(piece: str) -> str:
    if WORD in piece or not re.search("[A-Za-z]", piece):
        return piece
    number = re.match(r"-?[0-9.:]*[0-9](?=[A-Za-z])", piece)  # 5cm, 6:00pm
    rest = piece[number.end() :] if number else piece
    power = re.search(r"\^?[0-9]$", rest)  # cm^2
    word = re.sub(r"[^\w'-]|_", "", rest[: power.start()] if power else rest)
    return f"{number[0] if number else ''} {WORD}{word} "


def _overlined(match: re.Match[str]) -> str:
    return _repeating(match[1], match[2], match[3] or match[4])


def _repeating(whole: str, once: str, period: str) -> str:
    all_ones = 10 ** len(period) - 1
    numerator = int((whole or "0") + once) * all_ones + int(period)
    return rf" \frac{{{numerator}}}{{{all_ones * 10 ** len(once)}}} "
