"""The engine: one batch of rows for all requests. A turn reads a chunk of a prompt, gives out rows, and decodes a step.

Requests are submitted and cancelled from any thread; `turn` is called by one thread alone, the driver.
"""

import itertools
import os
import time
from collections import deque
from typing import Final

from swift_edge.checks import check_whole, expect, is_whole, require
from swift_edge.engine.driver import Driver
from swift_edge.engine.kv_cache import KVCache
from swift_edge.engine.ledger import Ledger
from swift_edge.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from swift_edge.engine.reading import read_responses
from swift_edge.engine.request import Consumer, Generation, Orders, Prefilled, Reading, Request, Step, Ticket
from swift_edge.engine.rows import BrokenRowsError, Rows
from swift_edge.engine.scheduler import Scheduler
from swift_edge.engine.session import CHUNK_TOKENS, ModelSession
from swift_edge.engine.signals import require_distribution
from swift_edge.errors import (
    EngineClosedError,
    EngineFailedError,
    InvalidOptionError,
    MemoryLimitError,
    QueueTimeoutError,
    RequestCancelledError,
    SwiftEdgeError,
    one_line,
    out_of_memory,
)
from swift_edge.options import MOST_ROWS

DEFAULT_ROWS: Final = 32
"""Rows of a batch: on two cores more hardly raise the tokens per second, and take memory."""


class Engine:
    """Rows, a queue and a session, shared by all requests of a model.

    >>> engine = Engine(session, rows=4)
    >>> ticket = engine.submit(Generation(prompt_ids, SamplingOptions(), 8, 0, 64, frozenset({2})), consumer)
    """

    def __init__(
        self,
        session: ModelSession,
        *,
        rows: int = DEFAULT_ROWS,
        chunk: int = CHUNK_TOKENS,
        kv_memory: int | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Decode at most `rows` rows together, and read `chunk` tokens of a prompt between two steps.

        `kv_memory` limits the bytes of all live requests, as free memory does. `prefixes` keeps beginnings of prompts,
        in blocks that `chunk` has to divide.
        """
        whole = is_whole(rows, 1) and rows <= MOST_ROWS
        expect(whole, "rows", rows, f"an integer of at least 1 and at most {MOST_ROWS}")
        if not is_whole(chunk, 1) or (prefixes is not None and BLOCK_TOKENS % chunk):
            raise InvalidOptionError(
                f"chunk is {chunk!r}; expected an integer of at least 1, and one that divides {BLOCK_TOKENS} where "
                "beginnings of prompts are kept"
            )
        self.session = session
        self.most_rows = rows
        self.steps = 0
        """Decode steps made so far."""
        self.failures = 0
        """How often everything in flight failed."""
        self._chunk = chunk
        self.prefixes = prefixes
        """Beginnings of prompts that need not be read again; None where none are kept."""
        self._ledger = Ledger(session, kv_memory)
        self._rows = Rows(session)
        self._scheduler = Scheduler()
        self._tickets: dict[Ticket, None] = {}  # all that are not closed, in the order of arrival
        self._seated: dict[Ticket, int] = {}  # rows kept, by request
        self._prompts: dict[Ticket, KVCache] = {}  # prompts being read, or not yet copied into all their rows
        self._timed: set[Ticket] = set()  # those with a deadline
        self._held = 0  # tokens in memory after the last turn, for other threads
        self._inbox: deque[Ticket] = deque()
        self._obeys: deque[Ticket] = deque()
        self._numbers = itertools.count()
        self._driver = Driver(self.turn, self._has_mail)
        self._closed = False
        self._process = os.getpid()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self._tickets or self._inbox)

    @property
    def live_rows(self) -> int:
        """Rows at work."""
        return len(self._rows)

    @property
    def kv_nbytes(self) -> int:
        """Bytes that keys and values take now."""
        return self._rows.kv_nbytes + sum(cache.nbytes for cache in list(self._prompts.values()))

    def budget(self) -> int | None:
        """Most bytes of all live requests together; None if the system does not say."""
        return self._ledger.budget(self._held)

    def submit(self, request: Request, consumer: Consumer) -> Ticket:
        """Put a request into the queue, from any thread; `consumer` is called by the driver.

        Raises `InvalidOptionError` for one that could never be served, `EngineClosedError` after `close`.
        """
        self._check(request)
        if self._closed or self.is_left_behind:
            raise EngineClosedError
        number = next(self._numbers)
        ticket = Ticket(request, consumer, number, self._obey, number if request.key is None else request.key)
        consumer.ticket = ticket
        self._inbox.append(ticket)
        try:
            self._driver.wake()
        except (RuntimeError, MemoryError):
            ticket.state = "closed"  # no thread could be started: whoever asks gets this error, and no answer later
            raise
        return ticket

    def _check(self, request: Request) -> None:
        """Refuse what would wait for ever, or take others along."""
        require(len(request.prompt_ids) > 0, "the prompt", "empty", "at least one token")
        if isinstance(request, Reading):
            whole = bool(request.responses) and all(map(len, request.responses))
            require(whole, "responses", "empty, or one of them is", "at least one, of at least one token each")
            return
        check_whole("candidates", request.candidates, 1)
        check_whole("max_new_tokens", request.max_new_tokens, 1)
        require(0 <= request.seed < 2**64, "seed", request.seed, "an integer from 0 to 2**64 - 1")
        for name in ("kept_rows", "key_rows"):
            rows = getattr(request, name)
            require(rows is None or is_whole(rows, 1), name, rows, "an integer of at least 1, or None")
        if request.kept_rows is not None:
            most = min(self.most_rows, request.key_rows or self.most_rows)
            require(request.kept_rows <= most, "kept_rows", request.kept_rows, f"at most {most}, the rows there are")
            fits = request.candidates <= request.kept_rows
            require(fits, "candidates", request.candidates, f"at most {request.kept_rows}, the rows kept for them")

    def close(self) -> None:
        """Fail what is under way, and wait for the driver to end. Nothing can be submitted afterwards."""
        self._closed = True
        if self.is_left_behind:
            return
        self._driver.wake(only_if_running=self.is_idle)
        self._driver.join()

    @property
    def is_driver(self) -> bool:
        """Whether this is the thread that makes the turns, which must not wait for one."""
        return self._driver.is_current

    @property
    def is_left_behind(self) -> bool:
        """Whether this is a fork of the process that began it: neither the driver nor the rows came along."""
        return os.getpid() != self._process

    def _has_mail(self) -> bool:
        return bool(self._inbox or self._obeys)

    def _obey(self, ticket: Ticket) -> None:
        """Note that a request was cancelled."""
        self._obeys.append(ticket)
        self._driver.wake(only_if_running=True)

    def turn(self) -> bool:
        """Take in mail, read a chunk of a prompt, decode a step; returns whether anything is left to do."""
        try:
            self._take_mail()
            self._seat()
            starts = not len(self._rows)
            while (chosen := self._to_read()) is not None:
                self._read(chosen)
                self._take_mail()
                self._seat()
                # If no rows are at work, short prompts are read until the rows are full.
                if not (starts and chosen.state == "decoding" and self._free_rows > 0 and self._takes_rows):
                    break
            if len(self._rows):
                self._step()
            self._rows.remove_ended()
        except Exception as error:
            self._fail(error)
        self._held = self._held_tokens
        return bool(self._tickets)

    def _take_mail(self) -> None:
        """Take in new requests; close those that are cancelled or too late, and all once the engine is closed."""
        while self._inbox:
            ticket = self._inbox.popleft()
            if ticket.state == "closed":
                continue
            self._tickets[ticket] = None
            self._scheduler.add(ticket)
            if ticket.request.deadline is not None:
                self._timed.add(ticket)
        freed = False
        while self._obeys:
            ticket = self._obeys.popleft()
            if ticket.state != "closed":
                self._close(ticket, RequestCancelledError())
                freed = True
        if self._closed:
            for ticket in list(self._tickets):
                self._close(ticket, EngineClosedError())
        for ticket in list(self._timed):
            if ticket.seated_at is not None:
                self._timed.discard(ticket)
            elif time.monotonic() > (ticket.request.deadline or 0.0):
                self._close(ticket, QueueTimeoutError())
        if freed or self._closed:
            self._rows.remove_ended()

    def _seat(self) -> None:
        """Give rows to waiting candidates: first to requests that keep rows, then to the request whose turn it is."""
        for ticket in list(self._seated):
            room = min(len(ticket.waiting), (ticket.kept_rows or 0) - len(ticket.live))
            if room > 0 and self._takes_rows:
                self._admit(ticket, room)
        while self._scheduler and self._takes_rows and self._free_rows > 0 and self._seat_next():
            pass

    def _seat_next(self) -> bool:
        """Give rows to the next request that has been read and fits; returns whether there was one.

        A request that does not fit lets others pass, until they have got as many rows as it waits for.
        """
        passed: list[Ticket] = []
        chosen, rows = None, 0
        for tickets in self._scheduler.lines():
            ticket = tickets[0]
            # A request whose key has used up its rows is skipped: other keys do not wait for it.
            if not ticket.is_read or isinstance(ticket.request, Reading) or self._rows_of_key(ticket) < 1:
                continue
            try:
                rows = self._rows_for(ticket)
            except MemoryLimitError as error:
                self._close(ticket, error)
                continue
            if rows:
                chosen = ticket
                break
            if ticket.overtaken >= (ticket.kept_rows or 1):
                break
            passed.append(ticket)
        if chosen is None:
            return False
        self._scheduler.charge(chosen, rows=rows)
        for ticket in passed:
            ticket.overtaken += rows
        if chosen.kept_rows is not None:
            self._seated[chosen] = chosen.kept_rows
        if chosen.kept_rows is not None or rows == len(chosen.waiting):
            self._scheduler.remove(chosen)
        self._admit(chosen, rows)
        return True

    def _admit(self, ticket: Ticket, rows: int) -> None:
        """Give rows to the next candidates of a request; after its last candidate its prompt is forgotten."""
        candidates, ticket.waiting = ticket.waiting[:rows], ticket.waiting[rows:]
        if ticket.seated_at is None:
            ticket.seated_at = time.perf_counter()
        self._rows.admit(ticket, candidates)
        ticket.state = "decoding"
        ticket.live.update(candidates)
        if not ticket.waiting and ticket.kept_rows is None:
            self._forget_prompt(ticket)  # copied into all its rows
        try:
            ticket.consumer.begun(candidates)
        except BaseException as error:
            self._close(ticket, error)
            self._rows.remove_ended()  # a step may follow in this turn

    @property
    def _free_rows(self) -> int:
        """Rows that are neither in use nor kept for a request."""
        if not self._seated:
            return self.most_rows - len(self._rows)
        seated = sum(self._seated.values())
        own = sum(len(ticket.live) for ticket in self._seated)
        return self.most_rows - seated - (len(self._rows) - own)

    @property
    def _takes_rows(self) -> bool:
        """Whether rows can be added now: where a graph concatenates, only if none are at work."""
        return not len(self._rows) or self.session.takes_ragged_rows

    def _rows_for(self, ticket: Ticket) -> int:
        """How many rows a request can be given now, by free rows and memory; its prompt has been read.

        Raises `MemoryLimitError`, with the numbers, if it does not fit although nothing else is at work.
        """
        kept_rows = ticket.kept_rows
        most = len(ticket.waiting) if kept_rows is None else kept_rows
        rows = max(0, min(most, self._free_rows, self._rows_of_key(ticket)))
        if kept_rows is not None and rows < kept_rows:
            return 0
        while rows and not self._fits(ticket, rows):
            rows = rows // 2 if kept_rows is None else 0
        if not rows and not len(self._rows):
            self._forget_prompts(ticket)
            rows = kept_rows or 1
            if not self._fits(ticket, rows):
                prompt, new = len(ticket.request.prompt_ids), _new_tokens(ticket.request)
                self.session.require_rows(rows, prompt, new, self._ledger.budget(self._held_tokens))
        return rows

    def _rows_of_key(self, ticket: Ticket) -> int:
        """Rows that the request's key may still be given."""
        most = ticket.request.key_rows if isinstance(ticket.request, Generation) else None
        if most is None:
            return self.most_rows
        return most - sum(len(other.live) for other in self._tickets if other.key == ticket.key)

    def _fits(self, ticket: Ticket, rows: int) -> bool:
        """Whether so many more rows of a request fit into memory beside everything that is live."""
        budget = self._ledger.budget(self._held_tokens)
        if budget is None:
            return True
        longest = max(self._rows.longest_limit, len(ticket.request.prompt_ids) + _new_tokens(ticket.request))
        layers = len(self.session.layers)
        needed = self._ledger.batch_bytes(len(self._rows) + rows, longest, layers) + self._prompt_bytes
        return needed <= budget

    def _forget_prompts(self, ticket: Ticket) -> None:
        """Forget the prompts of others that were read ahead; they will be read again."""
        for other in list(self._prompts):
            if other is not ticket and other.seated_at is None and other.chunks is None:
                self._forget_prompt(other)
                other.state = "queued"

    def _forget_prompt(self, ticket: Ticket) -> None:
        ticket.prompt = None
        self._prompts.pop(ticket, None)

    @property
    def _prompt_bytes(self) -> int:
        """Bytes of the prompts that have been read and are not copied into all their rows."""
        return sum(cache.capacity for cache in self._prompts.values()) * self.session.kv_bytes_per_token

    @property
    def _held_tokens(self) -> int:
        """Tokens whose keys and values are in memory."""
        return self._rows.held_tokens + sum(cache.longest for cache in self._prompts.values())

    def _to_read(self) -> Ticket | None:
        """The request whose prompt or responses to read next; None if enough has been read ahead."""
        if not self._scheduler:
            return None
        ahead, enough, passes = 0, max(1, self._free_rows, self.most_rows // 2), False
        for tickets in self._scheduler.lines():
            for ticket in tickets:
                if isinstance(ticket.request, Reading) or not ticket.is_read:
                    # If memory is short, the next prompt waits, and later ones do not pass it.
                    return ticket if ticket.prompt is not None or self._may_read(ticket) else None
                kept = ticket.kept_rows or 0
                if not passes and kept > self._free_rows and ticket.overtaken < kept:
                    passes = True  # the first that does not fit lets others pass
                else:
                    ahead += len(ticket.waiting)
                if ahead >= enough and len(self._rows):
                    return None
        return None

    def _may_read(self, ticket: Ticket) -> bool:
        """Whether a prompt fits into memory beside everything that is live; always true if nothing is at work."""
        budget = self._ledger.budget(self._held_tokens)
        if budget is None or not (len(self._rows) or self._prompts):
            return True
        live = self._ledger.batch_bytes(len(self._rows), self._rows.longest_limit, len(self.session.layers))
        return live + self._prompt_bytes + self._ledger.prompt_bytes(_row_tokens(ticket.request)) <= budget

    def _read(self, ticket: Ticket) -> None:
        """Read the next chunk of a prompt, or of a given response."""
        if ticket.prompt is not None:  # the first chunk is free: it would cost one candidate what many pay for rows
            self._scheduler.charge(ticket, chunks=1)
        try:
            if not ticket.is_read:
                self._read_prompt(ticket)
                return
            if ticket.chunks is None:
                ticket.chunks = read_responses(self.session, ticket)
                self._timed.discard(ticket)
            step = next(ticket.chunks, None)
        except Exception as error:
            self._close(ticket, error)
            return
        if step is None:
            self._close(ticket, None)
        else:
            self._deliver(ticket, step)

    def _read_prompt(self, ticket: Ticket) -> None:
        """Read the next chunk of a prompt; its beginning may come from the prefix cache."""
        started = time.perf_counter()
        token_ids = ticket.request.prompt_ids
        if ticket.prompt is not None:
            cache = ticket.prompt.cache
        else:
            room = _row_tokens(ticket.request)
            cache = self.session.new_cache(1, room, room)
            self._prompts[ticket] = cache
            if self.prefixes is not None:
                self.prefixes.restore(cache, token_ids)
        part = token_ids[cache.longest : cache.longest + self._chunk]
        logits = self.session.prefill(cache, part, chunk=self._chunk).logits
        ticket.prompt = Prefilled(cache, logits, token_ids)
        if ticket.is_read:
            require_distribution(logits.max(axis=1))
        ticket.state = "waiting" if ticket.is_read else "reading"
        if self.prefixes is not None and ticket.is_read:
            self.prefixes.keep(cache, token_ids)
        ticket.watch.prefill_s += time.perf_counter() - started

    def _step(self) -> None:
        """Decode a token for every row, and hand each request its part."""
        try:
            steps = self._rows.step()
        except BrokenRowsError as broken:
            for ticket in broken.tickets:
                self._close(ticket, broken.error)
            return
        self.steps += 1
        for ticket, step in steps:
            ticket.live.difference_update(end.candidate for end in step.finished)
            self._deliver(ticket, step)
            if ticket.state == "decoding" and not (ticket.live or ticket.waiting):
                self._close(ticket, None)

    def _deliver(self, ticket: Ticket, step: Step) -> None:
        """Hand a step to its consumer, and follow the consumer's orders."""
        try:
            orders = ticket.consumer.step(step)
        except BaseException as error:
            self._close(ticket, error)
            return
        if orders is not None:
            self._follow(ticket, orders)

    def _follow(self, ticket: Ticket, orders: Orders) -> None:
        if orders.drop:
            self._rows.drop(ticket, orders.drop)
            ticket.live.difference_update(orders.drop)
            if any(candidate in ticket.waiting for candidate in orders.drop):
                ticket.waiting = [candidate for candidate in ticket.waiting if candidate not in orders.drop]
                if not ticket.waiting and ticket.kept_rows is None:
                    # Nothing is left that could be given a row: it must not stand in the way of others.
                    self._scheduler.remove(ticket)
                    self._forget_prompt(ticket)
        if orders.begin:
            ticket.waiting = [*ticket.waiting, *range(ticket.num_candidates, ticket.num_candidates + orders.begin)]
            ticket.num_candidates += orders.begin
        if orders.most_rows is not None and ticket in self._seated:
            self._seated[ticket] = max(len(ticket.live) + len(ticket.waiting), orders.most_rows)

    def _close(self, ticket: Ticket, error: BaseException | None) -> None:
        """End a request: its rows are free before the next step."""
        if ticket.state == "closed":
            return
        if isinstance(error, MemoryError) and not isinstance(error, SwiftEdgeError):
            cause, error = error, out_of_memory("the request")
            error.__cause__ = cause
        ticket.state = "closed"
        self._rows.drop(ticket)
        self._scheduler.remove(ticket)
        self._seated.pop(ticket, None)
        self._tickets.pop(ticket, None)
        self._forget_prompt(ticket)
        self._timed.discard(ticket)
        ticket.chunks = None
        ticket.live.clear()
        ticket.waiting = ()
        try:
            ticket.consumer.closed(error)
        except BaseException:
            self.failures += 1  # its consumer failed, too: there is nobody left to tell

    def _fail(self, error: Exception) -> None:
        """Fail everything in flight, and start over with new rows."""
        self.failures += 1
        self._rows = Rows(self.session)
        self._prompts.clear()
        is_ours = isinstance(error, SwiftEdgeError | MemoryError)  # which becomes one of ours
        for ticket in list(self._tickets):
            failure: Exception = error
            if not is_ours:
                failure = EngineFailedError(f"{type(error).__name__}: {one_line(error)}")
                failure.__cause__ = error
            self._close(ticket, failure)


def _new_tokens(request: Request) -> int:
    return request.max_new_tokens if isinstance(request, Generation) else max(map(len, request.responses))


def _row_tokens(request: Request) -> int:
    """Most tokens of the row that a prompt is read into: given responses are read into it, too."""
    own = 0 if isinstance(request, Generation) else _new_tokens(request)
    return len(request.prompt_ids) + own
