"""How well scores rank the candidates of a problem: figures over labelled candidates, vectorised in NumPy."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from swift_edge.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class PickAccuracy:
    """Share of problems with a correct pick, by the way of picking; NaN without problems."""

    pass_at_1: float
    """A candidate drawn at random: the mean over problems of the share of correct candidates."""
    best: float
    """The candidate with the greatest score; of equal scores the first."""
    majority: float
    """The commonest answer; of equally common ones the first to appear, and the first candidate without any answer."""
    oracle: float
    """Any correct candidate among those of the problem."""

    def to_dict(self) -> dict[str, float | None]:
        """As plain data; NaN is None."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def within_problem_auroc(scores: ArrayLike, correct: ArrayLike, problems: ArrayLike) -> float:
    """Chance that a correct candidate outranks a wrong one of the same problem, `[c]` each; NaN if no problem has both.

    The mean over problems of each problem's own AUROC, every problem with the same weight whatever its number of
    candidates or pairs; problems whose candidates are all correct or all wrong are left out. Ties count half. NaN
    scores (nothing to judge by) rank last and tie with each other.

    >>> within_problem_auroc([0.1, 0.9, 5.0, 7.0], [False, True, True, False], [0, 0, 1, 1])
    0.5
    """
    scores, correct, groups = _checked(scores, correct, problems)
    if not len(scores):
        return math.nan
    _, number = np.unique(groups, return_inverse=True)  # [c]
    # Ranks within the problem; equal scores share their mean rank, which counts ties half.
    order = np.lexsort((scores, number))
    scores, correct, number = scores[order], correct[order], number[order]
    another = np.append(True, number[1:] != number[:-1])  # [c] whether a problem begins
    unequal = another | np.append(True, scores[1:] != scores[:-1])  # [c] whether a run of equal scores begins
    begins = np.flatnonzero(unequal)
    middles = begins + 0.5 * (np.diff(begins, append=len(order)) - 1)
    ranks = middles[np.cumsum(unequal) - 1] - np.flatnonzero(another)[number] + 1  # [c] from 1
    right = np.bincount(number, weights=correct)  # [problems]
    wrong = np.bincount(number) - right
    above = np.bincount(number, weights=ranks * correct) - right * (right + 1) / 2
    both = (right > 0) & (wrong > 0)
    return float(np.mean(above[both] / (right * wrong)[both])) if both.any() else math.nan


def pick_accuracy(
    scores: ArrayLike, correct: ArrayLike, problems: ArrayLike, answers: Sequence[str | None]
) -> PickAccuracy:
    """How often picks out of all candidates of a problem are correct; `[c]` each, in sampling order within a problem.

    Answers are compared as texts; None is a candidate without one.
    """
    scores, correct, groups = _checked(scores, correct, problems)
    shares, best, majority, oracle = [], [], [], []
    _, number = np.unique(groups, return_inverse=True)  # [c]
    order = np.argsort(number, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else []:
        labels = correct[members]
        shares.append(labels.mean())
        best.append(labels[np.argmax(scores[members])])
        votes = Counter(answer for index in members if (answer := answers[index]) is not None)
        voted = next((place for place, index in enumerate(members) if votes and answers[index] == _first(votes)), 0)
        majority.append(labels[voted])
        oracle.append(labels.any())
    return PickAccuracy(*(float(np.mean(each)) if each else math.nan for each in (shares, best, majority, oracle)))


def _first(votes: Counter[str]) -> str:
    # most_common keeps the order of appearance among equals.
    return votes.most_common(1)[0][0]


def _checked(
    scores: ArrayLike, correct: ArrayLike, problems: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[Any]]:
    """The arrays, with NaN scores at the low end; raises `InvalidOptionError` where their lengths differ."""
    arrays = np.asarray(scores, np.float64), np.asarray(correct, np.bool_), np.asarray(problems)
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise InvalidOptionError(
            f"scores, labels and problems have shapes {', '.join(str(list(shape)) for shape in shapes)}; "
            "expected one of each per candidate"
        )
    return np.nan_to_num(arrays[0], nan=-np.inf, posinf=np.inf, neginf=-np.inf), arrays[1], arrays[2]
