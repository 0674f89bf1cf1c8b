"""Scores to a pick. Knows numbers only, not where they come from; larger is better."""

import math
from collections.abc import Sequence

from swift_edge.errors import InvalidOptionError


def rank(scores: Sequence[float]) -> list[int]:
    """Candidates from best to worst; ties by the lower index, NaN (nothing to judge by) last.

    >>> rank([0.1, float("nan"), 0.7, 0.1])
    [2, 0, 3, 1]
    """
    return sorted(range(len(scores)), key=lambda index: (math.isnan(scores[index]), -scores[index], index))


def pick(scores: Sequence[float]) -> int:
    """The best candidate: the first of `rank`. Raises `InvalidOptionError` where there is none."""
    if not scores:
        raise InvalidOptionError("there are no candidates to pick from; expected at least one score")
    return rank(scores)[0]
