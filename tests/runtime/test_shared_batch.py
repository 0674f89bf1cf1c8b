"""One batch for everybody: what a request comes to does not depend on what decodes beside it, bit for bit."""

import importlib.metadata
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from picks import INT8_KEYS_AND_VALUES, PATIENCE_S, SMALL_STEPS, STORIES, bits

from swift_edge import Selection, Selector
from swift_edge.errors import RequestCancelledError

THREADS = 3
# Which request is where when another one comes is up to the threads: an example does not become smaller by trying.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
QUESTIONS = (
    "Mira has 12 turtles. Mira has 5 turtles more than Jonas. What number of turtles does Jonas have?",
    "One day Theo owns 29 carrots. Theo has 4 carrots more than Odette. What number of carrots does Odette have?",
    "Why?",
)
OPENINGS = ("Once upon a time", "Lily saw a dog", "Tom was sad because his mom said no", "One day, " * 50)


@dataclass(frozen=True)
class Asked:
    """A request: who asks, for what, and when it is cancelled."""

    prompt: str
    options: dict[str, Any]
    thread: int
    watched: bool
    leaves_after: int | None
    """Events after which it is cancelled; None lets it go on to its end."""


@st.composite
def ways_to_write(draw: st.DrawFn, most_tokens: int) -> dict[str, Any]:
    """How candidates are drawn, and where they end."""
    options: dict[str, Any] = {
        "max_new_tokens": draw(st.integers(1, most_tokens)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "top_p": draw(st.sampled_from([None, 0.5, 0.9, 1.0])),
        "top_k": draw(st.sampled_from([None, 0, 1, 20])),
        "min_p": draw(st.sampled_from([None, 0.05, 0.5])),
        "repetition_penalty": draw(st.sampled_from([None, 1.0, 1.3, 20.0])),
        "stop": draw(st.sampled_from([(), ".", ("the", "a b"), ("so: 1", "e")])),
        "raw": draw(st.booleans()),
    }
    if draw(st.integers(0, 4)) == 0:
        return options | {"n": 1, "temperature": 0.0}
    return options | {"temperature": draw(st.sampled_from([None, 0.3, 1.0, 3.0])), "n": draw(st.integers(1, 9))}


@st.composite
def requests(
    draw: st.DrawFn,
    prompts: tuple[str, ...],
    *,
    calibrated: bool,
    signals: tuple[str | None, ...],
    most_tokens: int = 40,
) -> Asked:
    """A request that is not refused."""
    options = draw(ways_to_write(most_tokens))
    options["signal"] = draw(st.sampled_from(signals))
    options["task"] = draw(st.sampled_from([None, _last_word]))
    if options["n"] > 1 and draw(st.booleans()):
        options |= {"n": "auto", "max_n": draw(st.integers(1, 9))}
        options["min_confidence"] = draw(st.sampled_from([None, 0.6])) if calibrated and not options["signal"] else None
    schedules = [None, "off", {2: 3, 5: 1}, {8: 2}, {1: 1}]
    if calibrated and options["signal"] is None:
        schedules.append("auto")
    options["prune"] = draw(st.sampled_from(schedules))
    options["budget_tokens"] = draw(st.sampled_from([None, None, 1, 30, 100]))
    watched, leaves_after = draw(st.booleans()), draw(st.one_of(st.none(), st.none(), st.integers(0, 60)))
    return Asked(draw(st.sampled_from(prompts)), options, draw(st.integers(0, THREADS - 1)), watched, leaves_after)


def _last_word(text: str) -> str | None:
    return text.split()[-1] if text.split() else None


def together(selector: Selector, asked: list[Asked]) -> list[Selection | None]:
    """What each request comes to when all of them are under way at once; None for one that was cancelled in time."""
    came: list[Selection | None] = [None] * len(asked)
    errors: list[BaseException] = []
    ready = threading.Barrier(THREADS)

    def ask(thread: int) -> None:
        try:
            ready.wait()
            own = [(place, each) for place, each in enumerate(asked) if each.thread == thread]
            handles = [
                (place, each, selector.submit(each.prompt, watched=each.watched, **each.options)) for place, each in own
            ]
            for _, each, handle in handles:
                if each.leaves_after is not None:
                    if each.watched:
                        for _ in zip(range(each.leaves_after), handle, strict=False):
                            pass
                    handle.cancel()
            for place, each, handle in handles:
                try:
                    came[place] = handle.result(PATIENCE_S)
                except RequestCancelledError:
                    assert each.leaves_after is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if errors:
        raise errors[0]
    return came


def compare(shared: Selector, path: Any, head: Any, asked: list[Asked]) -> None:
    """Everything that came of requests at once is what comes of them one by one, each with all for itself."""
    for picked, each in zip(together(shared, asked), asked, strict=True):
        if picked is None:
            continue
        note(f"{each}")
        with Selector(path, head=head, threads=1) as fresh:
            alone = fresh.pick(each.prompt, **each.options)
        assert bits(picked) == bits(alone)
    assert shared.engine.live_rows == 0


@pytest.fixture(scope="module")
def small_steps() -> Iterator[Selector]:
    """Rows of int8, and a head that is calibrated."""
    with Selector(SMALL_STEPS, threads=1) as selector:
        yield selector


@pytest.fixture(scope="module")
def stories(stories_head: Any) -> Iterator[Selector]:
    """Rows of float32, and a head that is not."""
    with Selector(STORIES, head=stories_head, threads=1) as selector:
        yield selector


@pytest.fixture(scope="module")
def int8_keys_and_values() -> Iterator[Selector]:
    """Keys and values of int8, and no head."""
    if tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2])) < (1, 28):
        pytest.skip("onnxruntime does not run keys and values in int8 before 1.28")
    with Selector(INT8_KEYS_AND_VALUES, threads=1) as selector:
        yield selector


@pytest.mark.slow
@settings(phases=PHASES, print_blob=True)
@given(st.lists(requests(QUESTIONS, calibrated=True, signals=(None, None, "self_certainty")), min_size=3, max_size=9))
def test_requests_at_once_come_to_what_they_come_to_alone(small_steps: Selector, asked: list[Asked]) -> None:
    compare(small_steps, SMALL_STEPS, None, asked)


@pytest.mark.slow
@settings(phases=PHASES, print_blob=True)
@given(st.lists(requests(OPENINGS, calibrated=False, signals=(None, None, "self_certainty")), min_size=3, max_size=9))
def test_so_they_do_in_float32(stories: Selector, stories_head: Any, asked: list[Asked]) -> None:
    compare(stories, STORIES, stories_head, asked)


@pytest.mark.slow
@settings(phases=PHASES, print_blob=True)
@given(
    st.lists(
        requests(OPENINGS[:3], calibrated=False, signals=("mean_logprob", "self_certainty"), most_tokens=80),
        min_size=3,
        max_size=9,
    )
)
def test_so_they_do_with_keys_and_values_of_int8(int8_keys_and_values: Selector, asked: list[Asked]) -> None:
    compare(int8_keys_and_values, INT8_KEYS_AND_VALUES, None, asked)
