"""Queries, keys and values become one tensor from one product, where the attention alone reads them; nowhere else."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from graph_builder import ROUNDING, ROWS, STEPS, WIDTH, GraphBuilder, cleaned

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
