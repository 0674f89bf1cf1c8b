"""Logits that stay on the device: the most likely tokens of each row come back, and whole rows only where these are not
enough.

Knows rows of logits in a device's memory. Does not know how a token is drawn, or which candidate a row belongs to.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.device_cache import Device, DeviceArray, bind
from swift_edge.small_graphs import FLOAT, graph, node

MOST_LIKELY: Final = 256
"""Tokens of a row that come back: more than the filters mostly keep, and few beside a vocabulary."""


@dataclass(frozen=True, slots=True)
class MostLikely:
    """The k most likely tokens of m rows, and what the others come to."""

    token_ids: NDArray[np.int64]  # [m, k]
    """In descending order of their logits."""
    logits: NDArray[np.float32]  # [m, k]
    """As the model gave them."""
    log_normalizer: NDArray[np.float64]  # [m]
    """Log of the sum of exponentials of each whole row, in nats; NaN where the row holds NaN."""
    log_scaled: NDArray[np.float64]  # [m]
    """Log of the sum of exponentials of (logit - greatest logit) / temperature over each whole row."""


class LogitReader:
    """Reads rows of logits `[n, v]` that lie on a device; shared by threads."""

    def __init__(self, device: Device, dtype: np.dtype[Any]) -> None:
        """Open the graphs that look through rows of float32 or float16, and that bring them whole."""
        kind = {"logits": dtype.type}
        cast = node("Cast", ["logits"], ["exact"], {"to": FLOAT})
        self.device = device
        self._whole = device.open(graph([cast], kind, {"exact": np.float32}))
        self._most_likely = device.open(
            graph(
                [
                    cast,
                    node("TopK", ["exact", "count"], ["greatest", "token_ids"]),
                    node("ReduceMax", ["exact"], ["maximum"], {"axes": [1]}),
                    node("Sub", ["exact", "maximum"], ["shifted"]),
                    node("Exp", ["shifted"], ["weights"]),
                    node("ReduceSum", ["weights", "vocabulary"], ["total"]),
                    node("Mul", ["shifted", "inverse_temperature"], ["scaled"]),
                    node("Exp", ["scaled"], ["scaled_weights"]),
                    node("ReduceSum", ["scaled_weights", "vocabulary"], ["scaled_total"]),
                ],
                {**kind, "count": np.int64, "vocabulary": np.int64, "inverse_temperature": np.float32},
                {
                    "greatest": np.float32,
                    "token_ids": np.int64,
                    "maximum": np.float32,
                    "total": np.float32,
                    "scaled_total": np.float32,
                },
            )
        )

    def whole(self, logits: DeviceArray) -> NDArray[np.float32]:
        """All logits of some rows, float32 `[m, v]`."""
        found = np.empty(logits.shape, np.float32)
        self._run(self._whole, {"logits": logits}, {"exact": found})
        return found

    def most_likely(self, logits: DeviceArray, temperature: float) -> MostLikely:
        """The `MOST_LIKELY` most likely tokens of some rows `[m, v]`, or all there are; `temperature` is above 0."""
        rows, vocab_size = logits.shape
        count = min(MOST_LIKELY, vocab_size)
        fed = {
            "logits": logits,
            "count": np.array([count]),
            "vocabulary": np.array([1]),
            "inverse_temperature": np.array([1 / temperature], np.float32),
        }
        found: dict[str, NDArray[Any]] = {
            "greatest": np.empty((rows, count), np.float32),
            "token_ids": np.empty((rows, count), np.int64),
            "maximum": np.empty((rows, 1), np.float32),
            "total": np.empty((rows, 1), np.float32),
            "scaled_total": np.empty((rows, 1), np.float32),
        }
        self._run(self._most_likely, fed, found)
        with np.errstate(invalid="ignore", divide="ignore"):
            log_total, log_scaled = (np.log(found[name][:, 0].astype(np.float64)) for name in ("total", "scaled_total"))
            log_normalizer = found["maximum"][:, 0] + log_total
        return MostLikely(found["token_ids"], found["greatest"], log_normalizer, log_scaled)

    def _run(self, session: Any, fed: dict[str, Any], found: dict[str, NDArray[Any]]) -> None:
        binding = session.io_binding()
        for name, array in fed.items():
            bind(binding.bind_input, name, array)
        for name, array in found.items():
            bind(binding.bind_output, name, array)
        session.run_with_iobinding(binding)


class DeviceLogits:
    """Rows `[m, v]` of logits on a device, in any order; NumPy makes a float32 array of them by bringing them whole.

    They hold until the rows are decoded again.
    """

    def __init__(self, reader: LogitReader, memory: DeviceArray, rows: NDArray[np.int64]) -> None:
        """Take the places `[m]` of these rows in `memory` `[n, v]`."""
        self._reader = reader
        self._memory = memory
        self._rows = rows

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def __getitem__(self, rows: "int | slice") -> "DeviceLogits":
        """Some of the rows, or one; a copy of their places."""
        return DeviceLogits(self._reader, self._memory, np.atleast_1d(self._rows[rows]).copy())

    def __setitem__(self, row: int, other: "DeviceLogits") -> None:
        """Put another row of the same memory into the place of one."""
        self._rows[row] = other._rows[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        """All of them, float32 `[m, v]`."""
        return self.whole(np.arange(len(self)))

    def whole(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows, one by one, whole."""
        places = self._rows[rows].tolist()
        return np.concatenate([self._reader.whole(self._memory[place : place + 1]) for place in places])

    def most_likely(self, temperature: float) -> MostLikely:
        """The most likely tokens of every row."""
        found = self._reader.most_likely(self._memory[: int(self._rows.max()) + 1], temperature)
        return MostLikely(*(getattr(found, name)[self._rows] for name in MostLikely.__slots__))
