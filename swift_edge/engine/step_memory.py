"""What one run of the decoder graph reads and writes beside keys and values, and the binding to it.

Knows token ids, arrays, the graph's tensor names and the buffers of a cache. Does not know where a row begins or ends:
what is fed, and to which cache, comes from the session.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.device.logits import DeviceLogits
from swift_edge.engine.device.memory import DeviceArray, bind
from swift_edge.engine.device.states import StateReader
from swift_edge.engine.graph import DecoderGraph
from swift_edge.engine.kv_cache import ConcatenatedCache, KVCache


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the graph computed for the tokens that were fed."""

    logits: Floats | None
    """float32 `[m, v]` at the m positions asked for; None where none were."""
    hidden_states: Floats | None
    """float32 `[l, tokens, d]` of the tokens fed, in the order of the layers asked for; None where none were."""
    device_logits: DeviceLogits | None = None
    """The logits `[m, v]` where they were to stay on the device."""
    products: Floats | None = None
    """float32 `[g, tokens]`, what the states come to with given weights, where they were to stay on the device."""


class StepMemory:
    """What one run of the graph reads and writes beside keys and values, and the binding to it.

    Allocated for `rows` rows; fewer use the front part. Everything stays bound as long as the number of rows, the
    buffers of the cache and the number of logits are the same. So does the mask of a decode step, which is as wide as
    the buffers: what lies behind a row's tokens is masked. In prefill its width tells the graph whether tokens came
    before.

    `key` is what it was made for: the layers whose hidden states are read, whether logits stay on the device, and what
    reads the states there.
    """

    def __init__(
        self,
        graph: DecoderGraph,
        rows: int,
        tokens: int,
        num_logits: int,
        layers: tuple[int, ...],
        on_device: bool = False,
        reader: StateReader | None = None,
    ) -> None:
        """Make room for runs of at most `rows` rows of `tokens` tokens each, with logits at up to `num_logits` of them.

        With `on_device`, and where the graph has its rows there, the logits stay there; with `reader`, so do the hidden
        states. Raises `DeviceMemoryError` if the device has no room for them.
        """
        self.rows = rows
        self.key = (layers, on_device, reader)
        self.layers = layers
        self._graph = graph
        width = graph.vocab_size
        full_logits = 0 if graph.picks_logits else rows * tokens
        self._ids = np.empty((rows, tokens), np.int64)  # [n, s]
        self._positions = np.empty((rows, tokens), np.int64)  # [n, s]
        self._logits_positions = np.empty(num_logits, np.int64)  # [m]
        self._mask = np.empty((0, 0), np.int64)  # [m, total] as bound
        self._offsets = np.arange(tokens)  # [s]
        self._places = np.arange(0)  # [total]
        self._reader = reader
        states = (rows, tokens, graph.hidden_size)
        self._hidden = np.empty((0 if reader else len(layers), *states), graph.hidden_dtype)  # [l, n, s, d]
        self._device_hidden: list[DeviceArray] = []  # [n, s, d] each
        if reader is not None and graph.device is not None:
            self._device_hidden = [graph.device.empty(states, graph.hidden_dtype) for _ in layers]
        shape = (full_logits or num_logits, width)
        self._device_logits: DeviceArray | None = None  # [m, v], of a graph that picks positions
        if on_device and graph.device is not None and graph.picks_logits:
            self._device_logits, shape = graph.device.empty(shape, graph.logits_dtype), (0, width)
        self._logits = np.empty(shape, graph.logits_dtype)  # [m, v], or [n * s, v]
        self._logits32 = _as_float32(self._logits)
        self._hidden32 = _as_float32(self._hidden)
        self._binding: Any = None
        self._bound: tuple[int, ...] = ()

    def run(self, cache: KVCache, token_ids: Ids, wanted: Ids) -> StepOutput:
        """Feed `token_ids` `[m, s]`; `wanted` are the positions among the m * s tokens with logits.

        Rows behind the live ones stand in: they start at length 0, and what they write is never read. The cache has to
        have room for all of them. What is given out are views of this memory, which the next run writes to, but for
        products. Raises `BundleError` if onnxruntime cannot run the graph, `DeviceMemoryError` if memory runs out, and
        `DeviceError` if what reads states on a device fails there.
        """
        graph = self._graph
        rows, tokens = token_ids.shape
        before = np.zeros((rows, 1), np.int64)  # [m, 1]
        before[: cache.rows, 0] = cache.lengths
        self._ids[:rows] = token_ids
        np.add(before, self._offsets, out=self._positions[:rows])
        self._logits_positions[: len(wanted)] = wanted
        if graph.in_place:
            self._bind(cache, before + tokens, len(wanted))
            with graph.failures():
                graph.inference_session.run_with_iobinding(self._binding)
            lengths = cache.lengths  # a view of the cache's own
            lengths += tokens
        else:
            self._run_concatenated(cache, rows, tokens)
        return self._output(rows, tokens, wanted)

    def _bind(self, cache: KVCache, lengths: Ids, num_logits: int) -> None:
        """Mask what lies behind `lengths` `[m, 1]`, and bind everything that is not bound already."""
        graph = self._graph
        rows, tokens = len(lengths), self._ids.shape[1]
        total = cache.capacity if tokens == 1 else cache.longest + tokens
        key = (cache.generation, rows, num_logits, total)
        bound = self._bound == key and not graph.rebinds_kv
        if not bound:
            self._bound = key
            self._mask, self._places = np.empty((rows, total), np.int64), np.arange(total)
            self._bind_kept(cache, rows, num_logits)
        np.less(self._places, lengths, out=self._mask)
        if graph.rebinds_fed or not bound:
            self._bind_fed(rows, num_logits)

    def _bind_kept(self, cache: KVCache, rows: int, num_logits: int) -> None:
        """Bind what the graph writes, and keys and values, in a new binding."""
        graph, tokens = self._graph, self._ids.shape[1]
        self._binding = graph.inference_session.io_binding()
        bind_input, bind_output = self._binding.bind_input, self._binding.bind_output
        if graph.picks_logits:
            logits = self._logits if self._device_logits is None else self._device_logits
            bind(bind_output, "logits", logits[:num_logits])
        else:
            bind(bind_output, "logits", self._logits[: rows * tokens].reshape(rows, tokens, -1))
        for layer, array in zip(self.layers, self._device_hidden or self._hidden, strict=True):
            bind(bind_output, f"hidden_states.{layer}", array[:rows])
        for part, arrays in (("key", cache.keys), ("value", cache.values)):
            for layer, kv in enumerate(arrays):
                # The same memory as past and as present: the graph writes the new tokens behind the old ones.
                bind(bind_input, f"past_key_values.{layer}.{part}", kv[:rows])
                bind(bind_output, f"present.{layer}.{part}", kv[:rows])

    def _bind_fed(self, rows: int, num_logits: int) -> None:
        """Bind what is fed: for every run, where it is read when it is bound."""
        graph, bind_input = self._graph, self._binding.bind_input
        bind(bind_input, "attention_mask", self._mask)
        bind(bind_input, "input_ids", self._ids[:rows])
        if graph.wants_positions:
            bind(bind_input, "position_ids", self._positions[:rows])
        if graph.picks_logits:
            bind(bind_input, "logits_positions", self._logits_positions[:num_logits])

    def _run_concatenated(self, cache: KVCache, rows: int, tokens: int) -> None:
        """Run a graph that returns past and new tokens in one array; the cache takes these arrays over."""
        assert isinstance(cache, ConcatenatedCache)
        mask = np.ones((rows, cache.longest + tokens), np.int64)  # all rows are equally long
        feed: dict[str, NDArray[Any]] = {"input_ids": self._ids[:rows], "attention_mask": mask}
        if self._graph.wants_positions:
            feed["position_ids"] = self._positions[:rows]
        names = ["logits"]
        for part, arrays in (("key", cache.keys), ("value", cache.values)):
            feed |= {f"past_key_values.{layer}.{part}": array for layer, array in enumerate(arrays)}
            names += [f"present.{layer}.{part}" for layer in range(len(arrays))]
        with self._graph.failures():
            logits, *present = self._graph.inference_session.run(names, feed)
        self._logits[: rows * tokens] = logits.reshape(rows * tokens, -1)
        half = len(present) // 2
        cache.replace(present[:half], present[half:])

    def _output(self, rows: int, tokens: int, wanted: Ids) -> StepOutput:
        """Give out what was computed, as float32."""
        graph = self._graph
        used = len(wanted) if graph.picks_logits else rows * tokens
        logits = self._logits32[:used]  # [m, v] or [n * s, v]
        hidden = self._hidden32[:, :rows]  # [l, n, s, d]
        if self._logits32 is not self._logits and self._device_logits is None:
            np.copyto(logits, self._logits[:used])
        if self._hidden32 is not self._hidden:
            np.copyto(hidden, self._hidden[:, :rows])
        if len(wanted) < used and self._device_logits is None:
            logits = logits[wanted]
        # n is 1 in prefill and s is 1 in decode: one axis of tokens, and a view either way.
        products = flat = None
        if self._reader is not None:
            products = self._reader.products([states[:rows] for states in self._device_hidden])
        elif self.layers:
            flat = hidden.reshape(len(self.layers), rows * tokens, graph.hidden_size)
        if self._device_logits is not None and graph.logit_reader is not None:
            stay = DeviceLogits(graph.logit_reader, self._device_logits, np.arange(used))
            return StepOutput(None, flat, stay, products)
        return StepOutput(logits, flat, None, products)


def _as_float32(array: NDArray[Any]) -> Floats:
    """The array itself if it is float32, else memory of its shape to convert into."""
    return array if array.dtype == np.float32 else np.empty(array.shape, np.float32)
