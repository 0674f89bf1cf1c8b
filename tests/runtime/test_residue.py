"""Arithmetic modulo a prime, by which expressions are compared: roots, powers, and what has no value."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.answers.residue import NoValueError, P, Q, number, power


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
