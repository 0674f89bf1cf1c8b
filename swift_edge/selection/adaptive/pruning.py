"""Which rows to drop while they are written: those whose score falls behind that of others at the same token count.

    schedule    at the given token counts, only the given number with the best running scores stay
    auto        at the token counts of the head's calibration, rows whose log-odds of being right are more than
                `LARGEST_GAP` behind the best are dropped; early scores say little, so their log-odds lie close together
    off         all stay

A candidate that ended earlier, unless it was cut off, is compared by its last score. Until a candidate has an answer,
two different texts stay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from swift_edge.scoring.calibration import Calibration

LARGEST_GAP: Final = 1.5
"""Log-odds behind the best at which a row is dropped: its odds of being right are less than a quarter of the best's."""
LEAST_TEXTS: Final = 2
"""Different texts that stay until a candidate has an answer."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """A rule that drops rows."""

    keep: Mapping[int, int] | None
    """How many stay, by token count; None: the calibration decides."""
    calibration: Calibration | None
    """Turns running scores into log-odds; None with a schedule."""

    @classmethod
    def of(cls, prune: Literal["auto", "off"] | Mapping[int, int], calibration: Calibration | None) -> "Pruning | None":
        """The rule that was asked for; without calibrated prefixes `auto` drops nothing."""
        if prune == "off":
            return None
        if prune == "auto":
            return cls(None, calibration) if calibration is not None and calibration.prefixes else None
        return cls(dict(sorted(prune.items())), None)

    @property
    def token_counts(self) -> frozenset[int]:
        """Token counts at which rows are compared."""
        if self.keep is not None:
            return frozenset(self.keep)
        return frozenset() if self.calibration is None else frozenset(self.calibration.prefixes)

    def worth(self, score: float, tokens: int, *, ended: bool) -> float:
        """The number that candidates are compared by at a token count: the score, or log-odds of being right."""
        if self.calibration is None:
            return score
        if ended:
            return float(self.calibration.log_odds(score))
        return self.calibration.prefixes[tokens].log_odds(score)

    def dropped(
        self, tokens: int, arrived: Mapping[int, tuple[int, ...]], worth: Mapping[int, float], *, answered: bool
    ) -> dict[int, tuple[float, str]]:
        """Which of the candidates that have just reached a token count to drop: how far behind each is, and the reason.

        `arrived` holds their token ids, by candidate. `worth` is that of every candidate that has reached this count or
        ended before it. `answered` says whether any candidate has an answer.
        """
        ordered = sorted(worth, key=lambda index: (-_comparable(worth[index]), index))
        best = _comparable(worth[ordered[0]])
        drops: dict[int, tuple[float, str]] = {}
        kept_texts: set[tuple[int, ...]] = set()
        for place, index in enumerate(ordered):
            behind = best - _comparable(worth[index])
            if self.keep is not None:
                reason = f"at {tokens} tokens {place} others had a greater score, {self.keep[tokens]} stay"
                weak = place >= self.keep[tokens]
            else:
                reason = f"at {tokens} tokens its log-odds of being right were {behind:.2f} behind the best"
                weak = behind > LARGEST_GAP
            text = arrived.get(index, (index,))
            if weak and index in arrived and (answered or len(kept_texts) >= LEAST_TEXTS):
                drops[index] = behind, reason
            else:
                kept_texts.add(text)
        return drops


def _comparable(number: float) -> float:
    return -math.inf if math.isnan(number) else number
