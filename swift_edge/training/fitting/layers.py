"""Which hidden states say most of whether a response is right: tried by cross-validation, before a head is fitted.

A plain logistic regression on a response's mean states is close to what a head comes to, and takes a second a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles
from swift_edge.scoring.calibration import sigmoid
from swift_edge.scoring.quality import within_problem_auroc
from swift_edge.system.extras import import_extra
from swift_edge.training.fitting.examples import Candidates, Examples, survey
from swift_edge.training.fitting.inputs import Inputs, Runs, TokenRows
from swift_edge.training.store.writer import Store

FOLDS: Final = 5
"""Parts that the problems are dealt into; each is judged by what was fitted to the others."""
WEIGHT_DECAYS: Final = (0.1, 0.6)
"""L2 penalties that are tried for each choice; more layers want more."""
LAST: Final = 4
"""Last layers that are tried together, as the method's paper does (arXiv 2505.12225)."""
MOST_ITERATIONS: Final = 60
"""Of each descent."""
BLOCK_BYTES: Final = 2**28
"""What blocks of states are read for, see `Examples.of`."""


@dataclass(frozen=True, slots=True)
class TriedLayers:
    """Layers that were tried together."""

    layers: tuple[int, ...]
    """Hidden states, ascending."""
    auroc: float
    """Chance that a right response outranks a wrong one of the same problem, which it was not fitted to."""


def try_layers(
    stores: Sequence[Store],
    candidates: Candidates,
    problems: range,
    *,
    memory_bytes: int,
    seed: int,
    tell: Callable[[str], None],
) -> list[TriedLayers]:
    """Try each layer of the stores, then the best one with neighbours, and the last ones; the best choice first.

    The best layer is that whose neighbours are good, too: a few hundred problems tell two layers apart by luck.

    Only responses of `problems`, the first ones, that were written to their ends count, and no more of them than their
    mean states fit into `memory_bytes`. Of equal choices the one with fewer layers is first; what was only tried alone
    comes behind. Raises `MissingExtraError` without SciPy.
    """
    layers = stores[0].info.layers
    most = memory_bytes // (4 * len(layers) * stores[0].info.width)
    counted = (candidates.problems < problems.stop) & ~candidates.cut_off
    members = np.flatnonzero(counted)[:most]
    means = _mean_states(stores, candidates, members)  # [c, l, d]
    correct, numbers = candidates.correct[members], candidates.problems[members]
    folds = np.random.default_rng(seed).integers(FOLDS, size=problems.stop)[numbers]

    def tried(places: Sequence[int]) -> TriedLayers:
        inputs = means[:, places].reshape(len(members), -1)
        aurocs = [_auroc(inputs, correct, numbers, folds, decay) for decay in WEIGHT_DECAYS]
        found = TriedLayers(tuple(layers[place] for place in places), max(aurocs))
        tell(f"layers {', '.join(map(str, found.layers))}: within-problem AUROC {found.auroc:.4f} in cross-validation")
        return found

    alone = [tried([place]) for place in range(len(layers))]
    aurocs = np.array([each.auroc for each in alone])
    best = int(np.argmax([aurocs[max(0, place - 1) : place + 2].mean() for place in range(len(layers))]))
    judged = [alone[best], *(tried(places) for places in _sets(best, len(layers)))]
    judged.sort(key=lambda each: (-each.auroc, len(each.layers)))
    return [*judged, *(each for each in alone if each is not alone[best])]


def _sets(best: int, count: int) -> Iterator[list[int]]:
    """Places of layers to try together."""
    for step in (1, 2):
        places = [place for place in (best - step, best, best + step) if 0 <= place < count]
        if len(places) > 1:
            yield places
    if 1 < LAST < count:
        yield list(range(count - LAST, count))


def _mean_states(stores: Sequence[Store], candidates: Candidates, members: NDArray[np.int64]) -> NDArray[np.float32]:
    """The mean of the states of some candidates' tokens, [c, l, d]."""
    info = stores[0].info
    problems, numbers = np.unique(candidates.problems[members], return_inverse=True)
    chosen = candidates.chosen(members, numbers, problems)
    runs = Runs(chosen.shard, chosen.begins, chosen.tokens)
    shards = [shard for store in stores for shard in store.shards]
    rows = TokenRows(shards, runs, Inputs(info.layers), range(len(info.layers)))
    pooled = survey(Examples.of(chosen, rows, BLOCK_BYTES), range(len(problems)), stores, pool=True).pooled
    assert pooled is not None
    return pooled.rows.read(0, len(members)).reshape(len(members), len(info.layers), info.width)


def _auroc(
    inputs: NDArray[np.float32],
    correct: NDArray[np.bool_],
    numbers: NDArray[np.int64],
    folds: NDArray[np.int64],
    decay: float,
) -> float:
    """Within-problem AUROC of scores by what was fitted to the other folds."""
    scores = np.zeros(len(inputs))
    for fold in range(FOLDS):
        inside = folds == fold
        if inside.any() and not inside.all():
            scores[inside] = _fitted(inputs[~inside], correct[~inside], decay)(inputs[inside])
    return within_problem_auroc(scores, correct, numbers)


def _fitted(
    inputs: NDArray[np.float32], correct: NDArray[np.bool_], decay: float
) -> Callable[[NDArray[np.float32]], Doubles]:
    """Scores by a logistic regression on standardised inputs [c, f]."""
    optimize: Any = import_extra("scipy.optimize", "fit", "train")
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale[scale == 0] = 1
    standard, labels = (inputs - mean) / scale, correct.astype(np.float64)

    def cost(vector: Doubles) -> tuple[float, Doubles]:
        weight, bias = vector[:-1], vector[-1]
        scores = standard @ weight.astype(np.float32) + bias
        slopes = (sigmoid(scores) - labels) / len(labels)
        loss = float((np.logaddexp(0.0, scores) - labels * scores).mean() + 0.5 * decay * weight @ weight)
        return loss, np.append(slopes.astype(np.float32) @ standard + decay * weight, slopes.sum())

    found = optimize.minimize(
        cost, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS}
    ).x
    return lambda other: ((other - mean) / scale) @ found[:-1] + found[-1]
