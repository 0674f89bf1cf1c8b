"""Scores from elsewhere, such as a reward model's, to combine a head's with: a line of JSON per candidate.

    {"problem": 0, "index": 3, "score": 0.25}

Problem and index count from 0, as the store of candidates numbers them; any order will do.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.checks import is_number, is_whole
from swift_edge.errors import DataError
from swift_edge.records import shown
from swift_edge.training.collecting.problems import read_rows

_FIELDS = ("problem", "index", "score")
_LARGEST_SCORE = 1e100
"""Beyond it the differences of scores might not be finite."""


def read_external(path: Path, problems: int, n: int) -> NDArray[np.float64]:
    """Read the score of each of `n` candidates of each problem, `[q, n]`.

    Raises `DataError`, which names file and line, for a row that is no score of these candidates, for two rows about
    one candidate, and for candidates without a row.
    """
    scores = np.full((problems, n), np.nan)
    for place, row in read_rows(path, piped=False)[1]:
        problem, index, score = (row.get(name) for name in _FIELDS)
        bounded = is_number(score) and abs(score) <= _LARGEST_SCORE
        if not _whole(problem, problems) or not _whole(index, n) or not bounded:
            raise DataError(
                f"{place} has {', '.join(f'{name} {shown(row.get(name))}' for name in _FIELDS)}; expected a problem "
                f"from 0 to {problems - 1}, an index from 0 to {n - 1} and a finite score, {_LARGEST_SCORE:g} at most"
            )
        if not math.isnan(scores[problem, index]):
            raise DataError(f"{place} is the second row about candidate {index} of problem {problem}; expected one")
        scores[problem, index] = score
    missing = np.argwhere(np.isnan(scores))
    if len(missing):
        raise DataError(
            f"{path} has no score of candidate {missing[0, 1]} of problem {missing[0, 0]} and {len(missing) - 1} more; "
            f"expected {problems * n} scores: those of all candidates"
        )
    return scores


def _whole(value: Any, end: int) -> bool:
    return is_whole(value, 0) and bool(value < end)
