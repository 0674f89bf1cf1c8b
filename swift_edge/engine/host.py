"""Rows in NumPy's memory."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.row_memory import DrawingRow, RowMemory
from swift_edge.engine.sampling import sample
from swift_edge.engine.signals import TokenStatistics, summarize, token_statistics
from swift_edge.engine.states import StateWeights, state_products
from swift_edge.options import SamplingOptions

HUGE_PAGES_BYTES: Final = 2**22
"""Bytes of an array from which on NumPy asks for huge pages."""


class HostLogits:
    """Rows of logits in an array, float32 `[m, v]`."""

    def __init__(self, array: Floats) -> None:
        """Take the rows as they are; only `move` writes to them."""
        self._array = array

    @classmethod
    def repeated(cls, logits: Floats, rows: int) -> "HostLogits":
        """The same logits `[1, v]` for each of so many rows."""
        return cls(np.broadcast_to(logits, (rows, logits.shape[1])))

    def whole(self, places: Sequence[int] | None = None) -> Floats:
        """Logits of some rows, or of all, float32 `[m, v]`."""
        return self._array if places is None else self._array[list(places)]

    def move(self, source: int, target: int) -> None:
        """Put the last row, number `source`, into the place of another; there is one row less then."""
        # Rows that share one row of memory are all equal.
        if target != source and self._array.flags.writeable:
            self._array[target] = self._array[source]
        self._array = self._array[:source]

    def draw(self, rows: Sequence[DrawingRow], *, entropy: bool, self_certainty: bool) -> tuple[Ids, TokenStatistics]:
        """Draw the next token of each row, as `RowLogits` says: rows with equal options in one call."""
        logits = self._array
        summary = summarize(logits, entropy=entropy, self_certainty=self_certainty)
        first = rows[0].sampling
        if all(row.sampling is first or row.sampling == first for row in rows):
            token_ids = sample(logits, first, *_sampling_arguments(rows), summary=summary)
        else:
            alike: dict[SamplingOptions, list[int]] = {}
            for place, row in enumerate(rows):
                alike.setdefault(row.sampling, []).append(place)
            token_ids = np.empty(len(rows), np.int64)
            for sampling, places in alike.items():
                some = np.array(places)
                arguments = _sampling_arguments([rows[place] for place in places])
                token_ids[some] = sample(logits[some], sampling, *arguments, summary=summary.of(some))
        statistics = token_statistics(
            logits, token_ids, entropy=entropy, self_certainty=self_certainty, summary=summary
        )
        return token_ids, statistics


def _sampling_arguments(rows: Sequence[DrawingRow]) -> tuple[list[np.random.Generator], list[Ids] | None]:
    """The generators of rows with equal options, and the ids seen so far if a repetition penalty needs them."""
    seen = None if rows[0].sampling.repetition_penalty == 1 else [row.seen for row in rows]
    return [row.generator for row in rows], seen


class HostStates:
    """Hidden states in an array, float32 `[l, m, d]`."""

    def __init__(self, layers: tuple[int, ...], array: Floats) -> None:
        """Take the states of these layers as they are."""
        self._layers = layers
        self._array = array

    def of(self, layers: Sequence[int]) -> Floats:
        """States of some layers, float32 `[l, m, d]`; a view if these are all layers."""
        if tuple(layers) == self._layers:
            return self._array
        return self._array[[self._layers.index(layer) for layer in layers]]

    def products(self, weights: StateWeights) -> NDArray[np.float64]:
        """Their products with some weights, summed over the layers: float64 `[g, m]`."""
        return state_products(self.of(weights.layers), weights)


class HostLogitsMemory:
    """An array that the graph writes logits to."""

    def __init__(self, rows: int, vocab_size: int, dtype: DTypeLike) -> None:
        """Make room for so many rows of float32 or float16."""
        self.target: NDArray[Any] = np.empty((rows, vocab_size), dtype)
        self._exact = _as_float32(self.target)

    def written(self, places: Ids) -> HostLogits:
        """The rows at some places, after a run; a view if they are the first ones."""
        count = len(places)
        if count and int(places[-1]) == count - 1:
            if self._exact is not self.target:
                np.copyto(self._exact[:count], self.target[:count])
            return HostLogits(self._exact[:count])
        return HostLogits(self.target[places].astype(np.float32, copy=False))


class HostStatesMemory:
    """An array that the graph writes hidden states to."""

    def __init__(self, layers: tuple[int, ...], shape: tuple[int, int, int], dtype: DTypeLike) -> None:
        """Make room for states `[n, s, d]` of each layer, float32 or float16."""
        self._layers = layers
        self._array: NDArray[Any] = np.empty((len(layers), *shape), dtype)  # [l, n, s, d]
        self._exact = _as_float32(self._array)
        self.targets = list(self._array)

    def written(self, rows: int) -> HostStates:
        """The states of the first rows, after a run."""
        exact = self._exact[:, :rows]  # [l, n, s, d]
        if self._exact is not self._array:
            np.copyto(exact, self._array[:, :rows])
        layers, _, tokens, width = exact.shape
        # n is 1 in prefill and s is 1 in decode: one axis of tokens, and a view either way.
        return HostStates(self._layers, exact.reshape(layers, rows * tokens, width))


class HostMemory:
    """NumPy's memory as a `RowMemory`."""

    on_device = False

    def buffer(self, shape: tuple[int, int, int, int], dtype: DTypeLike) -> NDArray[Any]:
        """Memory `[n, h, c, k]` whose pages are taken from the system only when they are written."""
        # For larger arrays NumPy's `empty` asks for huge pages, which take memory as a whole. Smaller arrays often
        # reuse memory, which `zeros` would write in full.
        small = math.prod(shape) * np.dtype(dtype).itemsize < HUGE_PAGES_BYTES
        return np.empty(shape, dtype) if small else np.zeros(shape, dtype)

    def copy(self, source: NDArray[Any], target: NDArray[Any], tokens: int) -> None:
        """Copy the first `tokens` tokens of rows, or of a single row into all rows of `target`."""
        target[:, :, :tokens] = source[:, :, :tokens]

    def logits(self, rows: int, vocab_size: int, dtype: DTypeLike) -> HostLogitsMemory:
        """Memory for logits `[m, v]`."""
        return HostLogitsMemory(rows, vocab_size, dtype)

    def states(self, layers: tuple[int, ...], shape: tuple[int, int, int], dtype: DTypeLike) -> HostStatesMemory:
        """Memory for hidden states `[n, s, d]` of each layer."""
        return HostStatesMemory(layers, shape, dtype)


HOST: Final[RowMemory] = HostMemory()
"""The only one that is needed."""


def _as_float32(array: NDArray[Any]) -> Floats:
    """The array itself if it is float32, else memory of its shape to convert into."""
    return array if array.dtype == np.float32 else np.empty(array.shape, np.float32)
