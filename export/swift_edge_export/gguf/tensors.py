"""Reads tensors of a GGUF file, whole or some rows at a time, as numbers; nothing of the file stays open or mapped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from swift_edge.errors import MIB, UnsupportedModelError, one_line
from swift_edge_export.gguf.container import Tensor, damaged, gguf_package

PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
"""Types whose numbers are the weights themselves."""
INTEGERS = {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
"""Types of numbers that are no weights."""
_COMPARED_BYTES = 16 * MIB
_ROWS_BYTES = 16 * MIB


def dequantized(tensor: Tensor, rows: slice = slice(None)) -> torch.Tensor:
    """Some rows of a tensor in float32.

    Raises:
        UnsupportedModelError: its type has no numbers that the package `gguf` can make out.
        ExportError: the file does not read any more.
    """
    start, stop, _ = rows.indices(tensor.shape[0])
    shape = (max(0, stop - start), *tensor.shape[1:])
    weights = torch.empty(shape, dtype=torch.float32)
    row_bytes = tensor.nbytes // tensor.shape[0] if len(tensor.shape) > 1 else 0
    if not row_bytes:  # of one axis: too small for parts
        weights.copy_(_numbers(tensor, read_bytes(tensor, 0, tensor.nbytes)).reshape(tensor.shape)[rows])
        return weights
    # In parts, as the package holds several copies of what it makes numbers of.
    step = max(1, _ROWS_BYTES * len(weights) // max(1, 4 * weights.numel()))
    for first in range(0, len(weights), step):
        part = weights[first : first + step]
        content = read_bytes(tensor, (start + first) * row_bytes, len(part) * row_bytes)
        part.copy_(_numbers(tensor, content).reshape(part.shape))
    return weights


def read_bytes(tensor: Tensor, start: int, count: int) -> bytes:
    """`count` bytes of a tensor, from `start` on."""
    try:
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset + start)
            content = file.read(count)
    except OSError as error:
        raise damaged(tensor.path, f"does not read ({one_line(error)})") from error
    if len(content) != count:
        raise damaged(tensor.path, "became shorter while it was read")
    return content


def same_codes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are stored as the same bytes in the same type."""
    if (one.shape, one.kind, one.nbytes) != (other.shape, other.kind, other.nbytes):
        return False
    starts = range(0, one.nbytes, _COMPARED_BYTES)
    parts = ((start, min(_COMPARED_BYTES, one.nbytes - start)) for start in starts)
    return all(read_bytes(one, *part) == read_bytes(other, *part) for part in parts)


def _numbers(tensor: Tensor, content: bytes) -> torch.Tensor:
    if tensor.kind in PLAIN:
        array: np.ndarray[Any, Any] = np.frombuffer(content, PLAIN[tensor.kind]).astype(np.float32)
        return torch.from_numpy(array)
    gguf = gguf_package()
    kind = gguf.GGMLQuantizationType[tensor.kind]
    row_bytes = tensor.nbytes // math.prod(tensor.shape[:-1])
    try:
        rows = np.frombuffer(content, np.uint8).reshape(-1, row_bytes)
        with np.errstate(all="ignore"):  # what is not finite is refused with the name of its tensor
            array = gguf.dequantize(rows, kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{tensor.path} holds a tensor as {tensor.kind}, which the package gguf makes no numbers of; "
            "take a file in another quantisation"
        ) from error
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
