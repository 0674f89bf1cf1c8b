"""The figures of a test with intervals over problems: accuracies, differences, the gap closed, AUROC, calibration.

Candidates in, plain data out, ready for JSON.

    q problems   n candidates of each   s statistics   b resamples
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from swift_edge.arrays import Doubles
from swift_edge.evaluation.confidence import confidence
from swift_edge.evaluation.expectation import all_subsets, pick_chances
from swift_edge.evaluation.reliability import binned_calibration_error, reliability
from swift_edge.evaluation.sampled import HeadScores, Sampled
from swift_edge.evaluation.selectors import (
    ORACLE,
    PASS_AT_1,
    problem_aurocs,
    ranking_scores,
)
from swift_edge.scoring.bootstrap import LEVEL, RESAMPLES, Estimate, estimate, resampled_means

MAIN_SIZE: Final = 8
"""Candidates per problem at which rules are compared in one figure, where the test has as many."""

_NOTHING: Final = 1e-9
"""A difference of two accuracies that is no more is rounding: there is nothing to divide by."""


def main_size(sizes: Sequence[int]) -> int:
    """`MAIN_SIZE` if it is among the sizes, else the greatest."""
    return MAIN_SIZE if MAIN_SIZE in sizes else max(sizes)


def measure(
    sampled: Sampled,
    by_size: Mapping[int, Mapping[str, Doubles]],
    families: Mapping[str, Sequence[str | None]] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """All figures of the candidates, with the chances of every rule's pick as `expected_by_size` gives them.

    `families` are ways to divide the problems: by the name of each, what each problem belongs to, None for nothing.
    """
    sizes = list(by_size)
    names = list(by_size[sizes[0]])
    columns = np.stack([by_size[size][name] for name in names for size in sizes], axis=1)  # [q, s]
    means = resampled_means(columns, resamples=resamples, seed=seed)  # [b, s]
    place = {
        (name, size): number for number, (name, size) in enumerate((name, size) for name in names for size in sizes)
    }
    values = columns.mean(axis=0)  # [s]

    def accuracy(name: str, size: int) -> Estimate:
        column = place[name, size]
        return estimate(float(values[column]), means[:, column])

    def difference(name: str, other: str, size: int) -> Estimate:
        mine, theirs = place[name, size], place[other, size]
        return estimate(float(values[mine] - values[theirs]), means[:, mine] - means[:, theirs])

    def gap_closed(name: str, size: int) -> Estimate:
        mine, floor, ceiling = (place[each, size] for each in (name, PASS_AT_1, ORACLE))
        return ratio_estimate(
            float(values[mine] - values[floor]),
            float(values[ceiling] - values[floor]),
            means[:, mine] - means[:, floor],
            means[:, ceiling] - means[:, floor],
        )

    rules = [name for name in names if name not in (PASS_AT_1, ORACLE)]
    judged = [name for head in sampled.heads for name in (head, f"{head} vote", f"{head} calibrated") if name in names]
    return {
        "problems": len(sampled.correct),
        "candidates": sampled.n,
        "sizes": sizes,
        "main_size": main_size(sizes),
        "interval": {"level": LEVEL, "resamples": resamples, "over": "problems"},
        "subsets_sampled_at": [size for size in sizes if not all_subsets(sampled.n, size)],
        "accuracy": {name: {str(size): plain_figure(accuracy(name, size)) for size in sizes} for name in names},
        "difference": {
            name: {
                other: {str(size): plain_figure(difference(name, other, size)) for size in sizes}
                for other in names
                if other not in (name, ORACLE)
            }
            for name in judged
        },
        "gap_closed": {name: {str(size): plain_figure(gap_closed(name, size)) for size in sizes} for name in rules},
        "auroc": aurocs(sampled, seed=seed, resamples=resamples),
        "calibration": {
            name: calibration(head, sampled, main_size(sizes)) for name, head in list(sampled.heads.items())[:1]
        },
        "confidence": {
            name: confidence(head, sampled, main_size(sizes), seed=seed, resamples=resamples)
            for name, head in list(sampled.heads.items())[:1]
        },
        "families": {
            name: _families(by_size[main_size(sizes)], members, seed, resamples)
            for name, members in (families or {}).items()
        },
    }


def aurocs(sampled: Sampled, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Within-problem AUROC of every score: the mean over the problems that have right and wrong candidates."""
    by_name = {name: problem_aurocs(scores, sampled.correct) for name, scores in ranking_scores(sampled).items()}
    both = ~np.isnan(next(iter(by_name.values())))  # [q]
    columns = np.stack([*(np.where(both, values, 0.0) for values in by_name.values()), both], axis=1)  # [q, s + 1]
    means = resampled_means(columns, resamples=resamples, seed=seed)
    values = columns.mean(axis=0)
    return {
        name: plain_figure(ratio_estimate(values[number], values[-1], means[:, number], means[:, -1]))
        for number, name in enumerate(by_name)
    }


def calibration(head: HeadScores, sampled: Sampled, size: int) -> dict[str, Any] | None:
    """Reliability of P(correct) over all candidates, and over the picks out of `size`; None without probabilities."""
    if head.probabilities is None or np.isnan(head.probabilities).all():
        return None
    # A pick out of a random subset is candidate i with a chance in closed form: all of them count, each as much.
    figures = {}
    for name, weights in (
        ("candidates", np.ones(sampled.correct.shape)),
        ("picks", pick_chances(head.scores, size)),
    ):
        bins = reliability(head.probabilities.ravel(), sampled.correct.ravel(), weights.ravel())
        figures[name] = {"error": binned_calibration_error(bins), "bins": [asdict(each) for each in bins]}
    return {"picks_out_of": size, **figures}


def _families(
    chances: Mapping[str, Doubles], families: Sequence[str | None], seed: int, resamples: int
) -> dict[str, Any]:
    """Accuracies of every family of problems."""
    figures: dict[str, Any] = {}
    for family in sorted({each for each in families if each is not None}):
        members = np.array([each == family for each in families])
        columns = np.stack([values[members] for values in chances.values()], axis=1)
        means = resampled_means(columns, resamples=resamples, seed=seed)
        figures[family] = {
            "problems": int(members.sum()),
            "accuracy": {
                name: plain_figure(estimate(float(columns[:, number].mean()), means[:, number]))
                for number, name in enumerate(chances)
            },
        }
    return figures


def ratio_estimate(numerator: float, denominator: float, numerators: Doubles, denominators: Doubles) -> Estimate:
    """A ratio of two means; NaN where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = np.where(denominators > _NOTHING, numerators / denominators, np.nan)
    return estimate(float(numerator / denominator) if denominator > _NOTHING else float("nan"), resampled)


def plain_figure(figure: Estimate) -> dict[str, float | None]:
    """A figure as JSON has it: what is NaN is null there."""
    return {name: None if np.isnan(value) else value for name, value in asdict(figure).items()}
