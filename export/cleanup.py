"""Exact rewrites of the traced graph: the same numbers from fewer nodes.

Each rewrite looks for one pattern, changes it where every condition holds and leaves the graph alone elsewhere; none
knows which model the graph came from. What a step costs is set by the number of nodes as much as by the arithmetic:
a decode step of a small model runs hundreds of them for a few milliseconds in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

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
        "packed QKV": _pack_qkv(model.graph),
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


# -- reading the graph -----------------------------------------------------------------------------------------------


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _only_use(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value which the graph does not give out either, or None."""
    return next(iter(value.uses())).node if _only_use(value) else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initialiser, or None."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def _weight(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initialiser, whose content is not looked at, or None."""
    return value.const_value if value is not None and value.is_initializer() else None


def _same_shape(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether two values have one shape, known in every dimension: a number or the same symbol."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    return _same_dimensions(first.shape.dims, second.shape.dims)


def _same_dimensions(first: Sequence[int | ir.SymbolicDim], second: Sequence[int | ir.SymbolicDim]) -> bool:
    """Whether dimensions are the same one by one; an unknown one is the same as none, not even as another unknown."""
    if len(first) != len(second):
        return False
    return all(one == other and _known(one) for one, other in zip(first, second, strict=True))


def _known(dimension: int | ir.SymbolicDim) -> bool:
    return isinstance(dimension, int) or dimension.value is not None


def _width(value: ir.Value | None) -> int | None:
    """The last dimension of a value, or None where it is not fixed."""
    if value is None or value.shape is None or not len(value.shape):
        return None
    last = value.shape[-1]
    return last if isinstance(last, int) else None


# -- changing the graph ----------------------------------------------------------------------------------------------


def _bypass(node: ir.Node, replacement: ir.Value) -> bool:
    """Use `replacement` wherever the node's first output is used, and remove the node.

    A graph output keeps its name; two outputs cannot be one value, so such a node stays.
    """
    graph = node.graph
    old = node.outputs[0]
    assert isinstance(graph, ir.Graph)
    if old.is_graph_output():
        if replacement.is_graph_output() or replacement.is_graph_input() or replacement.is_initializer():
            return False
        name = old.name
        old.name = f"{name}_unused"
        replacement.name = name
    ir.convenience.replace_all_uses_with(old, replacement, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _insert_before(node: ir.Node, new: ir.Node) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, new)


def _remove_if_unused(nodes: Sequence[ir.Node | None]) -> None:
    for node in nodes:
        if node is None or node.graph is None:
            continue
        if all(not output.uses() and not output.is_graph_output() for output in node.outputs):
            node.graph.remove(node, safe=True)


def _add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape = ir.Shape(array.shape)
    assert value.const_value is not None
    value.dtype = value.const_value.dtype
    graph.register_initializer(value)
    return value


def _drop_initializers(graph: ir.Graph, values: Sequence[ir.Value | None]) -> None:
    """Remove initialisers that nothing uses any more, so that their memory goes at once."""
    for value in values:
        if value is None or not value.is_initializer() or value.uses() or value.is_graph_output():
            continue
        if value.name is not None and value.name in graph.initializers:
            del graph.initializers[value.name]


def _add_lazy_initializer(
    graph: ir.Graph, name: str, like: ir.TensorProtocol, shape: Sequence[int], content: Callable[[], np.ndarray]
) -> ir.Value:
    """An initialiser whose content is made when it is asked for, every time: nothing large waits in memory."""
    tensor = ir.LazyTensor(lambda: ir.tensor(content(), name=name), like.dtype, ir.Shape(shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(like.dtype))
    graph.register_initializer(value)
    return value


# -- the rewrites ----------------------------------------------------------------------------------------------------


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

        if _bypass(node, _add_lazy_initializer(graph, name, tensor, (columns, rows), turned)):
            _drop_initializers(graph, [source])
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
        flatten = _producer(gemm.inputs[0], "Reshape")
        restore = _only_reader(gemm.outputs[0])
        if transposed or not plain or flatten is None or restore is None or restore.op_type != "Reshape":
            continue
        source = flatten.inputs[0]
        restored = restore.outputs[0]
        if source is None or source.shape is None or restored.shape is None or _width(source) is None:
            continue
        if _width(source) != _width(flatten.outputs[0]) or not _same_dimensions(source.shape[:-1], restored.shape[:-1]):
            continue
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        if bias is not None and (bias.shape is None or len(bias.shape) > 1):
            continue  # one number per row of the flat product would meet another axis
        product = ir.node("MatMul", [source, gemm.inputs[1]])
        product.outputs[0].type = restored.type
        product.outputs[0].shape = restored.shape.copy()
        product.outputs[0].name = f"{gemm.outputs[0].name}_product"
        _insert_before(restore, product)
        result = product.outputs[0]
        if bias is not None:
            biased = ir.node("Add", [result, bias])
            biased.outputs[0].type = restored.type
            biased.outputs[0].shape = restored.shape.copy()
            biased.outputs[0].name = f"{gemm.outputs[0].name}_biased"
            _insert_before(restore, biased)
            result = biased.outputs[0]
        if _bypass(restore, result):
            _remove_if_unused([gemm, flatten])
            count += 1
    return count


def _transposes_around_norms(graph: ir.Graph) -> int:
    """Transpose + norm over the last axis + the same Transpose back becomes the norm alone (norms of queries, keys)."""
    count = 0
    for norm in list(graph):
        if norm.op_type not in _NORMS or norm.attributes.get_int("axis", -1) not in (-1, 3):
            continue
        before = _producer(norm.inputs[0], "Transpose")
        after = _only_reader(norm.outputs[0])
        if before is None or after is None or after.op_type != "Transpose":
            continue
        if any(list(node.attributes.get_ints("perm", [])) != [0, 2, 1, 3] for node in (before, after)):
            continue
        if not _is_plain_norm(norm):
            continue
        norm.replace_input_with(0, before.inputs[0])
        norm.outputs[0].shape = after.outputs[0].shape
        if _bypass(after, norm.outputs[0]):
            _remove_if_unused([before])
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
        earlier = _producer(source, "Reshape")
        while earlier is not None:  # the order of the elements is all that counts
            source = earlier.inputs[0]
            earlier = _producer(source, "Reshape")
        if source is None:
            continue
        chain = _producer(node.inputs[0], "Reshape")
        if _same_shape(source, node.outputs[0]):
            if _bypass(node, source):
                count += 1
        elif source is not node.inputs[0] and _copies_no_dimension(node):
            node.replace_input_with(0, source)
            count += 1
        while chain is not None:
            following = _producer(chain.inputs[0], "Reshape")
            _remove_if_unused([chain])
            chain = following
    return count


def _copies_no_dimension(reshape: ir.Node) -> bool:
    """Whether a Reshape's result does not depend on the shape of its input (a 0 in its target would copy one)."""
    if reshape.attributes.get_int("allowzero", 0):
        return True
    target = constant(reshape.inputs[1])
    return target is not None and not (target == 0).any()


def _pack_qkv(graph: ir.Graph) -> int:
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
        _remove_if_unused(parts)
        count += 1
    return count


def _already_packed(node: ir.Node) -> ir.Value | None:
    """The tensor that a Split or three Slices cut into queries, keys and values in that order, or None."""
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    if first is None or first.op_type not in ("Split", "Slice"):
        return None
    source = first.inputs[0]
    widths = [_width(value) for value in node.inputs[:3]]
    if source is None or None in widths or _width(source) != sum(width or 0 for width in widths):
        return None
    if first.op_type == "Split":
        cut = list(first.outputs) == list(node.inputs[:3])
        last_axis = first.attributes.get_int("axis", 0) in (-1, len(source.shape or ()) - 1)
        return source if cut and last_axis else None
    start = 0
    for value, width in zip(node.inputs[:3], widths, strict=True):
        piece = _producer(value, "Slice")
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
        if not _only_use(value):
            return None
        add = _producer(value, "Add")
        bias = None
        if add is not None:
            bias = next((entry for entry in add.inputs if constant(entry) is not None), None)
            value = next((entry for entry in add.inputs if entry is not bias), None)
            if bias is None or not _only_use(value):
                return None
        product = _producer(value, "MatMul")
        matrix = _weight(product.inputs[1]) if product is not None else None
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
    tensors = [tensor for tensor in map(_weight, weights) if tensor is not None]
    inputs, widths = tensors[0].shape.numpy()[0], [tensor.shape.numpy()[1] for tensor in tensors]
    offsets = [constant(bias) for bias in biases]
    if any(offset is not None for offset in offsets) and any(
        offset is None or offset.shape != (width,) for offset, width in zip(offsets, widths, strict=True)
    ):
        return None
    prefix = f"{weights[0].name}.packed" if weights[0] is not None else "packed"

    def packed() -> np.ndarray:
        return np.concatenate([tensor.numpy() for tensor in tensors], axis=1)

    weight = _add_lazy_initializer(graph, prefix, tensors[0], (inputs, sum(widths)), packed)
    merged = ir.node("MatMul", [products[0].inputs[0], weight])
    _describe(merged, values, sum(widths), f"{prefix}.product")
    _insert_before(node, merged)
    result = merged.outputs[0]
    if offsets[0] is not None:
        bias_array = np.concatenate([offset for offset in offsets if offset is not None])
        biased = ir.node("Add", [result, _add_initializer(graph, f"{prefix}.bias", bias_array)])
        _describe(biased, values, bias_array.shape[0], f"{prefix}.biased")
        _insert_before(node, biased)
        result = biased.outputs[0]
    for position in range(3):
        node.replace_input_with(position, result if position == 0 else None)
    _remove_if_unused(adds)
    _remove_if_unused(products)
    _drop_initializers(graph, [*weights, *biases])
    return result


def _describe(node: ir.Node, like: Sequence[ir.Value | None], width: int, name: str) -> None:
    """Give a new node's output the type and leading axes of `like[0]`, and its own width and name."""
    model_value = like[0]
    output = node.outputs[0]
    output.name = name
    if model_value is not None and model_value.shape is not None:
        output.type = model_value.type
        output.shape = ir.Shape([*model_value.shape[:-1], width])


def _skip_norms(graph: ir.Graph) -> int:
    """Add + norm becomes one node whose fourth output is the sum: the hidden state, or what the next Add needs."""
    count = 0
    for norm in list(graph):
        fused = _NORMS.get(norm.op_type)
        total = norm.inputs[0] if fused else None
        add = _producer(total, "Add")
        if fused is None or add is None or total is None or norm.attributes.get_int("axis", -1) not in (-1, 2):
            continue
        if not _is_plain_norm(norm) or total.shape is None or len(total.shape) != 3:
            continue
        if not _same_shape(add.inputs[0], total) or not _same_shape(add.inputs[1], total):
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
        _insert_before(norm, skip)
        norm.outputs[0].name, total.name = f"{names[0]}_unfused", f"{names[1]}_unfused"
        skip.outputs[0].name, skip.outputs[3].name = names
        skip.outputs[1].name = skip.outputs[2].name = ""
        ir.convenience.replace_all_uses_with(norm.outputs[0], skip.outputs[0], replace_graph_outputs=True)
        norm_graph = norm.graph
        assert norm_graph is not None
        norm_graph.remove(norm, safe=True)
        ir.convenience.replace_all_uses_with(total, skip.outputs[3], replace_graph_outputs=True)
        _remove_if_unused([add])
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
    _drop_initializers(graph, list(graph.initializers.values()))


def _name_axes(graph: ir.Graph, axis_names: Callable[[str], dict[int, str]]) -> None:
    """Give the dynamic axes of inputs and outputs the names of the contract."""
    for value in [*graph.inputs, *graph.outputs]:
        assert value.name is not None
        assert value.shape is not None
        names = axis_names(value.name)
        value.shape = ir.Shape([names.get(axis, dimension) for axis, dimension in enumerate(value.shape)])
