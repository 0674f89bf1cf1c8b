"""Every rewrite where it applies and where it must not: the graph computes the same before and after, to the last bit
unless said otherwise, gives out the same names in the same order, and every node stands behind what it reads."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge_export.cleanup import clean

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # type: ignore[import-untyped]

Array = npt.NDArray[Any]
Shape = list[str | int | None]

ROWS, STEPS, WIDTH = 2, 3, 8
SIZES = {"n": ROWS, "s": STEPS}
FUSED = {
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}
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


# -- linear layers ---------------------------------------------------------------------------------------------------


def linear_layer(
    bias: tuple[int, ...] | None = None,
    source: Shape | None = None,
    restored: Shape | None = None,
    target: list[int] | None = None,
    **attributes: Any,
) -> tuple[GraphBuilder, ir.Value, ir.Value]:
    """x [n, 3, 8] -> [n * 3, 8] -> Gemm -> [n, 3, 8]; returns the graph, Gemm's output and the last output."""
    build = GraphBuilder()
    x = build.input("x", ["n", STEPS, WIDTH])
    if source is not None:  # what the tracer wrote down, which may be less than what is
        x = build.node("Identity", x, shape=source)
    flat = build.reshape(x, [-1, WIDTH], ["rows", WIDTH])
    arguments = [flat, build.weight(WIDTH, WIDTH)] + ([build.weight(*bias)] if bias is not None else [])
    product = build.node("Gemm", *arguments, shape=["rows", WIDTH], **attributes)
    result = build.reshape(product, target or [-1, STEPS, WIDTH], restored or ["n", STEPS, WIDTH])
    return build, product, result


@pytest.mark.parametrize("bias", [None, (WIDTH,), (1,), ()])
def test_a_flattened_linear_layer_becomes_a_product(bias: tuple[int, ...] | None) -> None:
    build, _, result = linear_layer(bias)
    applied, nodes = cleaned(build, result, tolerance=ROUNDING)
    assert applied["flattened linear layers"] == 1
    assert nodes == Counter(["MatMul"] + ([] if bias is None else ["Add"]))


@pytest.mark.parametrize(
    "layer",
    [
        {"transB": 1},
        {"alpha": 0.5},
        {"bias": (WIDTH,), "beta": 0.5},
        # One number for each of the 6 flat rows, which is an axis that the product with three axes does not have.
        {"bias": (ROWS * STEPS, 1)},
        {"bias": (ROWS * STEPS, WIDTH)},
        # Rows and steps change places, as numbers and as dimensions that nobody knows.
        {"source": [ROWS, STEPS, WIDTH], "restored": [STEPS, ROWS, WIDTH], "target": [STEPS, ROWS, WIDTH]},
        {"source": [None, None, WIDTH], "restored": [None, None, WIDTH], "target": [STEPS, ROWS, WIDTH]},
        {"source": ["n", STEPS, None]},
    ],
    ids=str,
)
def test_a_linear_layer_of_another_kind_stays(layer: dict[str, Any]) -> None:
    build, _, result = linear_layer(**layer)
    applied, nodes = cleaned(build, result)
    assert applied["flattened linear layers"] == 0
    assert nodes["Gemm"] == 1


@pytest.mark.parametrize("read", ["by the caller", "by a node"])
def test_a_flat_product_that_is_read_elsewhere_stays(read: str) -> None:
    build, product, result = linear_layer()
    other = product if read == "by the caller" else build.node("Neg", product, shape=["rows", WIDTH])
    applied, nodes = cleaned(build, result, other)
    assert applied["flattened linear layers"] == 0
    assert nodes["Gemm"] == 1


# -- transposes around norms -----------------------------------------------------------------------------------------


def norm_of_heads(
    op_type: str,
    before: list[int],
    after: list[int],
    scale: tuple[int, ...] = (WIDTH,),
    axis: int = -1,
    sizes: tuple[int, ...] = (ROWS, STEPS, 4, WIDTH),
    outputs: int = 1,
) -> tuple[GraphBuilder, ir.Value, ir.Value]:
    """x [n, s, heads, k] turned, normed and turned back; returns the graph, the norm's output and the last output."""
    build = GraphBuilder()
    x = build.input("x", list(sizes))
    turned = [sizes[at] for at in before]
    heads = build.node("Transpose", x, shape=list(turned), perm=before)
    arguments = [heads, build.weight(*scale)] + ([build.weight(*scale)] if op_type == "LayerNormalization" else [])
    normed = build.node(op_type, *arguments, shape=list(turned), axis=axis, epsilon=1e-6, outputs=outputs)
    result = build.node("Transpose", normed, shape=[turned[at] for at in after], perm=after)
    return build, normed, result


SWAP = [0, 2, 1, 3]


@pytest.mark.parametrize("op_type", sorted(FUSED))
@pytest.mark.parametrize("axis", [-1, 3])
def test_transposes_around_a_norm_go(op_type: str, axis: int) -> None:
    build, _, result = norm_of_heads(op_type, SWAP, SWAP, axis=axis)
    applied, nodes = cleaned(build, result)
    assert applied["transposes around norms"] == 1
    assert nodes == Counter([op_type])


@pytest.mark.parametrize(
    "norm",
    [
        {"before": [0, 2, 3, 1], "after": [0, 3, 1, 2], "scale": (STEPS,)},  # over the steps
        {"before": SWAP, "after": [0, 1, 2, 3]},  # not turned back
        {"before": [0, 1, 2, 3], "after": SWAP},
        {"before": SWAP, "after": SWAP, "axis": 2},  # over two axes
        {"before": SWAP, "after": SWAP, "axis": 2, "scale": (STEPS, WIDTH)},
        {"before": SWAP, "after": SWAP, "scale": (4, 1, WIDTH)},  # a scale for each head
    ],
    ids=str,
)
def test_a_norm_over_other_axes_keeps_its_transposes(norm: dict[str, Any]) -> None:
    build, _, result = norm_of_heads("LayerNormalization", **norm)
    applied, _ = cleaned(build, result)
    assert applied["transposes around norms"] == 0


def test_a_transpose_without_an_order_reverses_the_axes_and_stays() -> None:
    build = GraphBuilder()
    x = build.input("x", [WIDTH, 4, STEPS, 2])
    turned = build.node("Transpose", x, shape=[2, STEPS, 4, WIDTH])
    normed = build.node("LayerNormalization", turned, build.weight(WIDTH), shape=[2, STEPS, 4, WIDTH])
    applied, nodes = cleaned(build, build.node("Transpose", normed, shape=[WIDTH, 4, STEPS, 2]))
    assert applied["transposes around norms"] == 0
    assert nodes["Transpose"] == 2


@pytest.mark.parametrize("read", ["by the caller", "by a node", "its mean"])
def test_a_norm_that_is_read_elsewhere_keeps_its_transposes(read: str) -> None:
    build, normed, result = norm_of_heads("LayerNormalization", SWAP, SWAP, outputs=2 if read == "its mean" else 1)
    other = normed
    if read == "its mean":
        other = build.nodes[1].outputs[1]
        other.type, other.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([ROWS, 4, STEPS, 1])
    elif read == "by a node":
        other = build.node("Neg", normed, shape=[ROWS, 4, STEPS, WIDTH])
    applied, nodes = cleaned(build, result, other)
    assert applied["transposes around norms"] == 0
    assert nodes["Transpose"] == 2


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [5, 16, 37])
def test_the_transpose_of_a_weight_becomes_the_weight_turned_round(outputs: int) -> None:
    build = GraphBuilder()
    x = build.input("x", ["n", "s", WIDTH])
    turned = build.node("Transpose", build.weight(outputs, WIDTH), shape=[WIDTH, outputs], perm=[1, 0])
    applied, nodes = cleaned(build, build.node("MatMul", x, turned, shape=["n", "s", outputs]))
    assert applied["turned weights"] == 1
    assert nodes == Counter(["MatMul"])


# -- reshapes --------------------------------------------------------------------------------------------------------


def test_a_reshape_to_the_same_shape_goes() -> None:
    build = GraphBuilder()
    x = build.node("Neg", build.input("x", ["n", "s", WIDTH]), shape=["n", "s", WIDTH])
    result = build.reshape(x, [0, 0, WIDTH], ["n", "s", WIDTH])
    applied, nodes = cleaned(build, result)
    assert applied["no-op reshapes"] == 1
    assert nodes == Counter(["Neg"])


def test_there_and_back_goes_and_so_does_what_lies_between() -> None:
    build = GraphBuilder()
    x = build.input("x", ["n", STEPS, WIDTH])
    flat = build.reshape(x, [-1, WIDTH], ["rows", WIDTH])
    back = build.reshape(flat, [-1, STEPS, WIDTH], ["n", STEPS, WIDTH])
    applied, nodes = cleaned(build, build.node("Neg", back, shape=["n", STEPS, WIDTH]))
    assert applied["no-op reshapes"] == 1
    assert nodes == Counter(["Neg"])


@pytest.mark.parametrize("shape", [None, [None, None, WIDTH], ["n", None, WIDTH], ["s", "n", WIDTH]])
def test_a_reshape_to_a_shape_that_may_be_another_stays(shape: Shape | None) -> None:
    build = GraphBuilder()
    x = build.node("Neg", build.input("x", ["n", "s", WIDTH]), shape=[None, None, WIDTH] if shape else ["n", "s", 8])
    result = build.reshape(x, [STEPS, ROWS, WIDTH], shape)
    applied, nodes = cleaned(build, build.node("Exp", result))
    assert applied["no-op reshapes"] == 0
    assert nodes["Reshape"] == 1


def test_of_two_reshapes_the_first_goes_unless_the_second_copies_a_dimension_from_it() -> None:
    for target, left in (([-1], 1), ([0, 2, 4], 2)):
        build = GraphBuilder()
        x = build.input("x", ["n", STEPS, WIDTH])
        flat = build.reshape(x, [-1, WIDTH], ["rows", WIDTH])
        result = build.reshape(flat, target, ["all"] if left == 1 else ["rows", 2, 4])
        _, nodes = cleaned(build, result)
        assert nodes["Reshape"] == left


def test_outputs_that_are_one_value_keep_their_names() -> None:
    build = GraphBuilder()
    x = build.input("x", ["n", "s", WIDTH])
    same = build.reshape(x, [0, 0, WIDTH], ["n", "s", WIDTH])  # the input itself
    negative = build.node("Neg", x, shape=["n", "s", WIDTH])
    again = build.reshape(negative, [0, 0, WIDTH], ["n", "s", WIDTH])  # another output itself
    twin = build.node("Neg", x, shape=["n", "s", WIDTH])  # computed twice
    cleaned(build, same, negative, again, twin)


@st.composite
def reshape_chains(draw: st.DrawFn) -> list[tuple[list[int], list[int], bool, bool]]:
    """Reshapes of 24 numbers: target, resulting shape, allowzero, and whether the result is read elsewhere too."""
    sizes, chain = [2, 3, 4], []
    shapes = [
        list(s) for r in (1, 2, 3, 4) for s in itertools.product((1, 2, 3, 4, 6, 12, 24), repeat=r) if np.prod(s) == 24
    ]
    for _ in range(draw(st.integers(1, 5))):
        shape = draw(st.sampled_from([*shapes, sizes, [2, 3, 4]]))
        target = list(shape)
        allow_zero = draw(st.booleans())
        for at in range(len(target)):
            if not allow_zero and at < len(sizes) and sizes[at] == shape[at] and draw(st.booleans()):
                target[at] = 0
        if draw(st.booleans()):
            target[draw(st.integers(0, len(target) - 1))] = -1
        chain.append((target, shape, allow_zero, draw(st.booleans())))
        sizes = shape
    return chain


@given(reshape_chains(), st.booleans())
def test_any_chain_of_reshapes_is_the_same_afterwards(
    chain: list[tuple[list[int], list[int], bool, bool]], from_input: bool
) -> None:
    build = GraphBuilder()
    value = build.input("x", [2, 3, 4])
    if not from_input:
        value = build.node("Neg", value, shape=[2, 3, 4])
    outputs = []
    for target, shape, allow_zero, read in chain:
        value = build.reshape(value, target, list(shape), allowzero=int(allow_zero))
        if read:
            outputs.append(value)
    outputs = [*outputs, build.node("Exp", value, shape=list(chain[-1][1]))]
    _, nodes = cleaned(build, *outputs)
    assert nodes["Reshape"] <= len(chain)


# -- queries, keys and values ----------------------------------------------------------------------------------------

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 2, 1, 16, 5
PARTS = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]


def attention(build: GraphBuilder, parts: list[ir.Value], kv_heads: int = KV_HEADS) -> ir.Value:
    """Attention of 2 rows of 3 tokens; returns its first output."""
    past = [build.input(f"past_{name}", ["n", kv_heads, CAPACITY, HEAD_DIM]) for name in ("key", "value")]
    lengths = build.number("lengths", np.full(ROWS, STEPS - 1, np.int32))
    total = build.number("total", np.array(STEPS, np.int32))
    return build.node(
        "GroupQueryAttention",
        *parts,
        *past,
        lengths,
        total,
        shape=["n", "s", HEADS * HEAD_DIM],
        outputs=3,
        num_heads=HEADS,
        kv_num_heads=kv_heads,
    )


def projections(build: GraphBuilder, biases: list[tuple[int, ...] | None]) -> list[ir.Value]:
    x = build.node("Neg", build.input("x", ["n", "s", WIDTH]), shape=["n", "s", WIDTH])
    parts = []
    for width, bias in zip(PARTS, biases, strict=True):
        part = build.node("MatMul", x, build.weight(WIDTH, width), shape=["n", "s", width])
        if bias is not None:
            part = build.node("Add", part, build.weight(*bias), shape=["n", "s", width])
        parts.append(part)
    return parts


@pytest.mark.parametrize("biased", [False, True])
def test_three_products_become_one(biased: bool) -> None:
    build = GraphBuilder()
    parts = projections(build, [(width,) if biased else None for width in PARTS])
    applied, nodes = cleaned(build, attention(build, parts), tolerance=ROUNDING)
    assert applied["packed QKV"] == 1
    assert nodes == Counter(["Neg", "MatMul", "GroupQueryAttention"] + (["Add"] if biased else []))


def test_the_bias_may_stand_on_either_side() -> None:
    build = GraphBuilder()
    x = build.input("x", ["n", "s", WIDTH])
    parts = []
    for width in PARTS:
        product = build.node("MatMul", x, build.weight(WIDTH, width), shape=["n", "s", width])
        parts.append(build.node("Add", build.weight(width), product, shape=["n", "s", width]))
    applied, _ = cleaned(build, attention(build, parts), tolerance=ROUNDING)
    assert applied["packed QKV"] == 1


@pytest.mark.parametrize(
    "biases",
    [
        [(PARTS[0],), None, None],
        [(PARTS[0],), (PARTS[1],), (1,)],  # one number for all
        [(STEPS, PARTS[0]), (STEPS, PARTS[1]), (STEPS, PARTS[2])],  # another bias for every step
    ],
    ids=["one of three", "a single number", "by step"],
)
def test_products_with_biases_of_other_shapes_stay_three(biases: list[tuple[int, ...] | None]) -> None:
    build = GraphBuilder()
    applied, nodes = cleaned(build, attention(build, projections(build, biases)))
    assert applied["packed QKV"] == 0
    assert nodes["MatMul"] == 3


@pytest.mark.parametrize("read", ["queries by the caller", "keys by a node", "a product under its bias"])
def test_products_that_are_read_elsewhere_stay_three(read: str) -> None:
    build = GraphBuilder()
    biased = read.startswith("a product")
    parts = projections(build, [(width,) if biased else None for width in PARTS])
    if read.startswith("queries"):
        others = [parts[0]]
    else:
        source = parts[1] if not biased else build.nodes[1].outputs[0]
        others = [build.node("Exp", source, shape=["n", "s", PARTS[0] if biased else PARTS[1]])]
    applied, nodes = cleaned(build, attention(build, parts), *others)
    assert applied["packed QKV"] == 0
    assert nodes["MatMul"] == 3


def test_products_of_other_states_or_weights_stay_three() -> None:
    for case in ("states", "shared weight", "computed weight", "batched weight"):
        build = GraphBuilder()
        x = build.input("x", ["n", "s", WIDTH])
        other = build.node("Neg", x, shape=["n", "s", WIDTH])
        weights = [build.weight(WIDTH, width) for width in PARTS]
        if case == "shared weight":
            weights[2] = weights[1]
            other = x
        elif case == "computed weight":
            weights[0] = build.node("Neg", weights[0], shape=[WIDTH, PARTS[0]])
            other = x
        elif case == "batched weight":
            weights = [build.weight(1, WIDTH, width) for width in PARTS]
            other = x
        parts = [
            build.node("MatMul", source, weight, shape=["n", "s", width])
            for source, weight, width in zip((x, x, other), weights, PARTS, strict=True)
        ]
        if case == "shared weight":  # two products of the same would become one before they are looked at
            parts[2] = build.node("MatMul", build.node("Exp", x), weights[1], shape=["n", "s", PARTS[2]])
        applied, nodes = cleaned(build, attention(build, parts))
        assert applied["packed QKV"] == 0, case
        assert nodes["MatMul"] == 3, case


def packed_source(build: GraphBuilder, width: int) -> ir.Value:
    return build.node("Neg", build.input("x", ["n", "s", width]), shape=["n", "s", width])


@pytest.mark.parametrize("axis", [-1, 2])
def test_what_a_split_took_apart_goes_in_whole(axis: int) -> None:
    build = GraphBuilder()
    source = packed_source(build, sum(PARTS))
    build.node("Split", source, build.array(np.array(PARTS)), outputs=3, axis=axis)
    applied, nodes = cleaned(build, attention(build, split_parts(build.nodes[-1], PARTS)))
    assert applied["packed QKV"] == 1
    assert nodes == Counter(["Neg", "GroupQueryAttention"])


def split_parts(split: ir.Node, widths: list[int]) -> list[ir.Value]:
    for number, (value, width) in enumerate(zip(split.outputs, widths, strict=True)):
        value.name, value.type = f"part_{number}", ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(["n", "s", width])
    return list(split.outputs)


def test_a_split_in_another_order_stays() -> None:
    build = GraphBuilder()
    widths = [HEADS * HEAD_DIM] * 3
    source = packed_source(build, sum(widths))
    build.node("Split", source, build.array(np.array(widths)), outputs=3, axis=-1)
    query, key, value = split_parts(build.nodes[-1], widths)
    applied, nodes = cleaned(build, attention(build, [key, query, value], kv_heads=HEADS))
    assert applied["packed QKV"] == 0
    assert nodes["Split"] == 1


def slices(build: GraphBuilder, cuts: list[tuple[int, int, int]], axis: int = -1) -> list[ir.Value]:
    source = packed_source(build, sum(PARTS))
    return [
        build.node(
            "Slice",
            source,
            *(build.array(np.array([number])) for number in (start, end, axis, step)),
            shape=["n", "s", (end - start) // step],
        )
        for start, end, step in cuts
    ]


BOUNDS = [0, *itertools.accumulate(PARTS)]


@pytest.mark.parametrize("axis", [-1, 2])
def test_what_slices_took_apart_goes_in_whole(axis: int) -> None:
    build = GraphBuilder()
    parts = slices(build, [(start, end, 1) for start, end in itertools.pairwise(BOUNDS)], axis)
    applied, nodes = cleaned(build, attention(build, parts))
    assert applied["packed QKV"] == 1
    assert nodes == Counter(["Neg", "GroupQueryAttention"])


@pytest.mark.parametrize(
    "cuts",
    [
        [(0, 32, 1), (48, 64, 1), (32, 48, 1)],  # values before keys
        [(0, 64, 2), (32, 48, 1), (48, 64, 1)],  # every other query
        [(0, 32, 1), (16, 32, 1), (48, 64, 1)],  # keys out of the queries
    ],
    ids=["order", "step", "overlap"],
)
def test_slices_that_take_something_else_stay(cuts: list[tuple[int, int, int]]) -> None:
    build = GraphBuilder()
    applied, nodes = cleaned(build, attention(build, slices(build, cuts)))
    assert applied["packed QKV"] == 0
    assert nodes["Slice"] == 3


def test_attention_over_constants_and_inputs_stays() -> None:
    build = GraphBuilder()
    query = build.node("Constant", value=ir.tensor(np.ones((ROWS, STEPS, PARTS[0]), np.float32)), shape=["n", "s", 32])
    key, value = (build.input(name, ["n", "s", PARTS[1]]) for name in ("k", "v"))
    applied, _ = cleaned(build, attention(build, [query, key, value]))
    assert applied["packed QKV"] == 0


# -- sums and norms --------------------------------------------------------------------------------------------------

STATES: Shape = ["n", "s", WIDTH]


def norm(build: GraphBuilder, op_type: str, value: ir.Value, shape: Shape | None = None, **more: Any) -> ir.Value:
    scale = more.pop("scale", (WIDTH,))
    arguments = [value, build.weight(*scale)] + ([build.weight(*scale)] if op_type == "LayerNormalization" else [])
    return build.node(op_type, *arguments, shape=shape or STATES, epsilon=1e-3, **more)


@pytest.mark.parametrize("op_type", sorted(FUSED))
@pytest.mark.parametrize("sum_is", ["nothing else", "an output", "read later", "read by two norms"])
def test_a_sum_and_its_norm_become_one_node(op_type: str, sum_is: str) -> None:
    build = GraphBuilder()
    total = build.node("Add", build.input("x", STATES), build.input("y", STATES), shape=STATES)
    normed = norm(build, op_type, total)
    outputs = [normed]
    if sum_is == "an output":
        outputs.append(total)
    elif sum_is == "read later":
        outputs.append(build.node("Mul", normed, total, shape=STATES))
    elif sum_is == "read by two norms":
        outputs.append(norm(build, op_type, total))
    applied, nodes = cleaned(build, *outputs, tolerance=ROUNDING)
    assert applied["skip norms"] == 1
    assert nodes[FUSED[op_type]] == 1
    assert nodes[op_type] == (sum_is == "read by two norms")
    assert nodes["Add"] == 0


def test_a_norm_without_its_own_epsilon_keeps_the_default_one() -> None:
    build = GraphBuilder()
    x, y = build.input("x", STATES), build.input("y", STATES)
    build.feed = {name: array * 1e-3 for name, array in build.feed.items()}  # so that epsilon counts
    total = build.node("Add", x, y, shape=STATES)
    normed = build.node("LayerNormalization", total, build.weight(WIDTH), shape=STATES)
    applied, _ = cleaned(build, normed, tolerance=ROUNDING)
    assert applied["skip norms"] == 1


@pytest.mark.parametrize(
    "case", ["one for all rows", "a constant", "four axes", "two axes", "unknown", "over steps too", "its mean is read"]
)
def test_a_sum_or_norm_of_another_kind_stays(case: str) -> None:
    build = GraphBuilder()
    shape: Shape = STATES
    more: dict[str, Any] = {}
    if case == "four axes":
        shape = ["n", "s", 2, WIDTH]
    elif case == "two axes":
        shape = ["n", WIDTH]
    elif case == "over steps too":
        shape, more = ["n", STEPS, WIDTH], {"axis": 1}
    elif case == "its mean is read":
        more = {"outputs": 2}
    x = build.input("x", shape)
    y = build.input("y", [1, 1, WIDTH] if case == "one for all rows" else shape)
    if case == "a constant":
        y = build.array(build.random.standard_normal((ROWS, STEPS, WIDTH), dtype=np.float32))
        y.shape = ir.Shape(STATES)
    total = build.node("Add", x, y, shape=None if case == "unknown" else shape)
    outputs = [norm(build, "LayerNormalization", total, shape, **more)]
    if case == "its mean is read":
        mean = build.nodes[-1].outputs[1]
        mean.type, mean.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", "s", 1])
        outputs.append(mean)
    applied, nodes = cleaned(build, *outputs)
    assert applied["skip norms"] == 0
    assert nodes == Counter(["Add", "LayerNormalization"])


def test_a_sum_that_is_read_before_its_norm_stays() -> None:
    build = GraphBuilder()
    total = build.node("Add", build.input("x", STATES), build.input("y", STATES), shape=STATES)
    between = build.node("Exp", total, shape=STATES)
    applied, nodes = cleaned(build, norm(build, "SimplifiedLayerNormalization", total), between)
    assert applied["skip norms"] == 0
    assert nodes["Add"] == 1


# -- all together ----------------------------------------------------------------------------------------------------


@st.composite
def residual_graphs(draw: st.DrawFn) -> tuple[list[tuple[str, int, int]], list[int]]:
    """Operations on earlier values (a value is an input or an operation), and which operations are outputs."""
    operations: list[tuple[str, int, int]] = []
    for index in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from(["Add", "Add", "rms", "layer", "same", "flat and back", "linear", "Mul"]))
        operations.append((kind, draw(st.integers(0, index + 1)), draw(st.integers(0, index + 1))))
    outputs = draw(st.lists(st.integers(0, len(operations) - 1), min_size=1, unique=True))
    return operations, sorted({*outputs, len(operations) - 1})


@given(residual_graphs())
def test_any_graph_of_sums_norms_and_reshapes_is_the_same_afterwards(
    graph: tuple[list[tuple[str, int, int]], list[int]],
) -> None:
    operations, outputs = graph
    build = GraphBuilder()
    shape: Shape = ["n", STEPS, WIDTH]
    values = [build.input("x", shape), build.input("y", shape)]
    weight = build.array(build.random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 4)
    for kind, first, second in operations:
        one, other = values[first], values[second]
        if kind in ("Add", "Mul"):
            # A product with itself again and again would leave the range of float32.
            result = build.node(kind, one, other if kind == "Add" else values[0], shape=shape)
        elif kind == "rms":
            result = norm(build, "SimplifiedLayerNormalization", one, shape)
        elif kind == "layer":
            result = norm(build, "LayerNormalization", one, shape)
        elif kind == "same":
            result = build.reshape(one, [0, STEPS, -1], shape)
        else:
            flat = build.reshape(one, [-1, WIDTH], ["rows", WIDTH])
            if kind == "linear":
                flat = build.node("Gemm", flat, weight, shape=["rows", WIDTH])
            result = build.reshape(flat, [-1, STEPS, WIDTH], shape)
        values.append(result)
    _, nodes = cleaned(build, *(values[index + 2] for index in outputs), tolerance=1e-4)
    assert nodes["Gemm"] == 0


def test_what_nobody_reads_goes_and_the_axes_get_their_names() -> None:
    build = GraphBuilder()
    x = build.input("x", ["a", "b", WIDTH], {"a": 2, "b": 3})
    build.input("unread", ["n"])
    build.node("Exp", x, shape=["a", "b", WIDTH])
    result = build.node("Neg", x, shape=["a", "b", WIDTH])
    build.weight(3, 3)
    table = build.array(np.arange(3.0, dtype=np.float32))  # given out as it is
    model = build.model(result, table)
    kept = model.graph[1]
    kept.metadata_props["pkg.torch.onnx.stack_trace"] = kept.doc_string = "/home/somebody/model.py"
    model.metadata_props["origin"] = "/home/somebody"
    clean(model, lambda name: {0: "rows", 1: "steps"} if name != "output_1" else {})
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [node.op_type for node in model.graph] == ["Neg"]
    assert list(model.graph.initializers) == ["output_1"]
    assert [str(size) for size in model.graph.outputs[0].shape or ()] == ["rows", "steps", str(WIDTH)]
    assert b"somebody" not in ir.to_proto(model).SerializeToString()
