"""Exact arithmetic on mathematical expressions at a cost known beforehand: each is evaluated once, modulo a prime.

A variable stands for a fixed element of a finite field, pi and e for two more, and an expression for what it evaluates
to there. Equal expressions have equal residues, whatever their form: nothing is expanded, simplified or searched, so
nothing can hang. Unequal ones of sensible size agree by chance once in about 2**250 (J. T. Schwartz, Fast probabilistic
algorithms for verification of polynomial identities, 1980). Variables count as positive reals.

The prime makes roots and powers behave like those of positive reals:

* P = 8 * 3 * 5 * ... * 97 * k - 1: so -1 is no square, i lives in the field of P**2 elements, and the primes up to 97
  are all squares.
* Q = (P - 1) / 2 is prime, and is the order of the group of squares. So a square has exactly one n-th root that is a
  square again, and (x y)^(1/n) is x^(1/n) y^(1/n); and exponents can be evaluated modulo Q, beside the residue, so
  2^(n+1) is 2 * 2^n.
"""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

P: Final = 100421647855164150118137007176262312214052778443998275013961937934062715250119
Q: Final = (P - 1) // 2

LARGEST_RATIONAL: Final = 1 << 100
"""Numerators and denominators below this are read back from a residue; one in 2**55 would be so by chance."""
LARGEST_FACTORIAL: Final = 200
LARGEST_DIVISOR: Final = 30_000
"""Integers under roots and logarithms are factored up to here, which is complete below 9e8."""


class NoValueError(Exception):
    """The expression has no value: a division by zero, a power beyond the limits. Never leaves `swift_edge.answers`."""


@dataclass(frozen=True, slots=True)
class Residue:
    """What an expression is in the field: `real + i * imaginary`, and what it is as an exponent."""

    real: int
    """Modulo P."""
    imaginary: int
    """Modulo P."""
    exponent: int
    """The same expression modulo Q, for a^b; arbitrary but fixed where there is none."""

    def __add__(self, other: "Residue") -> "Residue":
        """Sum."""
        return Residue(
            (self.real + other.real) % P, (self.imaginary + other.imaginary) % P, (self.exponent + other.exponent) % Q
        )

    def __neg__(self) -> "Residue":
        """Negative."""
        return Residue(-self.real % P, -self.imaginary % P, -self.exponent % Q)

    def __sub__(self, other: "Residue") -> "Residue":
        """Difference."""
        return self + -other

    def __mul__(self, other: "Residue") -> "Residue":
        """Product."""
        return Residue(
            (self.real * other.real - self.imaginary * other.imaginary) % P,
            (self.real * other.imaginary + self.imaginary * other.real) % P,
            self.exponent * other.exponent % Q,
        )

    def __truediv__(self, other: "Residue") -> "Residue":
        """Quotient; `NoValueError` by zero."""
        norm = (other.real * other.real + other.imaginary * other.imaginary) % P
        if norm == 0:
            raise NoValueError
        inverse = pow(norm, -1, P)
        return self * Residue(other.real * inverse % P, -other.imaginary * inverse % P, pow(other.exponent, Q - 2, Q))

    def rational(self) -> Fraction | None:
        """Return the small rational number that this is, if it is one (P. S. Wang, 1981)."""
        return None if self.imaginary else _small_fraction(self.real)

    def text(self) -> str:
        """Write it as `3/4`, `3/4+2i` or, where it is not rational, as a hash; equal residues have equal texts."""
        real, imaginary = _small_fraction(self.real), _small_fraction(self.imaginary)
        if real is None or imaginary is None:
            return "~" + hashlib.sha256(f"{self.real},{self.imaginary}".encode()).hexdigest()[:32]
        return f"{real}+{imaginary}i" if imaginary else str(real)


def number(value: Fraction | int) -> Residue:
    """Return a rational number; `NoValueError` where its denominator is a multiple of P or Q."""
    if value.denominator % P == 0 or value.denominator % Q == 0:
        raise NoValueError
    return Residue(
        value.numerator * pow(value.denominator, -1, P) % P, 0, value.numerator * pow(value.denominator, -1, Q) % Q
    )


ZERO: Final = number(0)
ONE: Final = number(1)
TWO: Final = number(2)


def symbol(name: str) -> Residue:
    """Return the element that a name stands for: a square, since variables count as positive."""
    return Residue(pow(_hash(name), 2, P), 0, _hash(name, "exponent") % Q)


def power(base: Residue, exponent: Residue) -> Residue:
    """Return base^exponent; roots are the principal real ones, -8 to the 1/3 is -2, -4 to the 1/2 is 2 i."""
    rational = exponent.rational()
    if rational is not None and rational.denominator == 1:
        return _integer_power(base, rational.numerator)
    number_base = base.rational()
    if number_base is not None and rational is not None:
        return _rational_power(number_base, rational)
    if base.imaginary == 0 and pow(base.real, Q, P) == 1 and not exponent.imaginary:
        return _opaque_exponent(pow(base.real, exponent.exponent, P), 0)
    if base.imaginary == 0 and rational is not None and rational.denominator == 2:
        root = Residue(0, pow(-base.real, pow(2, -1, Q), P), 0)
        return _integer_power(_opaque_exponent(root.real, root.imaginary), rational.numerator)
    return function("power", base, exponent)


def root(value: Residue, degree: Residue) -> Residue:
    """Return the principal root."""
    return power(value, ONE / degree)


def function(name: str, *arguments: Residue) -> Residue:
    """Return the value of a function of which nothing else is known: equal arguments, equal values."""
    described = ";".join(f"{argument.real},{argument.imaginary}" for argument in arguments)
    return symbol(f"{name}({described})")


def sine_cosine(angle: Residue) -> tuple[Residue, Residue]:
    """Return both, so that their squares add up to one, and the sine is odd."""
    if angle == ZERO:
        return ZERO, ONE
    mirrored = (-angle.real % P, -angle.imaginary % P) < (angle.real, angle.imaginary)
    half = function("tangent of half", -angle if mirrored else angle)
    norm = ONE + half * half
    sine = TWO * half / norm
    return (-sine if mirrored else sine), (ONE - half * half) / norm


def logarithm(value: Residue) -> Residue:
    """Return the natural logarithm; that of a product of integers is the sum of theirs."""
    if (value.real, value.imaginary) == (EULER.real, EULER.imaginary):
        return ONE
    rational = value.rational()
    if rational is None or rational <= 0:
        return function("log", value)
    result = ZERO
    for factor, times in _factors(rational):
        result += number(times) * function("log", number(factor))
    return result


def absolute(value: Residue) -> Residue:
    """Return the absolute value: of a rational number exactly, of another expression as an even function."""
    rational = value.rational()
    if rational is not None:
        return number(abs(rational))
    mirrored = -value
    return function("abs", min(value, mirrored, key=lambda one: (one.real, one.imaginary)))


def factorial(value: Residue) -> Residue:
    """Return n!; `NoValueError` unless n is a whole number of at most `LARGEST_FACTORIAL`, or not a number."""
    rational = value.rational()
    if rational is None:
        return function("factorial", value)
    if rational.denominator != 1 or not 0 <= rational <= LARGEST_FACTORIAL:
        raise NoValueError
    return number(math.factorial(rational.numerator))


def binomial(upper: Residue, lower: Residue) -> Residue:
    """Return a binomial coefficient, under the limits of `factorial`."""
    return factorial(upper) / (factorial(lower) * factorial(upper - lower))


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256(";".join(parts).encode("utf-8", "surrogatepass")).digest(), "big") % P


IMAGINARY_UNIT: Final = Residue(0, 1, _hash("i") % Q)
EULER: Final = symbol("e")


def _opaque_exponent(real: int, imaginary: int) -> Residue:
    return Residue(real % P, imaginary % P, _hash("exponent", str(real % P), str(imaginary % P)) % Q)


def _small_fraction(residue: int) -> Fraction | None:
    # Euclid's algorithm on P and the residue, stopped half-way.
    above, below = (P, 0), (residue, 1)
    while below[0] >= LARGEST_RATIONAL:
        quotient = above[0] // below[0]
        above, below = below, (above[0] - quotient * below[0], above[1] - quotient * below[1])
    return Fraction(*below) if 0 < abs(below[1]) < LARGEST_RATIONAL else None


def _integer_power(base: Residue, exponent: int) -> Residue:
    if exponent < 0:
        return ONE / _integer_power(base, -exponent)
    result = ONE
    for bit in bin(exponent)[2:]:
        result = result * result * base if bit == "1" else result * result
    return result


def _factors(value: Fraction) -> list[tuple[int, int]]:
    """Factor a positive number by trial; what is left above the limit counts as a prime or a power of one."""
    factors = []
    for rest, sign in ((value.numerator, 1), (value.denominator, -1)):
        for divisor in (2, *range(3, LARGEST_DIVISOR, 2)):
            times = 0
            while rest % divisor == 0:
                rest //= divisor
                times += 1
            if times:
                factors.append((divisor, sign * times))
            if rest < divisor * divisor:
                break
        if rest > 1:
            for times in (6, 4, 3, 2, 1):
                whole = _whole_root(rest, times)
                if whole**times == rest:
                    factors.append((whole, sign * times))
                    break
    return factors


def _whole_root(value: int, degree: int) -> int:
    """Return the largest integer whose power of that degree is not above the value."""
    low, high = 1, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low


def _rational_power(base: Fraction, exponent: Fraction) -> Residue:
    if base == 0:
        if exponent <= 0:
            raise NoValueError
        return ZERO
    result = ONE
    for factor, times in _factors(abs(base)):
        whole, fraction = divmod(times * exponent, 1)
        result *= _integer_power(number(factor), whole) * _prime_root(factor, fraction)
    if base > 0:
        return result
    if exponent.denominator % 2:
        return -result if exponent.numerator % 2 else result
    if exponent.denominator == 2:
        return result * _integer_power(IMAGINARY_UNIT, exponent.numerator)
    return function("power", number(base), number(exponent))


def _prime_root(prime: int, exponent: Fraction) -> Residue:
    """Return prime^exponent for an exponent in [0, 1)."""
    if exponent == 0:
        return ONE
    odd = exponent.denominator
    twos = 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    if pow(prime, Q, P) == 1:
        inverse = pow(exponent.denominator, -1, Q)
        return _opaque_exponent(pow(prime, exponent.numerator * inverse % Q, P), 0)
    # Not a square: its odd roots are in the field; its even ones are those of its negative, times a root of -1.
    odd_root = pow(prime, pow(odd, -1, P - 1), P)
    if twos == 0:
        return _opaque_exponent(pow(odd_root, exponent.numerator, P), 0)
    if twos > 2:
        return function("root", number(prime), number(exponent))
    square = number(pow(-odd_root, pow(2**twos, -1, Q), P))
    eighth = (ONE + IMAGINARY_UNIT) / power(TWO, number(Fraction(1, 2)))
    powered = _integer_power(square * (IMAGINARY_UNIT if twos == 1 else eighth), exponent.numerator)
    return _opaque_exponent(powered.real, powered.imaginary)
