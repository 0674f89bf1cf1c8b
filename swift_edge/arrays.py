"""Types of the arrays that go from module to module; a comment beside each use says its shape."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
"""What a model computes: logits, hidden states, gates, rewards."""
Ids: TypeAlias = NDArray[np.int64]
"""Token ids."""
Doubles: TypeAlias = NDArray[np.float64]
"""What is worked out from many candidates: chances, means, losses."""
