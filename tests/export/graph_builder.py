"""Small graphs, made node by node, and whether cleaning leaves one the same.

That is: the same numbers, to the last bit unless said otherwise, the same names in the same order, and every node
behind what it reads.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from swift_edge_export.rewriting.cleanup import clean

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # type: ignore[import-untyped]

Array = npt.NDArray[Any]
Shape = list[str | int | None]

ROWS, STEPS, WIDTH = 2, 3, 8
SIZES = {"n": ROWS, "s": STEPS}
# A sum of products in another order, or a norm inside of another node.
ROUNDING = 2e-6


class GraphBuilder:
    """A small graph, node by node; every value has the shape that it is given, known or not."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.arrays: list[ir.Value] = []
        self.feed: dict[str, Array] = {}

    def input(self, name: str, shape: Shape, sizes: dict[str, int] | None = None) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        self.inputs.append(value)
        known = SIZES | (sizes or {})
        concrete = [size if isinstance(size, int) else known[str(size)] for size in shape]
        self.feed[name] = self.random.standard_normal(concrete, dtype=np.float32)
        return value

    def number(self, name: str, array: Array) -> ir.Value:
        """An integer input."""
        dtype = ir.DataType.from_numpy(array.dtype)
        self.inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape)))
        self.feed[name] = array
        return self.inputs[-1]

    def array(self, array: Any, name: str = "") -> ir.Value:
        tensor = ir.tensor(array, name=name or f"array_{len(self.arrays)}")
        self.arrays.append(
            ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]
        )
        return self.arrays[-1]

    def weight(self, *shape: int) -> ir.Value:
        return self.array(self.random.standard_normal(shape, dtype=np.float32))

    def node(
        self, op_type: str, *inputs: ir.Value | None, shape: Shape | None = None, outputs: int = 1, **attributes: Any
    ) -> ir.Value:
        domain = "com.microsoft" if op_type == "GroupQueryAttention" else ""
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs))
        result = self.nodes[-1].outputs[0]
        result.name, result.type = f"value_{len(self.nodes)}", ir.TensorType(ir.DataType.FLOAT)
        result.shape = None if shape is None else ir.Shape(shape)
        return result

    def reshape(self, value: ir.Value, target: list[int], shape: Shape | None, **attributes: int) -> ir.Value:
        return self.node("Reshape", value, self.array(np.array(target)), shape=shape, **attributes)

    def model(self, *outputs: ir.Value) -> ir.Model:
        for index, value in enumerate(outputs):
            value.name = f"output_{index}"
            if value.shape is None:
                value.shape = ir.Shape([f"unknown_{index}"])
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.arrays,
            opset_imports={"": 20, "com.microsoft": 1},
            name="graph",
        )
        return ir.Model(graph, ir_version=10)


def run(model: ir.Model, feed: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # shapes of outputs that the tests leave unknown
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return list(session.run(None, {name: array for name, array in feed.items() if name in wanted}))


def cleaned(build: GraphBuilder, *outputs: ir.Value, tolerance: float = 0.0) -> tuple[dict[str, int], Counter[str]]:
    """Clean a graph and check that it is the same one; what was applied, and how many nodes of each type are left."""
    model = build.model(*outputs)
    names = [value.name for value in model.graph.outputs]
    before = run(model, build.feed)
    applied = clean(model, lambda _: {})
    assert [value.name for value in model.graph.outputs] == names
    seen = {id(value) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    in_graph = set(model.graph)
    for node in model.graph:
        assert all(value is None or id(value) in seen for value in node.inputs), "a node stands before what it reads"
        seen |= {id(value) for value in node.outputs}
        # Nodes that were made and thrown away must not count as readers.
        assert all(use.node in in_graph for value in node.inputs if value is not None for use in value.uses())
    for one, other in zip(before, run(model, build.feed), strict=True):
        assert one.shape == other.shape
        if tolerance:
            np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * max(1.0, float(np.abs(one).max())))
        else:
            np.testing.assert_array_equal(other, one)
    return applied, Counter(node.op_type for node in model.graph)
