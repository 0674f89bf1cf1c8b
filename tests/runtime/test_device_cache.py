"""Rows on a device: what is computed is what rows in NumPy's memory give, bit for bit but for what a head reads there.

The device is onnxruntime's CPU, whose memory it allocates and copies like any other's; no test here has seen a GPU.
"""

import _thread
import ctypes
import math
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_requests import Held, alone, generation, submitted
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge import Selection, Selector
from swift_edge.bundle import open_bundle
from swift_edge.engine import Engine, KVCache, ModelSession, PrefixCache, Reads, StateWeights
from swift_edge.engine.device.memory import Device, DeviceArray, memory_failure, rows_device
from swift_edge.engine.device.rows import DeviceMemory
from swift_edge.engine.device.small_graphs import graph, node
from swift_edge.engine.kv_cache import GROWTH_TOKENS
from swift_edge.errors import DeviceError, DeviceMemoryError, ProviderError
from swift_edge.options import SamplingOptions
from swift_edge.scoring import Head

STORIES = Path(__file__).parents[2] / "models" / "stories260k"
SHAPE = (2, 2, 4)  # layers, heads, head dim
PROMPTS = ("Once upon a time", "The dog", "Lily and Tom went to the park. There they saw a big red ball", "He was")
GRAPH_INPUTS: dict[str, type] = {"some": np.float32, "shape": np.int64}
OPTIONS: dict[str, Any] = {"max_new_tokens": 90, "seed": 4}


@pytest.fixture(scope="module")
def elsewhere() -> ModelSession:
    """The session of `stories`, with its rows on a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swift_edge.engine.graph.rows_device", lambda wanted, _: Device(wanted))
        return ModelSession(open_bundle(STORIES), threads=1)


@pytest.fixture
def shared(rows_on_device: None, stories_head: Head) -> Selector:
    """A selector with a head and its rows on a device, opened."""
    selector = Selector(STORIES, head=stories_head, threads=1)
    selector.pick("One", n=1, max_new_tokens=1)
    return selector


@pytest.fixture(scope="module")
def at_home(stories_head: Head) -> Selector:
    """The same with its rows in NumPy's memory, opened: later, its rows would be where a test wants those of others."""
    selector = Selector(STORIES, head=stories_head, threads=1)
    assert not selector._planner().model.session.keeps_rows_on_device
    return selector


def assert_same(found: Selection, expected: Selection) -> None:
    """Everything but the time it took is the same; what a head reads on a device is summed in another order."""
    documents = [selection.to_dict() for selection in (found, expected)]
    for document in documents:
        del document["timings"]
        for candidate in document["candidates"]:
            del candidate["score"], candidate["logprob"]
    assert documents[0] == documents[1]
    for mine, theirs in zip(found.candidates, expected.candidates, strict=True):
        for name in ("score", "logprob", "gates", "rewards"):
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-5, atol=2e-6, err_msg=name)


def held(cache: KVCache) -> list[NDArray[Any]]:
    """Keys and values of every live row, [2, layers, h, length, k] each."""
    keys, values = (
        [array.memory.numpy() if isinstance(array, DeviceArray) else array for array in arrays]
        for arrays in (cache.keys, cache.values)
    )
    return [
        np.array([[array[row, :, :length] for array in arrays] for arrays in (keys, values)])
        for row, length in enumerate(cache.lengths.tolist())
    ]


# -- the cache alone -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory(device: Device) -> DeviceMemory:
    return DeviceMemory(device, np.dtype(np.float32), np.dtype(np.float32))


def device_cache(memory: DeviceMemory, dtype: Any, *, rows: int, tokens: int, limit: int) -> KVCache:
    return KVCache(*SHAPE, dtype, rows=rows, tokens=tokens, limit=limit, memory=memory)


@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float16]))
def test_rows_are_those_of_a_plain_list_whatever_happens_to_others(
    device: Device, memory: DeviceMemory, data: st.DataObject, dtype: type[np.floating[Any]]
) -> None:
    """Appended, removed, cut off and grown, in rows of different lengths."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    cache = device_cache(memory, dtype, rows=1, tokens=1, limit=500)
    rows: list[NDArray[Any]] = []  # [2, layers, h, length, k] each
    for action in data.draw(
        st.lists(st.sampled_from(["append", "remove", "truncate", "reserve", "shrink"]), max_size=10)
    ):
        if action == "append":
            length = data.draw(st.integers(1, 150))
            row = rng.normal(size=(2, SHAPE[0], SHAPE[1], length, SHAPE[2])).astype(dtype)
            copies = data.draw(st.integers(1, 3))
            assert cache.append_copy(prompt_of(device, memory, row), copies) == len(rows)
            rows += [row] * copies
        elif rows and action == "remove":
            gone = data.draw(st.integers(0, len(rows) - 1))
            cache.remove(gone)
            rows[gone] = rows[-1]
            rows.pop()
        elif rows and action == "truncate":
            length = data.draw(st.integers(1, 150))
            cache.truncate(length)
            rows = [row[:, :, :, :length] for row in rows]
        elif rows and action == "shrink":
            cache.shrink(max(row.shape[3] for row in rows))
            assert cache.keys[0].shape[:1] == (len(rows),)
            cache.limit = 500
        else:
            cache.reserve(data.draw(st.integers(0, 6)), data.draw(st.integers(0, 300)))
        assert cache.lengths.tolist() == [row.shape[3] for row in rows]
        for found, expected in zip(held(cache), rows, strict=True):
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected)


def prompt_of(device: Device, memory: DeviceMemory, row: NDArray[Any]) -> KVCache:
    """A cache of one row that holds `row`, [2, layers, h, length, k]."""
    length = row.shape[3]
    cache = device_cache(memory, row.dtype, rows=1, tokens=length, limit=500)
    cache.append_empty()
    cache.lengths[0] = length
    for arrays, numbers in zip((cache.keys, cache.values), row, strict=True):
        for array, layer in zip(arrays, numbers, strict=True):
            device.copy(np.ascontiguousarray(layer[None]), array, length)
    return cache


def test_new_rows_are_zero_and_grow_in_blocks_up_to_the_limit(memory: DeviceMemory) -> None:
    cache = device_cache(memory, np.float16, rows=3, tokens=1, limit=100)
    assert (cache.capacity, cache.nbytes) == (GROWTH_TOKENS, 2 * 2 * 3 * 2 * GROWTH_TOKENS * 4 * 2)
    cache.reserve(4, GROWTH_TOKENS + 1)
    assert cache.keys[0].shape == (4, 2, 100, 4)
    assert (cache.nbytes, cache.generation) == (2 * 2 * 4 * 2 * 100 * 4 * 2, 1)
    for array in (*cache.keys, *cache.values):
        assert not array.memory.numpy().any()


def test_fewer_rows_of_an_array_are_the_same_memory(device: Device) -> None:
    array = device.zeros((5, 2, 3, 4), np.float16)
    some = array[1:3]
    assert (some.shape, some.nbytes, some.address - array.address) == ((2, 2, 3, 4), 2 * 2 * 3 * 4 * 2, 2 * 3 * 4 * 2)
    assert (array[4:9].shape[0], array[3:2].shape[0], some[1:].address) == (1, 0, array[2:].address)


def test_a_device_without_room_says_how_much_was_asked_for(device: Device) -> None:
    with pytest.raises(DeviceMemoryError, match=r"4194304\.00 GiB of cpu memory is needed.*fewer candidates") as caught:
        device.zeros((2**30, 2**10, 2**10, 2), np.float16)
    assert isinstance(caught.value, MemoryError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_run_that_a_device_has_no_room_for_says_how_much_was_asked_for(device: Device) -> None:
    """It was raised as onnxruntime raises it."""
    nodes = [node("Expand", ["some", "shape"], ["many"]), node("ReduceMax", ["many"], ["most"], {"axes": [0]})]
    session = device.open(graph(nodes, GRAPH_INPUTS, {"most": np.float32}))
    fed, found = {"some": np.ones(1, np.float32)}, {"most": np.zeros(1, np.float32)}
    device.run(session, {**fed, "shape": np.array([4])}, found)
    assert found["most"] == 1
    with pytest.raises(DeviceMemoryError, match="of cpu memory is needed in one piece") as caught:
        device.run(session, {**fed, "shape": np.array([2**48])}, found)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_run_that_fails_on_a_device_is_told_in_one_line(device: Device) -> None:
    """It was raised as onnxruntime raises it."""
    session = device.open(graph([node("Expand", ["some", "shape"], ["many"])], GRAPH_INPUTS, {"many": np.float32}))
    fed = {"some": np.zeros(3, np.float32), "shape": np.array([4])}
    with pytest.raises(DeviceError, match=r"^onnxruntime could not run a graph on cpu: .*; leave providers out$"):
        device.run(session, fed, {"many": np.zeros(4, np.float32)})


@pytest.mark.parametrize(
    ("reason", "needed"),
    [
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1073741824", 2**30),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=x", None),
        ("std::bad_alloc", None),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", None),
    ],
)
def test_memory_that_ran_out_is_known_by_what_onnxruntime_says(reason: str, needed: int | None) -> None:
    failure = memory_failure("cuda", reason)
    assert isinstance(failure, DeviceMemoryError)
    assert failure.needed == needed
    assert str(failure).startswith("1.00 GiB of cuda memory" if needed else "more of cuda memory")
    assert memory_failure("cuda", "CUDA failure 700: illegal access") is None


def test_the_graph_decides_where_rows_are_kept() -> None:
    assert rows_device("cpu", ("CPUExecutionProvider",)) is None
    # Memory that is not addressed by a number, or that this module has never heard of.
    assert rows_device("dml", ("DmlExecutionProvider", "CPUExecutionProvider")) is None
    with pytest.raises(ProviderError, match=r"attention to the CPU.*--precision fp16"):
        rows_device("cpu", ("CUDAExecutionProvider", "CPUExecutionProvider"))


# -- the cache and the graph -----------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    events=st.lists(st.integers(0, 7), max_size=5),
)
def test_steps_give_the_same_bits(
    stories: ModelSession, elsewhere: ModelSession, seed: int, lengths: list[int], events: list[int]
) -> None:
    """Rows of different lengths are admitted and dropped between steps that take them over the end of a block."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, stories.vocab_size, length) for length in lengths]
    caches = []
    for session in (stories, elsewhere):
        cache = session.new_cache(1, 1)
        for prompt in prompts:
            cache.append_copy(read(session, prompt))
        caches.append(cache)
    assert [isinstance(cache.keys[0], DeviceArray) for cache in caches] == [False, True]
    events = list(events)
    for step in range(15):
        if step % 3 == 2 and events:
            event = events.pop()
            for session, cache in zip((stories, elsewhere), caches, strict=True):
                if event < cache.rows and cache.rows > 1:
                    cache.remove(event)
                else:
                    cache.append_copy(read(session, prompts[event % len(prompts)]), copies=1 + event % 2)
        fed = rng.integers(0, stories.vocab_size, caches[0].rows)
        layers = stories.layers[: 1 + step // 8]
        one, other = (
            session.decode(cache, fed, layers=layers)
            for session, cache in zip((stories, elsewhere), caches, strict=True)
        )
        np.testing.assert_array_equal(other.logits, one.logits)
        np.testing.assert_array_equal(other.hidden_states, one.hidden_states)
        for mine, theirs in zip(held(caches[1]), held(caches[0]), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def read(session: ModelSession, prompt: NDArray[np.int64]) -> KVCache:
    cache = session.new_cache(1, 1)
    session.prefill(cache, prompt, chunk=40, logits="none")
    return cache


class _ReadsWhenBound:
    """A binding to the CPU that copies what is in NumPy's memory when it is bound, as one to a device does."""

    def __init__(self, binding: Any) -> None:
        # What the session reads of a binding differs between versions of onnxruntime; what it is, does not.
        self.__dict__ |= vars(binding)
        self.bind_output = binding.bind_output
        self._binding = binding
        self._copies: dict[str, Any] = {}

    def bind_input(self, name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
        if not name.startswith("past_key_values"):
            size = math.prod(shape) * np.dtype(kind).itemsize
            self._copies[name] = ctypes.create_string_buffer(ctypes.string_at(address, size), size)
            address = ctypes.addressof(self._copies[name])
        self._binding.bind_input(name, device, number, kind, shape, address)


def test_what_is_fed_is_bound_for_every_run(
    stories: ModelSession, elsewhere: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device, an input in the machine's memory is read when it is bound; the CPU alone reads it when it runs."""
    whole = elsewhere.graph.inference_session
    make = whole.io_binding
    monkeypatch.setattr(whole, "io_binding", lambda: _ReadsWhenBound(make()))
    prompt = np.arange(3, 12)
    caches = [read(session, prompt) for session in (stories, elsewhere)]
    for token in (5, 6, 7, 8):
        one, other = (
            session.decode(cache, [token]).logits for session, cache in zip((stories, elsewhere), caches, strict=True)
        )
        np.testing.assert_array_equal(one, other)


def test_rows_on_a_device_take_none_of_the_machines_memory(stories: ModelSession, elsewhere: ModelSession) -> None:
    assert elsewhere.keeps_rows_on_device
    assert not stories.keeps_rows_on_device
    (kv, *rest), (kv_here, *rest_here) = (
        session.request_bytes(8, 100, 100, layers=2) for session in (elsewhere, stories)
    )
    assert kv == 0 < kv_here
    assert rest == rest_here


# -- picks -----------------------------------------------------------------------------------------------------------


def test_picks_are_the_same(shared: Selector, at_home: Selector) -> None:
    for options in ({"n": 8}, {"n": 3, "temperature": 0.7, "top_p": 0.9}, {"n": 8, "prune": {16: 4, 48: 2}}):
        one, other = (selector.pick(PROMPTS[0], **OPTIONS, **options) for selector in (at_home, shared))
        assert_same(other, one)


def test_picks_for_many_prompts_in_one_batch_are_the_same(
    rows_on_device: None, at_home: Selector, stories_head: Head
) -> None:
    few = Selector(STORIES, head=stories_head, threads=1, rows=5)
    options = {**OPTIONS, "n": 3, "stop": ["."], "in_order": True}
    one, other = (list(selector.pick_many(PROMPTS, **options)) for selector in (at_home, few))
    for mine, theirs in zip(other, one, strict=True):
        assert_same(mine, theirs)


def test_given_texts_are_scored_the_same(shared: Selector, at_home: Selector) -> None:
    texts = [", there was a little girl.", " purple seven of", "."]
    one, other = (selector.score(PROMPTS[0], texts) for selector in (at_home, shared))
    assert_same(other, one)


def test_beginnings_of_prompts_are_not_kept(
    rows_on_device: None, at_home: Selector, stories_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would have to come back over the bus; a selector that asks for it works all the same."""
    prompt = " ".join(["One day the dog ran to the park and saw a cat."] * 16)
    monkeypatch.setattr(PrefixCache, "keep", lambda *_: pytest.fail("kept"))
    keeping = Selector(STORIES, head=stories_head, threads=1, prefix_cache_bytes=2**24)
    for _ in range(2):
        assert_same(keeping.pick(prompt, n=2, **OPTIONS), at_home.pick(prompt, n=2, **OPTIONS))


def test_rows_with_options_of_their_own_are_what_they_are_alone(elsewhere: ModelSession) -> None:
    """In one batch, and bit for bit but for products: drawn from a few likely tokens, or from whole rows."""
    weight = np.random.default_rng(0).normal(0, 0.1, (2, 2, elsewhere.hidden_size)).astype(np.float32)
    samplings = (
        SamplingOptions(temperature=0),
        SamplingOptions(),
        SamplingOptions(temperature=0.7, top_p=0.9),
        SamplingOptions(temperature=1.3, top_k=20),
        SamplingOptions(top_p=0.9, min_p=0.05),
        SamplingOptions(temperature=0.8, top_k=5, repetition_penalty=1.2),
    )
    reads = (
        Reads(),
        Reads((1, 4)),
        Reads(logits=True),
        Reads(weights=(StateWeights((0, 3), weight, None),)),
        Reads(statistics=frozenset({"entropy", "self_certainty"})),
        Reads((5,), True, (StateWeights((2, 5), weight, 1e-6),), frozenset({"entropy"})),
    )
    requests = [
        generation(
            range(3, 5 + 3 * place),
            1 + place % 3 * (place > 0),
            max_new_tokens=20 + 3 * place,
            stop_ids={426, 432},
            seed=place,
            sampling=sampling,
            reads=reads[place],
        )
        for place, sampling in enumerate(samplings)
    ]
    engine = Engine(elsewhere, rows=8, chunk=8)
    with Held.on(engine) as held:
        found = [submitted(engine, request) for request in requests]
        held.ticket.cancel()
    for recorder, request in zip(found, requests, strict=True):
        written, expected = recorder.result(), alone(elsewhere, request)
        assert written.keys() == expected.keys()
        for candidate, each in expected.items():
            # A device multiplies all rows at once: how it sums depends on their number. Measured 4e-7.
            each.assert_same(written[candidate], products_atol=2e-6)
        assert max(recorder.batch_rows) > 4
    assert engine.failures == 0
    engine.close()


def test_threads_do_not_disturb_each_other(shared: Selector, at_home: Selector) -> None:
    alone = [at_home.pick(prompt, n=3, **OPTIONS) for prompt in PROMPTS]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda prompt: shared.pick(prompt, n=3, **OPTIONS), PROMPTS))
    for mine, theirs in zip(together, alone, strict=True):
        assert_same(mine, theirs)


def test_an_interrupted_pick_leaves_the_selector_usable(shared: Selector, at_home: Selector) -> None:
    expected = at_home.pick(PROMPTS[0], n=4, **OPTIONS)
    for delay in (0.01, 0.03, 0.1):
        with pytest.raises(KeyboardInterrupt), interrupting(delay):
            shared.pick(PROMPTS[0], n=16, max_new_tokens=480)
        assert_same(shared.pick(PROMPTS[0], n=4, **OPTIONS), expected)


@contextmanager
def interrupting(delay: float) -> Iterator[None]:
    """Send Ctrl-C to this thread after a while, but not once the block is left."""
    timer = threading.Timer(delay, _thread.interrupt_main)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
