"""Moves scales from what a product reads into its weights, where what comes before takes them for nothing.

Rounding costs most where an input is large. A product x @ w is (x / s) @ (s w) for any scale s of an input; 1 / s goes
into the gain of the norm that gives x, or into the weights of the product whose outputs x is linear in. So nothing is
computed that was not computed before, and hidden states stay what they are. Which scales pay is tried on inputs of the
model's own text: powers of how large an input is, as AWQ does (arXiv:2306.00978), and the error is that of the
product, inputs rounded as MatMulNBits rounds them, too, as SmoothQuant has it (arXiv:2211.10438).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from swift_edge_export.packing.calibration import Inputs
from swift_edge_export.packing.rounding import nearest, rounded_inputs
from swift_edge_export.packing.weights import Matrix, tensor_of, weight_of_product
from swift_edge_export.rewriting.graph_edits import add_initializer

POWERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Of an input's root mean square that are tried as its scale; the first one changes nothing."""

# The operand that is the gain of a norm, and those that are added to what it multiplies.
_NORM_GAINS = {
    "SimplifiedLayerNormalization": (1, ()),
    "SkipSimplifiedLayerNormalization": (2, ()),
    "LayerNormalization": (1, (2,)),
    "SkipLayerNormalization": (2, (3,)),
}


Operand: TypeAlias = tuple[ir.Node, int]
"""A node and the place of one of its inputs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Products that read one value, and what gives it."""

    value: ir.Value
    """what is read"""
    products: tuple[ir.Node, ...]
    """all that read it"""
    source: ir.Node
    """the norm, or the product whose outputs the value is linear in"""
    constants: tuple[Operand, ...]
    """what scales with the value beside weights: the norm's gain and offset, the product's bias"""


@dataclasses.dataclass(frozen=True, slots=True)
class Scales:
    """By which weights are multiplied before they are rounded."""

    inputs: Mapping[str, torch.Tensor]
    """[K], for all matrices that read a value, by its name"""
    outputs: Mapping[str, torch.Tensor]
    """[N], by the name of the matrix's initialiser"""


def foldable_groups(graph: ir.Graph) -> list[Group]:
    """The values that can be scaled for nothing, in the order of the graph."""
    groups = []
    for value in [output for node in graph for output in node.outputs]:
        readers = [usage.node for usage in value.uses()]
        matrices = [_own_matrix(reader, value) for reader in readers]
        if not readers or value.is_graph_output() or any(matrix is None for matrix in matrices):
            continue
        source = value.producer()
        assert source is not None
        if source.op_type in _NORM_GAINS and value is source.outputs[0]:
            gain, added = _NORM_GAINS[source.op_type]
            constants = tuple((source, place) for place in (gain, *added) if place < len(source.inputs))
            if all(_is_constant(node.inputs[place]) for node, place in constants):
                groups.append(Group(value, tuple(dict.fromkeys(readers)), source, constants))
        elif source.op_type == "Mul":
            factor = _linear_factor(source)
            if factor is not None:
                groups.append(Group(value, tuple(dict.fromkeys(readers)), *factor))
    return groups


def _own_matrix(node: ir.Node, value: ir.Value) -> Matrix | None:
    """The weight matrix by which a node multiplies a value, if nothing else reads that."""
    matrix = weight_of_product(node)
    if matrix is None or node.inputs[0] is not value or len(matrix.value.uses()) != 1:
        return None
    operand = node.inputs[1]
    return matrix if operand is matrix.value or (operand is not None and len(operand.uses()) == 1) else None


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input()


def _linear_factor(node: ir.Node) -> tuple[ir.Node, tuple[Operand, ...]] | None:
    """The product that gives one of two factors, and its bias, where nothing else reads what it gives."""
    for factor in reversed(node.inputs):
        if factor is None or len(factor.uses()) != 1 or factor.is_graph_output():
            continue
        product, constants = factor.producer(), tuple[Operand, ...]()
        if product is not None and product.op_type == "Add":
            total = product
            biases = [place for place, value in enumerate(total.inputs) if _is_constant(value)]
            sums = [value for value in total.inputs if value is not None and not value.is_initializer()]
            if len(biases) != 1 or len(sums) != 1 or len(sums[0].uses()) != 1:
                continue
            product, constants = sums[0].producer(), ((total, biases[0]),)
        if product is None or (product.op_type == "Gemm" and len(product.inputs) > 2):
            continue
        source = product.inputs[0] if product.inputs else None
        if source is not None and _own_matrix(product, source) is not None:
            return product, constants
    return None


def fit_scales(
    groups: list[Group],
    read: Inputs,
    bits: int,
    block_size_of: Callable[[Matrix], int | None],
    note: Callable[[float], None] = lambda _: None,
) -> Scales:
    """Try `POWERS` for each group and keep what loses the least at its products.

    Args:
        groups: as `foldable_groups` gives them.
        read: what was read on the model's own text.
        bits: of the weights to come.
        block_size_of: inputs that will share a scale; None for a matrix that must stay as it is.
        note: told which share is done, 0 to 1.
    """
    inputs, outputs = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for place, group in enumerate(groups):
        note(place / len(groups))
        matrices = [matrix for node in group.products if (matrix := weight_of_product(node)) is not None]
        sizes = [block_size_of(matrix) for matrix in matrices]
        sample = read.samples.get(str(group.value.name))
        source = weight_of_product(group.source)
        fixed = source is not None and block_size_of(source) is None
        if sample is None or fixed or any(size is None for size in sizes):
            continue
        scale = _best_scale(sample, [_weights(matrix) for matrix in matrices], bits, int(sizes[0] or 0))
        if scale is None:
            continue
        inputs[str(group.value.name)] = scale
        if source is not None:
            outputs[str(source.value.name)] = 1 / scale
        for node, operand in group.constants:
            _multiply(node, operand, 1 / scale)
    return Scales(inputs, outputs)


def _best_scale(sample: torch.Tensor, weights: list[torch.Tensor], bits: int, block_size: int) -> torch.Tensor | None:
    """The scale [K] with which products of a sample [m, K] with weights [N, K] lose least; None if none pays."""
    together = torch.cat(weights)
    exact = sample @ together.T
    strength = sample.square().mean(0).sqrt()
    if not strength.any():
        return None
    strength = strength.clamp(min=float(strength[strength > 0].min()))
    best, least = None, float("inf")
    for power in POWERS:
        scale = strength**power
        scale = scale / (scale.max() * scale.min()).sqrt()
        rounded = nearest(together * scale, bits, block_size).weights(len(scale))
        lost = float((rounded_inputs(sample / scale, block_size) @ rounded.T - exact).square().sum())
        if lost < least:
            best, least = (scale if power else None), lost
    return best


def _weights(matrix: Matrix) -> torch.Tensor:
    """The weights of a matrix, float32 [N, K]."""
    weights = np.array(tensor_of(matrix.value).numpy(), np.float32)
    return torch.from_numpy(np.ascontiguousarray(weights if matrix.outputs_first else weights.T))


def _multiply(node: ir.Node, place: int, factor: torch.Tensor) -> None:
    """Give a node an operand of its own, which is the one that it has times a factor."""
    constant = node.inputs[place]
    assert constant is not None
    assert node.graph is not None
    name = f"{constant.name}.for.{node.outputs[0].name}"
    scaled = tensor_of(constant).numpy().astype(np.float32) * factor.numpy()
    node.replace_input_with(place, add_initializer(node.graph, name, scaled))
