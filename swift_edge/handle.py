"""A request under way, for its caller: wait for the result, watch the events, await either, or cancel it."""

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any

from swift_edge.arrays import Ids
from swift_edge.checks import expect, is_number
from swift_edge.engine.engine import Engine
from swift_edge.engine.request import Consumer, Request, Ticket
from swift_edge.errors import EngineClosedError, InvalidOptionError, SwiftEdgeError, out_of_memory
from swift_edge.results import Event, Picked, Selection
from swift_edge.selection.pick import Pick
from swift_edge.selection.planning import PlannedPick
from swift_edge.system.machine import memory_for


class Outbox:
    """What the engine's driver has to say to one caller, who may wait in a thread or in an event loop."""

    def __init__(self) -> None:
        """Begin empty."""
        self.changed = threading.Condition()
        self.events: deque[Event] = deque()
        self.is_done = False
        self.error: BaseException | None = None
        self._wakers: list[Callable[[], None]] = []
        self._enders: list[Callable[[], None]] = []

    def tell(self, events: Sequence[Event]) -> None:
        """Take the events of a step; called by the driver."""
        with self.changed:
            self.events.extend(events)
            self._wake()

    def done(self, error: BaseException | None) -> None:
        """Take the end; called by the driver."""
        with self.changed:
            self.is_done, self.error = True, error
            self._wake()
            enders, self._enders = self._enders, []
        for ender in enders:
            ender()

    def when_done(self, ender: Callable[[], None]) -> None:
        """Have something called when it is done, by the driver; at once if it is. It must not wait, and not raise."""
        with self.changed:
            if not self.is_done:
                self._enders.append(ender)
                return
        ender()

    def when_changed(self, waker: Callable[[], None]) -> None:
        """Have something called once, by the driver, when there is something new; at once where it is done."""
        with self.changed:
            self._wakers.append(waker)
            if self.is_done or self.events:
                self._wake()

    def _wake(self) -> None:
        self.changed.notify_all()
        wakers, self._wakers = self._wakers, []
        for waker in wakers:
            waker()


class Handle:
    """A pick under way: `result()`, `await`, iterate or `async for` its events, `cancel()`.

    One that is left by its `with` block, or that nobody holds any more, is cancelled.

    >>> with selector.submit("Once upon a time", n=8) as handle:
    ...     selection = handle.result(timeout=60)
    """

    def __init__(
        self, engine: Engine, request: Request, consumer: Consumer, outbox: Outbox, finish: Callable[[], Selection]
    ) -> None:
        """Submit a request whose consumer tells the `outbox`; `finish` makes the result when it is done."""
        self._engine = engine
        self._outbox = outbox
        self._finish = finish
        self._finished = threading.Lock()
        self._selection: Selection | None = None
        self.ticket: Ticket = engine.submit(request, consumer)
        """The engine's own."""

    @property
    def is_done(self) -> bool:
        """Whether the result is there, or the error."""
        return self._outbox.is_done

    def cancel(self) -> None:
        """End it, from any thread: its rows are free before the next step. Nothing happens if it is done."""
        self.ticket.cancel()

    def result(self, timeout: float | None = None) -> Selection:
        """Wait for the selection, at most `timeout` seconds; Ctrl-C while waiting cancels the request.

        Raises `TimeoutError`, and the request goes on; `RequestCancelledError` if it was cancelled, and what answering
        it raises.
        """
        outbox = self._outbox
        # Nothing waits longer than the system's clock can count.
        endless = timeout is None or (isinstance(timeout, float) and timeout == math.inf)
        endless = endless or (is_number(timeout) and timeout > threading.TIMEOUT_MAX)
        expect(endless or is_number(timeout), "timeout", timeout, "seconds, or None to wait as long as it takes")
        if not outbox.is_done:
            require_waiting(self._engine)
        try:
            with outbox.changed:
                done = outbox.changed.wait_for(lambda: outbox.is_done, None if endless else timeout)
        except BaseException:
            self.cancel()
            raise
        if not done:
            raise TimeoutError(f"the pick is not done after {timeout} s; wait longer, or cancel it")
        return self._result()

    def when_done(self, call: Callable[[], None]) -> None:
        """Have `call` called when it is done, by the engine's driver; it must not wait, and must not raise."""
        self._outbox.when_done(call)

    def __iter__(self) -> Iterator[Event]:
        """The events as they come, `Picked` at the end; leaving early cancels the request."""
        outbox = self._outbox
        try:
            while True:
                if not outbox.is_done:
                    require_waiting(self._engine)
                with outbox.changed:
                    outbox.changed.wait_for(lambda: outbox.is_done or outbox.events)
                    events = list(outbox.events)
                    outbox.events.clear()
                    done = outbox.is_done
                yield from events
                if done:
                    yield Picked(self._result())
                    return
        finally:
            self.cancel()

    def __await__(self) -> Generator[Any, None, Selection]:
        """The selection; cancelling the task that waits cancels the request."""
        return (yield from self._awaited().__await__())

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events as they come, `Picked` at the end; leaving early cancels the request."""
        outbox = self._outbox
        try:
            while True:
                await self._change()
                events = []
                while outbox.events:
                    events.append(outbox.events.popleft())
                for event in events:
                    yield event
                if outbox.is_done and not outbox.events:
                    yield Picked(self._result())
                    return
        finally:
            self.cancel()

    def __enter__(self) -> "Handle":
        """The handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel it, if it is not done."""
        self.cancel()

    def __del__(self) -> None:
        """Cancel what nobody waits for any more."""
        with contextlib.suppress(AttributeError):  # refused at submission
            self.cancel()

    async def _awaited(self) -> Selection:
        try:
            while not self._outbox.is_done:
                await self._change(only_end=True)
        except BaseException:
            self.cancel()
            raise
        return self._result()

    async def _change(self, *, only_end: bool = False) -> None:
        """Wait until there are events, or only until it is done."""
        if not self._outbox.is_done:
            require_waiting(self._engine)
        loop = asyncio.get_running_loop()
        changed = loop.create_future()

        def settle() -> None:
            if not changed.done():
                changed.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle)

        (self._outbox.when_done if only_end else self._outbox.when_changed)(wake)
        await changed

    def _result(self) -> Selection:
        if self._outbox.error is not None:
            raise self._outbox.error
        with self._finished:
            if self._selection is None:
                try:
                    self._selection = self._finish()
                except MemoryError as error:
                    if isinstance(error, SwiftEdgeError):
                        raise
                    raise out_of_memory("the selection") from error
            return self._selection


def require_waiting(engine: Engine) -> None:
    """Raise where waiting for an engine never ends: its driver would wait for itself, a fork for its parent."""
    if engine.is_left_behind:
        raise EngineClosedError
    if engine.is_driver:
        raise InvalidOptionError(
            "a function that the engine calls while it writes, such as a task of your own, waits for the engine; "
            "leave that to the thread that asked for the pick"
        )


@memory_for("the pick")
def begin(
    planned: PlannedPick,
    prompt_ids: Ids,
    *,
    watched: bool,
    started: float,
    load_s: float = 0.0,
    prompt_index: int = 0,
    key: object = None,
) -> Handle:
    """Submit a pick for a prompt of token ids; not `watched`, it keeps no events, and scores many tokens at a time.

    `started` is when it was asked for, as `time.perf_counter` counts, and `load_s` what opening took of that. Picks of
    one `key` take turns with those of others. Raises `MemoryLimitError`, with the numbers, if it never fits.
    """
    outbox = Outbox()
    pick = Pick(
        planned,
        prompt_ids,
        started=started,
        load_s=load_s,
        prompt_index=prompt_index,
        key=key,
        tell=outbox.tell if watched else None,
        done=outbox.done,
    )
    return Handle(planned.model.engine, pick.generation, pick, outbox, pick.selection)
