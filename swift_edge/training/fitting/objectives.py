"""What a head is fitted to: the losses, and how they move with the scores, the gates and the rewards.

Pure arithmetic in float64.

A candidate counts as a whole and as its prefixes. Its tokens fall into s pieces; prefix j is the pieces 0 to j, and the
last prefix is the whole response. With gates g and rewards r the score of a prefix is

    R = Σ g·r / G    G = max(Σ g, 1e-8)    dR/dr_t = g_t / G    dR/dg_t = (r_t - R) / G, or r_t / G where G is held

so the losses of all prefixes reach a token as two sums over the prefixes that cover it, A = Σ dL/dR / G and
B = Σ R · dL/dR / G:  dL/dr_t = g_t A  and  dL/dg_t = r_t A - B. No token is ever copied. Without a gate all g are 1.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles
from swift_edge.errors import InvalidOptionError
from swift_edge.scoring.calibration import sigmoid
from swift_edge.scoring.head import LEAST_GATE_SUM

Loss = Literal["bce", "hinge", "pairwise", "infonca", "nca"]
LOSSES: Final[tuple[Loss, ...]] = get_args(Loss)
PER_CANDIDATE: Final[frozenset[Loss]] = frozenset(("bce", "hinge"))
"""Losses that are a mean over candidates; the others are a mean over the problems with correct and wrong candidates."""
ALPHA: Final = 0.01
"""Temperature of the labels in InfoNCA and NCA."""

Labels: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int64]
LossSums: TypeAlias = tuple[Doubles, Doubles]
"""A loss `[s]` summed over candidates or problems, and how it moves with the scores, `[c, s]`."""


def loss_sums(loss: Loss, scores: Doubles, correct: Labels, starts: Counts) -> LossSums:
    """A loss of whole problems, prefix by prefix: `scores` `[c, s]`, `correct` `[c]`, problem i owns starts[i:i+2].

    Returns sums, over candidates for those of `PER_CANDIDATE` and over problems for the others, so that parts of a set
    of problems add up; the divisor is the caller's. Problems without both labels add nothing to the latter.
    """
    return _LOSSES[loss](scores, correct, starts)


def contrasts(correct: Labels, starts: Counts) -> Labels:
    """Whether each problem `[p]` has correct and wrong candidates: the others say nothing about ranking."""
    right = np.add.reduceat(correct.astype(np.int64), starts[:-1]) if len(starts) > 1 else np.zeros(0, np.int64)
    return (right > 0) & (right < np.diff(starts))


def binary_cross_entropy(scores: Doubles, correct: Labels, starts: Counts) -> LossSums:
    """Logistic loss, log(1 + exp(R)) - label·R, summed over candidates."""
    del starts  # candidates count one by one
    labels = correct[:, np.newaxis].astype(np.float64)
    return (np.logaddexp(0.0, scores) - labels * scores).sum(axis=0), sigmoid(scores) - labels


def hinge(scores: Doubles, correct: Labels, starts: Counts) -> LossSums:
    """max(0, 1 - y·R) with y = 1 for correct and -1 for wrong candidates, summed over candidates."""
    del starts
    signs = np.where(correct, 1.0, -1.0)[:, np.newaxis]
    margins = 1.0 - signs * scores
    return np.maximum(margins, 0.0).sum(axis=0), np.where(margins > 0, -signs, 0.0)


def pairwise(scores: Doubles, correct: Labels, starts: Counts) -> LossSums:
    """log(1 + exp(R_wrong - R_correct)), mean over the pairs of a problem, summed over problems with both labels."""
    first, second, weights = _pairs(correct, starts)
    behind = scores[second] - scores[first]  # [pairs, s]
    loss = weights @ np.logaddexp(0.0, behind)
    slopes = weights[:, np.newaxis] * sigmoid(behind)
    gradient = np.empty_like(scores)
    for prefix, slope in enumerate(slopes.T):
        gradient[:, prefix] = np.bincount(second, weights=slope, minlength=len(scores))
        gradient[:, prefix] -= np.bincount(first, weights=slope, minlength=len(scores))
    return loss, gradient


def infonca(scores: Doubles, correct: Labels, starts: Counts) -> LossSums:
    """-Σ_i p_i log softmax(R)_i with p = softmax(label / 0.01) within the problem, summed over problems with both.

    InfoNCA of "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv 2402.05369, with the score
    in the place of the log-ratio of two models and the label as the reward.
    """
    members, starts = _of_contrasts(correct, starts)
    chosen, targets = scores[members], _targets(correct[members], starts)
    gradient = np.zeros_like(scores)
    if not len(members):
        return np.zeros(scores.shape[1]), gradient
    lengths = np.diff(starts)
    greatest = np.repeat(np.maximum.reduceat(chosen, starts[:-1]), lengths, axis=0)
    normalizers = np.log(np.add.reduceat(np.exp(chosen - greatest), starts[:-1]))
    shares = chosen - greatest - np.repeat(normalizers, lengths, axis=0)  # log softmax
    gradient[members] = np.exp(shares) - targets
    return -(targets * shares).sum(axis=0), gradient


def nca(scores: Doubles, correct: Labels, starts: Counts) -> LossSums:
    """-Σ_i [p_i log σ(R_i) + (1/n) log σ(-R_i)] with p as in `infonca`, n the candidates of the problem.

    NCA of arXiv 2402.05369, summed over problems with both labels.
    """
    members, starts = _of_contrasts(correct, starts)
    chosen, targets = scores[members], _targets(correct[members], starts)
    shares = np.repeat(1.0 / np.diff(starts), np.diff(starts))[:, np.newaxis]  # 1/n
    chances = sigmoid(chosen)
    gradient = np.zeros_like(scores)
    gradient[members] = shares * chances - targets * (1.0 - chances)
    return (targets * np.logaddexp(0.0, -chosen) + shares * np.logaddexp(0.0, chosen)).sum(axis=0), gradient


_LOSSES: Final[dict[Loss, Callable[[Doubles, Labels, Counts], LossSums]]] = {
    "bce": binary_cross_entropy,
    "hinge": hinge,
    "pairwise": pairwise,
    "infonca": infonca,
    "nca": nca,
}


def cut(tokens: Counts, fractions: Doubles) -> Counts:
    """Tokens of each piece `[c, k + 1]` of candidates with `tokens` `[c]`, cut after the `fractions` `[c, k]`.

    A prefix has at least one token. Pieces may be empty: a short candidate has few distinct prefixes.

    >>> cut(np.array([10, 1]), np.array([[0.5, 0.25], [0.5, 0.25]]))
    array([[3, 2, 5],
           [1, 0, 0]])
    """
    if len(tokens) and int(tokens.min()) < 1:
        raise InvalidOptionError("a candidate without tokens has no score; leave it out")
    ends = np.ceil(np.sort(fractions, axis=1) * tokens[:, np.newaxis]).astype(np.int64)
    ends = np.clip(np.column_stack([ends, tokens]), 1, tokens[:, np.newaxis])
    return np.diff(ends, axis=1, prepend=0)


def cut_after(tokens: Counts, counts: Sequence[int]) -> Counts:
    """Tokens of each piece `[c, k + 1]` of candidates with `tokens` `[c]`, cut after so many tokens.

    >>> cut_after(np.array([40, 20]), (16, 32))
    array([[16, 16,  8],
           [16,  4,  0]])
    """
    ends = np.minimum(np.array([*counts, np.iinfo(np.int64).max]), tokens[:, np.newaxis])
    return cast(Counts, np.diff(ends, axis=1, prepend=0))


def prefix_scores(gates: Doubles, rewards: Doubles, pieces: Counts) -> tuple[Doubles, Doubles]:
    """Score R and Σ g of every prefix, `[c, s]` each, from gates and rewards `[m]` of the candidates' tokens."""
    gate_sums = np.cumsum(_piece_sums(gates, pieces), axis=1)
    sums = np.cumsum(_piece_sums(gates * rewards, pieces), axis=1)
    return sums / np.maximum(gate_sums, LEAST_GATE_SUM), gate_sums


def prefix_gradients(
    gates: Doubles, rewards: Doubles, pieces: Counts, scores: Doubles, gate_sums: Doubles, slopes: Doubles
) -> tuple[Doubles, Doubles]:
    """How a loss moves with gates and rewards, `[m]` each, where `slopes` `[c, s]` is how it moves with the scores."""
    weights = slopes / np.maximum(gate_sums, LEAST_GATE_SUM)
    # A divisor that is held at its least value does not move with the gates.
    shared = np.where(gate_sums > LEAST_GATE_SUM, scores * weights, 0.0)
    lengths = pieces.ravel()
    covering, mean = (
        np.repeat(np.cumsum(each[:, ::-1], axis=1)[:, ::-1].ravel(), lengths) for each in (weights, shared)
    )
    return rewards * covering - mean, gates * covering


def _piece_sums(values: Doubles, pieces: Counts) -> Doubles:
    """Sums `[c, s]` over pieces; those of a piece do not depend on the tokens before it, as a running sum's would."""
    lengths = pieces.ravel()
    begins = np.cumsum(lengths) - lengths
    # The zero at the end gives an empty last piece a place to begin.
    sums = np.add.reduceat(np.append(values, 0.0), begins) if len(begins) else np.zeros(0)
    return cast(Doubles, np.where(lengths > 0, sums, 0.0).reshape(pieces.shape))


def _pairs(correct: Labels, starts: Counts) -> tuple[Counts, Counts, Doubles]:
    """Each pair of a correct and a wrong candidate of one problem, and its weight: one over the problem's pairs."""
    problem = np.repeat(np.arange(len(starts) - 1), np.diff(starts))  # [c]
    right, wrong = np.flatnonzero(correct), np.flatnonzero(~correct)
    wrong_counts = np.bincount(problem[wrong], minlength=len(starts) - 1)  # [p]
    wrong_begins = np.cumsum(wrong_counts) - wrong_counts
    partners = wrong_counts[problem[right]]  # of each correct candidate
    first = np.repeat(right, partners)
    place = np.arange(len(first)) - np.repeat(np.cumsum(partners) - partners, partners)
    second = wrong[np.repeat(wrong_begins[problem[right]], partners) + place]
    right_counts = np.bincount(problem[right], minlength=len(starts) - 1)
    return first, second, 1.0 / (right_counts * wrong_counts)[problem[first]]


def _of_contrasts(correct: Labels, starts: Counts) -> tuple[Counts, Counts]:
    """Candidates of the problems with both labels, and where among those each problem starts."""
    lengths, both = np.diff(starts), contrasts(correct, starts)
    members = np.flatnonzero(np.repeat(both, lengths))
    return members, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[both])])


def _targets(correct: Labels, starts: Counts) -> Doubles:
    """softmax(label / ALPHA) within each problem `[c, 1]`; every problem has a correct candidate."""
    powers = np.exp((correct.astype(np.float64) - 1.0) / ALPHA)
    if not len(powers):
        return powers[:, np.newaxis]
    return cast(Doubles, (powers / np.repeat(np.add.reduceat(powers, starts[:-1]), np.diff(starts)))[:, np.newaxis])
