"""Python literals: where a response has one, and a text that values equal in Python share. Nothing is evaluated."""

import ast
import cmath
import math
import re
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from swift_edge.answers.stated import stated

LONGEST_LITERAL: Final = 20_000
"""Characters; longer literals are compared as text."""
DEEPEST_LITERAL: Final = 40
"""Brackets within brackets; deeper literals are compared as text."""
MOST_LINES: Final = 20
"""Lines looked at, from the end; as many of the phrasings that say what a program gives."""

CODE_BLOCK: Final = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
ANSWER_TAG: Final = re.compile(r"\[ANSWER\](.*?)(?:\[/ANSWER\]|\Z)", re.DOTALL)
OUTPUT: Final = re.compile(
    r"\b(?:answer|outputs?|results?|returned|return(?: value)?|returns|prints?|printed|value|yields?|equals?|gives?"
    r"|evaluates to)\b"
    r"(?:\s(?:of|for|from)\s[^\n]{1,80}?[*_]{0,2}(?:\s(?:is|are|was|will be|would be|should be)\b|\s?[:=])"
    r"|[*_]{0,2}(?:\s(?:is|are|was|will be|would be|should be|be)\b)?\s?[:=]{0,2})[*_]{0,2}[ \t]*(?:\n{1,2}[ \t]*)?"
    r"(?:(?:the|a|an)\s(?:string|list|tuple|dictionary|dict|set|value|integer|boolean|float|number)[ \t:]{1,3})?",
    re.IGNORECASE,
)
SPAN: Final = re.compile(r"`{1,3}([^`\n]{1,4000})`{1,3}")
TOKEN: Final = re.compile(
    r"[bBrRuU]{0,2}(?:'(?:\\.|[^'\\\n])*+(?:'|\Z|\n|\\)|\"(?:\\.|[^\"\\\n])*+(?:\"|\Z|\n|\\))|[()\[\]{}]", re.DOTALL
)
"""Strings, to the end of the line where they do not end, and brackets."""
SCALAR: Final = re.compile(
    r"[-+]?(?:\.?[0-9][0-9_.eEjJxXa-fA-F]*+(?:[-+][0-9.]+j)?|inf|nan)(?![\w])|True|False|None|set\(\)"
)
ARROW: Final = re.compile(r"(?:->|=>|→|⇒|\#)[ \t]*(?=\S)")
UNBOUND: Final = {"inf": math.inf, "nan": math.nan}
"""Names in what Python prints of floats that have no literal."""


def extract_literal(text: str) -> str | None:
    """Return a Python literal: the whole text, else a tag, box, phrasing, `==`, code block, or the last line."""
    first = next((place for place in _marked(text) if place.strip()), text).strip() or None
    for place in _places(text):
        candidate = place.strip()
        if not candidate:
            continue
        if _literal(candidate) is not None:
            return candidate
        if (asserted := _asserted(candidate)) is not None:
            return asserted
    return first


def canonical_literal(answer: str) -> str:
    """Write a literal so that values equal in Python have one text: `[1.0, 'a']` is `[1, 'a']`; sets are sorted.

    What is not a literal (`'a' + str(1)`) is never evaluated: it is compared as text.
    """
    value = _literal(answer.strip())
    return value if value is not None else "text:" + " ".join(answer.split())


def _places(text: str) -> Iterator[str]:
    yield text
    for place in _marked(text):
        yield place
        yield place.strip("`$ ").rstrip(".")
    for match in list(OUTPUT.finditer(text))[: -MOST_LINES - 1 : -1]:
        yield from _beginnings(text[match.end() : match.end() + LONGEST_LITERAL])
    yield from CODE_BLOCK.findall(text)[-1:]
    yield from SPAN.findall(text)[-1:]
    for line in reversed(text.splitlines()[-MOST_LINES:]):
        stripped = line.strip().strip("`")
        if (arrow := list(ARROW.finditer(stripped))[-1:]) and stripped[arrow[0].end() :]:
            yield stripped[arrow[0].end() :]
        if stripped:
            yield stripped


def _marked(text: str) -> Iterator[str]:
    """Yield where a response says that its answer stands."""
    yield from ANSWER_TAG.findall(text)[-1:]
    yield from stated(text)


def _beginnings(text: str) -> Iterator[str]:
    """Yield the literals that a text may begin with: code between backticks, brackets or a string, a number."""
    text = text.lstrip("* ")
    if (span := SPAN.match(text)) is not None:
        yield span[1]
    text = text.lstrip("`")
    if (end := _closing(text)) is not None:
        yield text[:end]
    elif (scalar := SCALAR.match(text)) is not None:
        yield scalar[0].rstrip(".")


def _closing(text: str) -> int | None:
    """Return where the string or the brackets that a text begins with end; None where it begins with neither."""
    if TOKEN.match(text) is None:
        return None
    depth = 0
    for match in TOKEN.finditer(text):
        depth += (match[0] in "([{") - (match[0] in ")]}")
        if depth <= 0:
            return match.end()
    return None


def _asserted(text: str) -> str | None:
    """Return the right side of `assert f(1) == 2` or `f(1) == 2`, where that is a literal."""
    if "==" not in text or (tree := _parsed(text)) is None:
        return None
    statement = tree.body[0] if len(tree.body) == 1 else None
    test = statement.test if isinstance(statement, ast.Assert) else getattr(statement, "value", None)
    if not (isinstance(test, ast.Compare) and isinstance(test.ops[-1], ast.Eq)):
        return None
    right = ast.get_source_segment(text, test.comparators[-1])
    return right if right is not None and _literal(right) is not None else None


def _parsed(text: str) -> ast.Module | None:
    """Return the syntax tree of a literal or an assertion; None where it is none, or is beyond the limits."""
    if len(text) > LONGEST_LITERAL or _nesting(text) > DEEPEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about "\d" in a string
            return ast.parse(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError):
        return None


def _literal(text: str) -> str | None:
    """Return the canonical text of a literal; None where it is none, or is beyond the limits."""
    tree = _parsed(text)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return None
    try:
        return _value_text(_value(tree.body[0].value))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError):
        return None


def _value(node: ast.expr) -> object:
    """Return the value of a literal, `ValueError` for all else; infinite floats as Python prints or makes them."""
    match node:
        case ast.Name(id=name) if name in UNBOUND:
            return UNBOUND[name]
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(name))], keywords=[]):
            return UNBOUND[name.strip("+-").lower()] * (-1 if name.startswith("-") else 1)
        case ast.Call(func=ast.Name(id="set"), args=[], keywords=[]):
            return set()
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id=name)) if name in UNBOUND:
            return -UNBOUND[name]
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Set(elts=items):
            return {_value(item) for item in items}
        case ast.Dict(keys=keys, values=values) if all(keys):
            return {_value(key): _value(item) for key, item in zip(keys, values, strict=True) if key is not None}
    return ast.literal_eval(node)


def _nesting(text: str) -> int:
    """Return an upper bound of how deep brackets are nested; those within strings count too."""
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _value_text(value: object) -> str:
    if isinstance(value, (bool, int, float, complex)):
        return _number_text(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_value_text, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(_value_text(item) + "," for item in value) + ")"
    if isinstance(value, set):
        return "{" + ", ".join(sorted(map(_value_text, value))) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_value_text(key)}: {_value_text(item)}" for key, item in value.items())) + ":}"
    return repr(value)


def _number_text(value: complex) -> str:
    # Numbers equal in Python hash alike, whatever their type: 1, 1.0, True and 1+0j.
    if isinstance(value, complex) and (value.imag != 0 or not cmath.isfinite(value)):
        return f"{_number_text(value.real)}+{_number_text(value.imag)}j"
    real = value.real
    if isinstance(real, float) and not math.isfinite(real):
        return repr(real)
    exact = Fraction(real)
    return hex(exact.numerator) if exact.denominator == 1 else f"{exact.numerator:x}/{exact.denominator:x}"
