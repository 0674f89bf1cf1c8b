"""How long a decode step takes by the number of its rows: what turns steps into seconds, and says how many rows pay.

A step is what the loop does for a pick: sampling, the graph with the states that the head reads, and bookkeeping. Knows
the loop and the clock. Does not know candidates or heads.
"""

import itertools
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from swift_edge.engine.rows import DecodeLoop, Prefilled
from swift_edge.engine.sampling import SamplingOptions
from swift_edge.engine.session import ModelSession
from swift_edge.scoring.candidate import Ranking

PROMPT_TOKENS: Final = 48
NEW_TOKENS: Final = 24
ROUNDS: Final = 5
CLOSE: Final = 1.25
"""Times as long as a step of the fewest rows that a step of more may take: twice as many rows then save a quarter of a
pick's time, and write a quarter more tokens."""
FREE: Final = 1.1
"""Times as long as a step of one row that a step may take whose rows cost nothing."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long a decode step takes by its rows."""

    seconds: Mapping[int, float]
    """Seconds of a step by number of rows, ascending."""

    @property
    def knee(self) -> float:
        """Rows up to which more of them cost little: K where a step of B rows takes max(1, B / K) of one of one row."""
        rows = max(self.seconds)
        return rows * self.seconds[min(self.seconds)] / self.seconds[rows]

    @property
    def free_rows(self) -> int:
        """The most rows whose step takes hardly longer than one of a single row: without them nothing is saved."""
        limit = FREE * self.seconds[min(self.seconds)]
        free = itertools.takewhile(lambda rows: self.seconds[rows] <= limit, self.seconds)
        return max(free)

    def of(self, steps: Mapping[int, int]) -> float:
        """Seconds of so many steps by their rows; what lies between measured numbers of rows is interpolated."""
        times = np.interp(list(steps), list(self.seconds), list(self.seconds.values()))
        return float(times @ np.array(list(steps.values()), np.float64))

    def rows_that_pay(self, fewest: int, most: int) -> int:
        """The most rows beside each other whose step takes hardly longer than one of the `fewest`; `most` at most."""
        known = range(fewest, min(most, max(self.seconds)) + 1)
        sizes = [rows for rows in sorted({*self.seconds, most}) if rows in known]
        limit = CLOSE * self.of({fewest: 1})
        return max(itertools.takewhile(lambda rows: self.of({rows: 1}) <= limit, sizes), default=fewest)


def measure_steps(
    session: ModelSession, ranking: Ranking, sampling: SamplingOptions, sizes: Sequence[int]
) -> StepTimes:
    """Time steps of so many rows: the median of some rounds, after one that warms up."""
    timed = timed_steps(session, ranking, sampling, sizes, new_tokens=NEW_TOKENS, rounds=ROUNDS + 1)
    return StepTimes({rows: statistics.median(map(statistics.fmean, found[1:])) for rows, found in timed.items()})


def timed_steps(
    session: ModelSession,
    ranking: Ranking,
    sampling: SamplingOptions,
    sizes: Sequence[int],
    *,
    new_tokens: int,
    rounds: int,
) -> dict[int, list[list[float]]]:
    """Seconds of each of the `new_tokens` steps of every round, by number of rows: all `sizes` in turn in every round.

    A prompt of some tokens is read once, and its rows go on together.
    """
    new_tokens = min(new_tokens, session.context_length // 2)
    tokens = min(PROMPT_TOKENS, session.context_length - new_tokens - 2)
    prompt_ids = np.random.default_rng(0).integers(0, session.vocab_size, tokens)  # [p]
    cache = session.new_cache(1, tokens, tokens)
    logits = session.prefill(cache, prompt_ids).logits
    assert logits is not None
    prompt = Prefilled(cache, logits, prompt_ids)
    timed: dict[int, list[list[float]]] = {rows: [] for rows in sorted(sizes)}
    order = random.Random(0)
    for _ in range(rounds):
        for rows in order.sample(list(timed), len(timed)):
            loop = DecodeLoop(
                session,
                sampling,
                (),
                new_tokens + 1,
                layers=ranking.layers,
                keep_logits=ranking.keep_logits,
                statistics=ranking.statistics,
                weights=ranking.weights,
            )
            loop.admit(prompt, {index: index for index in range(rows)}, seed=0)
            # The last token is not fed where nothing is read of it: its step is no whole one.
            moments = [time.perf_counter(), *(time.perf_counter() for _ in loop.steps())][:-1]
            timed[rows].append([after - before for before, after in itertools.pairwise(moments)])
    return timed
