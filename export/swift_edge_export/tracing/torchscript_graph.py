"""Brings a graph that the TorchScript exporter wrote into the form that `cleanup` and `quantize` read.

TorchScript writes weights behind Transpose nodes, sizes as arithmetic on Shape nodes, `chunk` as Slices, and says
little about the shapes of values. Each step here is exact and leaves alone what it does not recognise.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes
from onnx_ir.tensor_adapters import TorchTensor

from swift_edge_export.rewriting.graph_edits import constant

# Initialisers up to this many elements can be sizes, axes or targets; larger ones are weights.
MOST_SIZES = 64
# What TorchScript computes sizes with.
SIZE_ARITHMETIC = {"Add", "Cast", "Concat", "Div", "Gather", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze"}


def attach_weights(model: ir.Model, weights: Mapping[str, torch.Tensor]) -> None:
    """Turn the inputs that bear the name of a weight into initialisers, which share its memory."""
    for value in list(model.graph.inputs):
        weight = weights.get(value.name or "")
        if weight is not None:
            model.graph.inputs.remove(value)
            tensor = TorchTensor(weight.detach(), name=value.name)
            value.const_value, value.shape, value.dtype = tensor, ir.Shape(tensor.shape.numpy()), tensor.dtype
            model.graph.register_initializer(value)


def normalise(model: ir.Model, scratch: Path, report: Callable[[str], None]) -> None:
    """Rewrite `model` in place; `scratch` is a folder for temporary files, `report` is called if a step is left out."""
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    passes.DeduplicateInitializersPass()(model)  # small ones; weights that are tied are one already
    _infer_shapes(model, scratch, report)
    _fold_sizes(model.graph)
    _turn_weights(model.graph)
    _name_reshape_targets(model.graph)
    _split_instead_of_slices(model.graph)
    passes.RemoveUnusedNodesPass()(model)


def _register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
    graph.register_initializer(value)
    return value


def _integers(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    return _register(graph, name, ir.tensor(array, name=name))


def _sizes(value: ir.Value | None) -> NDArray[Any] | None:
    """The content of a small integer initialiser, or None."""
    if value is None or value.const_value is None or value.const_value.size > MOST_SIZES:
        return None
    array = constant(value)
    return array if array is not None and np.issubdtype(array.dtype, np.integer) else None


# -- shapes ----------------------------------------------------------------------------------------------------------


def _infer_shapes(model: ir.Model, scratch: Path, report: Callable[[str], None]) -> None:
    """Give every value its shape in terms of the inputs' dynamic axes; leave the graph without where that fails."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    inference = importlib.import_module("onnxruntime.tools.symbolic_shape_infer").SymbolicShapeInference
    skeleton = model.clone()
    for name, value in list(skeleton.graph.initializers.items()):
        assert value.const_value is not None
        if value.const_value.size > MOST_SIZES:  # the shape of a weight is enough
            del skeleton.graph.initializers[name]
            value.const_value = None
            skeleton.graph.inputs.append(value)
    for node in skeleton.graph:
        for output in node.outputs:  # TorchScript's own names for dimensions say nothing
            if not output.is_graph_output():
                output.shape = None
    try:
        with contextlib.chdir(scratch):  # where it fails it leaves a file behind
            inferred = ir.from_proto(inference.infer_shapes(ir.to_proto(skeleton)))
    except Exception as error:
        report(f"shapes inside the graph are not known, fewer nodes can be merged: {error}")
        return
    values_by_name = {value.name: value for node in inferred.graph for value in node.outputs}
    for node in model.graph:
        for output in node.outputs:
            inferred_value = values_by_name.get(output.name)
            if inferred_value is not None and inferred_value.shape is not None:
                output.shape, output.type = inferred_value.shape.copy(), inferred_value.type


# -- sizes -----------------------------------------------------------------------------------------------------------


def _fold_sizes(graph: ir.Graph) -> None:
    """Arithmetic on sizes that are known becomes an initialiser."""
    for node in list(graph):
        if node.domain or node.op_type not in SIZE_ARITHMETIC or node.outputs[0].is_graph_output():
            continue
        result = _size_read(node)
        if result is None:
            result = _evaluated(node)
        if result is not None:
            folded = _integers(graph, f"{node.outputs[0].name}.folded", result)
            ir.convenience.replace_all_uses_with(node.outputs[0], folded)
            graph.remove(node, safe=True)


def _size_read(node: ir.Node) -> NDArray[Any] | None:
    """What a Gather of a Shape reads where these dimensions are fixed."""
    if node.op_type != "Gather" or node.inputs[0] is None or node.attributes.get_int("axis", 0) != 0:
        return None
    reader = node.inputs[0].producer()
    axes = _sizes(node.inputs[1])
    if reader is None or reader.op_type != "Shape" or {"start", "end"} & set(reader.attributes) or axes is None:
        return None
    shape = reader.inputs[0].shape if reader.inputs[0] is not None else None
    if shape is None or not all(isinstance(shape[int(axis)], int) for axis in axes.flat):
        return None
    return np.array([shape[int(axis)] for axis in axes.flat], np.int64).reshape(axes.shape)


def _evaluated(node: ir.Node) -> NDArray[Any] | None:
    """The result of a node that reads nothing but sizes."""
    feeds: dict[str, Any] = {str(value.name): _sizes(value) for value in node.inputs if value is not None}
    if any(array is None for array in feeds.values()):
        return None
    evaluator = onnx.reference.ReferenceEvaluator(ir.to_proto(node), opsets={"": 20})
    results: Any = evaluator.run(None, feeds)
    result = results[0]
    return result if isinstance(result, np.ndarray) and np.issubdtype(result.dtype, np.integer) else None


def _name_reshape_targets(graph: ir.Graph) -> None:
    """A Reshape whose target is computed gets a constant one, where the shapes on both sides determine it."""
    for node in list(graph):
        target = node.inputs[1] if node.op_type == "Reshape" else None
        source, result = node.inputs[0], node.outputs[0].shape
        if target is None or target.is_initializer() or source is None or source.shape is None or result is None:
            continue
        sizes = []
        for axis, size in enumerate(result):
            if not isinstance(size, int):
                same = axis < len(source.shape) and size.value is not None and source.shape[axis] == size
                size = 0 if same else -1  # 0 copies the dimension of the input
            sizes.append(size)
        if sizes.count(-1) <= 1 and 0 not in result and not node.attributes.get_int("allowzero", 0):
            node.replace_input_with(1, _integers(graph, f"{node.outputs[0].name}.target", np.array(sizes, np.int64)))


# -- weights ---------------------------------------------------------------------------------------------------------


def _turn_weights(graph: ir.Graph) -> None:
    """A product with a transposed weight reads the weight: as Gemm where it has two axes, else turned round itself."""
    for transpose in list(graph):
        weight = transpose.inputs[0] if transpose.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None or len(weight.shape or ()) != 2:
            continue
        if list(transpose.attributes.get_ints("perm", [1, 0])) != [1, 0]:
            continue
        for node, position in list(transpose.outputs[0].uses()):
            if position == 1 and _reads_flat_rows(node):
                _replace_by_gemm(graph, node, weight)
        if transpose.outputs[0].uses():
            name = f"{weight.name}.turned"
            ir.convenience.replace_all_uses_with(
                transpose.outputs[0], _register(graph, name, _turned(weight.const_value, name))
            )
        graph.remove(transpose, safe=True)
        if not weight.uses() and weight.name is not None:
            del graph.initializers[weight.name]


def _turned(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The transpose of a matrix, as a view of the same memory."""
    if isinstance(tensor, TorchTensor):
        return TorchTensor(tensor.raw.t(), name=name)
    return ir.Tensor(tensor.numpy().T, dtype=tensor.dtype, name=name)


def _reads_flat_rows(node: ir.Node) -> bool:
    """Whether a product's rows have two axes by nature, as the states at the positions of the logits do."""
    rows = node.inputs[0]
    if node.op_type not in ("MatMul", "Gemm") or rows is None or rows.shape is None or len(rows.shape) != 2:
        return False
    producer = rows.producer()
    return producer is None or producer.op_type != "Reshape"


def _replace_by_gemm(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    """Replace x @ transpose(w) by a Gemm that reads w, which another node may read as it is (tied embeddings)."""
    attributes = dict(node.attributes) if node.op_type == "Gemm" else {}
    was_turned = node.attributes.get_int("transB", 0) if node.op_type == "Gemm" else 0
    inputs = [node.inputs[0], weight, *node.inputs[2:]]
    gemm = ir.node("Gemm", inputs, {**attributes, "transB": 1 - was_turned}, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [gemm], node.outputs, gemm.outputs)


# -- pieces ----------------------------------------------------------------------------------------------------------


def _split_instead_of_slices(graph: ir.Graph) -> None:
    """Slices that together cut the last axis without a gap become one Split."""
    for producer in list(graph):
        for source in producer.outputs:
            width = source.shape[-1] if source.shape is not None and len(source.shape) else None
            if not isinstance(width, int):
                continue
            slices = {bounds: node for node, _ in source.uses() if (bounds := _last_axis_bounds(node, source, width))}
            cuts = sorted(slices)
            if len(cuts) < 2 or [0, *(end for _, end in cuts)] != [*(start for start, _ in cuts), width]:
                continue
            lengths = _integers(graph, f"{source.name}.lengths", np.array([end - start for start, end in cuts]))
            split = ir.node("Split", [source, lengths], {"axis": -1}, num_outputs=len(cuts))
            graph.insert_after(producer, split)
            for bounds, output in zip(cuts, split.outputs, strict=True):
                old = slices[bounds].outputs[0]
                output.shape, output.type, output.name = old.shape, old.type, f"{old.name}.piece"
                ir.convenience.replace_all_uses_with(old, output)
                graph.remove(slices[bounds], safe=True)


def _last_axis_bounds(node: ir.Node, source: ir.Value, width: int) -> tuple[int, int] | None:
    """First index and end of what a Slice takes from the last axis of `source`, or None for any other node."""
    if node.op_type != "Slice" or node.inputs[0] is not source or len(node.inputs) < 4 or source.shape is None:
        return None
    if node.outputs[0].is_graph_output():
        return None
    numbers = [_sizes(value) for value in node.inputs[1:]]
    if any(array is None or array.size != 1 for array in numbers):
        return None
    start, end, axis, *step = (int(array.item()) for array in numbers if array is not None)
    if axis not in (-1, len(source.shape) - 1) or step not in ([], [1]):
        return None
    start, end, _ = slice(start, end).indices(width)
    return start, end
