"""Scores to a pick. Knows numbers only, not where they come from; larger is better."""

import math
from collections.abc import Sequence


def rank(scores: Sequence[float]) -> list[int]:
    """Candidates from best to worst; ties by the lower index, NaN (nothing to judge by) last.

    >>> rank([0.1, float("nan"), 0.7, 0.1])
    [2, 0, 3, 1]
    """
    return sorted(range(len(scores)), key=lambda index: (math.isnan(scores[index]), -scores[index], index))
