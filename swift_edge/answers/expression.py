"""One LaTeX expression to its value: splits mathematics into tokens, and reads sums, fractions, roots and functions."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from swift_edge.answers import residue
from swift_edge.answers.residue import Residue

DEEPEST_NESTING: Final = 40
"""Brackets within brackets; deeper answers are compared as text."""

WORD: Final = "word:"
TOKEN: Final = re.compile(
    rf"{WORD}[^\s:]*|\\(?:begin|end)\s*\{{[a-z]+\}}|\\[a-zA-Z]+|\\.|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[a-zA-Z]+|\*\*|<=|>=|!=|\S",
    re.DOTALL,
)

COMMANDS: Final = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\div": "/", "**": "^", "·": "*", "×": "*", "÷": "/", "∕": "/",
    r"\leq": "<=", r"\le": "<=", r"\leqslant": "<=", r"\geq": ">=", r"\ge": ">=", r"\geqslant": ">=",
    r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\approx": "=", r"\equiv": "=", r"\in": r"\in",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|",
    r"\vert": "|", r"\mid": "|", r"\langle": "<(", r"\rangle": ")>", r"\infin": r"\infty", r"\varnothing": r"\emptyset",
    r"\arcsin": r"\arcsin", r"\land": "and", r"\lor": "or", "∈": r"\in", "∪": r"\cup", "∞": r"\infty", "π": r"\pi",
    "√": r"\sqrt", "≤": "<=", "≥": ">=", "≠": "!=", "±": r"\pm", "−": "-", "–": "-", "∅": r"\emptyset",
    "inf": r"\infty", "infinity": r"\infty", "pi": r"\pi", "sqrt": r"\sqrt", "frac": r"\frac", "oo": r"\infty",
}  # fmt: skip
FUNCTIONS: Final = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "max",
        "min",
        "gcd",
        "lcm",
    ]
)
UNITS: Final = frozenset(["cm", "mm", "km", "ft", "kg", "mg", "ml", "mL", "lb", "oz", "hr"])
OPENING: Final = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", "<(": ")>"}
CLOSING: Final = frozenset(OPENING.values())


class NotMathematicsError(Exception):
    """The text does not read as mathematics. Never leaves `swift_edge.answers`."""


def tokenize(text: str) -> list[str]:
    """Split into numbers, letters, commands and words, each in its one spelling."""
    tokens: list[str] = []
    for match in TOKEN.finditer(text):
        token = COMMANDS.get(match[0], match[0])
        if token.startswith(WORD) and token[len(WORD) :].casefold() in ("and", "or"):
            tokens.append(",")
        elif not token[0].isalpha() or token.startswith(WORD):
            tokens.append(token)
        elif token in ("and", "or"):
            tokens.append(",")
        elif token in FUNCTIONS:
            tokens.append("\\" + token)
        elif _is_word(token) or (token in UNITS and tokens and tokens[-1][-1].isdigit()):
            tokens.append(WORD + token)
        else:
            tokens += token
    return tokens


def _is_word(letters: str) -> bool:
    # abc and xyz are products.
    return len(letters) > 2 and not (
        len(letters) < 5 and letters.islower() and "".join(sorted(set(letters))) == letters
    )


def expression_value(tokens: list[str], point: str, sign: int = 1) -> Residue:
    """Evaluate an expression; `NotMathematicsError` where it does not read as one, `NoValueError` where it has none."""
    reader = _Reader(tokens, point, sign)
    value = reader.sum(0)
    if reader.tokens:
        raise NotMathematicsError
    return value


class _Reader:
    """Reads one expression from left to right, and evaluates it on the way.

    `tokens` are those still to be read, last first; variables are evaluated at `point`; plus-minus means `sign`.
    """

    def __init__(self, tokens: list[str], point: str, sign: int) -> None:
        self.tokens = tokens[::-1]
        self.point = point
        self.sign = sign
        self.bars = 0

    def peek(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, expected: str = "") -> str:
        if not self.tokens or (expected and self.tokens[-1] != expected):
            raise NotMathematicsError
        return self.tokens.pop()

    def sum(self, depth: int) -> Residue:
        if depth > DEEPEST_NESTING:
            raise NotMathematicsError
        value = self.product(depth)
        while self.peek() in ("+", "-", r"\pm", r"\mp"):
            value += self.signed(depth)
        return value

    def signed(self, depth: int) -> Residue:
        """A product with any signs before it."""
        sign = 1
        while self.peek() in ("+", "-", r"\pm", r"\mp"):
            sign *= {"+": 1, "-": -1, r"\pm": self.sign, r"\mp": -self.sign}[self.take()]
        value = self.product(depth)
        return value if sign > 0 else -value

    def product(self, depth: int) -> Residue:
        if self.peek() in ("+", "-", r"\pm", r"\mp"):
            return self.signed(depth)
        value = self.factor(depth)
        while True:
            if self.peek() == "*":
                self.take()
                value *= self.signed_factor(depth)
            elif self.peek() == "/":
                self.take()
                value = value / self.signed_factor(depth)
            elif self.starts_factor():
                value *= self.factor(depth)
            else:
                return value

    def signed_factor(self, depth: int) -> Residue:
        negative = self.peek() == "-"
        if negative:
            self.take()
        value = self.factor(depth)
        return -value if negative else value

    def starts_factor(self) -> bool:
        token = self.peek()
        if token == "|":
            return self.bars == 0
        return bool(token) and (token[0].isalnum() or token in ("(", "[", "{", ".") or _starts_command(token))

    def factor(self, depth: int) -> Residue:
        value = self.atom(depth)
        while self.peek() in ("^", "!", "'"):
            mark = self.take()
            if mark == "^":
                value = residue.power(value, self.argument(depth))
            else:
                value = residue.factorial(value) if mark == "!" else residue.function("prime", value)
        return value

    def argument(self, depth: int) -> Residue:
        """What a command or an exponent applies to: a group, a command, or a single digit or letter."""
        if depth > DEEPEST_NESTING:
            raise NotMathematicsError
        token = self.peek()
        if token[:1].isdigit() and len(token) > 1 and "." not in token:
            self.tokens[-1:] = token[1:], token[0]
        if token == "-":
            self.take()
            return -self.argument(depth + 1)
        return self.atom(depth + 1)

    def atom(self, depth: int) -> Residue:
        if depth > DEEPEST_NESTING:
            raise NotMathematicsError
        token = self.take()
        if token[0] in "0123456789.":
            return self.number(token)
        if token in ("(", "[", "{"):
            value = self.sum(depth + 1)
            self.take(OPENING[token])
            return value
        if token == "|":
            self.bars += 1
            value = self.sum(depth + 1)
            self.take("|")
            self.bars -= 1
            return residue.absolute(value)
        if token[0] == "\\":
            return self.command(token, depth)
        if len(token) == 1 and token.isalpha():
            return self.variable(token)
        raise NotMathematicsError

    def number(self, token: str) -> Residue:
        if not re.fullmatch(r"[0-9]*\.?[0-9]+", token) or self.peek() == "_":
            raise NotMathematicsError
        whole = residue.number(Fraction(token))
        # A mixed number: 1\frac{4}{5}; the fraction consists of plain numbers.
        ahead = "".join(self.tokens[:-12:-1])
        if "." not in token and re.match(r"\\frac(?:[1-9][1-9]|\{[0-9]+\}\{[0-9]+\}|[1-9]\{[0-9]+\})(?!\^)", ahead):
            return whole + self.atom(0)
        if "." not in token and re.match(r"[0-9]+/[0-9]+(?![0-9^.])", ahead):
            numerator, _, denominator = self.take(), self.take(), self.take()
            return whole + residue.number(Fraction(numerator)) / residue.number(Fraction(denominator))
        return whole

    def variable(self, name: str) -> Residue:
        if name == "i":
            return residue.IMAGINARY_UNIT
        if name == "e" and self.peek() != "_":
            return residue.EULER
        if self.peek() == "_":
            self.take()
            name += "_" + self.subscript()
        return residue.symbol(f"variable {name}{self.point}")

    def subscript(self) -> str:
        token = self.take()
        if token != "{":
            return token
        name = ""
        while (token := self.take()) != "}":
            if token in OPENING:
                raise NotMathematicsError
            name += token
        return name

    def command(self, name: str, depth: int) -> Residue:
        if name == r"\frac":
            numerator = self.argument(depth)
            return numerator / self.argument(depth)
        if name == r"\binom":
            upper = self.argument(depth)
            return residue.binomial(upper, self.argument(depth))
        if name == r"\sqrt":
            degree = residue.TWO
            if self.peek() == "[":
                self.take()
                degree = self.sum(depth + 1)
                self.take("]")
            return residue.root(self.argument(depth), degree)
        if name == r"\pi":
            return residue.symbol("pi")
        if name == r"\infty":
            return residue.symbol("infinity")
        if name[1:] in FUNCTIONS:
            return self.function(name[1:], depth)
        if name in NAMED_BY_COMMAND:
            return self.variable(name)
        raise NotMathematicsError

    def function(self, name: str, depth: int) -> Residue:
        """A function with its argument: `\\sin^2 x`, `\\sin 2x`, `\\log_2 (x)`."""
        base = exponent = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                exponent = self.argument(depth)
            else:
                base = self.argument(depth)
        if self.peek() in ("(", "[", "{"):
            opening = self.take()
            arguments = [self.sum(depth + 1)]
            while self.peek() == ",":
                self.take()
                arguments.append(self.sum(depth + 1))
            self.take(OPENING[opening])
        else:
            arguments = [self.factor(depth + 1)]
            while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and self.peek() not in ("(", "["):
                arguments[0] *= self.factor(depth + 1)
        value = _apply(name, arguments, base)
        return value if exponent is None else residue.power(value, exponent)


NAMED_BY_COMMAND: Final = frozenset(
    rf"\{name}"
    for name in [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
        "ell",
    ]
)


def _starts_command(token: str) -> bool:
    return (
        token in (r"\frac", r"\binom", r"\sqrt", r"\pi", r"\infty")
        or token[1:] in FUNCTIONS
        or token in NAMED_BY_COMMAND
    )


def _apply(name: str, arguments: list[Residue], base: Residue | None) -> Residue:
    if len(arguments) > 1:
        if name not in ("max", "min", "gcd", "lcm"):
            raise NotMathematicsError
        return residue.function(name, *sorted(arguments, key=lambda one: (one.real, one.imaginary)))
    (value,) = arguments
    if name in ("log", "ln"):
        logarithm = residue.logarithm(value)
        if base is None and name == "ln":
            return logarithm
        return logarithm / residue.logarithm(base if base is not None else residue.number(10))
    if base is not None:
        raise NotMathematicsError
    return SIMPLE_FUNCTIONS[name](value) if name in SIMPLE_FUNCTIONS else residue.function(name, value)


SIMPLE_FUNCTIONS: Final[dict[str, Callable[[Residue], Residue]]] = {
    "exp": lambda value: residue.power(residue.EULER, value),
    "sin": lambda value: residue.sine_cosine(value)[0],
    "cos": lambda value: residue.sine_cosine(value)[1],
    "tan": lambda value: residue.sine_cosine(value)[0] / residue.sine_cosine(value)[1],
    "cot": lambda value: residue.sine_cosine(value)[1] / residue.sine_cosine(value)[0],
    "sec": lambda value: residue.ONE / residue.sine_cosine(value)[1],
    "csc": lambda value: residue.ONE / residue.sine_cosine(value)[0],
}
