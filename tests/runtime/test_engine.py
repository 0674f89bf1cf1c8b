"""What the engine writes: every candidate is what it would be alone, and ends where and why it has to."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_requests import OTHER, PROMPT, Recorder, Written, alone, generation, reading, submitted
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.arrays import Ids
from swift_edge.bundle import open_bundle
from swift_edge.engine import (
    Engine,
    Finished,
    Generation,
    KVCache,
    ModelSession,
    Orders,
    Reads,
    StateWeights,
    Step,
    StepOutput,
    token_statistics,
)
from swift_edge.errors import InvalidOptionError, PromptTooLongError
from swift_edge.options import SamplingOptions

ROOT = Path(__file__).parents[2]
SMALL_STEPS = ROOT / "models" / "small-steps"
INT8_KV = ROOT / "tests" / "data" / "int8-keys-and-values"
RUNTIME = tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2]))
STATISTICS = frozenset({"entropy", "self_certainty"})
# Float32, and sums in another order: states are read one token at a time here, and all at once there.
STATES_TOLERANCE, LOGITS_TOLERANCE, STATISTICS_TOLERANCE = 2e-5, 1e-4, 1e-4


@pytest.fixture(scope="module")
def engine(stories: ModelSession) -> Iterator[Engine]:
    made = Engine(stories, rows=8, chunk=8)
    yield made
    assert made.is_idle
    assert (made.kv_nbytes, made.failures) == (0, 0)
    made.close()


def write(engine: Engine, request: Generation | None = None, **options: Any) -> dict[int, Written]:
    return submitted(engine, request or generation(**options)).result()


def texts(written: dict[int, Written]) -> list[list[int]]:
    return [written[candidate].token_ids for candidate in sorted(written)]


def weights_of(session: ModelSession, layers: tuple[int, ...], seed: int, *, normed: bool = False) -> StateWeights:
    width = session.hidden_size if layers else session.vocab_size
    weight = np.random.default_rng(seed).normal(0, 0.1, (2, max(1, len(layers)), width)).astype(np.float32)
    return StateWeights(layers, weight, 1e-6 if normed else None)


# -- candidates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 5, 19])
def test_candidate_i_does_not_depend_on_n(engine: Engine, n: int) -> None:
    """With more of them than rows, too."""
    some, many = texts(write(engine, n=n)), texts(write(engine, n=8))
    assert some[:8] == many[:n]
    assert len(some) == n


def test_another_seed_gives_other_candidates(engine: Engine) -> None:
    assert texts(write(engine, seed=1)) != texts(write(engine, seed=2))


def test_first_tokens_are_drawn_per_candidate_not_once_for_all(engine: Engine, stories: ModelSession) -> None:
    logits = stories.prefill(stories.new_cache(1, 1), [1]).logits[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    n = 64
    assert (probabilities**n).sum() < 1e-6  # how likely all of them agree by chance
    written = write(engine, prompt=(1,), n=n, max_new_tokens=1, sampling=SamplingOptions())
    assert len({ids[0] for ids in texts(written)}) > 1


@given(seed=st.integers(0, 2**32), max_new_tokens=st.integers(1, 40))
def test_a_candidate_ends_at_its_first_stop_id_or_at_the_limit_and_says_which(
    engine: Engine, seed: int, max_new_tokens: int
) -> None:
    stop_ids = {426, 432, 398}  # full stop, comma, and another: they end candidates at many different steps
    free = write(engine, seed=seed, max_new_tokens=max_new_tokens)
    ended = write(engine, seed=seed, max_new_tokens=max_new_tokens, stop_ids=stop_ids, reads=Reads((5,)))
    for candidate, unbound in free.items():
        first = next((place for place, token in enumerate(unbound.token_ids) if token in stop_ids), None)
        expected = unbound.token_ids if first is None else unbound.token_ids[: first + 1]
        assert len(unbound.token_ids) == max_new_tokens
        assert unbound.finished == Finished(candidate, "length", 0)
        # Rows that left before it, and those that stayed longer, have changed nothing.
        assert ended[candidate].token_ids == expected
        assert ended[candidate].finished == Finished(candidate, "length" if first is None else "stop", 0)
        # Every token has been fed, the last one too.
        assert len(ended[candidate].hidden_states) == len(expected)


def test_all_figures_of_every_response_token_are_those_of_one_full_pass(engine: Engine, stories: ModelSession) -> None:
    layers = stories.layers
    weights = (weights_of(stories, (1, 4), 0), weights_of(stories, (5,), 1, normed=True), weights_of(stories, (), 2))
    reads = Reads(layers, True, weights, STATISTICS)
    written = write(engine, stop_ids={426}, reads=reads, max_new_tokens=30)
    assert len({len(ids) for ids in texts(written)}) > 1
    for each in written.values():
        whole = [*PROMPT, *each.token_ids]
        full = stories.prefill(stories.new_cache(1, len(whole)), whole, logits="all", layers=layers)
        states, after = full.hidden_states[:, len(PROMPT) :], full.logits[len(PROMPT) :]
        tolerance = {"rtol": 0, "atol": STATES_TOLERANCE}
        np.testing.assert_allclose(np.stack(each.hidden_states, axis=1), states, **tolerance)
        np.testing.assert_allclose(np.stack(each.logits), after, rtol=0, atol=LOGITS_TOLERANCE)
        products = np.stack(each.products).reshape(len(each.token_ids), 3, 2).transpose(1, 2, 0)  # [3, g, t]
        for weight, found in zip(weights, products, strict=True):
            read = states[list(weight.layers)] if weight.layers else after[np.newaxis]
            if weight.rms_epsilon is not None:
                read = read / np.sqrt((read**2).mean(axis=2, keepdims=True) + weight.rms_epsilon)
            by_hand = np.einsum("lmd,gld->gm", read.astype(np.float64), weight.weight)
            np.testing.assert_allclose(found, by_hand, rtol=0, atol=LOGITS_TOLERANCE)
        before = full.logits[len(PROMPT) - 1 : -1]
        expected = token_statistics(before, np.array(each.token_ids), entropy=True, self_certainty=True)
        tolerance = {"rtol": 0, "atol": STATISTICS_TOLERANCE}
        np.testing.assert_allclose(each.logprobs, expected.logprob, **tolerance)
        np.testing.assert_allclose(each.entropies, expected.entropy, **tolerance)
        np.testing.assert_allclose(each.self_certainties, expected.self_certainty, **tolerance)


def test_nothing_is_given_that_was_not_asked_for(engine: Engine) -> None:
    for each in write(engine, n=2, max_new_tokens=3).values():
        for name in ("hidden_states", "logits", "products", "entropies", "self_certainties"):
            assert not getattr(each, name), name
    for each in write(engine, n=2, max_new_tokens=3, reads=Reads(statistics=frozenset({"entropy"}))).values():
        assert len(each.entropies) == 3
        assert not each.self_certainties


def test_layers_come_in_the_order_asked_for(engine: Engine) -> None:
    one, other = (write(engine, n=2, max_new_tokens=4, reads=Reads(layers)) for layers in ((4, 0), (0, 4)))
    for candidate, each in one.items():
        for mine, theirs in zip(each.hidden_states, other[candidate].hidden_states, strict=True):
            np.testing.assert_array_equal(mine, theirs[::-1])


def test_without_anything_to_read_the_last_token_is_not_fed(
    stories: ModelSession, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, watched = (write(engine, stop_ids={426}, reads=reads) for reads in (Reads(), Reads((5,))))
    assert texts(quiet) == texts(watched)
    assert [each.finished for each in quiet.values()] == [watched[candidate].finished for candidate in quiet]
    fed: list[int] = []
    decode = stories.decode

    def counting(cache: KVCache, token_ids: Ids, **options: Any) -> StepOutput:
        fed.append(len(token_ids))
        return decode(cache, token_ids, **options)

    monkeypatch.setattr(stories, "decode", counting)
    for reads in (Reads(), Reads(statistics=STATISTICS)):
        write(engine, n=3, max_new_tokens=3, reads=reads)
        assert fed == [3, 3]
        fed.clear()
    for reads in (Reads((5,)), Reads(logits=True), Reads(weights=(weights_of(stories, (), 0),))):
        write(engine, n=3, max_new_tokens=3, reads=reads)
        assert fed == [3, 3, 3]
        fed.clear()


def test_a_prompt_that_comes_between_steps_changes_nothing_for_those_at_work(
    engine: Engine, stories: ModelSession
) -> None:
    requests = (
        generation(max_new_tokens=20, stop_ids={426}, reads=Reads((0, 5))),
        generation(OTHER, 3, seed=9, max_new_tokens=20, stop_ids={426}, reads=Reads((0, 5))),
    )
    second = Recorder()

    def submit_second(step: Step) -> None:
        if len(first.steps) == 7:
            engine.submit(requests[1], second)

    first = Recorder(submit_second)
    engine.submit(requests[0], first)
    first.result()
    second.result()
    assert max(second.batch_rows) > 3  # they were together
    for found, request in zip((first, second), requests, strict=True):
        for candidate, each in alone(stories, request).items():
            found.written[candidate].assert_same(each)


@given(dropped=st.sets(st.integers(0, 5), max_size=5), when=st.integers(0, 10))
def test_candidates_that_are_dropped_leave_the_others_as_they_were(
    engine: Engine, dropped: set[int], when: int
) -> None:
    kept = write(engine, n=6, max_new_tokens=14)

    def drop(step: Step) -> Orders | None:
        if len(recorder.steps) == when + 1:
            return Orders(dict.fromkeys(dropped, "test"))
        return None

    recorder = Recorder(drop)
    engine.submit(generation(n=6, max_new_tokens=14), recorder)
    for candidate, each in recorder.result().items():
        whole = kept[candidate].token_ids
        assert each.token_ids == (whole[: when + 1] if candidate in dropped else whole)
        assert (each.finished is None) == (candidate in dropped)


def test_a_request_whose_candidates_are_all_dropped_is_done(engine: Engine) -> None:
    recorder = submitted(engine, generation(n=3), lambda step: Orders(dict.fromkeys(step.candidates, "test")))
    assert [len(each) for each in texts(recorder.result())] == [1, 1, 1]


@pytest.mark.parametrize("layers", [(), (4,)])
@pytest.mark.parametrize(("prompt_tokens", "max_new_tokens"), [(6, 4), (6, 100), (9, 5), (8, 3)])
def test_a_full_context_ends_candidates_with_one_token_that_was_not_fed(
    addition: ModelSession, layers: tuple[int, ...], prompt_tokens: int, max_new_tokens: int
) -> None:
    request = generation([3] * prompt_tokens, 3, max_new_tokens=max_new_tokens, reads=Reads(layers))
    room = 9 - prompt_tokens
    written = alone(addition, request)
    for candidate, each in written.items():
        assert len(each.token_ids) == room + 1
        assert each.finished == Finished(candidate, "length", 1)
        assert len(each.hidden_states) == (room if layers else 0)
    assert len(written) == 3


def test_a_context_that_is_just_long_enough_leaves_nothing_unscored(addition: ModelSession) -> None:
    written = alone(addition, generation([3] * 6, 3, max_new_tokens=3, reads=Reads((4,))))
    for each in written.values():
        assert each.finished is not None
        assert each.finished.unscored_tokens == 0
        assert len(each.hidden_states) == len(each.token_ids) == 3
    assert len(written) == 3


def test_rows_with_a_full_context_leave_those_of_others_alone(addition: ModelSession) -> None:
    """Among rows that are fed again and rows that are not, at the end of the context."""
    reads = (Reads((4,)), Reads(), Reads(statistics=STATISTICS))
    requests = [
        generation([3 + place] * (9 - place), 3, max_new_tokens=2 + place, reads=reads[place], seed=place)
        for place in range(3)
    ]
    engine = Engine(addition, rows=9, chunk=8)
    found = [submitted(engine, request) for request in requests]
    for recorder, request in zip(found, requests, strict=True):
        for candidate, each in alone(addition, request).items():
            recorder.result()[candidate].assert_same(each)
    engine.close()


def test_the_repetition_penalty_sees_prompt_and_response(engine: Engine) -> None:
    sampling = SamplingOptions(temperature=0, repetition_penalty=1e3)
    (token_ids,) = texts(write(engine, n=1, sampling=sampling, max_new_tokens=20))
    assert len({*PROMPT, *token_ids}) == len(PROMPT) + 20
    (plain,) = texts(write(engine, n=1, sampling=SamplingOptions(temperature=0), max_new_tokens=60))
    assert len(set(plain)) < 60


def test_candidates_that_begin_later_are_those_of_their_numbers(engine: Engine) -> None:
    def begin(step: Step) -> Orders | None:
        ended = [end.candidate for end in step.finished]
        return Orders(dict.fromkeys(ended, "ended"), begin=min(len(ended), 6 - sum(map(len, recorder.began))))

    recorder = Recorder(begin)
    engine.submit(generation(n=2, max_new_tokens=9, stop_ids={426, 432}, kept_rows=2), recorder)
    assert texts(recorder.result()) == texts(write(engine, n=6, max_new_tokens=9, stop_ids={426, 432}))
    assert max(recorder.batch_rows) == 2


# -- requests of different options in one batch ----------------------------------------------------------------------


SAMPLINGS = (
    SamplingOptions(temperature=0),
    SamplingOptions(),
    SamplingOptions(temperature=0.7, top_p=0.9),
    SamplingOptions(temperature=1.3, top_k=20, min_p=0.02),
    SamplingOptions(repetition_penalty=1.3),
    SamplingOptions(temperature=0.8, top_k=5, repetition_penalty=1.1),
)


@st.composite
def requests_for(draw: st.DrawFn, session: ModelSession, longest: int) -> list[Generation]:
    """Some requests, each with options of its own."""
    layers = session.layers
    some = st.lists(st.sampled_from(layers), max_size=3, unique=True).map(tuple)
    requests = []
    for _ in range(draw(st.integers(2, 5))):
        prompt = draw(st.lists(st.integers(3, 90), min_size=1, max_size=longest))
        weights = [
            weights_of(session, draw(some), draw(st.integers(0, 2)), normed=draw(st.booleans()))
            for _ in range(draw(st.integers(0, 2)))
        ]
        sampling = draw(st.sampled_from(SAMPLINGS))
        requests.append(
            generation(
                prompt,
                1 if sampling.temperature == 0 else draw(st.integers(1, 5)),
                max_new_tokens=draw(st.integers(1, 14)),
                stop_ids=draw(st.sets(st.integers(3, 90), max_size=40)),
                seed=draw(st.integers(0, 5)),
                sampling=sampling,
                reads=Reads(draw(some), draw(st.booleans()), tuple(weights), draw(st.sampled_from(NAMES))),
            )
        )
    return requests


NAMES = (frozenset[str](), frozenset({"entropy"}), STATISTICS)


def check_together(session: ModelSession, requests: list[Generation], rows: int, every: int) -> None:
    """Requests that come one after the other, a few steps apart, are each what they are alone."""
    engine = Engine(session, rows=rows, chunk=8)
    recorders: list[Recorder] = []
    to_come = iter(requests)

    def submit_next(step: Step | None = None) -> None:
        if step is None or not every or sum(len(each.steps) for each in recorders) % every == 0:
            for request in to_come:
                recorders.append(Recorder(submit_next))
                engine.submit(request, recorders[-1])
                if every:
                    return

    submit_next()
    for number, request in enumerate(requests):
        if number >= len(recorders):  # those before ended too soon to bring it
            submit_next()
        found, expected = recorders[number].result(), alone(session, request)
        assert found.keys() == expected.keys()
        for candidate, each in expected.items():
            found[candidate].assert_same(each)
        assert max(recorders[number].batch_rows) <= rows
    assert engine.failures == 0
    engine.close()
    assert engine.kv_nbytes == 0


@given(data=st.data(), rows=st.integers(2, 12), every=st.integers(0, 4))
def test_requests_with_options_of_their_own_are_what_they_are_alone(
    stories: ModelSession, data: st.DataObject, rows: int, every: int
) -> None:
    check_together(stories, data.draw(requests_for(stories, 30)), rows, every)


@given(data=st.data(), rows=st.integers(2, 12), every=st.integers(0, 4))
def test_they_are_with_weights_in_int8(data: st.DataObject, rows: int, every: int, small_steps: ModelSession) -> None:
    """Kernels of packed weights take rows in pairs."""
    check_together(small_steps, data.draw(requests_for(small_steps, 30)), rows, every)


@pytest.mark.skipif(RUNTIME < (1, 28), reason="onnxruntime does not run keys and values in int8 before 1.28")
@given(data=st.data(), rows=st.integers(2, 12), every=st.integers(0, 4))
def test_they_are_with_keys_and_values_in_int8(
    data: st.DataObject, rows: int, every: int, int8_kv: ModelSession
) -> None:
    check_together(int8_kv, data.draw(requests_for(int8_kv, 30)), rows, every)


@pytest.fixture(scope="module")
def small_steps() -> ModelSession:
    return ModelSession(open_bundle(SMALL_STEPS), threads=1)


@pytest.fixture(scope="module")
def int8_kv() -> ModelSession:
    return ModelSession(open_bundle(INT8_KV), threads=1)


# -- given responses -------------------------------------------------------------------------------------------------


def test_what_is_read_of_a_given_response_is_what_decoding_it_gave(engine: Engine, stories: ModelSession) -> None:
    weights = (weights_of(stories, (1, 4), 0), weights_of(stories, (), 2))
    reads = Reads((2, 5), True, weights, STATISTICS)
    decoded = write(engine, n=4, max_new_tokens=100, reads=reads, seed=3)
    recorder = submitted(engine, reading(PROMPT, texts(decoded), reads))
    read = recorder.result()
    assert max(map(len, recorder.steps)) == 64  # in chunks
    for candidate, each in decoded.items():
        assert read[candidate].token_ids == each.token_ids
        for name, tolerance in (
            ("logprobs", STATISTICS_TOLERANCE),
            ("entropies", STATISTICS_TOLERANCE),
            ("self_certainties", STATISTICS_TOLERANCE),
            ("hidden_states", STATES_TOLERANCE),
            ("logits", LOGITS_TOLERANCE),
        ):
            mine, theirs = (np.stack(getattr(found, name)) for found in (read[candidate], each))
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance, err_msg=name)
        # One product after the other, chunk by chunk there and token by token here: they are sorted by token.
        assert len(read[candidate].products) == len(each.products) == 2 * len(each.token_ids)
        np.testing.assert_allclose(
            np.stack(read[candidate].products), np.stack(each.products), rtol=0, atol=LOGITS_TOLERANCE
        )


def test_the_last_token_of_a_given_response_is_fed_where_something_is_read_after_it(
    stories: ModelSession, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    prefill = stories.prefill

    def counting(cache: KVCache, token_ids: Ids, **options: Any) -> StepOutput:
        fed.append(len(token_ids))
        return prefill(cache, token_ids, **options)

    monkeypatch.setattr(stories, "prefill", counting)
    for reads, last in ((Reads(statistics=STATISTICS), 0), (Reads((5,)), 1)):
        submitted(engine, reading(PROMPT, [[7] * 70, [8]], reads)).result()
        assert fed == [5, 64, 5 + last, *[1] * last]
        fed.clear()


@pytest.mark.parametrize("layers", [(), (4,)])
def test_a_given_response_may_end_beyond_a_full_context(addition: ModelSession, layers: tuple[int, ...]) -> None:
    decoded = alone(addition, generation([3] * 6, 2, max_new_tokens=9, reads=Reads(layers)))
    read = alone(addition, reading([3] * 6, texts(decoded), Reads(layers)))
    for candidate, each in decoded.items():
        assert read[candidate].token_ids == each.token_ids
        assert len(each.token_ids) == 4
        assert len(read[candidate].hidden_states) == len(each.hidden_states) == (3 if layers else 0)
        np.testing.assert_allclose(read[candidate].logprobs, each.logprobs, rtol=0, atol=STATISTICS_TOLERANCE)


def test_reading_and_decoding_beside_each_other_change_nothing(engine: Engine, stories: ModelSession) -> None:
    responses = texts(write(engine, n=3, max_new_tokens=40))
    read = reading(OTHER, responses, Reads((3,), statistics=STATISTICS))
    written = generation(n=4, max_new_tokens=40, reads=Reads((3,)))
    second = Recorder()

    def submit_second(step: Step) -> None:
        if len(first.steps) == 3:
            engine.submit(read, second)

    first = Recorder(submit_second)
    engine.submit(written, first)
    for recorder, request in ((first, written), (second, read)):
        expected = alone(stories, request)
        assert recorder.result().keys() == expected.keys()
        for candidate, each in expected.items():
            recorder.written[candidate].assert_same(each)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"rows": 0}, "rows is 0; expected an integer of at least 1"),
        ({"rows": True}, "rows is True"),
        ({"chunk": 0}, "chunk is 0; expected an integer of at least 1"),
    ],
)
def test_an_engine_has_at_least_a_row_and_reads_at_least_a_token(
    stories: ModelSession, options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(InvalidOptionError, match=hint):
        Engine(stories, **options)


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        (generation(n=0), "candidates is 0"),
        (generation(max_new_tokens=0), "max_new_tokens is 0"),
        (generation(()), "the prompt is empty"),
        (generation(kept_rows=9), "kept_rows is 9; expected at most 8"),
        (generation(kept_rows=0), "kept_rows is 0"),
        (generation(n=4, kept_rows=2), "candidates is 4; expected at most 2"),
        (generation(kept_rows=4, key_rows=2), "kept_rows is 4; expected at most 2"),
        (generation(key_rows=0), "key_rows is 0"),
        (generation(seed=-1), "seed is -1"),
        (reading(PROMPT, ()), "responses is empty"),
        (reading(PROMPT, ([5], [])), "responses is empty, or one of them"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_at_the_door(engine: Engine, request_: Generation, hint: str) -> None:
    """Each of them took everything in flight along, or waited for ever."""
    with pytest.raises(InvalidOptionError, match=hint):
        engine.submit(request_, Recorder())


def test_a_prompt_that_is_longer_than_the_context_fails_alone(addition: ModelSession) -> None:
    engine = Engine(addition, rows=4, chunk=8)
    long, good = submitted(engine, generation([3] * 10, 2)), submitted(engine, generation([3] * 5, 2))
    with pytest.raises(PromptTooLongError, match=r"10 tokens.* holds 9"):
        long.result()
    assert len(good.result()) == 2
    assert engine.failures == 0
    engine.close()
