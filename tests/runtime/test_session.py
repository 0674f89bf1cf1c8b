"""One graph for prefill and decode: what is computed does not depend on how the tokens are fed."""

import dataclasses
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge.arrays import Ids
from swift_edge.bundle import open_bundle
from swift_edge.engine import KVCache, ModelSession, StepOutput
from swift_edge.engine.kv_cache import GROWTH_TOKENS, ConcatenatedCache
from swift_edge.errors import BundleError, InvalidOptionError, MemoryLimitError, PromptTooLongError, ProviderError

STORIES = Path(__file__).parents[2] / "models" / "stories260k"
# Float32, and sums in another order: measured 4e-7 relative to the largest value.
TOLERANCE = 5e-6


def full_pass(session: ModelSession, token_ids: Sequence[int] | Ids) -> StepOutput:
    """One prefill over everything: logits [s, v] and all hidden states [l, s, d]."""
    cache = session.new_cache(1, len(token_ids))
    return session.prefill(cache, token_ids, logits="all", layers=session.layers, chunk=len(token_ids))


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def random_ids(session: ModelSession, seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, session.vocab_size, length)]


@given(seed=st.integers(0, 2**16), prompt=st.integers(1, 90), new=st.integers(0, 40), chunk=st.integers(1, 100))
def test_prefill_and_decode_equal_one_full_prefill(
    stories: ModelSession, seed: int, prompt: int, new: int, chunk: int
) -> None:
    check_prefill_and_decode(stories, seed, prompt, new, chunk)


@given(seed=st.integers(0, 2**16), prompt=st.integers(1, 8), chunk=st.integers(1, 4))
def test_prefill_and_decode_equal_one_full_prefill_up_to_the_last_learned_position(
    addition: ModelSession, seed: int, prompt: int, chunk: int
) -> None:
    check_prefill_and_decode(addition, seed, prompt, addition.context_length - prompt, chunk)


def check_prefill_and_decode(session: ModelSession, seed: int, prompt: int, new: int, chunk: int) -> None:
    token_ids = random_ids(session, seed, prompt + new)
    full = full_pass(session, token_ids)
    cache = session.new_cache(1, 1)
    read = session.prefill(cache, token_ids[:prompt], chunk=chunk, logits="all", layers=session.layers)
    assert_close(read.logits, full.logits[:prompt])
    assert_close(read.hidden_states, full.hidden_states[:, :prompt])
    for place in range(prompt, prompt + new):
        out = session.decode(cache, token_ids[place : place + 1], layers=session.layers)
        assert_close(out.logits, full.logits[place : place + 1])
        assert_close(out.hidden_states, full.hidden_states[:, place : place + 1])
    assert cache.lengths.tolist() == [prompt + new]


@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=5),
    leaving=st.lists(st.integers(0, 4), max_size=4),
)
def test_a_row_of_a_batch_equals_the_row_alone_whoever_leaves(
    stories: ModelSession, seed: int, lengths: list[int], leaving: list[int]
) -> None:
    """Rows of different lengths; every few steps one leaves, and the last one moves into its place."""
    check_rows(stories, seed, lengths, leaving, steps=12)


@given(seed=st.integers(0, 2**16), lengths=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_a_row_of_a_batch_equals_the_row_alone_with_learned_positions(
    addition: ModelSession, seed: int, lengths: list[int]
) -> None:
    check_rows(addition, seed, lengths, leaving=[0], steps=4)


def check_rows(session: ModelSession, seed: int, lengths: list[int], leaving: list[int], steps: int) -> None:
    texts = [random_ids(session, seed + row, length + steps) for row, length in enumerate(lengths)]
    alone = [full_pass(session, text) for text in texts]
    cache = session.new_cache(1, 1)
    for text, length in zip(texts, lengths, strict=True):
        prompt = session.new_cache(1, length)
        session.prefill(prompt, text[:length], logits="none")
        cache.append_copy(prompt)
    live = list(range(len(lengths)))
    leaves = iter(leaving)
    for step in range(steps):
        out = session.decode(cache, [texts[row][lengths[row] + step] for row in live], layers=session.layers)
        for place, row in enumerate(live):
            assert_close(out.logits[place], alone[row].logits[lengths[row] + step])
            assert_close(out.hidden_states[:, place], alone[row].hidden_states[:, lengths[row] + step])
        gone = next(leaves, None) if step % 3 == 2 else None
        if gone is not None and len(live) > 1:
            gone %= len(live)
            cache.remove(gone)
            live[gone] = live[-1]
            live.pop()


def test_layers_come_in_the_order_asked_for(stories: ModelSession) -> None:
    token_ids = random_ids(stories, 0, 7)
    every = full_pass(stories, token_ids).hidden_states
    some = stories.prefill(stories.new_cache(1, 7), token_ids, layers=(4, 0)).hidden_states
    assert_close(some, every[[4, 0]])
    cache = stories.new_cache(1, 7)
    stories.prefill(cache, token_ids[:6])
    assert_close(stories.decode(cache, token_ids[6:], layers=(4, 0)).hidden_states, every[[4, 0], 6:])


def test_prefill_gives_only_what_is_asked_for(stories: ModelSession) -> None:
    token_ids = random_ids(stories, 1, 9)
    full = full_pass(stories, token_ids).logits
    last = stories.prefill(stories.new_cache(1, 9), token_ids, chunk=4)
    assert_close(last.logits, full[-1:])
    assert not last.hidden_states.size
    nothing = stories.prefill(stories.new_cache(1, 9), token_ids, chunk=4, logits="none")
    assert not nothing.logits.size
    cache = stories.new_cache(1, 9)
    stories.prefill(cache, token_ids[:8])
    states = stories.decode(cache, token_ids[8:], logits=False, layers=stories.layers)
    assert not states.logits.size
    assert_close(states.hidden_states, full_pass(stories, token_ids).hidden_states[:, -1:])


def test_a_truncated_row_continues_as_if_nothing_had_followed(stories: ModelSession) -> None:
    prompt, first, second = (random_ids(stories, seed, 20) for seed in (1, 2, 3))
    cache = stories.new_cache(1, 40)
    stories.prefill(cache, prompt)
    stories.prefill(cache, first)
    cache.truncate(20)
    expected = full_pass(stories, prompt + second).logits
    assert_close(stories.prefill(cache, second, logits="all").logits, expected[20:])


def test_the_cache_grows_in_blocks_with_its_rows_and_never_past_its_limit(stories: ModelSession) -> None:
    cache = stories.new_cache(1, 1, limit=200)
    assert cache.capacity == GROWTH_TOKENS
    capacities = set()
    for _ in range(200):
        cache.reserve(1, cache.longest + 1)
        if cache.rows == 0:
            cache.append_empty()
        cache.lengths[0] += 1
        capacities.add(cache.capacity)
    assert capacities == {64, 128, 192, 200}
    with pytest.raises(InvalidOptionError, match="at most 200"):
        cache.reserve(1, 201)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_full_context_is_refused_with_both_numbers(addition: ModelSession, rows: int) -> None:
    prompt = addition.new_cache(1, 9)
    with pytest.raises(PromptTooLongError, match=r"10 tokens.* holds 9"):
        addition.prefill(prompt, [1] * 10)
    addition.prefill(prompt, [1] * 9)
    cache = addition.new_cache(rows, 9)
    cache.append_copy(prompt, rows)
    with pytest.raises(PromptTooLongError, match=r"10 tokens.* holds 9"):
        addition.decode(cache, [1] * rows)


def test_what_a_request_takes_is_known_before_it_is_taken(stories: ModelSession) -> None:
    rows, prompt_tokens, new_tokens = 48, 100, 300
    layers = stories.layers
    estimate = sum(stories.request_bytes(rows, prompt_tokens, new_tokens, layers=len(layers)))
    tracemalloc.start()
    try:
        prompt = stories.new_cache(1, prompt_tokens)
        stories.prefill(prompt, [5] * prompt_tokens)
        cache = stories.new_cache(rows, prompt_tokens, prompt_tokens + new_tokens)
        cache.append_copy(prompt, rows)
        for _ in range(new_tokens):
            stories.decode(cache, [5] * rows, layers=layers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cache.nbytes == rows * (prompt_tokens + new_tokens) * stories.kv_bytes_per_token
    # Growing, the cache holds one layer twice for a moment; and there are masks and the like.
    assert 0.9 * estimate < peak < 1.1 * estimate


def test_a_request_that_cannot_fit_names_the_numbers(stories: ModelSession) -> None:
    with pytest.raises(MemoryLimitError, match=r"10000000 rows of 112 tokens.* GiB of memory, .*iB are free; ask for"):
        stories.require_memory(10_000_000, 100, 12)
    # Only what prompt and new tokens need counts, not the whole context.
    assert stories.request_bytes(8, 10, 20)[0] < stories.request_bytes(8, 10, 500)[0] / 5


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_providers_are_those_that_the_session_got(name: str) -> None:
    assert ModelSession(open_bundle(STORIES), providers=[name], threads=1).providers == ("CPUExecutionProvider",)


def test_a_provider_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(ProviderError, match=r"'abacus'.*has .*CPUExecutionProvider.*leave providers out"):
        ModelSession(open_bundle(STORIES), providers=["abacus"])


def test_threads_below_one_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="threads is 0; expected at least 1"):
        ModelSession(open_bundle(STORIES), threads=0)


def test_a_graph_without_the_tensors_that_the_manifest_promises_is_refused() -> None:
    bundle = open_bundle(STORIES)
    architecture = dataclasses.replace(bundle.manifest.architecture, num_layers=6)
    wrong = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, architecture=architecture))
    with pytest.raises(BundleError, match=r"lacks past_key_values\.5\.key \(4 tensors missing"):
        ModelSession(wrong, threads=1)


def test_a_file_that_is_no_graph_is_refused() -> None:
    bundle = open_bundle(STORIES)
    with pytest.raises(BundleError, match=r"does not open .*tokenizer.json"):
        ModelSession(dataclasses.replace(bundle, model_path=bundle.tokenizer_path), threads=1)


@given(data=st.data())
def test_both_caches_keep_the_same_rows(data: st.DataObject) -> None:
    """Whatever is appended, removed and cut off, the rows are those of a plain list."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    shape = (2, 2, 3)  # layers, heads, head dim
    in_place: KVCache = KVCache(*shape, np.float32, rows=1, tokens=1, limit=500)
    concatenated = ConcatenatedCache(*shape, np.float32, limit=500)
    rows: list[NDArray[np.float32]] = []  # [layers, 2, h, length, k] each
    length = data.draw(st.integers(1, 100))
    for action in data.draw(st.lists(st.sampled_from(["append", "remove", "truncate"]), max_size=12)):
        if action == "append":
            row = rng.normal(size=(2, 2, 2, length, 3)).astype(np.float32)
            source = KVCache(*shape, np.float32, rows=1, tokens=length, limit=500)
            source.append_empty()
            source.lengths[0] = length
            for layer, (keys, values) in enumerate(row):
                source.keys[layer][0, :, :length] = keys
                source.values[layer][0, :, :length] = values
            copies = data.draw(st.integers(1, 3))
            assert in_place.append_copy(source, copies) == concatenated.append_copy(source, copies) == len(rows)
            rows += [row] * copies
        elif rows and action == "remove":
            gone = data.draw(st.integers(0, len(rows) - 1))
            in_place.remove(gone)
            concatenated.remove(gone)
            rows[gone] = rows[-1]
            rows.pop()
        elif rows:
            length = data.draw(st.integers(1, length))
            in_place.truncate(length)
            concatenated.truncate(length)
            rows = [row[:, :, :, :length] for row in rows]
        for cache in (in_place, concatenated):
            assert cache.lengths.tolist() == [length] * len(rows)
            for place, found in enumerate(stored_rows(cache)):
                assert np.array_equal(found, rows[place])


def stored_rows(cache: KVCache) -> Iterator[NDArray[np.float32]]:
    for row, length in enumerate(cache.lengths.tolist()):
        pairs = zip(cache.keys, cache.values, strict=True)
        yield np.array([[keys[row, :, :length], values[row, :, :length]] for keys, values in pairs])


def test_rows_of_different_lengths_are_refused_where_the_graph_concatenates() -> None:
    cache = ConcatenatedCache(1, 1, 1, np.float32, limit=9)
    for length in (2, 3):
        source = KVCache(1, 1, 1, np.float32, rows=1, tokens=9, limit=9)
        source.append_empty()
        source.lengths[0] = length
        if length == 2:
            cache.append_copy(source)
        else:
            with pytest.raises(InvalidOptionError, match="equally long; run one prompt at a time"):
                cache.append_copy(source)


def test_a_graph_that_fails_is_told_in_one_line(stories: ModelSession, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match=r"onnxruntime could not run .*model.onnx: .*out of data bounds"):
        stories.prefill(stories.new_cache(1, 4), [stories.vocab_size + 9])
    assert capfd.readouterr().err == ""
