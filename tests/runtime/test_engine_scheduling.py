"""Who is served when, who waits, who fails, and what is left behind: an engine under requests that come and go."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_requests import OTHER, PROMPT, WAIT_S, Held, Recorder, alone, generation, reading, submitted

from swift_edge.engine.engine import Engine
from swift_edge.engine.request import Orders, Reads, Step
from swift_edge.engine.session import ModelSession
from swift_edge.engine.step_memory import StepOutput
from swift_edge.errors import (
    EngineClosedError,
    EngineFailedError,
    LogitsError,
    MemoryLimitError,
    QueueTimeoutError,
    RequestCancelledError,
)

LONG = tuple(np.random.default_rng(0).integers(3, 400, 200).tolist())


@pytest.fixture
def engine(stories: ModelSession) -> Iterator[Engine]:
    made = Engine(stories, rows=4, chunk=8)
    yield made
    made.close()
    assert [thread.name for thread in threading.enumerate() if thread.name == "swift-edge engine"] == []
    assert (made.is_idle, made.live_rows, made.kv_nbytes) == (True, 0, 0)


def held(engine: Engine, **options: Any) -> Held:
    """A request in whose first step the engine waits."""
    recorder = Held()
    engine.submit(generation(**options), recorder)
    return recorder


def order_of(*recorders: Recorder) -> list[int]:
    """Recorders, by number, in the order in which their first candidates were given rows."""
    return sorted(range(len(recorders)), key=lambda number: recorders[number].began_at[0])


# -- rows ------------------------------------------------------------------------------------------------------------


def test_the_bound_on_rows_holds_and_no_row_is_idle_while_candidates_wait(engine: Engine) -> None:
    with held(engine, n=1, max_new_tokens=30) as first:
        others = [submitted(engine, generation(n=5, max_new_tokens=5 + number, seed=number)) for number in range(4)]
    for recorder in others:
        assert len(recorder.result()) == 5
        assert max(recorder.batch_rows) <= 4
    # Rows were full from the moment on at which prompts were read, as long as candidates waited.
    for recorder in others[:2]:
        assert recorder.batch_rows[1:].count(4) == len(recorder.batch_rows) - 1
    first.result()
    assert max(first.batch_rows) == 4


def test_candidates_with_rows_of_their_own_begin_together_and_hold_the_bound(engine: Engine) -> None:
    with held(engine, n=2, max_new_tokens=12):
        own = submitted(engine, generation(n=3, max_new_tokens=6, kept_rows=3))
    own.result()
    assert own.began == [(0, 1, 2)]
    assert max(own.batch_rows) <= 4


def test_a_long_prompt_is_read_a_chunk_at_a_time_between_the_steps_of_the_others(engine: Engine) -> None:
    with held(engine, n=2, max_new_tokens=60) as first:
        second = submitted(engine, generation(LONG, 2, max_new_tokens=3))
    first.result()
    second.result()
    before = [moment for moment in first.moments if moment < second.began_at[0]]
    assert len(before) >= len(LONG) // 8  # a step for every chunk


def test_rows_of_a_key_are_no_more_than_it_may_have(engine: Engine) -> None:
    key = object()
    with held(engine, n=1, max_new_tokens=40):
        bounded = [submitted(engine, generation(n=3, key=key, key_rows=2, max_new_tokens=6)) for _ in range(2)]
        free = submitted(engine, generation(n=1, max_new_tokens=6))
    for recorder in bounded:
        recorder.result()
        assert max(map(len, recorder.steps)) <= 2
    free.result()
    # It did not wait for those whose key had all that it may have.
    assert free.began_at[0] < bounded[1].began_at[0]


# -- order -----------------------------------------------------------------------------------------------------------


def test_a_large_request_does_not_hold_up_a_small_one_of_another_key(engine: Engine) -> None:
    with held(engine, n=4, max_new_tokens=6):
        large = submitted(engine, generation(n=64, max_new_tokens=6))
        small = submitted(engine, generation(n=1, max_new_tokens=6))
    small.result()
    assert len(large.written) < 16
    assert len(large.result()) == 64


def test_a_stream_of_small_requests_does_not_hold_up_a_large_one_for_good(engine: Engine) -> None:
    large = Recorder()
    small: list[Recorder] = []

    def submit_small(_: Step) -> None:
        if not large.ended.is_set() and len(small) < 500:
            small.append(submitted(engine, generation(n=1, max_new_tokens=2, seed=len(small)), submit_small))

    for _ in range(8):
        submit_small(None)  # type: ignore[arg-type]
    engine.submit(generation(n=20, max_new_tokens=2), large)
    large.result()
    assert len(small) < 500
    for recorder in list(small):
        recorder.result()


def test_within_a_key_the_first_to_come_is_the_first_to_be_served(engine: Engine) -> None:
    key = object()
    with held(engine, n=4, max_new_tokens=6):
        recorders = [submitted(engine, generation(n=n, key=key, max_new_tokens=4)) for n in (9, 1, 1)]
    for recorder in recorders:
        recorder.result()
    assert order_of(*recorders) == [0, 1, 2]
    assert recorders[1].began_at[0] >= recorders[0].began_at[-1]


def test_the_greater_priority_is_served_first_whatever_its_key(engine: Engine) -> None:
    key = object()
    with held(engine, n=4, max_new_tokens=6):
        recorders = [
            submitted(engine, generation(n=4, key=key, priority=priority, max_new_tokens=4)) for priority in (0, 1, 5)
        ]
    for recorder in recorders:
        recorder.result()
    assert order_of(*recorders) == [2, 1, 0]


def test_one_that_waits_for_many_rows_is_passed_by_no_more_than_it_waits_for(engine: Engine) -> None:
    with held(engine, n=2, max_new_tokens=30):
        wide = submitted(engine, generation(n=4, kept_rows=4, max_new_tokens=3))
        small = [submitted(engine, generation(n=1, max_new_tokens=8, seed=number)) for number in range(12)]
    for recorder in (wide, *small):
        recorder.result()
    passed = sum(recorder.began_at[0] < wide.began_at[0] for recorder in small)
    assert 0 < passed <= 4


def test_a_request_that_has_no_row_by_its_deadline_fails_alone(engine: Engine) -> None:
    with held(engine, n=4, max_new_tokens=5) as first:
        late = submitted(engine, generation(n=1, deadline=time.monotonic() - 1))
        later = submitted(engine, generation(n=1, deadline=time.monotonic() + WAIT_S))
    with pytest.raises(QueueTimeoutError, match="before the deadline"):
        late.result()
    assert len(later.result()) == 1
    assert len(first.result()) == 4


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_request_can_be_cancelled_in_every_state(engine: Engine, stories: ModelSession) -> None:
    expected = alone(stories, generation(n=2, max_new_tokens=60))
    with held(engine, n=2, max_new_tokens=60) as first:
        queued = submitted(engine, generation(n=2))
        queued.ticket.cancel()
        queued.ticket.cancel()  # no more than once
    seen = []

    def look(_: Step) -> None:
        for recorder in list(waiting):
            state = recorder.ticket.state
            if state in wanted and state not in seen:
                seen.append(state)
                recorder.ticket.cancel()

    first.acts = look
    wanted = {"reading", "waiting", "decoding"}
    waiting = [
        submitted(engine, generation(LONG, 1)),  # is read for many steps
        submitted(engine, generation(n=3, kept_rows=3)),  # waits for rows
        submitted(engine, generation(n=1, seed=5, max_new_tokens=50)),  # is written
    ]
    for candidate, each in first.result().items():
        each.assert_same(expected[candidate])
    assert set(seen) == wanted
    for recorder in (queued, *waiting):
        with pytest.raises(RequestCancelledError):
            recorder.result()
    first.ticket.cancel()
    assert first.ticket.state == "closed"
    assert first.ends == 1


def test_a_cancelled_request_has_no_further_step(engine: Engine) -> None:
    def cancel(step: Step) -> None:
        if len(recorder.steps) == 3:
            recorder.ticket.cancel()

    recorder = submitted(engine, generation(n=3, max_new_tokens=60), cancel)
    with pytest.raises(RequestCancelledError):
        recorder.result()
    assert len(recorder.steps) == 3


def test_reading_is_cancelled_between_two_chunks(engine: Engine) -> None:
    def cancel(step: Step) -> None:
        recorder.ticket.cancel()

    recorder = submitted(engine, reading(PROMPT, [LONG, LONG]), cancel)
    with pytest.raises(RequestCancelledError):
        recorder.result()
    assert len(recorder.steps) == 1


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["begun", "step", "closed"])
def test_what_a_consumer_raises_fails_its_request_alone(engine: Engine, stories: ModelSession, where: str) -> None:
    class Broken(Recorder):
        def _raise(self, *_: Any) -> None:
            self.ended.set()
            raise ZeroDivisionError("mine")

    broken = Broken()
    setattr(broken, where, broken._raise)
    expected = alone(stories, generation(n=3, max_new_tokens=12))
    with held(engine, n=3, max_new_tokens=12) as first:
        engine.submit(generation(n=1, max_new_tokens=2), broken)
    for candidate, each in first.result().items():
        each.assert_same(expected[candidate])
    assert broken.ended.wait(WAIT_S)
    if where != "closed":
        deadline = time.monotonic() + WAIT_S
        while broken.error is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert isinstance(broken.error, ZeroDivisionError)
        assert engine.failures == 0


def test_logits_that_are_no_numbers_fail_the_request_of_their_row_alone(
    engine: Engine, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(stories, generation(n=2, max_new_tokens=20))
    decode = stories.decode

    def broken(cache: Any, token_ids: Any, **options: Any) -> StepOutput:
        output = decode(cache, token_ids, **options)
        for place, length in enumerate(cache.lengths.tolist()):
            if length == 63 and options.get("logits"):
                output.logits[place] = np.nan  # a view of what the next draw reads
        return output

    monkeypatch.setattr(stories, "decode", broken)
    with held(engine, n=2, max_new_tokens=20) as first:
        bad = submitted(engine, generation(LONG[:60], 2, max_new_tokens=20))
    with pytest.raises(LogitsError, match="holds NaN"):
        bad.result()
    for candidate, each in first.result().items():
        each.assert_same(expected[candidate])
    assert engine.failures == 0


def test_anything_else_fails_what_is_in_flight_and_is_counted_and_the_engine_goes_on(
    engine: Engine, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(stories, generation(n=2, max_new_tokens=20))

    def explode(*_: Any, **__: Any) -> StepOutput:
        raise RuntimeError("the sky fell")

    with held(engine, n=2, max_new_tokens=20) as first:
        waits = submitted(engine, generation(LONG, 3))
        monkeypatch.setattr(stories, "decode", explode)
    for recorder in (first, waits):
        with pytest.raises(EngineFailedError, match="RuntimeError: the sky fell"):
            recorder.result()
    assert engine.failures == 1
    monkeypatch.undo()
    for candidate, each in submitted(engine, generation(n=2, max_new_tokens=20)).result().items():
        each.assert_same(expected[candidate])


# -- memory ----------------------------------------------------------------------------------------------------------


def batch_bytes(session: ModelSession, rows: int, tokens: int) -> int:
    from swift_edge.engine.ledger import Ledger

    return Ledger(session).batch_bytes(rows, tokens, len(session.layers))


def test_what_does_not_fit_beside_the_others_waits_and_what_never_fits_is_refused_with_the_numbers(
    stories: ModelSession,
) -> None:
    short, long = generation(n=6, max_new_tokens=30), generation(LONG, 4, max_new_tokens=200)
    room = batch_bytes(stories, 6, 64) + 256 * stories.kv_bytes_per_token
    assert batch_bytes(stories, 7, 400) > room > batch_bytes(stories, 1, 400)
    engine = Engine(stories, rows=16, chunk=8, kv_memory=room)
    with held(engine, n=6, max_new_tokens=30) as first:
        second = submitted(engine, long)
        third = submitted(engine, short)
    for recorder, request in ((first, short), (third, short), (second, long)):
        for candidate, each in alone(stories, request).items():
            recorder.result()[candidate].assert_same(each)
    # It was not written beside six short rows, which it would have made as long as itself.
    assert max(second.batch_rows) < 7
    small = Engine(stories, rows=4, chunk=8, kv_memory=1000)
    with pytest.raises(MemoryLimitError, match=r"1 row of .* tokens .*ask for fewer"):
        submitted(small, generation(n=1)).result()
    small.close()
    assert engine.kv_nbytes == 0
    engine.close()


def test_prompts_that_are_read_ahead_give_way_to_the_one_that_is_next(stories: ModelSession) -> None:
    """Where several prompts fill the memory and none has a row, nobody would ever be served."""
    requests = [generation(LONG[number:], 1, max_new_tokens=8, seed=number) for number in range(5)]
    room = batch_bytes(stories, 1, 220) + 400 * stories.kv_bytes_per_token
    engine = Engine(stories, rows=4, chunk=8, kv_memory=room)
    recorders = [submitted(engine, request) for request in requests]
    for recorder, request in zip(recorders, requests, strict=True):
        for candidate, each in alone(stories, request).items():
            recorder.result()[candidate].assert_same(each)
    assert engine.kv_nbytes == 0
    engine.close()


def test_candidates_cost_nothing_before_they_have_a_row(engine: Engine) -> None:
    recorder = Recorder()
    ticket = engine.submit(generation(n=10**9, max_new_tokens=2), recorder)
    while not recorder.steps:
        time.sleep(0.001)
    ticket.cancel()
    assert recorder.ended.wait(WAIT_S)
    assert len(recorder.written) < 10_000


# -- the driver ------------------------------------------------------------------------------------------------------


def test_the_thread_starts_with_the_first_request_and_ends_when_there_is_nothing_to_do(
    stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swift_edge.engine.driver.IDLE_S", 0.01)
    engine = Engine(stories, rows=4, chunk=8)
    first = submitted(engine, generation(n=1, max_new_tokens=2))
    first.result()
    assert first.thread is not None
    first.thread.join(WAIT_S)
    assert not first.thread.is_alive()
    second = submitted(engine, generation(n=1, max_new_tokens=2))
    second.result()
    assert second.thread is not first.thread
    engine.close()


def test_closing_fails_what_is_under_way_and_leaves_no_thread(engine: Engine) -> None:
    with held(engine, n=2, max_new_tokens=100) as first:
        waits = submitted(engine, generation(LONG, 3))
        closing = threading.Thread(target=engine.close)
        closing.start()
    closing.join(WAIT_S)
    for recorder in (first, waits):
        with pytest.raises(EngineClosedError):
            recorder.result()
    with pytest.raises(EngineClosedError):
        engine.submit(generation(), Recorder())


def test_requests_of_many_threads_are_what_they_are_alone(engine: Engine, stories: ModelSession) -> None:
    requests = [
        generation(OTHER[: 2 + number], 1 + number % 3, seed=number, max_new_tokens=10, reads=Reads((number % 6,)))
        for number in range(6)
    ]
    recorders: dict[int, Recorder] = {}

    def ask(number: int) -> None:
        recorders[number] = submitted(engine, requests[number])
        recorders[number].result()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    for number, request in enumerate(requests):
        for candidate, each in alone(stories, request).items():
            recorders[number].written[candidate].assert_same(each)


def test_orders_to_begin_are_for_requests_with_rows_of_their_own(engine: Engine) -> None:
    recorder = submitted(
        engine,
        generation(n=2, max_new_tokens=6, kept_rows=4),
        lambda _: Orders(begin=2 if len(recorder.steps) == 1 else 0),
    )
    assert len(recorder.result()) == 4
