"""Inputs and outputs of a run of the decoder graph other than keys and values, and their binding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.device.memory import bind
from swift_edge.engine.graph import DecoderGraph
from swift_edge.engine.kv_cache import ConcatenatedCache, KVCache
from swift_edge.engine.row_memory import RowLogits, RowStates
from swift_edge.engine.states import StateWeights, state_products


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the graph computed for the tokens fed, in the memory where it lies."""

    row_logits: RowLogits
    """Logits `[m, v]` at the m positions asked for."""
    states: RowStates
    """Hidden states of the tokens fed, of the layers asked for."""
    layers: tuple[int, ...]
    """These layers, in the order asked for."""

    @property
    def logits(self) -> Floats:
        """The logits in NumPy's memory, float32 `[m, v]`."""
        return self.row_logits.whole()

    @property
    def hidden_states(self) -> Floats:
        """The hidden states in NumPy's memory, float32 `[l, tokens, d]`."""
        return self.states.of(self.layers)

    def products(self, weights: StateWeights) -> NDArray[np.floating]:
        """Products of the fed tokens' states, or of their logits, with some weights, `[g, m]`."""
        if weights.layers:
            return self.states.products(weights)
        return state_products(self.row_logits.whole()[np.newaxis], weights)


class StepMemory:
    """Inputs and outputs of a run of the graph other than keys and values, and their binding.

    Allocated for `rows` rows; fewer use the front part. Everything stays bound as long as the number of rows, the
    buffers of the cache and the number of logits are the same. So does the mask of a decode step, which is as wide as
    the buffers: what lies behind a row's tokens is masked. In prefill its width tells the graph whether tokens came
    before.
    """

    def __init__(self, graph: DecoderGraph, rows: int, tokens: int, num_logits: int, layers: tuple[int, ...]) -> None:
        """Make room for runs of at most `rows` rows of `tokens` tokens each, with logits at up to `num_logits` of them.

        Raises `DeviceMemoryError` if a device has no room for what is written.
        """
        self.rows = rows
        self.layers = layers
        self._graph = graph
        self._ids = np.empty((rows, tokens), np.int64)  # [n, s]
        self._positions = np.empty((rows, tokens), np.int64)  # [n, s]
        self._logits_positions = np.empty(num_logits, np.int64)  # [m]
        self._mask = np.empty((0, 0), np.int64)  # [m, total] as bound
        self._offsets = np.arange(tokens)  # [s]
        self._places = np.arange(0)  # [total]
        every = num_logits if graph.picks_logits else rows * tokens
        self._logits = graph.memory.logits(every, graph.vocab_size, graph.logits_dtype)  # [m, v], or [n * s, v]
        self._states = graph.memory.states(layers, (rows, tokens, graph.hidden_size), graph.hidden_dtype)
        self._binding: Any = None
        self._bound: tuple[int, ...] = ()

    def run(self, cache: KVCache, token_ids: Ids, logits_positions: Ids, *, rows: int | None = None) -> StepOutput:
        """Feed `token_ids` `[m, s]`; logits are computed at `logits_positions`, which count through the m * s tokens.

        With `rows`, only the logits and states of the first rows are returned.

        Rows beyond the live ones are stand-ins: they start at length 0, and what they write is never read. The cache
        needs room for all rows. The results lie in this memory, which the next run writes to. Raises
        `BundleError` if onnxruntime cannot run the graph, `DeviceMemoryError` if memory runs out.
        """
        graph = self._graph
        run_rows, tokens = token_ids.shape
        before = np.zeros((run_rows, 1), np.int64)  # [m, 1]
        before[: cache.rows, 0] = cache.lengths
        self._ids[:run_rows] = token_ids
        np.add(before, self._offsets, out=self._positions[:run_rows])
        self._logits_positions[: len(logits_positions)] = logits_positions
        if graph.in_place:
            self._bind(cache, before + tokens, len(logits_positions))
            with graph.failures():
                graph.inference_session.run_with_iobinding(self._binding)
            lengths = cache.lengths  # a view of the cache's own
            lengths += tokens
        else:
            self._run_concatenated(cache, run_rows, tokens)
        places = np.arange(len(logits_positions)) if graph.picks_logits else logits_positions
        states = self._states.written(run_rows if rows is None else rows)
        return StepOutput(self._logits.written(places[:rows]), states, self.layers)

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
            self._bind_buffers(cache, rows, num_logits)
        np.less(self._places, lengths, out=self._mask)
        if graph.rebinds_fed or not bound:
            self._bind_fed(rows, num_logits)

    def _bind_buffers(self, cache: KVCache, rows: int, num_logits: int) -> None:
        """Bind the outputs and the keys and values, in a new binding."""
        graph, tokens = self._graph, self._ids.shape[1]
        self._binding = graph.inference_session.io_binding()
        bind_input, bind_output = self._binding.bind_input, self._binding.bind_output
        if graph.picks_logits:
            bind(bind_output, "logits", self._logits.target[:num_logits])
        else:
            bind(bind_output, "logits", self._logits.target[: rows * tokens], shape=(rows, tokens, graph.vocab_size))
        for layer, target in zip(self.layers, self._states.targets, strict=True):
            bind(bind_output, f"hidden_states.{layer}", target[:rows])
        for part, arrays in (("key", cache.keys), ("value", cache.values)):
            for layer, kv in enumerate(arrays):
                # The same memory as past and as present: the graph writes the new tokens behind the old ones.
                bind(bind_input, f"past_key_values.{layer}.{part}", kv[:rows])
                bind(bind_output, f"present.{layer}.{part}", kv[:rows])

    def _bind_fed(self, rows: int, num_logits: int) -> None:
        """Bind the other inputs; for every run if the graph copies them when they are bound."""
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
        self._logits.target[: rows * tokens] = logits.reshape(rows * tokens, -1)
        half = len(present) // 2
        cache.replace(present[:half], present[half:])
