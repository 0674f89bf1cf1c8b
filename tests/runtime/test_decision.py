"""Strategies: which candidate is picked, with what probability, and what is refused."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge import Selector
from swift_edge.errors import InvalidOptionError
from swift_edge.options import PickOptions, StrategyName
from swift_edge.results import Candidate
from swift_edge.scoring import AnswerCalibration, Calibration, Head
from swift_edge.selection import Decided, Decision, rank, rank_by_answer, redraw_weights

CURVE = Calibration(4.0, -2.0, 0.4, 0.02, 400, 100, AnswerCalibration(0.7, -0.5, 0.02, 100))
HEAD = Head(np.ones((2, 4), np.float32), np.zeros(2, np.float32), layers=(1,), fingerprint="f", calibration=CURVE)
STORIES = Path(__file__).parents[2] / "models" / "stories260k"
UNCALIBRATED = dataclasses.replace(HEAD, calibration=None)
TEXTS = ("is 7", "is 7", "is 8", "no idea", "is 8", "is 9")
SCORES = (0.1, 0.2, 0.9, 1.5, 0.05, 0.6)


def candidates(texts: Sequence[str] = TEXTS, scores: Sequence[float] = SCORES) -> list[Candidate]:
    return [
        Candidate(index, text, (1,), score, -1.0, "stop")
        for index, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]


def decide(head: Head | None = HEAD, **options: Any) -> Decided:
    return Decision.of(head, PickOptions.of(None, {"task": "number"} | options)).apply(candidates())


def test_best_takes_the_greatest_score_whatever_it_answers() -> None:
    decided = decide(strategy="best")
    assert decided.ranked == tuple(rank(SCORES))
    assert decided.p_correct == 0  # it answers nothing


def test_majority_takes_the_commonest_answer_and_of_equal_ones_the_better_scored() -> None:
    assert decide(strategy="majority").ranked == (2, 4, 1, 0, 5, 3)


def test_vote_adds_probabilities() -> None:
    chances = CURVE.probability(SCORES)
    assert chances[2] + chances[4] > chances[5] > chances[0] + chances[1]
    assert decide(strategy="vote").ranked == (2, 4, 5, 1, 0, 3)


def test_calibrated_adds_likelihood_ratios() -> None:
    ratios = CURVE.likelihood_ratio(SCORES)
    decided = decide(strategy="calibrated")
    assert decided.ranked == (2, 4, 5, 1, 0, 3)
    assert [answer.text for answer in decided.answers] == ["8", "9", "7"]
    assert [answer.candidates for answer in decided.answers] == [(2, 4), (5,), (1, 0)]
    assert [answer.support for answer in decided.answers] == [2, 1, 2]
    assert CURVE.answers is not None
    expected = CURVE.answers.posterior([ratios[2] + ratios[4], ratios[5], ratios[0] + ratios[1]])
    assert [answer.posterior for answer in decided.answers] == pytest.approx(expected)
    assert decided.p_correct == pytest.approx(expected[0])


def test_one_likely_candidate_outweighs_many_unlikely_ones() -> None:
    """A vote does not see it: a ratio has no upper end, where a probability has."""
    texts, scores = ("is 7",) * 3 + ("is 8",), (0.6, 0.6, 0.6, 1.5)
    voted, weighed = (
        Decision.of(HEAD, PickOptions(task="number", strategy=strategy)).apply(candidates(texts, scores))
        for strategy in ("vote", "calibrated")
    )
    assert voted.answers[0].text == "7"
    assert weighed.answers[0].text == "8"


@pytest.mark.parametrize("scores", [(0.3, 0.9, 0.5), (1.0, 1.0), (0.2,), (math.nan, 0.1, 0.4, -2.0)])
def test_redraw_weights_are_those_of_all_redraws(scores: tuple[float, ...]) -> None:
    place = {index: at for at, index in enumerate(rank(scores))}
    redraws = list(itertools.product(range(len(scores)), repeat=len(scores)))
    wins = np.bincount([min(redraw, key=place.__getitem__) for redraw in redraws], minlength=len(scores))
    assert redraw_weights(scores) == pytest.approx((wins / len(redraws)).tolist())


def test_best_of_majority_lies_between_the_best_and_the_majority() -> None:
    decided = decide(UNCALIBRATED, strategy="best-of-majority")
    assert decided.ranked[0] == 2
    assert decided.p_correct is None


@pytest.mark.parametrize(("strategy", "ranked"), [("ranking", (3, 5, 2, 1, 0, 4)), ("scaling", (3, 4, 2, 5, 1, 0))])
def test_external_scores_are_combined(strategy: str, ranked: tuple[int, ...]) -> None:
    seen: list[Sequence[str]] = []

    def judge(texts: Sequence[str]) -> list[float]:
        seen.append(texts)
        return [0.0, 1.0, 2.0, 2.5, 9.0, 3.0]

    assert decide(strategy=strategy, external=judge).ranked == ranked
    assert seen == [list(TEXTS)]


def test_external_scores_must_be_one_each() -> None:
    with pytest.raises(InvalidOptionError, match="1 scores for 6 candidates"):
        decide(external=lambda _texts: [1.0])


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (None, "external gave None; expected a score for each candidate"),
        (5, "external gave 5; expected a score for each"),
        ("123456", "a score of external is '1'; expected a finite number"),
        ([1.0, 2.0, None, 1.0, 2.0, 3.0], "a score of external is None"),
        ([1.0, 2.0, math.nan, 1.0, 2.0, 3.0], "a score of external is nan"),
        ([1.0, 2.0, True, 1.0, 2.0, 3.0], "a score of external is True"),
        ([1.0, 2.0, 10**400, 1.0, 2.0, 3.0], "a score of external is an integer of 1329 bits"),
        (itertools.count(), "external gave more than 6 scores for 6 candidates"),
    ],
)
def test_external_scores_that_are_none_are_refused(scores: Any, told: str) -> None:
    with pytest.raises(InvalidOptionError, match=re.escape(told)):
        decide(external=lambda _texts: scores)


@pytest.mark.parametrize("numbers", [np.arange(6), np.arange(6.0, dtype=np.float32), tuple(range(6))])
def test_external_scores_may_be_numpys(numbers: Any) -> None:
    assert decide(external=lambda _texts: numbers).ranked == decide(external=lambda _texts: list(range(6))).ranked


@pytest.mark.parametrize("answer", [5, b"5", [], 10**400, "5\ud800"])
def test_a_task_that_gives_no_text_is_refused(answer: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"task gave .* for the text .*; expected the answer of a text"):
        decide(task=lambda _text: answer)


@given(
    scores=st.lists(st.one_of(st.floats(-3, 3), st.just(math.nan)), min_size=1, max_size=7),
    answers=st.lists(st.sampled_from(["is 1", "is 2", "is 3", "none"]), min_size=7, max_size=7),
    strategy=st.sampled_from([name for name in get_args(StrategyName) if name not in ("ranking", "scaling")]),
)
def test_every_candidate_has_a_place_and_equal_answers_stand_together(
    scores: list[float], answers: list[str], strategy: str
) -> None:
    texts = answers[: len(scores)]
    decided = Decision.of(HEAD, PickOptions(task="number", strategy=strategy)).apply(candidates(texts, scores))
    assert sorted(decided.ranked) == list(range(len(scores)))
    assert sorted(index for answer in decided.answers for index in answer.candidates) == [
        index for index, text in enumerate(texts) if text != "none"
    ]
    if strategy in ("majority", "vote", "calibrated", "best-of-majority") and decided.answers:
        assert decided.strategy == strategy
        runs = [key for key, _ in itertools.groupby(texts[index] for index in decided.ranked)]
        assert len(runs) == len(set(runs))
        assert decided.ranked[0] == decided.answers[0].candidates[0]
    else:
        assert decided.strategy == "best"
        assert list(decided.ranked) == rank(scores)


def test_an_answer_with_a_lower_sum_never_comes_first() -> None:
    assert rank_by_answer([[0], [1, 2]], [2.0, 1.0, 0.5], [0.0, 9.0, 9.0]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("head", "options", "expected"),
    [
        (HEAD, {}, "calibrated"),
        (UNCALIBRATED, {}, "best-of-majority"),
        (None, {}, "best-of-majority"),
        (HEAD, {"task": None}, "best"),
        (HEAD, {"task": lambda text: text[-1]}, "calibrated"),
        (HEAD, {"external": lambda texts: [0.0] * len(texts)}, "ranking"),
    ],
)
def test_auto_goes_by_what_is_there(head: Head | None, options: dict[str, Any], expected: str) -> None:
    assert decide(head, **options).strategy == expected


def test_the_task_is_the_one_that_the_head_was_trained_on() -> None:
    trained = dataclasses.replace(HEAD, summary={"task": "number"})
    assert [answer.text for answer in decide(trained, task=None).answers] == ["8", "9", "7"]
    assert [answer.text for answer in decide(trained, task=lambda text: text[:2]).answers] == ["no", "is"]


def test_less_confidence_than_asked_for_is_an_abstention_with_its_evidence() -> None:
    sure = decide().p_correct
    assert sure is not None
    assert not decide(min_confidence=sure - 0.01).abstained
    unsure = decide(min_confidence=sure + 0.01)
    assert unsure.abstained
    assert (unsure.ranked, unsure.answers) == (decide().ranked, decide().answers)


@pytest.mark.parametrize(
    ("head", "options", "words"),
    [
        (HEAD, {"strategy": "luck"}, "expected auto, best, majority"),
        (HEAD, {"strategy": "majority", "task": None}, "name a task"),
        (UNCALIBRATED, {"strategy": "calibrated"}, "swift-edge recalibrate"),
        (None, {"strategy": "vote"}, "swift-edge recalibrate"),
        (HEAD, {"strategy": "ranking"}, "external scores are missing"),
        (HEAD, {"strategy": "best", "external": len}, "external scores are given"),
        (HEAD, {"task": "poetry"}, "task is 'poetry'; expected number, latex"),
        (HEAD, {"min_confidence": 1.5}, "min_confidence is 1.5"),
        (UNCALIBRATED, {"min_confidence": 0.5}, "swift-edge recalibrate"),
    ],
)
def test_what_cannot_be_done_is_refused(head: Head | None, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        decide(head, **options)


def test_a_pick_tells_its_strategy_and_its_answers(stories_head: Head) -> None:
    trained = dataclasses.replace(stories_head, calibration=CURVE)
    selector = Selector(STORIES, head=trained, threads=1)
    options: dict[str, Any] = {"n": 4, "max_new_tokens": 24, "stop": ["."], "task": lambda text: text.split()[0]}
    picked = selector.pick("Once upon a time", **options)
    assert picked.strategy == "calibrated"
    assert picked.best is picked.ranked[0]
    assert picked.best.index == picked.answers[0].candidates[0]
    first = picked.answers[0]
    assert picked.to_dict()["answers"][0] == {
        "text": first.text,
        "candidates": list(first.candidates),
        "posterior": first.posterior,
        "support": first.support,
    }
    assert picked.to_dict()["abstained"] is False
    unsure = selector.pick("Once upon a time", min_confidence=1.0, **options)
    assert unsure.abstained
    assert unsure.to_dict()["abstained"] is True
    (many,) = selector.pick_many(["Once upon a time"], **options)
    assert many.answers == picked.answers
    by_score = selector.pick("Once upon a time", n=4, max_new_tokens=24)
    assert (by_score.strategy, by_score.answers) == ("best", ())
