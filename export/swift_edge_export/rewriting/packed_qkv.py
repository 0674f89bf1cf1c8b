"""Queries, keys and values as one tensor, from one product of matrices: a rewrite of the traced graph.

Exact as those of `cleanup` are, and made only where the three parts are read by the attention alone, in its own order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from swift_edge_export.rewriting.graph_edits import (
    add_initializer,
    add_lazy_initializer,
    constant,
    drop_initializers,
    insert_before,
    last_width,
    only_use,
    producer,
    remove_if_unused,
    weight_tensor,
)


def pack_qkv(graph: ir.Graph) -> int:
    """Give GroupQueryAttention queries, keys and values as one tensor [n, s, (heads + 2 h) k], from one product."""
    count = 0
    for node in list(graph):
        if node.op_type != "GroupQueryAttention" or node.inputs[1] is None:
            continue
        packed = _already_packed(node) or _merge_projections(graph, node)
        if packed is None:
            continue
        parts = [value.producer() for value in node.inputs[:3] if value is not None]
        node.replace_input_with(0, packed)
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)
        remove_if_unused(parts)
        count += 1
    return count


def _already_packed(node: ir.Node) -> ir.Value | None:
    """The tensor that a Split or three Slices cut into queries, keys and values in that order, or None."""
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    if first is None or first.op_type not in ("Split", "Slice"):
        return None
    source = first.inputs[0]
    widths = [last_width(value) for value in node.inputs[:3]]
    if source is None or None in widths or last_width(source) != sum(width or 0 for width in widths):
        return None
    if first.op_type == "Split":
        cut = list(first.outputs) == list(node.inputs[:3])
        last_axis = first.attributes.get_int("axis", 0) in (-1, len(source.shape or ()) - 1)
        return source if cut and last_axis else None
    start = 0
    for value, width in zip(node.inputs[:3], widths, strict=True):
        piece = producer(value, "Slice")
        if piece is None or piece.inputs[0] is not source or len(piece.inputs) < 4:
            return None
        begins, _, axes = (constant(part) for part in piece.inputs[1:4])
        steps = constant(piece.inputs[4]) if len(piece.inputs) > 4 else np.ones(1)
        if begins is None or axes is None or steps is None or list(steps) != [1] or list(begins) != [start]:
            return None
        if list(axes) not in ([-1], [len(source.shape or ()) - 1]):
            return None
        start += width or 0
    return source


def _merge_projections(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """One MatMul (+ Add) in place of the three that made queries, keys and values from the same states, or None."""
    values = node.inputs[:3]
    biases: list[ir.Value | None] = []
    products: list[ir.Node] = []
    adds: list[ir.Node | None] = []
    for value in values:
        if not only_use(value):
            return None
        add = producer(value, "Add")
        bias = None
        if add is not None:
            bias = next((entry for entry in add.inputs if constant(entry) is not None), None)
            value = next((entry for entry in add.inputs if entry is not bias), None)
            if bias is None or not only_use(value):
                return None
        product = producer(value, "MatMul")
        matrix = weight_tensor(product.inputs[1]) if product is not None else None
        if product is None or matrix is None or len(matrix.shape) != 2:
            return None
        products.append(product)
        adds.append(add)
        biases.append(bias)
    weights = [product.inputs[1] for product in products]
    if any(product.inputs[0] is not products[0].inputs[0] for product in products):
        return None
    if any(weight is None or len(weight.uses()) != 1 for weight in weights):
        return None
    tensors = [tensor for tensor in map(weight_tensor, weights) if tensor is not None]
    inputs, widths = tensors[0].shape.numpy()[0], [tensor.shape.numpy()[1] for tensor in tensors]
    offsets = [constant(bias) for bias in biases]
    if any(offset is not None for offset in offsets) and any(
        offset is None or offset.shape != (width,) for offset, width in zip(offsets, widths, strict=True)
    ):
        return None
    prefix = f"{weights[0].name}.packed" if weights[0] is not None else "packed"

    def packed() -> np.ndarray:
        return np.concatenate([tensor.numpy() for tensor in tensors], axis=1)

    weight = add_lazy_initializer(graph, prefix, tensors[0], (inputs, sum(widths)), packed)
    merged = ir.node("MatMul", [products[0].inputs[0], weight])
    _describe(merged, values, sum(widths), f"{prefix}.product")
    insert_before(node, merged)
    result = merged.outputs[0]
    if offsets[0] is not None:
        bias_array = np.concatenate([offset for offset in offsets if offset is not None])
        biased = ir.node("Add", [result, add_initializer(graph, f"{prefix}.bias", bias_array)])
        _describe(biased, values, bias_array.shape[0], f"{prefix}.biased")
        insert_before(node, biased)
        result = biased.outputs[0]
    for position in range(3):
        node.replace_input_with(position, result if position == 0 else None)
    remove_if_unused(adds)
    remove_if_unused(products)
    drop_initializers(graph, [*weights, *biases])
    return result


def _describe(node: ir.Node, like: Sequence[ir.Value | None], width: int, name: str) -> None:
    """Give a new node's output the type and leading axes of `like[0]`, and its own width and name."""
    model_value = like[0]
    output = node.outputs[0]
    output.name = name
    if model_value is not None and model_value.shape is not None:
        output.type = model_value.type
        output.shape = ir.Shape([*model_value.shape[:-1], width])
