"""Exact rewrites of the traced graph: the same numbers from fewer nodes.

Each rewrite looks for one pattern, changes it where every condition holds and leaves the graph alone elsewhere; none
knows which model the graph came from. What a step costs is set by the number of nodes as much as by the arithmetic:
a decode step of a small model runs hundreds of them for a few milliseconds in all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from swift_edge_export.rewriting.graph_edits import (
    add_lazy_initializer,
    bypass,
    constant,
    drop_initializers,
    insert_before,
    last_width,
    only_reader,
    producer,
    remove_if_unused,
    same_dimensions,
    same_shape,
)
from swift_edge_export.rewriting.packed_qkv import pack_qkv

MICROSOFT = "com.microsoft"
CACHE_LINE_BYTES = 64
_NORMS = {
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


def clean(model: ir.Model, axis_names: Callable[[str], dict[int, str]]) -> dict[str, int]:
    """Rewrite `model` in place; returns how often each rewrite applied.

    Args:
        model: the traced graph.
        axis_names: the dynamic axes of a graph input or output by its name.
    """
    counts = {
        "turned weights": _turned_weights(model.graph),
        "flattened linear layers": _linear_layers(model.graph),
        "transposes around norms": _transposes_around_norms(model.graph),
        "no-op reshapes": _reshapes(model.graph),
        "packed QKV": pack_qkv(model.graph),
        "skip norms": _skip_norms(model.graph),
    }
    for cleanup_pass in (
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        # The tracer notes where in the source each node came from, with the paths of the machine it ran on.
        passes.ClearMetadataAndDocStringPass(),
    ):
        cleanup_pass(model)
    model.metadata_props.clear()
    _drop_unused_inputs(model.graph)
    _name_axes(model.graph, axis_names)
    model.opset_imports.setdefault(MICROSOFT, 1)
    return counts


def _turned_weights(graph: ir.Graph) -> int:
    """Transpose of a weight becomes the weight turned round, which onnxruntime would do on every start."""
    count = 0
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        # A weight that something else reads as well, as a tied embedding is, would be stored twice.
        if source is None or not source.is_initializer() or len(source.uses()) != 1 or source.const_value is None:
            continue
        tensor, name = source.const_value, f"{source.name}.transposed"
        if len(tensor.shape) != 2 or list(node.attributes.get_ints("perm", [1, 0])) != [1, 0]:
            continue
        rows, columns = tensor.shape.numpy()

        def turned(tensor: ir.TensorProtocol = tensor) -> np.ndarray:
            return _turned_round(tensor.numpy())

        if bypass(node, add_lazy_initializer(graph, name, tensor, (columns, rows), turned)):
            drop_initializers(graph, [source])
            count += 1
    return count


def _turned_round(matrix: np.ndarray) -> np.ndarray:
    """A copy of `matrix` [r, c] as [c, r]."""
    turned = np.empty(matrix.shape[::-1], matrix.dtype)
    # NumPy alone would write one number of each line of the cache before it comes back for the next: that takes five
    # times as long, and for the larger models minutes.
    step = max(1, CACHE_LINE_BYTES // matrix.itemsize)
    for start in range(0, len(matrix), step):
        turned[:, start : start + step] = matrix[start : start + step].T
    return turned


def _linear_layers(graph: ir.Graph) -> int:
    """Reshape to two axes + Gemm + Reshape back becomes MatMul (+ Add): one shape of linear layer everywhere."""
    count = 0
    for gemm in list(graph):
        if gemm.op_type != "Gemm":
            continue
        transposed = gemm.attributes.get_int("transB", 0)
        plain = not gemm.attributes.get_int("transA", 0)
        plain = plain and all(gemm.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        flatten = producer(gemm.inputs[0], "Reshape")
        restore = only_reader(gemm.outputs[0])
        if transposed or not plain or flatten is None or restore is None or restore.op_type != "Reshape":
            continue
        source = flatten.inputs[0]
        restored = restore.outputs[0]
        if source is None or source.shape is None or restored.shape is None or last_width(source) is None:
            continue
        if last_width(source) != last_width(flatten.outputs[0]) or not same_dimensions(
            source.shape[:-1], restored.shape[:-1]
        ):
            continue
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        if bias is not None and (bias.shape is None or len(bias.shape) > 1):
            continue  # one number per row of the flat product would meet another axis
        product = ir.node("MatMul", [source, gemm.inputs[1]])
        product.outputs[0].type = restored.type
        product.outputs[0].shape = restored.shape.copy()
        product.outputs[0].name = f"{gemm.outputs[0].name}_product"
        insert_before(restore, product)
        result = product.outputs[0]
        if bias is not None:
            biased = ir.node("Add", [result, bias])
            biased.outputs[0].type = restored.type
            biased.outputs[0].shape = restored.shape.copy()
            biased.outputs[0].name = f"{gemm.outputs[0].name}_biased"
            insert_before(restore, biased)
            result = biased.outputs[0]
        if bypass(restore, result):
            remove_if_unused([gemm, flatten])
            count += 1
    return count


def _transposes_around_norms(graph: ir.Graph) -> int:
    """Transpose + norm over the last axis + the same Transpose back becomes the norm alone (norms of queries, keys)."""
    count = 0
    for norm in list(graph):
        if norm.op_type not in _NORMS or norm.attributes.get_int("axis", -1) not in (-1, 3):
            continue
        before = producer(norm.inputs[0], "Transpose")
        after = only_reader(norm.outputs[0])
        if before is None or after is None or after.op_type != "Transpose":
            continue
        if any(list(node.attributes.get_ints("perm", [])) != [0, 2, 1, 3] for node in (before, after)):
            continue
        if not _is_plain_norm(norm):
            continue
        norm.replace_input_with(0, before.inputs[0])
        norm.outputs[0].shape = after.outputs[0].shape
        if bypass(after, norm.outputs[0]):
            remove_if_unused([before])
            count += 1
    return count


def _is_plain_norm(norm: ir.Node) -> bool:
    """Whether a norm gives its result alone (no mean), scaled and moved by one number per element of the last axis."""
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return False
    return all(value is None or (value.shape is not None and len(value.shape) == 1) for value in norm.inputs[1:])


def _reshapes(graph: ir.Graph) -> int:
    """A Reshape to the shape a value already has goes, and of two Reshapes in a row the first."""
    count = 0
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        source = node.inputs[0]
        earlier = producer(source, "Reshape")
        while earlier is not None:  # the order of the elements is all that counts
            source = earlier.inputs[0]
            earlier = producer(source, "Reshape")
        if source is None:
            continue
        chain = producer(node.inputs[0], "Reshape")
        if same_shape(source, node.outputs[0]):
            if bypass(node, source):
                count += 1
        elif source is not node.inputs[0] and _copies_no_dimension(node):
            node.replace_input_with(0, source)
            count += 1
        while chain is not None:
            following = producer(chain.inputs[0], "Reshape")
            remove_if_unused([chain])
            chain = following
    return count


def _copies_no_dimension(reshape: ir.Node) -> bool:
    """Whether a Reshape's result does not depend on the shape of its input (a 0 in its target would copy one)."""
    if reshape.attributes.get_int("allowzero", 0):
        return True
    target = constant(reshape.inputs[1])
    return target is not None and not (target == 0).any()


def _skip_norms(graph: ir.Graph) -> int:
    """Add + norm becomes one node whose fourth output is the sum: the hidden state, or what the next Add needs."""
    count = 0
    for norm in list(graph):
        fused = _NORMS.get(norm.op_type)
        total = norm.inputs[0] if fused else None
        add = producer(total, "Add")
        if fused is None or add is None or total is None or norm.attributes.get_int("axis", -1) not in (-1, 2):
            continue
        if not _is_plain_norm(norm) or total.shape is None or len(total.shape) != 3:
            continue
        if not same_shape(add.inputs[0], total) or not same_shape(add.inputs[1], total):
            continue
        if any(constant(value) is not None for value in add.inputs) or not _precedes_all_uses(norm, total, add):
            continue
        # A sum that several norms read (parallel residuals) is fused with the first of them only.
        inputs = [*add.inputs, *norm.inputs[1:]]
        epsilon = norm.attributes.get_float("epsilon", 1e-5)
        skip = ir.node(fused, inputs, {"epsilon": epsilon}, domain=MICROSOFT, num_outputs=4)
        for output, old in ((skip.outputs[0], norm.outputs[0]), (skip.outputs[3], total)):
            output.type, output.shape = old.type, old.shape
        names = norm.outputs[0].name, total.name
        insert_before(norm, skip)
        norm.outputs[0].name, total.name = f"{names[0]}_unfused", f"{names[1]}_unfused"
        skip.outputs[0].name, skip.outputs[3].name = names
        skip.outputs[1].name = skip.outputs[2].name = ""
        ir.convenience.replace_all_uses_with(norm.outputs[0], skip.outputs[0], replace_graph_outputs=True)
        norm_graph = norm.graph
        assert norm_graph is not None
        norm_graph.remove(norm, safe=True)
        ir.convenience.replace_all_uses_with(total, skip.outputs[3], replace_graph_outputs=True)
        remove_if_unused([add])
        count += 1
    return count


def _precedes_all_uses(norm: ir.Node, total: ir.Value, add: ir.Node) -> bool:
    """Whether no reader of the sum stands between the Add and the norm: the fused node takes the norm's place."""
    readers = {use.node for use in total.uses()}
    graph = add.graph
    assert graph is not None
    seen_add = False
    for node in graph:
        if node is norm:
            return True
        if node is add:
            seen_add = True
        elif seen_add and node in readers:
            return False
    return False


def _drop_unused_inputs(graph: ir.Graph) -> None:
    """An input that nothing reads (position_ids where attention derives them) is not part of the contract."""
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)
    drop_initializers(graph, list(graph.initializers.values()))


def _name_axes(graph: ir.Graph, axis_names: Callable[[str], dict[int, str]]) -> None:
    """Give the dynamic axes of inputs and outputs the names of the contract."""
    for value in [*graph.inputs, *graph.outputs]:
        assert value.name is not None
        assert value.shape is not None
        names = axis_names(value.name)
        value.shape = ir.Shape([names.get(axis, dimension) for axis, dimension in enumerate(value.shape)])
