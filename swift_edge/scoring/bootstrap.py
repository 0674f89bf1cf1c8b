"""How far a mean over problems could have come out otherwise: resamples of the problems, and intervals from them.

Candidates of one problem belong together, so problems are what is drawn. Everything is resampled with the same draws:
the difference of two rules has the interval of a paired comparison.

    q problems   s statistics of each   b resamples
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from swift_edge.arrays import Doubles

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
"""Share of the resamples that an interval covers; as many are left out below as above."""
_BLOCK_BYTES: Final = 2**24


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval."""

    value: float
    """The figure itself, from all problems."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def resampled_means(values: Doubles, *, resamples: int = RESAMPLES, seed: int = 0) -> Doubles:
    """Means `[b, s]` of the columns of `values`, `[q, s]`, over problems drawn with replacement."""
    means = np.empty((resamples, values.shape[1]))
    start = 0
    for counts in _problem_counts(len(values), resamples, seed):
        means[start : start + len(counts)] = counts @ values
        start += len(counts)
    means /= len(values)
    return means


def estimate(value: float, resampled: Doubles) -> Estimate:
    """A figure with the interval between the percentiles of its resamples, `[b]`; NaN among them is passed over.

    A ratio has no value in a resample that gives it nothing to divide by.
    """
    numbers = resampled[~np.isnan(resampled)]
    if not numbers.size:
        return Estimate(value, np.nan, np.nan)
    low, high = np.percentile(numbers, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, float(low), float(high))


def _problem_counts(problems: int, resamples: int, seed: int) -> Iterator[Doubles]:
    """How often each resample has each problem, `[b, q]`, in blocks that do not grow with either."""
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_BYTES // (8 * problems))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield random.multinomial(problems, np.full(problems, 1 / problems), size=size).astype(np.float64)
