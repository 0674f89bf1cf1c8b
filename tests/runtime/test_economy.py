"""What adaptive and pruned picks spend: steps and seconds counted by hand, and figures of picks worked out by hand."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from swift_edge.answers import answer_task
from swift_edge.evaluation.economy import _between, _steps, economy
from swift_edge.evaluation.figures import draw_economy
from swift_edge.scoring import PREFIX_TOKENS, AnswerCalibration, Calibration, PrefixCalibration
from swift_edge.selection import Decision
from swift_edge.selection.adaptive.step_times import StepTimes, least_times
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


def test_without_times_everything_else_is_there() -> None:
    easy = [candidate(0, index, 3.0, correct=True) for index in range(4)]
    chances = {size: {"oracle": np.ones(1), "mine calibrated": np.ones(1)} for size in (1, 4)}
    timed = economy([easy], DECISION, "mine", chances, TIMES, lambda plan: plan, resamples=100)
    found = economy([easy], DECISION, "mine", chances, None, lambda plan: plan, resamples=100)
    assert (found["knee"], found["step_s"]) == (None, {})
    assert {each["seconds"] for each in found["fixed"].values()} == {None}
    for name, figures in found["plans"].items():
        assert (figures["seconds"], figures["seconds_share"], figures["best_at_equal_seconds"]) == (None, None, None)
        for kept in ("accuracy", "tokens", "best_at_equal_tokens"):
            assert figures[kept] == timed["plans"][name][kept]


def test_times_of_a_busy_machine_are_none() -> None:
    quiet = {1: [1.0, 1.3, 1.05], 4: [2.2, 2.0, 2.1], 8: [4.0, 4.1, 9.0]}
    assert least_times(quiet) == StepTimes({1: 1.0, 4: 2.0, 8: 4.0})
    assert least_times(quiet | {4: [2.0, 3.0, 2.5]}) is None
    # Eight rows in less time than one: what was measured is the other work.
    assert least_times(quiet | {8: [0.5, 0.5, 0.5]}) is None
    # A little less is rounding, and fewer rows take no longer.
    assert least_times(quiet | {4: [0.95, 0.95, 0.95]}) == StepTimes({1: 0.95, 4: 0.95, 8: 4.0})


@pytest.mark.slow
def test_drawings_say_that_nothing_was_timed_and_have_plain_axes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    easy = [candidate(0, index, 3.0, correct=True) for index in range(4)]
    chances = {size: {"oracle": np.ones(1), "mine calibrated": np.ones(1)} for size in (1, 4)}
    right = {"value": 1.0, "low": 1.0, "high": 1.0}
    results = {
        "run": {"heads": {"mine": {}}, "bundle": {"base_model": "tiny"}},
        "problems": 1,
        "sizes": [1, 4],
        "accuracy": {name: {"1": right, "4": right} for name in chances[1]},
    }

    def texts(times: StepTimes | None) -> str:
        """What is written in the drawing: matplotlib notes each text of an SVG in a comment."""
        found = economy([easy], DECISION, "mine", chances, times, lambda plan: plan, resamples=100)
        draw_economy(results | {"economy": found}, tmp_path)
        return (tmp_path / "economy.svg").read_text()

    untimed = texts(None)
    assert "the machine was busy" in untimed
    assert "decode time" not in untimed
    timed = texts(StepTimes({1: 0.001, 4: 0.002}))
    assert "milliseconds" in timed
    for number in ("40", "160", "80"):
        assert f"<!-- {number} -->" in timed
    for strange in ("times 10", "mathdefault", "1e-"):
        assert strange not in re.sub("<path.*?>", "", "".join(re.findall("<!--.*?-->", timed)))
