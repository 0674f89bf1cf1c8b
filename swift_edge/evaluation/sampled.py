"""The candidates of a test as arrays: labels, answers, and everything that a pick could be made by.

Reads a store and the task's equality of answers.

    q problems   n candidates of each
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swift_edge.answers import AnswerTask
from swift_edge.arrays import Doubles
from swift_edge.errors import StoreError
from swift_edge.scoring.calibration import AnswerCalibration, sigmoid
from swift_edge.scoring.head import Head
from swift_edge.training.store.format import StoredCandidate
from swift_edge.training.store.writer import Store


@dataclass(frozen=True, slots=True, eq=False)
class HeadScores:
    """What a head makes of the candidates."""

    scores: Doubles  # [q, n]
    """Its score; NaN for a candidate without a scored token."""
    probabilities: Doubles | None  # [q, n]
    """P(correct) by its calibration; None without one."""
    ratios: Doubles | None = None  # [q, n]
    """Likelihood ratios by its calibration; None without one."""
    answers: AnswerCalibration | None = None
    """What the sums of these are worth; None where it was calibrated without a task."""

    @classmethod
    def of(cls, head: Head, scores: Doubles) -> "HeadScores":
        """Put the probabilities beside the scores, where the head is calibrated."""
        calibration = head.calibration
        if calibration is None:
            return cls(scores, None)
        return cls(scores, calibration.probability(scores), calibration.likelihood_ratio(scores), calibration.answers)

    @property
    def votes(self) -> Doubles:
        """Weights of a vote, `[q, n]`: the probabilities, or without them the logistic function of the score."""
        return self.probabilities if self.probabilities is not None else sigmoid(self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The candidates of a test, the same number of each problem."""

    correct: NDArray[np.bool_]  # [q, n]
    """The labels."""
    answers: NDArray[np.int64]  # [q, n]
    """Number of the answer among those of the problem, from 0; -1 without an answer."""
    n_tokens: NDArray[np.float64]  # [q, n]
    """Response tokens; NaN, like every score, for a candidate that was cut off: it comes after all others."""
    mean_logprob: Doubles  # [q, n]
    """Mean log-probability of the response tokens."""
    self_certainty: Doubles  # [q, n]
    """Mean self-certainty of the response tokens."""
    heads: Mapping[str, HeadScores]
    """What each head makes of them; the first is the one that is judged against everything else."""
    external: Doubles | None = None  # [q, n]
    """A score from elsewhere, such as a reward model's."""

    @classmethod
    def read(
        cls,
        store: Store,
        task: AnswerTask,
        heads: Mapping[str, Head],
        *,
        scores: Mapping[str, Doubles] | None = None,
        external: Doubles | None = None,
    ) -> "Sampled":
        """Take the candidates of a store, with the scores that `heads` gave them while they were written.

        `scores`, `[q, n]` each, stand in for those of the store. One that was cut off has neither answer nor score, as
        in picks. Raises `StoreError` for a store that is not finished,
        or whose problems have different numbers of candidates.
        """
        rows = _square(store)
        cut_off = np.array([[each.cut_off for each in row] for row in rows])

        def column(values: list[list[float]] | Doubles) -> Doubles:
            return np.where(cut_off, np.nan, np.array(values, np.float64).reshape(len(rows), -1))

        scores = scores or {
            name: column([[each.scores.get(name, math.nan) for each in row] for row in rows]) for name in heads
        }
        return cls(
            correct=np.array([[each.correct for each in row] for row in rows]),
            answers=np.array([_numbered(task, [each.answer for each in row]) for row in rows]),
            n_tokens=column([[each.n_tokens for each in row] for row in rows]),
            mean_logprob=column([[each.mean_logprob for each in row] for row in rows]),
            self_certainty=column([[each.self_certainty for each in row] for row in rows]),
            heads={name: HeadScores.of(head, column(scores[name])) for name, head in heads.items()},
            external=None if external is None else column(external),
        )

    @property
    def n(self) -> int:
        """Candidates of each problem."""
        return int(self.correct.shape[1])


def _square(store: Store) -> list[Sequence[StoredCandidate]]:
    """The candidates of each problem."""
    candidates = store.candidates
    n = store.info.n or sum(each.problem == 0 for each in candidates)
    whole = 0 < len(candidates) == n * store.info.problems
    if not whole or any((each.problem, each.index) != divmod(place, n) for place, each in enumerate(candidates)):
        raise StoreError(
            f"{store.path} holds {len(candidates)} candidates of {store.problems} out of {store.info.problems} "
            "problems; expected all problems, with the same number of candidates each: run the same command again"
        )
    return [candidates[start : start + n] for start in range(0, len(candidates), n)]


def _numbered(task: AnswerTask, answers: Sequence[str | None]) -> list[int]:
    """Number of each answer among the different ones, -1 for None."""
    numbers = [-1] * len(answers)
    for number, group in enumerate(task.groups(answers)):
        for index in group:
            numbers[index] = number
    return numbers
