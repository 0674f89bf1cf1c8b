"""Scores to probabilities: the curve that made the labels is found again, and what makes no curve is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge import Selector
from swift_edge.errors import InvalidOptionError, TrainingError
from swift_edge.scoring import Calibration, Head, calibration_error, fit_calibration

STORIES = Path(__file__).parents[2] / "models" / "stories260k"
PLAIN = Calibration(slope=1.5, intercept=-0.5, base_rate=0.4, error=0.02, candidates=80, problems=10)


def drawn(
    slope: float, intercept: float, candidates: int, seed: int = 0, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.normal(3, 1.5, candidates) * scale
    correct = random.random(candidates) < 1 / (1 + np.exp(-(slope * scores + intercept)))
    return scores, correct, np.arange(candidates) // 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slope", "intercept", "scale"), [(1.2, -3.0, 1), (0.3, 0.4, 1), (1200, -3.0, 1e-3), (0, 0.5, 1)]
)
def test_the_curve_that_made_the_labels_is_found_again(slope: float, intercept: float, scale: float) -> None:
    scores, correct, problems = drawn(slope, intercept, 40_000, scale=scale)
    found = fit_calibration(scores, correct, problems, seed=0)
    # Four standard errors of 40,000 labels.
    assert found.slope * scale == pytest.approx(slope * scale, abs=0.05)
    assert found.intercept == pytest.approx(intercept, abs=0.15)
    assert found.base_rate == correct.mean()
    assert (found.candidates, found.problems) == (40_000, 5_000)
    # A bin of 4,000 candidates strays by 0.4 of sqrt(0.25 / 4,000) = 0.008 on average.
    assert found.error < 0.015


def test_newton_ends_where_the_likelihood_is_greatest() -> None:
    scores, correct, problems = drawn(0.8, -2.0, 400)
    found = fit_calibration(scores, correct, problems, seed=0)

    def cost(slope: float, intercept: float) -> float:
        margins = slope * scores + intercept
        ridge = 0.05 * (slope * scores.std()) ** 2
        return float(np.logaddexp(0, margins).sum() - margins[correct].sum() + ridge)

    least = cost(found.slope, found.intercept)
    for slope, intercept in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert cost(found.slope + slope, found.intercept + intercept) > least


def test_error_is_that_of_problems_the_curve_has_not_seen() -> None:
    # The label is the parity of the problem and the score its number: each fold of problems misleads the others, and a
    # curve that had seen them would be as good as its base rate, which is one half everywhere.
    random = np.random.default_rng(0)
    scores, correct = random.normal(size=24), np.arange(24) // 4 % 2 == 0
    inside = calibration_error(np.full(24, 0.5), correct)
    found = fit_calibration(scores, correct, np.arange(24) // 4, seed=0)
    assert found.error > inside - 1e-9
    same = fit_calibration(scores, correct, np.arange(24) // 4, seed=0)
    assert same == found
    errors = {fit_calibration(scores, correct, np.arange(24) // 4, seed=seed).error for seed in range(8)}
    assert len(errors) > 1


def test_separable_scores_give_a_finite_curve() -> None:
    found = fit_calibration([0.0, 0.1, 0.9, 1.0], [False, False, True, True], [0, 1, 0, 1], seed=0)
    assert 1 < found.slope < 100
    low, high = found.probability([0.0, 1.0])
    assert 0 < low < 0.2
    assert 0.8 < high < 1


@pytest.mark.parametrize("scores", [[3.0, 2.0, 1.0, 0.0, 3.5, -1.0], [2.5] * 6])
def test_scores_that_say_nothing_or_the_opposite_give_the_base_rate(scores: list[float]) -> None:
    correct = [False, False, True, True, False, True]
    found = fit_calibration(scores, correct, [0, 0, 1, 1, 2, 2], seed=0)
    assert found.slope == 0
    np.testing.assert_allclose(found.probability(scores), 0.5)
    np.testing.assert_allclose(found.likelihood_ratio(scores), 1.0, rtol=1e-12)


def test_candidates_without_a_score_are_left_out() -> None:
    scores, correct, problems = drawn(1.0, -3.0, 200)
    holes = scores.copy()
    holes[::7] = np.nan
    kept = np.isfinite(holes)
    found = fit_calibration(holes, correct, problems, seed=3)
    assert found == fit_calibration(scores[kept], correct[kept], problems[kept], seed=3)


@pytest.mark.parametrize(
    ("scores", "correct", "problems", "message"),
    [
        ([], [], [], "0 candidates of 0 problems"),
        ([1.0, 2.0], [True, True], [0, 1], "2 candidates of 2 problems, 2 of them correct"),
        ([1.0, 2.0], [False, False], [0, 1], "0 of them correct"),
        ([1.0, 2.0], [True, False], [0, 0], "of 1 problems"),
        ([1.0, math.nan], [True, False], [0, 1], "1 candidates"),
    ],
)
def test_what_gives_no_curve_is_refused(
    scores: list[float], correct: list[bool], problems: list[int], message: str
) -> None:
    with pytest.raises(TrainingError, match=f"{message}.*collect more"):
        fit_calibration(scores, correct, problems, seed=0)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="2 scores came with 1 labels"):
        fit_calibration([1.0, 2.0], [True], [0, 1], seed=0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_probability_rises_with_the_score(scores: list[float]) -> None:
    chances = PLAIN.probability(scores)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert (np.diff(chances[np.argsort(scores)]) >= 0).all()
    expected = [1 / (1 + math.exp(-max(-700.0, 1.5 * score - 0.5))) for score in scores]
    np.testing.assert_allclose(chances, expected, rtol=1e-9, atol=1e-300)


def test_likelihood_ratio_is_what_a_score_adds_to_the_base_rate() -> None:
    scores = np.array([-1.0, 0.0, 2.0])
    ratio = PLAIN.likelihood_ratio(scores)
    odds = ratio * 0.4 / 0.6
    np.testing.assert_allclose(odds / (1 + odds), PLAIN.probability(scores))


def test_scores_that_are_no_numbers_have_no_probability() -> None:
    for score in (math.nan, math.inf, -math.inf):
        assert math.isnan(PLAIN.probability([score])[0])
        assert math.isnan(PLAIN.likelihood_ratio([score])[0])


def test_error_is_the_mean_gap_in_bins_of_equal_count() -> None:
    chances = np.repeat([0.1, 0.3, 0.5, 0.9], 10)
    correct = np.concatenate([np.arange(10) < count for count in (1, 6, 5, 5)])
    # Of ten bins of four candidates: off by 0, 0.3, 0 and 0.4 in a quarter of the candidates each.
    assert calibration_error(chances, correct) == pytest.approx((0 + 0.3 + 0 + 0.4) / 4)
    order = np.random.default_rng(0).permutation(40)
    assert calibration_error(chances[order], correct[order]) == pytest.approx(calibration_error(chances, correct))
    assert calibration_error([0.25], [True]) == 0.75
    assert math.isnan(calibration_error([], []))


def test_as_data_and_back() -> None:
    document = json.loads(json.dumps(PLAIN.to_dict()))
    assert Calibration(**document) == PLAIN
    assert replace(PLAIN, slope=np.float64(1.5), problems=np.int64(10)).to_dict() == PLAIN.to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"slope": -0.1},
        {"slope": math.nan},
        {"slope": "1"},
        {"slope": True},
        {"intercept": math.inf},
        {"intercept": None},
        {"base_rate": 0.0},
        {"base_rate": 1},
        {"error": -0.1},
        {"error": 1.1},
        {"candidates": 0},
        {"problems": 2.5},
    ],
)
def test_other_data_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the calibration.*; expected"):
        replace(PLAIN, **changes)


def test_pick_with_a_calibrated_head_says_how_likely_its_pick_is_correct(stories_head: Head) -> None:
    calibrated = replace(stories_head, calibration=PLAIN)
    picked = Selector(STORIES, head=calibrated, threads=1).pick(
        "Once upon a time", n=3, max_new_tokens=40, stop=list("aeiou")
    )
    assert picked.p_correct == PLAIN.probability(picked.best.score)
    assert picked.to_dict()["p_correct"] == picked.p_correct
    # The signal that ranks in the head's place was not calibrated.
    by_signal = Selector(STORIES, head=calibrated, threads=1).pick(
        "Once upon a time", n=2, max_new_tokens=3, signal="mean_logprob"
    )
    assert by_signal.p_correct is None
    plain = Selector(STORIES, head=stories_head, threads=1).pick("Once upon a time", n=2, max_new_tokens=3)
    assert plain.p_correct is None


def test_a_pick_without_a_score_has_no_probability(stories_head: Head) -> None:
    silent = replace(stories_head, calibration=PLAIN, includes_eos=False)
    # The only token is an EOS, which this head leaves uncounted.
    scored = Selector(STORIES, head=silent, threads=1).score("Once upon a time", ["</s>"])
    assert math.isnan(scored.best.score)
    assert scored.p_correct is None
    json.dumps(scored.to_dict(), allow_nan=False)
