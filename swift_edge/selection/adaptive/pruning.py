"""Which rows to drop while they are written: those whose score falls behind that of others at the same token count.

    schedule    at given token counts, the best so many by the running score stay
    auto        at the token counts that the head was calibrated at, those stay whose log-odds of being right are no
                more than `LARGEST_GAP` behind the best; early on, where scores say little, log-odds lie close together
    off         all stay

A candidate that ended before a token count takes part with its last score. Until an answer can be seen, two different
texts stay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from swift_edge.scoring.calibration import Calibration

LARGEST_GAP: Final = 1.5
"""Log-odds behind the best at which a row is dropped: its odds of being right are less than a quarter of the best's."""
LEAST_TEXTS: Final = 2
"""Different texts that stay until an answer can be seen."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """A rule that drops rows."""

    keep: Mapping[int, int] | None
    """How many stay, by token count; None goes by the calibration."""
    calibration: Calibration | None
    """What running scores are worth; None with a schedule."""

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
        """What candidates are compared by at a token count: the score, or log-odds of being right."""
        if self.calibration is None:
            return score
        if ended:
            return float(self.calibration.log_odds(score))
        return self.calibration.prefixes[tokens].log_odds(score)

    def dropped(
        self, tokens: int, arrived: Mapping[int, tuple[int, ...]], worth: Mapping[int, float], *, answered: bool
    ) -> dict[int, tuple[float, str]]:
        """Candidates to drop of those that have just `arrived` at a token count: how far behind, and the reason.

        `arrived` holds their token ids by candidate; `worth` is that of all that came so far or ended before, of them
        too. `answered` says whether an answer can be seen.
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
