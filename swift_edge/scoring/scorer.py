"""How candidates are scored, by a head or a label-free signal, and what that reads from the engine."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Floats
from swift_edge.engine.request import Reads, Step
from swift_edge.engine.signals import TokenStatistics
from swift_edge.scoring.head import Head
from swift_edge.scoring.known import KnownStates


@dataclass(frozen=True, slots=True)
class Scorer:
    """A head, or a signal."""

    head: Head | None
    """The head that scores; None for a signal."""
    signal: str | None
    """The label-free signal that scores; None with a head."""
    uncounted: frozenset[int] = frozenset()
    """Token ids that the head does not score: the EOS ids, if it was trained without them."""

    @classmethod
    def by_head(cls, head: Head, eos_ids: Collection[int]) -> "Scorer":
        """Score by a head of a model with these EOS ids."""
        return cls(head, None, frozenset(() if head.includes_eos else eos_ids))

    @property
    def counts_eos(self) -> bool:
        """Whether a response is scored with the EOS that ends it."""
        return self.head is not None and self.head.includes_eos

    @property
    def reads(self) -> Reads:
        """What is read of every token."""
        if self.head is None:
            return Reads(statistics=frozenset({"self_certainty"} if self.signal == "self_certainty" else ()))
        named = frozenset(self.head.token_statistics) & {"entropy", "self_certainty"}
        if self.known is None:
            return Reads(weights=(self.head.state_weights,), statistics=named)
        return Reads((self.known.layer,), False, (self.head.state_weights,), named, self.known.tokens)

    @property
    def known(self) -> KnownStates | None:
        """What the head knows; None for a signal, and for a head that does not say."""
        return None if self.head is None else self.head.known

    def evaluate(self, products: NDArray[Any], statistics: TokenStatistics) -> tuple[Floats, Floats]:
        """Gates and rewards `[f]` of f tokens, from the products of their states with the head's weights, `[g, f]`.

        `statistics` are those of the same tokens; further ones, of tokens that were not fed, are ignored.
        """
        if self.head is None:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        return self.head.evaluate_products(products, statistics.of(slice(products.shape[1])))

    def evaluate_step(self, step: Step) -> tuple[Floats, Floats]:
        """Gates and rewards `[f]` of the fed tokens of a step; f is 0 without a head."""
        if not step.products:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        return self.evaluate(step.products[0], step.statistics)
