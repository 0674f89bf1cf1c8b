"""The decode loop: every candidate is what it would be alone, and ends where and why it has to."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge.arrays import Ids
from swift_edge.engine.kv_cache import KVCache
from swift_edge.engine.rows import DecodeLoop, Finished, Prefilled, Step
from swift_edge.engine.sampling import SamplingOptions
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import token_statistics
from swift_edge.engine.step_memory import StepOutput

PROMPT = (1, 403, 407, 261, 378)  # "Once upon a time"
OTHER = (1, 410, 469, 347, 398, 432, 383, 286)
SAMPLING = SamplingOptions(temperature=1.0, top_p=0.95)


@dataclass
class Written:
    """What a loop gave for one candidate."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    hidden_states: list[NDArray[np.float32]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    finished: Finished | None = None


def prefilled(session: ModelSession, token_ids: Sequence[int]) -> Prefilled:
    cache = session.new_cache(1, len(token_ids))
    logits = session.prefill(cache, token_ids).logits
    assert logits is not None
    return Prefilled(cache, logits, np.array(token_ids))


def collect(steps: Iterable[Step]) -> dict[int, Written]:
    written: dict[int, Written] = {}
    for step in steps:
        for row, candidate in enumerate(step.candidates):
            into = written.setdefault(candidate, Written())
            assert into.finished is None
            into.token_ids.append(int(step.token_ids[row]))
            into.logprobs.append(float(step.statistics.logprob[row]))
            if step.hidden_states is not None and row < step.hidden_states.shape[1]:
                into.hidden_states.append(step.hidden_states[:, row].copy())
            if step.logits is not None and row < len(step.logits):
                into.logits.append(step.logits[row].copy())
        for end in step.finished:
            assert written[end.candidate].finished is None
            written[end.candidate].finished = end
    return written


def write(
    session: ModelSession,
    prompt: Sequence[int] = PROMPT,
    *,
    n: int = 4,
    max_new_tokens: int = 24,
    eos_ids: Collection[int] = (),
    seed: int = 0,
    sampling: SamplingOptions = SAMPLING,
    layers: tuple[int, ...] = (),
    keep_logits: bool = False,
) -> dict[int, Written]:
    loop = DecodeLoop(session, sampling, eos_ids, max_new_tokens, layers=layers, keep_logits=keep_logits)
    loop.admit(prefilled(session, prompt), {index: index for index in range(n)}, seed)
    return collect(loop.steps())


def texts(written: dict[int, Written]) -> list[list[int]]:
    return [written[candidate].token_ids for candidate in sorted(written)]


@pytest.mark.parametrize("n", [1, 4, 5])
def test_candidate_i_does_not_depend_on_n(stories: ModelSession, n: int) -> None:
    assert texts(write(stories, n=n)) == texts(write(stories, n=8))[:n]


def test_another_seed_gives_other_candidates(stories: ModelSession) -> None:
    assert texts(write(stories, seed=1)) != texts(write(stories, seed=2))


def test_first_tokens_are_drawn_per_candidate_not_once_for_all(stories: ModelSession) -> None:
    logits = prefilled(stories, [1]).logits[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    n = 64
    assert (probabilities**n).sum() < 1e-6  # how likely all of them agree by chance
    written = write(stories, [1], n=n, max_new_tokens=1, sampling=SamplingOptions())
    assert len({ids[0] for ids in texts(written)}) > 1


@given(seed=st.integers(0, 2**32), max_new_tokens=st.integers(1, 40))
def test_a_candidate_ends_at_its_first_eos_or_at_the_limit_and_says_which(
    stories: ModelSession, seed: int, max_new_tokens: int
) -> None:
    eos_ids = {426, 432, 398}  # full stop, comma, and another: they end candidates at many different steps
    free = write(stories, seed=seed, max_new_tokens=max_new_tokens)
    ended = write(stories, seed=seed, max_new_tokens=max_new_tokens, eos_ids=eos_ids, layers=(5,))
    for candidate, unbound in free.items():
        first = next((place for place, token in enumerate(unbound.token_ids) if token in eos_ids), None)
        expected = unbound.token_ids if first is None else unbound.token_ids[: first + 1]
        assert len(unbound.token_ids) == max_new_tokens
        assert unbound.finished == Finished(candidate, "length", 0)
        # Rows that left before it, and those that stayed longer, have changed nothing.
        assert ended[candidate].token_ids == expected
        assert ended[candidate].finished == Finished(candidate, "length" if first is None else "stop", 0)
        # Every token has been fed, the last one too.
        assert len(ended[candidate].hidden_states) == len(expected)


def test_states_and_logits_of_every_response_token_are_those_of_one_full_pass(stories: ModelSession) -> None:
    layers = stories.layers
    written = write(stories, eos_ids={426}, layers=layers, keep_logits=True, max_new_tokens=30)
    assert len({len(ids) for ids in texts(written)}) > 1
    for each in written.values():
        whole = [*PROMPT, *each.token_ids]
        full = stories.prefill(stories.new_cache(1, len(whole)), whole, logits="all", layers=layers)
        assert full.logits is not None
        assert full.hidden_states is not None
        found = np.stack(each.hidden_states, axis=1)  # [l, t, d]
        np.testing.assert_allclose(found, full.hidden_states[:, len(PROMPT) :], rtol=0, atol=2e-5)
        np.testing.assert_allclose(np.stack(each.logits), full.logits[len(PROMPT) :], rtol=0, atol=1e-4)
        before = full.logits[len(PROMPT) - 1 : -1]
        expected = token_statistics(before, np.array(each.token_ids)).logprob
        np.testing.assert_allclose(each.logprobs, expected, rtol=0, atol=1e-4)


def test_without_anything_to_read_the_last_token_is_not_fed(
    stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, reading = (write(stories, eos_ids={426}, layers=layers) for layers in ((), (5,)))
    assert texts(quiet) == texts(reading)
    assert [each.finished for each in quiet.values()] == [reading[candidate].finished for candidate in quiet]
    fed: list[int] = []
    decode = stories.decode

    def counting(cache: KVCache, token_ids: Ids, **options: Any) -> StepOutput:
        fed.append(len(token_ids))
        return decode(cache, token_ids, **options)

    monkeypatch.setattr(stories, "decode", counting)
    write(stories, n=3, max_new_tokens=3)
    assert fed == [3, 3]
    fed.clear()
    write(stories, n=3, max_new_tokens=3, layers=(5,))
    assert fed == [3, 3, 3]


def test_a_prompt_admitted_between_steps_changes_nothing_for_those_at_work(stories: ModelSession) -> None:
    layers = (0, 5)
    alone = write(stories, layers=layers, max_new_tokens=20, eos_ids={426})
    late = write(stories, OTHER, n=3, seed=9, layers=layers, max_new_tokens=20, eos_ids={426})
    loop = DecodeLoop(stories, SAMPLING, {426}, 20, layers=layers)
    loop.admit(prefilled(stories, PROMPT), {index: index for index in range(4)}, 0)

    def steps() -> Iterable[Step]:
        for count, step in enumerate(loop.steps()):
            yield step
            if count == 6:
                loop.admit(prefilled(stories, OTHER), {4: 0, 5: 1, 6: 2}, 9)

    together = collect(steps())
    assert texts(together) == texts(alone) + texts(late)
    for candidate, each in enumerate([*alone.values(), *late.values()]):
        np.testing.assert_allclose(together[candidate].hidden_states, each.hidden_states, rtol=0, atol=2e-5)


@given(dropped=st.sets(st.integers(0, 5), max_size=5), when=st.integers(0, 10))
def test_candidates_that_are_dropped_leave_the_others_as_they_were(
    stories: ModelSession, dropped: set[int], when: int
) -> None:
    kept = write(stories, n=6, max_new_tokens=14)
    loop = DecodeLoop(stories, SAMPLING, (), 14)
    loop.admit(prefilled(stories, PROMPT), {index: index for index in range(6)}, 0)

    def steps() -> Iterable[Step]:
        for count, step in enumerate(loop.steps()):
            yield step
            for candidate in dropped if count == when else ():
                loop.drop(candidate)

    written = collect(steps())
    for candidate, each in written.items():
        whole = kept[candidate].token_ids
        assert each.token_ids == (whole[: when + 1] if candidate in dropped else whole)
        assert (each.finished is None) == (candidate in dropped)


@pytest.mark.parametrize("layers", [(), (4,)])
@pytest.mark.parametrize(("prompt_tokens", "max_new_tokens"), [(6, 4), (6, 100), (9, 5), (8, 3)])
def test_a_full_context_ends_candidates_with_one_token_that_was_not_fed(
    addition: ModelSession, layers: tuple[int, ...], prompt_tokens: int, max_new_tokens: int
) -> None:
    written = write(addition, [3] * prompt_tokens, n=3, max_new_tokens=max_new_tokens, layers=layers)
    room = 9 - prompt_tokens
    for candidate, each in written.items():
        assert len(each.token_ids) == room + 1
        assert each.finished == Finished(candidate, "length", 1)
        assert len(each.hidden_states) == (room if layers else 0)


def test_a_context_that_is_just_long_enough_leaves_nothing_unscored(addition: ModelSession) -> None:
    for each in write(addition, [3] * 6, n=3, max_new_tokens=3, layers=(4,)).values():
        assert each.finished is not None
        assert each.finished.unscored_tokens == 0
        assert len(each.hidden_states) == len(each.token_ids) == 3


def test_the_repetition_penalty_sees_prompt_and_response(stories: ModelSession) -> None:
    sampling = SamplingOptions(temperature=0, repetition_penalty=1e3)
    (token_ids,) = texts(write(stories, n=1, sampling=sampling, max_new_tokens=20))
    assert len({*PROMPT, *token_ids}) == len(PROMPT) + 20
    (plain,) = texts(write(stories, n=1, sampling=SamplingOptions(temperature=0), max_new_tokens=60))
    assert len(set(plain)) < 60
