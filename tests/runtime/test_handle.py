"""A pick under way: waited for, watched, cancelled, left, failed, closed, interrupted, forked."""

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from picks import PATIENCE_S, STORIES, bits, bits_of_candidate

from swift_edge import (
    CandidateBegun,
    CandidateDropped,
    CandidateFinished,
    Event,
    FailedPick,
    Picked,
    Selection,
    Selector,
    TokenSampled,
)
from swift_edge.errors import (
    EmptyPromptError,
    EngineClosedError,
    InvalidOptionError,
    RequestCancelledError,
)

PROMPT = "Once upon a time"
OPTIONS: dict[str, Any] = {"n": 3, "max_new_tokens": 24, "seed": 4}
LONG: dict[str, Any] = {"n": 4, "max_new_tokens": 400, "seed": 1, "temperature": 3.0}


class Door:
    """A task of one's own, which the engine calls while it writes: it stays where it is until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _: str) -> str | None:
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)
        return None


@pytest.fixture(scope="module")
def selector(stories_head: Any) -> Iterator[Selector]:
    with Selector(STORIES, head=stories_head, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(selector: Selector) -> dict[str, Any]:
    return bits(selector.pick(PROMPT, **OPTIONS))


@pytest.fixture
def door(selector: Selector) -> Iterator[Door]:
    """The engine stands still, in a function of another request, until the door is opened."""
    held = Door()
    holding = selector.submit("The dog", n="auto", max_n=1, max_new_tokens=20, stop=list("aeiou"), task=held)
    assert held.entered.wait(PATIENCE_S)
    yield held
    held.opened.set()
    holding.result(PATIENCE_S)


def calls_from_the_engine(selector: Selector, call: Callable[[], Any]) -> Selection:
    """A pick during which the engine calls something."""

    def task(text: str) -> str | None:
        call()
        return None

    return selector.submit(PROMPT, n="auto", max_n=1, max_new_tokens=20, stop=list("aeiou"), task=task).result(
        PATIENCE_S
    )


def in_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_the_result_is_what_pick_gives_however_often_it_is_asked_for(selector: Selector, alone: dict[str, Any]) -> None:
    handle = selector.submit(PROMPT, **OPTIONS)
    picked = handle.result(PATIENCE_S)
    assert bits(picked) == alone
    assert handle.is_done
    assert handle.result() is picked


def test_a_result_that_is_late_can_be_waited_for_again(selector: Selector, alone: dict[str, Any], door: Door) -> None:
    handle = selector.submit(PROMPT, **OPTIONS)
    with pytest.raises(TimeoutError, match=r"not done after 0\.01 s"):
        handle.result(timeout=0.01)
    assert not handle.is_done
    door.opened.set()
    assert bits(handle.result(PATIENCE_S)) == alone


def test_one_that_waits_is_cancelled_from_another_thread(selector: Selector, alone: dict[str, Any], door: Door) -> None:
    cancelled, kept = selector.submit(PROMPT, **LONG), selector.submit(PROMPT, **OPTIONS)
    in_thread(cancelled.cancel)
    in_thread(cancelled.cancel)
    door.opened.set()
    for _ in range(2):
        with pytest.raises(RequestCancelledError):
            cancelled.result(PATIENCE_S)
    assert list(kept)[-1] == Picked(kept.result())
    assert bits(kept.result()) == alone


def test_what_is_cancelled_in_the_middle_of_a_step_has_no_row_in_the_next_one(selector: Selector) -> None:
    engine = selector.engine
    handle = selector.submit(PROMPT, **LONG)
    events, steps = iter(handle), []
    handle.when_done(lambda: steps.append(engine.steps))
    assert isinstance(_first_token(events), TokenSampled)

    def cancel() -> None:
        handle.cancel()
        steps.append(engine.steps)

    calls_from_the_engine(selector, cancel)
    with pytest.raises(RequestCancelledError):
        handle.result(PATIENCE_S)
    cancelled_at, ended_at = steps[:2]  # the caller asks the task again, at the end
    assert ended_at == cancelled_at


def test_what_another_thread_cancels_has_no_row_after_the_step_that_is_being_made(selector: Selector) -> None:
    engine = selector.engine
    handle = selector.submit(PROMPT, **LONG)
    events, ended_at = iter(handle), []
    handle.when_done(lambda: ended_at.append(engine.steps))
    assert isinstance(_first_token(events), TokenSampled)
    in_thread(handle.cancel)
    cancelled_at = engine.steps
    with pytest.raises(RequestCancelledError):
        handle.result(PATIENCE_S)
    assert ended_at[0] <= cancelled_at + 1
    assert engine.live_rows == 0


def _first_token(events: Iterator[Event]) -> Event:
    """Read on until something has been written; whoever holds the iterator has not left it."""
    return next(event for event in events if isinstance(event, TokenSampled))


def test_cancelling_what_is_done_changes_nothing(selector: Selector, alone: dict[str, Any]) -> None:
    with selector.submit(PROMPT, **OPTIONS) as handle:
        handle.result(PATIENCE_S)
        in_thread(handle.cancel)
    handle.cancel()
    assert bits(handle.result()) == alone


def test_leaving_the_block_cancels(selector: Selector) -> None:
    with selector.submit(PROMPT, **LONG) as handle:
        pass
    with pytest.raises(RequestCancelledError):
        handle.result(PATIENCE_S)


@pytest.mark.parametrize("options", [OPTIONS, {**LONG, "n": 5, "max_new_tokens": 30, "prune": {8: 2}, "stop": "the"}])
def test_events_come_in_order_and_say_everything(selector: Selector, options: dict[str, Any]) -> None:
    events = list(selector.submit(PROMPT, **options))
    picked = events[-1]
    assert isinstance(picked, Picked)
    assert bits(picked.selection) == bits(selector.pick(PROMPT, **options))
    assert sum(isinstance(event, Picked) for event in events) == 1
    for candidate in picked.selection.candidates:
        own = [event for event in events[:-1] if _index(event) == candidate.index]
        begun, *tokens, end = own
        assert begun == CandidateBegun(candidate.index)
        assert [token.token_id for token in tokens if isinstance(token, TokenSampled)] == list(candidate.token_ids)
        kind = CandidateFinished if candidate.dropped_because is None else CandidateDropped
        assert type(end) is kind
        assert bits_of_candidate(end.candidate) == bits_of_candidate(candidate)  # type: ignore[attr-defined]
        sampled = [token for token in tokens if isinstance(token, TokenSampled)]
        assert candidate.gates is not None
        assert candidate.rewards is not None
        assert [token.gate for token in sampled] == candidate.gates.tolist()
        assert [token.reward for token in sampled] == candidate.rewards.tolist()
        # One after the other, as decoding adds them: from Python 3.12 on, sum() compensates for rounding.
        assert list(accumulate(token.logprob for token in sampled))[-1] == candidate.logprob
        assert sampled[-1].score == candidate.score
        shown = "".join(token.text for token in sampled)
        assert candidate.text.startswith(shown)
    assert any(isinstance(event, CandidateDropped) for event in events) == ("prune" in options)


def _index(event: Event) -> int:
    if isinstance(event, Picked):
        return -1
    return event.candidate.index if isinstance(event, CandidateFinished | CandidateDropped) else event.index


def test_events_are_those_of_stream(selector: Selector) -> None:
    streamed = list(selector.stream(PROMPT, **OPTIONS))
    submitted = list(selector.submit(PROMPT, **OPTIONS))
    assert streamed[:-1] == submitted[:-1]
    assert len(streamed) > OPTIONS["n"] * 3


def test_what_is_not_watched_has_no_event_but_the_last(selector: Selector, alone: dict[str, Any]) -> None:
    (event,) = selector.submit(PROMPT, watched=False, **OPTIONS)
    assert isinstance(event, Picked)
    assert bits(event.selection) == alone


def test_leaving_the_events_early_frees_the_rows(selector: Selector) -> None:
    for leave in ("handle", "stream"):
        events: Any
        if leave == "handle":
            handle = selector.submit(PROMPT, **LONG)
            events = iter(handle)
        else:
            events = selector.stream(PROMPT, **LONG)
        assert next(events) == CandidateBegun(0)
        events.close()
        # The engine obeys before it takes in what comes later: that has them all.
        selector.submit(PROMPT, **OPTIONS).result(PATIENCE_S)
        assert selector.engine.live_rows == 0
        if leave == "handle":
            with pytest.raises(RequestCancelledError):
                handle.result(PATIENCE_S)


def test_a_handle_that_nobody_holds_is_cancelled(selector: Selector) -> None:
    done = threading.Event()
    handle = selector.submit(PROMPT, **LONG)
    handle.when_done(done.set)
    ticket = handle.ticket
    del handle
    gc.collect()
    assert ticket.cancelled
    assert done.wait(PATIENCE_S)
    assert ticket.state == "closed"
    selector.pick(PROMPT, **OPTIONS)
    assert selector.engine.live_rows == 0


def test_a_stream_that_is_never_begun_is_cancelled(selector: Selector, door: Door) -> None:
    events = selector.stream(PROMPT, **LONG)
    steps = selector.engine.steps
    del events
    gc.collect()
    door.opened.set()
    selector.submit("He", n=1, max_new_tokens=1).result(PATIENCE_S)
    assert selector.engine.steps <= steps + 1


class Breaks(BaseException):
    """What no function should raise."""


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), SystemExit(3), Breaks()])
def test_the_error_of_a_task_is_that_of_its_request(
    selector: Selector, alone: dict[str, Any], door: Door, error: BaseException
) -> None:
    def fails(text: str) -> str:
        raise error

    broken = selector.submit(PROMPT, n="auto", max_n=4, max_new_tokens=20, stop=list("aeiou"), task=fails)
    whole = selector.submit(PROMPT, **OPTIONS)
    door.opened.set()
    with pytest.raises((InvalidOptionError, type(error))) as raised:
        broken.result(PATIENCE_S)
    if isinstance(error, Exception):
        assert str(raised.value).startswith("task failed on the text ")
        assert raised.value.__cause__ is error
    else:
        assert raised.value is error
    assert bits(whole.result(PATIENCE_S)) == alone
    assert bits(selector.pick(PROMPT, **OPTIONS)) == alone


def test_a_bad_prompt_fails_where_it_is_submitted(selector: Selector, alone: dict[str, Any], door: Door) -> None:
    whole = selector.submit(PROMPT, **OPTIONS)
    with pytest.raises(EmptyPromptError):
        selector.submit("")
    door.opened.set()
    assert bits(whole.result(PATIENCE_S)) == alone


def test_another_judge_is_asked_in_the_thread_that_waits(selector: Selector, alone: dict[str, Any]) -> None:
    asked: list[tuple[int, Sequence[str]]] = []

    def judge(texts: Sequence[str]) -> list[float]:
        asked.append((threading.get_ident(), texts))
        return [float(len(text)) for text in texts]

    handle = selector.submit(PROMPT, external=judge, **OPTIONS)
    picked = handle.result(PATIENCE_S)
    handle.result()
    assert asked == [(threading.get_ident(), [candidate.text for candidate in picked.candidates])]
    assert picked.strategy == "ranking"


def test_the_error_of_another_judge_is_raised_where_it_was_asked(selector: Selector, alone: dict[str, Any]) -> None:
    def judge(texts: Sequence[str]) -> list[float]:
        raise ZeroDivisionError(threading.get_ident())

    with pytest.raises(ZeroDivisionError, match=str(threading.get_ident())):
        selector.pick(PROMPT, external=judge, **OPTIONS)
    assert bits(selector.pick(PROMPT, **OPTIONS)) == alone
    assert selector.engine.failures == 0


@pytest.mark.parametrize("way", ["pick", "pick_many", "stream", "score", "await"])
def test_a_task_that_waits_for_its_own_engine_is_told_so(selector: Selector, alone: dict[str, Any], way: str) -> None:
    async def awaited() -> Selection:
        return await selector.submit(PROMPT)

    ways: dict[str, Callable[[], Any]] = {
        "pick": lambda: selector.pick(PROMPT),
        "pick_many": lambda: list(selector.pick_many([PROMPT])),
        "stream": lambda: list(selector.stream(PROMPT)),
        "score": lambda: selector.score(PROMPT, [" there"]),
        "await": lambda: asyncio.run(awaited()),
    }
    with pytest.raises(InvalidOptionError, match="a task of your own, waits for the engine"):
        calls_from_the_engine(selector, ways[way])
    assert bits(selector.pick(PROMPT, **OPTIONS)) == alone


def test_a_task_may_ask_another_model(selector: Selector, alone: dict[str, Any]) -> None:
    found: list[Selection] = []
    with Selector(STORIES, threads=1) as other:
        calls_from_the_engine(selector, lambda: found.append(other.pick(PROMPT, **OPTIONS)))
    assert [each.token_ids for each in found[0].candidates] == [
        tuple(each["token_ids"]) for each in alone["candidates"]
    ]


def test_closing_fails_what_is_under_way_and_leaves_no_thread(alone: dict[str, Any], stories_head: Any) -> None:
    before = set(threading.enumerate())
    with Selector(STORIES, head=stories_head, threads=1) as own:
        held = Door()
        working = own.submit(PROMPT, n="auto", max_n=8, max_new_tokens=20, stop=list("aeiou"), task=held)
        assert held.entered.wait(PATIENCE_S)
        waiting = [own.submit(PROMPT, **LONG) for _ in range(3)]
        (driver,) = set(threading.enumerate()) - before
        closing = threading.Thread(target=own.close)
        closing.start()
        held.opened.set()
        closing.join()
        assert not driver.is_alive()
        for handle in waiting:
            with pytest.raises(EngineClosedError, match="open it again"):
                handle.result(PATIENCE_S)
        assert working.is_done
        assert bits(own.pick(PROMPT, **OPTIONS)) == alone
    assert not set(threading.enumerate()) - before


def test_many_under_way_fail_when_the_model_is_closed() -> None:
    own = Selector(STORIES, threads=1)
    picks = own.pick_many([PROMPT] * 3, on_error="yield", n=2, max_new_tokens=8)
    own.close()
    answers = list(picks)
    assert [type(answer) for answer in answers] == [FailedPick] * 3
    assert all(isinstance(answer.error, EngineClosedError) for answer in answers if isinstance(answer, FailedPick))


def test_an_open_selector_can_be_pickled(selector: Selector, alone: dict[str, Any], door: Door) -> None:
    under_way = selector.submit(PROMPT, **OPTIONS)
    with pickle.loads(pickle.dumps(selector)) as copy:  # noqa: S301
        assert bits(copy.pick(PROMPT, **OPTIONS)) | {"head": None} == alone | {"head": None}
    door.opened.set()
    assert bits(under_way.result(PATIENCE_S)) == alone


def test_tokens_are_counted_as_the_usage_counts_them(selector: Selector) -> None:
    for prompt in (PROMPT, "The dog", "a" * 40):
        for raw in (False, True):
            picked = selector.pick(prompt, raw=raw, n=1, max_new_tokens=1)
            assert selector.token_count(prompt, raw=raw) == picked.usage.prompt_tokens
    with pytest.raises(EmptyPromptError):
        selector.token_count("")


COMMON = """
import asyncio, atexit, os, signal, sys, threading
@atexit.register  # called after those of what is imported later
def tell():
    if any(thread.name == "swift-edge engine" for thread in threading.enumerate()):
        print("an engine at work", flush=True)
from swift_edge import Selector
from swift_edge.errors import EngineClosedError, RequestCancelledError
PROMPT, OPTIONS = "Once upon a time", {"n": 3, "max_new_tokens": 24, "seed": 4}
LONG = {"n": 4, "max_new_tokens": 400, "seed": 1, "temperature": 3.0}
signal.signal(signal.SIGINT, signal.default_int_handler)
def facts(picked):
    return [(each.token_ids, each.score.hex(), each.text) for each in picked.candidates]
"""
INTERRUPTED = """
selector = Selector(sys.argv[1], threads=1)
alone = facts(selector.pick(PROMPT, **OPTIONS))
entered, opened = threading.Event(), threading.Event()
def hold(text):
    entered.set()
    opened.wait(60)
holding = selector.submit("The dog", n="auto", max_n=1, max_new_tokens=20, stop=list("aeiou"), task=hold)
entered.wait(60)
other = selector.submit(PROMPT, **OPTIONS)
mine = selector.submit(PROMPT, **LONG)
def interrupt():
    main = threading.main_thread().ident
    while sys._current_frames()[main].f_back.f_code.co_name != "wait_for":  # until it waits for the handle
        threading.Event().wait(0.001)
    signal.pthread_kill(main, signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    WAITS
except KeyboardInterrupt:
    print("interrupted")
opened.set()
try:
    mine.result(60)
except RequestCancelledError:
    print("cancelled")
assert facts(other.result(60)) == alone
holding.result(60)
assert facts(selector.pick(PROMPT, **OPTIONS)) == alone
assert selector.engine.live_rows == 0
"""
LEFT = """
selector = Selector(sys.argv[1], threads=2)
handles = [selector.submit(PROMPT, **LONG) for _ in range(20)]
next(iter(handles[0]))
many = selector.pick_many((PROMPT for _ in iter(int, 1)), **LONG)
threading.Thread(target=lambda: list(many), daemon=True).start()
threading.Thread(target=lambda: selector.pick(PROMPT, **LONG), daemon=True).start()
print("leaving")
"""
FORKED = """
selector = Selector(sys.argv[1], threads=2)
alone = facts(selector.pick(PROMPT, **OPTIONS))
done = selector.submit(PROMPT, **OPTIONS)
done.result(60)
entered, opened = threading.Event(), threading.Event()
def hold(text):
    entered.set()
    opened.wait(60)
handle = selector.submit(PROMPT, n="auto", max_n=2, max_new_tokens=20, stop=list("aeiou"), task=hold)
waiting = selector.submit(PROMPT, **OPTIONS)
many = selector.pick_many([PROMPT] * 2, **OPTIONS)
entered.wait(60)
child = os.fork()
if child == 0:
    assert facts(selector.pick(PROMPT, **OPTIONS)) == alone
    assert facts(done.result()) == alone
    for left in (lambda: waiting.result(60), lambda: list(waiting), lambda: asyncio.run(wait()), lambda: list(many)):
        async def wait():
            await waiting
        try:
            left()
        except EngineClosedError:
            pass
        else:
            raise AssertionError
    del waiting, handle
    selector.close()
    assert facts(selector.pick(PROMPT, **OPTIONS)) == alone
    print("child", flush=True)
    sys.exit(0)
opened.set()
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert facts(waiting.result(60)) == alone
assert [facts(each) for each in many] == [alone] * 2
assert facts(selector.pick(PROMPT, **OPTIONS)) == alone
print("parent")
"""


def script(text: str) -> str:
    """What a program prints that ends well."""
    done = subprocess.run(
        [sys.executable, "-c", COMMON + text, str(STORIES)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals for threads")
@pytest.mark.parametrize("waits", ["mine.result()", "for event in mine: pass"])
def test_an_interrupt_cancels_what_the_caller_waits_for(waits: str) -> None:
    assert script(INTERRUPTED.replace("WAITS", waits)).split() == ["interrupted", "cancelled"]


def test_a_process_ends_with_requests_under_way() -> None:
    assert script(LEFT).split() == ["leaving"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_starts_over_and_its_parent_goes_on() -> None:
    assert script(FORKED).split() == ["child", "parent"]


def test_a_fork_that_lets_go_of_its_parents_model_does_not_wait_for_its_threads() -> None:
    """It waited for ever, in the garbage collector."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork")
    program = f"""
import gc, os
from swift_edge import Selector
from swift_edge.errors import EngineClosedError
selector = Selector({str(STORIES)!r}, threads=2)
selector.pick("a", n=1, max_new_tokens=2)
events = iter(selector.submit("The sun", n=2, max_new_tokens=400))
next(events)
child = os.fork()
if child == 0:
    try:
        list(events)
    except EngineClosedError:
        del events
        gc.collect()
        os._exit(7)
    os._exit(1)
events.close()
selector.close()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=120, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("timeout", ["soon", float("nan"), np.array([1, 2])])
def test_a_timeout_that_is_no_number_of_seconds_is_refused_and_the_request_goes_on(timeout: Any) -> None:
    with Selector(STORIES, threads=1) as selector:
        handle = selector.submit("Once", n=1, max_new_tokens=2)
        with pytest.raises(InvalidOptionError, match="timeout is"):
            handle.result(timeout)
        assert handle.result(float("inf")).usage.completion_tokens == 2


@pytest.mark.parametrize("timeout", [1e300, threading.TIMEOUT_MAX * 2, 10**30])
def test_a_timeout_beyond_the_clock_waits_as_long_as_it_takes(timeout: float) -> None:
    """It was an OverflowError, and the request was lost."""
    with Selector(STORIES, threads=1) as selector:
        assert selector.submit("Once", n=1, max_new_tokens=2).result(timeout).usage.completion_tokens == 2


@pytest.mark.parametrize("watched", [None, 1, np.array([1, 2])])
def test_whether_a_request_is_watched_is_told_by_a_truth_value(watched: Any) -> None:
    with Selector(STORIES, threads=1) as selector, pytest.raises(InvalidOptionError, match=r"watched is .*; expected"):
        selector.submit("Once", n=1, max_new_tokens=2, watched=watched)
