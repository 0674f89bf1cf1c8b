"""The batch of rows: one token per row and step, each row with options of its own.

Rows may belong to different requests and have different lengths; they come and go between two steps. The rows
beside a row do not change its tokens.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Ids
from swift_edge.engine.host import HostLogits
from swift_edge.engine.kv_cache import KVCache, cache_tokens
from swift_edge.engine.request import Finished, Generation, Prefilled, Reads, Step, Ticket
from swift_edge.engine.row_memory import RowLogits
from swift_edge.engine.sampling import candidate_generator
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import TokenStatistics
from swift_edge.engine.step_memory import StepOutput
from swift_edge.engine.stopwatch import Stopwatch
from swift_edge.errors import LogitsError
from swift_edge.options import SamplingOptions

FIRST_TOKENS: Final = 128
"""Response tokens to make room for at first: many responses are no longer, and growing copies every row."""
LEAST_TRIM_BYTES: Final = 64 * 2**20
"""Keys and values that take no more than this are freed only after the last row."""


class Row:
    """A candidate in the batch, with its tokens so far and its random numbers."""

    def __init__(self, ticket: Ticket, candidate: int) -> None:
        """Start after the prompt of a request."""
        generation = ticket.request
        assert isinstance(generation, Generation)
        self.ticket = ticket
        self.candidate = candidate
        self.sampling: SamplingOptions = generation.sampling
        self.generator = candidate_generator(generation.seed, candidate, generation.prompt_ids)
        self.max_new_tokens = generation.max_new_tokens
        self.stop_ids = generation.stop_ids
        self.reads = generation.reads
        self.num_new = 0
        self.ended = False
        self.prompt_tokens = len(generation.prompt_ids)
        # Only a repetition penalty needs earlier tokens.
        self._token_ids = generation.prompt_ids[:0]  # [p + t]
        if self.sampling.repetition_penalty != 1:
            self._token_ids = np.empty(self.prompt_tokens + self.max_new_tokens, np.int64)
            self._token_ids[: self.prompt_tokens] = generation.prompt_ids

    @property
    def seen(self) -> Ids:
        """Prompt and response so far, int64 `[p + t]`; kept only for a repetition penalty."""
        return self._token_ids[: self.prompt_tokens + self.num_new]

    @property
    def limit(self) -> int:
        """Most tokens that it may get, those of the prompt included."""
        return self.prompt_tokens + self.max_new_tokens

    def append(self, token_id: int) -> None:
        """Take one more token."""
        if len(self._token_ids):
            self._token_ids[self.prompt_tokens + self.num_new] = token_id
        self.num_new += 1


@dataclass(slots=True)
class RowsToDraw:
    """Rows whose next tokens are drawn from the same array of logits, in this order."""

    logits: RowLogits
    rows: list[Row]

    def remove(self, row: Row) -> None:
        """Take a row out: the last one moves into its place."""
        place, last = self.rows.index(row), len(self.rows) - 1
        self.logits.move(last, place)
        self.rows[place] = self.rows[last]
        self.rows.pop()


class Rows:
    """The rows that decode together.

    >>> rows = Rows(session)
    >>> rows.admit(ticket, [0, 1, 2])
    >>> for ticket, step in rows.step(): ...
    """

    def __init__(self, session: ModelSession) -> None:
        """Start without rows."""
        self._session = session
        self._rows: list[Row] = []  # in the order of the cache
        self._cache: KVCache | None = None
        self._to_draw: list[RowsToDraw] = []
        # While there are rows, these only grow: binding other outputs takes longer than reading a few more.
        self._layers: tuple[int, ...] = ()
        self._statistics: frozenset[str] = frozenset()
        self._needs_logits = False
        self._live = 0

    def __len__(self) -> int:
        """Rows that have not ended."""
        return self._live

    @property
    def longest_limit(self) -> int:
        """Most tokens that the longest row may get; 0 without rows."""
        return max((row.limit for row in self._rows if not row.ended), default=0)

    @property
    def held_tokens(self) -> int:
        """Tokens whose keys and values are in memory."""
        return 0 if self._cache is None else int(self._cache.lengths.sum())

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the buffers for keys and values."""
        return 0 if self._cache is None else self._cache.nbytes

    def admit(self, ticket: Ticket, candidates: Sequence[int]) -> None:
        """Give rows to candidates of a request whose prompt has been read; `ticket.prompt` is not needed afterwards."""
        self.remove_ended()
        prompt = ticket.prompt
        assert isinstance(prompt, Prefilled)
        rows = [Row(ticket, candidate) for candidate in candidates]
        limit = min(rows[0].limit, self._session.context_length)
        if self._cache is None:
            first = len(prompt.token_ids) + min(rows[0].max_new_tokens, FIRST_TOKENS)
            self._cache = self._session.new_cache(len(rows), first, limit)
        # Longer prompts may be admitted later.
        self._cache.limit = max(self._cache.limit, limit)
        self._cache.append_copy(prompt.cache, len(rows))
        self._rows += rows
        self._to_draw.append(RowsToDraw(HostLogits.repeated(prompt.logits, len(rows)), list(rows)))
        self._live += len(rows)
        reads = rows[0].reads
        self._layers = tuple(sorted({*self._layers, *reads.all_layers}))
        self._statistics |= reads.statistics
        self._needs_logits = self._needs_logits or reads.needs_logits

    def drop(self, ticket: Ticket, candidates: Iterable[int] | None = None) -> None:
        """Take some or all candidates of a request out before the next step; they may have ended already."""
        chosen = None if candidates is None else set(candidates)
        for row in self._rows:
            if row.ticket is ticket and (chosen is None or row.candidate in chosen):
                self._end(row)

    def remove_ended(self) -> None:
        """Free the rows that have ended, and all memory if no row is left."""
        if self._live < len(self._rows):
            for number in reversed(range(len(self._rows))):
                if self._rows[number].ended:
                    self._remove(number)
        if not self._rows:
            self._cache, self._to_draw = None, []
            self._layers, self._statistics, self._needs_logits = (), frozenset(), False
        elif self._cache is not None and self._cache.nbytes > LEAST_TRIM_BYTES:
            limit = min(self.longest_limit, self._session.context_length)
            if self._cache.capacity >= 2 * cache_tokens(limit, limit):
                self._cache.shrink(cache_tokens(limit, limit))

    def step(self) -> list[tuple[Ticket, Step]]:
        """Draw a token for every row and feed them; gives each request its own part.

        There has to be a row. Raises `BrokenRowsError`, before anything is drawn, if logits are not a distribution.
        """
        started = time.perf_counter()
        to_draw, self._to_draw = self._to_draw, []  # used up: rows that leave have no logits to move
        batch, token_ids, statistics = self._draw(to_draw)
        sampled = time.perf_counter()
        fed, finished = self._take(batch, token_ids)
        output, products, decoded = None, dict[object, NDArray[np.floating]](), sampled
        if fed:
            assert self._cache is not None
            goes_on = len(finished) < len(batch)
            needs_logits = goes_on or self._needs_logits
            output = self._session.decode(self._cache, token_ids[fed], logits=needs_logits, layers=self._layers)
            decoded = time.perf_counter()
            products = self._products(output)
            if goes_on:
                self._to_draw = [RowsToDraw(output.row_logits, list(self._rows))]
        ended = time.perf_counter()
        spent = Stopwatch(decode_s=decoded - sampled, sample_s=sampled - started, head_s=ended - decoded)
        steps = _shared_out(batch, fed, token_ids, statistics, finished, output, products, ended - started)
        for ticket, step in steps:
            ticket.watch.add_share(spent, len(step.candidates) / len(batch))
        return steps

    def _draw(self, to_draw: list[RowsToDraw]) -> tuple[list[Row], Ids, TokenStatistics]:
        """The rows in the order of the cache, their next tokens, and the statistics of these."""
        entropy, self_certainty = "entropy" in self._statistics, "self_certainty" in self._statistics
        try:
            parts = [each.logits.draw(each.rows, entropy=entropy, self_certainty=self_certainty) for each in to_draw]
        except LogitsError as error:
            self._to_draw = to_draw
            broken = {
                each.rows[place].ticket
                for each in to_draw
                for place in np.flatnonzero(~np.isfinite(each.logits.whole().max(axis=1))).tolist()
            }
            raise BrokenRowsError(broken, error) from error
        rows = list(self._rows)
        if len(to_draw) == 1 and to_draw[0].rows == rows:
            return rows, *parts[0]
        place_of = {id(row): place for place, row in enumerate(row for each in to_draw for row in each.rows)}
        order = np.array([place_of[id(row)] for row in rows])
        token_ids = np.concatenate([ids for ids, _ in parts])
        return rows, token_ids[order], TokenStatistics.joined([each for _, each in parts]).of(order)

    def _take(self, rows: Sequence[Row], token_ids: Ids) -> tuple[list[int], list[tuple[Row, Finished]]]:
        """Give every row its token, and take out those that end without being fed.

        Returns the places in `rows` of the rows to feed, in the order of the cache, and the rows that ended.
        """
        assert self._cache is not None
        finished: list[tuple[Row, Finished]] = []
        fed = list(range(len(rows)))
        tokens, lengths = token_ids.tolist(), self._cache.lengths.tolist()
        # From the last row down: a row that leaves is replaced by one that has been seen already.
        for place in reversed(range(len(rows))):
            row, token_id = rows[place], tokens[place]
            row.append(token_id)
            full = lengths[place] >= self._session.context_length
            if token_id in row.stop_ids:
                finished.append((row, Finished(row.candidate, "stop", int(full))))
            elif full or row.num_new == row.max_new_tokens:
                finished.append((row, Finished(row.candidate, "length", int(full))))
            else:
                continue
            self._end(row)
            if full or not row.reads.feeds_last:
                self._remove(place)
                fed[place] = fed[-1]
                fed.pop()
        return fed, finished

    def _products(self, output: StepOutput) -> dict[object, NDArray[np.floating]]:
        """Products of the fed tokens' states with the weights of every request, `[g, f]` each."""
        products: dict[object, NDArray[np.floating]] = {}
        for reads in {id(row.reads): row.reads for row in self._rows}.values():
            for weights in reads.weights:
                if weights.identity not in products:
                    products[weights.identity] = output.products(weights)
        return products

    def _end(self, row: Row) -> None:
        """Note that a row has ended; it is taken out before the next step."""
        if not row.ended:
            row.ended = True
            self._live -= 1

    def _remove(self, number: int) -> None:
        """Take a row out: the last one moves into its place, in the cache and in the logits alike."""
        assert self._cache is not None
        self._cache.remove(number)
        row, last = self._rows[number], self._rows.pop()
        if number < len(self._rows):
            self._rows[number] = last
        for group in self._to_draw:
            if row in group.rows:
                group.remove(row)
        self._to_draw = [group for group in self._to_draw if group.rows]


def _shared_out(
    batch: Sequence[Row],
    fed: Sequence[int],
    token_ids: Ids,
    statistics: TokenStatistics,
    finished: Sequence[tuple[Row, Finished]],
    output: StepOutput | None,
    products: Mapping[object, NDArray[np.floating]],
    seconds: float,
) -> list[tuple[Ticket, Step]]:
    """Each request's part of a step; `fed` are the places in `batch` of the rows that were fed."""
    places: dict[Ticket, tuple[list[int], list[int]]] = {}  # among those that were fed, and in the batch
    for number, place in enumerate(fed):
        own = places.setdefault(batch[place].ticket, ([], []))
        own[0].append(number)
        own[1].append(place)
    if len(fed) < len(batch):
        was_fed = set(fed)
        for place, row in enumerate(batch):
            if place not in was_fed:
                places.setdefault(row.ticket, ([], []))[1].append(place)
    steps = []
    for ticket, (numbers, own_places) in places.items():
        reads = batch[own_places[0]].reads
        alone = len(own_places) == len(batch)
        if not alone or len(fed) < len(batch):
            order = np.array(own_places)
            own_ids, own_statistics = token_ids[order], statistics.of(order)
        else:
            own_ids, own_statistics = token_ids, statistics  # as they lie in the batch
        own_products: tuple[NDArray[np.floating], ...] = ()
        hidden_states = logits = None
        if output is not None and numbers:
            some = slice(None) if alone else np.array(numbers)
            own_products = tuple(products[weights.identity][:, some] for weights in reads.weights)
            if reads.layers and _still_read(reads, [batch[fed[number]] for number in numbers]):
                hidden_states = output.states.of(reads.layers)[:, some]
            logits = output.row_logits.whole()[some] if reads.logits else None
        ends = [end for row, end in finished if row.ticket is ticket]
        step = Step(
            tuple([batch[place].candidate for place in own_places]),
            own_ids,
            own_statistics.only(reads.statistics),
            own_products,
            hidden_states,
            logits,
            tuple(sorted(ends, key=_number)),
            len(batch),
            seconds,
        )
        steps.append((ticket, step))
    return steps


def _still_read(reads: Reads, rows: Sequence[Row]) -> bool:
    """Whether the hidden states after the rows' newest tokens are asked for."""
    return reads.first_tokens is None or any(row.num_new <= reads.first_tokens for row in rows)


def _number(finished: Finished) -> int:
    return finished.candidate


class BrokenRowsError(Exception):
    """The logits of some rows are not a distribution; the others can go on."""

    def __init__(self, tickets: Collection[Ticket], error: LogitsError) -> None:
        """Take the requests whose rows are broken, and the error to report to them."""
        super().__init__(str(error))
        self.tickets = tickets
        self.error = error
