"""Weights that hidden states are multiplied with in the memory where they lie, and the products in NumPy.

g rows of weights   l layers   d numbers of a state   m tokens
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class StateWeights:
    """The part of a head that reads states: it makes g numbers of each token."""

    layers: tuple[int, ...]
    """Hidden states that are read, in this order; empty where the logits are read as one slice."""
    weight: NDArray[np.float32]  # [g, l, d], or [g, 1, v] for logits
    """Weights of each state."""
    rms_epsilon: float | None
    """Added to the mean square of a state before it is divided by its root; None if states are not divided."""

    identity: tuple[object, ...] = field(init=False, repr=False)
    """Equal for weights that share the same memory and are read in the same way."""

    def __post_init__(self) -> None:
        """Compute `identity`."""
        identity = self.layers, self.rms_epsilon, self.weight.shape, self.weight.ctypes.data
        object.__setattr__(self, "identity", identity)


def state_products(states: NDArray[Any], weights: StateWeights) -> NDArray[np.float64]:
    """Products of the weights with states, float32 or float16 `[l, m, d]`, summed over the slices: `[g, m]`.

    A token's products do not depend on the tokens beside it, bit for bit.
    """
    contiguous = np.ascontiguousarray(states, dtype=np.float32)
    # Without `optimize`, einsum has its own loop over d for each token and slice: no BLAS, no sum that m changes.
    products = np.einsum("lmd,gld->gml", contiguous, weights.weight)  # [g, m, l]
    if weights.rms_epsilon is not None:
        # Dividing the products is the same as dividing the states, and cheaper.
        squares = np.einsum("lmd,lmd->ml", contiguous, contiguous)  # [m, l]
        products /= np.sqrt(squares / np.float32(states.shape[2]) + np.float32(weights.rms_epsilon))
    # Made contiguous, so that numpy sums over l in the same order for every m, m = 1 included.
    summed: NDArray[np.float64] = np.ascontiguousarray(products, dtype=np.float64).sum(axis=2)
    return summed
