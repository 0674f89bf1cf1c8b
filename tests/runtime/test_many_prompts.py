"""Many prompts that come late, fail, or are left: none of them takes another along, and nothing waits for ever."""

import gc
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from picks import PATIENCE_S, STORIES, bits

from swift_edge import FailedPick, Selection, Selector
from swift_edge.errors import EmptyPromptError, RequestCancelledError

PROMPTS = ("Once upon a time", "The dog", "Lily and Tom went", "One day, a girl saw", "He was")
OPTIONS: dict[str, Any] = {"n": 3, "max_new_tokens": 30, "seed": 4}


@pytest.fixture(scope="module")
def selector() -> Iterator[Selector]:
    with Selector(STORIES, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(selector: Selector) -> list[dict[str, Any]]:
    return [bits(selector.pick(prompt, **OPTIONS)) for prompt in PROMPTS]


class Judge:
    """Another judge, who cannot bear some texts."""

    def __init__(self, unbearable: str) -> None:
        self.unbearable = unbearable

    def __call__(self, texts: Sequence[str]) -> list[float]:
        if self.unbearable in texts:
            raise ZeroDivisionError("unbearable")
        return [0.0] * len(texts)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_prompt_may_wait_for_the_result_of_the_one_before(
    selector: Selector, alone: list[dict[str, Any]], in_order: bool
) -> None:
    answered = threading.Semaphore(0)

    def prompts() -> Iterator[str]:
        for prompt in PROMPTS:
            yield prompt
            assert answered.acquire(timeout=PATIENCE_S)

    for place, picked in enumerate(selector.pick_many(prompts(), in_order=in_order, **OPTIONS)):
        assert picked.prompt_index == place
        assert bits(picked) == alone[place]
        answered.release()
    assert place == len(PROMPTS) - 1


@pytest.mark.parametrize("in_order", [False, True])
def test_the_error_of_a_prompt_is_given_in_its_place(
    selector: Selector, alone: list[dict[str, Any]], in_order: bool
) -> None:
    prompts = [PROMPTS[0], "", PROMPTS[2], PROMPTS[3], ""]
    answers = list(selector.pick_many(prompts, in_order=in_order, on_error="yield", **OPTIONS))
    if in_order:
        assert [answer.prompt_index for answer in answers] == [0, 1, 2, 3, 4]
    by_place = {answer.prompt_index: answer for answer in answers}
    assert len(by_place) == len(answers) == 5
    for place, answer in by_place.items():
        if prompts[place]:
            assert isinstance(answer, Selection)
            assert bits(answer) == alone[place]
        else:
            assert isinstance(answer, FailedPick)
            assert isinstance(answer.error, EmptyPromptError)


def test_what_is_under_way_is_given_before_the_error_of_a_prompt(
    selector: Selector, alone: list[dict[str, Any]]
) -> None:
    picks = selector.pick_many([PROMPTS[0], PROMPTS[1], "", PROMPTS[3]], **OPTIONS)
    given = [next(picks), next(picks)]
    with pytest.raises(EmptyPromptError):
        next(picks)
    assert list(picks) == []
    assert sorted(picked.prompt_index for picked in given) == [0, 1]
    assert all(bits(picked) == alone[picked.prompt_index] for picked in given)


@pytest.mark.parametrize("on_error", ["yield", "raise"])
def test_the_error_of_a_judge_is_that_of_one_prompt(
    selector: Selector, alone: list[dict[str, Any]], on_error: Any
) -> None:
    judge = Judge(alone[1]["candidates"][0]["text"])
    picks = selector.pick_many(PROMPTS, on_error=on_error, external=judge, in_order=True, **OPTIONS)
    if on_error == "raise":
        assert next(picks).prompt_index == 0
        with pytest.raises(ZeroDivisionError, match="unbearable"):
            next(picks)
        return
    answers = list(picks)
    assert [type(answer) for answer in answers] == [Selection, FailedPick, Selection, Selection, Selection]
    failed = answers[1]
    assert isinstance(failed, FailedPick)
    assert (failed.prompt_index, type(failed.error)) == (1, ZeroDivisionError)


@pytest.mark.parametrize("on_error", ["yield", "raise"])
def test_the_error_of_the_prompts_themselves_comes_after_those_before(
    selector: Selector, alone: list[dict[str, Any]], on_error: Any
) -> None:
    for error in (ZeroDivisionError("no more"), SystemExit(3)):

        def prompts(error: BaseException = error) -> Iterator[str]:
            yield from PROMPTS[:2]
            raise error

        picked: list[Any] = []
        with pytest.raises(type(error)) as raised:
            picked.extend(selector.pick_many(prompts(), on_error=on_error, **OPTIONS))
        assert raised.value is error
        assert sorted(each.prompt_index for each in picked) == [0, 1]


def test_what_the_caller_throws_is_not_taken_for_the_error_of_a_prompt(selector: Selector) -> None:
    picks: Any = selector.pick_many(PROMPTS, on_error="yield", **OPTIONS)
    next(picks)
    with pytest.raises(RequestCancelledError):
        picks.throw(RequestCancelledError())


@pytest.mark.parametrize("in_order", [False, True])
def test_leaving_early_cancels_what_is_under_way(
    selector: Selector, alone: list[dict[str, Any]], in_order: bool
) -> None:
    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield PROMPTS[taken % len(PROMPTS)]

    before = set(threading.enumerate())
    picks: Any = selector.pick_many(prompts(), in_order=in_order, **OPTIONS)
    next(picks)
    picks.close()
    # The engine obeys before it takes in what comes later: that has it to itself.
    assert bits(selector.pick(PROMPTS[1], **OPTIONS)) == alone[1]
    assert selector.engine.live_rows == 0
    for thread in set(threading.enumerate()) - before:
        if thread.name == "swift-edge prompts":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_many_that_are_never_begun_take_no_thread(selector: Selector) -> None:
    before = set(threading.enumerate())
    picks = selector.pick_many(iter(PROMPTS), **OPTIONS)
    assert not {thread.name for thread in set(threading.enumerate()) - before}
    del picks
    gc.collect()
