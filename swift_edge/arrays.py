"""Names for the arrays that most modules pass on."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
"""Logits, hidden states, gates, rewards."""
Ids: TypeAlias = NDArray[np.int64]
"""Token ids, and places in arrays."""
