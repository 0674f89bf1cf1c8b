"""Arrays in the memory of the device that computes, and small graphs that run there without crossing the bus.

Rows of keys and values are copied, moved and grown by a graph of three nodes on the same device.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from swift_edge.engine.device.small_graphs import graph, node
from swift_edge.engine.providers import DEVICES, onnxruntime_module, open_small_graph
from swift_edge.errors import DeviceError, DeviceMemoryError, ProviderError, one_line
from swift_edge.system.machine import tells_of_memory

# Copies the first `tokens` tokens of one row, or of as many rows as there are to write, and puts zeros behind them.
# Numbers of any type are moved as words of 32 bits, for which every provider has these operators.
_COPY: Final = graph(
    [
        node("Slice", ["source", "none", "tokens", "token_axis"], ["held"]),
        node("Expand", ["held", "rows"], ["repeated"]),
        node("Pad", ["repeated", "padding"], ["target"]),
    ],
    inputs={
        "source": np.float32,
        "none": np.int64,
        "tokens": np.int64,
        "token_axis": np.int64,
        "rows": np.int64,
        "padding": np.int64,
    },
    outputs={"target": np.float32},
)

_SIZE: Final = re.compile(r"buffer of size (\d+)")


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """Rows of an array on a device; `array[first:last]` is a view of some of them."""

    device: str
    """As onnxruntime names it: `cuda`, or `cpu`."""
    address: int
    """Where the first row begins."""
    shape: tuple[int, ...]
    """Rows first; everything is contiguous."""
    dtype: np.dtype[Any]
    """Type of the numbers."""
    memory: Any
    """The `OrtValue` that holds the rows; it lives as long as an array that uses it."""

    @property
    def nbytes(self) -> int:
        """Bytes of these rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> "DeviceArray":
        """The rows of a slice without steps."""
        first, last, _ = rows.indices(self.shape[0])
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (max(0, last - first), *self.shape[1:])
        return DeviceArray(self.device, self.address + first * row_bytes, shape, self.dtype, self.memory)


class Device:
    """The memory of one device, and the session that moves rows within it; shared by caches and threads."""

    def __init__(self, name: str) -> None:
        """Open the session on the device that onnxruntime calls `cuda` or `cpu`, the first of its kind."""
        self.name = name
        self._ort = onnxruntime_module()
        self._session = self.open(_COPY)

    def open(self, model: bytes) -> Any:
        """Open a small graph to run on this device."""
        return open_small_graph(model, self.name)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """An array with arbitrary contents; raises `DeviceMemoryError` if the device has no room for it."""
        kind = np.dtype(dtype)
        try:
            memory = self._ort.OrtValue.ortvalue_from_shape_and_type(shape, kind.type, self.name, 0)
        except Exception as error:  # onnxruntime's own kinds have no base class that it exports
            raise DeviceMemoryError(self.name, math.prod(shape) * kind.itemsize, str(error)) from error
        return DeviceArray(self.name, memory.data_ptr(), shape, kind, memory)

    def placed(self, array: "NDArray[Any]") -> DeviceArray:
        """A copy of an array, on the device; raises `DeviceMemoryError` if there is no room for it."""
        target = self.empty(array.shape, array.dtype)
        target.memory.update_inplace(array)
        return target

    def run(
        self,
        session: Any,
        inputs: "Mapping[str, DeviceArray | NDArray[Any]]",
        outputs: "Mapping[str, DeviceArray | NDArray[Any]]",
        *,
        words: Collection[str] = (),
    ) -> None:
        """Run a small graph from `inputs` into `outputs`; `bind` says what `words` are.

        Raises `DeviceMemoryError` if the device has no room for it, `DeviceError` for any other failure.
        """
        binding = session.io_binding()
        try:
            for name, array in inputs.items():
                bind(binding.bind_input, name, array, words=name in words)
            for name, array in outputs.items():
                bind(binding.bind_output, name, array, words=name in words)
            session.run_with_iobinding(binding)
        except Exception as error:
            reason = one_line(error)
            failure = f"onnxruntime could not run a graph on {self.name}: {reason}; leave providers out"
            raise (memory_failure(self.name, reason) or DeviceError(failure)) from error

    def whole(self, array: DeviceArray) -> "NDArray[Any]":
        """A copy in NumPy's memory of an array made by `empty`, or of its first rows."""
        values: NDArray[Any] = array.memory.numpy()
        return values[: array.shape[0]]

    def zeros(self, shape: tuple[int, int, int, int], dtype: DTypeLike) -> DeviceArray:
        """An array of zeros `[n, h, c, k]`; raises `DeviceMemoryError` if the device has no room for it."""
        target = self.empty(shape, dtype)
        if target.nbytes:
            # The memory may hold NaN, which a kernel that multiplies by zero would spread.
            self.copy(np.zeros((1, shape[1], 1, shape[3]), target.dtype), target, 1)
        return target

    def copy(self, source: "DeviceArray | NDArray[Any]", target: DeviceArray, tokens: int) -> None:
        """Copy the first `tokens` tokens of rows `[n, h, c, k]`, or of a single row into every row of `target`.

        The rest of `target` becomes zero. The k numbers of a token have to fill whole words of 32 bits.
        """
        rows, _, capacity, _ = target.shape
        sizes = {
            "none": np.zeros(1, np.int64),
            "tokens": np.array([tokens]),
            "token_axis": np.array([2]),
            "rows": np.array([rows, 1, 1, 1]),
            "padding": np.array([0, 0, 0, 0, 0, 0, capacity - tokens, 0]),
        }
        self.run(self._session, {"source": source, **sizes}, {"target": target}, words=("source", "target"))


def rows_device(location: str, providers: Sequence[str]) -> Device | None:
    """The device on which to keep rows, by the `location` at which the graph reads them; None for NumPy's memory.

    The graph decides, not the providers that it was opened with: those may leave attention to the CPU.
    Raises `ProviderError` if CUDA does.
    """
    if location == "cpu" and DEVICES["cuda"] in providers:
        raise ProviderError(
            f"{DEVICES['cuda']} leaves this bundle's attention to the CPU: keys and values would cross the bus at "
            "every step; it takes float16: export the model with --precision fp16, or leave providers out"
        )
    return Device(location) if location in DEVICES and location != "cpu" else None


def memory_failure(device: str, reason: str) -> DeviceMemoryError | None:
    """The error for a run that ran out of memory, by onnxruntime's message `reason`; None for other failures."""
    if not tells_of_memory(reason):
        return None
    size = _SIZE.search(reason)
    return DeviceMemoryError(device, None if size is None else int(size[1]), reason)


def bind(
    to: Any,
    name: str,
    array: "DeviceArray | NDArray[Any]",
    *,
    words: bool = False,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Bind a tensor to the memory of an array, which has to be contiguous and to outlive the binding.

    `to` is `bind_input` or `bind_output` of an `onnxruntime.IOBinding`. With `words` the numbers of the last axis are
    bound as float32, whatever their type. `shape` is the shape to bind, if it differs from the array's.
    """
    shape, kind = array.shape if shape is None else shape, array.dtype
    if words:
        shape, kind = (*shape[:-1], shape[-1] * kind.itemsize // 4), np.dtype(np.float32)
    if isinstance(array, DeviceArray):
        to(name, array.device, 0, kind.type, shape, array.address)
    else:
        to(name, "cpu", 0, kind.type, shape, array.ctypes.data)
