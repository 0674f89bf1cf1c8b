"""Strategies that rank candidates by their scores and by which of them agree; larger scores are better.

    best                the greatest score
    majority            the commonest answer
    vote                the answer with the greatest sum of P(correct)
    calibrated          the answer with the greatest sum of likelihood ratios, p(score | correct) / p(score | wrong)
    best-of-majority    the answer that the best of a random redraw gives most often (arXiv 2511.18630)
    ranking, scaling    the greatest score combined with an external one, as SWIFT combines two

An answer's candidate with the greatest score is picked.
"""

import math
from collections.abc import Sequence
from typing import Final

BY_ANSWER: Final = ("majority", "vote", "calibrated", "best-of-majority")
"""Strategies that compare answers, not candidates."""


def rank(scores: Sequence[float]) -> list[int]:
    """Candidates from best to worst; ties by the lower index, NaN (nothing to judge by) last.

    >>> rank([0.1, float("nan"), 0.7, 0.1])
    [2, 0, 3, 1]
    """
    return sorted(range(len(scores)), key=lambda index: (math.isnan(scores[index]), -scores[index], index))


def combine_by_rank(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Minus the worse of each candidate's two ranks (SWIFT's "ranking").

    A rank counts the candidates that are better: equal scores have equal ranks, NaN is worse than any number.

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


def redraw_weights(scores: Sequence[float]) -> list[float]:
    """How often each candidate is the best of n candidates drawn with replacement from these n.

    A candidate with r better ones is the best if it is drawn and they are not: ((n - r) / n)**n - ((n - r - 1) / n)**n.

    >>> redraw_weights([0.1, 0.9])
    [0.25, 0.75]
    """
    n = len(scores)
    weights = [0.0] * n
    for place, index in enumerate(rank(scores)):
        weights[index] = ((n - place) / n) ** n - ((n - place - 1) / n) ** n
    return weights


def rank_by_answer(answers: Sequence[Sequence[int]], weights: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Candidates from best to worst: those of the weightiest answer first, within an answer by their scores.

    `answers` holds the indices of equal answers, `weights` one number per candidate, which are added up per answer.
    Equal sums are told apart by the answers' best scores; candidates without an answer come last.

    >>> rank_by_answer([[0, 2], [1]], [1.0, 1.0, 1.0], [0.2, 0.9, 0.3])
    [2, 0, 1]
    """
    place = {index: at for at, index in enumerate(rank(scores))}
    sums = answer_sums(answers, weights)
    first = [min(place[index] for index in group) for group in answers]
    ordered = [answers[at] for at in sorted(range(len(answers)), key=lambda at: (-sums[at], first[at]))]
    ranked = [index for group in ordered for index in sorted(group, key=place.__getitem__)]
    return ranked + sorted(set(range(len(scores))) - set(ranked), key=place.__getitem__)


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
