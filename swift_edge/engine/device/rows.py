"""Rows in the memory of the device that computes: keys and values, logits and hidden states stay there."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.device.logits import DeviceLogits, LogitReader
from swift_edge.engine.device.memory import Device, DeviceArray
from swift_edge.engine.device.states import StateReader
from swift_edge.engine.states import StateWeights

MOST_READERS: Final = 4
"""Most heads whose weights stay on a device."""


class DeviceStates:
    """Hidden states of m tokens on a device."""

    def __init__(
        self,
        device: Device,
        layers: tuple[int, ...],
        arrays: Sequence[DeviceArray],
        reader_of: Callable[[StateWeights], StateReader],
    ) -> None:
        """Take the arrays `[n, s, d]` of these layers."""
        self._device = device
        self._arrays = dict(zip(layers, arrays, strict=True))
        self._reader_of = reader_of

    def of(self, layers: Sequence[int]) -> Floats:
        """States of some layers, float32 `[l, m, d]`, copied to NumPy's memory."""
        if not layers:
            return np.empty((0, 0, 0), np.float32)
        whole = [self._device.whole(self._arrays[layer]) for layer in layers]  # [n, s, d] each
        return np.stack([np.asarray(states.reshape(-1, states.shape[-1]), np.float32) for states in whole])

    def products(self, weights: StateWeights) -> Floats:
        """Their products with some weights, summed over the layers: float32 `[g, m]`."""
        return self._reader_of(weights).products([self._arrays[layer] for layer in weights.layers])


class DeviceLogitsMemory:
    """Memory on a device that the graph writes logits to."""

    def __init__(self, reader: LogitReader, rows: int, vocab_size: int, dtype: DTypeLike) -> None:
        """Make room for so many rows; raises `DeviceMemoryError` if there is none."""
        self._reader = reader
        self.target = reader.device.empty((rows, vocab_size), dtype)

    def written(self, places: Ids) -> DeviceLogits:
        """The rows at some places, after a run."""
        return DeviceLogits(self._reader, self.target, places)


class DeviceStatesMemory:
    """Memory on a device that the graph writes hidden states to."""

    def __init__(
        self,
        device: Device,
        layers: tuple[int, ...],
        shape: tuple[int, int, int],
        dtype: DTypeLike,
        reader_of: Callable[[StateWeights], StateReader],
    ) -> None:
        """Make room for states `[n, s, d]` of each layer; raises `DeviceMemoryError` if there is none."""
        self._device = device
        self._layers = layers
        self._reader_of = reader_of
        self.targets = [device.empty(shape, dtype) for _ in layers]

    def written(self, rows: int) -> DeviceStates:
        """The states of the first rows, after a run."""
        return DeviceStates(self._device, self._layers, [array[:rows] for array in self.targets], self._reader_of)


class DeviceMemory:
    """The memory of a device as a `RowMemory`; shared by threads."""

    on_device = True

    def __init__(self, device: Device, logits_dtype: np.dtype[Any], hidden_dtype: np.dtype[Any]) -> None:
        """Open the reader of the logits; those of heads are opened when they are needed."""
        self._device = device
        self._logit_reader = LogitReader(device, logits_dtype)
        self._hidden_dtype = hidden_dtype
        self._state_readers: tuple[StateReader, ...] = ()
        self._lock = threading.Lock()

    def buffer(self, shape: tuple[int, int, int, int], dtype: DTypeLike) -> DeviceArray:
        """Zeros for keys or values `[n, h, c, k]`; raises `DeviceMemoryError` if there is no room for them."""
        return self._device.zeros(shape, dtype)

    def copy(self, source: "DeviceArray | NDArray[Any]", target: DeviceArray, tokens: int) -> None:
        """Copy the first `tokens` tokens of rows, or of a single row into all rows of `target`."""
        if tokens and target.shape[0]:
            self._device.copy(source, target, tokens)

    def logits(self, rows: int, vocab_size: int, dtype: DTypeLike) -> DeviceLogitsMemory:
        """Memory for logits `[m, v]`."""
        return DeviceLogitsMemory(self._logit_reader, rows, vocab_size, dtype)

    def states(self, layers: tuple[int, ...], shape: tuple[int, int, int], dtype: DTypeLike) -> DeviceStatesMemory:
        """Memory for hidden states `[n, s, d]` of each layer."""
        return DeviceStatesMemory(self._device, layers, shape, dtype, self._reader_of)

    def _reader_of(self, weights: StateWeights) -> StateReader:
        """The reader that multiplies with these weights on the device; those of the heads used last are kept."""
        with self._lock:
            reader = next(
                (reader for reader in self._state_readers if reader.weights.identity == weights.identity), None
            )
            if reader is None:
                reader = StateReader(self._device, self._hidden_dtype, weights)
                self._state_readers = (*self._state_readers[1 - MOST_READERS :], reader)
            return reader
