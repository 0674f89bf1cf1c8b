"""What a head knows: where the states of its own problems lie, so that those of foreign questions are told from them.

The first tokens of a response have read the whole question. The mean of their states, standardised, is compared with
those of the training problems: what is left of it outside the axes along which these vary is the residual, and its
energy, in units of a limit, is the distance. (Distances within the axes tell less: foreign questions leave the axes.)

    k axes   d numbers of a state   m tokens
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from swift_edge.checks import expect, is_number, is_whole, require

FIRST_TOKENS: Final = 4
"""Tokens of a response whose states are looked at."""
FALSE_ALARMS: Final = 0.05
"""Share of held-out problems of a head's own tasks that lie beyond its limit."""
ARRAYS: Final = {"mean": np.float32, "scale": np.float32, "axes": np.float16}
"""Arrays of `KnownStates`, and what a file holds them in."""
_FARTHEST: Final = 1e30
"""Stands for distances that are no finite number, which files do not hold."""
NUMBERS: Final = ("layer", "tokens", "limit", "problems")
"""Its other fields."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownStates:
    """Where the states of a head's own problems lie, and how far out others begin."""

    mean: NDArray[np.float32]  # [d]
    """Mean of the first tokens' mean states over the training candidates. Read-only."""
    scale: NDArray[np.float32]  # [d]
    """Their standard deviation. Read-only."""
    axes: NDArray[np.float16]  # [k, d]
    """Orthonormal axes along which they vary most, standardised; k may be 0. Read-only."""
    layer: int
    """The hidden state that is looked at, one of the head's."""
    tokens: int
    """How many first tokens of a response are."""
    limit: float
    """Energy of the residual that a share of `FALSE_ALARMS` of the head's own problems exceed."""
    problems: int
    """Held-out problems that set the limit."""

    def __post_init__(self) -> None:
        """Check that the fields fit together; raises `InvalidOptionError` where they do not."""
        for name, kind in ARRAYS.items():
            array = np.array(getattr(self, name), dtype=kind, order="C")
            require(bool(np.isfinite(array).all()), f"the known {name}", "not finite everywhere", "finite numbers")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        width = self.mean.size
        shapes = [list(getattr(self, name).shape) for name in ARRAYS]
        fits = self.mean.ndim == 1 and self.scale.shape == (width,)
        fits = fits and self.axes.ndim == 2 and self.axes.shape[1] == width and len(self.axes) <= width
        require(fits, "the known states", f"of shapes {shapes}", "[d], [d] and [k, d]")
        require(bool((self.scale > 0).all()), "the known scale", "not positive everywhere", "positive numbers")
        for name in ("layer", "problems"):
            expect(is_whole(getattr(self, name), 0), f"the known {name}", getattr(self, name), "0 or more")
        expect(is_whole(self.tokens, 1), "the known tokens", self.tokens, "1 or more")
        expect(is_number(self.limit) and self.limit > 0, "the known limit", self.limit, "a positive number")

    def distances(self, states: ArrayLike) -> NDArray[np.float64]:
        """Distances of first tokens' mean states, `[c, d]`, in units of the limit, `[c]`: above 1 is foreign."""
        return residual_energy(np.asarray(states, np.float64), self.mean, self.scale, self.axes) / self.limit


def residual_energy(
    states: NDArray[np.float64], mean: NDArray[Any], scale: NDArray[Any], axes: NDArray[Any]
) -> NDArray[np.float64]:
    """Mean square of what standardised states, `[c, d]`, have outside the axes, `[c]`."""
    standard = (states - mean) / scale
    along = axes.astype(np.float64)
    outside = standard - np.einsum("ck,kd->cd", np.einsum("cd,kd->ck", standard, along), along)
    energy: NDArray[np.float64] = np.einsum("cd,cd->c", outside, outside) / max(1, states.shape[1])
    return energy


class Opening:
    """The states of a response's first tokens, as they come in."""

    __slots__ = ("_known", "_states", "_taken", "_uncounted")

    def __init__(self, known: KnownStates, uncounted: Collection[int]) -> None:
        """Start without tokens; those of the ids `uncounted` are passed over."""
        self._known = known
        self._uncounted = uncounted
        self._states: list[NDArray[np.float64]] = []
        self._taken = 0

    def add(self, token_ids: Sequence[int], states: NDArray[np.float32]) -> None:
        """Take the states of the next tokens, `[m, d]`, of the layer that is looked at; what is kept is copied.

        The last of the tokens may have none.
        """
        room = self._known.tokens - self._taken
        if room <= 0:
            return
        counted = [place for place, token in enumerate(token_ids[: len(states)]) if token not in self._uncounted]
        if counted:
            self._states.append(states[counted[:room]].astype(np.float64))
            self._taken += len(self._states[-1])

    @property
    def distance(self) -> float | None:
        """How far the response is from what the head knows, above 1 for foreign ones; None before the first token."""
        if not self._taken:
            return None
        mean = np.concatenate(self._states).mean(axis=0)
        distance = float(self._known.distances(mean[np.newaxis])[0])
        return distance if math.isfinite(distance) else _FARTHEST
