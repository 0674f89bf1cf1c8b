"""What adaptive and pruned picks spend: steps and seconds counted by hand, and figures of picks worked out by hand."""

from collections import Counter

import numpy as np
import pytest

from swift_edge.answers import answer_task
from swift_edge.evaluation.economy import _between, _steps, economy
from swift_edge.scoring import PREFIX_TOKENS, AnswerCalibration, Calibration, PrefixCalibration
from swift_edge.selection import Decision
from swift_edge.selection.adaptive.step_times import StepTimes
from swift_edge.training import StoredCandidate

CALIBRATION = Calibration(
    1.0, 0.0, 0.5, 0.0, 100, 50, AnswerCalibration(1.0, 0.0, 0.0, 100), {16: PrefixCalibration(1.0, 0.0, 100)}
)
DECISION = Decision("calibrated", answer_task("exact"), None, None, CALIBRATION)
TIMES = StepTimes({1: 1.0, 2: 1.5, 4: 2.5, 8: 6.5})


def candidate(problem: int, index: int, score: float, *, correct: bool, tokens: int = 40) -> StoredCandidate:
    running = {"mine": tuple(score for count in PREFIX_TOKENS if count <= tokens)}
    answer = "right" if correct else f"wrong {index}"
    return StoredCandidate(
        problem, index, correct, answer, answer, (index,) * tokens, 0, tokens, "stop", 0, -1.0, -1.0, 0.0, 0.0,
        {"mine": score}, running,
    )  # fmt: skip


def test_steps_of_candidates_that_begin_together() -> None:
    assert _steps([3, 5, 5, 9]) == Counter({4: 3, 3: 2, 1: 4, 2: 0})


def test_seconds_of_steps_and_the_knee() -> None:
    assert TIMES.of({1: 2, 3: 4, 8: 1}) == pytest.approx(2 * 1.0 + 4 * 2.0 + 6.5)
    assert TIMES.of({}) == 0.0
    assert TIMES.knee == pytest.approx(8 / 6.5)


def test_what_was_spent_lies_between_two_sizes() -> None:
    fixed = {1: {"tokens": 10.0}, 4: {"tokens": 40.0}, 16: {"tokens": 160.0}}
    assert _between(fixed, "tokens", 25.0) == ((1, 4), 0.5)
    assert _between(fixed, "tokens", 70.0) == ((4, 16), 0.25)
    assert _between(fixed, "tokens", 5.0) == ((1, 4), 0.0)
    assert _between(fixed, "tokens", 200.0) == ((16, 16), 0.0)


def test_easy_problems_are_settled_early_and_weak_rows_are_dropped() -> None:
    easy = [candidate(0, index, 3.0, correct=True) for index in range(8)]
    hard = [candidate(1, index, -1.0 if index % 2 else 1.0, correct=index == 6) for index in range(8)]
    right = np.array([1.0, 0.25])
    chances = {size: {"oracle": np.ones(2), "mine calibrated": right, "majority": right / 2} for size in (1, 4, 8)}
    found = economy([easy, hard], DECISION, "mine", chances, TIMES, lambda plan: plan, resamples=100)
    plans = found["plans"]
    assert found["fixed"]["8"] == {"tokens": 320.0, "seconds": 40 * 6.5}
    assert plans["auto"]["candidates"] < 8
    whole = plans["auto, not pruned"]
    assert whole["tokens"] == 40 * whole["candidates"]
    # At 16 tokens half of the hard problem's rows are 2 behind, and none of the easy one's.
    assert plans["pruned"]["tokens"] == (8 * 40 + 4 * 40 + 4 * 16) / 2
    assert plans["pruned"]["seconds"] == pytest.approx((40 * 6.5 + 16 * 6.5 + 24 * 2.5) / 2)
    assert plans["auto"]["tokens"] < whole["tokens"]
    assert plans["pruned"]["tokens_share"] == plans["pruned"]["tokens"] / 320
    for figures in plans.values():
        less = figures["less_calibrated_at_most"]["value"]
        assert less == pytest.approx(figures["accuracy"]["value"] - right.mean())
        assert figures["best_at_equal_tokens"]["rule"] == "mine calibrated"
