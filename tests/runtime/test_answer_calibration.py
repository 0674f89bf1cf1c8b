"""Evidence of answers to probabilities: the formula, its fit, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from swift_edge.errors import InvalidOptionError, TrainingError
from swift_edge.scoring import AnswerCalibration, fit_answer_calibration

SUMS = st.lists(st.floats(1e-9, 1e9), max_size=8)


def example(rng: np.random.Generator, slope: float, intercept: float) -> tuple[list[float], int | None]:
    """Sums of a problem's answers, and which is right by the very formula."""
    sums = np.exp(rng.normal(0, 2, rng.integers(1, 6))).tolist()
    chances = [*AnswerCalibration(slope, intercept, 0.0, 1).posterior(sums)]
    drawn = int(rng.choice(len(sums) + 1, p=[*chances, 1 - sum(chances)]))
    return sums, None if drawn == len(sums) else drawn


def likeliest(sums: list[list[float]], right: list[int | None]) -> np.ndarray:
    """Slope and intercept of the least cost, found without derivatives."""

    def cost(at: np.ndarray) -> float:
        total = 0.05 * (at[0] - 1) ** 2
        for each, place in zip(sums, right, strict=True):
            log_odds = [at[0] * math.log(value) + at[1] for value in each]
            total += np.logaddexp.reduce([*log_odds, 0.0]) - (0.0 if place is None else log_odds[place])
        return float(total)

    return optimize.minimize(cost, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).x


@given(sums=SUMS, slope=st.floats(0, 5), intercept=st.floats(-20, 20))
def test_the_posterior_is_the_formula(sums: list[float], slope: float, intercept: float) -> None:
    posterior = AnswerCalibration(slope, intercept, 0.0, 1).posterior(sums)
    log_odds = [slope * math.log(each) + intercept for each in sums]
    top = max(log_odds, default=0.0)
    weights = [math.exp(each - max(top, 0.0)) for each in log_odds]
    expected = [weight / (math.exp(-max(top, 0.0)) + math.fsum(weights)) for weight in weights]
    np.testing.assert_allclose(posterior, expected, rtol=1e-9, atol=1e-15)
    assert posterior.sum() <= 1 + 1e-12


def test_one_answer_is_a_logistic_curve() -> None:
    assert AnswerCalibration(2.0, -1.0, 0.0, 9).posterior([math.exp(1.5)]) == pytest.approx([1 / (1 + math.exp(-2.0))])


def test_an_answer_without_evidence_cannot_be_right() -> None:
    assert AnswerCalibration(2.0, -1.0, 0.0, 9).posterior([0.0, 1.0]).tolist()[0] == 0.0
    fitted = fit_answer_calibration([[0.0, 1.0], [2.0]] * 20, [0, 0] * 20, range(40), seed=0)
    assert math.isfinite(fitted.slope)


@pytest.mark.slow
def test_the_fit_finds_the_likeliest_parameters() -> None:
    rng = np.random.default_rng(3)
    drawn = [example(rng, 0.6, -0.8) for _ in range(3000)]
    sums, right = [each for each, _ in drawn], [place for _, place in drawn]
    fitted = fit_answer_calibration(sums, right, range(len(drawn)), seed=0)
    assert fitted.slope == pytest.approx(0.6, abs=0.06)
    assert fitted.intercept == pytest.approx(-0.8, abs=0.1)
    assert fitted.error < 0.03
    assert fitted.problems == 3000
    assert [fitted.slope, fitted.intercept] == pytest.approx(likeliest(sums, right), abs=1e-4)


def test_the_slope_stays_finite_where_the_evidence_tells_everything() -> None:
    sums = [[7.0, 0.1], [0.05, 20.0], [3.0], [0.4]] * 3
    right = [0, 1, 0, None] * 3
    fitted = fit_answer_calibration(sums, right, range(12), seed=0)
    assert [fitted.slope, fitted.intercept] == pytest.approx(likeliest(sums, right), abs=1e-4)


def test_evidence_that_points_the_wrong_way_counts_for_nothing() -> None:
    rng = np.random.default_rng(5)
    drawn = [example(rng, 0.8, 0.0) for _ in range(500)]
    turned = [[1 / value for value in sums] for sums, _ in drawn]
    assert fit_answer_calibration(turned, [place for _, place in drawn], range(500), seed=0).slope == 0


def test_problems_without_an_answer_are_examples_of_none() -> None:
    fitted = fit_answer_calibration([[], [1.0], [], [2.0]] * 20, [None, 0, None, None] * 20, range(80), seed=0)
    assert 0 <= fitted.posterior([1.0])[0] < 1
    assert fitted.posterior([]).size == 0


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(TrainingError, match="1 problems give no posterior"):
        fit_answer_calibration([[1.0], [2.0]], [0, None], [7, 7], seed=0)


@pytest.mark.parametrize("wrong", [{"slope": -1.0}, {"slope": math.nan}, {"intercept": "1"}, {"error": math.inf}])
def test_what_makes_no_posterior_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidOptionError, match="the calibration's"):
        replace(AnswerCalibration(1.0, 0.5, 0.02, 40), **wrong)
