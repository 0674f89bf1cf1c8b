"""Seconds spent on the parts of a pick, and the speeds computed from them."""

from dataclasses import dataclass

from swift_edge.results import Timings


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent so far; the fields are those of `Timings` with the same names."""

    prefill_s: float = 0.0
    """Reading tokens in one go."""
    decode_s: float = 0.0
    """Running the graph, token by token."""
    sample_s: float = 0.0
    """Drawing tokens and their statistics."""
    head_s: float = 0.0
    """Gates and rewards."""

    def add_share(self, spent: "Stopwatch", share: float) -> None:
        """Add a share, up to 1, of the seconds spent on decoding, sampling and scoring."""
        self.decode_s += spent.decode_s * share
        self.sample_s += spent.sample_s * share
        self.head_s += spent.head_s * share

    def add(self, other: "Stopwatch") -> None:
        """Add what another one has counted."""
        self.prefill_s += other.prefill_s
        self.add_share(other, 1.0)

    def timings(self, load_s: float, total_s: float, read: int, written: int) -> Timings:
        """The timings, with speeds by the tokens read in prefill and written in decode."""
        decoding_s = self.decode_s + self.sample_s + self.head_s
        return Timings(
            load_s=load_s,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            sample_s=self.sample_s,
            head_s=self.head_s,
            total_s=total_s,
            prefill_tps=read / self.prefill_s,
            decode_tps=written / decoding_s if written else 0.0,
        )
