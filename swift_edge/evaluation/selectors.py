"""Every rule that could pick one of N candidates, and how often its pick is right.

    pass@1          a candidate drawn at random: what N = 1 gives
    oracle          right where any candidate is: what no rule can beat
    majority        the commonest answer
    shortest        the fewest tokens
    mean_logprob, self_certainty    the greatest of a label-free signal
    HEAD            the greatest score of a head
    HEAD vote       the answer with the greatest sum of probabilities
    HEAD calibrated the answer with the greatest sum of likelihood ratios
    HEAD+OTHER ranking, scaling     the first head with another score, as SWIFT combines them

The other score is the external one where there is one, else the mean log-probability.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from swift_edge.arrays import Doubles
from swift_edge.errors import InvalidOptionError
from swift_edge.evaluation.expectation import (
    Flags,
    expected_best,
    expected_oracle,
    expected_ranking,
    expected_scaling,
    expected_vote,
    subsets_of,
)
from swift_edge.evaluation.sampled import Sampled

PASS_AT_1: Final = "pass@1"
ORACLE: Final = "oracle"
BASELINES: Final = (PASS_AT_1, "majority", "shortest", "mean_logprob", "self_certainty")
"""Rules that need no training."""
EXTERNAL: Final = "external"
RESERVED: Final = (*BASELINES, ORACLE, EXTERNAL, "length")
"""Names that no head can have."""


def expected_by_size(sampled: Sampled, sizes: Sequence[int], seed: int = 0) -> dict[int, dict[str, Doubles]]:
    """`expected_accuracies` at each of `sizes`.

    Raises `InvalidOptionError` for a size that there are not enough candidates for.
    """
    if not sizes or min(sizes) < 1 or max(sizes) > sampled.n:
        raise InvalidOptionError(
            f"sizes are {list(sizes)}; expected numbers from 1 to {sampled.n}, the candidates there are"
        )
    return {size: expected_accuracies(sampled, size, seed) for size in sizes}


def expected_accuracies(sampled: Sampled, size: int, seed: int = 0) -> dict[str, Doubles]:
    """Chance of every rule's pick to be right, `[q]` each, with `size` candidates drawn out of those of each problem.

    `seed` draws the subsets where they are too many to go through; `expectation` says when.
    """
    correct, answers = sampled.correct, sampled.answers
    subsets = subsets_of(sampled.n, size, seed)
    chances = {
        PASS_AT_1: correct.mean(axis=1),
        ORACLE: expected_oracle(correct, size),
        "majority": expected_vote(np.ones(correct.shape), answers, correct, subsets),
        "shortest": expected_best(-sampled.n_tokens.astype(np.float64), correct, size),
        "mean_logprob": expected_best(sampled.mean_logprob, correct, size),
        "self_certainty": expected_best(sampled.self_certainty, correct, size),
    }
    if sampled.external is not None:
        chances[EXTERNAL] = expected_best(sampled.external, correct, size)
    for name, head in sampled.heads.items():
        chances[name] = expected_best(head.scores, correct, size)
        chances[f"{name} vote"] = expected_vote(head.votes, answers, correct, subsets)
        if head.ratios is not None:
            chances[f"{name} calibrated"] = expected_vote(head.ratios, answers, correct, subsets)
    for name, head in list(sampled.heads.items())[:1]:
        other_name, other = other_score(sampled)
        chances[f"{name}+{other_name} ranking"] = expected_ranking(head.scores, other, correct, subsets)
        chances[f"{name}+{other_name} scaling"] = expected_scaling(head.scores, other, correct, subsets)
    return chances


def other_score(sampled: Sampled) -> tuple[str, Doubles]:
    """The score that the first head is combined with, and its name."""
    return ("mean_logprob", sampled.mean_logprob) if sampled.external is None else (EXTERNAL, sampled.external)


def ranking_scores(sampled: Sampled) -> dict[str, Doubles]:
    """Every score that ranks candidates, `[q, n]` each, the greatest best: heads, signals, and fewer tokens."""
    scores = {name: head.scores for name, head in sampled.heads.items()}
    if sampled.external is not None:
        scores[EXTERNAL] = sampled.external
    return scores | {
        "mean_logprob": sampled.mean_logprob,
        "self_certainty": sampled.self_certainty,
        "length": -sampled.n_tokens.astype(np.float64),
    }


def problem_aurocs(scores: Doubles, correct: Flags) -> Doubles:
    """AUROC of `scores` within each problem, `[q]`; NaN where all candidates are right or all are wrong."""
    comparable = np.where(np.isnan(scores), -np.inf, scores)
    mine, others = comparable[:, :, np.newaxis], comparable[:, np.newaxis]  # [q, n, 1], [q, 1, n]
    outranks = (mine > others) + 0.5 * (mine == others)  # [q, n, n]
    won = np.einsum("qij,qi,qj->q", outranks, correct.astype(np.float64), (~correct).astype(np.float64))
    right = correct.sum(axis=1)
    pairs = right * (correct.shape[1] - right)
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)
