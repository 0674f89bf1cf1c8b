"""When a further candidate is not worth its tokens, judged by the complete ones.

with posteriors      the likeliest answer reaches `min_confidence`; by default `FIRST_CONFIDENCE` at first, then
                     slowly less, as the fewer candidates may still come, the less they can change
with answers alone   the commonest answer is likely to stay so: P(p > 1/2) with p ~ Beta(first + 1, second + 1) of
                     the two largest counts (arXiv 2305.11860)
with scores alone    one more score, if scores are normal, would raise the best by too little (arXiv 2510.01394)
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

from swift_edge.scoring.calibration import AnswerCalibration

FIRST_CANDIDATES: Final = 4
"""Candidates to complete before a pick can end."""
FIRST_CONFIDENCE: Final = 0.97
"""Posterior that ends a pick after the first candidates, without a `min_confidence`."""
CONFIDENCE_POWER: Final = 0.25
"""That posterior falls with this power of the share of candidates that may still come."""
LEAST_LEAD: Final = 0.95
"""Probability that the commonest answer stays so, at which a pick ends."""
LEAST_GAIN: Final = 0.03
"""Least gain of one more candidate, in standard deviations of the scores, for a pick to go on."""


def confidence_at(completed: int, most: int, min_confidence: float | None) -> float:
    """Posterior at which a pick ends after `completed` of at most `most` candidates: the caller's own, if there is one.

    >>> confidence_at(4, 16, None), confidence_at(10, 16, None), confidence_at(10, 16, 0.9)  # doctest: +ELLIPSIS
    (0.97, 0.815..., 0.9)
    """
    if min_confidence is not None:
        return min_confidence
    return float(FIRST_CONFIDENCE * ((most - completed) / max(1, most - FIRST_CANDIDATES)) ** CONFIDENCE_POWER)


def likeliest(sums: Sequence[float], calibration: AnswerCalibration, promised: float = 0.0) -> float:
    """Posterior of the likeliest answer, by the sums of evidence; `promised` is added to the greatest sum."""
    if not sums:
        return 0.0
    ordered = sorted(sums, reverse=True)
    return float(calibration.posterior([ordered[0] + promised, *ordered[1:]]).max())


def lead(counts: Sequence[int], promised: int = 0) -> float:
    """Probability that the commonest answer stays ahead of the second, if `promised` more give it.

    >>> lead([3]), lead([2, 2])
    (0.9375, 0.5)
    """
    if not counts:
        return 0.0
    first, second, *_ = [*sorted(counts, reverse=True), 0]
    tosses = first + promised + second + 1
    favourable = sum(math.comb(tosses, heads) for heads in range(first + promised + 1))
    return float(favourable / 2**tosses)


def gain(scores: Sequence[float]) -> float:
    """How much one more score would raise the best, in standard deviations of the scores; infinite before two.

    E[max(0, x - best)] of a normal x with their mean and deviation: density(z) - z (1 - distribution(z)).
    """
    finite = [score for score in scores if math.isfinite(score)]
    if len(finite) < 2:
        return math.inf
    mean = math.fsum(finite) / len(finite)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in finite) / (len(finite) - 1))
    if deviation == 0:
        return 0.0
    normal, z = NormalDist(), (max(finite) - mean) / deviation
    return normal.pdf(z) - z * (1 - normal.cdf(z))
