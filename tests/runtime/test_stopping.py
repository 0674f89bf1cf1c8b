"""When no further candidate is worth it: the three rules against values worked out another way."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.scoring import AnswerCalibration
from swift_edge.selection.adaptive.stopping import confidence_at, gain, lead, likeliest

ANSWERS = AnswerCalibration(1.0, 0.0, 0.0, 100)


def test_less_confidence_is_asked_for_the_fewer_candidates_may_still_come() -> None:
    asked = [confidence_at(completed, 16, None) for completed in range(4, 17)]
    assert asked == sorted(asked, reverse=True)
    assert asked[0] == 0.97
    assert asked[6] == pytest.approx(0.97 * math.sqrt(math.sqrt(0.5)))
    assert asked[-1] == 0.0
    assert confidence_at(4, 4, None) == 0.0


def test_the_likeliest_answer_takes_what_is_promised() -> None:
    assert likeliest([1.0, 2.0], ANSWERS) == pytest.approx(2 / (1 + 1 + 2))
    assert likeliest([1.0, 2.0], ANSWERS, promised=3.0) == pytest.approx(5 / (1 + 1 + 5))
    assert likeliest([], ANSWERS) == 0.0


@given(st.integers(0, 12), st.integers(0, 12))
def test_the_lead_is_the_beta_distribution_beyond_one_half(first: int, second: int) -> None:
    first, second = max(first, second), min(first, second)
    # Integrate p^first (1 - p)^second over (1/2, 1) and over (0, 1).
    points = [(place + 0.5) / 4000 for place in range(4000)]
    density = [p**first * (1 - p) ** second for p in points]
    expected = sum(density[2000:]) / sum(density)
    assert lead([second, first] if first else []) == pytest.approx(expected if first else 0.0, abs=1e-4)


def test_promised_votes_lengthen_the_lead() -> None:
    assert lead([2, 1], promised=2) == lead([4, 1])


def test_the_gain_is_that_of_one_more_normal_score() -> None:
    scores = [0.0, 1.0, 2.0, 3.0]
    mean, deviation = 1.5, math.sqrt(5 / 3)
    steps = [(place + 0.5) / 1000 for place in range(3000, 12000)]  # beyond the best, 3.0
    density = [math.exp(-(((x - mean) / deviation) ** 2) / 2) / math.sqrt(2 * math.pi) / deviation for x in steps]
    expected = sum((x - 3.0) * each for x, each in zip(steps, density, strict=True)) / 1000 / deviation
    assert gain(scores) == pytest.approx(expected, abs=1e-4)


def test_nothing_is_gained_where_all_scores_are_equal_and_all_may_be_before_there_are_two() -> None:
    assert gain([0.5, 0.5, 0.5]) == 0.0
    assert gain([0.5]) == math.inf
    assert gain([0.5, math.nan]) == math.inf
