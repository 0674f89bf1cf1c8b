"""Exact arithmetic on mathematical expressions at a cost known beforehand: each is evaluated once, modulo a prime.

A variable stands for a fixed element of a finite field, pi and e for two more, and an expression for what it evaluates
to there. Equal expressions have equal residues, whatever their form: nothing is expanded, simplified or searched, so
nothing can hang. Unequal ones of sensible size agree by chance once in about 2**250 (J. T. Schwartz, Fast probabilistic
algorithms for verification of polynomial identities, 1980). Variables count as positive reals.

The prime makes roots and powers behave like those of positive reals:

* P = 8 * 3 * 5 * ... * 97 * k - 1: so -1 is no square, i lives in the field of P**2 elements, and the primes up to 97
  are all squares.
* The elements of norm 1 have order P + 1: so roots of unity of these orders, sines and cosines, are there as well.
* Q = (P - 1) / 2 is prime, and is the order of the group of squares. So a square has exactly one n-th root that is a
  square again, and (x y)^(1/n) is x^(1/n) y^(1/n); and exponents can be evaluated modulo Q, beside the residue, so
  2^(n+1) is 2 * 2^n.

Beside its residue each value carries about what it is as a floating-point number, for what a finite field does not
know: order, signs, and how near a written decimal is.
"""

import cmath
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Final

P: Final = 100421647855164150118137007176262312214052778443998275013961937934062715250119
Q: Final = (P - 1) // 2

LARGEST_RATIONAL: Final = 1 << 100
"""Numerators and denominators below this are read back from a residue; one in 2**55 would be so by chance."""
LARGEST_FACTORIAL: Final = 3_000
LARGEST_CHOICE: Final = 200
"""Of a binomial coefficient, or what is left of it."""
COMMON_PARTS: Final = 24
"""Angles are taken as multiples of this part of them."""
LARGEST_MULTIPLE: Final = 100_000
LARGEST_DIVISOR: Final = 30_000
"""Integers under roots and logarithms are factored up to here, which is complete below 9e8."""


NOT_A_NUMBER: Final = complex(math.nan, math.nan)


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
    size: complex = field(default=NOT_A_NUMBER, compare=False)
    """About what it is among the complex numbers; NaN where that is unknown."""

    def __add__(self, other: "Residue") -> "Residue":
        """Sum."""
        return Residue(
            (self.real + other.real) % P,
            (self.imaginary + other.imaginary) % P,
            (self.exponent + other.exponent) % Q,
            self.size + other.size,
        )

    def __neg__(self) -> "Residue":
        """Negative."""
        return Residue(-self.real % P, -self.imaginary % P, -self.exponent % Q, -self.size)

    def __sub__(self, other: "Residue") -> "Residue":
        """Difference."""
        return self + -other

    def __mul__(self, other: "Residue") -> "Residue":
        """Product."""
        return Residue(
            (self.real * other.real - self.imaginary * other.imaginary) % P,
            (self.real * other.imaginary + self.imaginary * other.real) % P,
            self.exponent * other.exponent % Q,
            self.size * other.size,
        )

    def __truediv__(self, other: "Residue") -> "Residue":
        """Quotient; `NoValueError` by zero."""
        norm = (other.real * other.real + other.imaginary * other.imaginary) % P
        if norm == 0:
            raise NoValueError
        inverse = pow(norm, -1, P)
        exponent = pow(other.exponent, -1, Q) if other.exponent else 0
        size = 1 / other.size if other.size else NOT_A_NUMBER
        return self * Residue(other.real * inverse % P, -other.imaginary * inverse % P, exponent, size)

    def rational(self) -> Fraction | None:
        """Return the small rational number that this is, if it is one (P. S. Wang, 1981)."""
        return None if self.imaginary else _small_fraction(self.real)

    def text(self) -> str:
        """Write it as `3/4`, `3/4+2i` or, where it is not rational, as a hash; equal residues have equal texts."""
        real, imaginary = _small_fraction(self.real), _small_fraction(self.imaginary)
        if real is None or imaginary is None:
            return "~" + hashlib.sha256(f"{self.real},{self.imaginary}".encode()).hexdigest()[:32]
        return f"{real}+{imaginary}i" if imaginary else str(real)


def _float(value: Fraction | int) -> complex:
    try:
        return complex(float(value))
    except OverflowError:
        return NOT_A_NUMBER


def number(value: Fraction | int) -> Residue:
    """Return a rational number; `NoValueError` where its denominator is a multiple of P or Q."""
    if value.denominator % P == 0 or value.denominator % Q == 0:
        raise NoValueError
    return Residue(
        value.numerator * pow(value.denominator, -1, P) % P,
        0,
        value.numerator * pow(value.denominator, -1, Q) % Q,
        _float(value),
    )


ZERO: Final = number(0)
ONE: Final = number(1)
TWO: Final = number(2)


def symbol(name: str) -> Residue:
    """Return the element that a name stands for: a square, since variables count as positive."""
    return Residue(pow(_hash(name), 2, P), 0, _hash(name, "exponent") % Q, 1 + _hash(name, "size") / P)


def power(base: Residue, exponent: Residue) -> Residue:
    """Return base^exponent; roots are the principal real ones, -8 to the 1/3 is -2, -4 to the 1/2 is 2 i."""
    rational = exponent.rational()
    if rational is not None and rational.denominator == 1:
        return _integer_power(base, rational.numerator)
    number_base = base.rational()
    if number_base is not None and rational is not None:
        return _rational_power(number_base, rational)
    size = _float_power(base.size, exponent.size)
    if same(base, EULER) and exponent.real == 0 and exponent.exponent != 0:
        # e^(i t) is a point of the unit circle.
        angle = exponent / IMAGINARY_UNIT
        return _sized(_plus(*sine_cosine(angle)[::-1]), size)
    if base.imaginary == 0 and pow(base.real, Q, P) == 1 and not exponent.imaginary:
        return _opaque_exponent(pow(base.real, exponent.exponent, P), 0, size)
    if base.imaginary == 0 and rational is not None and rational.denominator == 2:
        root = Residue(0, pow(-base.real, pow(2, -1, Q), P), 0)
        return _sized(_integer_power(_opaque_exponent(root.real, root.imaginary), rational.numerator), size)
    return _sized(function("power", base, exponent), size)


def root(value: Residue, degree: Residue) -> Residue:
    """Return the principal root."""
    return power(value, ONE / degree)


def same(a: Residue, b: Residue) -> bool:
    """Tell whether two values are equal, whatever they are as exponents."""
    return (a.real, a.imaginary) == (b.real, b.imaginary)


def function(name: str, *arguments: Residue, size: complex = NOT_A_NUMBER) -> Residue:
    """Return the value of a function of which nothing else is known: equal arguments, equal values."""
    described = ";".join(f"{argument.real},{argument.imaginary}" for argument in arguments)
    return _sized(symbol(f"{name}({described})"), size)


def conjugate(value: Residue) -> Residue:
    """Return the complex conjugate."""
    return Residue(value.real, -value.imaginary % P, value.exponent, value.size.conjugate())


def sine_cosine(angle: Residue) -> tuple[Residue, Residue]:
    """Return both, so that their squares add up to one, and the sine is odd; exact at multiples of 3 and 22.5 degrees.

    As a unit root of order n is at hand for every n that divides P + 1, so are the sines of its angle.
    """
    turns = (angle / TWO / PI).rational()
    if turns is not None and (known := _unit_root(turns % 1)) is not None:
        return known
    mirrored = (-angle.real % P, -angle.imaginary % P) < (angle.real, angle.imaginary)
    half = function("tangent of half", -angle if mirrored else angle)
    norm = ONE + half * half
    sine = TWO * half / norm
    try:
        sizes = cmath.sin(angle.size), cmath.cos(angle.size)
    except (OverflowError, ValueError):
        sizes = NOT_A_NUMBER, NOT_A_NUMBER
    return _sized(-sine if mirrored else sine, sizes[0]), _sized((ONE - half * half) / norm, sizes[1])


def combined_angle(angles: Sequence[tuple[Residue, Fraction]]) -> tuple[Residue, Residue]:
    """Return the sine and cosine of a sum of multiples of angles, by the formulas for sums: sin 2x is 2 sin x cos x."""
    sine, cosine = ZERO, ONE
    for angle, times in angles:
        # A common part of whole and half angles, so that they know of each other.
        shared = times * COMMON_PARTS
        if shared.denominator == 1 and abs(shared) < LARGEST_MULTIPLE and (angle / PI).rational() is None:
            part = _multiple(sine_cosine(angle / number(COMMON_PARTS)), abs(shared.numerator))
            part = (-part[0], part[1]) if shared < 0 else part
        else:
            part = sine_cosine(angle * number(times))
        sine, cosine = sine * part[1] + cosine * part[0], cosine * part[1] - sine * part[0]
    return sine, cosine


def logarithm(value: Residue) -> Residue:
    """Return the natural logarithm; that of a product of integers is the sum of theirs; `NoValueError` of zero."""
    if same(value, EULER):
        return ONE
    rational = value.rational()
    if rational == 0:
        raise NoValueError
    size = cmath.log(value.size) if value.size else NOT_A_NUMBER
    if rational is None:
        return function("log", value, size=size)
    if rational < 0:
        return logarithm(-value) + IMAGINARY_UNIT * PI
    result = ZERO
    for factor, times in _factors(rational):
        result += number(times) * function("log", number(factor))
    return _sized(result, size)


def absolute(value: Residue) -> Residue:
    """Return the absolute value: of numbers exactly, of another expression as an even function."""
    rational = value.rational()
    if rational is not None:
        return number(abs(rational))
    if value.imaginary:
        return _sized(root(value * conjugate(value), TWO), abs(value.size))
    mirrored = -value
    return function("abs", min(value, mirrored, key=lambda one: (one.real, one.imaginary)), size=abs(value.size))


def factorial(value: Residue) -> Residue:
    """Return n!; `NoValueError` unless n is a whole number of at most `LARGEST_FACTORIAL`, or not a number."""
    rational = value.rational()
    if rational is None:
        return function("factorial", value)
    if rational.denominator != 1 or not 0 <= rational <= LARGEST_FACTORIAL:
        raise NoValueError
    return _whole_factorial(rational.numerator)


def float_of(value: Residue) -> float:
    """Return about what a real value is; `NoValueError` where that is unknown."""
    if not math.isfinite(value.size.real) or abs(value.size.imag) > 1e-9 * (1 + abs(value.size.real)):
        raise NoValueError
    return value.size.real


def binomial(upper: Residue, chosen: int) -> Residue:
    """Return a binomial coefficient, for any number or variable above; `NoValueError` beyond `LARGEST_CHOICE`."""
    whole = upper.rational()
    if whole is not None and whole.denominator == 1 and whole >= 0:
        chosen = min(chosen, int(whole) - chosen)
    if chosen > LARGEST_CHOICE:
        raise NoValueError
    if chosen < 0:
        return ZERO
    if whole is not None and whole.denominator == 1 and whole >= 0:
        return number(math.comb(int(whole), chosen))
    # As a product, so that n over 2 is n (n - 1) / 2.
    result = ONE
    for index in range(chosen):
        result *= upper - number(index)
    return result / _whole_factorial(chosen)


@lru_cache(maxsize=4096)
def _whole_factorial(value: int) -> Residue:
    return number(math.factorial(value))


def _float_power(base: complex, exponent: complex) -> complex:
    try:
        if base.imag == 0 and base.real < 0 and exponent.imag == 0 and abs(1 / exponent.real % 2 - 1) < 1e-9:
            return complex(-((-base.real) ** exponent.real))
        return base**exponent
    except (OverflowError, ZeroDivisionError, ValueError):
        return NOT_A_NUMBER


def _sized(value: Residue, size: complex) -> Residue:
    return Residue(value.real, value.imaginary, value.exponent, size)


def _plus(real: Residue, imaginary: Residue) -> Residue:
    return real + IMAGINARY_UNIT * imaginary


def _multiple(point: tuple[Residue, Residue], times: int) -> tuple[Residue, Residue]:
    """Turn a point of the unit circle, sine and cosine, `times` times as far."""
    sine, cosine = ZERO, ONE
    for bit in bin(times)[2:]:
        sine, cosine = TWO * sine * cosine, cosine * cosine - sine * sine
        if bit == "1":
            sine, cosine = sine * point[1] + cosine * point[0], cosine * point[1] - sine * point[0]
    return sine, cosine


@lru_cache(maxsize=512)
def _unit_root(turns: Fraction) -> tuple[Residue, Residue] | None:
    """Return sine and cosine of a part of a whole turn; None where there are none in the field."""
    order = turns.denominator
    if order % 16 == 0 and order % 32 and (double := _unit_root(turns * 2 % 1)) is not None:
        cosine = root((ONE + double[1]) / TWO, TWO)
        cosine = -cosine if math.cos(2 * math.pi * turns) < 0 else cosine
        return double[0] / (TWO * cosine), cosine
    if (P + 1) % order:
        return None
    sine, cosine = ZERO, ONE
    rest = turns
    for prime, generator in _unit_generators(order):
        # The part of the fraction that has this denominator, by the Chinese remainder theorem.
        times = rest.numerator * pow(order // prime, -1, prime) % prime
        part = _multiple(generator, times)
        sine, cosine = sine * part[1] + cosine * part[0], cosine * part[1] - sine * part[0]
    angle = 2 * math.pi * float(turns)
    return _sized(sine, complex(math.sin(angle))), _sized(cosine, complex(math.cos(angle)))


def _unit_generators(order: int) -> list[tuple[int, tuple[Residue, Residue]]]:
    """Return sine and cosine of 1/q of a turn for the prime powers q that make up the order."""
    found: list[tuple[int, tuple[Residue, Residue]]] = []
    for power_of_prime in (8, 4, 2, *(prime for prime in range(3, order + 1, 2))):
        if order % power_of_prime or any(math.gcd(known, power_of_prime) > 1 for known, _ in found):
            continue
        found.append((power_of_prime, _unit_generator(power_of_prime)))
    return found


@lru_cache(maxsize=64)
def _unit_generator(order: int) -> tuple[Residue, Residue]:
    half = number(Fraction(1, 2))
    if order == 2:
        return ZERO, -ONE
    if order == 4:
        return ONE, ZERO
    if order == 8:
        return root(half, TWO), root(half, TWO)
    if order == 3:
        return root(number(3), TWO) * half, -half
    if order == 5:
        five = root(number(5), TWO)
        return root((number(5) + five) / number(8), TWO), (five - ONE) / number(4)
    start = Residue(_hash("unit", str(order)), 1, 0)
    unit = _integer_power(conjugate(start) / start, (P + 1) // order)
    return Residue(unit.imaginary, 0, _hash("sine", str(order)) % Q), Residue(
        unit.real, 0, _hash("cos", str(order)) % Q
    )


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256(";".join(parts).encode("utf-8", "surrogatepass")).digest(), "big") % P


IMAGINARY_UNIT: Final = Residue(0, 1, _hash("i") % Q, 1j)
EULER: Final = _sized(symbol("e"), complex(math.e))
PI: Final = _sized(symbol("pi"), complex(math.pi))
INFINITY: Final = _sized(symbol("infinity"), complex(math.inf))


def _opaque_exponent(real: int, imaginary: int, size: complex = NOT_A_NUMBER) -> Residue:
    return Residue(real % P, imaginary % P, _hash("exponent", str(real % P), str(imaginary % P)) % Q, size)


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


@lru_cache(maxsize=1024)
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
    size = _float_power(_float(base), _float(exponent))
    result = ONE
    for factor, times in _factors(abs(base)):
        whole, fraction = divmod(times * exponent, 1)
        result *= _integer_power(number(factor), whole) * _prime_root(factor, fraction)
    if base > 0:
        return _sized(result, size)
    if exponent.denominator % 2:
        return _sized(-result if exponent.numerator % 2 else result, size)
    if exponent.denominator == 2:
        return _sized(result * _integer_power(IMAGINARY_UNIT, exponent.numerator), size)
    return function("power", number(base), number(exponent), size=size)


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
