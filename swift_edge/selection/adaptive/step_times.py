"""How long a decode step takes by the number of its rows, and how many rows pay.

A step is all that the engine does for a pick: sampling, running the graph, and reading the states.
"""

import contextlib
import itertools
import random
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from swift_edge.engine.engine import Engine
from swift_edge.engine.request import Consumer, Generation, Orders, Step
from swift_edge.errors import BusyEngineError
from swift_edge.options import SamplingOptions
from swift_edge.scoring.scorer import Scorer

PROMPT_TOKENS: Final = 48
NEW_TOKENS: Final = 24
ROUNDS: Final = 5
NOISE: Final = 1.15
"""Largest ratio between the times of the two fastest rounds: if they differ more, the machine is busy, and the times
are thrown away. More rows are not faster than fewer by more than this, either."""
MOST_TRIES: Final = 3
"""Measurements before there are no times."""
CLOSE: Final = 1.25
"""Largest ratio to the time of a step of the fewest rows at which more rows pay: twice as many then save a quarter of a
pick's time, and write a quarter more tokens."""
FREE: Final = 1.1
"""Largest ratio to the time of a step of one row at which further rows cost nothing."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long a decode step takes by its rows."""

    seconds: Mapping[int, float]
    """Seconds of a step by number of rows, ascending."""

    @property
    def knee(self) -> float:
        """Rows up to which more cost little: the K at which B rows take max(1, B / K) times as long as one row."""
        rows = max(self.seconds)
        return rows * self.seconds[min(self.seconds)] / self.seconds[rows]

    @property
    def free_rows(self) -> int:
        """The most rows whose step takes hardly longer than that of a single row: dropping them saves nothing."""
        limit = FREE * self.seconds[min(self.seconds)]
        free = itertools.takewhile(lambda rows: self.seconds[rows] <= limit, self.seconds)
        return max(free)

    def of(self, steps: Mapping[int, int]) -> float:
        """Seconds of steps, whose number is given by their rows; between measured numbers of rows it interpolates."""
        times = np.interp(list(steps), list(self.seconds), list(self.seconds.values()))
        return float(times @ np.array(list(steps.values()), np.float64))

    def rows_that_pay(self, fewest: int, most: int) -> int:
        """The most rows, up to `most`, whose step takes hardly longer than that of the `fewest`."""
        between = range(fewest, min(most, max(self.seconds)) + 1)
        sizes = [rows for rows in sorted({*self.seconds, most}) if rows in between]
        limit = CLOSE * self.of({fewest: 1})
        return max(itertools.takewhile(lambda rows: self.of({rows: 1}) <= limit, sizes), default=fewest)


def measure_steps(engine: Engine, scorer: Scorer, sampling: SamplingOptions, sizes: Sequence[int]) -> StepTimes | None:
    """Time steps of these numbers of rows: the least mean of the rounds, after one that warms up.

    None where the rounds differ however often it is tried, because the machine has other work.
    """
    for _ in range(MOST_TRIES):
        with contextlib.suppress(BusyEngineError):
            timed = timed_steps(engine, scorer, sampling, sizes, new_tokens=NEW_TOKENS, rounds=ROUNDS + 1)
            means = {rows: [statistics.fmean(steps) for steps in rounds[1:]] for rows, rounds in timed.items()}
            if (least := least_times(means)) is not None:
                return least
    return None


def least_times(rounds: Mapping[int, Sequence[float]]) -> StepTimes | None:
    """The least seconds of a step by its rows, given those of two rounds at least; None where they cannot be trusted.

    >>> least_times({1: [0.010, 0.011, 0.030], 8: [0.024, 0.021, 0.022]})
    StepTimes(seconds={1: 0.01, 8: 0.021})
    >>> least_times({1: [0.010, 0.020], 8: [0.021, 0.022]})
    """
    ordered = {rows: sorted(rounds[rows]) for rows in sorted(rounds)}
    if any(second > NOISE * first for first, second, *_ in ordered.values()):
        return None
    least = {rows: first for rows, (first, *_) in ordered.items()}
    if any(fewer > NOISE * more for fewer, more in itertools.pairwise(least.values())):
        return None
    # Fewer rows take no longer than more.
    least_from_here = list(itertools.accumulate(reversed(least.values()), min))[::-1]
    return StepTimes(dict(zip(least, least_from_here, strict=True)))


def timed_steps(
    engine: Engine,
    scorer: Scorer,
    sampling: SamplingOptions,
    sizes: Sequence[int],
    *,
    new_tokens: int,
    rounds: int,
) -> dict[int, list[list[float]]]:
    """Seconds of the `new_tokens` steps of every round, by number of rows; every round times all `sizes`.

    A prompt is read once, and all rows continue it. Raises `BusyEngineError` if other requests were at work meanwhile:
    such times say nothing.
    """
    session = engine.session
    new_tokens = min(new_tokens, session.context_length // 2)
    tokens = min(PROMPT_TOKENS, session.context_length - new_tokens - 2)
    prompt_ids = np.random.default_rng(0).integers(0, session.vocab_size, tokens)  # [p]
    order = random.Random(0)
    phases = [rows for _ in range(rounds) for rows in order.sample(sorted(sizes), len(sizes))]
    timing = _Timing(phases, new_tokens)
    generation = Generation(
        prompt_ids, sampling, phases[0], 0, new_tokens + 1, frozenset(), scorer.reads, kept_rows=max(sizes)
    )
    ticket = engine.submit(generation, timing)
    try:
        timing.ended.wait()
    finally:
        ticket.cancel()
    if timing.error is not None:
        raise timing.error
    timed: dict[int, list[list[float]]] = {rows: [] for rows in sorted(sizes)}
    for rows, seconds in zip(phases, timing.seconds, strict=True):
        timed[rows].append(seconds)
    return timed


class _Timing(Consumer):
    """Begins the rows of each phase in turn, and notes the seconds of their steps."""

    def __init__(self, phases: Sequence[int], new_tokens: int) -> None:
        """Begin with the first of the numbers of rows."""
        self.seconds: list[list[float]] = [[]]
        """Seconds of each step, by phase."""
        self.ended = threading.Event()
        """Set once everything is measured, or `error` says why not."""
        self.error: BaseException | None = None
        self._phases = phases
        self._new_tokens = new_tokens

    def step(self, step: Step) -> Orders | None:
        """Count one more step, or let the next phase begin."""
        if step.batch_rows != len(step.candidates):
            raise BusyEngineError
        self.seconds[-1].append(step.seconds)
        if len(self.seconds[-1]) < self._new_tokens:
            return None
        drop = dict.fromkeys(step.candidates, "the phase is over")
        if len(self.seconds) == len(self._phases):
            return Orders(drop)
        begin = self._phases[len(self.seconds)]
        self.seconds.append([])
        return Orders(drop, begin)

    def closed(self, error: BaseException | None) -> None:
        """Nothing more is measured."""
        self.error = error
        self.ended.set()
