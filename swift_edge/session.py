"""One onnxruntime session: prefill, decode, and the memory that both bind to.

Knows token ids, arrays and the graph's tensor names. Does not know text, sampling, which candidate a row belongs to, or
what the hidden states are for.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swift_edge.device_cache import DeviceArray, DeviceCache, bind, rows_device
from swift_edge.device_sampling import DeviceLogits, LogitReader
from swift_edge.errors import BundleError, InvalidOptionError, PromptTooLongError, size_text
from swift_edge.kv_cache import ConcatenatedCache, KVCache, cache_tokens
from swift_edge.machine import available_memory, default_threads, require_available
from swift_edge.manifest import Bundle
from swift_edge.providers import input_device, open_graph

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]

CHUNK_TOKENS = 512
"""Prompt tokens per run of the graph: long enough to keep the cores busy, short enough to bound the activations."""
WORKING_BYTES = 64 * 2**20
"""What onnxruntime itself takes for a step, beside what it reads and writes: measured 30 MiB at 0.5 B parameters."""
LOGITS_BYTES = 64 * 2**20
"""Most memory that the logits of one prefill run may take."""

_FLOATS: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
_KV_DTYPES = {None: _FLOATS, "int8": {"tensor(int8)": np.dtype(np.int8)}}


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the graph computed for the tokens that were fed."""

    logits: Floats | None
    """float32 `[m, v]` at the m positions asked for; None where none were."""
    hidden_states: Floats | None
    """float32 `[l, tokens, d]` of the tokens fed, in the order of the layers asked for; None where none were."""
    device_logits: DeviceLogits | None = None
    """The logits `[m, v]` where they were to stay on the device."""


class ModelSession:
    """The graph of a bundle, opened once; prefill and decode share it, and so do threads.

    Every call works on the cache that it is given and on nothing else: threads with caches of their own do not meet.
    """

    def __init__(self, bundle: Bundle, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        """Open the graph; `providers` as onnxruntime names them, or `"cuda"` for short; None is the CPU.

        Raises `ProviderError` if the session does not get a provider that was asked for, `InvalidOptionError` for a
        number of threads below 1, `BundleError` for a graph that onnxruntime does not open.
        """
        if threads is not None and threads < 1:
            raise InvalidOptionError(f"threads is {threads}; expected at least 1, or None for every core there is")
        manifest = bundle.manifest
        architecture = manifest.architecture
        self.threads = threads or default_threads()
        self._model_path = bundle.model_path
        self._session = open_graph(bundle, providers, self.threads)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.layers: tuple[int, ...] = manifest.hidden_states.indices
        self.vocab_size = architecture.vocab_size
        self.hidden_size = architecture.hidden_size
        self.context_length = architecture.context_length
        self.num_layers = architecture.num_layers
        self._kv_shape = (architecture.num_key_value_heads, architecture.head_dim)
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        outputs = {value.name: value.type for value in self._session.get_outputs()}
        self._in_place = manifest.graph.kv == "in-place"
        # onnxruntime's kernels for packed weights take rows in pairs, and give the last one of an odd number another
        # rounding. A row that stands in for it keeps every candidate's numbers the same whatever decodes beside it.
        self._even_rows = self._in_place and manifest.precision.name in ("int8", "int4")
        self._wants_positions = "position_ids" in inputs
        self._picks_logits = "logits_positions" in inputs
        self._check_names(bundle, inputs, outputs)
        kv_dtypes = _KV_DTYPES[manifest.precision.kv_cache]
        self._kv_dtype = _dtype(inputs, "past_key_values.0.key", bundle, kv_dtypes)
        self._logits_dtype = _dtype(outputs, "logits", bundle, _FLOATS)
        first_state = f"hidden_states.{self.layers[0]}" if self.layers else "logits"
        self._hidden_dtype = _dtype(outputs, first_state, bundle, _FLOATS)
        kv_device = input_device(self._session, "past_key_values.0.key")
        self._device = rows_device(kv_device, self.providers) if self._in_place else None
        self._logit_reader = None if self._device is None else LogitReader(self._device, self._logits_dtype)
        # An input that is not where the graph wants it is copied when it is bound: bound once, it would be read once.
        self._rebinds_kv = self._device is None and kv_device != "cpu"
        self._rebinds_fed = self._device is not None or {input_device(self._session, name) for name in inputs} != {
            "cpu"
        }

    @property
    def takes_ragged_rows(self) -> bool:
        """Whether rows of different lengths can be decoded together."""
        return self._in_place

    @property
    def keeps_rows_on_device(self) -> bool:
        """Whether keys and values are on a device other than the CPU, and not in memory that NumPy reads."""
        return self._device is not None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token of one row takes in a cache."""
        heads, head_dim = self._kv_shape
        return 2 * self.num_layers * heads * head_dim * self._kv_dtype.itemsize

    def new_cache(self, rows: int, tokens: int, limit: int | None = None) -> KVCache:
        """Make a cache without live rows: room for `rows` rows of `tokens` tokens, growing up to `limit` tokens."""
        limit = min(limit or self.context_length, self.context_length)
        size = (self.num_layers, *self._kv_shape, self._kv_dtype, rows, min(tokens, limit), limit)
        if self._device is not None:
            return DeviceCache(self._device, *size)
        if self._in_place:
            return KVCache(*size)
        return ConcatenatedCache(self.num_layers, *self._kv_shape, self._kv_dtype, limit)

    def require_memory(
        self, rows: int, prompt_tokens: int, new_tokens: int, *, layers: int = 0, tokens_per_run: int = 1
    ) -> None:
        """Raise `MemoryLimitError`, with the numbers, if continuing a prompt on `rows` rows cannot fit into memory."""
        parts = self.request_bytes(rows, prompt_tokens, new_tokens, layers=layers, tokens_per_run=tokens_per_run)
        self._require_parts(parts, rows, prompt_tokens, new_tokens, available_memory())

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
        """Raise `MemoryLimitError` if what `request_bytes` gave is more than there is."""
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
        the machine's memory counts: what a device has left for keys and values is not known before it is asked for.
        """
        tokens = min(prompt_tokens + new_tokens, self.context_length)
        rows = self._rows_per_run(rows)
        # The prompt's own row lives until it has been copied; concatenating holds every array twice.
        grown = cache_tokens(prompt_tokens, self.context_length) + rows * cache_tokens(tokens, tokens)
        kv = 0 if self._device is not None else grown * self.kv_bytes_per_token * (1 if self._in_place else 2)
        # Beside what the graph writes: a float32 copy of each, and what sampling makes of the logits of one row.
        fed = rows * tokens_per_run
        logits = fed * self.vocab_size * (self._logits_dtype.itemsize + 4) + 16 * self.vocab_size
        if not self._picks_logits:
            chunk = min(prompt_tokens, self._chunk_tokens(CHUNK_TOKENS))
            logits += chunk * self.vocab_size * self._logits_dtype.itemsize
        hidden = layers * fed * self.hidden_size * (self._hidden_dtype.itemsize + 4)
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
        hidden = np.empty((len(layers), len(fed), self.hidden_size), np.float32) if layers else None  # [l, s, d]
        last: Floats | None = None  # [1, v]
        chunk = self._chunk_tokens(chunk)
        for begin in range(0, len(fed), chunk):
            part = fed[None, begin : begin + chunk]  # [1, s]
            end = begin + part.shape[1]
            # One position even where no logits are wanted: the output layer is not meant to see none at all.
            wanted = np.arange(part.shape[1]) if every else np.array([part.shape[1] - 1])
            memory = _StepMemory(self, 1, part.shape[1], len(wanted), layers)
            out = memory.run(cache, part, wanted)
            if all_logits is not None:
                all_logits[begin:end] = out.logits
            last = out.logits
            if hidden is not None:
                hidden[:, begin:end] = out.hidden_states
        if logits == "none":
            last = None
        return StepOutput(all_logits if every else last, hidden)

    def decode(
        self,
        cache: KVCache,
        token_ids: Sequence[int] | Ids,
        *,
        logits: bool = True,
        layers: tuple[int, ...] = (),
        on_device: bool = False,
    ) -> StepOutput:
        """Append one token `[m]` to each of the m live rows of `cache`.

        Gives logits `[m, v]` unless they are not wanted, and the hidden states `[l, m, d]` of `layers`. Both are views
        of memory that the next decode of this cache writes to. With `on_device`, and rows there, the logits stay there.
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
        if not isinstance(memory, _StepMemory) or memory.rows < run_rows or memory.key != (layers, on_device):
            memory = cache.step_memory = _StepMemory(self, run_rows, 1, run_rows, layers, on_device)
        if run_rows > rows:
            fed = np.concatenate([fed, np.zeros((run_rows - rows, 1), np.int64)])
        out = memory.run(cache, fed, np.arange(run_rows if logits else 1))
        states = None if out.hidden_states is None else out.hidden_states[:, :rows]
        kept = None if out.device_logits is None or not logits else out.device_logits[:rows]
        return StepOutput(out.logits[:rows] if logits and out.logits is not None else None, states, kept)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turn what onnxruntime raises while the graph runs into one `BundleError`."""
        try:
            yield
        except Exception as error:  # onnxruntime's own kinds have no base class that it exports
            reason = " ".join(str(error).split())[:300]
            raise BundleError(
                f"onnxruntime could not run {self._model_path}: {reason}; "
                "inspect the folder, or export the model with swift-edge export"
            ) from error

    def _rows_per_run(self, rows: int) -> int:
        """Rows that a decode step of `rows` live rows runs."""
        return rows + rows % 2 if self._even_rows else rows

    def _chunk_tokens(self, chunk: int) -> int:
        if self._picks_logits:
            return max(1, chunk)
        return max(1, min(chunk, LOGITS_BYTES // (self.vocab_size * self._logits_dtype.itemsize)))

    def _check_names(self, bundle: Bundle, inputs: dict[str, str], outputs: dict[str, str]) -> None:
        """Raise `BundleError` if the graph's tensors are not those that this module binds."""
        parts = [(layer, part) for layer in range(self.num_layers) for part in ("key", "value")]
        known = {"input_ids", "attention_mask", "position_ids", "logits_positions"}
        past = {f"past_key_values.{layer}.{part}" for layer, part in parts}
        given = {"logits", *(f"present.{layer}.{part}" for layer, part in parts)}
        given |= {f"hidden_states.{layer}" for layer in self.layers}
        missing = (({"input_ids", "attention_mask"} | past) - inputs.keys()) | (given - outputs.keys())
        unknown = inputs.keys() - known - past
        if missing or unknown:
            problem = f"lacks {min(missing)}" if missing else f"asks for an unknown input {min(unknown)}"
            raise BundleError(
                f"{bundle.model_path} {problem} ({len(missing)} tensors missing, {len(unknown)} unknown); "
                "expected a decoder graph with past_key_values.N.key/value and present.N.key/value: "
                "run swift-edge export"
            )


class _StepMemory:
    """What one run of the graph reads and writes beside keys and values, and the binding to it.

    Allocated for `rows` rows; fewer use the front part. Everything stays bound as long as the number of rows, the
    buffers of the cache and the number of logits are the same. So does the mask of a decode step, which is as wide as
    the buffers: what lies behind a row's tokens is masked. In prefill its width tells the graph whether tokens came
    before.
    """

    def __init__(
        self,
        session: ModelSession,
        rows: int,
        tokens: int,
        num_logits: int,
        layers: tuple[int, ...],
        on_device: bool = False,
    ) -> None:
        self.rows = rows
        self.key = (layers, on_device)
        self.layers = layers
        self._session = session
        width = session.vocab_size
        full_logits = 0 if session._picks_logits else rows * tokens
        self._ids = np.empty((rows, tokens), np.int64)  # [n, s]
        self._positions = np.empty((rows, tokens), np.int64)  # [n, s]
        self._logits_positions = np.empty(num_logits, np.int64)  # [m]
        self._mask = np.empty((0, 0), np.int64)  # [m, total] as bound
        self._offsets = np.arange(tokens)  # [s]
        self._places = np.arange(0)  # [total]
        self._hidden = np.empty((len(layers), rows, tokens, session.hidden_size), session._hidden_dtype)  # [l, n, s, d]
        shape = (full_logits or num_logits, width)
        self._device_logits: DeviceArray | None = None  # [m, v], of a graph that picks positions
        if on_device and session._device is not None and session._picks_logits:
            self._device_logits, shape = session._device.empty(shape, session._logits_dtype), (0, width)
        self._logits = np.empty(shape, session._logits_dtype)  # [m, v], or [n * s, v]
        self._logits32 = _as_float32(self._logits)
        self._hidden32 = _as_float32(self._hidden)
        self._binding: Any = None
        self._bound: tuple[int, ...] = ()

    def run(self, cache: KVCache, token_ids: Ids, wanted: Ids) -> StepOutput:
        """Feed `token_ids` `[m, s]`; `wanted` are the positions among the m * s tokens with logits.

        Rows behind the live ones stand in: they start at length 0, and what they write is never read.
        """
        session = self._session
        rows, tokens = token_ids.shape
        before = np.zeros((rows, 1), np.int64)  # [m, 1]
        before[: cache.rows, 0] = cache.lengths
        self._ids[:rows] = token_ids
        np.add(before, self._offsets, out=self._positions[:rows])
        self._logits_positions[: len(wanted)] = wanted
        if session._in_place:
            self._bind(cache, rows, tokens, len(wanted))
            np.less(self._places, before + tokens, out=self._mask)
            if session._rebinds_fed:
                self._bind_fed(rows, len(wanted))
            with session.failures():
                session._session.run_with_iobinding(self._binding)
            lengths = cache.lengths  # a view of the cache's own
            lengths += tokens
        else:
            self._run_concatenated(cache, rows, tokens)
        return self._output(rows, tokens, wanted)

    def _bind(self, cache: KVCache, rows: int, tokens: int, num_logits: int) -> None:
        """Bind everything, unless it is bound already."""
        session = self._session
        total = cache.capacity if tokens == 1 else cache.longest + tokens
        key = (cache.generation, rows, num_logits, total)
        if self._bound == key and not session._rebinds_kv:
            return
        self._bound = key
        self._binding = session._session.io_binding()
        bind_input, bind_output = self._binding.bind_input, self._binding.bind_output
        self._mask, self._places = np.empty((rows, total), np.int64), np.arange(total)
        self._bind_fed(rows, num_logits)
        if session._picks_logits:
            logits = self._logits if self._device_logits is None else self._device_logits
            bind(bind_output, "logits", logits[:num_logits])
        else:
            bind(bind_output, "logits", self._logits[: rows * tokens].reshape(rows, tokens, -1))
        for layer, array in zip(self.layers, self._hidden, strict=True):
            bind(bind_output, f"hidden_states.{layer}", array[:rows])
        for part, arrays in (("key", cache.keys), ("value", cache.values)):
            for layer, kv in enumerate(arrays):
                # The same memory as past and as present: the graph writes the new tokens behind the old ones.
                bind(bind_input, f"past_key_values.{layer}.{part}", kv[:rows])
                bind(bind_output, f"present.{layer}.{part}", kv[:rows])

    def _bind_fed(self, rows: int, num_logits: int) -> None:
        """Bind what every run is given anew."""
        session, bind_input = self._session, self._binding.bind_input
        bind(bind_input, "attention_mask", self._mask)
        bind(bind_input, "input_ids", self._ids[:rows])
        if session._wants_positions:
            bind(bind_input, "position_ids", self._positions[:rows])
        if session._picks_logits:
            bind(bind_input, "logits_positions", self._logits_positions[:num_logits])

    def _run_concatenated(self, cache: KVCache, rows: int, tokens: int) -> None:
        """Run a graph that returns past and new tokens in one array; the cache takes these arrays over."""
        assert isinstance(cache, ConcatenatedCache)
        mask = np.ones((rows, cache.longest + tokens), np.int64)  # all rows are equally long
        feed: dict[str, NDArray[Any]] = {"input_ids": self._ids[:rows], "attention_mask": mask}
        if self._session._wants_positions:
            feed["position_ids"] = self._positions[:rows]
        names = ["logits"]
        for part, arrays in (("key", cache.keys), ("value", cache.values)):
            feed |= {f"past_key_values.{layer}.{part}": array for layer, array in enumerate(arrays)}
            names += [f"present.{layer}.{part}" for layer in range(len(arrays))]
        with self._session.failures():
            logits, *present = self._session._session.run(names, feed)
        self._logits[: rows * tokens] = logits.reshape(rows * tokens, -1)
        half = len(present) // 2
        cache.replace(present[:half], present[half:])

    def _output(self, rows: int, tokens: int, wanted: Ids) -> StepOutput:
        """Give out what was computed, as float32."""
        session = self._session
        used = len(wanted) if session._picks_logits else rows * tokens
        logits = self._logits32[:used]  # [m, v] or [n * s, v]
        hidden = self._hidden32[:, :rows]  # [l, n, s, d]
        if self._logits32 is not self._logits and self._device_logits is None:
            np.copyto(logits, self._logits[:used])
        if self._hidden32 is not self._hidden:
            np.copyto(hidden, self._hidden[:, :rows])
        if len(wanted) < used and self._device_logits is None:
            logits = logits[wanted]
        # n is 1 in prefill and s is 1 in decode: one axis of tokens, and a view either way.
        flat = hidden.reshape(len(self.layers), rows * tokens, session.hidden_size) if self.layers else None
        if self._device_logits is not None and session._logit_reader is not None:
            stay = DeviceLogits(session._logit_reader, self._device_logits, np.arange(used))
            return StepOutput(None, flat, stay)
        return StepOutput(logits, flat)


def _as_float32(array: NDArray[Any]) -> Floats:
    """The array itself if it is float32, else memory of its shape to convert into."""
    return array if array.dtype == np.float32 else np.empty(array.shape, np.float32)


def _dtype(types: dict[str, str], name: str, bundle: Bundle, expected: dict[str, np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype of the graph's tensor `name`, which has to be one of those expected."""
    found = types[name]
    if found not in expected:
        raise BundleError(
            f"{name} of {bundle.model_path} is {found}; expected {' or '.join(expected)}: "
            "export the model with swift-edge export"
        )
    return expected[found]
