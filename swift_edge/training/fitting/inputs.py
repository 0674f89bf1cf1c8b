"""Inputs of tokens, one row each, read in blocks: the states of the layers one after the other, then token statistics.

Memory is bounded: rows are held where they fit, as float32 or else as float16, and otherwise read from the memory maps
at every pass; the numbers are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from swift_edge.scoring.head import RMS_EPSILON, Norm, TokenStatistic
from swift_edge.training.store.format import STATISTICS
from swift_edge.training.store.shards import Shard


@dataclass(frozen=True, slots=True)
class Inputs:
    """What of a token a head reads, in the head's order."""

    layers: tuple[int, ...]
    """Hidden states; empty for logits."""
    token_statistics: tuple[TokenStatistic, ...] = ()
    """Token statistics, after the states."""
    norm: Norm = "none"
    """What is done to each state first."""
    includes_eos: bool = True
    """Whether the token that ends a response counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of rows in shards, such as the tokens of candidates; at least one."""

    shard: NDArray[np.int64]  # [c]
    """Which shard."""
    begins: NDArray[np.int64]  # [c]
    """First row there."""
    lengths: NDArray[np.int64]  # [c]
    """Rows, at least one."""


class Rows(Protocol):
    """Inputs of tokens, one row each, wherever they come from."""

    inputs: int
    """Inputs f of a row."""

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows `begin` to `end`, `[m, f]`; not to be written to."""


class ArrayRows:
    """Rows that are there already."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        """Take the rows, `[m, f]`."""
        self.inputs = int(array.shape[1])
        self._array = array

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """A view of the rows."""
        return self._array[begin:end]


class TokenRows:
    """Inputs of the tokens of some candidates, read from the shards, or held where memory allows."""

    def __init__(self, shards: Sequence[Shard], runs: Runs, inputs: Inputs, places: Sequence[int]) -> None:
        """Take the shards, the runs of rows to read, in order, and the `places` of the layers in the shards' states."""
        self._shards = shards
        self._places = tuple(places)
        self._columns = [STATISTICS.index(name) for name in inputs.token_statistics]
        self._norm = inputs.norm
        self._width = int(shards[0].states.shape[2])
        self._states = len(self._places) * self._width
        self.inputs = self._states + len(self._columns)
        self._held: NDArray[np.float32] | None = None
        self._held_states: NDArray[np.float16] | None = None
        self._held_statistics: NDArray[np.float32] | None = None
        # Runs that follow each other in a shard are read as one.
        ends = runs.begins + runs.lengths
        follows = (runs.shard[1:] == runs.shard[:-1]) & (runs.begins[1:] == ends[:-1])
        firsts = np.flatnonzero(np.append(True, ~follows))
        starts = starts_of(runs.lengths)
        self._run_starts = np.append(starts[firsts], starts[-1])  # [runs + 1]
        self._run_shards, self._run_begins = runs.shard[firsts], runs.begins[firsts]

    def hold(self, available: int, block_rows: int) -> None:
        """Load everything once, if `available` bytes are enough: as float32, else as float16, else not at all."""
        total = int(self._run_starts[-1])
        parts = [slice(at, min(at + block_rows, total)) for at in range(0, total, block_rows)]
        if total * self.inputs * 4 <= available:
            held = np.empty((total, self.inputs), np.float32)
            for part in parts:
                held[part] = self.read(part.start, part.stop)
            self._held = held
        elif total * (self._states * 2 + len(self._columns) * 4) <= available:
            states = np.empty((total, self._states), np.float16)
            statistics = np.empty((total, len(self._columns)), np.float32)
            for part in parts:
                self._read_runs(part, states[part], statistics[part])
            self._held_states, self._held_statistics = states, statistics

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows `begin` to `end`, `[m, f]`: the states of the layers one after the other, then the statistics."""
        if self._held is not None:
            return self._held[begin:end]
        block = np.empty((end - begin, self.inputs), np.float32)
        states, statistics = block[:, : self._states], block[:, self._states :]
        if self._held_states is not None and self._held_statistics is not None:
            states[...] = self._held_states[begin:end]
            statistics[...] = self._held_statistics[begin:end]
        else:
            self._read_runs(slice(begin, end), states, statistics)
        if self._norm == "rms":
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told where it is looked for
                for at in range(0, self._states, self._width):
                    state = states[:, at : at + self._width]
                    squares = np.einsum("mw,mw->m", state, state) / np.float32(self._width)
                    state /= np.sqrt(squares + np.float32(RMS_EPSILON))[:, np.newaxis]
        return block

    def place_of(self, row: int) -> tuple[int, int]:
        """Which shard a row lies in, and where."""
        run = int(np.searchsorted(self._run_starts, row, side="right")) - 1
        return int(self._run_shards[run]), int(self._run_begins[run] + row - self._run_starts[run])

    def _read_runs(self, rows: slice, states: NDArray[Any], statistics: NDArray[np.float32]) -> None:
        """Read rows into `states` `[m, l·w]` and `statistics`."""
        run = int(np.searchsorted(self._run_starts, rows.start, side="right")) - 1
        at = rows.start
        while at < rows.stop:
            end = min(int(self._run_starts[run + 1]), rows.stop)
            shard, first = self.place_of(at)
            self._shards[shard].require_whole()
            source = slice(first, first + end - at)
            into = slice(at - rows.start, end - rows.start)
            part = self._shards[shard].states[source]  # [m, l, w]
            for place, layer in enumerate(self._places):
                states[into, place * self._width : (place + 1) * self._width] = part[:, layer]
            for place, column in enumerate(self._columns):
                statistics[into, place] = self._shards[shard].statistics[source, column]
            at, run = end, run + 1


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of these lengths start, `[c + 1]`: the last one is where they end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
