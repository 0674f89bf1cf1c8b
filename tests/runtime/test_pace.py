"""Rows and drops by the pace of the machine: what pays by hand, what is kept of a measurement, and what picks do."""

import dataclasses
import json
import math
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine_requests import Held

from swift_edge import Selector
from swift_edge.engine import Engine, KVCache, ModelSession, StepOutput
from swift_edge.errors import BusyEngineError, DeviceMemoryError, RequestCancelledError
from swift_edge.options import PickOptions, SamplingOptions
from swift_edge.scoring import Scorer
from swift_edge.selection import Decision, Plan
from swift_edge.selection.adaptive import pace, step_times
from swift_edge.selection.adaptive.step_times import StepTimes, timed_steps
from swift_edge.selection.planning import Planner

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
MODEL = ROOT / "models" / "small-steps"
QUESTION = "Iris has 31 shells. Iris gives away 4 shells and finds 12 shells. How many shells does Iris have?"
FLAT = {1: 1.0, 4: 1.0, 8: 1.0, 16: 1.05}
SCORER = Scorer(None, "mean_logprob")
STEEP = {1: 1.0, 4: 4.0, 8: 8.0, 16: 16.0}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWIFT_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], list[int]]:
    """Let a machine have the pace that is told; gives a list that grows with every measurement."""
    calls: list[int] = []

    def call(seconds: dict[int, float]) -> list[int]:
        def times(*_: object, **__: object) -> dict[int, list[list[float]]]:
            calls.append(len(calls))
            # One hiccup in each round.
            return {rows: [[9 * taken, taken], [taken, 9 * taken]] for rows, taken in seconds.items()}

        monkeypatch.setattr(pace, "timed_steps", times)
        return calls

    return call


def plan_of(opened: Planner, n: int | str = "auto", **given: object) -> Plan:
    asked = PickOptions.of(None, {"n": n, **given})
    return opened.pace.applied(Plan.of(asked, Decision.of(opened.head, asked)))


def opened(path: Path = MODEL, threads: int = 1) -> Planner:
    return Planner.open(str(path), threads=threads)


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        (FLAT, 16),
        (STEEP, 4),
        ({1: 1.0, 4: 2.0, 8: 2.5, 16: 5.0}, 8),
        ({1: 1.0, 4: 2.0, 8: 2.6, 16: 5.0}, 4),
        ({1: 1.0, 4: 2.0, 8: 2.6, 16: 2.1}, 4),  # a hiccup
    ],
)
def test_rows_that_pay(seconds: dict[int, float], rows: int) -> None:
    assert StepTimes(seconds).rows_that_pay(4, 16) == rows


def test_rows_that_pay_stay_within_what_was_asked_and_measured() -> None:
    assert StepTimes(FLAT).rows_that_pay(4, 40) == 16
    assert StepTimes(FLAT).rows_that_pay(2, 2) == 2
    assert StepTimes({1: 1.0}).rows_that_pay(4, 16) == 4


def test_rows_that_are_free() -> None:
    assert StepTimes({1: 1.0, 4: 1.3, 8: 1.3, 16: 1.05}).free_rows == 1  # a hiccup
    assert StepTimes(FLAT).free_rows == 16
    assert StepTimes(STEEP).free_rows == 1
    assert StepTimes({1: 1.0, 4: 1.1, 8: 1.2}).free_rows == 4


def test_every_step_that_is_timed_runs_the_graph_and_the_prompt_is_read_once(
    stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step was timed as well, which feeds nothing where no head reads: the shortest of all."""
    decoded, prefilled = [], []
    decode, prefill = ModelSession.decode, ModelSession.prefill

    def watched(self: ModelSession, cache: KVCache, *arguments: Any, **options: Any) -> StepOutput:
        decoded.append(cache.rows)
        return decode(self, cache, *arguments, **options)

    monkeypatch.setattr(ModelSession, "decode", watched)
    monkeypatch.setattr(ModelSession, "prefill", lambda self, *a, **b: prefilled.append(1) or prefill(self, *a, **b))
    engine = Engine(stories, rows=8, chunk=8)
    timed = timed_steps(engine, SCORER, SamplingOptions(), (4, 1), new_tokens=3, rounds=2)
    assert {rows: [len(steps) for steps in rounds] for rows, rounds in timed.items()} == {1: [3, 3], 4: [3, 3]}
    assert sorted(decoded) == [1] * 6 + [4] * 6
    assert len(prefilled) == 6  # 48 tokens in chunks of 8
    engine.close()
    assert engine.kv_nbytes == 0


def test_steps_are_not_timed_beside_the_work_of_others(stories: ModelSession) -> None:
    engine = Engine(stories, rows=8)
    held = Held.on(engine, 2)
    with held:
        pass
    with pytest.raises(BusyEngineError, match="other requests were at work"):
        timed_steps(engine, SCORER, SamplingOptions(), (4, 1), new_tokens=3, rounds=2)
    held.ticket.cancel()
    with pytest.raises(RequestCancelledError):
        held.result()
    timed_steps(engine, SCORER, SamplingOptions(), (4, 1), new_tokens=3, rounds=2)
    engine.close()


def test_nothing_is_measured_while_the_engine_is_at_work(
    cache: Path, measured: Callable[[dict[int, float]], list[int]]
) -> None:
    calls = measured(FLAT)
    given = opened(STORIES)
    with Held.on(given.model.engine) as held:
        for _ in range(2 * pace.MOST_TRIES):
            assert plan_of(given).rows == 4
        assert not given.pace.is_settled
        held.ticket.cancel()
    given.model.engine.close()
    assert not calls
    assert plan_of(given).rows == 16
    assert len(calls) == 1


def test_a_measurement_that_others_come_into_is_not_kept_and_no_reason_not_to_pick(
    cache: Path, measured: Callable[[dict[int, float]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise BusyEngineError

    given = opened()
    with monkeypatch.context() as patch:
        patch.setattr(pace, "timed_steps", busy)
        assert plan_of(given).rows == 4
    assert not (cache / "pace").exists()
    assert not given.pace.is_settled
    measured(FLAT)
    assert plan_of(given).rows == 16


@pytest.mark.parametrize("noisy", pace.PACE_ROWS)
def test_a_measurement_whose_rounds_differ_is_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, noisy: int
) -> None:
    """What was measured beside other programs was taken for the machine's pace, for good."""
    tries: list[float] = []

    def times(*_: object, **__: object) -> dict[int, list[list[float]]]:
        tries.append(step_times.NOISE * 1.01 if len(tries) == 0 else step_times.NOISE * 0.99)
        return {
            rows: [[taken, 3 * taken], [taken * (tries[-1] if rows == noisy else 1), 9 * taken], [7 * taken, 8 * taken]]
            for rows, taken in FLAT.items()
        }

    monkeypatch.setattr(pace, "timed_steps", times)
    given = opened()
    assert plan_of(given).rows == 4
    assert not (cache / "pace").exists()
    assert not given.pace.is_settled
    assert plan_of(given).rows == 16
    assert given.pace.is_settled
    assert len(tries) == 2


def test_a_machine_that_is_always_busy_is_given_up_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def times(*_: object, **__: object) -> dict[int, list[list[float]]]:
        calls.append(1)
        return {rows: [[taken], [2 * taken], [3 * taken]] for rows, taken in FLAT.items()}

    monkeypatch.setattr(pace, "timed_steps", times)
    given = opened()
    for number in range(2 * pace.MOST_TRIES):
        assert given.pace.is_settled == (number >= pace.MOST_TRIES)
        assert plan_of(given).rows == 4
    assert len(calls) == pace.MOST_TRIES
    assert not (cache / "pace").exists()


def test_what_was_measured_once_is_known_to_the_next_start(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "NOISE", math.inf)  # the machine that runs the tests may be busy
    first = opened(STORIES)
    plan = plan_of(first)
    assert first.pace.is_settled
    (record,) = (cache / "pace").glob("*.json")
    document = json.loads(record.read_bytes())
    assert list(document["seconds"]) == ["1", "4", "8", "16"]
    assert all(seconds > 0 for seconds in document["seconds"].values())
    monkeypatch.setattr(pace, "timed_steps", lambda *_, **__: pytest.fail("measured again"))
    assert plan_of(first) == plan_of(opened(STORIES)) == plan
    assert str(STORIES) not in record.read_text()


def test_another_number_of_threads_or_another_model_is_measured_for_itself(
    cache: Path, measured: Callable[[dict[int, float]], list[int]], tmp_path: Path
) -> None:
    calls = measured(FLAT)
    copy = Path(shutil.copytree(STORIES, tmp_path / "copy"))
    for given in (opened(STORIES), opened(STORIES, threads=2), opened(copy), opened(copy)):
        assert plan_of(given).rows == 16
    assert len(calls) == 3
    assert len(list((cache / "pace").glob("*.json"))) == 3


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b'{"version": 0}',
        lambda document: document | {"onnxruntime": "0.1"},
        lambda document: document | {"files": {}},
        lambda document: document | {"seconds": {}},
        lambda document: document | {"seconds": {"1": "fast"}},
        lambda document: document | {"seconds": document["seconds"] | {"1": 0.0}},
        lambda document: document | {"seconds": document["seconds"] | {"1": "1.0"}},
        lambda document: document | {"seconds": {"1": 1.0}},
        lambda document: document | {"seconds": [1.0]},
    ],
)
def test_a_record_of_other_conditions_or_a_damaged_one_is_made_anew(
    cache: Path, measured: Callable[[dict[int, float]], list[int]], damage: object
) -> None:
    calls = measured(STEEP)
    plan_of(opened())
    (record,) = (cache / "pace").glob("*.json")
    whole = record.read_bytes()
    record.write_bytes(damage if isinstance(damage, bytes) else json.dumps(damage(json.loads(whole))).encode())  # type: ignore[operator]
    assert plan_of(opened()).rows == 4
    assert len(calls) == 2
    assert record.read_bytes() == whole


def test_what_cannot_be_kept_decides_nothing(
    cache: Path, measured: Callable[[dict[int, float]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(FLAT)
    cache.write_bytes(b"a file")
    given = opened()
    assert {plan_of(given).rows for _ in range(2 * pace.MOST_TRIES)} == {4}
    assert len(calls) == pace.MOST_TRIES  # not at every pick
    monkeypatch.setenv("SWIFT_EDGE_CACHE", "off")
    assert plan_of(opened()).rows == 4
    assert len(calls) == pace.MOST_TRIES


def test_a_pick_that_has_a_time_to_keep_does_not_measure_but_goes_by_what_is_known(
    cache: Path, measured: Callable[[dict[int, float]], list[int]]
) -> None:
    calls = measured(FLAT)
    given = opened()
    assert plan_of(given, budget_seconds=1.0).rows == 4
    assert not calls
    assert plan_of(given).rows == 16
    assert plan_of(given, budget_seconds=1.0).rows == 16
    assert len(calls) == 1


def test_a_pick_that_has_a_time_to_keep_does_not_wait_for_another_thread(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring, may_end = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> dict[int, list[list[float]]]:
        measuring.set()
        assert may_end.wait(60)
        return {rows: [[taken], [taken]] for rows, taken in FLAT.items()}

    monkeypatch.setattr(pace, "timed_steps", slow)
    given = opened()
    with ThreadPoolExecutor(1) as beside:
        first = beside.submit(plan_of, given)
        assert measuring.wait(60)
        assert plan_of(given, budget_seconds=1.0).rows == 4
        may_end.set()
        assert first.result().rows == 16
    assert plan_of(given, budget_seconds=1.0).rows == 16


def test_a_measurement_that_fails_is_no_reason_not_to_pick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*_: object, **__: object) -> None:
        calls.append(1)
        raise DeviceMemoryError("cuda", None, "out of memory")

    monkeypatch.setattr(pace, "timed_steps", fail)
    given = opened()
    assert {plan_of(given).rows for _ in range(2 * pace.MOST_TRIES)} == {4}
    assert len(calls) == pace.MOST_TRIES
    assert not (cache / "pace").exists()


def test_where_memory_is_short_nothing_is_measured_that_would_stay(
    cache: Path, measured: Callable[[dict[int, float]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(FLAT)
    with monkeypatch.context() as patch:
        patch.setattr(ModelSession, "fitting_rows", lambda *_, **__: 8)
        assert plan_of(opened()).rows == 4
    assert not calls
    assert plan_of(opened()).rows == 16


def test_the_head_that_comes_first_does_not_decide_for_others(
    cache: Path, measured: Callable[[dict[int, float]], list[int]]
) -> None:
    calls = measured(FLAT)
    bare = dataclasses.replace(opened(), head=None)
    assert plan_of(bare).rows == plan_of(opened()).rows == 16
    assert len(calls) == 1


def test_a_long_prompt_is_read_by_as_many_rows_as_were_asked_for(
    cache: Path, measured: Callable[[dict[int, float]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(FLAT)
    selector = Selector(MODEL)
    assert selector.pick(QUESTION, n="auto", max_new_tokens=4).rows == 16
    monkeypatch.setattr("swift_edge.selection.pick.LONG_PROMPT", 8)
    assert selector.pick(QUESTION, n="auto", max_new_tokens=4).rows == 4


def test_what_it_took_to_measure_is_told_as_loading(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "NOISE", math.inf)
    selector = Selector(STORIES)
    selector.pick("Once", n=1, max_new_tokens=1)
    assert selector.pick("Once", n=4, max_new_tokens=1).timings.load_s == 0
    assert selector.pick("Once", n="auto", max_new_tokens=1).timings.load_s > 0
    assert selector.pick("Once", n="auto", max_new_tokens=1).timings.load_s == 0


def test_plans_whose_rows_are_told_are_left_as_they_are(
    cache: Path, measured: Callable[[dict[int, float]], list[int]]
) -> None:
    calls = measured(FLAT)
    for plan in ({"n": 8}, {"n": 8, "prune": {16: 4}}, {"n": 8, "prune": "auto", "budget_tokens": 100}):
        paced = plan_of(opened(), **plan)  # type: ignore[arg-type]
        assert (paced.rows, paced.free_rows) == (8, 0)
    # Many that begin together spend what there is on candidates that are never written to their ends.
    assert plan_of(opened(), budget_tokens=100).rows == 4
    assert not calls


def test_where_rows_cost_nothing_all_begin_together_and_none_is_dropped_for_being_weak(
    cache: Path, measured: Callable[[dict[int, float]], list[int]]
) -> None:
    measured(STEEP)
    slow = Selector(MODEL).pick(QUESTION, n="auto", max_new_tokens=96)
    assert slow.rows == 4
    assert slow.to_dict()["rows"] == 4
    shutil.rmtree(cache)
    measured(FLAT)
    selector = Selector(MODEL)
    fast = selector.pick(QUESTION, n="auto", max_new_tokens=96)
    assert (fast.rows, len(fast.candidates)) == (16, 16)
    assert not any("log-odds" in str(each.dropped_because) for each in fast.candidates)
    for mine, theirs in zip(slow.candidates, fast.candidates, strict=False):
        shorter = min(mine.n_tokens, theirs.n_tokens)
        assert mine.token_ids[:shorter] == theirs.token_ids[:shorter]
    (together,) = selector.pick_many([QUESTION], n="auto", max_new_tokens=96)
    assert [each.token_ids for each in together.candidates] == [each.token_ids for each in fast.candidates]
    pruned = selector.pick(QUESTION, n=16, prune="auto", max_new_tokens=96)
    assert all(each.finish_reason == "stop" for each in pruned.candidates)
