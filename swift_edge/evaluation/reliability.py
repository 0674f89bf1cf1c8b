"""Whether probabilities are what they say: bins of equal weight, and the expected calibration error over them."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Candidates of similar probability."""

    probability: float
    """Mean of their probabilities."""
    correct: float
    """Share of them that is right."""
    weight: float
    """Their share of all weight."""


def reliability(
    probabilities: NDArray[np.float64], correct: NDArray[np.bool_], weights: NDArray[np.float64]
) -> list[Bin]:
    """Divide candidates, `[c]` each, by ascending probability into `BINS` bins of equal weight.

    A candidate on the edge of two bins belongs to both in part; candidates of the same probability are all taken for
    their mean label, so that their order does not matter. NaN probabilities are left out.
    """
    usable = ~np.isnan(probabilities) & (weights > 0)
    values, place = np.unique(probabilities[usable], return_inverse=True)
    weight = np.bincount(place, weights=weights[usable])
    right = np.bincount(place, weights=weights[usable] * correct[usable])
    if not values.size:
        return []
    ends = np.cumsum(weight)
    edges = np.linspace(0, ends[-1], BINS + 1)
    # Sums up to each edge are linear within a probability: what lies between two edges is their difference.
    sums = [
        np.interp(edges, np.concatenate([[0], ends]), np.concatenate([[0], np.cumsum(each)]))
        for each in (weight * values, right)
    ]
    size = ends[-1] / BINS
    return [
        Bin(float(mean), float(share), 1 / BINS)
        for mean, share in zip(*(np.diff(each) / size for each in sums), strict=True)
    ]


def binned_calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the mean distance of probability and share, by weight; NaN without candidates."""
    return sum(each.weight * abs(each.probability - each.correct) for each in bins) if bins else float("nan")
