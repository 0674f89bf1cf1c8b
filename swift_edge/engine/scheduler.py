"""One batch over many prompts: rows that end are taken over by candidates that wait, prompts are read between steps.

Knows token ids, prompts and rows. Does not know text, the head, or what becomes of a candidate. Which rows decode
beside it changes nothing about a candidate.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from swift_edge.arrays import Ids
from swift_edge.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from swift_edge.engine.rows import DecodeLoop, Prefilled, Step
from swift_edge.engine.session import CHUNK_TOKENS, ModelSession


class QueuedPrompt:
    """A prompt whose candidates wait for rows."""

    def __init__(self, token_ids: Ids, candidates: dict[int, int], seed: int, kept_rows: int | None) -> None:
        """Take the prompt, int64 `[p]`, its candidates' indices by number, and the rows that are kept for it."""
        self.numbers = tuple(candidates)
        """Numbers by which the steps name its candidates."""
        self.kept_rows = kept_rows
        """Rows that are its own until it is closed; None takes rows as they become free, and all its candidates are
        known."""
        self.prefill_s = 0.0
        """Seconds spent on reading it so far."""
        self.admitted: float | None = None
        """When its first candidates were given rows, as `time.perf_counter` counts; None before."""
        self.waiting = candidates
        """Indices, by number, of the candidates that have no row yet; they are given rows in this order."""
        self._token_ids = token_ids
        self._seed = seed
        self._prefilled: Prefilled | None = None

    @property
    def is_read(self) -> bool:
        """Whether its candidates can be given rows."""
        return self._prefilled is not None and self._prefilled.cache.longest == len(self._token_ids)

    def read(self, session: ModelSession, prefixes: PrefixCache | None) -> bool:
        """Read the next chunk of it, after what is known of it; returns whether that was the last one."""
        begun = time.perf_counter()
        tokens = len(self._token_ids)
        if self._prefilled is not None:
            cache = self._prefilled.cache
        else:
            cache = session.new_cache(1, tokens, tokens)
            if prefixes is not None:
                prefixes.restore(cache, self._token_ids)
        part = self._token_ids[cache.longest : cache.longest + CHUNK_TOKENS]
        logits = session.prefill(cache, part, chunk=CHUNK_TOKENS if prefixes is None else BLOCK_TOKENS).logits
        assert logits is not None
        self._prefilled = Prefilled(cache, logits, self._token_ids)
        if prefixes is not None and self.is_read:
            prefixes.keep(cache, self._token_ids)
        self.prefill_s += time.perf_counter() - begun
        return self.is_read

    def admit(self, loop: DecodeLoop, rows: int) -> None:
        """Give `rows` rows to candidates that wait; the prompt's own row is let go with the last that there will be."""
        assert self._prefilled is not None
        self.admitted = self.admitted or time.perf_counter()
        numbers = list(self.waiting)[:rows]
        loop.admit(self._prefilled, {number: self.waiting.pop(number) for number in numbers}, self._seed)
        if not self.waiting and self.kept_rows is None:
            self._prefilled = None  # copied into all its rows


class ContinuousBatch:
    """Keeps at most `rows` rows of a decode loop busy with the candidates of the prompts that are submitted.

    At most one chunk of a waiting prompt is read between two steps, so that a long one does not hold up the rows; and
    it is read ahead, so that rows need not wait for it.

    >>> batch = ContinuousBatch(session, loop, rows=16)
    >>> numbers = batch.submit(prompt_ids, range(8), seed=0).numbers
    >>> tokens = sum(len(step.candidates) for step in batch.steps())
    """

    def __init__(self, session: ModelSession, loop: DecodeLoop, rows: int, prefixes: PrefixCache | None = None) -> None:
        """Start without prompts; `rows` may be changed between two steps; `prefixes` may know some of a prompt."""
        self.rows = rows
        self._session = session
        self._loop = loop
        self._prefixes = prefixes
        self._queue: deque[QueuedPrompt] = deque()
        self._seated: list[QueuedPrompt] = []  # those whose own rows are given out
        self._submitted = 0

    @property
    def wants_prompt(self) -> bool:
        """Whether a further prompt is due: few candidates wait for the rows that are free or may soon be."""
        waiting = sum(len(prompt.waiting) for prompt in self._queue)
        return waiting < max(1, self.rows - self._loop.rows, self.rows // 2)

    def submit(
        self, token_ids: Ids, indices: Sequence[int], seed: int, *, kept_rows: int | None = None
    ) -> QueuedPrompt:
        """Let one candidate per index wait for a row, in this order, after those of earlier prompts.

        `token_ids` is the prompt, int64 `[p]`. Candidates are numbered up over all prompts. With `kept_rows`, at most
        `rows`, that many rows are the prompt's own until it is closed: its candidates begin together, and more may be
        added.
        """
        prompt = QueuedPrompt(token_ids, self._numbered(indices), seed, kept_rows)
        self._queue.append(prompt)
        return prompt

    def add(self, prompt: QueuedPrompt, indices: Sequence[int]) -> tuple[int, ...]:
        """Let further candidates of a prompt with rows of its own begin with the next step; returns their numbers."""
        candidates = self._numbered(indices)
        prompt.waiting |= candidates
        return tuple(candidates)

    def close(self, prompt: QueuedPrompt) -> None:
        """Let the rows of a prompt go: no candidate of it is left, and none is added."""
        self._seated.remove(prompt)

    def _numbered(self, indices: Sequence[int]) -> dict[int, int]:
        candidates = dict(enumerate(indices, start=self._submitted))
        self._submitted += len(indices)
        return candidates

    def drop(self, number: int) -> None:
        """Take a candidate out before the next step, or out of the queue; nothing happens if it has ended already."""
        self._loop.drop(number)
        for prompt in self._queue:
            prompt.waiting.pop(number, None)

    def steps(self) -> Iterator[Step]:
        """Yield one step after another until no candidate is left; what is submitted in between joins."""
        self._fill()
        for step in self._loop.steps():
            yield step
            del step  # its views must not outlive the next one
            self._fill()

    def _fill(self) -> None:
        """Read a chunk of the first prompt that is not read, and give the free rows to candidates that wait.

        Before the first step, prompts of one chunk are read until the rows are full.
        """
        busy = self._loop.rows > 0
        self._admit()
        while (unread := next((each for each in self._queue if each.waiting and not each.is_read), None)) is not None:
            whole = unread.read(self._session, self._prefixes)
            self._admit()
            full = self._loop.rows >= self.rows or not self._session.takes_ragged_rows
            if self._loop.rows and (busy or full or not whole):
                return

    def _admit(self) -> None:
        """Give rows to the candidates of prompts that are read, the earliest first."""
        for prompt in self._seated:
            if prompt.waiting and self._takes_rows:
                prompt.admit(self._loop, len(prompt.waiting))
        while self._queue:
            prompt, free = self._queue[0], self.rows - self._loop.rows
            if not prompt.waiting:
                self._queue.popleft()
                continue
            # Where a graph concatenates, all rows are equally long: candidates of one prompt that begin together.
            if not prompt.is_read or free < 1 or not self._takes_rows:
                return
            if prompt.kept_rows is not None:
                kept = sum(each.kept_rows or 0 for each in self._seated)
                if kept and kept + prompt.kept_rows > self.rows:
                    return
                self._seated.append(self._queue.popleft())
            # Candidates of a prompt with rows of its own begin together, even where a later prompt leaves less room.
            prompt.admit(self._loop, free if prompt.kept_rows is None else prompt.kept_rows)

    @property
    def _takes_rows(self) -> bool:
        return not self._loop.rows or self._session.takes_ragged_rows
