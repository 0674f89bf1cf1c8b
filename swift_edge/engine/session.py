"""The session of a model: prefill, decode, their caches, and the memory that a request takes."""

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from swift_edge.arrays import Ids
from swift_edge.bundle.manifest import Bundle
from swift_edge.checks import expect, is_whole
from swift_edge.engine.graph import DecoderGraph
from swift_edge.engine.host import HostLogits, HostStates
from swift_edge.engine.kv_cache import ConcatenatedCache, KVCache, cache_tokens
from swift_edge.engine.step_memory import StepMemory, StepOutput
from swift_edge.errors import InvalidOptionError, PromptTooLongError, size_text
from swift_edge.system.machine import available_memory, default_threads, require_available

CHUNK_TOKENS = 128
"""Prompt tokens per run of the graph, whatever the load: results must not depend on other requests."""
THREADS_PER_CORE = 8
"""Most threads for each core of the machine: they wait for each other, turning, a thousand on two cores for minutes."""
WORKING_BYTES = 64 * 2**20
"""Bytes that onnxruntime itself takes for a step, besides inputs and outputs: 30 MiB measured at 0.5 B parameters."""
LOGITS_BYTES = 64 * 2**20
"""Most memory that the logits of one prefill run may take."""


class ModelSession:
    """The graph of a bundle, opened once; prefill and decode share it, and so do threads.

    A call changes nothing but the cache that it is given, so that threads with caches of their own do not interfere.
    """

    def __init__(self, bundle: Bundle, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        """Open the graph; `providers` as onnxruntime names them, or `"cuda"` for short; None is the CPU.

        Raises `ProviderError` if the session does not get a provider that was asked for, `InvalidOptionError` for a
        number of threads below 1, `BundleError` for a graph that onnxruntime does not open.
        """
        most = THREADS_PER_CORE * (os.cpu_count() or 1)
        expect(
            threads is None or (is_whole(threads, 1) and threads <= most),
            "threads",
            threads,
            f"at least 1, or None for every core there is; at most {most}, {THREADS_PER_CORE} for each of them",
        )
        self.threads = threads or default_threads()
        self.graph = graph = DecoderGraph.open(bundle, providers, self.threads)
        self.providers: tuple[str, ...] = graph.providers
        self.layers: tuple[int, ...] = graph.layers
        self.vocab_size = graph.vocab_size
        self.hidden_size = graph.hidden_size
        self.context_length = bundle.manifest.architecture.context_length
        self.num_layers = graph.num_layers
        self._no_logits = HostLogits(np.empty((0, graph.vocab_size), np.float32))

    @property
    def takes_ragged_rows(self) -> bool:
        """Whether rows of different lengths can be decoded together."""
        return self.graph.in_place

    @property
    def keeps_rows_on_device(self) -> bool:
        """Whether keys and values are on a device where NumPy cannot read them."""
        return self.graph.memory.on_device

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token of one row takes in a cache."""
        heads, head_dim = self.graph.kv_shape
        return 2 * self.num_layers * heads * head_dim * self.graph.kv_dtype.itemsize

    def new_cache(self, rows: int, tokens: int, limit: int | None = None) -> KVCache:
        """Make a cache without live rows: room for `rows` rows of `tokens` tokens, growing up to `limit` tokens."""
        limit = min(limit or self.context_length, self.context_length)
        token = (self.num_layers, *self.graph.kv_shape, self.graph.kv_dtype)
        size = (rows, min(tokens, limit), limit)
        return KVCache(*token, *size, self.graph.memory) if self.graph.in_place else ConcatenatedCache(*token, limit)

    def require_memory(
        self, rows: int, prompt_tokens: int, new_tokens: int, *, layers: int = 0, tokens_per_run: int = 1
    ) -> None:
        """Raise `MemoryLimitError`, with the numbers, if continuing a prompt on `rows` rows cannot fit into memory."""
        parts = self.request_bytes(rows, prompt_tokens, new_tokens, layers=layers, tokens_per_run=tokens_per_run)
        self._require_parts(parts, rows, prompt_tokens, new_tokens, available_memory())

    def require_rows(self, rows: int, prompt_tokens: int, new_tokens: int, available: int | None) -> None:
        """Raise `MemoryLimitError`, with the numbers, if so many rows do not fit into `available` bytes of memory."""
        parts = self.request_bytes(rows, prompt_tokens, new_tokens, layers=len(self.layers))
        self._require_parts(parts, rows, prompt_tokens, new_tokens, available)

    def fitting_rows(
        self, rows: int, prompt_tokens: int, new_tokens: int, available: int | None, *, layers: int = 0
    ) -> int:
        """The most rows, at most `rows`, on which a prompt can be continued in `available` bytes of memory.

        `available` is what `machine.available_memory` found. Raises `MemoryLimitError`, with the numbers, if not even
        one row fits.
        """
        one = self.request_bytes(1, prompt_tokens, new_tokens, layers=layers)
        self._require_parts(one, 1, prompt_tokens, new_tokens, available)
        while rows > 1 and available is not None:
            needed = sum(self.request_bytes(rows, prompt_tokens, new_tokens, layers=layers)) + WORKING_BYTES
            if needed <= available:
                break
            rows //= 2
        return rows

    def _require_parts(
        self, parts: tuple[int, int, int], rows: int, prompt_tokens: int, new_tokens: int, available: int | None
    ) -> None:
        """Raise `MemoryLimitError` if the bytes that `request_bytes` returned exceed the available ones."""
        kv, logits, hidden = parts
        tokens = min(prompt_tokens + new_tokens, self.context_length)
        require_available(
            kv + logits + hidden + WORKING_BYTES,
            available,
            f"{rows} {'row' if rows == 1 else 'rows'} of {tokens} tokens (keys and values {size_text(kv)}, "
            f"logits {size_text(logits)}, hidden states {size_text(hidden)}, onnxruntime {size_text(WORKING_BYTES)})",
            "ask for fewer candidates or fewer tokens, or free some memory",
        )

    def request_bytes(
        self, rows: int, prompt_tokens: int, new_tokens: int, *, layers: int = 0, tokens_per_run: int = 1
    ) -> tuple[int, int, int]:
        """Bytes that continuing a prompt on `rows` rows takes at most: keys and values, logits, hidden states.

        `layers` is the number of hidden states read, `tokens_per_run` how many tokens of a row are fed at a time. Only
        the machine's memory counts: how much a device has left is known only when memory is allocated there.
        """
        graph = self.graph
        tokens = min(prompt_tokens + new_tokens, self.context_length)
        rows = self._rows_per_run(rows)
        # The prompt's own row lives until it is copied, and concatenating holds every array twice.
        grown = cache_tokens(prompt_tokens, self.context_length) + rows * cache_tokens(tokens, tokens)
        kv = 0 if graph.memory.on_device else grown * self.kv_bytes_per_token * (1 if graph.in_place else 2)
        # Besides the graph's outputs: a float32 copy of each, and what sampling computes from the logits of one row.
        fed = rows * tokens_per_run
        logits = fed * self.vocab_size * (graph.logits_dtype.itemsize + 4) + 16 * self.vocab_size
        if not graph.picks_logits:
            chunk = min(prompt_tokens, self._chunk_tokens(CHUNK_TOKENS))
            logits += chunk * self.vocab_size * graph.logits_dtype.itemsize
        hidden = layers * fed * self.hidden_size * (graph.hidden_dtype.itemsize + 4)
        return kv, logits, hidden

    def prefill(
        self,
        cache: KVCache,
        token_ids: Sequence[int] | Ids,
        *,
        chunk: int = CHUNK_TOKENS,
        logits: Literal["last", "all", "none"] = "last",
        layers: tuple[int, ...] = (),
    ) -> StepOutput:
        """Append tokens `[s]` to the only row of `cache`, at most `chunk` of them per run of the graph.

        Gives logits `[1, v]` after the last token, `[s, v]` after every one, or none; and the hidden states `[l, s, d]`
        of `layers`. Raises `PromptTooLongError` if the row would exceed the context. The arrays belong to the caller.
        """
        fed = np.asarray(token_ids, np.int64)  # [s]
        if cache.rows == 0:
            cache.append_empty()
        if cache.rows != 1 or not len(fed):
            raise InvalidOptionError(f"prefill takes one row and at least one token, got {cache.rows} and {len(fed)}")
        start = cache.longest
        if start + len(fed) > self.context_length:
            raise PromptTooLongError(start + len(fed), self.context_length)
        cache.reserve(1, start + len(fed))
        every = logits == "all"
        all_logits = np.empty((len(fed), self.vocab_size), np.float32) if every else None  # [s, v]
        hidden = np.empty((len(layers), len(fed), self.hidden_size), np.float32)  # [l, s, d]
        last = np.empty((0, self.vocab_size), np.float32)  # [1, v]
        chunk = self._chunk_tokens(chunk)
        for begin in range(0, len(fed), chunk):
            part = fed[None, begin : begin + chunk]  # [1, s]
            end = begin + part.shape[1]
            # One position even if no logits are wanted: the output layer is not meant to get none.
            positions = np.arange(part.shape[1]) if every else np.array([part.shape[1] - 1])
            out = StepMemory(self.graph, 1, part.shape[1], len(positions), layers).run(cache, part, positions)
            if all_logits is not None:
                all_logits[begin:end] = out.row_logits.whole()
            elif logits == "last" and end == len(fed):
                last = out.row_logits.whole()
            if layers:
                hidden[:, begin:end] = out.states.of(layers)
        row_logits = all_logits if all_logits is not None else last
        return StepOutput(HostLogits(row_logits), HostStates(layers, hidden), layers)

    def decode(
        self,
        cache: KVCache,
        token_ids: Sequence[int] | Ids,
        *,
        logits: bool = True,
        layers: tuple[int, ...] = (),
    ) -> StepOutput:
        """Append one token `[m]` to each of the m live rows of `cache`.

        Gives logits `[m, v]` unless they are not wanted, and the hidden states `[l, m, d]` of `layers`. Both lie in
        memory that the next decode of this cache writes to. Raises what `StepMemory.run` does.
        """
        fed = np.asarray(token_ids, np.int64)[:, None]  # [m, 1]
        rows = cache.rows
        if not rows or len(fed) != rows:
            raise InvalidOptionError(f"decode takes one token per row, got {len(fed)} tokens for {rows} rows")
        if cache.longest >= self.context_length:
            raise PromptTooLongError(cache.longest + 1, self.context_length)
        run_rows = self._rows_per_run(rows)
        cache.reserve(run_rows, cache.longest + 1)
        memory = cache.step_memory
        if not isinstance(memory, StepMemory) or memory.rows < run_rows or memory.layers != layers:
            memory = cache.step_memory = StepMemory(self.graph, run_rows, 1, run_rows, layers)
        if run_rows > rows:
            fed = np.concatenate([fed, np.zeros((run_rows - rows, 1), np.int64)])
        out = memory.run(cache, fed, np.arange(run_rows if logits else 1), rows=rows)
        return out if logits else StepOutput(self._no_logits, out.states, layers)

    def _rows_per_run(self, rows: int) -> int:
        """Rows that a decode step of `rows` live rows runs."""
        return rows + rows % 2 if self.graph.even_rows else rows

    def _chunk_tokens(self, chunk: int) -> int:
        if self.graph.picks_logits:
            return max(1, chunk)
        return max(1, min(chunk, LOGITS_BYTES // (self.vocab_size * self.graph.logits_dtype.itemsize)))
