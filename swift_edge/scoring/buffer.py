"""Tokens that wait to be counted and scored together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from time import perf_counter
from typing import Final

import numpy as np

from swift_edge.arrays import Ids
from swift_edge.engine.request import Step
from swift_edge.engine.signals import TokenStatistics
from swift_edge.scoring.candidate import GrowingCandidate
from swift_edge.scoring.scorer import Scorer

MOST_STEPS: Final = 32
"""Most steps whose tokens wait."""


class TokenBuffer:
    """Tokens of a request's candidates that are neither counted nor scored yet.

    Many tokens take little more time than one, so picks that nobody watches let up to `MOST_STEPS` steps gather. The
    numbers are the same, bit for bit.
    """

    def __init__(
        self, scorer: Scorer, growing: Mapping[int, GrowingCandidate], *, gather: bool, with_tokens: bool
    ) -> None:
        """Add rewards to `growing`, by candidate; without `gather`, as soon as `add` is called.

        `with_tokens` adds the tokens, too; without it the caller does, who needs their texts at once.
        """
        self.head_s = 0.0
        """Seconds spent on scoring."""
        self._scorer = scorer
        self._growing = growing
        self._with_tokens = with_tokens
        self._most_steps = MOST_STEPS if gather else 1
        self._steps: list[Step] = []

    def add(self, step: Step) -> None:
        """Take the tokens of a step, and count and score all that wait if they are many."""
        if step.hidden_states is not None:  # views, which cannot wait
            started = perf_counter()
            states = step.hidden_states[0]  # [f, d]
            for row, candidate in enumerate(step.candidates[: len(states)]):
                self._growing[candidate].add_states([int(step.token_ids[row])], states[row : row + 1])
            self.head_s += perf_counter() - started
            step = replace(step, hidden_states=None)
        self._steps.append(step)
        if len(self._steps) >= self._most_steps:
            self.count()

    def count(self) -> None:
        """Count and score all tokens that wait."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        sampled = [len(step.candidates) for step in steps]
        tokens = None
        if self._with_tokens:
            tokens = _Gathered(steps, sampled)
            for candidate, mine in tokens.by_candidate:
                self._growing[candidate].add_tokens(tokens.token_ids[mine].tolist(), tokens.statistics, mine)
        scored = [step for step in steps if step.products]
        if not scored:
            return
        started = perf_counter()
        products = np.concatenate([step.products[0] for step in scored], axis=1)  # [g, f]
        fed = [step.products[0].shape[1] for step in scored]
        if tokens is None or fed != sampled:
            tokens = _Gathered(scored, fed)
        gates, rewards = self._scorer.evaluate(products, tokens.by_step)
        gates, rewards = gates[tokens.order], rewards[tokens.order]  # [f], [f]
        for candidate, mine in tokens.by_candidate:
            self._growing[candidate].add_rewards(tokens.token_ids[mine].tolist(), gates[mine], rewards[mine])
        self.head_s += perf_counter() - started


class _Gathered:
    """Tokens of several steps, put in the order of their candidates."""

    def __init__(self, steps: Sequence[Step], counts: Sequence[int]) -> None:
        """Take the first tokens of each step, as many as `counts` says; there are m in all."""
        pairs = list(zip(steps, counts, strict=True))
        candidates = np.array([candidate for step, count in pairs for candidate in step.candidates[:count]])  # [m]
        token_ids = np.concatenate([step.token_ids[:count] for step, count in pairs])  # [m]
        self.order: Ids = candidates.argsort(kind="stable")  # [m]
        """Their places in step order."""
        self.token_ids: Ids = token_ids[self.order]  # [m]
        """The tokens, int64."""
        self.by_step = TokenStatistics.joined([step.statistics.of(slice(count)) for step, count in pairs])
        """Their statistics in step order, `[m]` each."""
        self.statistics = self.by_step.of(self.order)
        """Their statistics, `[m]` each."""
        candidates = candidates[self.order]
        bounds = [0, *(np.flatnonzero(np.diff(candidates)) + 1).tolist(), len(candidates)]
        self.by_candidate = [(int(candidates[first]), slice(first, last)) for first, last in pairwise(bounds)]
        """Each candidate, and which of the tokens are its own."""
