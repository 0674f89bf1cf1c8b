"""Which candidate to pick, from scores and from what the candidates answer.

    best                the greatest score
    majority            the commonest answer
    vote                the answer with the greatest sum of P(correct)
    calibrated          the answer with the greatest sum of likelihood ratios, p(score | correct) / p(score | wrong)
    best-of-majority    the answer that the best of a random redraw gives most often (arXiv 2511.18630)
    ranking, scaling    the greatest score combined with an external one, as SWIFT combines two

An answer's candidate with the greatest score is picked. Knows numbers and groups; not texts, heads or tasks.
"""

from collections.abc import Sequence
from typing import Final

from swift_edge.selection.ranking import answer_sums, rank

BY_ANSWER: Final = ("majority", "vote", "calibrated", "best-of-majority")
"""Those that compare answers and not candidates."""


def redraw_weights(scores: Sequence[float]) -> list[float]:
    """How often each candidate is the best of n candidates drawn with replacement from these n.

    The one that r others beat is, where no better one is drawn and it is: ((n - r) / n)**n - ((n - r - 1) / n)**n.

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
