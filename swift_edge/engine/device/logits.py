"""Logits that stay on the device: the most likely tokens of each row come back, and whole rows only where these are not
enough.

Knows rows of logits in a device's memory. Does not know how a token is drawn, or which candidate a row belongs to.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.engine.device.memory import Device, DeviceArray
from swift_edge.engine.device.small_graphs import FLOAT, graph, node

MOST_LIKELY: Final = 256
"""Tokens of a row that come back: more than the filters mostly keep, and few beside a vocabulary."""

FLOOR: Final = -1e4
"""Logits less the greatest are no smaller where they are weighed: the weight is zero long before."""
_SUMS: Final = ("maximum", "total", "mean", "weighted_total", "scaled_total")


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
    entropy: NDArray[np.float64]  # [m]
    """Entropy of each whole row's distribution, in nats."""
    self_certainty: NDArray[np.float64]  # [m]
    """Self-certainty of each whole row, in nats, as `signals.summarize` has it."""


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
                    node("ReduceMean", ["shifted"], ["mean"], {"axes": [1]}),
                    node("Max", ["shifted", "floor"], ["finite"]),
                    node("Mul", ["weights", "finite"], ["weighted"]),
                    node("ReduceSum", ["weighted", "vocabulary"], ["weighted_total"]),
                    node("Mul", ["shifted", "inverse_temperature"], ["scaled"]),
                    node("Exp", ["scaled"], ["scaled_weights"]),
                    node("ReduceSum", ["scaled_weights", "vocabulary"], ["scaled_total"]),
                ],
                {
                    **kind,
                    "count": np.int64,
                    "vocabulary": np.int64,
                    "inverse_temperature": np.float32,
                    "floor": np.float32,
                },
                {
                    "greatest": np.float32,
                    "token_ids": np.int64,
                    **dict.fromkeys(_SUMS, np.float32),
                },
            )
        )

    def whole(self, logits: DeviceArray) -> NDArray[np.float32]:
        """All logits of some rows, float32 `[m, v]`."""
        found = np.empty(logits.shape, np.float32)
        self.device.run(self._whole, {"logits": logits}, {"exact": found})
        return found

    def most_likely(self, logits: DeviceArray, temperature: float) -> MostLikely:
        """The `MOST_LIKELY` most likely tokens of some rows `[m, v]`, or all there are; `temperature` is above 0."""
        rows, vocab_size = logits.shape
        count = min(MOST_LIKELY, vocab_size)
        fed: dict[str, DeviceArray | NDArray[Any]] = {
            "logits": logits,
            "count": np.array([count]),
            "vocabulary": np.array([1]),
            "inverse_temperature": np.array([1 / temperature], np.float32),
            "floor": np.array([FLOOR], np.float32),
        }
        found: dict[str, NDArray[Any]] = {
            "greatest": np.empty((rows, count), np.float32),
            "token_ids": np.empty((rows, count), np.int64),
            **{name: np.empty((rows, 1), np.float32) for name in _SUMS},
        }
        self.device.run(self._most_likely, fed, found)
        sums = {name: found[name][:, 0].astype(np.float64) for name in _SUMS}
        with np.errstate(invalid="ignore", divide="ignore"):
            log_total, log_scaled = np.log(sums["total"]), np.log(sums["scaled_total"])
            return MostLikely(
                found["token_ids"],
                found["greatest"],
                sums["maximum"] + log_total,
                log_scaled,
                np.maximum(log_total - sums["weighted_total"] / sums["total"], 0.0),
                log_total - sums["mean"] - math.log(vocab_size),
            )


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
