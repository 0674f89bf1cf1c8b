"""A given response read in one go: the figures that decoding it would give, up to rounding, without sampling.

Knows one row and one candidate. Does not know where the text comes from, or how candidates compare.
"""

import time
from collections.abc import Sequence

import numpy as np

from swift_edge.kv_cache import KVCache
from swift_edge.scoring import GrowingCandidate
from swift_edge.session import Floats, ModelSession
from swift_edge.signals import token_statistics
from swift_edge.stopwatch import Stopwatch

CHUNK_TOKENS = 64
"""Response tokens per run of the graph: each of them has a row of logits, and maybe hidden states."""


def read_answer(
    session: ModelSession,
    cache: KVCache,
    growing: GrowingCandidate,
    answer: Sequence[int],
    logits: Floats,
    watch: Stopwatch,
) -> None:
    """Feed a given response behind the prompt, and give `growing` what decoding it would have given.

    `logits` `[1, v]` are those after the prompt. The last token is not fed where the context is full, or where
    nothing is to be read from it.
    """
    ranking = growing.ranking
    fed = min(len(answer) - (ranking.head is None), session.context_length - cache.longest)
    for begin in range(0, len(answer), CHUNK_TOKENS):
        token_ids = answer[begin : begin + CHUNK_TOKENS]
        started = time.perf_counter()
        hidden_states = after = None
        if fed > begin:
            out = session.prefill(cache, token_ids[: fed - begin], logits="all", layers=ranking.layers)
            hidden_states, after = out.hidden_states, out.logits
        read = time.perf_counter()
        before = logits if after is None else np.concatenate([logits, after])[: len(token_ids)]  # [t, v]
        statistics = token_statistics(
            before,
            np.array(token_ids, np.int64),
            entropy="entropy" in ranking.statistics,
            self_certainty="self_certainty" in ranking.statistics,
        )
        sampled = time.perf_counter()
        gates, rewards = ranking.evaluate(hidden_states, after, statistics)
        watch.prefill_s += read - started
        watch.sample_s += sampled - read
        watch.head_s += time.perf_counter() - sampled
        growing.add_tokens(token_ids, statistics, slice(None))
        growing.add_rewards(token_ids, gates, rewards)
        if after is not None:
            logits = after[-1:]
