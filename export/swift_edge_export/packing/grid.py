"""Weights that lie on a grid already, as those of a quantised GGUF file: codes and scales that give them back exactly.

Such weights are not rounded a second time. They are known by their numbers and not by where they came from: rows that
were put in another order, and queries, keys and values that became one matrix, lie on their grids as before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from swift_edge_export.packing.weights import CHUNK_BYTES, Matrix

BLOCK_SIZE = 32
"""Neighbouring inputs on one grid, in the types of GGUF that have one scale and no offset: Q4_0, Q5_0 and Q8_0.

Q4_1 has an offset for every block, a float: with one as its zero point, MatMulNBits is 80 to 110 times slower.
"""
_PROBED_OUTPUTS = 4
# The largest code of a block, the likeliest first: quantisers let the largest weight have the last code.
_LARGEST_CODES = {4: (8, 7, 6, 5, 4, 3, 2, 1), 8: (127, 128, 16, *range(15, 0, -1), *range(126, 16, -1))}


def lies_on_grid(matrix: Matrix, weights: npt.NDArray[Any], bits: int, block_size: int) -> bool:
    """Whether every block of a matrix is a scale times whole numbers of `bits` bits; `weights` are its numbers."""
    inputs, outputs = matrix.shape
    step = max(1, CHUNK_BYTES // (4 * inputs))
    starts = [0, *range(_PROBED_OUTPUTS, outputs, step)]  # a few first, for those that do not
    for start, stop in zip(starts, [*starts[1:], outputs], strict=True):
        if grid_codes(matrix.columns(weights, start, stop), bits, block_size) is None:
            return False
    return True


def grid_codes(
    weights: npt.NDArray[Any], bits: int, block_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]] | None:
    """Codes [N, blocks, bytes] and scales [N, blocks] that are exactly `weights` [K, N]; None where there are none.

    Laid out as MatMulNBits reads them: a weight is (code - 2^(bits-1)) * scale, the first of two in the lower half.
    """
    inputs, outputs = weights.shape
    count = -(-inputs // block_size)
    blocks = np.zeros((outputs, count * block_size), np.float32)
    blocks[:, :inputs] = weights.T
    blocks = blocks.reshape(-1, block_size)
    numbers, scales = np.zeros(blocks.shape, np.float32), np.zeros(len(blocks), np.float32)
    largest = np.abs(blocks).max(axis=1)
    left = np.flatnonzero(largest)
    half = 2 ** (bits - 1)
    for code in _LARGEST_CODES[bits]:
        if not len(left):
            break
        with np.errstate(all="ignore"):  # what is not finite fits nothing
            scale = largest[left] / np.float32(code)
            found = np.rint(blocks[left] / scale[:, None])
            # The lowest code has no counterpart above zero: then the scale is negative.
            sign = np.where(found.max(axis=1) > half - 1, np.float32(-1), np.float32(1))
            scale, found = scale * sign, found * sign[:, None]
            fits = (found * scale[:, None] == blocks[left]).all(axis=1)
            fits &= (found.max(axis=1) <= half - 1) & (found.min(axis=1) >= -half)
        place = left[fits]
        numbers[place], scales[place] = found[fits], scale[fits]
        left = left[~fits]
    if len(left):
        return None
    codes = (numbers + half).astype(np.uint8).reshape(outputs, count, block_size)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return codes, scales.reshape(outputs, count)
