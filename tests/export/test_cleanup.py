"""Every rewrite where it applies and where it must not: the graph computes the same before and after, to the last bit
unless said otherwise, gives out the same names in the same order, and every node stands behind what it reads."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graph_builder import ROUNDING, ROWS, STEPS, WIDTH, GraphBuilder, Shape, cleaned
from hypothesis import given
from hypothesis import strategies as st

from swift_edge_export.rewriting.cleanup import clean

FUSED = {
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


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


@pytest.mark.slow
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
