"""The decode loop: rows in, one token per row and step out, until every row has ended.

Knows token ids, logits and rows. Does not know text, templates or stop strings, the head, or how candidates are ranked.
Rows may belong to different prompts and have different lengths; they may be admitted and dropped between two steps.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.device.logits import DeviceLogits
from swift_edge.engine.device.states import StateWeights
from swift_edge.engine.kv_cache import KVCache
from swift_edge.engine.sampling import SamplingOptions, candidate_generator, sample, sample_most_likely
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import TokenStatistics, summarize, token_statistics

FIRST_TOKENS: Final = 128
"""Response tokens that there is room for at first: many responses are no longer, and growing copies every row."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that has been read once, ready to be copied into rows."""

    cache: KVCache
    """One row with the keys and values of the prompt."""
    logits: Floats  # [1, v]
    """Logits after the last prompt token, float32."""
    token_ids: Ids  # [p]
    """The prompt, int64."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A candidate that has sampled its last token."""

    candidate: int
    """Number that it was admitted under."""
    finish_reason: Literal["stop", "length"]
    """`stop` for an EOS id, `length` for `max_new_tokens` or a full context."""
    unscored_tokens: int
    """1 if the context was full, so that the last token could not be fed; else 0."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token of each of m candidates, and what the model computed when it was fed.

    Hidden states and logits are views: they hold until the loop goes on or admits.
    """

    candidates: tuple[int, ...]
    """Whose tokens these are; the first f of them have been fed, the others have ended without."""
    token_ids: Ids  # [m]
    """The tokens sampled, int64."""
    statistics: TokenStatistics
    """What the logits said about each token `[m]`, before temperature and filters."""
    hidden_states: Floats | None  # [l, f, d]
    """Hidden states of the tokens that were fed, float32; None where none were asked for, or nothing was fed."""
    products: Floats | None  # [g, f]
    """In place of hidden states that stayed on a device: what they come to with given weights, float32."""
    logits: Floats | None  # [f, v]
    """Logits after the tokens that were fed, float32; None unless asked for."""
    finished: tuple[Finished, ...]
    """The candidates that ended with this token."""


class DecodeLoop:
    """Samples and feeds tokens; each candidate's tokens depend on its prompt, its seed and its index alone.

    The last token of a candidate is fed once more if anything is to be read from it (`layers` or `keep_logits`).

    >>> loop = DecodeLoop(session, SamplingOptions(), eos_ids=(2,), max_new_tokens=16)
    >>> loop.admit(prompt, {index: index for index in range(8)}, seed=0)
    >>> tokens = sum(len(step.candidates) for step in loop.steps())
    """

    def __init__(
        self,
        session: ModelSession,
        sampling: SamplingOptions,
        eos_ids: Collection[int],
        max_new_tokens: int,
        *,
        layers: tuple[int, ...] = (),
        keep_logits: bool = False,
        statistics: Collection[str] = (),
        weights: StateWeights | None = None,
    ) -> None:
        """Read hidden states of `layers`, logits of fed tokens if `keep_logits`, and `statistics` beside logprob.

        Where rows are on a device, the states' products with `weights` are enough.
        """
        self.sample_s = 0.0
        self.decode_s = 0.0
        self._session = session
        self._sampling = sampling
        self._eos_ids = frozenset(eos_ids)
        self._max_new_tokens = max_new_tokens
        self._layers = layers
        self._keep_logits = keep_logits
        self._entropy = "entropy" in statistics
        self._self_certainty = "self_certainty" in statistics
        self._weights = weights
        # Where the most likely tokens will do, logits stay where rows do.
        self._on_device = not (keep_logits or sampling.draws_from_all) and session.keeps_rows_on_device
        self._rows: list[_Row] = []
        self._cache: KVCache | None = None
        self._logits: Floats | DeviceLogits | None = None  # [rows, v]

    @property
    def rows(self) -> int:
        """Candidates that have not ended."""
        return sum(not row.ended for row in self._rows)

    def admit(self, prompt: Prefilled, candidates: Mapping[int, int], seed: int) -> None:
        """Add candidates of `prompt`: steps name them by their key, a number not in use.

        The value is the candidate's index: it gets the random numbers of `(seed, index)` for that prompt. `prompt` can
        be let go afterwards.
        """
        self._remove_ended()
        rows = [
            _Row(number, prompt.token_ids, self._max_new_tokens, seed, index) for number, index in candidates.items()
        ]
        limit = len(prompt.token_ids) + self._max_new_tokens
        if self._cache is None:
            first = len(prompt.token_ids) + min(self._max_new_tokens, FIRST_TOKENS)
            self._cache = self._session.new_cache(len(rows), first, limit)
        # Admitted later, a longer prompt may take longer rows.
        self._cache.limit = max(self._cache.limit, min(limit, self._session.context_length))
        self._cache.append_copy(prompt.cache, len(rows))
        logits = np.repeat(prompt.logits, len(rows), axis=0)  # [n, v]
        # Where no row is left there may still be logits of none, and those on a device cannot be joined.
        before = None if self._logits is None or not self._rows else np.asarray(self._logits)
        self._logits = logits if before is None else np.concatenate([before, logits])
        self._rows += rows

    def drop(self, candidate: int) -> None:
        """Take a candidate out before the next step; nothing happens if it has ended already."""
        for row in self._rows:
            if row.candidate == candidate:
                row.ended = True

    def steps(self) -> Iterator[Step]:
        """Yield one step after another until no candidate is left."""
        while True:
            self._remove_ended()
            if not self._rows:
                return
            yield self._step()

    def _step(self) -> Step:
        begun = time.perf_counter()
        token_ids, statistics = self._sample()  # [m]
        sampled = time.perf_counter()
        self.sample_s += sampled - begun
        assert self._cache is not None
        finished: list[Finished] = []
        read_last = bool(self._layers) or self._keep_logits
        unfed: list[int] = []
        tokens, lengths = token_ids.tolist(), self._cache.lengths.tolist()
        # From the last row down: a row that leaves is replaced by one that has been seen already.
        for number in reversed(range(len(self._rows))):
            row, token_id = self._rows[number], tokens[number]
            row.append(token_id)
            full = lengths[number] >= self._session.context_length
            if token_id in self._eos_ids:
                finished.append(Finished(row.candidate, "stop", int(full)))
            elif full or row.num_new == self._max_new_tokens:
                finished.append(Finished(row.candidate, "length", int(full)))
            else:
                continue
            row.ended = True
            if full or not read_last:
                unfed.append(number)
        candidates = [row.candidate for row in self._rows]
        wanted = self._keep_logits or len(finished) < len(candidates)
        if unfed:
            fed = list(range(len(self._rows)))
            for number in unfed:
                self._remove(number)
                fed[number] = fed[-1]
                fed.pop()
            order = np.array(fed + unfed)
            token_ids, candidates = token_ids[order], [candidates[number] for number in order]
            statistics = statistics_of(statistics, order)
        hidden_states = products = logits = None
        if self._rows:
            fed_ids = token_ids[: len(self._rows)]
            out = self._session.decode(
                self._cache,
                fed_ids,
                logits=wanted,
                layers=self._layers,
                on_device=self._on_device,
                weights=self._weights,
            )
            hidden_states, products = out.hidden_states, out.products
            self._logits = out.logits if out.device_logits is None else out.device_logits
            logits = out.logits if self._keep_logits else None
        self.decode_s += time.perf_counter() - sampled
        finished.sort(key=lambda end: end.candidate)
        return Step(tuple(candidates), token_ids, statistics, hidden_states, products, logits, tuple(finished))

    def _sample(self) -> tuple[Ids, TokenStatistics]:
        """Draw the next token of every row `[m]` from the logits at hand."""
        logits, self._logits = self._logits, None  # used up: a row that leaves now has none to move
        assert logits is not None
        if isinstance(logits, DeviceLogits):
            return self._sample_on_device(logits)
        entropy, self_certainty = self._entropy, self._self_certainty
        summary = summarize(logits, entropy=entropy, self_certainty=self_certainty)
        seen = None if self._sampling.repetition_penalty == 1 else [row.seen for row in self._rows]
        token_ids = sample(logits, self._sampling, [row.generator for row in self._rows], seen, summary=summary)
        statistics = token_statistics(
            logits, token_ids, entropy=entropy, self_certainty=self_certainty, summary=summary
        )
        return token_ids, statistics

    def _sample_on_device(self, logits: DeviceLogits) -> tuple[Ids, TokenStatistics]:
        """Draw from the most likely tokens, and from whole rows where these are not enough."""
        found = logits.most_likely(self._sampling.temperature or 1.0)
        token_ids = np.empty(len(self._rows), np.int64)  # [m]
        logprob = np.empty(len(self._rows), np.float64)  # [m]
        for number, row in enumerate(self._rows):
            ids, values, normalizer = found.token_ids[number], found.logits[number], found.log_normalizer[number]
            drawn = None
            if np.isfinite(normalizer):
                drawn = sample_most_likely(
                    values,
                    ids,
                    self._session.vocab_size,
                    self._sampling,
                    row.generator,
                    row.seen,
                    float(found.log_scaled[number]),
                )
            if drawn is None:
                whole = logits.whole(np.array([number]))  # [1, v]
                summary = summarize(whole, first_row=number)
                drawn = int(sample(whole, self._sampling, [row.generator], [row.seen], summary=summary)[0])
                logprob[number] = token_statistics(whole, np.array([drawn]), summary=summary).logprob[0]
            else:
                logprob[number] = float(values[ids == drawn][0]) - normalizer
            token_ids[number] = drawn
        return token_ids, TokenStatistics(
            logprob, found.entropy if self._entropy else None, found.self_certainty if self._self_certainty else None
        )

    def _remove_ended(self) -> None:
        for number in reversed(range(len(self._rows))):
            if self._rows[number].ended:
                self._remove(number)

    def _remove(self, number: int) -> None:
        """Take a row out: the last one moves into its place, in the cache and in the logits alike."""
        assert self._cache is not None
        self._cache.remove(number)
        last = self._rows.pop()
        if number < len(self._rows):
            self._rows[number] = last
            if self._logits is not None:
                self._logits[number] = self._logits[len(self._rows)]
        if self._logits is not None:
            self._logits = self._logits[: len(self._rows)]


class _Row:
    """What the loop keeps per row: the tokens so far, and the random numbers to come."""

    def __init__(self, candidate: int, prompt_ids: Ids, max_new_tokens: int, seed: int, index: int) -> None:
        self.candidate = candidate
        self.generator = candidate_generator(seed, index, prompt_ids)
        self.num_new = 0
        self.ended = False
        self._num_prompt = len(prompt_ids)
        self._token_ids = np.empty(self._num_prompt + max_new_tokens, np.int64)  # [p + t]
        self._token_ids[: self._num_prompt] = prompt_ids

    @property
    def seen(self) -> Ids:
        """Prompt and response so far, int64 `[p + t]`."""
        return self._token_ids[: self._num_prompt + self.num_new]

    def append(self, token_id: int) -> None:
        self._token_ids[self._num_prompt + self.num_new] = token_id
        self.num_new += 1


def statistics_of(statistics: TokenStatistics, rows: Ids | slice) -> TokenStatistics:
    """The statistics of some rows, in the order given."""
    return TokenStatistics(
        statistics.logprob[rows],
        None if statistics.entropy is None else statistics.entropy[rows],
        None if statistics.self_certainty is None else statistics.self_certainty[rows],
    )


def joined_statistics(parts: Sequence[TokenStatistics], rows: Sequence[slice]) -> TokenStatistics:
    """The statistics of some rows of each part, one part after the other."""
    taken = [statistics_of(part, chosen) for part, chosen in zip(parts, rows, strict=True)]
    if len(taken) == 1:
        return taken[0]
    entropies = [part.entropy for part in taken if part.entropy is not None]
    certainties = [part.self_certainty for part in taken if part.self_certainty is not None]
    return TokenStatistics(
        np.concatenate([part.logprob for part in taken]),
        np.concatenate(entropies) if entropies else None,
        np.concatenate(certainties) if certainties else None,
    )
