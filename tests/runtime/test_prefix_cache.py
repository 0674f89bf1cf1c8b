"""Prompts that begin alike are read once: no pick notices, and the memory stays within its limit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge import Selection, Selector
from swift_edge.arrays import Ids
from swift_edge.engine import KVCache, ModelSession, PrefixCache, StepOutput
from swift_edge.errors import InvalidOptionError
from swift_edge.scoring import Head

STORIES = Path(__file__).parents[2] / "models" / "stories260k"
SHARED = "Once upon a time there was a little girl named Lily. She had a red ball and a small dog. " * 8
BLOCK_TOKENS = 128  # as the README has it
ENDINGS = ("One day", "The dog", "Her mom said")
OPTIONS: dict[str, Any] = {"n": 3, "max_new_tokens": 12, "seed": 2}
BLOCK_BYTES = 2 * 2 * 4 * BLOCK_TOKENS * 3  # two layers of keys and values, one head of three numbers


def figures(selection: Selection) -> list[tuple[Any, ...]]:
    """Everything that a pick computed, bit for bit."""
    return [
        (each.token_ids, each.logprob, each.score, None if each.gates is None else each.gates.tobytes())
        for each in selection.candidates
    ]


def count_fed(monkeypatch: pytest.MonkeyPatch, chunks: set[int]) -> list[int]:
    """The tokens of every prefill from now on; `chunks` collects how many of them are fed at a time."""
    fed: list[int] = []
    prefill = ModelSession.prefill

    def counted(self: ModelSession, cache: KVCache, token_ids: Ids, **options: Any) -> StepOutput:
        fed.append(len(token_ids))
        chunks.add(options["chunk"])
        return prefill(self, cache, token_ids, **options)

    monkeypatch.setattr(ModelSession, "prefill", counted)
    return fed


def test_picks_are_the_same_whatever_was_asked_before(stories_head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [SHARED + ending for ending in ENDINGS]
    fresh = [
        figures(Selector(STORIES, head=stories_head, threads=1, prefix_cache_bytes=2**24).pick(prompt, **OPTIONS))
        for prompt in prompts
    ]
    chunks: set[int] = set()
    fed = count_fed(monkeypatch, chunks)
    keeping = Selector(STORIES, head=stories_head, threads=1, prefix_cache_bytes=2**24)
    assert [figures(keeping.pick(prompt, **OPTIONS)) for prompt in prompts] == fresh
    tokens = [keeping.pick(prompt, **OPTIONS).usage.prompt_tokens for prompt in prompts]
    # They share a block and end in the next one: read in the same pieces whether they are known or not.
    assert [count // BLOCK_TOKENS for count in tokens] == [1, 1, 1]
    assert fed[: len(prompts) + 1] == [BLOCK_TOKENS, *(count - BLOCK_TOKENS for count in tokens)]
    assert chunks == {BLOCK_TOKENS}
    assert [figures(picked) for picked in keeping.pick_many(prompts, in_order=True, **OPTIONS)] == fresh


def test_a_prompt_that_is_known_to_its_end_is_read_from_its_last_block_on(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = Selector(STORIES, threads=1, prefix_cache_bytes=2**24)
    first = selector.pick(SHARED, **OPTIONS)
    fed = count_fed(monkeypatch, set())
    assert figures(selector.pick(SHARED, **OPTIONS)) == figures(first)
    assert 1 <= sum(fed) <= BLOCK_TOKENS


def test_nothing_is_kept_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = Selector(STORIES, threads=1)
    first = selector.pick(SHARED, **OPTIONS)
    fed = count_fed(monkeypatch, set())
    selector.pick(SHARED, **OPTIONS)
    assert fed == [BLOCK_TOKENS, first.usage.prompt_tokens - BLOCK_TOKENS]


def test_a_budget_below_zero_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="prefix_cache_bytes is -1"):
        Selector(STORIES, prefix_cache_bytes=-1).pick("One", n=1)


def read(tokens: Ids) -> KVCache:
    """A cache in which every number tells the whole prompt up to its token."""
    cache = KVCache(2, 1, 3, np.float32, rows=1, tokens=len(tokens), limit=4096)
    cache.append_empty()
    cache.lengths[0] = len(tokens)
    told = np.cumsum(tokens * np.arange(1, len(tokens) + 1)) % 8191
    for layer in range(2):
        cache.keys[layer][0, 0, : len(tokens)] = told[:, None] + layer
        cache.values[layer][0, 0, : len(tokens)] = -told[:, None] - layer
    return cache


@given(
    asked=st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 40)), max_size=12),
    blocks=st.integers(0, 5),
)
def test_what_is_restored_is_what_was_read(asked: list[tuple[list[int], int]], blocks: int) -> None:
    prefixes = PrefixCache(blocks * BLOCK_BYTES)
    for parts, rest in asked:
        tokens = np.concatenate([np.full(BLOCK_TOKENS, part) for part in parts] + [np.full(rest, 7)]).astype(np.int64)
        whole = read(tokens)
        cache = KVCache(2, 1, 3, np.float32, rows=1, tokens=len(tokens), limit=4096)
        known = prefixes.restore(cache, tokens)
        assert known % BLOCK_TOKENS == 0
        assert known < len(tokens)
        assert cache.longest == known
        for mine, theirs in zip(cache.keys + cache.values, whole.keys + whole.values, strict=True):
            np.testing.assert_array_equal(mine[:1, :, :known], theirs[:1, :, :known])
        prefixes.keep(whole, tokens)
        assert prefixes.nbytes <= blocks * BLOCK_BYTES
        again = KVCache(2, 1, 3, np.float32, rows=1, tokens=len(tokens), limit=4096)
        kept = min(len(parts), blocks) * BLOCK_TOKENS  # the prompt used last is the last to go, from its end
        assert prefixes.restore(again, tokens) == kept
