"""What a rule's pick is right on average, over every way to draw k of a problem's n candidates; exact where it can be.

    q problems   n candidates of each   k of them at hand   u subsets of k   a different answers of a problem

The first k of one order would be a single draw. A rule that takes the candidate with the greatest score has a closed
form. A vote, or a combination of ranks, depends on which candidates are there: all subsets are gone through up to
`MOST_SUBSETS`, beyond that a seeded sample of `SAMPLED_SUBSETS`. Whatever a rule leaves open between equals is shared
equally.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles

MOST_SUBSETS: Final = 13_000
"""So many subsets are gone through; half of 16 candidates, which has the most, gives 12,870."""
SAMPLED_SUBSETS: Final = 4_096
"""So many are drawn where there are more."""
_EQUAL: Final = 1e-9
"""Sums that differ by no more are equal: the order in which they were added is no reason for a pick."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Subsets:
    """Subsets of k out of n candidates."""

    members: Doubles  # [n, u]
    """1 where the candidate is in the subset, else 0. Read-only."""
    exact: bool
    """Whether these are all subsets there are; otherwise a sample."""


def all_subsets(n: int, size: int) -> bool:
    """Whether all subsets of `size` out of `n` candidates are gone through."""
    return math.comb(n, size) <= MOST_SUBSETS


def subsets_of(n: int, size: int, seed: int = 0) -> Subsets:
    """All subsets of `size` out of `n` candidates, or a sample drawn with `seed` where they are too many."""
    exact = all_subsets(n, size)
    if exact:
        chosen = np.array(list(itertools.combinations(range(n), size)))  # [u, k]
    else:
        chosen = np.random.default_rng(seed).random((SAMPLED_SUBSETS, n)).argsort(axis=1)[:, :size]  # [u, k]
    members = np.zeros((n, len(chosen)))
    members[chosen, np.arange(len(chosen))[:, np.newaxis]] = 1
    members.flags.writeable = False
    return Subsets(members, exact)


def expected_oracle(correct: Flags, size: int) -> Doubles:
    """Chance `[q]` that at least one of `size` candidates drawn from `correct`, `[q, n]`, is right."""
    n = correct.shape[1]
    # Whole numbers as long as they last: the quotient is right to the last digit.
    missed = np.array([math.comb(wrong, size) / math.comb(n, size) for wrong in range(n + 1)])
    chances: Doubles = 1 - missed[n - correct.sum(axis=1)]
    return chances


def pick_chances(scores: NDArray[Any], size: int) -> Doubles:
    """Chance of every candidate, `[q, n]`, to have the greatest score of `size` drawn ones and to be picked.

    NaN ranks last, and candidates of equal score share their chances.
    """
    problems, n = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")  # NaN comes last
    ordered = np.take_along_axis(scores, order, axis=1)
    # The candidate of place i is the best of a subset if the others come from the n - 1 - i behind it.
    alone = np.array([math.comb(n - 1 - place, size - 1) / math.comb(n, size) for place in range(n)])
    better, worse = ordered[:, :-1], ordered[:, 1:]
    differs = (better != worse) & ~(np.isnan(better) & np.isnan(worse))
    group = np.concatenate([np.zeros((problems, 1), np.int64), np.cumsum(differs, axis=1)], axis=1)
    group += np.arange(problems)[:, np.newaxis] * n
    flat = group.ravel()
    total = np.bincount(flat, weights=np.tile(alone, problems), minlength=problems * n)
    count = np.bincount(flat, minlength=problems * n)
    chances = np.empty((problems, n))
    np.put_along_axis(chances, order, (total[flat] / count[flat]).reshape(problems, n), axis=1)
    return chances


def expected_best(scores: NDArray[Any], correct: Flags, size: int) -> Doubles:
    """Chance `[q]` that the candidate with the greatest of `scores`, `[q, n]`, is right."""
    chances: Doubles = (pick_chances(scores, size) * correct).sum(axis=1)
    return chances


def expected_vote(weights: Doubles, answers: NDArray[np.int64], correct: Flags, subsets: Subsets) -> Doubles:
    """Chance `[q]` that the answer with the greatest sum of weights is right.

    Of `weights` `[q, n]`, NaN counts as 0. `answers` `[q, n]` numbers the answers of each problem from 0
    up; -1 has no answer and no vote, and where nobody votes the pick is wrong. Should one answer be right in some
    candidates and wrong in others, which no grader of answers does, any of its candidates is picked.
    """
    return _over_problems(_vote_chance, (np.nan_to_num(weights, nan=0.0), answers), correct, subsets)


def expected_ranking(own: Doubles, other: Doubles, correct: Flags, subsets: Subsets) -> Doubles:
    """Chance `[q]` that the candidate is right whose worse rank of two is the best; `selection.combine_by_rank`."""
    return _over_problems(_ranking_chance, (own, other), correct, subsets)


def expected_scaling(own: Doubles, other: Doubles, correct: Flags, subsets: Subsets) -> Doubles:
    """Chance `[q]` that the candidate with the greatest mean of two scaled scores is right.

    Each score is scaled to 0..1 among the candidates at hand, as `selection.combine_by_scaling` does.
    """
    return _over_problems(_scaling_chance, (own, other), correct, subsets)


def _over_problems(rule: Any, inputs: tuple[NDArray[Any], ...], correct: Flags, subsets: Subsets) -> Doubles:
    """Apply a rule problem by problem, each one's subsets at once: that much fits into the processor's cache."""
    chances = np.zeros(len(correct))
    for problem in np.flatnonzero(correct.any(axis=1)):  # where nothing is right, no pick is
        chances[problem] = rule(*(each[problem] for each in inputs), correct[problem], subsets.members)
    return chances


def _vote_chance(weights: Doubles, answers: NDArray[np.int64], correct: Flags, members: Doubles) -> float:
    one_hot = (answers == np.arange(answers.max() + 1)[:, np.newaxis]).astype(np.float64)  # [a, n]
    count = one_hot @ members  # [a, u]
    total = (one_hot * weights) @ members  # [a, u]
    right = one_hot @ correct / np.maximum(one_hot.sum(axis=1), 1)  # [a]
    total = np.where(count > 0, total, -np.inf)  # an answer that is not there loses to one with a negative sum
    wins = (total >= total.max(axis=0, initial=-np.inf) - _EQUAL) & (count > 0)  # [a, u]
    if np.all((right == 0) | (right == 1)):
        won = right @ wins  # [u]
    else:
        won = (wins * ((one_hot * correct) @ members) / np.maximum(count, 1)).sum(axis=0)
    return float((won / np.maximum(wins.sum(axis=0), 1)).mean())


def _ranking_chance(own: Doubles, other: Doubles, correct: Flags, members: Doubles) -> float:
    worse = np.maximum(_ranks(own, members), _ranks(other, members))  # [n, u]
    return _share_of_least(np.where(members > 0, worse, np.inf), correct)


def _ranks(scores: Doubles, members: Doubles) -> Doubles:
    """How many of each subset are better than each candidate, `[n, u]`; NaN is worse than any number."""
    comparable = np.where(np.isnan(scores), -np.inf, scores)
    better = (comparable > comparable[:, np.newaxis]) | (np.isnan(scores)[:, np.newaxis] & ~np.isnan(scores))  # [n, n]
    return better.astype(np.float64) @ members


def _scaling_chance(own: Doubles, other: Doubles, correct: Flags, members: Doubles) -> float:
    mean = (_scaled(own, members) + _scaled(other, members)) / 2  # [n, u]
    return _share_of_least(np.where(members > 0, -mean, np.inf), correct)


def _scaled(scores: Doubles, members: Doubles) -> Doubles:
    """Scores on a scale from the least of the subset, 0, to its greatest, 1; `[n, u]`."""
    column = scores[:, np.newaxis]
    there = (members > 0) & np.isfinite(column)
    least = np.where(there, column, np.inf).min(axis=0)  # [u]
    span = np.where(there, column, -np.inf).max(axis=0) - least  # [u], -inf where nothing is finite
    with np.errstate(invalid="ignore"):
        scaled = np.where(span > 0, (column - least) / np.where(span > 0, span, 1), 1.0)
    if np.isfinite(scores).all():
        return scaled
    return np.where(np.isfinite(column), scaled, np.where(column == np.inf, 1.0, 0.0))


def _share_of_least(values: Doubles, correct: Flags) -> float:
    """Mean over subsets of how many of the candidates with the least value, `[n, u]`, are right."""
    least = values <= values.min(axis=0) + _EQUAL  # [n, u]
    return float(((correct.astype(np.float64) @ least) / least.sum(axis=0)).mean())
