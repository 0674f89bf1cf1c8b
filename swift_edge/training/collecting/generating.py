"""Writing of responses to many problems with the shared engine.

Problems are yielded whole and in order, whichever finishes first. Every candidate is the one that `Selector.pick`
writes for its prompt, seed and index.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Final

import numpy as np

from swift_edge.arrays import Ids
from swift_edge.engine.model import OpenedModel
from swift_edge.engine.request import Consumer, Generation, Orders, Step, Ticket
from swift_edge.engine.session import WORKING_BYTES
from swift_edge.engine.stopwatch import Stopwatch
from swift_edge.errors import InvalidOptionError, PromptError, TokenizerError, size_text
from swift_edge.options import PickOptions
from swift_edge.selection.planning import Planner
from swift_edge.system import machine
from swift_edge.training.collecting.features import FeatureReader, GrowingFeatures, ReadCandidate
from swift_edge.training.collecting.problems import Problem, naming

HELD_PROBLEMS: Final = 64
"""Most problems begun and not yielded yet: one with a long response holds up no more than these."""
HELD_BYTES: Final = 256 * 2**20
"""No further problem begins while finished candidates of unfinished problems take more than this."""
LOOK_S: Final = 0.2
"""Seconds after which progress is reported although no step was made."""


@dataclass(slots=True)
class Tally:
    """Counts of the work so far, updated while candidates are written."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    """Seconds by kind of work."""
    tokens: int = 0
    """Response tokens so far, including those of unfinished candidates."""
    prompt_tokens: int = 0
    """Prompt tokens read."""
    rows: int = 0
    """Rows at work in the last step."""
    held: int = 0
    """Problems begun and not yielded yet."""


def generate(
    opened: OpenedModel,
    problems: Sequence[Problem],
    options: PickOptions,
    reader: FeatureReader,
    *,
    rows: int = 16,
    held_problems: int = HELD_PROBLEMS,
    held_bytes: int = HELD_BYTES,
    tally: Tally | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Problem, tuple[ReadCandidate, ...]]]:
    """Write `options.n` candidates per problem, and yield each problem with all of them, in order.

    About `rows` rows are kept busy; at most `held_problems` are begun and not yielded yet, and none is begun while
    their finished candidates hold more than `held_bytes`. `tally` is updated, and `on_step` is called in the caller's
    thread after steps. Options, prompts and memory are checked before the first problem is written: raises
    `InvalidOptionError`, `DataError` with the line of a prompt that cannot be answered, and `MemoryLimitError`.
    """
    if rows < 1:
        raise InvalidOptionError(f"rows is {rows}; expected at least 1")
    planned = Planner.over(opened).planned(options)
    longest = max((len(_prompt_ids(opened, problem, options, reader)) for problem in problems), default=0)
    _require_memory(opened, options, reader, rows, longest, held_bytes)
    generation = Generation(
        np.zeros(0, np.int64),
        planned.sampling,
        planned.plan.most,
        planned.seed,
        min(options.max_new_tokens, opened.session.context_length),
        planned.stop_ids,
        reader.reads,
        key=object(),
        key_rows=rows,
    )
    limits = _Limits(rows, held_problems, held_bytes)
    return _Writing(opened, problems, options, generation, reader, limits, tally or Tally()).run(on_step)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What is under way at most."""

    rows: int
    """Rows that are kept busy."""
    held_problems: int
    """Problems begun and not given out."""
    held_bytes: int
    """Bytes of finished candidates that wait for others, beyond which no problem is begun."""


class _Written(Consumer):
    """A problem that is being written; the consumer of its request."""

    def __init__(self, writing: "_Writing", problem: Problem) -> None:
        self.problem = problem
        self.finished: dict[int, ReadCandidate] = {}
        self.is_done = False
        self.error: BaseException | None = None
        self._writing = writing
        self._growing: dict[int, GrowingFeatures] = {}

    def begun(self, candidates: Sequence[int]) -> None:
        """Candidates were given rows: make room for their features."""
        writing = self._writing
        for index in candidates:
            self._growing[index] = GrowingFeatures(
                index, writing.reader, writing.opened.tokenizer, writing.options.stop
            )

    def step(self, step: Step) -> Orders:
        """Add a token and its features to each candidate, and end those that a stop string ends."""
        started = perf_counter()
        fed = self._writing.reader.read(step)
        scored_s = perf_counter() - started
        finished = {end.candidate: end for end in step.finished}
        orders = Orders()
        for row, index in enumerate(step.candidates):
            growing = self._growing[index]
            growing.add([int(step.token_ids[row])], step.statistics, fed, slice(row, row + 1))
            if growing.stopped or index in finished:
                end = finished.get(index)
                orders.drop[index] = "ended"
                self.finished[index] = growing.finish(
                    end.finish_reason if end else "stop", end.unscored_tokens if end else 0
                )
                del self._growing[index]
        self._writing.stepped(len(step.candidates), step.batch_rows, scored_s)
        return orders

    def closed(self, error: BaseException | None) -> None:
        """Nothing more comes."""
        self.is_done, self.error = True, error
        self._writing.outbox.put(None)

    @property
    def nbytes(self) -> int:
        """Bytes that finished candidates hold while they wait for others."""
        return sum(candidate.nbytes for candidate in list(self.finished.values()))


class _Writing:
    """The state of `generate`."""

    def __init__(
        self,
        opened: OpenedModel,
        problems: Sequence[Problem],
        options: PickOptions,
        generation: Generation,
        reader: FeatureReader,
        limits: _Limits,
        tally: Tally,
    ) -> None:
        self.opened = opened
        self.options = options
        self.reader = reader
        self.outbox: SimpleQueue[None] = SimpleQueue()
        self._generation = generation
        self._limits = limits
        self._tally = tally
        self._to_come = deque(problems)
        self._under_way: deque[tuple[_Written, Ticket]] = deque()

    def stepped(self, tokens: int, batch_rows: int, scored_s: float) -> None:
        """Count a step of one of the problems; called by the driver."""
        self._tally.tokens += tokens
        self._tally.rows = batch_rows
        self._tally.watch.head_s += scored_s
        if self.outbox.empty():
            self.outbox.put(None)

    def run(self, on_step: Callable[[], None]) -> Iterator[tuple[Problem, tuple[ReadCandidate, ...]]]:
        """Write all candidates; requests that are under way are cancelled if the caller leaves early."""
        try:
            self._submit()
            while self._under_way:
                with contextlib.suppress(Empty):
                    self.outbox.get(timeout=LOOK_S)
                while self._under_way and self._under_way[0][0].is_done:
                    yield self._next_done()
                    on_step()
                self._submit()
                self._tally.held = len(self._under_way)
                on_step()
        finally:
            for _, ticket in self._under_way:
                ticket.cancel()

    def _next_done(self) -> tuple[Problem, tuple[ReadCandidate, ...]]:
        """The problem at the front, which is done, with its candidates."""
        written, ticket = self._under_way.popleft()
        if written.error is not None:
            raise written.error
        self._tally.watch.add(ticket.watch)
        return written.problem, tuple(written.finished[index] for index in sorted(written.finished))

    def _submit(self) -> None:
        """Begin further problems while rows may soon be free and not too much memory is held."""
        limits = self._limits
        while self._to_come:
            missing = sum(self._generation.candidates - len(written.finished) for written, _ in self._under_way)
            # Half as many again as there are rows: the next prompts are read ahead, so that rows need not wait.
            if self._under_way and missing >= limits.rows + max(limits.rows // 2, self._generation.candidates):
                return
            if len(self._under_way) >= limits.held_problems:
                return
            if self._under_way and sum(written.nbytes for written, _ in self._under_way) > limits.held_bytes:
                return
            problem = self._to_come.popleft()
            prompt_ids = _prompt_ids(self.opened, problem, self.options, self.reader)
            written = _Written(self, problem)
            ticket = self.opened.engine.submit(replace(self._generation, prompt_ids=prompt_ids), written)
            self._under_way.append((written, ticket))
            self._tally.prompt_tokens += len(prompt_ids)


def _prompt_ids(opened: OpenedModel, problem: Problem, options: PickOptions, reader: FeatureReader) -> Ids:
    try:
        return opened.prompt_ids(problem.prompt, raw=options.raw, feeds_last=reader.reads.feeds_last)
    except (PromptError, TokenizerError) as error:
        raise naming(problem, error) from error


def _require_memory(
    opened: OpenedModel, options: PickOptions, reader: FeatureReader, rows: int, prompt_tokens: int, held_bytes: int
) -> None:
    """Raise `MemoryLimitError`, with the numbers, if the rows and their features cannot fit."""
    session = opened.session
    new_tokens = min(options.max_new_tokens, session.context_length)
    kv, logits, hidden = session.request_bytes(rows, prompt_tokens, new_tokens, layers=len(reader.reads.all_layers))
    widths = {"hidden": len(reader.layers) * session.hidden_size, "logits": session.vocab_size, "none": 0}
    # Features of all rows, a second copy for the one that finishes, and those of candidates that wait.
    features = (rows + 1) * new_tokens * widths[reader.feature] * 2 + (held_bytes if reader.feature != "none" else 0)
    machine.require_memory(
        kv + logits + hidden + features + WORKING_BYTES,
        f"{rows} {'row' if rows == 1 else 'rows'} of {min(prompt_tokens + new_tokens, session.context_length)} tokens "
        f"(keys and values {size_text(kv)}, logits {size_text(logits)}, hidden states {size_text(hidden)}, "
        f"features {size_text(features)}, onnxruntime {size_text(WORKING_BYTES)})",
        "ask for fewer --rows, fewer --layers or a smaller --max-new-tokens, or free some memory",
    )
