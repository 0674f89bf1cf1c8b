"""Weights to codes of a few bits: each to its nearest, or so that errors make up for one another.

Axis letters: N outputs, K inputs, g blocks of one output, b inputs of a block; g * b is K and what pads it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional

DAMPING = 0.02
"""How much stronger an input is taken to be by itself than beside others: correlations of a short text are partly its
own."""
SHRINKAGES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8)
"""Of the range of a block that are tried: a few large weights may be cut for finer steps."""


@dataclasses.dataclass(frozen=True, slots=True)
class Codes:
    """Rounded weights: (code - zero point) * scale."""

    codes: torch.Tensor
    """uint8 [N, g, b], the padding zero points"""
    scales: torch.Tensor
    """float32 [N, g]"""
    zero_points: torch.Tensor
    """uint8 [N, g]"""

    def weights(self, inputs: int) -> torch.Tensor:
        """What they stand for, float32 [N, K]."""
        centred = self.codes.float() - self.zero_points.float()[..., None]
        return (centred * self.scales[..., None]).flatten(1)[:, :inputs]


def nearest(weights: torch.Tensor, bits: int, block_size: int) -> Codes:
    """Codes of weights [N, K], as onnxruntime's own kernel rounds them: at 4 bits with zero points, at 8 without."""
    blocks = _blocks(weights, block_size)
    scales, zero_points = _grid(blocks, bits)
    return Codes(_codes(blocks, scales, zero_points, bits).to(torch.uint8), scales, zero_points.to(torch.uint8))


def rounded_inputs(inputs: torch.Tensor, block_size: int) -> torch.Tensor:
    """Inputs [m, K] as MatMulNBits computes with them at accuracy level 4: 8 bits, a scale for each block of a row."""
    blocks = _blocks(inputs, block_size)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    scales[scales == 0] = 1
    rounded: torch.Tensor = (blocks / scales).round() * scales
    return rounded.flatten(1)[:, : inputs.shape[1]]


def feedback_factor(moment: torch.Tensor) -> torch.Tensor:
    """How the error of an input is handed to those after it: upper triangular [K, K], from the inputs' second moment.

    It is the Cholesky factor of the inverse, see GPTQ (arXiv:2210.17323). An input that was always 0 takes no part.
    """
    strength = moment.diagonal().sqrt()
    strength = torch.where(strength > 0, strength, torch.ones_like(strength))
    correlation = moment / strength[:, None] / strength
    correlation.diagonal().fill_(1 + DAMPING)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlation))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True) / strength
    return factor


def with_feedback(weights: torch.Tensor, factor: torch.Tensor, bits: int, block_size: int) -> Codes:
    """Codes of weights [N, K], rounded input by input: what one loses, those after it make up for.

    A block gets its scale when its turn comes, from the weights as they have become by then. `factor` is that of
    `feedback_factor`.
    """
    outputs, inputs = weights.shape
    left = weights.clone()
    importance = 1 / factor.diagonal() ** 2  # [K]
    count = -(-inputs // block_size)
    codes = torch.zeros(outputs, count, block_size, dtype=torch.uint8)
    scales, zero_points = torch.empty(outputs, count), torch.empty(outputs, count)
    for place in range(count):
        start, stop = place * block_size, min((place + 1) * block_size, inputs)
        scale, zero_point = _best_grid(left[:, start:stop], importance[start:stop], bits)  # [N, 1] each
        scales[:, place], zero_points[:, place] = scale[:, 0], zero_point[:, 0]
        codes[:, place] = zero_point.to(torch.uint8)
        block, errors = left[:, start:stop].clone(), torch.empty(outputs, stop - start)
        inner = factor[start:stop, start:stop]
        for offset in range(stop - start):
            column = block[:, offset : offset + 1]
            code = _codes(column, scale, zero_point, bits)
            codes[:, place, offset] = code[:, 0].to(torch.uint8)
            error = (column - (code - zero_point) * scale)[:, 0] / inner[offset, offset]
            block[:, offset:].addr_(error, inner[offset, offset:], alpha=-1)
            errors[:, offset] = error
        left[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return Codes(codes, scales, zero_points.to(torch.uint8))


def _best_grid(block: torch.Tensor, importance: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and zero point [N, 1] of weights [N, b] that lose the least, of those that `SHRINKAGES` gives."""
    best = least = None
    for shrinkage in SHRINKAGES:
        scale, zero_point = (each[:, :1] for each in _grid(block[:, None] * shrinkage, bits))
        lost = (_codes(block, scale, zero_point, bits) - zero_point) * scale - block
        loss = (lost**2 * importance).sum(1, keepdim=True)
        if best is None or least is None:
            best, least = (scale, zero_point), loss
            continue
        better = loss < least
        best = (torch.where(better, scale, best[0]), torch.where(better, zero_point, best[1]))
        least = torch.minimum(loss, least)
    assert best is not None
    return best


def _grid(blocks: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [N, g] for blocks [N, g, b]."""
    if bits == 8:  # the largest weight gets the last code of its sign, which is the lowest one
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0]
        scales = -largest / 2 ** (bits - 1)
        scales[scales == 0] = 1
        return scales, torch.full_like(scales, 2 ** (bits - 1))
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scales = (high - low) / (2**bits - 1)
    scales[scales == 0] = 1
    return scales, (-low / scales).round().clamp(0, 2**bits - 1)


def _codes(blocks: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of weights, in float32; scales and zero points have one axis less, or are as wide."""
    if scales.dim() < blocks.dim():
        scales, zero_points = scales[..., None], zero_points[..., None]
    return (blocks / scales + zero_points).round().clamp(0, 2**bits - 1)


def _blocks(rows: torch.Tensor, block_size: int) -> torch.Tensor:
    """Rows [n, K] as blocks [n, g, b], filled up with 0."""
    return functional.pad(rows, (0, -rows.shape[1] % block_size)).reshape(len(rows), -1, block_size)
