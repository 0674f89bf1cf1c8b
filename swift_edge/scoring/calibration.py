"""Calibration: from scores to the probabilities that a candidate, or an answer of several candidates, is right.

A candidate has Platt's curve, P(correct | score) = sigmoid(slope * score + intercept) (Platt, "Probabilistic outputs
for support vector machines", 1999). The likelihood ratios of the candidates that give an answer, p(score | correct) /
p(score | wrong), add up to its evidence S_a. Ratios of independent candidates would be multiplied (arXiv 2510.13918),
but candidates that share an answer mostly share their reasoning, right or wrong, and are worth little more than the
best of them. A slope, fitted on problems with known answers, weights the sum, and an intercept sets how likely it is
that no answer is right:

    P(a) = c S_a^slope / (1 + sum over answers b of c S_b^slope)    c = exp(intercept)

Each has two parameters, which Newton's method in NumPy finds in a few steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from swift_edge.checks import expect, is_number, is_whole, require
from swift_edge.errors import InvalidOptionError, TrainingError

PREFIX_TOKENS: Final = (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048)
"""Token counts at which running scores are calibrated."""
BINS: Final = 10
"""Bins of equal count in the expected calibration error."""
FOLDS: Final = 5
"""Parts of the cross-validation: each is judged by the curve fitted to the others."""

_RIDGE: Final = 0.1
"""Pull of the slope of standardised scores towards 0, in candidates: keeps it finite if the classes are separable."""
_ANSWER_RIDGE: Final = 0.1
"""Pull of the slope of answers towards 1, which takes the evidence as it is, in problems."""
_LARGEST_NUMBER: Final = 1e100
"""Bound of slopes and intercepts: beyond it a product with a score might not be finite."""
_LARGEST_LOG_RATIO: Final = 500.0
"""Bound of log ratios: beyond it the exponential would not be finite."""


@dataclass(frozen=True, slots=True)
class AnswerCalibration:
    """How the evidence of a problem's answers becomes their probabilities."""

    slope: float
    """Log-odds per unit of the logarithm of the summed likelihood ratios, 0 or more."""
    intercept: float
    """Log-odds of an answer whose evidence is 1, against no answer being right."""
    error: float
    """Expected calibration error of the likeliest answer on held-out problems."""
    problems: int
    """Problems it was fitted on."""

    def __post_init__(self) -> None:
        """Raise `InvalidOptionError`, which is a ValueError, for numbers that make no posterior."""
        _require_numbers(self, ("slope", "intercept", "error"), ("problems",))
        require(self.slope >= 0, "the calibration's slope", self.slope, "0 or more: more evidence is never worse")
        require(0 <= self.error <= 1, "the calibration's error", self.error, "a share from 0 to 1")

    def posterior(self, sums: ArrayLike) -> NDArray[np.float64]:
        """P(right) of answers with these sums of likelihood ratios, `[a]`; the rest to 1 is P(no answer is right).

        >>> AnswerCalibration(1.0, 0.0, 0.0, 100).posterior([1.0, 1.0])
        array([0.33333333, 0.33333333])
        """
        return _posterior(np.array([self.slope, self.intercept]), np.asarray(sums, np.float64))


@dataclass(frozen=True, slots=True)
class PrefixCalibration:
    """Log-odds of being right by the running score at a token count, of a candidate that goes on."""

    slope: float
    """Log-odds per unit of score, never negative; 0 where the score says nothing as yet."""
    intercept: float
    """Log-odds at score 0."""
    candidates: int
    """Candidates it was fitted on."""

    def __post_init__(self) -> None:
        """Raise `InvalidOptionError`, which is a ValueError, for numbers that make no curve."""
        _require_numbers(self, ("slope", "intercept"), ("candidates",))
        require(self.slope >= 0, "the calibration's slope", self.slope, "0 or more: a greater score is never worse")

    def log_odds(self, score: float) -> float:
        """Log-odds of being right; NaN for a score that is no finite number."""
        return self.slope * score + self.intercept if math.isfinite(score) else math.nan


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a score becomes a probability of being correct."""

    slope: float
    """Log-odds per unit of score, never negative; 0 where the score says nothing."""
    intercept: float
    """Log-odds at score 0."""
    base_rate: float
    """Share of correct candidates among those it was fitted on, between 0 and 1."""
    error: float
    """Expected calibration error on held-out problems: mean gap between probability and share, in 10 equal bins."""
    candidates: int
    """Candidates it was fitted on."""
    problems: int
    """Problems it was fitted on."""
    answers: AnswerCalibration | None = None
    """How the evidence of answers becomes their probabilities; None where it was fitted without a task."""
    prefixes: Mapping[int, PrefixCalibration] = field(default_factory=dict)
    """Calibrations of running scores, by token count; empty if none were fitted."""

    def __post_init__(self) -> None:
        """Check the numbers; raises `InvalidOptionError`, which is a ValueError, for those that make no curve."""
        _require_numbers(self, ("slope", "intercept", "base_rate", "error"), ("candidates", "problems"))
        require(self.slope >= 0, "the calibration's slope", self.slope, "0 or more: a greater score is never worse")
        require(0 < self.base_rate < 1, "the calibration's base_rate", self.base_rate, "a share between 0 and 1")
        require(0 <= self.error <= 1, "the calibration's error", self.error, "a share from 0 to 1")

    def probability(self, scores: ArrayLike) -> NDArray[np.float64]:
        """P(correct) of candidates with these scores, `[n]`; NaN for a score that is no finite number."""
        log_odds = self.log_odds(scores)
        chances = np.full_like(log_odds, np.nan)
        there = np.isfinite(log_odds)
        chances[there] = sigmoid(log_odds[there])
        return chances

    def chance(self, score: float) -> float | None:
        """P(correct) of one candidate; None for a score that is no finite number."""
        chance = float(self.probability(score))
        return chance if math.isfinite(chance) else None

    def likelihood_ratio(self, scores: ArrayLike) -> NDArray[np.float64]:
        """p(score | correct) / p(score | wrong), `[n]`: the odds over those of the base rate; NaN without a score."""
        ratios: NDArray[np.float64] = np.exp(
            np.minimum(self.log_odds(scores) - _logit(self.base_rate), _LARGEST_LOG_RATIO)
        )
        return ratios

    def log_odds(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Log-odds of candidates with these scores to be right, `[n]`; NaN for a score that is no finite number."""
        values = np.asarray(scores, np.float64)
        return self.slope * np.where(np.isfinite(values), values, np.nan) + self.intercept

    def to_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON; `records.read_record` reads it back unchanged."""
        # JSON keys are texts.
        return asdict(self) | {"prefixes": {str(tokens): asdict(each) for tokens, each in self.prefixes.items()}}


def fit_calibration(scores: ArrayLike, correct: ArrayLike, problems: ArrayLike, seed: int) -> Calibration:
    """Fit the curve to labelled candidates, `[c]` each; they must not be those that the head was trained on.

    The error is measured by cross-validation: the problems are dealt into five parts by `seed`, and each part is
    judged by the curve of the others. Candidates without a finite score are left out. Raises `TrainingError` where
    all candidates have the same label, or all belong to one problem.
    """
    values, labels, groups = np.asarray(scores, np.float64), np.asarray(correct, np.bool_), np.asarray(problems)
    if values.ndim != 1 or not values.shape == labels.shape == groups.shape:
        raise InvalidOptionError(
            f"{values.size} scores came with {labels.size} labels and {groups.size} problems; expected one each"
        )
    finite = np.isfinite(values)
    values, labels, groups = values[finite], labels[finite], groups[finite]
    names, number = np.unique(groups, return_inverse=True)
    right = int(labels.sum())
    if right in (0, len(labels)) or len(names) < 2:
        raise TrainingError(
            f"{len(labels)} candidates of {len(names)} problems, {right} of them correct, give no calibration; "
            "expected correct and wrong ones out of at least two problems: collect more problems"
        )
    slope, intercept = _platt(values, labels)
    fold = np.random.default_rng(seed).permutation(len(names))[number] % min(FOLDS, len(names))  # [c]
    held_out = np.empty(len(values))
    for part in range(int(fold.max()) + 1):
        inside = fold == part
        curve = _platt(values[~inside], labels[~inside])
        held_out[inside] = sigmoid(curve[0] * values[inside] + curve[1])
    return Calibration(
        slope, intercept, right / len(labels), calibration_error(held_out, labels), len(labels), len(names)
    )


def fit_prefix_calibration(scores: ArrayLike, correct: ArrayLike) -> PrefixCalibration:
    """Fit the curve to the running scores of labelled candidates at a token count, `[c]`; NaN is left out.

    Raises `TrainingError` without a finite score.
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(correct, np.bool_)
    finite = np.isfinite(values)
    if not finite.any():
        raise TrainingError("no candidate has a score at that token count; expected some")
    slope, intercept = _platt(values[finite], labels[finite])
    return PrefixCalibration(slope, intercept, int(finite.sum()))


def fit_answer_calibration(
    sums: Sequence[ArrayLike], right: Sequence[int | None], problems: Sequence[int], seed: int
) -> AnswerCalibration:
    """Fit slope and intercept to examples: the sums of an example's answers `[a]`, and which is right (None: none is).

    Examples of one problem, such as subsets of its candidates, belong together: the error is measured by dealing the
    problems into five parts by `seed`, each judged by what was fitted to the others. Raises `TrainingError` without
    examples of at least two problems.
    """
    names, number = np.unique(np.asarray(problems), return_inverse=True)
    if len(names) < 2:
        raise TrainingError(
            f"{len(names)} problems give no posterior over answers; expected at least two: collect more"
        )
    evidence = _padded([np.asarray(each, np.float64) for each in sums])  # [e, a]
    places = np.array([-1 if place is None else place for place in right])  # [e]
    fold = np.random.default_rng(seed).permutation(len(names))[number] % min(FOLDS, len(names))  # [e]
    posterior = np.empty_like(evidence)  # [e, a]
    for part in range(int(fold.max()) + 1):
        inside = fold == part
        posterior[inside] = _posterior(_fit_answers(evidence[~inside], places[~inside]), evidence[inside])
    likeliest = posterior.argmax(axis=1)
    slope, intercept = _fit_answers(evidence, places)
    error = calibration_error(posterior.max(axis=1), likeliest == places)
    return AnswerCalibration(float(slope), float(intercept), error, len(names))


def calibration_error(probabilities: ArrayLike, correct: ArrayLike) -> float:
    """Expected calibration error of `[c]` candidates: the mean gap between mean probability and share correct in a bin.

    The bins hold equal numbers of candidates, in order of their probability; equal probabilities share their labels,
    so that the order of candidates does not matter. NaN without candidates.
    """
    chances, labels = np.asarray(probabilities, np.float64), np.asarray(correct, np.float64)
    if not len(chances):
        return math.nan
    values, number = np.unique(chances, return_inverse=True)
    shares = np.bincount(number, weights=labels) / np.bincount(number)  # of each probability
    order = np.argsort(number, kind="stable")
    gaps = values[number][order] - shares[number][order]  # [c]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, min(BINS, len(gaps)))) / len(gaps))


def _platt(scores: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of greatest likelihood; slope 0 if the scores say nothing, or point the wrong way."""
    right, total = int(correct.sum()), len(correct)
    # One class alone has no finite log-odds, so half a candidate is added to each.
    level = _logit(right / total) if 0 < right < total else _logit((right + 0.5) / (total + 1))
    spread = float(scores.std())
    if right in (0, total) or not spread > 1e-12 * float(np.abs(scores).max()):
        return 0.0, level
    mean = float(scores.mean())
    inputs = np.stack([(scores - mean) / spread, np.ones(total)])  # [2, c]
    targets = correct.astype(np.float64)
    parameters = np.array([0.0, level])
    ridge = np.array([_RIDGE, 0.0])

    def cost(at: NDArray[np.float64]) -> float:
        margins = at @ inputs
        return float(np.logaddexp(0.0, margins).sum() - targets @ margins + 0.5 * ridge @ at**2)

    def derivatives(at: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        chances = sigmoid(at @ inputs)
        gradient = inputs @ (chances - targets) + ridge * at
        return gradient, (inputs * np.maximum(chances * (1 - chances), 1e-12)) @ inputs.T + np.diag(ridge)

    parameters = _minimise(cost, derivatives, parameters)
    if parameters[0] <= 0:
        return 0.0, level
    slope = float(parameters[0]) / spread
    return slope, float(parameters[1]) - slope * mean


def _padded(sums: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Examples as rows of one array `[e, a]`, padded with 0, the evidence of an answer that nobody gave."""
    padded = np.zeros((len(sums), max(1, *(each.size for each in sums))))
    for row, each in zip(padded, sums, strict=True):
        row[: each.size] = each
    return padded


def _posterior(parameters: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(right) of every answer, of the shape of `sums` `[..., a]`."""
    log_odds = _log_odds(parameters, sums)
    top = np.maximum(log_odds.max(axis=-1, initial=-np.inf), 0.0)[..., np.newaxis]
    weights = np.exp(log_odds - top)
    posterior: NDArray[np.float64] = weights / (np.exp(-top) + weights.sum(axis=-1, keepdims=True))
    return posterior


def _log_odds(parameters: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    there = sums > 0
    return np.where(there, parameters[0] * np.log(np.where(there, sums, 1.0)) + parameters[1], -np.inf)


def _fit_answers(sums: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Slope and intercept of greatest likelihood, by Newton's method: the cost is convex.

    `sums` are those of the answers `[e, a]`, `places` says which is right `[e]`, -1 for none.
    """
    parameters = np.array([1.0, 0.0])
    # A right answer without evidence (all its scores are missing) cannot be made likely.
    some = (places >= 0) & (np.take_along_axis(sums, np.maximum(places, 0)[:, np.newaxis], axis=1)[:, 0] > 0)
    chosen = np.flatnonzero(some), places[some]
    logarithms = np.log(np.where(sums > 0, sums, 1.0))
    inputs = np.stack([logarithms, np.ones_like(sums)])  # [2, e, a]

    def cost(at: NDArray[np.float64]) -> float:
        log_odds = _log_odds(at, sums)
        normalizer = np.logaddexp(np.logaddexp.reduce(log_odds, axis=1), 0.0)
        return float(0.5 * _ANSWER_RIDGE * (at[0] - 1) ** 2 + normalizer.sum() - log_odds[chosen].sum())

    def derivatives(at: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weighted = inputs * _posterior(at, sums)  # [2, e, a]
        means = weighted.sum(axis=2)  # [2, e]
        gradient = means.sum(axis=1) - inputs[:, *chosen].sum(axis=1)
        gradient[0] += _ANSWER_RIDGE * (at[0] - 1)
        return gradient, np.einsum("iea,jea->ij", weighted, inputs) - means @ means.T + np.diag([_ANSWER_RIDGE, 1e-9])

    parameters = _minimise(cost, derivatives, parameters)
    return np.array([max(0.0, parameters[0]), parameters[1]])


def _minimise(
    cost: Callable[[NDArray[np.float64]], float],
    derivatives: Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]],
    start: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Where a convex cost is least, by Newton's method; `derivatives` gives gradient `[k]` and Hessian `[k, k]`."""
    parameters, current = start, cost(start)
    for _ in range(100):
        gradient, hessian = derivatives(parameters)
        step = np.linalg.solve(hessian, gradient)
        # The cost is convex: until the minimum is reached, a short enough step lowers it.
        length = 1.0
        while length > 1e-10 and not cost(parameters - length * step) < current:
            length /= 2
        if length <= 1e-10:
            break
        parameters = parameters - length * step
        current = cost(parameters)
    return parameters


def sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds to probabilities, of any shape."""
    # log(1 + exp(-x)) neither overflows nor loses small probabilities.
    return cast(NDArray[np.float64], np.exp(-np.logaddexp(0.0, -log_odds)))


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _require_numbers(calibration: object, numbers: Sequence[str], counts: Sequence[str]) -> None:
    """Check that fields hold finite numbers, or integers of at least 1, and convert them to Python's own types."""
    for name in numbers:
        value = getattr(calibration, name)
        bounded = is_number(value) and abs(value) <= _LARGEST_NUMBER
        expect(bounded, f"the calibration's {name}", value, f"a finite number, {_LARGEST_NUMBER:g} at most")
        object.__setattr__(calibration, name, float(value))
    for name in counts:
        value = getattr(calibration, name)
        expect(is_whole(value, 1), f"the calibration's {name}", value, "an integer of at least 1")
        object.__setattr__(calibration, name, int(value))
