"""One LaTeX expression to a tree: splits it into tokens, and reads sums, fractions, roots, functions, matrices.

What a tree is worth is `value`'s affair.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, TypeAlias

from swift_edge.answers.spelt import MAGNITUDES

DEEPEST_NESTING: Final = 40
"""Brackets within brackets; deeper answers are compared as text."""
MOST_MARKS: Final = 8
"""Exponents and exclamation marks after one another."""
MOST_CELLS: Final = 400
"""Of a matrix."""
LARGEST_EXPONENT: Final = 300
"""Of ten, in 1e300."""

WORD: Final = "word:"
DEGREES: Final = "°"
TOKEN: Final = re.compile(
    rf"{WORD}[^\s:]*|\\(?:begin|end|mathbb)\s*\{{[a-zA-Z]+\*?\}}|\\[a-zA-Z]+|\\."
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+(?![0-9a-zA-Z.^_{])"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[a-zA-Z]+|\*\*|<=|>=|!=|=>|:=|==|\.\.\.|\S",
    re.DOTALL,
)

COMMANDS: Final = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\bullet": "*", r"\div": "/", "·": "*", "×": "*", "⋅": "*", "∙": "*",
    "÷": "/", "∕": "/", "⁄": "/", r"\slash": "/",
    r"\leq": "<=", r"\le": "<=", r"\leqslant": "<=", r"\geq": ">=", r"\ge": ">=", r"\geqslant": ">=",
    r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", "≈": r"\approx", r"\simeq": r"\approx", r"\sim": r"\approx",
    r"\cong": "=", ":=": "=", "==": "=", "≡": r"\equiv", r"\coloneqq": "=", r"\doteq": r"\approx",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|",
    r"\vert": "|", r"\mid": "|", r"\langle": "<(", r"\rangle": ")>", r"\infin": r"\infty", r"\varnothing": r"\emptyset",
    r"\|": "|", r"\lVert": "|", r"\rVert": "|", r"\Vert": "|", "⟨": "<(", "⟩": ")>",
    r"\setminus": "\\setminus", r"\backslash": "\\setminus", "∖": "\\setminus",
    r"\implies": "=>", r"\Rightarrow": "=>", r"\Longrightarrow": "=>", r"\iff": "=>", r"\Leftrightarrow": "=>",
    r"\therefore": "=>", "⇒": "=>", "⟹": "=>", "∴": "=>",
    r"\wedge": r"\land", r"\vee": r"\lor", "∈": r"\in", "∪": r"\cup", "∩": r"\cap", "∞": r"\infty", "π": r"\pi",
    "√": r"\sqrt", "≤": "<=", "≥": ">=", "⩽": "<=", "⩾": ">=", "≠": "!=", "±": r"\pm", "∓": r"\mp", "−": "-", "–": "-",
    "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "∅": r"\emptyset", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "∑": r"\sum", "∏": r"\prod", r"\degree": DEGREES, "′": "'", r"\prime": "'", r"\varphi": r"\phi", "φ": r"\phi",
    "θ": r"\theta", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "λ": r"\lambda", "μ": r"\mu", "σ": r"\sigma",
    "ω": r"\omega", "Δ": r"\Delta", "∠": r"\angle", r"\measuredangle": r"\angle", r"\varepsilon": r"\epsilon",
    "inf": r"\infty", "infinity": r"\infty", "pi": r"\pi", "sqrt": r"\sqrt", "frac": r"\frac", "oo": r"\infty",
    r"\lg": r"\log", "theta": r"\theta", "alpha": r"\alpha", "asin": r"\arcsin", "acos": r"\arccos", "atan": r"\arctan",
    r"\tg": r"\tan", r"\ctg": r"\cot", r"\arctg": r"\arctan", r"\cosec": r"\csc", r"\mod": r"\bmod", "mod": r"\bmod",
    r"\top": "T", r"\intercal": "T", r"\ldots": r"\dots", r"\cdots": r"\dots", "…": r"\dots", "...": r"\dots",
}  # fmt: skip
FUNCTIONS: Final = frozenset(
    [
        "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "arcsin", "arccos", "arctan", "sinh", "cosh",
        "tanh", "max", "min", "gcd", "lcm", "det", "cis", "abs", "floor", "ceil",
    ]
)  # fmt: skip
INVERSE: Final = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
UNITS: Final = frozenset(
    [
        "cm", "mm", "km", "ft", "kg", "mg", "ml", "mL", "lb", "lbs", "oz", "hr", "hrs", "min", "sec", "in", "yd",
        "mph", "kmh", "mi", "am", "pm", "gal", "qt", "pt", "Hz", "kHz", "kW", "kJ", "MB", "GB", "rad", "deg", "sq",
        "cu", "units", "unit",
    ]
)  # fmt: skip
SHORT_WORDS: Final = frozenset(["So", "We", "It", "for"])
CONSTANTS: Final = frozenset(
    [r"\pi", r"\infty", r"\mathbb{R}", r"\mathbb{Z}", r"\mathbb{N}", r"\mathbb{C}", r"\mathbb{Q}"]
)
GREEK: Final = frozenset(
    [
        r"\alpha", r"\beta", r"\gamma", r"\delta", r"\epsilon", r"\zeta", r"\eta", r"\theta", r"\vartheta", r"\kappa",
        r"\lambda", r"\mu", r"\nu", r"\xi", r"\rho", r"\sigma", r"\tau", r"\phi", r"\chi", r"\psi", r"\omega",
        r"\Gamma", r"\Delta", r"\Theta", r"\Lambda", r"\Xi", r"\Pi", r"\Sigma", r"\Phi", r"\Psi", r"\Omega", r"\ell",
        r"\hbar",
    ]
)  # fmt: skip
OPENING: Final = {
    "(": ")", "[": "]", "{": "}", r"\{": r"\}", "<(": ")>", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil",
}  # fmt: skip
CLOSING: Final = frozenset(OPENING.values())
SIGNS: Final = frozenset(["+", "-"])
CHOICE: Final = re.compile(r"_([0-9]{1,4}|\{[0-9]{1,4}\})\^([0-9]{1,4}|\{[0-9]{1,4}\})")
"""After a C: how many ways there are to choose, `C_{10}^3`."""
MATRIX: Final = re.compile(r"\\begin\s*\{((?:[a-zA-Z]*matrix)|array)\}")

Kind: TypeAlias = Literal[
    "number", "name", "constant", "sum", "product", "inverse", "negative", "power", "root",
    "call", "log", "absolute", "floor", "ceiling", "factorial", "prime", "binomial", "modulo", "series", "degrees",
    "conjugate", "matrix", "row", "determinant",
]  # fmt: skip


APPLIED: Final[dict[str, Kind]] = {"det": "determinant", "abs": "absolute", "floor": "floor", "ceil": "ceiling"}


class NotMathematicsError(Exception):
    """The text does not read as mathematics. Never leaves `swift_edge.answers`."""


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an expression."""

    kind: Kind
    parts: tuple["Node", ...] = ()
    """What it is made of; a series has its lower and upper limit and its summand, a log its argument and its base."""
    text: str = ""
    """Name of a variable, a constant, a function; of a series `sum` or `prod` and the variable, as in `sum k`."""
    number: Fraction = Fraction(0)
    """What a number is."""


ONE: Final = Node("number", number=Fraction(1))


def tokenize(text: str) -> list[str]:
    """Split into numbers, letters, commands and words, each in its one spelling."""
    tokens: list[str] = []
    for match in TOKEN.finditer(text):
        token = COMMANDS.get(match[0], match[0])
        before = tokens[-1] if tokens else ""
        if token.startswith(WORD) and token[len(WORD) :].casefold() in ("and", "or", "&"):
            tokens.append({"or": r"\lor"}.get(token[len(WORD) :].casefold(), r"\land"))
        elif before[-1:].isdigit() and token.removeprefix(WORD) in MAGNITUDES:
            tokens += ["*", str(MAGNITUDES[token.removeprefix(WORD)])]
        elif token in ("C", "F", "K") and before == DEGREES:
            continue  # of a temperature
        elif not token[0].isalpha() or token.startswith(WORD):
            tokens.append(token)
        elif token in ("and", "or"):
            tokens.append(r"\lor" if token == "or" else r"\land")
        elif token in FUNCTIONS and not (token == "min" and before[-1:].isdigit()):
            tokens.append("\\" + token)
        elif (
            _spells_word(token)
            or token in SHORT_WORDS
            or (token == "is" and is_word(before))
            or (token in UNITS and (before[-1:].isdigit() or before in ("}", ")") or is_word(before)))
        ):
            tokens.append(WORD + token)
        else:
            tokens += token
    return tokens


def is_word(token: str) -> bool:
    """Tell a word from mathematics."""
    return token.startswith(WORD)


def _spells_word(letters: str) -> bool:
    # abc and xyz are products, ABC is a triangle.
    return len(letters) > 2 and not (
        len(letters) < 5 and (letters.islower() or letters.isupper()) and "".join(sorted(set(letters))) == letters
    )


def read_expression(tokens: list[str]) -> Node:
    """Read an expression; `NotMathematicsError` where it does not read as one."""
    reader = _Reader(tokens)
    tree = reader.sum(0)
    if reader.tokens:
        raise NotMathematicsError
    return tree


class _Reader:
    """Reads one expression from left to right; `tokens` are those still to be read, last first."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]
        self.last = ""
        self.bars = 0
        self.bound: list[str] = []

    def peek(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, expected: str = "") -> str:
        if not self.tokens or (expected and self.tokens[-1] != expected):
            raise NotMathematicsError
        self.last = self.tokens.pop()
        return self.last

    def sum(self, depth: int) -> Node:
        if depth > DEEPEST_NESTING:
            raise NotMathematicsError
        parts = [self.product(depth)]
        while self.peek() in SIGNS:
            parts.append(self.signed(depth))
        tree = parts[0] if len(parts) == 1 else Node("sum", tuple(parts))
        if self.peek() == r"\bmod":
            self.take()
            return Node("modulo", (tree, self.product(depth)))
        return tree

    def signed(self, depth: int) -> Node:
        """A product with any signs before it."""
        negative = False
        while self.peek() in SIGNS:
            negative ^= self.take() == "-"
        tree = self.product(depth)
        if negative:
            tree = Node("negative", (tree,))
        return tree

    def product(self, depth: int) -> Node:
        if self.peek() in SIGNS:
            return self.signed(depth)
        parts = [self.factor(depth)]
        while True:
            if self.peek() == "*":
                self.take()
                parts.append(self.signed_factor(depth))
            elif self.peek() == "/":
                self.take()
                parts.append(Node("inverse", (self.signed_factor(depth),)))
            elif self.starts_factor():
                parts.append(self.factor(depth))
            else:
                return parts[0] if len(parts) == 1 else Node("product", tuple(parts))

    def signed_factor(self, depth: int) -> Node:
        negative = self.peek() == "-"
        if negative:
            self.take()
        tree = self.factor(depth)
        return Node("negative", (tree,)) if negative else tree

    def starts_factor(self) -> bool:
        token = self.peek()
        if token == "|":
            return self.bars == 0
        if token[:1].isdigit() or token[:1] == ".":
            # Numbers side by side are never multiplied, nor is what only looks like an index: 10 000, x2.
            if self.last not in CLOSING and self.last != "!":
                raise NotMathematicsError
            return True
        if token == "{" and _is_number(self.last) and len(self.tokens) > 1 and _is_number(self.tokens[-2]):
            raise NotMathematicsError
        return (
            bool(token)
            and (token[0].isalpha() or token in ("(", "[", "{") or _starts_command(token))
            and not is_word(token)
        )

    def factor(self, depth: int) -> Node:
        tree = self.atom(depth)
        for _ in range(MOST_MARKS):
            mark = self.peek()
            if mark not in ("^", "**", "!", "'", DEGREES, "%"):
                return tree
            self.take()
            if mark == "^":
                tree = Node("power", (tree, self.exponent(depth)))
            elif mark == "**":
                tree = Node("power", (tree, self.python_exponent(depth + 1)))
            elif mark == DEGREES:
                tree = Node("degrees", (tree,))
            elif mark != "%":
                tree = Node("factorial" if mark == "!" else "prime", (tree,))
        raise NotMathematicsError

    def exponent(self, depth: int) -> Node:
        if self.peek() in ("*", "+"):  # x^*
            raise NotMathematicsError
        return self.argument(depth, digits=True)

    def python_exponent(self, depth: int) -> Node:
        if depth > DEEPEST_NESTING:
            raise NotMathematicsError
        negative = self.peek() == "-"
        if negative:
            self.take()
        tree = self.atom(depth)
        if self.peek() in ("**", "^"):
            self.take()
            tree = Node("power", (tree, self.python_exponent(depth + 1)))
        return Node("negative", (tree,)) if negative else tree

    def argument(self, depth: int, *, digits: bool = False) -> Node:
        """What a command or an exponent applies to: a group, a command, a letter, and one digit or all `digits`."""
        if depth > DEEPEST_NESTING:
            raise NotMathematicsError
        token = self.peek()
        if not digits and token[:1].isdigit() and len(token) > 1 and "." not in token:
            self.tokens[-1:] = token[1:], token[0]
        if token == "-":
            self.take()
            return Node("negative", (self.argument(depth + 1, digits=digits),))
        return self.atom(depth + 1, mixed=False)

    def atom(self, depth: int, *, mixed: bool = True) -> Node:
        if depth > DEEPEST_NESTING:
            raise NotMathematicsError
        token = self.take()
        if token[0] in "0123456789.":
            return self.number(token, mixed=mixed)
        if token in ("(", "[", "{"):
            return self.group(OPENING[token], depth)
        if token in (r"\lfloor", r"\lceil"):
            tree = self.sum(depth + 1)
            self.take(OPENING[token])
            return Node("floor" if token == r"\lfloor" else "ceiling", (tree,))
        if token == "|":
            self.bars += 1
            tree = self.sum(depth + 1)
            self.take("|")
            self.bars -= 1
            return Node("absolute", (tree,))
        if token.startswith(r"\begin"):
            return self.matrix(token, depth)
        if token[0] == "\\":
            return self.command(token, depth)
        if len(token) == 1 and token.isalpha():
            return self.variable(token)
        raise NotMathematicsError

    def group(self, closing: str, depth: int) -> Node:
        bars, self.bars = self.bars, 0
        tree = self.sum(depth + 1)
        if closing == "}" and self.peek() in (r"\choose", r"\over"):
            over = self.take() == r"\over"
            below = self.sum(depth + 1)
            tree = Node("product", (tree, Node("inverse", (below,)))) if over else Node("binomial", (tree, below))
        self.take(closing)
        self.bars = bars
        return tree

    def number(self, token: str, *, mixed: bool) -> Node:
        whole = Node("number", number=plain_number(token))
        if self.peek() == "_":
            raise NotMathematicsError
        # A mixed number: 1\frac{4}{5}; the fraction consists of plain numbers.
        ahead = "".join(self.tokens[:-12:-1]) if mixed and token.isdigit() else ""
        if re.match(
            r"\\frac(?:[1-9][1-9](?![0-9])|\{[0-9]+\}\{[0-9]+\}|[1-9]\{[0-9]+\}|\{[0-9]+\}[1-9](?![0-9]))(?!\^)", ahead
        ):
            return Node("sum", (whole, self.atom(0)))
        above, slash, below = (*self.tokens[:-4:-1], "", "", "")[:3]
        if ahead and slash == "/" and above.isdecimal() and below.isdecimal() and self.tokens[-4:-3] != ["^"]:
            numerator, _, denominator = self.take(), self.take(), self.take()
            bottom = Node("inverse", (Node("number", number=Fraction(denominator)),))
            return Node("sum", (whole, Node("product", (Node("number", number=Fraction(numerator)), bottom))))
        return whole

    def variable(self, name: str) -> Node:
        if name == "C" and (chosen := CHOICE.match("".join(self.tokens[:-10:-1]))) is not None:
            upper, lower = (int(number.strip("{}")) for number in chosen.groups())
            if upper >= max(lower, 3):  # C_1 and C_2 are constants
                while self.take() != "^":
                    continue
                self.argument(0, digits=True)
                return Node("binomial", tuple(Node("number", number=Fraction(number)) for number in (upper, lower)))
        if self.peek() == "_":
            self.take()
            name += "_" + self.subscript()
        elif name in ("e", "i") and name not in self.bound:
            return Node("constant", text=name)
        return Node("name", text=name)

    def subscript(self) -> str:
        token = self.take()
        if token != "{":
            return token
        name = ""
        while (token := self.take()) != "}":
            if token in OPENING:
                raise NotMathematicsError
            name += token.removeprefix(WORD)
        return name

    def command(self, name: str, depth: int) -> Node:
        if name == r"\frac":
            above = self.argument(depth)
            below = self.argument(depth)
            if _is_derivative(above) and _is_derivative(below):
                raise NotMathematicsError
            return Node("product", (above, Node("inverse", (below,))))
        if name == r"\binom":
            upper = self.argument(depth)
            return Node("binomial", (upper, self.argument(depth)))
        if name == r"\sqrt":
            degree = Node("number", number=Fraction(2))
            if self.peek() == "[":
                self.take()
                degree = self.sum(depth + 1)
                self.take("]")
            return Node("root", (self.argument(depth, digits=True), degree))
        if name in (r"\overline", r"\bar"):
            return Node("conjugate", (self.argument(depth),))
        if name in (r"\sum", r"\prod"):
            return self.series(name, depth)
        if name in CONSTANTS:
            return Node("constant", text=name)
        if name[1:] in FUNCTIONS:
            return self.function(name[1:], depth)
        if name in GREEK:
            return self.variable(name)
        raise NotMathematicsError

    def series(self, name: str, depth: int) -> Node:
        """A sum or product over a variable, with what follows up to the next sign."""
        variable, lower, upper = "", None, None
        for _ in range(2):
            if self.peek() == "^":
                self.take()
                upper = self.argument(depth, digits=True)
            elif self.peek() == "_":
                self.take()
                self.take("{")
                variable = self.take()
                self.take("=")
                lower = self.sum(depth + 1)
                self.take("}")
        if lower is None or upper is None or not variable.strip("\\").isalpha():
            raise NotMathematicsError
        self.bound.append(variable)
        summand = self.product(depth + 1)
        self.bound.pop()
        return Node("series", (lower, upper, summand), f"{name[1:]} {variable}")

    def function(self, name: str, depth: int) -> Node:
        """A function with its argument: `\\sin^2 x`, `\\sin 2x`, `\\log_2 (x)`."""
        base = exponent = None
        for _ in range(2):
            if self.peek() == "^":
                self.take()
                exponent = self.argument(depth, digits=True)
            elif self.peek() == "_":
                self.take()
                base = self.argument(depth, digits=True)
        if exponent == Node("negative", (ONE,)) and name in INVERSE:
            name, exponent = INVERSE[name], None
        tree = _applied(name, self.arguments(depth), base)
        return tree if exponent is None else Node("power", (tree, exponent))

    def arguments(self, depth: int) -> list[Node]:
        if self.peek() in ("(", "[", "{", r"\{"):
            opening = self.take()
            arguments = [self.sum(depth + 1)]
            while self.peek() == ",":
                self.take()
                arguments.append(self.sum(depth + 1))
            self.take(OPENING[opening])
            return arguments
        if self.peek() == "-":
            self.take()
            return [Node("negative", (self.factor(depth + 1),))]
        parts = [self.factor(depth + 1)]
        while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and self.peek() not in ("(", "["):
            parts.append(self.factor(depth + 1))
        if self.peek() == "/" and parts[-1].kind in ("constant", "name") and _is_number(self.tokens[-2:][0]):
            self.take()  # \sin \pi/6
            parts.append(Node("inverse", (self.factor(depth + 1),)))
        return [parts[0] if len(parts) == 1 else Node("product", tuple(parts))]

    def matrix(self, beginning: str, depth: int) -> Node:
        name = MATRIX.fullmatch(beginning)
        if name is None:
            raise NotMathematicsError
        if name[1] == "array" and self.peek() == "{":
            while self.take() != "}":
                continue
        ending = rf"\end{{{name[1]}}}"
        rows: list[list[Node]] = [[]]
        cells = 0
        while True:
            rows[-1].append(self.sum(depth + 1))
            cells += 1
            mark = self.take()
            if mark == "\\\\" and self.peek() != ending:
                rows.append([])
            elif mark == ending or (mark == "\\\\" and self.take() == ending):
                break
            elif mark not in ("&", "\\\\") or cells > MOST_CELLS:
                raise NotMathematicsError
        if len({len(row) for row in rows}) != 1:
            raise NotMathematicsError
        tree = Node("matrix", tuple(Node("row", tuple(row)) for row in rows))
        return Node("determinant", (tree,)) if name[1] == "vmatrix" else tree


def plain_number(token: str) -> Fraction:
    """Return what digits say, with a point or an exponent; `NotMathematicsError` for anything else."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+|[0-9]+\.)(?:[eE]([-+]?[0-9]+))?", token)
    if match is None or (match[2] and (len(match[2]) > 5 or abs(int(match[2])) > LARGEST_EXPONENT)):
        raise NotMathematicsError
    return Fraction(token)


def _is_number(token: str) -> bool:
    return token[:1].isdigit() or (token[:1] == "." and token[1:].isdigit())


def _is_derivative(tree: Node) -> bool:
    first = tree.parts[0] if tree.kind == "product" else tree
    return first == Node("name", text="d") and (tree.kind == "name" or len(tree.parts) == 2)


def _starts_command(token: str) -> bool:
    return (
        token in (r"\frac", r"\binom", r"\sqrt", r"\sum", r"\prod", r"\overline", r"\lfloor", r"\lceil")
        or token in CONSTANTS
        or token[1:] in FUNCTIONS
        or token in GREEK
        or token.startswith(r"\begin")
    )


def _applied(name: str, arguments: list[Node], base: Node | None) -> Node:
    if name in ("log", "ln") and len(arguments) == 1:
        if base is None and name == "log":
            base = Node("number", number=Fraction(10))
        return Node("log", (*arguments, *([] if base is None else [base])))
    if base is not None or (len(arguments) > 1 and name not in ("max", "min", "gcd", "lcm")):
        raise NotMathematicsError
    if name == "exp":
        return Node("power", (Node("constant", text="e"), arguments[0]))
    if name in APPLIED:
        return Node(APPLIED[name], (arguments[0],))
    return Node("call", tuple(arguments), name)
