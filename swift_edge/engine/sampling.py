"""Logits to token ids: repetition penalty, temperature, top-k, top-p, min-p, then one draw per row.

The filters mean what they mean in transformers and come in its order. The nucleus is exact without sorting the
vocabulary: a threshold reduces it first, and where the nucleus is wide the threshold is searched. A row's token
depends on its logits and its generator alone, never on the rows beside it.

Ties. Top-k keeps every token whose logit equals the k-th greatest, as transformers does, so it may keep more than k.
Where the nucleus ends inside a group of equal logits, the lowest ids of the group are kept, so that a narrow nucleus
holds what greedy takes; transformers keeps as many, but which ones its unstable sort leaves open.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.checks import expect
from swift_edge.engine.signals import CHUNK_LOGITS, LogitSummary, require_distribution
from swift_edge.errors import InvalidOptionError
from swift_edge.options import SamplingOptions

_FIRST_TAIL = 1024
"""Most tokens just below the first threshold of the nucleus, as it assumes."""
_SORT_LIMIT = 2048
"""Most tokens to sort; more are first cut down by a histogram."""
_BUCKETS = 4096
"""Buckets of that histogram."""
_BLOCK = 128
"""Tokens per block in the unfiltered draw, which looks for the block first."""


def candidate_generator(seed: int, index: int, prompt_ids: NDArray[np.int64]) -> np.random.Generator:
    """Random numbers of candidate `index` of a prompt, int64 [p]: a stream of its own, whatever the others draw.

    `seed` and `index` must lie in 0..2**64-1, else `InvalidOptionError`. The prompt is part of the key: with one seed
    for many prompts, candidate i would otherwise draw the same numbers every time, lucky or unlucky on all of them.
    """
    for name, value in (("seed", seed), ("candidate index", index)):
        expect(0 <= value < 2**64, name, value, "an integer from 0 to 2**64 - 1")
    ids = np.ascontiguousarray(prompt_ids, dtype="<i8")
    digest = int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
    # Streams of one key lie 2**192 draws apart.
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, digest], dtype=np.uint64), counter=counter))


def sample(
    logits: NDArray[Any],
    options: SamplingOptions,
    generators: Sequence[np.random.Generator],
    seen: Sequence[NDArray[np.int64]] | None = None,
    *,
    summary: LogitSummary | None = None,
) -> NDArray[np.int64]:
    """Draw one token id per row, int64 [m], from `logits`, float32 or float16 [m, v], which stay as they are.

    `generators` holds one generator per row; each gives one uniform number, or none at temperature 0. `seen` holds the
    ids of the prompt and the response so far of each row, in any order, repeats allowed; only a repetition penalty
    needs it. `summary` is what `signals.summarize` made of the same logits; it saves a pass at temperature 1 and never
    changes the result. The draw is the inverse CDF in float64 over the kept tokens in ascending id.

    Raises `LogitsError` for NaN, +inf, or nothing but -inf in a row, `InvalidOptionError` where rows and arguments do
    not match.
    """
    rows = logits.shape[0]
    if logits.ndim != 2 or len(generators) != rows or (seen is not None and len(seen) != rows):
        raise InvalidOptionError(
            f"logits of shape {list(logits.shape)} came with {len(generators)} generators"
            f"{'' if seen is None else f' and {len(seen)} lists of seen ids'}; expected [m, v] and one of each per row"
        )
    token_ids = np.empty(rows, np.int64)  # [m]
    if not rows:
        return token_ids
    if summary is not None:
        maxima = summary.maximum  # [m]
    else:
        maxima = logits.max(axis=1).astype(np.float32)  # [m]
        require_distribution(maxima)
    if options.draws_from_all and options.repetition_penalty == 1:
        uniforms = np.array([generator.random() for generator in generators])  # [m]
        if options.temperature == 1 and summary is not None and summary.exponentials is not None:
            return _draw_unfiltered(summary.exponentials, uniforms)
        step = max(1, CHUNK_LOGITS // logits.shape[1])
        for start in range(0, rows, step):
            part = slice(start, start + step)
            scaled = _scaled(np.asarray(logits[part], np.float32), maxima[part], options.temperature)
            token_ids[part] = _draw_unfiltered(_float_exponentials(*scaled), uniforms[part])
        return token_ids
    for row in range(rows):
        normalizer = None if summary is None else float(summary.log_normalizer[row])
        seen_ids = None if seen is None else seen[row]
        token_ids[row] = _draw_row(logits[row], maxima[row], options, generators[row], seen_ids, normalizer)
    return token_ids


def sample_most_likely(
    logits: NDArray[np.float32],
    token_ids: NDArray[np.int64],
    vocab_size: int,
    options: SamplingOptions,
    generator: np.random.Generator,
    seen: NDArray[np.int64] | None,
    log_scaled: float,
) -> int | None:
    """Draw what `sample` draws from one row, given its k greatest logits [k] and their ids [k], in descending order.

    `log_scaled` is the log of the sum over the whole row of exp((logit - greatest logit) / temperature). None, and
    nothing is drawn, if the filters might keep a token that is not among these.
    """
    order = np.argsort(token_ids)
    ids, penalty = token_ids[order], options.repetition_penalty
    least = logits[-1] if ids.size < vocab_size else np.float32(-np.inf)  # no other logit is greater
    row = logits[order]
    if penalty != 1 and seen is not None:
        row = after_penalty(row, penalty, np.flatnonzero(np.isin(ids, seen)))
    maximum = row.max()
    if penalty < 1 or maximum <= least or options.draws_from_all:
        return None
    if options.temperature == 0:
        return int(ids[row.argmax()])
    both, top = _scaled(np.append(row, least), maximum, options.temperature)  # [k + 1]
    cut = options.top_k if options.top_k and options.top_k < vocab_size else 0
    by_mass = options.top_p < 1 and not cut
    if cut >= ids.size or (by_mass and (penalty != 1 or options.min_p)):
        return None
    if cut and np.partition(both[:-1], ids.size - cut)[ids.size - cut] <= both[-1]:
        return None  # top-k keeps all that equal the k-th, and the nucleus is a share of all that it keeps
    if by_mass:
        # No threshold first: it supposes that what it leaves out is all there is, and these are few.
        every = _exponentials(both[:-1], float(top) + log_scaled)
        places = _nucleus(both[:-1], every, options.top_p)
        weights = every[places]
    else:
        places, weights = _filtered(both[:-1], float(top), options, None)
    if both[places].min() <= both[-1]:
        return None
    reached = np.cumsum(weights)[np.newaxis]  # [1, kept]
    return int(ids[places[_first_above(reached, generator.random() * reached[:, -1])[0]]])


def after_penalty(logits: NDArray[Any], penalty: float, seen: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """The row of logits as float32 [v] after the repetition penalty; the row itself where nothing changes."""
    row: NDArray[np.float32] = np.asarray(logits, dtype=np.float32)
    if penalty == 1:
        return row
    if seen is None:
        raise InvalidOptionError(f"repetition_penalty is {penalty}, but the ids seen so far are missing; pass `seen`")
    seen_ids = np.asarray(seen, dtype=np.int64)
    # A tokenizer may know ids that the output layer does not; they cannot come and need no penalty.
    seen_ids = seen_ids[(seen_ids >= 0) & (seen_ids < row.size)]
    values = row[seen_ids]
    factor = np.float32(penalty)
    changed = row.copy()
    changed[seen_ids] = np.where(values < 0, values * factor, values / factor)
    return changed


def kept_weights(
    logits: NDArray[np.float32], maximum: np.float32, options: SamplingOptions, log_normalizer: float | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids of one row `[v]`, after the penalty, that pass the filters at the temperature, and their weights.

    The ids ascend; the weights are to each other as the probabilities are.

    >>> logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    >>> kept_weights(logits, logits.max(), SamplingOptions(top_p=0.7))
    (array([1, 2]), array([0.60000001, 0.29999999]))
    """
    if options.temperature != 1:
        log_normalizer = None  # it belongs to the logits as they were
    scaled, scaled_maximum = _scaled(logits, maximum, options.temperature)  # [v]
    return _filtered(scaled, float(scaled_maximum), options, log_normalizer)


def _draw_row(
    logits: NDArray[Any],
    maximum: np.float32,
    options: SamplingOptions,
    generator: np.random.Generator,
    seen: NDArray[np.int64] | None,
    log_normalizer: float | None,
) -> int:
    penalized = after_penalty(logits, options.repetition_penalty, seen)  # [v]
    if options.temperature == 0:
        return int(penalized.argmax())
    if options.repetition_penalty != 1:
        # Both belong to the logits as they were.
        maximum, log_normalizer = penalized.max(), None
    uniform = float(generator.random())
    if options.draws_from_all:
        scaled, scaled_maximum = _scaled(penalized, maximum, options.temperature)  # [v]
        exponentials = _float_exponentials(scaled, scaled_maximum)
        return int(_draw_unfiltered(exponentials[np.newaxis], np.array([uniform]))[0])
    token_ids, weights = kept_weights(penalized, maximum, options, log_normalizer)
    reached = np.cumsum(weights)[np.newaxis]  # [1, kept]
    return int(token_ids[_first_above(reached, uniform * reached[:, -1])[0]])


def _scaled(
    logits: NDArray[np.float32], maxima: NDArray[np.float32] | np.float32, temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.float32] | np.float32]:
    """Rows `[..., v]` with maxima `[...]`, divided by the temperature up to a constant, and their new maxima."""
    if temperature == 1:
        return logits, maxima
    # Subtracted first, so that a low temperature cannot overflow; a constant does not change the distribution.
    shifted = logits - np.expand_dims(maxima, -1)
    shifted /= np.float32(temperature)
    return shifted, np.zeros_like(maxima)


def _filtered(
    scaled: NDArray[np.float32], maximum: float, options: SamplingOptions, log_normalizer: float | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that pass the filters, ascending, and their weights, which need not sum to 1."""
    vocab_size = scaled.size
    token_ids: NDArray[np.int64]
    if options.top_k and options.top_k < vocab_size:
        token_ids = _top_k(scaled, options.top_k)
        weights = _exponentials(scaled[token_ids], maximum)
        if options.top_p < 1:
            nucleus = _nucleus(scaled[token_ids], weights, options.top_p * float(weights.sum()))
            token_ids, weights = token_ids[nucleus], weights[nucleus]
    elif options.top_p < 1:
        if log_normalizer is None:
            total = _float_exponentials(scaled, np.float32(maximum)).sum()
            log_normalizer = maximum + math.log(total)
        # Fewer than _FIRST_TAIL tokens just below the threshold cannot hold the mass that may be dropped. There may be
        # more, so the mass above it is checked; below the last threshold even v tokens could not hold it.
        for tail in (_FIRST_TAIL, 2 * vocab_size):
            threshold = log_normalizer + math.log((1 - options.top_p) / tail)
            token_ids = np.flatnonzero(scaled >= np.float32(threshold))
            weights = _exponentials(scaled[token_ids], log_normalizer)
            if weights.sum() >= options.top_p:
                break
        nucleus = _nucleus(scaled[token_ids], weights, options.top_p)
        token_ids, weights = token_ids[nucleus], weights[nucleus]
    elif options.min_p:
        # A little wider than the filter, which then decides in float64.
        token_ids = np.flatnonzero(scaled >= np.float32(maximum + math.log(options.min_p) - 1e-3))
        weights = _exponentials(scaled[token_ids], maximum)
    else:
        token_ids = np.arange(vocab_size)
        weights = _exponentials(scaled, maximum)
    if options.min_p:
        likely = weights >= options.min_p * weights.max()
        token_ids, weights = token_ids[likely], weights[likely]
    return token_ids, weights


def _exponentials(values: NDArray[np.float32], offset: float) -> NDArray[np.float64]:
    exponents = values.astype(np.float64)
    exponents -= offset
    np.exp(exponents, out=exponents)
    return exponents


def _float_exponentials(scaled: NDArray[np.float32], maxima: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """Exponentials of rows `[..., v]` less their maxima `[...]`."""
    if not maxima.any():
        return np.exp(scaled)  # as `_scaled` leaves them
    exponents = scaled - np.expand_dims(maxima, -1)
    np.exp(exponents, out=exponents)
    return exponents


def _top_k(scaled: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Ascending ids of the k greatest values and of all that equal the k-th."""
    columns = scaled.size // 64
    token_ids: NDArray[np.int64]
    if columns >= k:
        # k columns have a maximum of at least the k-th greatest maximum, so k values do: a bound that is cheap to find.
        maxima = scaled[: columns * 64].reshape(64, columns).max(axis=0)
        token_ids = np.flatnonzero(scaled >= np.partition(maxima, columns - k)[columns - k])
        values = scaled[token_ids]
    else:
        token_ids = np.arange(scaled.size)
        values = scaled
    least = np.partition(values, values.size - k)[values.size - k]
    greatest: NDArray[np.int64] = token_ids[values >= least]
    return greatest


def _nucleus(values: NDArray[np.float32], weights: NDArray[np.float64], target: float) -> NDArray[np.int64]:
    """Ascending indices of the most likely tokens, up to and including the one whose weight reaches `target` (above 0).

    A token is kept as long as the weight of all tokens before it, in descending order, is below the target.
    """
    active = np.arange(values.size)  # where the boundary lies, ascending
    while active.size > _SORT_LIMIT:
        remaining = values[active].astype(np.float64)
        top, bottom = float(remaining.max()), float(remaining.min())
        if top == bottom:
            count = max(1, min(active.size, math.ceil(target / weights[active[0]])))
            return _from_boundary(values, top, ties=count)
        # Rounding keeps the order of the values, so every bucket is above the next: the search is exact.
        np.subtract(top, remaining, out=remaining)
        remaining *= (_BUCKETS - 1) / (top - bottom)
        buckets = remaining.astype(np.intp)
        reached = np.cumsum(np.bincount(buckets, weights=weights[active], minlength=_BUCKETS))
        crossing = min(int(np.searchsorted(reached, target)), int(buckets.max()))
        if crossing:
            target -= float(reached[crossing - 1])
        active = active[buckets == crossing]
    order = active[np.argsort(-values[active], kind="stable")]  # descending
    count = min(int(np.searchsorted(np.cumsum(weights[order]), target)) + 1, order.size)
    boundary = values[order[count - 1]]
    return _from_boundary(values, boundary, ties=int(np.count_nonzero(values[order[:count]] == boundary)))


def _from_boundary(values: NDArray[np.float32], boundary: float, ties: int) -> NDArray[np.int64]:
    """Ascending indices of all values above the boundary and of the first `ties` values that equal it."""
    last = int(np.flatnonzero(values == boundary)[ties - 1])
    mask = values > boundary
    np.greater_equal(values[: last + 1], boundary, out=mask[: last + 1])
    return np.flatnonzero(mask)


def _draw_unfiltered(weights: NDArray[np.float32], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Inverse CDF over the whole vocabulary for m rows `[m, v]`: sums of blocks first, then within one block."""
    rows, vocab_size = weights.shape
    blocks = -(-vocab_size // _BLOCK)
    if vocab_size % _BLOCK:
        padded = np.zeros((rows, blocks * _BLOCK), np.float32)  # zero behind the vocabulary
        padded[:, :vocab_size] = weights
        weights = padded
    in_blocks = weights.reshape(rows, blocks, _BLOCK)
    reached = in_blocks.sum(axis=2).cumsum(axis=1, dtype=np.float64)  # [m, blocks]
    targets = uniforms * reached[:, -1]  # [m]
    block = _first_above(reached, targets)  # [m]
    every = np.arange(rows)
    targets -= np.where(block > 0, reached[every, block - 1], 0.0)
    return block * _BLOCK + _first_above(in_blocks[every, block].cumsum(axis=1, dtype=np.float64), targets)


def _first_above(reached: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    """First index of each row of running sums `[m, k]` that exceeds the row's target `[m]`: never one of weight zero.

    Where rounding puts the target at the total, it is the last index that added anything.
    """
    below_total = np.minimum(targets, np.nextafter(reached[:, -1], 0.0))
    places: NDArray[np.int64] = (reached <= below_total[:, np.newaxis]).sum(axis=1)
    return places
