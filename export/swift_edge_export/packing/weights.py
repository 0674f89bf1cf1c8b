"""Finds the weight matrices of a graph: what multiplies by one, what looks tokens up in one, which two are tied."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from swift_edge.errors import ExportError

# Weights are read in slices of this size, so that the copies stay small whatever the matrix, and in the cache.
CHUNK_BYTES = 4 * 1024**2

# A sum over fewer terms is no layer: rotary's positions times frequencies is one, and must stay exact.
FEWEST_INPUTS = 16

# Nodes between `input_ids` and the embedding that change no id.
PASSING_IDS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


@dataclasses.dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix of K inputs and N outputs, whichever way round its initialiser holds it."""

    value: ir.Value
    """the initialiser"""
    outputs_first: bool
    """held as [N, K], as torch's Linear and Embedding do, instead of [K, N]"""

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        first, second = tensor_of(self.value).shape.numpy()
        return (second, first) if self.outputs_first else (first, second)

    def columns(self, weights: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """View `weights` (as the initialiser holds them) of outputs `start` to `stop` as [K, stop - start]."""
        return weights[start:stop].T if self.outputs_first else weights[:, start:stop]


def weight_of_product(node: ir.Node) -> Matrix | None:
    """The fp32 weight matrix of a MatMul, or of a Gemm that computes x @ w + b; None for any other node."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    matrix = weight_matrix(node.inputs[1])
    if matrix is not None and node.op_type == "Gemm":
        attributes = node.attributes
        if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_int("transA", 0) != 0:
            return None
        if len(node.inputs) > 2 and attributes.get_float("beta", 1.0) != 1.0:
            return None
        if attributes.get_int("transB", 0):
            matrix = Matrix(matrix.value, not matrix.outputs_first)
    return matrix if matrix is not None and matrix.shape[0] >= FEWEST_INPUTS else None


def weight_matrix(value: ir.Value | None) -> Matrix | None:
    """The fp32 [K, N] matrix behind the right operand of a product: an initialiser, or the transpose of one."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return Matrix(value, outputs_first=False) if is_matrix(value) else None
    if producer.op_type == "Transpose" and (source := producer.inputs[0]) is not None and is_matrix(source):
        return Matrix(source, outputs_first=list(producer.attributes.get_ints("perm", [1, 0])) == [1, 0])
    return None


def unpacked_weight(node: ir.Node) -> str | None:
    """The name of a floating-point initialiser of two or more axes that a product reads and that was not packed."""
    if node.domain or node.op_type not in ("MatMul", "Gemm") or (value := node.inputs[1]) is None:
        return None
    tensor = value.const_value if value.is_initializer() else None
    return value.name if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > 1 else None


def token_embedding(node: ir.Node) -> Matrix | None:
    """The table of a Gather that reads rows by token id; tables read by position, rotary's too, have to stay exact."""
    if node.domain or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    table, ids = node.inputs
    while ids is not None and (producer := ids.producer()) is not None and producer.op_type in PASSING_IDS:
        ids = producer.inputs[0]
    if table is None or ids is None or not ids.is_graph_input() or ids.name != "input_ids" or not is_matrix(table):
        return None
    return Matrix(table, outputs_first=True)


def is_matrix(value: ir.Value) -> bool:
    """Whether a value is an fp32 initialiser of two axes that callers cannot override."""
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_input():
        return False
    return tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2


def is_unused(value: ir.Value) -> bool:
    """Whether nothing reads a value, inside the graph or outside."""
    return not value.uses() and not value.is_graph_output() and not value.is_graph_input()


def same_weights(one: Matrix, other: Matrix) -> bool:
    """Whether two matrices are tied: one initialiser, or two of equal content (tracers fold transposes into copies)."""
    if one == other:
        return True
    if one.shape != other.shape:
        return False
    inputs, outputs = one.shape
    one_weights, other_weights = tensor_of(one.value).numpy(), tensor_of(other.value).numpy()
    step = max(1, CHUNK_BYTES // (4 * inputs))
    bounds = [(start, min(start + step, outputs)) for start in range(0, outputs, step)]
    same = all(np.array_equal(one.columns(one_weights, *at), other.columns(other_weights, *at)) for at in bounds)
    del one_weights, other_weights
    release(tensor_of(one.value))
    release(tensor_of(other.value))
    return same


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The content of an initialiser."""
    if value.const_value is None:
        raise ExportError(f"the initialiser {value.name} has no content; export the model with its weights")
    return value.const_value


def release(tensor: ir.TensorProtocol) -> None:
    """Unmap a file that a tensor was read from, so that its pages do not stay in memory."""
    if isinstance(tensor, ir.ExternalTensor):
        # Somebody else may still look at it: then it stays mapped.
        with contextlib.suppress(BufferError):
            tensor.release()
