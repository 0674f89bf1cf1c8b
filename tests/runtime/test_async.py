"""Picks in an event loop: awaited, watched, given up, thousands of them, and never in its way."""

import asyncio
import gc
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from picks import PATIENCE_S, STORIES, bits

from swift_edge import Picked, Selection, Selector, TokenSampled
from swift_edge.errors import EmptyPromptError, InvalidOptionError, RequestCancelledError

PROMPT = "Once upon a time"
PROMPTS = (PROMPT, "The dog", "Lily and Tom went", "One day, a girl saw", "He was")
OPTIONS: dict[str, Any] = {"n": 3, "max_new_tokens": 24}
LONG: dict[str, Any] = {"n": 4, "max_new_tokens": 400, "seed": 1, "temperature": 3.0}


@pytest.fixture(scope="module")
def selector() -> Iterator[Selector]:
    with Selector(STORIES, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(selector: Selector) -> dict[str, Any]:
    return bits(selector.pick(PROMPT, **OPTIONS))


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it, and look for what was never awaited: a warning is an error."""
    result = asyncio.run(coroutine)
    gc.collect()
    return result


def test_a_handle_is_awaited_however_often(selector: Selector, alone: dict[str, Any]) -> None:
    async def awaits() -> None:
        handle = selector.submit(PROMPT, **OPTIONS)
        picked = await handle
        assert bits(picked) == alone
        assert await handle is picked
        first, second = await asyncio.gather(*[_awaited(selector.submit(PROMPT, **OPTIONS)) for _ in range(2)])
        assert bits(first) == bits(second) == alone

    run(awaits())


async def _awaited(handle: Any) -> Selection:
    picked = await handle
    assert isinstance(picked, Selection)
    return picked


def test_one_handle_is_awaited_by_many(selector: Selector, alone: dict[str, Any]) -> None:
    async def awaits() -> None:
        handle = selector.submit(PROMPT, **OPTIONS)
        results = await asyncio.gather(*[_awaited(handle) for _ in range(5)])
        assert all(result is results[0] for result in results)
        assert bits(results[0]) == alone

    run(awaits())


def test_many_that_are_awaited_at_once_are_what_they_are_alone(selector: Selector) -> None:
    async def awaits() -> list[Selection]:
        return await asyncio.gather(
            *[_awaited(selector.submit(PROMPTS[seed % 5], seed=seed, **OPTIONS)) for seed in range(40)]
        )

    begun = selector.engine.steps
    together = run(awaits())
    steps = selector.engine.steps - begun
    begun = selector.engine.steps
    for seed, picked in enumerate(together):
        assert bits(picked) == bits(selector.pick(PROMPTS[seed % 5], seed=seed, **OPTIONS))
    assert steps < (selector.engine.steps - begun) / 4


def test_events_are_those_of_stream(selector: Selector) -> None:
    async def events(**options: Any) -> list[Any]:
        return [event async for event in selector.submit(PROMPT, **OPTIONS, **options)]

    expected = list(selector.stream(PROMPT, **OPTIONS))
    found = run(events())
    assert found[:-1] == expected[:-1]
    assert isinstance(found[-1], Picked)
    assert bits(found[-1].selection) == bits(expected[-1].selection)  # type: ignore[union-attr]
    assert [type(event) for event in run(events(watched=False))] == [Picked]


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("way", ["task", "timeout", "gather"])
def test_who_stops_waiting_cancels_within_a_step(selector: Selector, way: str, watched: bool) -> None:
    engine = selector.engine

    async def gives_up() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        writes, ended = asyncio.Event(), asyncio.Event()
        ended_at: list[int] = []
        handle = selector.submit(PROMPT, watched=watched, n=4, max_new_tokens=400, temperature=3.0)

        def end() -> None:
            ended_at.append(engine.steps)
            loop.call_soon_threadsafe(ended.set)

        handle.when_done(end)
        while not engine.live_rows:
            await asyncio.sleep(0)

        async def waits() -> None:
            writes.set()
            if watched:
                async for _ in handle:
                    pass
            else:
                await handle

        if way == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await waits()
            cancelled_at = engine.steps
        else:
            waiting: Any = asyncio.create_task(waits())
            waiting = asyncio.gather(waiting, waits()) if way == "gather" else waiting
            await writes.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            cancelled_at = engine.steps
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
        with pytest.raises(RequestCancelledError):
            await handle
        return cancelled_at, ended_at[0]

    cancelled_at, ended_at = run(gives_up())
    assert ended_at <= cancelled_at + 1
    assert engine.live_rows == 0


def test_leaving_the_events_early_cancels(selector: Selector, alone: dict[str, Any]) -> None:
    async def leaves() -> None:
        handle = selector.submit(PROMPT, **LONG)
        async for event in handle:
            if isinstance(event, TokenSampled):
                break
        with pytest.raises(RequestCancelledError):
            await handle
        assert bits(await selector.submit(PROMPT, **OPTIONS)) == alone

    run(leaves())
    assert selector.engine.live_rows == 0


def test_what_nobody_awaits_is_cancelled_without_a_warning(selector: Selector, alone: dict[str, Any]) -> None:
    async def forgets() -> None:
        selector.submit(PROMPT, **LONG)
        handle = selector.submit(PROMPT, **LONG)
        handle.__await__()
        del handle
        assert bits(await selector.submit(PROMPT, **OPTIONS)) == alone

    run(forgets())
    assert selector.engine.live_rows == 0


def test_the_error_of_one_is_not_that_of_the_others(selector: Selector, alone: dict[str, Any]) -> None:
    def fails(text: str) -> str:
        raise ZeroDivisionError

    async def asks(prompt: str, **options: Any) -> Selection:
        return await selector.submit(prompt, **OPTIONS | options)

    async def awaits() -> list[Any]:
        return await asyncio.gather(
            asks(PROMPT), asks(""), asks(PROMPT, n="auto", stop="a", task=fails), asks(PROMPT), return_exceptions=True
        )

    first, empty, broken, last = run(awaits())
    assert bits(first) == bits(last) == alone
    assert isinstance(empty, EmptyPromptError)
    assert isinstance(broken, InvalidOptionError)
    assert isinstance(broken.__cause__, ZeroDivisionError)


def test_a_consumer_that_stands_still_stops_nobody(selector: Selector, alone: dict[str, Any]) -> None:
    async def stands_still() -> None:
        goes_on = asyncio.Event()
        seen: list[Any] = []

        async def slow() -> None:
            async for event in selector.submit(PROMPT, **OPTIONS):
                seen.append(event)
                await goes_on.wait()

        waiting = asyncio.create_task(slow())
        while not seen:
            await asyncio.sleep(0)
        # Meanwhile the loop turns, and others are answered.
        assert bits(await selector.submit(PROMPT, **OPTIONS)) == alone
        assert len(seen) == 1
        goes_on.set()
        await waiting
        assert bits(seen[-1].selection) == alone

    run(stands_still())


def test_the_loop_turns_while_the_engine_stands_still(selector: Selector, alone: dict[str, Any]) -> None:
    entered, opened = threading.Event(), threading.Event()

    def hold(text: str) -> None:
        entered.set()
        assert opened.wait(PATIENCE_S)

    async def turns() -> None:
        held = selector.submit("The dog", n="auto", max_n=1, max_new_tokens=20, stop=list("aeiou"), task=hold)
        waiting = asyncio.create_task(_awaited(selector.submit(PROMPT, **OPTIONS)))
        await asyncio.to_thread(entered.wait, PATIENCE_S)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        opened.set()
        assert bits(await waiting) == alone
        await held

    run(turns())


def test_a_loop_that_is_gone_is_no_loss(selector: Selector, alone: dict[str, Any]) -> None:
    async def leaves() -> Any:
        handle = selector.submit(PROMPT, **LONG)
        task = asyncio.create_task(_awaited(handle))
        await asyncio.sleep(0)
        assert not task.done()
        return handle

    handle = run(leaves())
    with pytest.raises(RequestCancelledError):
        handle.result(PATIENCE_S)
    assert selector.engine.failures == 0
    assert bits(selector.pick(PROMPT, **OPTIONS)) == alone


@pytest.mark.slow
def test_thousands_are_awaited_at_once(selector: Selector) -> None:
    async def awaits() -> list[Selection]:
        return await asyncio.gather(
            *[
                _awaited(
                    selector.submit(PROMPTS[seed % 5], watched=seed % 2 == 0, seed=seed % 50, n=1, max_new_tokens=8)
                )
                for seed in range(2000)
            ]
        )

    alone = {
        (place, seed): bits(selector.pick(PROMPTS[place], seed=seed, n=1, max_new_tokens=8))
        for place, seed in {(number % 5, number % 50) for number in range(2000)}
    }
    before = threading.active_count()
    picks = run(awaits())
    assert threading.active_count() <= before + 1
    assert len(picks) == 2000
    for number, picked in enumerate(picks):
        assert bits(picked) == alone[number % 5, number % 50]
    assert selector.engine.live_rows == 0
