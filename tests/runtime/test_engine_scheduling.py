"""One batch over many prompts: no candidate notices, no row waits, and no prompt holds up the others."""

import itertools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.engine import scheduler as batching
from swift_edge.engine.rows import DecodeLoop, Prefilled
from swift_edge.engine.scheduler import ContinuousBatch
from swift_edge.engine.session import ModelSession
from swift_edge.engine.step_memory import StepOutput
from swift_edge.options import SamplingOptions

SAMPLING = SamplingOptions(temperature=1.0, top_p=0.95)
EOS = {426, 432, 398}  # full stop, comma, and another: candidates end at many different steps
PROMPTS = ((1, 403, 407, 261, 378), (1, 410, 469, 347, 398, 432, 383, 286), (1, 338), tuple(range(1, 60)))


def new_batch(
    session: ModelSession, rows: int, max_new_tokens: int = 20, eos_ids: Collection[int] = EOS
) -> ContinuousBatch:
    return ContinuousBatch(session, DecodeLoop(session, SAMPLING, eos_ids, max_new_tokens), rows)


def alone(session: ModelSession, prompt: int, index: int) -> list[int]:
    loop = DecodeLoop(session, SAMPLING, EOS, 20)
    cache = session.new_cache(1, len(PROMPTS[prompt]))
    logits = session.prefill(cache, PROMPTS[prompt]).logits
    assert logits is not None
    loop.admit(Prefilled(cache, logits, np.array(PROMPTS[prompt])), {0: index}, seed=prompt)
    return [int(step.token_ids[0]) for step in loop.steps()]


@pytest.fixture(scope="module")
def expected(stories: ModelSession) -> dict[tuple[int, int], list[int]]:
    """Tokens of every prompt's first candidates, each decoded by itself."""
    return {(prompt, index): alone(stories, prompt, index) for prompt in range(len(PROMPTS)) for index in range(6)}


def submit(batch: ContinuousBatch, prompt: int, n: int) -> dict[int, tuple[int, int]]:
    """Submit a prompt; gives prompt and index of its candidates by number."""
    numbers = batch.submit(np.array(PROMPTS[prompt]), range(n), seed=prompt).numbers
    return {number: (prompt, index) for index, number in enumerate(numbers)}


@given(
    work=st.lists(st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(1, 6)), min_size=1, max_size=6),
    rows=st.integers(1, 9),
    chunk=st.sampled_from([7, 512]),
    every=st.integers(0, 3),
)
def test_a_candidate_is_what_it_is_alone_whoever_comes_and_goes(
    stories: ModelSession,
    expected: dict[tuple[int, int], list[int]],
    work: list[tuple[int, int]],
    rows: int,
    chunk: int,
    every: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "CHUNK_TOKENS", chunk)
        batch = new_batch(stories, rows)
        names: dict[int, tuple[int, int]] = {}
        written: dict[int, list[int]] = {}
        to_come = iter(work)

        def submit_next() -> None:
            for prompt, n in to_come:
                names.update(submit(batch, prompt, n))
                if every:  # one prompt after some steps; else all of them at once
                    return

        submit_next()
        for count, step in enumerate(batch.steps()):
            assert len(step.candidates) <= rows
            for number, token_id in zip(step.candidates, step.token_ids.tolist(), strict=True):
                written.setdefault(number, []).append(token_id)
            if every and count % every == 0:
                submit_next()
        assert {number: expected[names[number]] for number in written} == written
        assert len(written) == len(names) >= work[0][1]


def test_no_row_is_idle_while_candidates_wait(stories: ModelSession) -> None:
    batch = new_batch(stories, rows=8)
    to_come = iter([*range(len(PROMPTS))] * 6)
    waiting = total = 0

    def submit_wanted() -> int:
        submitted = 0
        while batch.wants_prompt and (prompt := next(to_come, None)) is not None:
            submitted += len(submit(batch, prompt, 3))
        return submitted

    waiting = total = submit_wanted()
    seen: set[int] = set()
    busy: list[int] = []
    for step in batch.steps():
        waiting -= len(set(step.candidates) - seen)
        seen |= set(step.candidates)
        if waiting:
            assert len(step.candidates) == 8
        busy.append(len(step.candidates))
        submitted = submit_wanted()
        waiting, total = waiting + submitted, total + submitted
    assert total == len(seen) == 3 * 6 * len(PROMPTS)
    assert busy.count(8) > len(busy) / 2


def test_a_long_prompt_is_read_in_chunks_between_the_steps_of_the_others(
    stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "CHUNK_TOKENS", 8)
    log: list[str] = []
    prefill = stories.prefill

    def logging(*arguments: Any, **options: Any) -> StepOutput:
        log.append("chunk")
        return prefill(*arguments, **options)

    monkeypatch.setattr(stories, "prefill", logging)
    batch = new_batch(stories, rows=4, eos_ids=())
    submit(batch, 0, 2)
    names = submit(batch, 3, 2)  # 59 tokens
    joined = None
    for step in batch.steps():
        log.append("step")
        if joined is None and names.keys() & set(step.candidates):
            joined = len(log)
    assert joined is not None
    # The first prompt is one chunk, the long one eight: it joins the step after its last.
    assert log[:joined] == ["chunk", "chunk", *["step", "chunk"] * 7, "step"]


def test_candidates_can_be_dropped_while_they_wait_and_while_they_are_written(
    stories: ModelSession, expected: dict[tuple[int, int], list[int]]
) -> None:
    batch = new_batch(stories, rows=2)
    names = submit(batch, 0, 6)
    batch.drop(3)
    written: dict[int, list[int]] = {}
    for step in batch.steps():
        for number, token_id in zip(step.candidates, step.token_ids.tolist(), strict=True):
            written.setdefault(number, []).append(token_id)
        batch.drop(0)
    assert written.pop(0) == expected[0, 0][:1]
    assert written == {number: expected[names[number]] for number in (1, 2, 4, 5)}


def test_rows_can_be_lowered_between_steps(stories: ModelSession) -> None:
    batch = new_batch(stories, rows=6, max_new_tokens=12)
    submit(batch, 0, 6)
    submit(batch, 2, 6)

    def widths() -> Iterator[int]:
        for step in batch.steps():
            batch.rows = 2
            yield len(step.candidates)

    found = list(widths())
    assert found[0] == 6
    assert all(later <= max(2, earlier) for earlier, later in itertools.pairwise(found))
    assert 2 in found


def test_nothing_submitted_is_nothing_done(stories: ModelSession) -> None:
    batch = new_batch(stories, rows=4)
    assert list(batch.steps()) == []
    batch.submit(np.array(PROMPTS[0]), range(0), seed=0)
    assert list(batch.steps()) == []


def test_candidates_with_rows_of_their_own_begin_together_even_where_a_later_prompt_leaves_less_room(
    stories: ModelSession,
) -> None:
    """As many as there was room for began at once, the others a step later: what is compared was not alike."""
    batch = new_batch(stories, 8, max_new_tokens=3, eos_ids=())
    first = batch.submit(np.array(PROMPTS[0]), range(6), seed=0, kept_rows=6)
    batch.rows = 4
    sizes = []
    for step in batch.steps():
        sizes.append(len(step.candidates))
        if len(sizes) == 3:
            batch.close(first)
    assert sizes == [6, 6, 6]
