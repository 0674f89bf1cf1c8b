"""What the tree of an expression is worth: a residue or a matrix of them, at a cost that is counted and bounded."""

import cmath
import math
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Final, TypeAlias

from swift_edge.answers import residue
from swift_edge.answers.expression import ONE, Node
from swift_edge.answers.matrix import Matrix
from swift_edge.answers.residue import PI, NoValueError, Residue

MOST_STEPS: Final = 20_000
"""Parts of a tree that are evaluated, those of a summand once for each term."""
COSTS: Final = {"log": 20, "power": 5, "root": 10, "inverse": 3, "call": 20, "factorial": 20, "binomial": 20}
"""What some of them count for."""
COST_OF_SERIES: Final = 100
"""Of one that is summed up to a variable, beside its terms."""
HIGHEST_DEGREE: Final = 6
"""Of polynomials that are summed up to a variable."""
LARGEST_SHIFT: Final = 20
"""How far factorials may be apart that are known to share their factors: (n + 20)! and n!."""
NEAR: Final = 1e-9
"""What floating-point numbers do not tell apart."""

Value: TypeAlias = Residue | Matrix


def value_of(tree: Node, point: str = "", given: Mapping[str, Residue] | None = None) -> Value:
    """Evaluate a tree; `NoValueError` where it has no value, or none within the limits.

    Variables are evaluated at `point`, or at what is `given` for them.
    """
    return _Evaluation(point, dict(given or {})).value(tree)


def number_of(tree: Node, point: str = "", given: Mapping[str, Residue] | None = None) -> Residue:
    """Evaluate a tree that is no matrix; `NoValueError` as in `value_of`."""
    return _number(value_of(tree, point, given))


def names_in(tree: Node) -> frozenset[str]:
    """Return the variables of a tree, those that it sums over apart."""
    if tree.kind == "name":
        return frozenset([tree.text])
    inside = frozenset[str]().union(*map(names_in, tree.parts))
    return inside - {tree.text.split()[1]} if tree.kind == "series" else inside


def _number(value: Value) -> Residue:
    if isinstance(value, Matrix):
        raise NoValueError
    return value


class _Evaluation:
    """One evaluation of one tree."""

    def __init__(self, point: str, given: dict[str, Residue]) -> None:
        self.point = point
        self.given = given
        self.steps = 0

    def number(self, tree: Node) -> Residue:
        return _number(self.value(tree))

    def value(self, tree: Node) -> Value:
        self.steps += COSTS.get(tree.kind, 1)
        if self.steps > MOST_STEPS:
            raise NoValueError
        match tree.kind:
            case "number":
                return residue.number(tree.number)
            case "name":
                return self.value_of_name(tree.text)
            case "constant":
                return CONSTANTS.get(tree.text) or residue.symbol(tree.text)
            case "sum":
                return self.sum(tree)
            case "product":
                return self.product(tree)
            case "negative":
                return self.negative(tree.parts[0])
            case "power":
                return self.power(*tree.parts)
            case "matrix":
                return Matrix(tuple(tuple(self.number(cell) for cell in row.parts) for row in tree.parts))
            case "absolute" | "determinant":
                inner = self.value(tree.parts[0])
                if isinstance(inner, Matrix):
                    return inner.determinant()
                return self.absolute(tree.parts[0], inner) if tree.kind == "absolute" else inner
            case _:
                return self.other(tree)

    def value_of_name(self, name: str) -> Residue:
        return self.given.get(name) or residue.symbol(f"variable {name}{self.point}")

    def other(self, tree: Node) -> Residue:
        """What is never a matrix."""
        first = tree.parts[0]
        match tree.kind:
            case "inverse":
                return residue.ONE / self.number(first)
            case "root":
                return self.root(*tree.parts)
            case "log":
                return self.log(first) / self.log(tree.parts[1]) if len(tree.parts) > 1 else self.log(first)
            case "floor" | "ceiling":
                return self.rounded(tree)
            case "factorial":
                return self.factorial(first)
            case "prime":
                return residue.function("prime", self.number(first))
            case "binomial":
                return self.binomial(first, tree.parts[1])
            case "modulo":
                return self.modulo(*tree.parts)
            case "series":
                return self.series(tree)
            case "degrees":
                return self.number(first)
            case "conjugate":
                value = self.number(first)
                return residue.function("conjugate", value) if names_in(first) else residue.conjugate(value)
            case _:
                return self.call(tree)

    def negative(self, tree: Node) -> Value:
        value = self.value(tree)
        return value.each(lambda cell: -cell) if isinstance(value, Matrix) else -value

    def sum(self, tree: Node) -> Value:
        total = self.value(tree.parts[0])
        for part in tree.parts[1:]:
            value = self.value(part)
            if isinstance(total, Matrix) and isinstance(value, Matrix):
                total = total + value
            else:
                total = _number(total) + _number(value)
        return total

    def product(self, tree: Node) -> Value:
        total = self.value(tree.parts[0])
        for part in tree.parts[1:]:
            if part.kind == "inverse" and not isinstance(total, Matrix):
                total = total / self.number(part.parts[0])
                continue
            total = _times(total, self.value(part))
        return total

    def power(self, base_tree: Node, exponent_tree: Node) -> Value:
        base = self.value(base_tree)
        if isinstance(base, Matrix):
            if exponent_tree == Node("name", text="T"):
                return base.transposed
            exponent = self.number(exponent_tree).rational()
            if exponent is None or exponent.denominator != 1:
                raise NoValueError
            return base.power(exponent.numerator)
        exact = base.rational()
        if exact is not None and exact < 0 and self.variables(exponent_tree):
            return residue.power(-base, self.number(exponent_tree)) * self.alternating(exponent_tree)
        if exponent_tree.kind == "sum" and not _has(exponent_tree, "log") and base_tree != EULER:
            return residue.power(base, self.number(exponent_tree))
        result = residue.ONE
        for term in exponent_tree.parts if exponent_tree.kind == "sum" else (exponent_tree,):
            result *= self.power_of_term(base, base_tree, term)
        return result

    def power_of_term(self, base: Residue, base_tree: Node, term: Node) -> Residue:
        """base^term, where e^(2 ln x) is x^2, 4^(log_2 3) is 9, and e^(i x) is a point of the unit circle."""
        factors = _factors_of(term)
        if base_tree == EULER and [factor for factor, inverse in factors if not inverse].count(IMAGINARY) == 1:
            rest = [Node("inverse", (factor,)) if inverse else factor for factor, inverse in factors]
            rest.remove(IMAGINARY)
            sine, cosine = residue.combined_angle(self.angles(Node("product", (ONE, *rest)), Fraction(1)))
            return cosine + residue.IMAGINARY_UNIT * sine
        logs = [factor for factor, inverse in factors if factor.kind == "log" and not inverse]
        if len(logs) == 1:
            inner, *bases = logs[0].parts
            relation = self.log(base_tree) / (self.log(bases[0]) if bases else residue.ONE)
            if relation.rational() is not None:
                for factor, inverse in factors:
                    if factor is not logs[0]:
                        value = self.number(factor)
                        relation = relation / value if inverse else relation * value
                return residue.power(self.number(inner), relation)
        return residue.power(base, self.number(term))

    def alternating(self, tree: Node) -> Residue:
        """-1 to the power of an expression, the variables of which count as integers."""
        rest, shift = self.shifted(tree)
        sign = residue.ONE if shift % 2 == 0 else -residue.ONE
        linear, signs = residue.ZERO, residue.ONE
        for name in self.variables(tree):
            reached, variable = self.at(tree, name), self.value_of_name(name)
            rate = None if reached is None else (reached - residue.number(shift)).rational()
            if rate is None or rate.denominator != 1:
                break
            linear += residue.number(rate) * variable
            if rate % 2:
                signs *= residue.function("alternating", variable)
        if residue.same(linear, rest):
            return sign * signs
        return sign * residue.function("alternating", min(rest, -rest, key=lambda one: (one.real, one.imaginary)))

    def variables(self, tree: Node) -> frozenset[str]:
        """The variables that nothing is given for."""
        return names_in(tree) - self.given.keys()

    def at(self, tree: Node, one: str = "") -> Residue | None:
        """What an expression is where its variables are zero but `one` of them 1; None where it has no value."""
        given = self.given
        self.given = given | {name: residue.number(int(name == one)) for name in self.variables(tree)}
        try:
            return self.number(tree)
        except NoValueError:
            return None
        finally:
            self.given = given

    def shifted(self, tree: Node) -> tuple[Residue, int]:
        """An expression without its constant, and that: n and -1 of n - 1; 0 where it has none, or no small integer."""
        value = self.number(tree)
        if value.rational() is not None or not self.variables(tree):
            return value, 0
        reached = self.at(tree)
        constant = None if reached is None else reached.rational()
        if constant is None or constant.denominator != 1 or abs(constant) > LARGEST_SHIFT:
            return value, 0
        return value - residue.number(constant), int(constant)

    def factorial(self, tree: Node) -> Residue:
        """A factorial; (n + 1)! is (n + 1) n!."""
        value, shift = self.shifted(tree)
        result = residue.factorial(value)
        for place in range(1, shift + 1):
            result *= value + residue.number(place)
        for place in range(-shift):
            result = result / (value - residue.number(place))
        return result

    def binomial(self, upper: Node, lower: Node) -> Residue:
        chosen = self.number(lower).rational()
        if chosen is not None and chosen.denominator == 1:
            self.steps += min(abs(int(chosen)), residue.LARGEST_CHOICE)
            return residue.binomial(self.number(upper), int(chosen))
        left = Node("sum", (upper, Node("negative", (lower,))))
        return self.factorial(upper) / (self.factorial(lower) * self.factorial(left))

    def root(self, inner: Node, degree: Node) -> Residue:
        value, order = self.number(inner), self.number(degree)
        if inner.kind == "sum" and order.rational() == 2 and (simple := _without_inner_root(value, inner, self)):
            return simple
        return residue.root(value, order)

    def log(self, tree: Node) -> Residue:
        """The natural logarithm, which takes products and powers apart; variables count as positive."""
        value = self.number(tree)
        if value.rational() is not None:
            return residue.logarithm(value)
        match tree.kind:
            case "product":
                return sum((self.log(part) for part in tree.parts), residue.ZERO)
            case "inverse":
                return -self.log(tree.parts[0])
            case "power":
                return self.number(tree.parts[1]) * self.log(tree.parts[0])
            case "root":
                return self.log(tree.parts[0]) / self.number(tree.parts[1])
            case _:
                return residue.logarithm(value)

    def absolute(self, tree: Node, value: Residue) -> Residue:
        if value.imaginary or value.rational() is not None or names_in(tree):
            return residue.absolute(value)
        return -value if residue.float_of(value) < 0 else value

    def rounded(self, tree: Node) -> Residue:
        (inner,) = tree.parts
        value = self.number(inner)
        exact = value.rational()
        if exact is None and names_in(inner):
            return residue.function(tree.kind, value)
        rounding = math.floor if tree.kind == "floor" else math.ceil
        if exact is not None:
            return residue.number(rounding(exact))
        about = residue.float_of(value)
        if abs(about - round(about)) < NEAR * (1 + abs(about)):
            raise NoValueError
        return residue.number(rounding(about))

    def modulo(self, left: Node, right: Node) -> Residue:
        value, divisor = self.number(left), self.number(right)
        dividend, by = value.rational(), divisor.rational()
        if dividend is None or by is None:
            return residue.function("modulo", value, divisor)
        if by == 0:
            raise NoValueError
        return residue.number(dividend % by)

    def series(self, tree: Node) -> Residue:
        kind, name = tree.text.split()
        low, high, summand = self.number(tree.parts[0]), self.number(tree.parts[1]), tree.parts[2]
        first, last = low.rational(), high.rational()
        hidden = self.given.get(name)
        try:
            if first is not None and last is not None and first.denominator == 1 and last.denominator == 1:
                total = residue.ZERO if kind == "sum" else residue.ONE
                if last - first > MOST_STEPS:
                    raise NoValueError
                for place in range(int(first), int(last) + 1):
                    self.given[name] = residue.number(place)
                    term = self.number(summand)
                    total = total + term if kind == "sum" else total * term
                return total
            if kind == "sum" and (closed := self.summed(summand, name, low, high)) is not None:
                return closed
            self.given[name] = residue.symbol(f"summed over {len(self.given)}")
            return residue.function(kind, low, high, self.number(summand))
        finally:
            self.given.pop(name, None)
            if hidden is not None:
                self.given[name] = hidden

    def summed(self, summand: Node, name: str, low: Residue, high: Residue) -> Residue | None:
        """The sum of a geometric series, and of a polynomial up to a variable; None for another series."""
        self.steps += COST_OF_SERIES
        ratio, count = self.ratio(summand, name), high - low + residue.ONE
        if ratio is not None and not residue.same(ratio, residue.ONE):
            self.given[name] = low
            first = self.number(summand)
            if not residue.same(high, residue.INFINITY):
                return first * (residue.power(ratio, count) - residue.ONE) / (ratio - residue.ONE)
            if ratio.rational() is not None and abs(ratio.size) < 1:
                return first / (residue.ONE - ratio)
        ends = residue.same(self.differences(summand, name, residue.symbol("place"))[-1], residue.ZERO)
        if not ends or residue.same(high, residue.INFINITY):
            return None
        # Newton's formula: a polynomial by its differences at one place.
        total, chosen = residue.ZERO, residue.ONE
        for order, difference in enumerate(self.differences(summand, name, low)[:-1]):
            chosen = chosen * (count - residue.number(order)) / residue.number(order + 1)
            total += difference * chosen
        return total

    def ratio(self, summand: Node, name: str) -> Residue | None:
        """What each term of a series is of the one before it; None where that changes."""
        ratios = []
        for place in (residue.symbol("place 1"), residue.symbol("place 2")):
            self.given[name] = place
            term = self.number(summand)
            self.given[name] = place + residue.ONE
            ratios.append(self.number(summand) / term)
        return ratios[0] if residue.same(*ratios) else None

    def differences(self, summand: Node, name: str, low: Residue) -> list[Residue]:
        """The first term of a series, and its differences up to the one that is zero for polynomials."""
        row = []
        for place in range(HIGHEST_DEGREE + 2):
            self.given[name] = low + residue.number(place)
            row.append(self.number(summand))
        found = [row[0]]
        while len(row) > 1:
            row = [after - before for before, after in pairwise(row)]
            found.append(row[0])
        return found

    def call(self, tree: Node) -> Residue:
        name, first = tree.text, tree.parts[0]
        if name in ("max", "min", "gcd", "lcm"):
            return self.selected(tree)
        if name in ("arcsin", "arccos", "arctan"):
            return _arc(name, self.number(first))
        if name in ("sinh", "cosh", "tanh"):
            rising = residue.power(residue.EULER, self.number(first))
            falling = residue.ONE / rising
            sine, cosine = (rising - falling) / residue.TWO, (rising + falling) / residue.TWO
        elif first.kind == "call" and first.text in ("arcsin", "arccos", "arctan"):
            sine, cosine = _of_arc(first.text, self.number(first.parts[0]))
        else:
            sine, cosine = residue.combined_angle(self.angles(first, Fraction(1)))
        match name.removesuffix("h"):
            case "sin":
                return sine
            case "cos":
                return cosine
            case "tan":
                return sine / cosine
            case "cot":
                return cosine / sine
            case "sec":
                return residue.ONE / cosine
            case "csc":
                return residue.ONE / sine
            case "cis":
                return cosine + residue.IMAGINARY_UNIT * sine
        raise NoValueError

    def angles(self, tree: Node, times: Fraction) -> list[tuple[Residue, Fraction]]:
        """An angle as a sum of multiples."""
        match tree.kind:
            case "sum":
                return [angle for part in tree.parts for angle in self.angles(part, times)]
            case "negative":
                return self.angles(tree.parts[0], -times)
            case "degrees":
                return [(self.number(tree.parts[0]) * PI, times / 180)]
            case "product":
                others = []
                for part in tree.parts:
                    ratio = self.number(part).rational()
                    if ratio is None:
                        others.append(part)
                    else:
                        times *= ratio
                if len(others) == 1:
                    return self.angles(others[0], times)
                rest = residue.ONE
                for part in others:
                    rest *= self.number(part)
                return [(rest, times)]
            case _:
                value = self.number(tree)
                exact = value.rational()
                return [(value, times)] if exact is None else [(residue.ONE, times * exact)]

    def selected(self, tree: Node) -> Residue:
        """The greatest or least of numbers, or what divides them or is divided by them."""
        values = [self.number(part) for part in tree.parts]
        exact = [value.rational() for value in values]
        whole = [value.numerator for value in exact if value is not None and value.denominator == 1]
        if tree.text in ("gcd", "lcm") and len(whole) == len(values):
            return residue.number(math.gcd(*whole) if tree.text == "gcd" else math.lcm(*whole))
        if tree.text in ("gcd", "lcm") or names_in(tree):
            return residue.function(tree.text, *sorted(values, key=lambda one: (one.real, one.imaginary)))
        return (max if tree.text == "max" else min)(values, key=residue.float_of)


EULER: Final = Node("constant", text="e")
IMAGINARY: Final = Node("constant", text="i")
CONSTANTS: Final[Mapping[str, Residue]] = {
    "e": residue.EULER,
    "i": residue.IMAGINARY_UNIT,
    r"\pi": residue.PI,
    r"\infty": residue.INFINITY,
}


def _times(a: Value, b: Value) -> Value:
    if isinstance(a, Matrix):
        return a @ b if isinstance(b, Matrix) else a.each(lambda cell: cell * b)
    return b.each(lambda cell: a * cell) if isinstance(b, Matrix) else a * b


def _factors_of(tree: Node) -> list[tuple[Node, bool]]:
    """The factors of a term, and whether it is divided by them."""
    if tree.kind == "product":
        return [factor for part in tree.parts for factor in _factors_of(part)]
    if tree.kind == "inverse":
        return [(factor, not inverse) for factor, inverse in _factors_of(tree.parts[0])]
    if tree.kind == "negative":
        return [(Node("number", number=Fraction(-1)), False), *_factors_of(tree.parts[0])]
    return [(tree, False)]


def _has(tree: Node, kind: str) -> bool:
    return tree.kind == kind or any(_has(part, kind) for part in tree.parts)


def _without_inner_root(value: Residue, tree: Node, evaluation: _Evaluation) -> Residue | None:
    """The root of a + b, where a and b^2 are rational, if it is a sum of two roots: 3 + 2 sqrt 2, 6 - sqrt 20."""
    parts = [evaluation.number(part) for part in tree.parts]
    rational = sum((exact for part in parts if (exact := part.rational()) is not None), Fraction(0))
    rest = value - residue.number(rational)
    square = (rest * rest).rational()
    if not rational or square is None or names_in(tree) or rest.imaginary:
        return None
    inner = residue.root(residue.number(rational * rational - square), residue.TWO).rational()
    if inner is None or rational < inner:
        return None
    large, small = (
        residue.root(residue.number((rational + part) / 2), residue.TWO) for part in (abs(inner), -abs(inner))
    )
    return large - small if residue.float_of(rest) < 0 else large + small


def _arc(name: str, value: Residue) -> Residue:
    """The angle of a sine, cosine or tangent; exact where it is a twenty-fourth of a turn or so."""
    if name == "arccos":
        return PI / residue.TWO - _arc("arcsin", value)
    try:
        size = cmath.asin(value.size) if name == "arcsin" else cmath.atan(value.size)
    except ValueError:
        size = residue.NOT_A_NUMBER
    if math.isfinite(size.real):
        guess = PI * residue.number(Fraction(size.real / math.pi).limit_denominator(24))
        sine, cosine = residue.sine_cosine(guess)
        reached = sine if name == "arcsin" else sine / cosine if not residue.same(cosine, residue.ZERO) else cosine
        if residue.same(reached, value):
            return guess
    mirrored = (value.real, value.imaginary) > ((-value).real, (-value).imaginary)
    angle = residue.function(name, -value if mirrored else value, size=-size if mirrored else size)
    return -angle if mirrored else angle


def _of_arc(name: str, value: Residue) -> tuple[Residue, Residue]:
    """Sine and cosine of an angle that is given by its sine, cosine or tangent."""
    if name == "arctan":
        longest = residue.root(residue.ONE + value * value, residue.TWO)
        return value / longest, residue.ONE / longest
    other = residue.root(residue.ONE - value * value, residue.TWO)
    return (value, other) if name == "arcsin" else (other, value)
