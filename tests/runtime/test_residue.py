"""Arithmetic modulo a prime, by which expressions are compared: roots, powers, and what has no value."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.answers.residue import (
    ONE,
    PI,
    TWO,
    NoValueError,
    P,
    Q,
    Residue,
    absolute,
    float_of,
    number,
    power,
    root,
    same,
    sine_cosine,
)


@given(n=st.integers(0, 10**4), degree=st.integers(2, 7))
def test_a_root_to_its_degree_is_the_number(n: int, degree: int) -> None:
    root = power(number(n), number(Fraction(1, degree)))
    powered = number(1)
    for _ in range(degree):
        powered *= root
    assert powered.rational() == n


def test_the_prime_is_what_the_arithmetic_needs() -> None:
    primes = [q for q in range(3, 98) if all(q % divisor for divisor in range(2, q))]
    assert all((P + 1) % q == 0 for q in [8, *primes])
    assert all(pow(witness, candidate - 1, candidate) == 1 for candidate in (P, Q) for witness in (2, 3, 5, 7, 97))
    assert all(pow(q, Q, P) == 1 for q in [2, *primes])
    with pytest.raises(NoValueError):
        number(1) / number(0)


def turned(part: Fraction) -> tuple[Residue, Residue]:
    return sine_cosine(PI * number(2 * part))


def test_sines_of_parts_of_a_turn_are_their_roots() -> None:
    two, three, five, six = (root(number(value), TWO) for value in (2, 3, 5, 6))
    sines = {
        Fraction(1, 12): number(Fraction(1, 2)),
        Fraction(1, 8): two / TWO,
        Fraction(1, 6): three / TWO,
        Fraction(1, 24): (six - two) / number(4),
        Fraction(1, 20): (five - ONE) / number(4),
        Fraction(1, 10): root(number(10) - TWO * five, TWO) / number(4),
        Fraction(1, 5): root(number(10) + TWO * five, TWO) / number(4),
    }
    for part, sine in sines.items():
        assert same(turned(part)[0], sine), part
        assert same(turned(Fraction(1, 4) - part)[1], sine), part
        assert same(turned(-part)[0], -sine), part


@given(first=st.fractions(0, 1, max_denominator=120), second=st.fractions(0, 1, max_denominator=120))
def test_sines_obey_the_formulas_for_sums(first: Fraction, second: Fraction) -> None:
    exact = all((P + 1) % part.denominator == 0 for part in (first, second, first + second))
    (sine, cosine), (other_sine, other_cosine) = turned(first), turned(second)
    assert same(sine * sine + cosine * cosine, ONE)
    if exact:
        assert same(turned(first + second)[0], sine * other_cosine + cosine * other_sine)
    assert math.isclose(sine.size.real, math.sin(2 * math.pi * first), abs_tol=1e-9)


@given(value=st.fractions(-(10**6), 10**6, max_denominator=10**4))
def test_a_value_knows_its_size(value: Fraction) -> None:
    assert math.isclose(float_of(number(value)), value, rel_tol=1e-12)
    assert math.isclose(abs(root(absolute(number(value)), TWO).size) ** 2, abs(value), rel_tol=1e-9, abs_tol=1e-12)
