"""The interface of the memory that rows live in: keys and values, logits and hidden states.

It has two implementations: `host.HostMemory` in NumPy's memory, and `device.rows.DeviceMemory` on the device that
computes. `DecoderGraph.open` chooses one.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.signals import TokenStatistics
from swift_edge.engine.states import StateWeights
from swift_edge.options import SamplingOptions


class DrawingRow(Protocol):
    """A row whose next token is due."""

    @property
    def sampling(self) -> SamplingOptions:
        """How its tokens are drawn."""

    @property
    def generator(self) -> np.random.Generator:
        """Its random numbers."""

    @property
    def seen(self) -> Ids:
        """Prompt and response so far, int64 `[p + t]`."""


class RowLogits(Protocol):
    """Logits `[m, v]` of m rows; they hold until the graph runs again with the same memory."""

    def whole(self, places: Sequence[int] | None = None) -> Floats:
        """Logits of some rows, or of all, float32 `[m, v]`."""

    def move(self, source: int, target: int) -> None:
        """Put the last row, number `source`, into the place of another; there is one row less then."""

    def draw(self, rows: Sequence[DrawingRow], *, entropy: bool, self_certainty: bool) -> tuple[Ids, TokenStatistics]:
        """Draw the next token of each row, int64 `[m]`, with its statistics.

        A row's token and its statistics do not depend on the rows beside it. Raises `LogitsError`, before anything is
        drawn, where a row holds NaN, +inf, or nothing but -inf.
        """


class RowStates(Protocol):
    """Hidden states of m tokens; they hold until the graph runs again with the same memory."""

    def of(self, layers: Sequence[int]) -> Floats:
        """States of some layers, float32 `[l, m, d]`."""

    def products(self, weights: StateWeights) -> NDArray[np.floating]:
        """Their products with some weights, summed over the layers: `[g, m]`."""


class LogitsMemory(Protocol):
    """Memory that the graph writes logits to."""

    @property
    def target(self) -> Any:
        """The array to bind, `[m, v]`, rows first."""

    def written(self, places: Ids) -> RowLogits:
        """The rows at some places, after a run."""


class StatesMemory(Protocol):
    """Memory that the graph writes hidden states to."""

    @property
    def targets(self) -> Sequence[Any]:
        """The array to bind for each layer, `[n, s, d]`, rows first."""

    def written(self, rows: int) -> RowStates:
        """The states of the first rows, after a run."""


class RowMemory(Protocol):
    """Memory for rows."""

    @property
    def on_device(self) -> bool:
        """Whether it lies on a device where NumPy cannot read it."""

    def buffer(self, shape: tuple[int, int, int, int], dtype: DTypeLike) -> Any:
        """Memory for keys or values `[n, h, c, k]`."""

    def copy(self, source: Any, target: Any, tokens: int) -> None:
        """Copy the first `tokens` tokens of rows `[n, h, c, k]`, or of a single row into all rows of `target`."""

    def logits(self, rows: int, vocab_size: int, dtype: DTypeLike) -> LogitsMemory:
        """Memory for logits `[m, v]`."""

    def states(self, layers: tuple[int, ...], shape: tuple[int, int, int], dtype: DTypeLike) -> StatesMemory:
        """Memory for hidden states `[n, s, d]` of each layer."""
