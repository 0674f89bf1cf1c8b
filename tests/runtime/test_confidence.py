"""What P(correct) of a pick is worth: the picks are those of the runtime, the figures those of their definition."""

import numpy as np
import pytest

from swift_edge.evaluation import HeadScores, Sampled, confidence
from swift_edge.options import PickOptions
from swift_edge.results import Candidate
from swift_edge.scoring import AnswerCalibration, Calibration
from swift_edge.selection import Decision

CURVE = Calibration(2.0, -0.5, 0.4, 0.02, 100, 50, AnswerCalibration(0.8, -0.4, 0.02, 50))


def sampled(problems: int = 200, n: int = 8) -> Sampled:
    random = np.random.default_rng(4)
    correct = random.random((problems, n)) < random.random((problems, 1))
    answers = np.where(correct, 0, random.choice([-1, 1, 2], (problems, n)))
    scores = random.normal(size=(problems, n)) + correct
    nothing = np.zeros((problems, n))
    head = HeadScores(scores, CURVE.probability(scores), CURVE.likelihood_ratio(scores), CURVE.answers)
    return Sampled(correct, answers, np.ones((problems, n), np.int64), nothing, nothing, {"default": head})


def test_the_figures_are_those_of_the_picks_that_the_runtime_makes() -> None:
    found = sampled()
    task = Decision.of(None, PickOptions(task=lambda text: text or None)).task
    decision = Decision("calibrated", task, None, None, CURVE)
    chances, right = [], []
    for scores, answers, correct in zip(found.heads["default"].scores, found.answers, found.correct, strict=True):
        for part in (slice(0, 4), slice(4, 8)):
            texts = [str(answer) if answer >= 0 else "" for answer in answers[part]]
            decided = decision.apply(
                [
                    Candidate(index, text, (1,), float(score), -1.0, "stop")
                    for index, (text, score) in enumerate(zip(texts, scores[part], strict=True))
                ]
            )
            has_answer = bool(decided.answers)
            chances.append(decided.p_correct if has_answer else 0.0)
            right.append(has_answer and bool(correct[part][decided.ranked[0]]))
    figures = confidence(found.heads["default"], found, 4, resamples=500)
    assert figures is not None
    assert figures["picks"] == len(right) == 400
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    kept = np.array(chances) > np.quantile(chances, 0.2)
    assert figures["kept_share"] == pytest.approx(kept.mean())
    assert figures["kept_accuracy"] == pytest.approx(np.array(right)[kept].mean())
    gain = figures["gain"]
    assert gain["value"] == pytest.approx(figures["kept_accuracy"] - figures["accuracy"])
    assert gain["low"] < gain["value"] < gain["high"]
    assert gain["value"] > 0
    assert 0 <= figures["error"] < 0.5


def test_a_head_that_is_not_calibrated_for_answers_has_no_figures() -> None:
    found = sampled(20)
    bare = HeadScores(found.heads["default"].scores, None)
    assert confidence(bare, found, 4) is None
