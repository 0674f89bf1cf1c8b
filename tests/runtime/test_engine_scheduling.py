"""One batch for everybody: no candidate notices, no row waits, nobody holds up the others, and errors stay at home."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_requests import (
    OTHER,
    PROMPT,
    WAIT_S,
    Held,
    Recorder,
    Written,
    alone,
    generation,
    reading,
    submitted,
)
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.arrays import Ids
from swift_edge.bundle import open_bundle
from swift_edge.engine import Engine, Generation, KVCache, ModelSession, Orders, Request, Step, StepOutput
from swift_edge.engine.session import WORKING_BYTES
from swift_edge.errors import (
    EngineClosedError,
    EngineFailedError,
    LogitsError,
    MemoryLimitError,
    QueueTimeoutError,
    RequestCancelledError,
)

EOS = {426, 432, 398}  # full stop, comma, and another: candidates end at many different steps
PROMPTS = (PROMPT, OTHER, (1, 338), tuple(range(1, 60)))
LONG = tuple(range(3, 203))
CONCATENATING = Path(__file__).parents[2] / "tests" / "data" / "same-model" / "optimum"
CHUNK = 8

New = Callable[..., Engine]


@pytest.fixture
def new(stories: ModelSession) -> Iterator[New]:
    """Make engines over `stories`, and see that they leave nothing behind."""
    made: list[Engine] = []

    def make(rows: int = 4, chunk: int = CHUNK, **options: Any) -> Engine:
        made.append(Engine(stories, rows=rows, chunk=chunk, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        assert engine.is_idle
        assert (engine.live_rows, engine.kv_nbytes) == (0, 0)


@pytest.fixture(scope="module")
def expected(stories: ModelSession) -> dict[tuple[int, int], Written]:
    """Every prompt's first candidates, each decoded by itself."""
    return {
        (place, candidate): written
        for place in range(len(PROMPTS))
        for candidate, written in alone(stories, numbered(place, 6)).items()
    }


def numbered(place: int, n: int, **options: Any) -> Generation:
    return generation(PROMPTS[place], n, max_new_tokens=20, stop_ids=EOS, seed=place, **options)


# -- rows ------------------------------------------------------------------------------------------------------------


@given(
    work=st.lists(st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(1, 6)), min_size=1, max_size=6),
    rows=st.integers(1, 9),
    chunk=st.sampled_from([7, 128]),
    every=st.integers(0, 3),
    keys=st.integers(1, 3),
)
def test_a_candidate_is_what_it_is_alone_whoever_comes_and_goes(
    stories: ModelSession,
    expected: dict[tuple[int, int], Written],
    work: list[tuple[int, int]],
    rows: int,
    chunk: int,
    every: int,
    keys: int,
) -> None:
    engine = Engine(stories, rows=rows, chunk=chunk)
    found: list[Recorder] = []
    to_come = iter(work)
    steps = 0

    def submit_next(step: Step | None = None) -> None:
        """One request after some steps; else all of them at once."""
        nonlocal steps
        steps += step is not None
        if step is None or (every and steps % every == 0):
            for place, n in to_come:
                found.append(Recorder(submit_next))
                engine.submit(numbered(place, n, key=len(found) % keys), found[-1])
                if every:
                    return

    submit_next()
    while len(found) < len(work) or not all(each.ended.is_set() for each in found):
        for each in list(found):
            each.result()
        submit_next()
    for (place, n), recorder in zip(work, found, strict=True):
        assert recorder.written.keys() == set(range(n))
        for candidate, written in recorder.written.items():
            # Read in other chunks, a prompt of 59 tokens is rounded in another way.
            assert written.token_ids == expected[place, candidate].token_ids
            assert written.finished == expected[place, candidate].finished
        assert max(recorder.batch_rows) <= rows
    engine.close()
    assert (engine.kv_nbytes, engine.failures) == (0, 0)


def test_no_row_is_idle_while_candidates_of_a_prompt_that_is_read_wait(new: New) -> None:
    engine = new(8, chunk=128)
    widths: list[int] = []
    found: list[Recorder] = []

    def watch(step: Step) -> None:
        states = [(each.ticket.is_read, len(each.ticket.waiting)) for each in found]
        widths.append(step.batch_rows)
        assert step.batch_rows == 8 or not any(is_read and waiting for is_read, waiting in states)
        assert step.batch_rows <= 8

    with Held.on(engine) as held:
        for number in range(24):
            found.append(submitted(engine, numbered(number % len(PROMPTS), 3), watch))
        held.ticket.cancel()
    assert sum(len(recorder.result()) for recorder in found) == 72
    assert widths.count(8) > len(widths) / 2


def test_a_long_prompt_is_read_in_chunks_between_the_steps_of_the_others(
    new: New, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    logged(monkeypatch, stories, log)
    engine = new()
    with Held.on(engine, 2) as held:
        log.clear()
        long = generation(PROMPTS[3], 2, max_new_tokens=3)  # 59 tokens
        recorder = submitted(engine, long, begins=lambda _: log.append("begun"))
    recorder.result()
    held.ticket.cancel()
    assert log[: log.index("begun") + 2] == [*["prefill", "decode"] * 7, "prefill", "begun", "decode"]


def logged(monkeypatch: pytest.MonkeyPatch, session: ModelSession, log: list[str]) -> None:
    """Write down every run of the graph that is asked for."""

    def watch(name: str, run: Callable[..., StepOutput]) -> None:
        monkeypatch.setattr(session, name, lambda *given, **more: log.append(name) or run(*given, **more))

    watch("prefill", session.prefill)
    watch("decode", session.decode)


def test_short_prompts_are_read_until_the_rows_are_full_where_none_are_at_work(
    new: New, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new(4)
    log: list[str] = []
    with Held.on(engine) as held:
        found = [submitted(engine, generation((1, 338), 1, max_new_tokens=2, seed=seed)) for seed in range(6)]
        held.ticket.cancel()
        logged(monkeypatch, stories, log)
    for recorder in found:
        recorder.result()
    assert log[:5] == [*["prefill"] * 4, "decode"]


def test_candidates_can_be_dropped_while_they_wait_and_while_they_are_written(
    new: New, expected: dict[tuple[int, int], Written]
) -> None:
    """One that waited was written all the same."""
    for places in ({0, 3}, {0, 2, 3, 4, 5}):
        recorder = submitted(new(2), numbered(0, 6), lambda _, gone=places: Orders(dict.fromkeys(gone, "test")))
        assert recorder.result().keys() == {0, *range(6)} - (places - {0})
        for candidate, written in recorder.written.items():
            length = 1 if candidate == 0 else None
            assert written.token_ids == expected[0, candidate].token_ids[:length]


def test_others_get_rows_when_all_that_waited_were_dropped(new: New) -> None:
    """Whatever its priority, what has nothing to begin any more stands in nobody's way."""
    engine = new(2)
    with Held.on(engine) as held:
        first = submitted(
            engine,
            generation(n=5, max_new_tokens=300, priority=1),
            lambda _: Orders(dict.fromkeys(range(1, 5), "test")),
        )
        others = [submitted(engine, generation(n=1, max_new_tokens=2)) for _ in range(4)]
        held.ticket.cancel()
    for recorder in others:
        recorder.result()
    assert [len(candidates) for candidates in first.steps[1:3]] == [1, 1]
    assert len(first.result()[0].token_ids) == 300
    # They were written beside it, not after it.
    assert {rows for recorder in others for rows in recorder.batch_rows} == {2}


def test_where_a_graph_concatenates_requests_follow_each_other_and_are_what_they_are_alone() -> None:
    """All rows are equally long there: none can join those at work."""
    session = ModelSession(open_bundle(CONCATENATING), threads=1)
    assert not session.takes_ragged_rows
    options = {"stop_ids": set(range(0, 30, 3)), "max_new_tokens": 8}
    requests = [generation([3, 4, 5], 5, seed=1, **options), generation([6, 7], 2, seed=2, **options)]
    engine = Engine(session, rows=3, chunk=8)
    found = [Recorder() for _ in requests]

    def submit_rest(_: Step) -> None:
        if len(first.steps) == 1:
            for request, recorder in zip(requests, found, strict=True):
                engine.submit(request, recorder)
            engine.submit(generation([6, 8, 9], 3, max_new_tokens=4, kept_rows=3), kept)

    first, kept = Recorder(submit_rest), Recorder()
    engine.submit(generation([5], 1, max_new_tokens=20), first)
    for recorder, request in zip(found, requests, strict=True):
        written = recorder.result()
        assert {candidate: each.token_ids for candidate, each in written.items()} == {
            candidate: each.token_ids for candidate, each in alone(session, request).items()
        }
    assert set(first.batch_rows) == {1}
    assert [len(began) for began in found[0].began] == [3, 2]
    assert len(kept.result()) == 3
    engine.close()
    assert (engine.kv_nbytes, engine.failures) == (0, 0)


# -- rows of one's own -----------------------------------------------------------------------------------------------


def test_candidates_with_rows_of_their_own_begin_together_when_there_is_room_for_all(new: New) -> None:
    """As many as there was room for began at once, the others a step later: what is compared was not alike."""
    engine = new(8)
    with Held.on(engine, 3) as held:
        recorder = submitted(engine, generation(n=6, max_new_tokens=3, kept_rows=6))
        small = submitted(engine, generation(n=1, max_new_tokens=9), lambda _: held.ticket.cancel())
    small.result()
    recorder.result()
    assert recorder.began == [tuple(range(6))]
    assert [len(candidates) for candidates in recorder.steps] == [6, 6, 6]


def test_rows_of_ones_own_stay_free_until_they_are_given_up(new: New) -> None:
    engine = new(4)

    def act(step: Step) -> Orders | None:
        steps = len(keeping.steps)
        if steps == 1:  # two rows free, and kept
            return Orders({0: "test", 1: "test"})
        if steps == 6:
            assert [each for each in other.steps if len(each) > 1] == []
            return Orders(begin=1)
        return Orders(most_rows=2) if steps == 12 else None

    keeping = Recorder(act)
    other = Recorder()
    with Held.on(engine) as held:
        engine.submit(generation(n=3, max_new_tokens=30, kept_rows=3), keeping)
        engine.submit(generation(n=4, max_new_tokens=40), other)
        held.ticket.cancel()
    keeping.result()
    other.result()
    assert keeping.began == [(0, 1, 2), (3,)]
    assert keeping.batch_rows[:12] == [4, *[2] * 5, *[3] * 6]
    assert keeping.batch_rows[13] == 4


def test_no_more_begin_beside_each_other_than_there_are_rows_of_their_own(new: New) -> None:
    recorder = Recorder(lambda _: Orders(begin=5) if len(recorder.steps) == 1 else None)
    new(8).submit(generation(n=2, max_new_tokens=4, kept_rows=2), recorder)
    assert len(recorder.result()) == 7
    assert max(recorder.batch_rows) == 2


# -- whose turn it is ------------------------------------------------------------------------------------------------


def order_of(new: New, rows: int, requests: dict[str, Request]) -> list[str]:
    """Names of requests that come together, once for each candidate, in the order in which these are given rows."""
    engine = new(rows)
    order: list[str] = []
    with Held.on(engine, rows) as held:
        found = [
            submitted(engine, request, begins=lambda some, name=name: order.extend([name] * len(some)))
            for name, request in requests.items()
        ]
        held.ticket.cancel()
    for recorder in found:
        recorder.result()
    return order


def short(n: int = 1, **options: Any) -> Generation:
    return generation(n=n, max_new_tokens=2, **options)


def test_the_greater_priority_is_served_first(new: New) -> None:
    requests = {"low": short(), "high": short(priority=5), "middle": short(2, priority=1)}
    assert order_of(new, 1, requests) == ["high", "middle", "middle", "low"]


def test_many_candidates_do_not_block_one_of_another_key(new: New) -> None:
    one = generation(n=1, max_new_tokens=6)  # in that time the prompts behind it are read
    many = generation(n=16, max_new_tokens=6, key="a")
    order = order_of(new, 4, {"many": many, "one": replace(one, key="b"), "other": one})
    assert order.index("one") <= 4
    assert order.index("other") <= 5
    assert len(order) == 18


def test_many_requests_of_a_key_do_not_block_one_of_another(new: New) -> None:
    order = order_of(new, 1, {**{f"a{place}": short(key="a") for place in range(9)}, "b": short(key="b")})
    assert order.index("b") <= 1


def test_a_key_of_which_more_candidates_wait_is_served_more_often(new: New) -> None:
    order = order_of(new, 1, {"few": short(4, key="a"), "many": short(12, key="b")})
    assert 1 <= order[:8].count("few") <= 3
    assert order.count("few") == 4


def test_a_stream_of_small_requests_does_not_hold_up_a_large_one_for_good(new: New) -> None:
    engine = new(4)
    large = Recorder()
    small: list[Recorder] = []

    def submit_small(_: Step | None = None) -> None:
        if not large.ended.is_set() and len(small) < 500:
            small.append(submitted(engine, generation(n=1, max_new_tokens=2, seed=len(small)), submit_small))

    for _ in range(8):
        submit_small()
    engine.submit(generation(n=20, max_new_tokens=2), large)
    large.result()
    assert len(small) < 500
    for recorder in list(small):
        recorder.result()


def test_requests_of_a_key_are_served_in_the_order_of_their_arrival(new: New) -> None:
    requests = {str(place): short(1 + place % 3, key="a") for place in range(6)}
    order = order_of(new, 2, requests)
    assert order == sorted(order)
    assert len(order) == 12


def test_a_key_has_no_more_rows_than_it_may(new: New) -> None:
    engine = new(6)
    with Held.on(engine) as held:
        keyed = [submitted(engine, generation(n=3, max_new_tokens=9, key="a", key_rows=2)) for _ in range(3)]
        held.ticket.cancel()
    for recorder in keyed:
        recorder.result()
    assert {rows for recorder in keyed for rows in recorder.batch_rows[2:]} <= {1, 2}
    assert 2 in keyed[2].batch_rows
    # What it may not have is left to others.
    with Held.on(engine) as held:
        some = submitted(engine, generation(n=3, max_new_tokens=9, key="a", key_rows=2))
        others = submitted(engine, generation(n=4, max_new_tokens=9, key="b"))
        held.ticket.cancel()
    some.result()
    others.result()
    assert max(others.batch_rows) == 6


@pytest.mark.parametrize("behind", [[12], [1] * 12])
def test_one_that_waits_for_many_rows_is_not_overtaken_for_ever(new: New, behind: list[int]) -> None:
    engine = new(2)
    order: list[str] = []

    def told(name: str) -> Callable[[Any], None]:
        return lambda _: order.append(name)

    with Held.on(engine, 2) as held:
        long = submitted(engine, generation(n=1, max_new_tokens=40, priority=1))
        many = submitted(engine, short(2, kept_rows=2), begins=told("many"))
        small = [submitted(engine, short(n), begins=told("small")) for n in behind]
        held.ticket.cancel()
    for recorder in (long, many, *small):
        recorder.result()
    assert 1 <= order.index("many") <= 2


# -- deadlines -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` says in the engine."""
    now = [0.0]

    class Clock:
        perf_counter = staticmethod(__import__("time").perf_counter)

        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr("swift_edge.engine.engine.time", Clock)
    return now


def test_what_has_no_row_at_its_deadline_fails_alone(new: New, clock: list[float]) -> None:
    engine = new(1)
    with Held.on(engine) as held:
        late = submitted(engine, generation(deadline=10.0))
        later = submitted(engine, generation(deadline=30.0))
        clock[0] = 20.0
    with pytest.raises(QueueTimeoutError):
        late.result()
    held.ticket.cancel()
    assert len(later.result()) == 4
    assert not late.began


def test_what_has_a_row_at_its_deadline_goes_on(new: New, clock: list[float], stories: ModelSession) -> None:
    """A reading that had begun was told that no row had become free."""
    engine = new(1)

    def late(step: Step) -> None:
        clock[0] = 20.0

    request = generation(n=2, deadline=10.0)
    written = submitted(engine, request, late).result()
    for candidate, each in alone(stories, generation(n=2)).items():
        each.assert_same(written[candidate])
    clock[0] = 0.0
    given = reading(PROMPT, [[5] * 200], deadline=10.0)
    assert len(submitted(engine, given, late).result()[0].token_ids) == 200


# -- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["queued", "reading", "waiting"])
def test_what_is_cancelled_before_it_has_a_row_is_gone_before_the_next_chunk(
    new: New, stories: ModelSession, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    log: list[str] = []
    logged(monkeypatch, stories, log)
    engine = new(1)
    request = generation(max_new_tokens=60, n=1)

    def watch(step: Step) -> None:
        if victim.ticket.state == state and not victim.ticket.cancelled:
            victim.ticket.cancel()
            log.append("cancelled")

    with Held.on(engine) as held:
        bystander = submitted(engine, request, watch)
        victim = submitted(engine, generation(LONG[:40], 2))
        log.clear()
        if state == "queued":
            assert victim.ticket.state == "queued"
            victim.ticket.cancel()
            log.append("cancelled")
        held.ticket.cancel()
    with pytest.raises(RequestCancelledError):
        victim.result()
    assert victim.ticket.state == "closed"
    assert not victim.began
    alone(stories, request)[0].assert_same(bystander.result()[0])
    chunks = log[: log.index("cancelled")].count("prefill"), log[log.index("cancelled") :].count("prefill")
    # One chunk is the bystander's prompt; five would be the victim's.
    assert chunks[0] == {"queued": 0, "reading": 2, "waiting": 6}[state]


@pytest.mark.parametrize("steps", [1, 5])
def test_what_is_cancelled_while_it_decodes_writes_nothing_more(new: New, stories: ModelSession, steps: int) -> None:
    engine = new(6)
    request = generation(max_new_tokens=30)

    def cancel(step: Step) -> None:
        if len(victim.steps) == steps:
            victim.ticket.cancel()

    with Held.on(engine) as held:
        bystander = submitted(engine, request)
        victim = submitted(engine, generation(OTHER, 9), cancel)
        held.ticket.cancel()
    with pytest.raises(RequestCancelledError):
        victim.result()
    for candidate, each in alone(stories, request).items():
        each.assert_same(bystander.result()[candidate])
    assert len(victim.steps) == steps  # looked at when more steps have been made


def test_a_row_that_leaves_beside_one_that_has_just_come_moves_nobodys_numbers(new: New, stories: ModelSession) -> None:
    """The last row moves into its place, before it has drawn its first token."""
    engine = new(3)
    requests = {
        name: generation(prompt, 1, max_new_tokens=tokens)
        for name, prompt, tokens in (("bystander", PROMPT, 40), ("filler", OTHER, 12), ("comer", OTHER[::-1], 9))
    }
    found = {name: Recorder() for name in requests}
    victim, last = Recorder(), Recorder()

    def submit_last(_: Step) -> None:
        if found["comer"].ticket.state == "waiting" and not hasattr(last, "ticket"):
            engine.submit(generation(LONG, 1, priority=1), last)

    found["bystander"].acts = submit_last
    # A chunk of the last one's prompt is read in the same turn, and mail is taken after it.
    found["comer"].begins = lambda _: (victim.ticket.cancel(), states.append(last.ticket.state))
    states: list[str] = []
    with Held.on(engine) as held:
        engine.submit(generation(n=1, max_new_tokens=200), victim)
        for name, request in requests.items():
            engine.submit(request, found[name])
        held.ticket.cancel()
    for name, request in requests.items():
        alone(stories, request)[0].assert_same(found[name].result()[0])
    assert states == ["reading"]
    last.ticket.cancel()


def test_another_thread_may_cancel_in_the_middle_of_a_step(new: New) -> None:
    held = Held.on(new(2), 2)
    with held:
        held.ticket.cancel()
    with pytest.raises(RequestCancelledError):
        held.result()
    assert len(held.steps) == 1


def test_given_responses_can_be_cancelled_between_their_chunks(new: New) -> None:
    victim = Recorder(lambda _: victim.ticket.cancel())
    new().submit(reading(PROMPT, [[5] * 200] * 9), victim)
    with pytest.raises(RequestCancelledError):
        victim.result()
    assert len(victim.steps) == 1


def test_cancelling_what_is_done_does_nothing(new: New) -> None:
    engine = new()
    recorder = submitted(engine, short())
    recorder.result()
    recorder.ticket.cancel()
    recorder.ticket.cancel()
    assert len(submitted(engine, short()).result()) == 1
    assert (recorder.ends, recorder.error, recorder.ticket.state) == (1, None, "closed")


@given(data=st.data())
def test_whatever_is_cancelled_nothing_gets_stuck_and_the_others_are_whole(
    stories: ModelSession, expected: dict[tuple[int, int], Written], data: st.DataObject
) -> None:
    engine = Engine(stories, rows=data.draw(st.integers(1, 6)), chunk=128)
    work = data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans(), st.integers(0, 25)), max_size=12)
    )
    found: list[tuple[Recorder, int]] = []
    steps = 0

    def count(step: Step) -> None:
        nonlocal steps
        steps += 1
        for recorder, when in found:
            if when == steps:
                recorder.ticket.cancel()

    with Held.on(engine) as held:
        for place, n, keeps, when in work:
            kept = min(n, engine.most_rows) if keeps else None
            request = numbered(place, n if kept is None else kept, kept_rows=kept)
            found.append((submitted(engine, request, count), when))
        for recorder, when in found:
            if when == 0:
                recorder.ticket.cancel()
        held.ticket.cancel()
    for (recorder, _), (place, *_) in zip(found, work, strict=True):
        assert recorder.ended.wait(WAIT_S)
        if recorder.error is None:
            assert len(recorder.written) == recorder.ticket.num_candidates
        for candidate, written in recorder.written.items():
            whole = expected[place, candidate].token_ids
            assert written.token_ids == whole[: None if recorder.error is None else len(written.token_ids)]
    engine.close()
    assert (engine.kv_nbytes, engine.live_rows, engine.failures) == (0, 0, 0)


# -- what goes wrong -------------------------------------------------------------------------------------------------


class Broken(Recorder):
    """A consumer that raises where it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.raises = where, error

    def begun(self, candidates: Any) -> None:
        super().begun(candidates)
        if self.where == "begun":
            raise self.raises

    def step(self, step: Step) -> Orders | None:
        super().step(step)
        if self.where == "step" and len(self.steps) == 3:
            raise self.raises
        return None

    def closed(self, error: BaseException | None) -> None:
        super().closed(error)
        if self.where == "closed":
            raise self.raises


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=lambda error: repr(error))
@pytest.mark.parametrize("where", ["begun", "step", "closed"])
def test_the_error_of_a_consumer_fails_its_request_alone(
    new: New, stories: ModelSession, where: str, error: BaseException
) -> None:
    """One that is no `Exception` ended the thread, and everybody waited for ever."""
    engine = new(6)
    request = generation(max_new_tokens=30)
    broken = Broken(where, error)
    with Held.on(engine) as held:
        bystander = submitted(engine, request)
        engine.submit(generation(OTHER, 2, max_new_tokens=9), broken)
        held.ticket.cancel()
    for candidate, each in alone(stories, request).items():
        each.assert_same(bystander.result()[candidate])
    assert broken.ended.wait(WAIT_S)
    assert broken.ends == 1
    assert broken.error is (None if where == "closed" else error)
    assert len(broken.steps) == {"begun": 0, "step": 3, "closed": 9}[where]
    assert len(submitted(engine, short()).result()) == 1
    # Nobody is left to be told what `closed` raises.
    assert engine.failures == (where == "closed")


def test_lack_of_memory_fails_its_request_alone_in_one_line(new: New) -> None:
    engine = new()
    for where in ("begun", "step"):
        broken = Broken(where, MemoryError())
        engine.submit(generation(OTHER, 2, max_new_tokens=9), broken)
        with pytest.raises(MemoryLimitError, match="more memory than the system gives this process; ask for fewer"):
            broken.result()
        assert len(submitted(engine, short()).result()) == 1


def test_lack_of_memory_in_a_step_fails_what_is_under_way_and_the_engine_goes_on(
    new: New, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy raises it wherever an array is made."""
    engine = new()

    def full(*_: Any, **__: Any) -> StepOutput:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(stories, "decode", full)
        with pytest.raises(MemoryLimitError, match="more memory than the system gives"):
            submitted(engine, short()).result()
    assert len(submitted(engine, short()).result()) == 1


def test_the_error_of_a_consumer_of_given_responses_fails_its_request_alone(new: New) -> None:
    engine = new()
    broken = Broken("step", ValueError("no"))
    engine.submit(reading(PROMPT, [[5, 6]] * 9), broken)
    with pytest.raises(ValueError, match="no"):
        broken.result()
    assert len(broken.steps) == 3
    assert len(submitted(engine, short()).result()) == 1


def test_a_row_whose_logits_are_no_distribution_fails_its_request_alone(
    new: New, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes a model's numbers overflow, this is where they come from."""
    decode, engine = stories.decode, new(6)
    request = generation(max_new_tokens=30, n=2)
    expected = alone(stories, request)
    broken: list[int] = []

    def nan(cache: KVCache, token_ids: Ids, **options: Any) -> StepOutput:
        out = decode(cache, token_ids, **options)
        if cache.rows == 3:
            broken.append(1)
            if len(broken) == 4:
                out.logits[-1, 7] = np.nan  # the row that came last
        return out

    monkeypatch.setattr(stories, "decode", nan)

    def submit_victim(step: Step) -> None:
        if len(bystander.steps) == 3:
            engine.submit(generation(OTHER, 1, max_new_tokens=30), victim)

    victim, bystander = Recorder(), Recorder(submit_victim)
    engine.submit(request, bystander)
    with pytest.raises(LogitsError, match="NaN"):
        victim.result()
    assert len(victim.steps) == 4
    for candidate, each in expected.items():
        each.assert_same(bystander.result()[candidate])
    assert engine.failures == 0


def test_a_prompt_whose_logits_are_no_distribution_fails_its_request_alone(
    new: New, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows at work had drawn their next random number by then, and drew another one: their tokens changed."""
    prefill, engine = stories.prefill, new(6)
    request = generation(max_new_tokens=30, n=2)
    expected = alone(stories, request)

    def nan(cache: KVCache, token_ids: Ids, **options: Any) -> StepOutput:
        out = prefill(cache, token_ids, **options)
        if len(token_ids) == len(OTHER):
            out.logits[-1, 7] = np.nan
        return out

    monkeypatch.setattr(stories, "prefill", nan)

    def submit_victim(step: Step) -> None:
        if len(bystander.steps) == 3:
            engine.submit(generation(OTHER, 1, max_new_tokens=30), victim)

    victim, bystander = Recorder(), Recorder(submit_victim)
    engine.submit(request, bystander)
    with pytest.raises(LogitsError, match="NaN"):
        victim.result()
    assert not victim.steps
    for candidate, each in expected.items():
        each.assert_same(bystander.result()[candidate])
    assert engine.failures == 0


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (RuntimeError("two\nlines"), EngineFailedError, "RuntimeError: two lines; ask again"),
        (LogitsError("as it is"), LogitsError, "^as it is$"),
    ],
)
def test_what_breaks_a_step_fails_all_in_flight_once_and_the_engine_goes_on(
    new: New, stories: ModelSession, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: Any, hint: str
) -> None:
    engine = new(2)
    request = generation(max_new_tokens=10, n=2)
    expected = alone(stories, request)

    def fail(*_: Any, **__: Any) -> StepOutput:
        raise error

    with Held.on(engine) as held, monkeypatch.context() as patch:
        running, queued = submitted(engine, request), submitted(engine, generation(LONG, 2))
        patch.setattr(stories, "decode", fail)
        held._let_go.set()
        for recorder in (held, running, queued):
            with pytest.raises(kind, match=hint):
                recorder.result()
    assert engine.failures == 1
    for candidate, each in submitted(engine, request).result().items():
        each.assert_same(expected[candidate])
    assert engine.failures == 1


# -- memory ----------------------------------------------------------------------------------------------------------


def memory_for(session: ModelSession, rows: int, tokens: int, prompts: int = 1) -> int:
    """Bytes that so many rows take, beside prompts of up to 64 tokens."""
    parts = session.request_bytes(rows, 0, tokens, layers=len(session.layers))
    return sum(parts) + WORKING_BYTES + prompts * 64 * session.kv_bytes_per_token


def test_requests_wait_where_memory_is_short(new: New, stories: ModelSession) -> None:
    requests = [generation(n=2, max_new_tokens=100, seed=seed) for seed in range(3)]
    for kv_memory, most in ((None, 6), (memory_for(stories, 2, 105), 2)):
        engine = new(8, kv_memory=kv_memory)
        with Held.on(engine) as held:
            found = [submitted(engine, request) for request in requests]
            held.ticket.cancel()
        for recorder, request in zip(found, requests, strict=True):
            written = recorder.result()
            for candidate, each in alone(stories, request).items():
                each.assert_same(written[candidate])
        assert max(rows for recorder in found for rows in recorder.batch_rows) == most


def test_a_long_request_waits_instead_of_widening_many_short_ones(new: New, stories: ModelSession) -> None:
    engine = new(8, kv_memory=memory_for(stories, 2, 405))
    log: list[str] = []
    with Held.on(engine) as held:
        brief = submitted(engine, generation(n=4, max_new_tokens=20))
        long = submitted(engine, generation(n=1, max_new_tokens=400), begins=lambda _: log.append(str(brief.ends)))
        held.ticket.cancel()
    assert len(brief.result()) == 4
    assert len(long.result()[0].token_ids) == 400
    assert log == ["1"]
    assert max(brief.batch_rows[1:]) == 4


def test_a_request_that_never_fits_is_told_the_numbers_and_the_others_go_on(new: New, stories: ModelSession) -> None:
    engine = new(8, kv_memory=memory_for(stories, 2, 105))
    with Held.on(engine) as held:
        never = submitted(engine, generation(LONG, 1, max_new_tokens=300))
        fits = submitted(engine, generation(n=2, max_new_tokens=50))
        kept = submitted(engine, generation(n=8, max_new_tokens=50, kept_rows=8))
        held.ticket.cancel()
    with pytest.raises(MemoryLimitError, match=r"1 row of 500 tokens \(keys and values .* MiB are free; ask for fewer"):
        never.result()
    with pytest.raises(MemoryLimitError, match=r"8 rows of 55 tokens"):
        kept.result()
    assert len(fits.result()) == 2
    assert engine.failures == 0


def test_memory_is_given_back_when_nothing_is_at_work(new: New) -> None:
    engine = new(8)
    held_bytes: list[int] = []
    recorder = submitted(engine, generation(n=8, max_new_tokens=50), lambda _: held_bytes.append(engine.kv_nbytes))
    recorder.result()
    engine.close()
    assert min(held_bytes) > 0
    assert engine.kv_nbytes == 0


# -- the thread ------------------------------------------------------------------------------------------------------


def test_there_is_no_thread_before_there_is_work_and_none_after_it(new: New) -> None:
    before = set(threading.enumerate())
    engine = new()
    assert set(threading.enumerate()) <= before
    threads = []
    for _ in range(2):  # it starts again
        recorder = submitted(engine, short())
        recorder.result()
        assert recorder.thread is not None
        threads.append(recorder.thread)
        recorder.thread.join(WAIT_S)
        assert recorder.thread not in threading.enumerate()
    assert threads[0] is not threads[1]
    assert engine.is_idle


def test_there_is_one_thread_whoever_submits(new: New) -> None:
    engine = new()
    found: list[Recorder] = []
    with Held.on(engine) as held:
        callers = [threading.Thread(target=lambda: found.append(submitted(engine, short()))) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    for recorder in found:
        assert len(recorder.result()) == 1
    held.ticket.cancel()
    assert {recorder.thread for recorder in found} == {held.thread}
    assert len(found) == 8


def test_closing_fails_what_is_in_flight_and_leaves_no_thread(new: New) -> None:
    engine = new(1)
    with Held.on(engine) as held:
        queued, read = submitted(engine, generation()), submitted(engine, reading(PROMPT, [[5]]))
    engine.close()
    for recorder in (held, queued, read):
        assert recorder.ended.is_set()
        with pytest.raises(EngineClosedError):
            recorder.result()
    assert held.thread is not None
    assert not held.thread.is_alive()
    with pytest.raises(EngineClosedError):
        engine.submit(short(), Recorder())
    engine.close()


def test_an_engine_that_was_never_asked_closes_without_a_thread(new: New) -> None:
    before = set(threading.enumerate())
    engine = new()
    engine.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(EngineClosedError):
        engine.submit(short(), Recorder())


def test_the_memory_is_looked_up_when_what_is_known_is_old(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every step: asking the system takes longer than deciding."""
    looked: list[float] = []
    now = [100.0]
    monkeypatch.setattr("swift_edge.engine.ledger.available_memory", lambda: looked.append(now[0]) or 2**33)
    monkeypatch.setattr("swift_edge.engine.ledger.time", SimpleNamespace(monotonic=lambda: now[0]))
    engine = new(4)
    for when in (100.0, 101.0):
        now[0] = when
        for seed in range(5):
            submitted(engine, generation(n=2, max_new_tokens=9, seed=seed)).result()
    assert looked == [100.0, 101.0]
