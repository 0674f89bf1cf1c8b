"""How long a decode step takes by the number of its rows: what turns steps into seconds.

A step is what the loop does for a pick: sampling, the graph with the states that the head reads, and bookkeeping. Knows
the loop and the clock. Does not know candidates or heads.
"""

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from swift_edge.decode import DecodeLoop, Prefilled
from swift_edge.opening import OpenedModel
from swift_edge.sampling import SamplingOptions

ROWS: Final = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of rows that are measured."""
PROMPT_TOKENS: Final = 48
NEW_TOKENS: Final = 24
ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long a decode step takes by its rows."""

    seconds: Mapping[int, float]
    """Medians by number of rows, ascending."""

    @property
    def knee(self) -> float:
        """Rows up to which more of them cost little: K where a step of B rows takes max(1, B / K) of one of one row."""
        rows = max(self.seconds)
        return rows * self.seconds[min(self.seconds)] / self.seconds[rows]

    def of(self, steps: Mapping[int, int]) -> float:
        """Seconds of so many steps by their rows; what lies between measured numbers of rows is interpolated."""
        times = np.interp(list(steps), list(self.seconds), list(self.seconds.values()))
        return float(times @ np.array(list(steps.values()), np.float64))


def measure_steps(opened: OpenedModel, sampling: SamplingOptions, most: int) -> StepTimes:
    """Time steps of up to `most` rows, all numbers of rows in turn, round after round; the first round warms up."""
    sizes = [rows for rows in ROWS if rows < most] + [most]
    timed: dict[int, list[float]] = {rows: [] for rows in sizes}
    order = random.Random(0)
    for number in range(ROUNDS + 1):
        for rows in order.sample(sizes, len(sizes)):
            seconds = _time(opened, sampling, rows)
            if number:
                timed[rows].append(seconds)
    return StepTimes({rows: statistics.median(timed[rows]) for rows in sizes})


def _time(opened: OpenedModel, sampling: SamplingOptions, rows: int) -> float:
    """Seconds per step of `rows` rows that go on together."""
    session, ranking = opened.session, opened.ranking(None)
    new_tokens = min(NEW_TOKENS, session.context_length // 2)
    tokens = min(PROMPT_TOKENS, session.context_length - new_tokens - 1)
    prompt_ids = np.random.default_rng(0).integers(0, session.vocab_size, tokens)  # [p]
    cache = session.new_cache(1, tokens, tokens)
    logits = session.prefill(cache, prompt_ids).logits
    assert logits is not None
    loop = DecodeLoop(
        session,
        sampling,
        (),
        new_tokens,
        layers=ranking.layers,
        keep_logits=ranking.keep_logits,
        statistics=ranking.statistics,
    )
    loop.admit(Prefilled(cache, logits, prompt_ids), {index: index for index in range(rows)}, seed=0)
    begun = time.perf_counter()
    steps = sum(1 for _ in loop.steps())
    return (time.perf_counter() - begun) / steps
