"""LaTeX mathematics to a text that equal answers share: `\\frac{1}{2}`, `0.5` and `.50` all come to `1/2`.

Structure (lists, tuples, intervals, unions, matrices, equations, words) is read here, each expression in it by
`expression`. Whatever does not read as mathematics is compared as text. The work is bounded by the length and the
depth that are accepted, both checked first.

Conventions, those of the MATH data: degrees, percent signs, currency and units after a number are dropped, so `50\\%`
is 50 and not 0.5; `x = 5` is 5 and `y = 2x + 3` is 2x + 3; other equations are equal when one is a multiple of the
other; lists and sets have no order; decimals are exact, 0.33 is not 1/3.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Final

from swift_edge.answers.expression import (
    CLOSING,
    DEEPEST_NESTING,
    OPENING,
    WORD,
    NotMathematicsError,
    expression_value,
    tokenize,
)
from swift_edge.answers.residue import NoValueError

LONGEST_ANSWER: Final = 2000
"""Characters; longer answers are compared as text."""
SPACING: Final = re.compile(
    r"(\\\\)|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|quad|qquad|hspace\{[^{}]*\}|mathstrut)(?![a-zA-Z])"
    r"|\\[,;:> ]|\\!|~|\$|\\\(|\\\)|\\\[|\\\]"
)
DROPPED: Final = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°|\\?%|\\\$|[$€£]")
WRAPPER: Final = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|math(?:rm|bf|it|sf|cal|bb|frak)|operatorname\*?|boldsymbol|bm)\s*"
    r"\{([^{}]*)\}"
)
REPEATING: Final = re.compile(r"(?<![0-9])([0-9]*)\.([0-9]*)\\(?:overline|bar)\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))")
THOUSANDS: Final = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:\{,\}|,\\!|,)\s?[0-9]{3})+(?![0-9])")
RELATIONS: Final = frozenset(["=", "<", ">", "<=", ">=", "!=", r"\in"])


@lru_cache(maxsize=4096)
def canonical_latex(answer: str) -> str:
    """Return a text that two answers share exactly when they count as equal.

        canonical_latex(r"\\frac{\\sqrt{8}}{4}") == canonical_latex(r"\\dfrac{1}{\\sqrt2}")

    Never raises, and takes time in proportion to the length of the answer.
    """
    if len(answer) > LONGEST_ANSWER:
        return "text:" + " ".join(answer.split())
    cleaned = _clean(answer)
    try:
        tokens = tokenize(cleaned)
        return _structure(tokens, "", 0)
    except (NotMathematicsError, NoValueError):
        plain = re.sub(rf"{WORD}|[{{}}\s\\]", "", cleaned).casefold()
        return "text:" + plain.strip("().,;:")


def _clean(answer: str) -> str:
    """Take out what is only typography, mark words, and write thousands and repeating decimals as plain numbers."""
    text = answer.strip()
    for superscript in re.findall("[⁰¹²³⁴-⁹]+", text):
        text = text.replace(superscript, "^{" + unicodedata.normalize("NFKC", superscript) + "}", 1)
    if re.fullmatch(r"\\?\$\s*[0-9][0-9,.]*", text):
        text = text.lstrip("\\$ ")
    text = THOUSANDS.sub(_join_thousands, text)
    text = DROPPED.sub(" ", text)
    text = SPACING.sub(lambda match: match[1] or " ", text)
    for _ in range(3):
        text = WRAPPER.sub(_unwrap, text)
    text = REPEATING.sub(_repeating, text)
    return text.strip().rstrip(".,;:").strip()


def _join_thousands(match: re.Match[str]) -> str:
    before = match.string[: match.start()]
    inside = any(before.count(opening) > before.count(closing) for opening, closing in ("()", "[]", (r"\{", r"\}")))
    # (1,100) is a pair; (1{,}100, 2) is not.
    return match[0] if inside and re.search(r"[0-9],\s?[0-9]", match[0]) else re.sub(r"[^0-9]", "", match[0])


def _unwrap(match: re.Match[str]) -> str:
    content = match[1].strip()
    if re.fullmatch(r"\(?[A-Za-z]\)?", content) or not re.search("[A-Za-z]", content):
        return f" {content} "
    words = re.split(r"[\s:]+", re.sub(r"[(),.;]", " ", content).strip())
    return " " + " ".join(word if WORD in word else WORD + word for word in words) + " "


def _repeating(match: re.Match[str]) -> str:
    period = match[3] or match[4]
    all_ones = 10 ** len(period) - 1
    numerator = int((match[1] or "0") + match[2]) * all_ones + int(period)
    return rf" \frac{{{numerator}}}{{{all_ones * 10 ** len(match[2])}}} "


def _split(tokens: list[str], separators: frozenset[str]) -> tuple[list[list[str]], list[str]]:
    """Split at separators outside all brackets; return the parts and the separators between them."""
    parts: list[list[str]] = [[]]
    between, open_brackets, environments = [], 0, 0
    for token in tokens:
        open_brackets += (token in OPENING) - (token in CLOSING)
        environments += token.startswith(r"\begin") - token.startswith(r"\end")
        if token in separators and open_brackets == 0 and environments == 0:
            parts.append([])
            between.append(token)
        else:
            parts[-1].append(token)
    return parts, between


def _structure(tokens: list[str], point: str, depth: int) -> str:
    """Return the canonical text of anything that an answer can be."""
    if not tokens or depth > DEEPEST_NESTING:
        raise NotMathematicsError
    if all(token.startswith(WORD) for token in tokens):
        return "text:" + "".join(token[len(WORD) :] for token in tokens).casefold()
    tokens = _without_units(tokens)
    if (bracketed := _bracketed(tokens, point, depth)) is not None:
        return bracketed
    parts, _ = _split(tokens, frozenset([",", ";"]))
    if len(parts) > 1:
        return _list(parts, point, depth)
    parts, _ = _split(tokens, frozenset([r"\cup"]))
    if len(parts) > 1:
        return r"union " + " ".join(sorted({_structure(part, point, depth + 1) for part in parts}))
    parts, relations = _split(tokens, RELATIONS)
    if relations:
        return _related(parts, relations, point, depth)
    parts, _ = _split(tokens, frozenset([":"]))
    if len(parts) > 1:
        first = expression_value(parts[0], point)
        return "ratio " + " ".join((expression_value(part, point) / first).text() for part in parts)
    return _expression(tokens, point)


def _without_units(tokens: list[str]) -> list[str]:
    """Drop the words after an expression, with the exponent of square and cubic units."""
    end = len(tokens)
    while end > 1:
        if tokens[end - 1].startswith(WORD):
            end -= 1
        elif end > 2 and tokens[end - 2] == "^" and tokens[end - 3].startswith(WORD):
            end -= 3
        elif end > 4 and tokens[end - 4] == "^" and tokens[end - 1] == "}" and tokens[end - 5].startswith(WORD):
            end -= 5
        else:
            break
    return tokens[:end] if (end and not tokens[0].startswith(WORD)) or r"=" in tokens[:end] else tokens


def _bracketed(tokens: list[str], point: str, depth: int) -> str | None:
    """Read a set, tuple, interval or matrix that is the whole of the answer."""
    if tokens[0].startswith(r"\begin"):
        return _matrix(tokens, point, depth)
    if tokens[0] not in OPENING or tokens[-1] not in CLOSING or len(tokens) < 2:
        return None
    open_brackets = 0
    for token in tokens[:-1]:
        open_brackets += (token in OPENING) - (token in CLOSING)
        if open_brackets == 0:
            return None
    inner = tokens[1:-1]
    if tokens[0] == "{":
        return _structure(inner, point, depth + 1)
    if tokens[0] == r"\{":
        return r"\emptyset" if not inner else _list(_split(inner, frozenset([",", ";"]))[0], point, depth)
    parts, _ = _split(inner, frozenset([",", ";"]))
    if len(parts) == 1:
        return _structure(inner, point, depth + 1)
    items = ", ".join(_structure(part, point, depth + 1) for part in parts)
    if len(parts) == 2 and tokens[0] != "<(":
        return f"{tokens[0]}{items}{tokens[-1]}"
    return f"({items})"


def _matrix(tokens: list[str], point: str, depth: int) -> str | None:
    name = re.fullmatch(r"\\begin\s*\{([a-z]*matrix|array)\}", tokens[0])
    if name is None or tokens[-1] != rf"\end{{{name[1]}}}" or any(token.startswith(r"\begin") for token in tokens[1:]):
        return None
    body = tokens[1:-1]
    if name[1] == "array" and body[:1] == ["{"] and "}" in body:
        body = body[body.index("}") + 1 :]
    rows = [row for row in _split(body, frozenset(["\\\\"]))[0] if row]
    cells = [[_structure(cell, point, depth + 1) for cell in _split(row, frozenset(["&"]))[0]] for row in rows]
    return f"{'determinant' if name[1] == 'vmatrix' else 'matrix'} " + "; ".join(", ".join(row) for row in cells)


def _list(parts: list[list[str]], point: str, depth: int) -> str:
    parts = [part for part in parts if part]
    names = {part[0] for part in parts if len(part) > 2 and part[1] == "=" and part[0].isalpha()}
    items: set[str] = set()
    for part in parts:
        if len(names) > 1 and len(part) > 2 and part[1] == "=":
            items.add(part[0] + "=" + _structure(part[2:], point, depth + 1))
            continue
        text = _structure(part, point, depth + 1)
        items.update(text[1:-1].split(" | ") if text.startswith("{") else [text])
    return _set(items)


def _set(items: set[str]) -> str:
    return items.pop() if len(items) == 1 else "{" + " | ".join(sorted(items)) + "}"


def _related(parts: list[list[str]], relations: list[str], point: str, depth: int) -> str:
    """Read equations and inequalities."""
    if relations == [r"\in"] and len(parts[0]) == 1:
        return _structure(parts[1], point, depth + 1)
    if set(relations) == {"="}:
        named = _is_name(parts[0]) and not (len(parts[0]) == 1 and parts[0][0] in parts[1])
        if named or len(parts) > 2:
            return _structure(parts[-1], point, depth + 1)
        # Equal up to a factor: the ratio of the difference of both sides at two points does not see the factor.
        here, there = (
            expression_value(parts[0], where) - expression_value(parts[1], where) for where in (point, point + "'")
        )
        return "equation " + (here / there).text()
    ascending = all(relation in ("<", "<=") for relation in relations)
    if not ascending and not all(relation in (">", ">=") for relation in relations):
        if relations == ["!="] and _is_name(parts[0]):
            return "not " + _structure(parts[1], point, depth + 1)
        raise NotMathematicsError
    if not ascending:
        parts, relations = parts[::-1], [relation.replace(">", "<") for relation in relations[::-1]]
    if len(parts) == 3 and _is_name(parts[1]):
        low, high = parts[0], parts[2]
    elif len(parts) == 2 and _is_name(parts[0]):
        low, high, relations = ["-", r"\infty"], parts[1], ["<", *relations]
    elif len(parts) == 2 and _is_name(parts[1]):
        low, high, relations = parts[0], [r"\infty"], [*relations, "<"]
    else:
        raise NotMathematicsError
    brackets = "(["[relations[0] == "<="], ")]"[relations[1] == "<="]
    return f"{brackets[0]}{_expression(low, point)}, {_expression(high, point)}{brackets[1]}"


def _is_name(tokens: list[str]) -> bool:
    """Tell whether this is what a result is called: `x`, `x_1`, `f(x)`, `\\theta`, a few words."""
    if not tokens:
        return True
    if all(token.startswith(WORD) for token in tokens):
        return True
    first = tokens[0]
    if not (len(first) == 1 and first.isalpha()) and first not in (
        r"\theta",
        r"\alpha",
        r"\beta",
        r"\angle",
        r"\lambda",
    ):
        return False
    rest = "".join(tokens[1:])
    return re.fullmatch(r"(?:_[a-zA-Z0-9]|_\{[a-zA-Z0-9]+\})?(?:\^\{-1\})?(?:\([a-zA-Z]\))?", rest) is not None


def _expression(tokens: list[str], point: str) -> str:
    if r"\pm" in tokens or r"\mp" in tokens:
        return _set({expression_value(tokens, point, sign).text() for sign in (1, -1)})
    if tokens == [r"\emptyset"]:
        return r"\emptyset"
    return expression_value(tokens, point).text()
