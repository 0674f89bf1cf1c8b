"""Scores to a pick. Knows numbers only, not where they come from; larger is better."""

import math
from collections.abc import Sequence


def rank(scores: Sequence[float]) -> list[int]:
    """Candidates from best to worst; ties by the lower index, NaN (nothing to judge by) last.

    >>> rank([0.1, float("nan"), 0.7, 0.1])
    [2, 0, 3, 1]
    """
    return sorted(range(len(scores)), key=lambda index: (math.isnan(scores[index]), -scores[index], index))


def combine_by_rank(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Scores that are the greater, the better the worse of a candidate's two ranks is (SWIFT's "ranking").

    A rank is how many candidates are better, so that equal scores have equal ranks; NaN is worse than any number.

    >>> combine_by_rank([0.9, 0.5, 0.1], [1.0, 2.0, 3.0])
    [-2.0, -1.0, -2.0]
    """
    return [-float(max(pair)) for pair in zip(_ranks(own), _ranks(other), strict=True)]


def combine_by_scaling(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Means of two scores, each scaled from 0 for its least to 1 for its greatest (SWIFT's "scaling").

    A score that is the same everywhere scales to 1. Infinity counts as 1, minus infinity and NaN as 0.

    >>> combine_by_scaling([0.0, 5.0, 10.0], [3.0, 3.0, 3.0])
    [0.5, 0.75, 1.0]
    """
    return [(one + another) / 2 for one, another in zip(_scaled(own), _scaled(other), strict=True)]


def answer_sums(answers: Sequence[Sequence[int]], weights: Sequence[float]) -> list[float]:
    """Sum of the weights of every answer's candidates; a weight of NaN counts as 0.

    `answers` holds the indices of equal answers, as `AnswerTask.groups` gives them.

    >>> answer_sums([[0, 2], [1]], [0.2, 0.3, 0.2])
    [0.4, 0.3]
    """
    return [math.fsum(weights[index] for index in group if not math.isnan(weights[index])) for group in answers]


def vote(answers: Sequence[Sequence[int]], weights: Sequence[float]) -> list[float]:
    """Scores that are the sum of the weights of all candidates with the same answer; NaN for one without an answer.

    `answers` holds the indices of equal answers, as `AnswerTask.groups` gives them; a weight of NaN counts as 0.

    >>> vote([[0, 2], [1]], [0.2, 0.3, 0.2])
    [0.4, 0.3, 0.4]
    """
    scores = [math.nan] * len(weights)
    for group, total in zip(answers, answer_sums(answers, weights), strict=True):
        for index in group:
            scores[index] = total
    return scores


def _ranks(scores: Sequence[float]) -> list[int]:
    """How many scores are better than each."""
    ordered = [-math.inf if math.isnan(score) else score for score in scores]
    return [
        sum(
            better > mine or (math.isnan(score) and not math.isnan(other))
            for better, other in zip(ordered, scores, strict=True)
        )
        for mine, score in zip(ordered, scores, strict=True)
    ]


def _scaled(scores: Sequence[float]) -> list[float]:
    """Scores on a scale from the least, 0, to the greatest, 1."""
    finite = [score for score in scores if math.isfinite(score)]
    least = min(finite, default=0.0)
    span = max(finite, default=0.0) - least
    return [
        ((score - least) / span if span > 0 else 1.0) if math.isfinite(score) else float(score == math.inf)
        for score in scores
    ]
