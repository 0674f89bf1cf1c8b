"""Keys and values of the rows of a batch, in memory that grows with what is used.

Two strategies behind one interface: `KVCache` for graphs that write new tokens into the buffers they read, and
`ConcatenatedCache` for graphs that give back the past with the new tokens appended.

A row is left-aligned: its valid tokens are `[0, lengths[row])` of the capacity axis; what lies behind is never read.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from swift_edge.engine.host import HOST
from swift_edge.engine.row_memory import RowMemory
from swift_edge.errors import InvalidOptionError

GROWTH_TOKENS = 64
"""Capacity grows by at least this many tokens at a time."""


class KVCache:
    """In-place buffers `[n, h, c, k]` per layer, of which the first `rows` rows are live.

    `keys[i]` and `values[i]` are those of layer i. `limit` is the number of tokens that no row will exceed; the
    capacity c grows towards it in blocks and never passes it. `generation` changes whenever the buffers move in memory.
    `step_memory` belongs to the session that decodes these rows; kept here, it lives exactly as long as they do.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: DTypeLike,
        rows: int,
        tokens: int,
        limit: int,
        memory: RowMemory = HOST,
    ) -> None:
        """Make room in `memory` for `rows` rows of `tokens` tokens; no row is live yet."""
        self.limit = limit
        self._memory = memory
        self.rows = 0
        self.generation = 0
        self.step_memory: object = None
        self._lengths: NDArray[np.int64] = np.zeros(rows, np.int64)  # [n]
        capacity = cache_tokens(tokens, limit)
        shape = (rows, num_heads, capacity, head_dim)
        self.keys: list[NDArray[Any]] = [memory.buffer(shape, dtype) for _ in range(num_layers)]  # [n, h, c, k]
        self.values: list[NDArray[Any]] = [memory.buffer(shape, dtype) for _ in range(num_layers)]  # [n, h, c, k]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Valid tokens of each live row, int64 `[rows]`; a view that may be written to."""
        return self._lengths[: self.rows]

    @property
    def longest(self) -> int:
        """Valid tokens of the longest live row."""
        return int(self.lengths.max(initial=0))

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold before the buffers grow."""
        return int(self.keys[0].shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, live or not."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def reserve(self, rows: int, tokens: int) -> None:
        """Grow to at least `rows` rows of `tokens` tokens, layer by layer: old and new never coexist as a whole."""
        if tokens > self.limit:
            raise InvalidOptionError(f"a row would hold {tokens} tokens, this cache was made for at most {self.limit}")
        row_capacity, token_capacity = self.keys[0].shape[0], self.capacity
        if rows <= row_capacity and tokens <= token_capacity:
            return
        if tokens > token_capacity:
            # An eighth at a time keeps the copying linear in the tokens decoded, and the waste below an eighth.
            token_capacity = cache_tokens(max(tokens, token_capacity + token_capacity // 8), self.limit)
        row_capacity = max(rows, row_capacity)
        longest = self.longest
        for arrays in (self.keys, self.values):
            for layer, old in enumerate(arrays):
                new = self._memory.buffer((row_capacity, old.shape[1], token_capacity, old.shape[3]), old.dtype)
                self._memory.copy(old[: self.rows], new[: self.rows], longest)
                arrays[layer] = new
        lengths = np.zeros(row_capacity, np.int64)
        lengths[: self.rows] = self.lengths
        self._lengths = lengths
        self.generation += 1

    def append_empty(self) -> int:
        """Add one row without tokens; returns its number."""
        self.reserve(self.rows + 1, 0)
        self.rows += 1
        self._lengths[self.rows - 1] = 0
        return self.rows - 1

    def append_copy(self, source: "KVCache", copies: int = 1) -> int:
        """Add `copies` rows that hold what the only row of `source` holds; returns the number of the first."""
        length = source.longest
        first, last = self.rows, self.rows + copies
        self.reserve(last, length)
        for mine, theirs in ((self.keys, source.keys), (self.values, source.values)):
            for layer, array in enumerate(theirs):
                self._memory.copy(array[:1], mine[layer][first:last], length)
        self.rows = last
        self._lengths[first:last] = length
        return first

    def remove(self, row: int) -> None:
        """Take a row out: the last live row moves into its place, and takes over its number."""
        last = self.rows - 1
        if row != last:
            length = int(self._lengths[last])
            for array in (*self.keys, *self.values):
                self._memory.copy(array[last : last + 1], array[row : row + 1], length)
            self._lengths[row] = length
        self.rows = last

    def shrink(self, tokens: int) -> None:
        """Give memory back: keep room for `tokens` tokens in each live row, at least as many as it holds."""
        self.limit = tokens
        longest = self.longest
        for arrays in (self.keys, self.values):
            for layer, old in enumerate(arrays):
                new = self._memory.buffer((self.rows, old.shape[1], tokens, old.shape[3]), old.dtype)
                self._memory.copy(old[: self.rows], new, longest)
                arrays[layer] = new
        self._lengths = self.lengths.copy()
        self.generation += 1

    def truncate(self, length: int) -> None:
        """Forget what every row holds from token `length` on."""
        np.minimum(self.lengths, length, out=self.lengths)


class ConcatenatedCache(KVCache):
    """Arrays `[rows, h, length, k]` per layer, exactly as long as the rows; all rows are equally long.

    For graphs whose `present` is the past with the new tokens appended. Every step allocates the arrays anew.
    """

    def __init__(self, num_layers: int, num_heads: int, head_dim: int, dtype: DTypeLike, limit: int) -> None:
        """Start without rows and without tokens."""
        super().__init__(num_layers, num_heads, head_dim, dtype, rows=0, tokens=0, limit=limit)

    def reserve(self, rows: int, tokens: int) -> None:
        """Check the limit; the graph makes the room."""
        if tokens > self.limit:
            super().reserve(rows, tokens)

    def append_empty(self) -> int:
        """Add one row without tokens; the cache has to be empty."""
        if self.rows and self.longest:
            raise InvalidOptionError(_EQUAL_LENGTHS)
        for arrays in (self.keys, self.values):
            for layer, old in enumerate(arrays):
                arrays[layer] = np.zeros((self.rows + 1, old.shape[1], 0, old.shape[3]), old.dtype)
        self._set_rows(self.rows + 1, 0)
        return self.rows - 1

    def append_copy(self, source: KVCache, copies: int = 1) -> int:
        """Add `copies` rows that hold what the only row of `source` holds; it must be as long as the rows here."""
        length = source.longest
        if self.rows and length != self.longest:
            raise InvalidOptionError(_EQUAL_LENGTHS)
        for mine, theirs in ((self.keys, source.keys), (self.values, source.values)):
            for layer, array in enumerate(theirs):
                new = np.repeat(array[:1, :, :length], copies, axis=0)
                mine[layer] = np.concatenate([mine[layer], new]) if self.rows else new
        self._set_rows(self.rows + copies, length)
        return self.rows - copies

    def remove(self, row: int) -> None:
        """Take a row out: the last row moves into its place, and takes over its number."""
        last = self.rows - 1
        for arrays in (self.keys, self.values):
            for layer, array in enumerate(arrays):
                # What the graph returned may be read-only, and a caller may still hold it: copy, then move.
                remaining = array[:last].copy()
                if row != last:
                    remaining[row] = array[last]
                arrays[layer] = remaining
        self._set_rows(last, self.longest)

    def truncate(self, length: int) -> None:
        """Forget what every row holds from token `length` on."""
        length = min(length, self.longest)
        for arrays in (self.keys, self.values):
            for layer, array in enumerate(arrays):
                arrays[layer] = np.ascontiguousarray(array[:, :, :length])
        self._set_rows(self.rows, length)

    def replace(self, keys: list[NDArray[Any]], values: list[NDArray[Any]]) -> None:
        """Take over what the graph returned, `[rows, h, length, k]` per layer."""
        self.keys, self.values = keys, values
        self._set_rows(keys[0].shape[0], keys[0].shape[2])

    def _set_rows(self, rows: int, length: int) -> None:
        self.rows = rows
        self._lengths = np.full(rows, length, np.int64)


_EQUAL_LENGTHS = (
    "this folder's graph concatenates keys and values, so that all rows must be equally long; "
    "run one prompt at a time, or export the model with swift-edge"
)


def cache_tokens(tokens: int, limit: int) -> int:
    """Capacity for `tokens` tokens: a multiple of `GROWTH_TOKENS`, at least one, but never more than `limit`."""
    return min(limit, max(1, -(-tokens // GROWTH_TOKENS)) * GROWTH_TOKENS)
