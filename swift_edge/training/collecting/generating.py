"""Responses to many problems from one batch: rows that end are taken over by the candidates that wait.

About `rows` rows stay busy, whichever problems they belong to; a problem's prompt is read once. Problems come out whole
and in order, whatever was finished first, and every candidate is what `Selector.pick` writes for its prompt, seed and
index. Knows prompts, rows and what is read of them. Does not know labels or files.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from swift_edge.arrays import Ids
from swift_edge.engine.model import OpenedModel, Options
from swift_edge.engine.rows import DecodeLoop
from swift_edge.engine.sampling import SamplingOptions
from swift_edge.engine.scheduler import ContinuousBatch, QueuedPrompt
from swift_edge.engine.session import WORKING_BYTES
from swift_edge.engine.stopwatch import Stopwatch
from swift_edge.errors import InvalidOptionError, PromptError, TokenizerError, size_text
from swift_edge.system import machine
from swift_edge.training.collecting.features import READ_STATISTICS, FeatureReader, GrowingFeatures, ReadCandidate
from swift_edge.training.collecting.problems import Problem, naming

MOST_PROBLEMS: Final = 64
"""Problems begun and not given out: one with a long response does not hold up more than these."""
HELD_BYTES: Final = 256 * 2**20
"""No further problem is begun while finished candidates, which wait for others of theirs, hold more."""


@dataclass(slots=True)
class Tally:
    """What the loop has done so far; it counts on while it runs."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    """Where the time went."""
    tokens: int = 0
    """Response tokens so far, of unfinished candidates too."""
    prompt_tokens: int = 0
    """Prompt tokens read."""
    rows: int = 0
    """Rows at work in the last step."""
    held: int = 0
    """Problems begun and not given out yet."""


def generate(
    opened: OpenedModel,
    problems: Sequence[Problem],
    options: Options,
    reader: FeatureReader,
    *,
    rows: int = 16,
    tally: Tally | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Problem, tuple[ReadCandidate, ...]]]:
    """Write `options.n` candidates per problem, and yield each problem with all of them, in order.

    `tally` counts on, and `on_step` is called, after each step. Options, prompts and memory are checked before the
    first problem is asked for: `InvalidOptionError`, `DataError` with the line of a prompt that cannot be answered,
    `MemoryLimitError`.
    """
    if rows < 1:
        raise InvalidOptionError(f"rows is {rows}; expected at least 1")
    sampling, _, plan = opened.verify(options)
    longest = max((len(_prompt_ids(opened, problem, options, reader)) for problem in problems), default=0)
    _require_memory(opened, options, reader, rows, longest)
    return _Loop(opened, problems, options, sampling, plan.most, reader, rows, tally or Tally()).run(on_step)


@dataclass(slots=True)
class _Begun:
    """A problem whose candidates wait, are written, or wait for each other."""

    problem: Problem
    queued: QueuedPrompt
    finished: dict[int, ReadCandidate] = field(default_factory=dict)


class _Loop:
    """The state of `generate`."""

    def __init__(
        self,
        opened: OpenedModel,
        problems: Sequence[Problem],
        options: Options,
        sampling: SamplingOptions,
        n: int,
        reader: FeatureReader,
        rows: int,
        tally: Tally,
    ) -> None:
        self._opened = opened
        self._options = options
        self._n = n
        self._reader = reader
        self._tally = tally
        self._decode = DecodeLoop(
            opened.session,
            sampling,
            opened.bundle.manifest.tokens.eos_ids,
            min(options.max_new_tokens, opened.session.context_length),
            layers=reader.read_layers,
            keep_logits=reader.keep_logits,
            statistics=READ_STATISTICS,
        )
        self._batch = ContinuousBatch(opened.session, self._decode, rows)
        self._to_come = deque(problems)
        self._begun: deque[_Begun] = deque()
        self._held_bytes = 0
        self._growing: dict[int, tuple[_Begun, GrowingFeatures]] = {}

    def run(self, on_step: Callable[[], None]) -> Iterator[tuple[Problem, tuple[ReadCandidate, ...]]]:
        """Decode until every candidate is written."""
        watch = self._tally.watch
        self._submit()
        for step in self._batch.steps():
            begun = time.perf_counter()
            fed = self._reader.read(step.hidden_states, step.logits, step.statistics)
            watch.head_s += time.perf_counter() - begun
            finished = {end.candidate: end for end in step.finished}
            for row, number in enumerate(step.candidates):
                begun_problem, growing = self._growing[number]
                growing.add([int(step.token_ids[row])], step.statistics, fed, slice(row, row + 1))
                if growing.stopped or number in finished:
                    self._batch.drop(number)
                    end = finished.get(number)
                    candidate = growing.finish(end.finish_reason if end else "stop", end.unscored_tokens if end else 0)
                    begun_problem.finished[growing.index] = candidate
                    self._held_bytes += candidate.nbytes
                    del self._growing[number]
            watch.sample_s, watch.decode_s = self._decode.sample_s, self._decode.decode_s
            self._tally.tokens += len(step.candidates)
            self._tally.rows = len(step.candidates)
            del step, fed
            yield from self._whole()
            self._submit()
            self._tally.held = len(self._begun)
            on_step()

    def _whole(self) -> Iterator[tuple[Problem, tuple[ReadCandidate, ...]]]:
        """Give out the problems at the front that are whole."""
        while self._begun and len(self._begun[0].finished) == self._n:
            begun = self._begun.popleft()
            self._tally.watch.prefill_s += begun.queued.prefill_s
            candidates = tuple(begun.finished[index] for index in range(self._n))
            self._held_bytes -= sum(candidate.nbytes for candidate in candidates)
            yield begun.problem, candidates

    def _submit(self) -> None:
        """Begin further problems while the batch has room for them, and not too much is held."""
        while self._to_come and self._batch.wants_prompt:
            if len(self._begun) >= MOST_PROBLEMS or (self._begun and self._held_bytes > HELD_BYTES):
                return
            problem = self._to_come.popleft()
            prompt_ids = _prompt_ids(self._opened, problem, self._options, self._reader)
            queued = self._batch.submit(prompt_ids, range(self._n), self._options.seed)
            begun = _Begun(problem, queued)
            self._begun.append(begun)
            self._tally.prompt_tokens += len(prompt_ids)
            for index, number in enumerate(queued.numbers):
                growing = GrowingFeatures(index, self._reader, self._opened.tokenizer, self._options.stop)
                self._growing[number] = begun, growing


def _prompt_ids(opened: OpenedModel, problem: Problem, options: Options, reader: FeatureReader) -> Ids:
    try:
        return opened.prompt_ids(problem.prompt, raw=options.raw, feeds_last=reader.feeds_last)
    except (PromptError, TokenizerError) as error:
        raise naming(problem, error) from error


def _require_memory(
    opened: OpenedModel, options: Options, reader: FeatureReader, rows: int, prompt_tokens: int
) -> None:
    """Raise `MemoryLimitError`, with the numbers, if the rows and the features that they gather cannot fit."""
    session = opened.session
    new_tokens = min(options.max_new_tokens, session.context_length)
    kv, logits, hidden = session.request_bytes(rows, prompt_tokens, new_tokens, layers=len(reader.read_layers))
    widths = {"hidden": len(reader.layers) * session.hidden_size, "logits": session.vocab_size, "none": 0}
    # Gathered by all rows, put together for one of them, and waiting for others.
    features = (rows + 1) * new_tokens * widths[reader.feature] * 2 + (HELD_BYTES if reader.feature != "none" else 0)
    machine.require_memory(
        kv + logits + hidden + features + WORKING_BYTES,
        f"{rows} {'row' if rows == 1 else 'rows'} of {min(prompt_tokens + new_tokens, session.context_length)} tokens "
        f"(keys and values {size_text(kv)}, logits {size_text(logits)}, hidden states {size_text(hidden)}, "
        f"features {size_text(features)}, onnxruntime {size_text(WORKING_BYTES)})",
        "ask for fewer --rows, fewer --layers or a smaller --max-new-tokens, or free some memory",
    )
