"""Scores of stored candidates as the runtime computes them, for the tests of fitting."""

import numpy as np
from numpy.typing import NDArray

from swift_edge.engine import TokenStatistics
from swift_edge.scoring import Head, RunningScore
from swift_edge.training import Store


def scores_of(head: Head, store: Store) -> NDArray[np.float64]:
    """Scores as the runtime computes them, candidate by candidate."""
    places = [store.info.layers.index(layer) for layer in head.layers] or [0]
    scores = []
    for shard in store.shards:
        for begin, end in zip(shard.starts[:-1], shard.starts[1:], strict=True):
            states = np.ascontiguousarray(shard.states[begin:end, places].transpose(1, 0, 2))
            logprob, entropy, _ = shard.statistics[begin:end].astype(np.float64).T
            counted = np.ones(end - begin, bool)
            if not head.includes_eos:
                counted[-1] = shard.token_ids[end - 1] not in store.info.eos_ids
            gates, rewards = head.evaluate(states, TokenStatistics(logprob, entropy))
            running = RunningScore()
            running.add_all(gates[counted].tolist(), rewards[counted].tolist())
            scores.append(running.score)
    return np.array(scores)
