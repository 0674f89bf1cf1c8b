"""Logits that stay on the device: only the most likely tokens of each row are copied back, whole rows if these are not
enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.device.memory import Device, DeviceArray
from swift_edge.engine.device.small_graphs import FLOAT, graph, node
from swift_edge.engine.host import HostLogits
from swift_edge.engine.row_memory import DrawingRow
from swift_edge.engine.sampling import sample_most_likely
from swift_edge.engine.signals import TokenStatistics, require_distribution

MOST_LIKELY: Final = 256
"""Tokens copied back per row: mostly more than the filters keep, and few compared with a vocabulary."""

FLOOR: Final = -1e4
"""Lower bound of logits less the greatest, where they are weighted: their weight is 0 long before."""
_SUMS: Final = ("maximum", "total", "mean", "weighted_total", "scaled_total")


@dataclass(frozen=True, slots=True)
class MostLikely:
    """The k most likely tokens of m rows, with sums and statistics over the whole rows."""

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
        """Open the graphs that search rows of float32 or float16, and that convert whole rows."""
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
        values = np.empty(logits.shape, np.float32)
        self.device.run(self._whole, {"logits": logits}, {"exact": values})
        return values

    def most_likely(self, logits: DeviceArray, temperatures: NDArray[np.float64]) -> MostLikely:
        """The `MOST_LIKELY` most likely tokens of rows `[m, v]`, or all there are; `temperatures` `[m]` are above 0."""
        rows, vocab_size = logits.shape
        count = min(MOST_LIKELY, vocab_size)
        fed: dict[str, DeviceArray | NDArray[Any]] = {
            "logits": logits,
            "count": np.array([count]),
            "vocabulary": np.array([1]),
            "inverse_temperature": (1 / temperatures[:, np.newaxis]).astype(np.float32),
            "floor": np.array([FLOOR], np.float32),
        }
        outputs: dict[str, NDArray[Any]] = {
            "greatest": np.empty((rows, count), np.float32),
            "token_ids": np.empty((rows, count), np.int64),
            **{name: np.empty((rows, 1), np.float32) for name in _SUMS},
        }
        self.device.run(self._most_likely, fed, outputs)
        sums = {name: outputs[name][:, 0].astype(np.float64) for name in _SUMS}
        with np.errstate(invalid="ignore", divide="ignore"):
            log_total, log_scaled = np.log(sums["total"]), np.log(sums["scaled_total"])
            return MostLikely(
                outputs["token_ids"],
                outputs["greatest"],
                sums["maximum"] + log_total,
                log_scaled,
                np.maximum(log_total - sums["weighted_total"] / sums["total"], 0.0),
                log_total - sums["mean"] - math.log(vocab_size),
            )


class DeviceLogits:
    """Rows `[m, v]` of logits on a device, in any order; valid until the rows are decoded again."""

    def __init__(self, reader: LogitReader, memory: DeviceArray, places: Ids) -> None:
        """Take the places `[m]` of these rows in `memory` `[n, v]`."""
        self._reader = reader
        self._memory = memory
        self._places = places.copy()

    def whole(self, places: Sequence[int] | None = None) -> Floats:
        """Logits of some rows, or of all, float32 `[m, v]`, copied one by one."""
        chosen = self._places if places is None else self._places[list(places)]
        if not len(chosen):
            return np.empty((0, self._memory.shape[1]), np.float32)
        return np.concatenate([self._reader.whole(self._memory[place : place + 1]) for place in chosen.tolist()])

    def move(self, source: int, target: int) -> None:
        """Put the last row, number `source`, into the place of another; there is one row less then."""
        self._places[target] = self._places[source]
        self._places = self._places[:source]

    def draw(self, rows: Sequence[DrawingRow], *, entropy: bool, self_certainty: bool) -> tuple[Ids, TokenStatistics]:
        """Draw from the most likely tokens of each row, and from whole rows where these are not enough."""
        most_likely = self.most_likely([row.sampling.temperature or 1.0 for row in rows])
        for place in np.flatnonzero(~np.isfinite(most_likely.log_normalizer)).tolist():
            require_distribution(self.whole([place]).max(axis=1), first_row=place)
        token_ids = np.empty(len(rows), np.int64)  # [m]
        columns = {"logprob": np.empty(len(rows), np.float64)}  # [m] each
        columns |= {"entropy": most_likely.entropy} if entropy else {}
        columns |= {"self_certainty": most_likely.self_certainty} if self_certainty else {}
        for place, row in enumerate(rows):
            token_id = None
            ids, values = most_likely.token_ids[place], most_likely.logits[place]
            normalizer = most_likely.log_normalizer[place]
            if np.isfinite(normalizer) and not row.sampling.draws_from_all:
                token_id = sample_most_likely(
                    values,
                    ids,
                    self._memory.shape[1],
                    row.sampling,
                    row.generator,
                    row.seen,
                    float(most_likely.log_scaled[place]),
                )
            if token_id is not None:
                token_ids[place] = token_id
                columns["logprob"][place] = float(values[ids == token_id][0]) - normalizer
                continue
            host = HostLogits(self.whole([place]))
            token_ids[place : place + 1], exact = host.draw([row], entropy=entropy, self_certainty=self_certainty)
            for name, column in columns.items():
                column[place] = getattr(exact, name)[0]
        return token_ids, TokenStatistics(**columns)

    def most_likely(self, temperatures: Sequence[float]) -> MostLikely:
        """The most likely tokens of every row, each at its temperature."""
        last = int(self._places.max()) + 1
        by_place = np.ones(last, np.float64)
        by_place[self._places] = temperatures
        most_likely = self._reader.most_likely(self._memory[:last], by_place)
        return MostLikely(*(getattr(most_likely, name)[self._places] for name in MostLikely.__slots__))
