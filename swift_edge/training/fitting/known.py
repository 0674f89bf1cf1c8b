"""What a head knows, from the states of its training problems: their axes, and the limit beyond which others begin."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles
from swift_edge.scoring.head import Head
from swift_edge.scoring.known import FALSE_ALARMS, FIRST_TOKENS, KnownStates, residual_energy
from swift_edge.training.fitting.examples import Candidates
from swift_edge.training.store.writer import Store

AXES: Final = 32
"""Most axes: fewer let foreign questions pass, more cost memory and training problems."""
LEAST_HELD_OUT: Final = math.ceil(1 / FALSE_ALARMS)
"""Fewest held-out problems that can set a limit which so few of them exceed."""
UNKNOWING: Final = (
    "the head does not tell foreign questions from its own: for that it needs at least "
    f"{LEAST_HELD_OUT} held-out problems, with the first {FIRST_TOKENS} tokens of each candidate stored"
)
"""What is noted where `Head.known` is None."""
LEAST_PROBLEMS: Final = 100
"""Fewest problems of a recalibration that give axes of their own."""
MOST_CANDIDATES: Final = 8192
"""Candidates from which the axes are made, evenly spread over those there are: more change nothing."""


def known_layer(layers: Sequence[int]) -> int:
    """The layer of a head's by which foreign questions are told: the last but one, before the final norm."""
    return layers[-2] if len(layers) > 1 else layers[-1]


def first_states(stores: Sequence[Store], candidates: Candidates, layer: int, tokens: int = FIRST_TOKENS) -> Doubles:
    """Mean states of the first tokens of each candidate, `[c, d]`; NaN for one whose first tokens are not stored."""
    shards = [shard for store in stores for shard in store.shards]
    place = stores[0].info.layers.index(layer)
    means = np.full((len(candidates.tokens), stores[0].info.width), np.nan)
    for candidate, number in enumerate(candidates.shard.tolist()):
        begin = int(candidates.begins[candidate])
        rows = slice(begin, begin + min(tokens, int(candidates.tokens[candidate])))
        shard = shards[number]
        shard.require_whole()
        positions = shard.positions[rows]
        if np.array_equal(positions, np.arange(len(positions))):
            means[candidate] = shard.states[rows, place].astype(np.float64).mean(axis=0)
    return means


def fit_known(training: Doubles, held_out: Doubles, layer: int) -> KnownStates | None:
    """What the mean first states of the training candidates `[c, d]` span, and the limit.

    `held_out` are those of the picks of other problems, `[p, d]`. None where either has too few, NaN left out.
    """
    training = training[np.isfinite(training).all(axis=1)]
    training = training[:: max(1, math.ceil(len(training) / MOST_CANDIDATES))]
    there = np.isfinite(held_out).all(axis=1)
    if len(training) < 2 or there.sum() < LEAST_HELD_OUT:
        return None
    mean, scale = training.mean(axis=0), training.std(axis=0)
    scale = np.maximum(scale, np.abs(mean) * 2.0**-12)  # what varies by less is rounding of float16
    scale[scale < 1e-30] = 1.0
    standard = (training - mean) / scale
    spread, axes = np.linalg.eigh(standard.T @ standard / len(standard))
    # As many as there are dimensions to spare, and problems to tell them from noise.
    count = min(AXES, training.shape[1] // 2, len(training) // 4, int((spread > 1e-9).sum()))
    chosen = axes[:, ::-1][:, :count].T.astype(np.float16)
    limit = _limit(residual_energy(held_out[there], mean, scale, chosen))
    return KnownStates(
        mean.astype(np.float32), scale.astype(np.float32), chosen, layer, FIRST_TOKENS, limit, int(there.sum())
    )


def known_from(
    head: Head, stores: Sequence[Store], candidates: Candidates, scores: Doubles, *, same_states: bool
) -> KnownStates | None:
    """What a head knows whose calibration these candidates are: half of the problems give axes, half the limit.

    Where they are few, the limit alone is set, if the head's own axes are of the `same_states`. None where nothing can.
    """
    if head.feature != "hidden":
        return None
    layer = known_layer(head.layers) if head.known is None else head.known.layer
    states = first_states(stores, candidates, layer)
    picks = picked_first(scores, candidates.problems, candidates.cut_off)
    known = None
    if len(picks) >= LEAST_PROBLEMS:
        known = fit_known(states[candidates.problems % 2 == 0], states[picks][1::2], layer)
    if known is None and head.known is not None and same_states:
        known = relimited(head.known, states[picks])
    return known


def relimited(known: KnownStates, picks: Doubles) -> KnownStates | None:
    """The same axes with the limit of other picks' mean first states, `[p, d]`; None where these are too few."""
    picks = picks[np.isfinite(picks).all(axis=1)]
    if len(picks) < LEAST_HELD_OUT:
        return None
    limit = _limit(residual_energy(picks, known.mean, known.scale, known.axes))
    return replace(known, limit=limit, problems=len(picks))


def _limit(energies: Doubles) -> float:
    """The energy that a new problem of the same kind exceeds with a chance of `FALSE_ALARMS` at most."""
    rank = math.ceil((1 - FALSE_ALARMS) * (len(energies) + 1))
    return max(float(np.sort(energies)[min(rank, len(energies)) - 1]), 1e-12)


def picked_first(scores: Doubles, problems: NDArray[np.int64], cut_off: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The candidate with the greatest score of each problem, whole ones first, `[p]`; `problems` `[c]` come in runs."""
    order = np.lexsort((-np.nan_to_num(scores, nan=-np.inf), cut_off, problems))
    firsts: NDArray[np.int64] = order[np.append(True, np.diff(problems[order]) != 0)]
    return firsts
