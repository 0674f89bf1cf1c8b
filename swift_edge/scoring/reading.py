"""A given response read in one go: the figures that decoding it would give, up to rounding, without sampling.

Knows one row and one response. Does not know where the text comes from, what is made of the figures, or how candidates
compare.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from swift_edge.arrays import Floats
from swift_edge.engine.kv_cache import KVCache
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import TokenStatistics, token_statistics
from swift_edge.engine.stopwatch import Stopwatch
from swift_edge.scoring.candidate import GrowingCandidate

CHUNK_TOKENS = 64
"""Response tokens per run of the graph: each of them has a row of logits, and maybe hidden states."""


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """Some tokens of a response, and what the model computed when they were fed."""

    token_ids: Sequence[int]  # [t]
    """The tokens; the first f of them have been fed."""
    statistics: TokenStatistics
    """What the logits before each token said about it `[t]`."""
    hidden_states: Floats | None  # [l, f, d]
    """Hidden states of the tokens that were fed; None where none were asked for, or nothing was fed."""
    logits: Floats | None  # [f, v]
    """Logits after the tokens that were fed; None where nothing was fed."""


def read_tokens(
    session: ModelSession,
    cache: KVCache,
    answer: Sequence[int],
    logits: Floats,
    watch: Stopwatch,
    *,
    layers: tuple[int, ...],
    statistics: Collection[str],
    feeds_last: bool,
) -> Iterator[ReadTokens]:
    """Feed a given response behind the prompt, `CHUNK_TOKENS` at a time, and yield what decoding it would have given.

    `logits` `[1, v]` are those after the prompt. The last token is not fed where the context is full, or where
    nothing is to be read after it.
    """
    fed = min(len(answer) - (not feeds_last), session.context_length - cache.longest)
    for begin in range(0, len(answer), CHUNK_TOKENS):
        token_ids = answer[begin : begin + CHUNK_TOKENS]
        started = time.perf_counter()
        hidden_states = after = None
        if fed > begin:
            out = session.prefill(cache, token_ids[: fed - begin], logits="all", layers=layers)
            hidden_states, after = out.hidden_states, out.logits
        read = time.perf_counter()
        before = logits if after is None else np.concatenate([logits, after])[: len(token_ids)]  # [t, v]
        of_tokens = token_statistics(
            before,
            np.array(token_ids, np.int64),
            entropy="entropy" in statistics,
            self_certainty="self_certainty" in statistics,
        )
        watch.prefill_s += read - started
        watch.sample_s += time.perf_counter() - read
        yield ReadTokens(token_ids, of_tokens, hidden_states, after)
        if after is not None:
            logits = after[-1:]


def read_answer(
    session: ModelSession,
    cache: KVCache,
    growing: GrowingCandidate,
    answer: Sequence[int],
    logits: Floats,
    watch: Stopwatch,
) -> None:
    """Feed a given response behind the prompt, and give `growing` what decoding it would have given."""
    ranking = growing.ranking
    for read in read_tokens(
        session,
        cache,
        answer,
        logits,
        watch,
        layers=ranking.layers,
        statistics=ranking.statistics,
        feeds_last=ranking.feeds_last,
    ):
        started = time.perf_counter()
        gates, rewards = ranking.evaluate(read.hidden_states, read.logits, read.statistics)
        watch.head_s += time.perf_counter() - started
        growing.add_tokens(read.token_ids, read.statistics, slice(None))
        growing.add_rewards(read.token_ids, gates, rewards)
