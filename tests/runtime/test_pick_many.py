"""Many prompts at once: each pick is the one that its prompt gets alone, and none is lost to another."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge import CandidateBegun, CandidateFinished, Selection, Selector
from swift_edge.errors import InvalidOptionError, PromptError
from swift_edge.scoring import Head

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
PROMPTS = ("Once upon a time", "The dog", "Lily and Tom went", "One day, a girl saw", "He was", "The sun", "A cat")
OPTIONS: dict[str, Any] = {"n": 3, "max_new_tokens": 60, "seed": 4, "stop": ["."]}


@pytest.fixture(scope="module")
def scoring(stories_head: Head) -> Selector:
    return Selector(STORIES, head=stories_head, threads=1)


@pytest.fixture(scope="module")
def alone(scoring: Selector) -> list[Selection]:
    """The pick of every prompt by itself."""
    return [scoring.pick(prompt, **OPTIONS) for prompt in PROMPTS]


def without_timings(selection: Selection) -> dict[str, Any]:
    document = selection.to_dict()
    del document["timings"], document["prompt_index"]
    return document


@pytest.mark.parametrize("rows", [1, 2, 5, 32])
@pytest.mark.parametrize("in_order", [False, True])
def test_pick_many_gives_what_pick_gives(alone: list[Selection], stories_head: Head, in_order: bool, rows: int) -> None:
    with Selector(STORIES, head=stories_head, threads=1, rows=rows) as selector:
        many = list(selector.pick_many(PROMPTS, **OPTIONS, in_order=in_order))
    assert sorted(picked.prompt_index for picked in many) == list(range(len(PROMPTS)))
    if in_order:
        assert [picked.prompt_index for picked in many] == list(range(len(PROMPTS)))
    for picked in many:
        expected = alone[picked.prompt_index]
        assert without_timings(picked) == without_timings(expected)
        for one, other in zip(picked.candidates, expected.candidates, strict=True):
            np.testing.assert_array_equal(one.gates, other.gates)
            np.testing.assert_array_equal(one.rewards, other.rewards)


def test_picks_come_when_they_are_done(scoring: Selector, alone: list[Selection]) -> None:
    steps = [max(candidate.n_tokens for candidate in picked.candidates) for picked in alone]
    assert steps != sorted(steps)
    come = [picked.prompt_index for picked in scoring.pick_many(PROMPTS, **OPTIONS)]
    assert come != list(range(len(PROMPTS)))


def test_more_candidates_than_rows_come_in_waves(scoring: Selector, stories_head: Head) -> None:
    whole = scoring.pick(PROMPTS[0], n=9, max_new_tokens=20)
    with Selector(STORIES, head=stories_head, threads=1, rows=4) as selector:
        events = list(selector.stream(PROMPTS[0], n=9, max_new_tokens=20))
        waves = selector.pick(PROMPTS[0], n=9, max_new_tokens=20)
    assert without_timings(waves) == without_timings(whole)
    begun = [place for place, event in enumerate(events) if isinstance(event, CandidateBegun)]
    ended = [place for place, event in enumerate(events) if isinstance(event, CandidateFinished)]
    assert begun[:4] == [0, 1, 2, 3]
    assert ended[0] < begun[4]


def test_prompts_are_taken_as_rows_become_free(scoring: Selector) -> None:
    taken: list[str] = []

    def prompts() -> Iterator[str]:
        for prompt in PROMPTS:
            taken.append(prompt)
            yield prompt

    # Two such picks are under way, and one prompt more is at hand when the first of them is done.
    picks = scoring.pick_many(prompts(), **OPTIONS | {"n": 32})
    assert not taken
    next(picks)
    assert 2 <= len(taken) <= 4 < len(PROMPTS)
    assert len(list(picks)) == len(PROMPTS) - 1


@pytest.mark.parametrize("in_order", [False, True])
def test_the_error_of_a_prompt_comes_after_the_picks_before_it(
    scoring: Selector, alone: list[Selection], in_order: bool
) -> None:
    picks = scoring.pick_many([*PROMPTS[:3], "", PROMPTS[4]], **OPTIONS, in_order=in_order)
    found: list[Selection] = []
    with pytest.raises(PromptError, match="empty"):
        found.extend(picks)  # one at a time: what came before the error is there
    assert {picked.prompt_index for picked in found} == {0, 1, 2}
    for picked in found:
        assert without_timings(picked) == without_timings(alone[picked.prompt_index])


def test_a_pick_that_is_given_up_leaves_the_selector_usable(scoring: Selector, alone: list[Selection]) -> None:
    picks = scoring.pick_many(PROMPTS, **OPTIONS)
    next(picks)
    del picks
    events = scoring.stream(PROMPTS[0], **OPTIONS)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert without_timings(scoring.pick(PROMPTS[1], **OPTIONS)) == without_timings(alone[1])


def test_threads_pick_at_once(scoring: Selector, alone: list[Selection]) -> None:
    found: dict[int, list[Selection]] = {}

    def pick(thread: int) -> None:
        found[thread] = list(scoring.pick_many(PROMPTS, **OPTIONS, in_order=True))

    threads = [threading.Thread(target=pick, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for picks in found.values():
        assert [*map(without_timings, picks)] == [*map(without_timings, alone)]
    assert len(found) == 3


def test_time_is_shared_out_to_the_picks(scoring: Selector) -> None:
    begun = time.perf_counter()
    picks = list(scoring.pick_many(PROMPTS, **OPTIONS))
    passed = time.perf_counter() - begun
    shares = 0.0
    for picked in picks:
        timings = picked.timings
        assert min(timings.prefill_s, timings.decode_s, timings.sample_s, timings.head_s) > 0
        shares += timings.prefill_s + timings.decode_s + timings.sample_s + timings.head_s
    # They ran side by side, and no second was given out twice.
    assert passed / 2 < shares < passed


@pytest.mark.parametrize("prompts", ["Once upon a time", {"role": "user", "content": "Hi"}, 5, None, np.array("Once")])
def test_prompts_have_to_be_a_list(scoring: Selector, prompts: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"prompts is .*; expected a list of prompts"):
        scoring.pick_many(prompts)
    assert list(scoring.pick_many([])) == []


@pytest.mark.parametrize("option", ["in_order", "on_error"])
@pytest.mark.parametrize("value", [None, 1, "maybe", np.array([1, 2])])
def test_how_prompts_are_answered_is_checked_before_the_first(scoring: Selector, option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(InvalidOptionError, match=f"{option} is .*; expected"):
        scoring.pick_many(PROMPTS, **options)


def test_tokens_that_wait_are_all_counted(scoring: Selector) -> None:
    # Without a stop string tokens gather, with one they are taken at once.
    options = OPTIONS | {"stop": []}
    for prompt in PROMPTS[:3]:
        for signal in (None, "self_certainty"):
            waiting = scoring.pick(prompt, **options, signal=signal)
            at_once = scoring.pick(prompt, **options | {"stop": ["no such text"]}, signal=signal)
            assert without_timings(waiting) == without_timings(at_once)
