"""LaTeX answers: which are equal, which responses are right, and what hostile ones cost."""

import cmath
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from swift_edge.answers import answer_task
from swift_edge.answers.latex import agree_latex, reads_as_mathematics

DATA = Path(__file__).parents[1] / "data" / "answers"
TASK = answer_task("latex")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


KINDS = sorted({row["kind"] for row in rows("latex_kinds.jsonl")})
UNSEEN = sorted({row["kind"] for row in rows("latex_unseen.jsonl")})
REFERENCES = sorted({row["answer"] for row in rows("math500.jsonl")})


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_answers(kind: str) -> None:
    cases = [row for row in rows("latex_kinds.jsonl") if row["kind"] == kind]
    assert cases
    assert [row for row in cases if getattr(TASK, row["operation"])(row["a"], row["b"]) is not row["wanted"]] == []


@pytest.mark.parametrize("kind", UNSEEN)
def test_pairs_that_were_written_before_they_were_tried(kind: str) -> None:
    cases = [row for row in rows("latex_unseen.jsonl") if row["kind"] == kind]
    assert [row for row in cases if TASK.correct(row["a"], row["b"]) is not row["wanted"]] == []


NO_VALUES = ("=", "<", ">", ",", r"\in", r"\text")
SPELLINGS: dict[str, Callable[[str], str]] = {
    "dollars": lambda text: f"${text}$",
    "display": lambda text: rf"\[ {text} \]",
    "a box": lambda text: rf"\boxed{{{text}}}",
    "dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    "no left and right": lambda text: text.replace(r"\left", "").replace(r"\right", ""),
    "thin spaces": lambda text: text.replace("+", r"\,+\,").replace("=", r"\; = \;"),
    "cdot": lambda text: text.replace(r"\pi", r"\cdot \pi") if text[:1].isdigit() and r"\pi" in text else text,
    "a name before it": lambda text: text if any(each in text for each in NO_VALUES) else f"W = {text}",
    "a full stop": lambda text: text + ".",
    "minus signs": lambda text: text.replace("-", "−"),
    "text units": lambda text: text + r"\text{ units}" if text.isdigit() else text,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_reference_are_equal_to_it(spelling: str) -> None:
    for reference in REFERENCES:
        spelt = SPELLINGS[spelling](reference)
        assert TASK.equal(spelt, reference), spelt
        assert TASK.correct(rf"... it is $\boxed{{{spelt}}}$.", reference), spelt


def test_references_are_read_as_mathematics_or_words() -> None:
    words = {"Evelyn", "east", "even", "ellipse", "Navin"}
    unread = {reference for reference in REFERENCES if not reads_as_mathematics(reference)}
    assert unread <= {rf"\text{{{word}}}" for word in words}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{2} and \boxed{3}.", "2, 3"),
        (r"$x = \boxed{2}$ or $x = \boxed{3}$", "2, 3"),
        (r"\boxed{5}, again \boxed{5}", "5"),
        (r"\boxed{5}, and \boxed{5.0}", "5.0"),
        (r"\boxed{12} is the area. So the side is \boxed{4}", "4"),
        ("x^2 + 1", "x^2 + 1"),
        (r"Hence the value is \sqrt{2}.", r"\sqrt{2}"),
        ("The answer is 5, because 2 + 3 = 5.", "5"),
        (r"It costs $\$100$.", r"\$100"),
        ("The solutions are $1$ and $2$.", "$1$ and $2$"),
        ("First $1$ and $2$.", "2"),
        ("I do not know anything about this", None),
        # Sentences end as in the other tasks.
        ("The answer is $5. She has $3 left.", "5"),
        ("The answer is St. Louis. It lies in Missouri.", "St. Louis"),
        ("<answer>[1, 2]</answer>", "[1, 2]"),
        ("Answer:\n- $x+1$", "$x+1$"),
    ],
)
def test_where_mathematics_is_found(text: str, answer: str | None) -> None:
    assert TASK.extract(text) == answer


HOSTILE = {
    "tower": "9^{9^{9^9}}", "factorial": "(10^9)!", "power": "(x+y+z)^{99999}", "sum": r"\sum_{k=1}^{10^9} k^k",
    "products": r"\prod_{k=1}^{1000}\prod_{j=1}^{1000}(k+j)", "logs": r"\sum_{k=1}^{90}\sum_{j=1}^{90}\ln(kj)",
    "integrals": r"\int " * 200 + "x" + " dx" * 200, "brackets": "(" * 100_000 + "1" + ")" * 100_000,
    "roots": r"\sqrt" * 900 + "2", "matrix": r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{99999}", "exponent": "1e999999999",
    "cells": r"\begin{pmatrix}" + r"1&2\\" * 300 + r"\end{pmatrix}", "signs": r"1\pm2" * 150,
    "words": r"\text{" * 40_000,
    "sets": r"\{" * 30 + r"1\pm2" + r"\}" * 30, "tuples": "(" * 38 + "1," * 38 + "1" + ",1)" * 38, "bars": "|" * 1500,
    "angles": r"\sin(\cos(" * 60 + "x" + "))" * 60, "marks": "x" + "!" * 1900, "relations": "x<" * 500 + "y",
    "boxes": r"\boxed{1}, " * 10_000, "dollars": "$x$ and " * 30_000, "spaces": "1 " * 100_000,
    "phrases": "the answer is " * 40_000, "backslashes": "\\" * 200_000, "open": r"\boxed{" * 20_000,
    "mixed": "2x}1 1/2", "sizes": r"|(1+i)^{2047}(1+i)^{2047}|",
    "options": "(A) " * 490, "phrased options": "The answer is " + "(A) " * 7_500,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_wrong_and_cost_little(name: str) -> None:
    text = HOSTILE[name]
    assert TASK.equal(text, text)
    assert not TASK.correct(text, "7 or 8")
    assert not TASK.correct("7 or 8", text)


Point: TypeAlias = dict[str, float]
Expression: TypeAlias = tuple[str, Callable[[Point], complex]]
POINTS: list[Point] = [{"x": 1.3, "y": 1.7, "n": 1.1}, {"x": 1.9, "y": 1.2, "n": 1.6}]


def number(value: Fraction) -> Expression:
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}", lambda _: complex(value)


def variable(name: str) -> Expression:
    return name, lambda point: complex(point[name])


def applied(wrapped: str, of: Callable[..., complex]) -> Callable[..., Expression]:
    def make(*parts: Expression) -> Expression:
        return wrapped.format(*(part[0] for part in parts)), lambda point: of(*(part[1](point) for part in parts))

    return make


def logarithm(value: complex) -> complex:
    # On the branch cut the sign of zero decides, which is no matter of mathematics.
    assume(abs(value.imag) > 1e-9 or value.real > 0)
    return cmath.log(value)


def root(value: complex) -> complex:
    assume(abs(value.imag) > 1e-9 or value.real > 0)
    return cmath.sqrt(value)


def grown(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    def of(wrapped: str, function: Callable[..., complex], count: int) -> st.SearchStrategy[Expression]:
        return st.builds(applied(wrapped, function), *[parts] * count)

    return st.one_of(
        of("{}+({})", lambda a, b: a + b, 2),
        of("{}-({})", lambda a, b: a - b, 2),
        of(r"({})\cdot({})", lambda a, b: a * b, 2),
        of(r"\frac{{{}}}{{{}}}", lambda a, b: a / b, 2),
        of("({})^{{2}}", lambda a: a * a, 1),
        of("({})^{{-3}}", lambda a: a**-3, 1),
        of(r"\sqrt{{{}}}", root, 1),
        of(r"\ln({})", logarithm, 1),
        of("e^{{{}}}", cmath.exp, 1),
        of(r"\sin({})", cmath.sin, 1),
        of(r"\cos({})", cmath.cos, 1),
        of(r"\arctan({})", cmath.atan, 1),
    )


LEAVES = st.one_of(
    st.fractions(-9, 9, max_denominator=6).map(number),
    st.sampled_from("xyn").map(variable),
    st.just((r"\pi", lambda _: complex(math.pi))),
    st.just(("i", lambda _: 1j)),
)
EXPRESSIONS = st.recursive(LEAVES, grown, max_leaves=6)


def values(expression: Expression) -> list[complex]:
    try:
        found = [expression[1](point) for point in POINTS]
    except (ArithmeticError, ValueError):
        found = []
    assume(found and all(cmath.isfinite(value) and abs(value) < 1e6 for value in found))
    return found


@pytest.mark.slow
@given(one=EXPRESSIONS, other=EXPRESSIONS)
def test_expressions_of_different_value_are_never_equal(one: Expression, other: Expression) -> None:
    apart = any(abs(a - b) > 1e-6 * (1 + abs(a)) for a, b in zip(values(one), values(other), strict=True))
    assert not (apart and TASK.equal(one[0], other[0]))


@pytest.mark.slow
@given(one=EXPRESSIONS, other=EXPRESSIONS, third=EXPRESSIONS)
def test_rules_of_arithmetic_hold_for_expressions(one: Expression, other: Expression, third: Expression) -> None:
    a, b, c = (f"({each[0]})" for each in (one, other, third))
    for each in (one, other, third):
        assume(values(each) and not TASK.canonical(each[0]).startswith("text:"))
    assert TASK.equal(f"{a}+{b}", f"{b}+{a}")
    assert TASK.equal(rf"{a}\cdot({b}+{c})", rf"{a}\cdot{b}+{a}\cdot{c}")
    assert TASK.equal(f"({a}-{b})^2", rf"{a}^2-2\cdot{a}\cdot{b}+{b}^2")
    assert not TASK.equal(f"{a}+1", f"{a}+2")


@given(low=st.integers(-99, 99), size=st.integers(1, 99), closed=st.tuples(st.booleans(), st.booleans()))
def test_inequalities_are_intervals(low: int, size: int, closed: tuple[bool, bool]) -> None:
    high = low + size
    below, above = (r"\le" if each else "<" for each in closed)
    interval = f"{'(['[closed[0]]}{low},{high}{')]'[closed[1]]}"
    assert TASK.equal(rf"{low} {below} x {above} {high}", interval)
    assert TASK.equal(rf"{2 * low + 1} {below} 2x+1 {above} {2 * high + 1}", interval)
    assert TASK.equal(rf"{-high} {above} -x {below} {-low}", interval)
    assert not TASK.equal(rf"{low} {below} x {above} {high + 1}", interval)


@pytest.mark.parametrize("unknown", [r"0.5\infty", "10.5^{400}", r"\frac{0.5}{x'}", r"0.5\ln(x')"])
def test_what_has_no_known_size_is_near_nothing(unknown: str) -> None:
    for other in ("0.50", "0.5", "1", r"\pi", "3.14159", "-0.5"):
        assert not TASK.correct(unknown, other)
        assert not TASK.correct(other, unknown)


@given(answers=st.tuples(*[st.sampled_from([row["a"] for row in rows("latex_kinds.jsonl")])] * 2))
def test_equal_answers_agree_and_agreement_has_no_direction(answers: tuple[str, str]) -> None:
    one, other = answers
    assert agree_latex(one, one)
    assert agree_latex(one, other) == agree_latex(other, one)
    assert agree_latex(one, other) or not TASK.equal(one, other)


@given(value=st.fractions(-(10**6), 10**6, max_denominator=10**4), decimals=st.integers(0, 12))
def test_a_decimal_is_right_for_what_it_rounds_at_six_digits(value: Fraction, decimals: int) -> None:
    assume(value != 0)
    written = f"{float(value):.{decimals}f}"
    exact = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    error = abs(Fraction(written) - value) / abs(value)
    if TASK.correct(written, exact):
        assert error <= Fraction(6, 10**6)
    elif decimals > 0:
        assert error > Fraction(4, 10**6)
