"""Reading a finished graph, and changing it without losing a name that it gives out: what every rewrite is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

# -- reading the graph -----------------------------------------------------------------------------------------------


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, if it is of this type, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def only_use(value: ir.Value | None) -> bool:
    """Whether a value is read once, and not given out by the graph."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value which the graph does not give out either, or None."""
    return next(iter(value.uses())).node if only_use(value) else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initialiser, or None."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def weight_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initialiser, whose content is not looked at, or None."""
    return value.const_value if value is not None and value.is_initializer() else None


def same_shape(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether two values have one shape, known in every dimension: a number or the same symbol."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    return same_dimensions(first.shape.dims, second.shape.dims)


def same_dimensions(first: Sequence[int | ir.SymbolicDim], second: Sequence[int | ir.SymbolicDim]) -> bool:
    """Whether dimensions are the same one by one; an unknown one is the same as none, not even as another unknown."""
    if len(first) != len(second):
        return False
    return all(one == other and _is_known(one) for one, other in zip(first, second, strict=True))


def _is_known(dimension: int | ir.SymbolicDim) -> bool:
    return isinstance(dimension, int) or dimension.value is not None


def last_width(value: ir.Value | None) -> int | None:
    """The last dimension of a value, or None where it is not fixed."""
    if value is None or value.shape is None or not len(value.shape):
        return None
    last = value.shape[-1]
    return last if isinstance(last, int) else None


# -- changing the graph ----------------------------------------------------------------------------------------------


def bypass(node: ir.Node, replacement: ir.Value) -> bool:
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


def insert_before(node: ir.Node, new: ir.Node) -> None:
    """Put a new node in front of another one of the same graph."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, new)


def remove_if_unused(nodes: Sequence[ir.Node | None]) -> None:
    """Remove those nodes, in this order, of whose outputs nothing is used or given out any more."""
    for node in nodes:
        if node is None or node.graph is None:
            continue
        if all(not output.uses() and not output.is_graph_output() for output in node.outputs):
            node.graph.remove(node, safe=True)


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initialiser with this content."""
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape = ir.Shape(array.shape)
    assert value.const_value is not None
    value.dtype = value.const_value.dtype
    graph.register_initializer(value)
    return value


def drop_initializers(graph: ir.Graph, values: Sequence[ir.Value | None]) -> None:
    """Remove initialisers that nothing uses any more, so that their memory goes at once."""
    for value in values:
        if value is None or not value.is_initializer() or value.uses() or value.is_graph_output():
            continue
        if value.name is not None and value.name in graph.initializers:
            del graph.initializers[value.name]


def add_lazy_initializer(
    graph: ir.Graph, name: str, like: ir.TensorProtocol, shape: Sequence[int], content: Callable[[], np.ndarray]
) -> ir.Value:
    """An initialiser whose content is made when it is asked for, every time: nothing large waits in memory."""
    tensor = ir.LazyTensor(lambda: ir.tensor(content(), name=name), like.dtype, ir.Shape(shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(like.dtype))
    graph.register_initializer(value)
    return value
