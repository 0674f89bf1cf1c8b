"""Each step that tidies a TorchScript graph: the same numbers, and left alone what it does not recognise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

from swift_edge_export.tracing.torchscript_graph import normalise

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
ROWS = np.arange(2 * 3 * 12, dtype=np.float32).reshape(2, 3, 12)
WEIGHT = np.arange(5 * 12, dtype=np.float32).reshape(5, 12)


def run(model: ir.Model) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": ROWS})


def normalised(text: str, folder: Path) -> list[str]:
    """The node types afterwards, once the results are known to be the same."""
    model = ir.from_proto(parser.parse_model(f"{HEADER} {text}"))
    weight = ir.Value(name="w", const_value=ir.tensor(WEIGHT, name="w"), shape=ir.Shape((5, 12)))
    weight.dtype = ir.DataType.FLOAT
    for value in [value for value in model.graph.inputs if value.name == "w"]:
        model.graph.inputs.remove(value)
        ir.convenience.replace_all_uses_with(value, weight)
        model.graph.register_initializer(weight)
    before = run(model)
    normalise(model, folder, lambda note: pytest.fail(note))
    for one, other in zip(before, run(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(folder.iterdir()) == []
    return [node.op_type for node in model.graph]


def cut(*places: str) -> str:
    pieces = ""
    for index, place in enumerate(places):
        start, end = place.split(":")
        pieces += f"""
        s{index} = Constant <value_ints = [{start}]> ()
        e{index} = Constant <value_ints = [{end}]> ()
        p{index} = Slice (n, s{index}, e{index}, axis)
        y{index} = Neg (p{index})"""
    results = ", ".join(f"float[rows, steps, d{index}] y{index}" for index in range(len(places)))
    return f"""g (float[rows, steps, 12] x) => ({results}) {{
        axis = Constant <value_ints = [-1]> ()
        n = Neg (x){pieces}
    }}"""


@pytest.mark.parametrize("places", [("0:4", "4:12"), ("-8:9223372036854775807", "0:4"), ("0:4", "4:8", "8:12")])
def test_slices_without_a_gap_become_one_split(places: tuple[str, ...], tmp_path: Path) -> None:
    assert normalised(cut(*places), tmp_path) == ["Neg", "Split"] + ["Neg"] * len(places)


@pytest.mark.parametrize("places", [("0:4", "5:12"), ("0:5", "4:12"), ("0:4", "4:11")])
def test_slices_with_a_gap_or_an_overlap_stay(places: tuple[str, ...], tmp_path: Path) -> None:
    assert normalised(cut(*places), tmp_path).count("Slice") == 2


def test_a_reshape_target_made_of_sizes_becomes_constant(tmp_path: Path) -> None:
    text = """g (float[rows, steps, 12] x) => (float[rows, steps, 4, 3] y) {
        zero = Constant <value_int = 0> () one = Constant <value_int = 1> () two = Constant <value_int = 2> ()
        four = Constant <value_ints = [4]> () at = Constant <value_ints = [0]> ()
        shape = Shape (x)
        rows_ = Gather (shape, zero) steps_ = Gather (shape, one) width = Gather (shape, two)
        r = Unsqueeze (rows_, at) s = Unsqueeze (steps_, at) w_ = Unsqueeze (width, at)
        k = Div (w_, four)
        target = Concat <axis = 0> (r, s, four, k)
        y = Reshape (x, target)
    }"""
    assert normalised(text, tmp_path) == ["Reshape"]


def test_a_reshape_that_swaps_two_dynamic_axes_keeps_its_target(tmp_path: Path) -> None:
    text = """g (float[rows, steps, 12] x) => (float[steps, rows, 12] y) {
        order = Constant <value_ints = [1, 0, 2]> ()
        shape = Shape (x)
        target = Gather (shape, order)
        y = Reshape (x, target)
    }"""
    assert normalised(text, tmp_path) == ["Shape", "Gather", "Reshape"]


@pytest.mark.parametrize(("flat", "nodes"), [(False, ["MatMul"]), (True, ["Gather", "Gather", "Gemm"])])
def test_a_product_with_a_transposed_weight_reads_the_weight(flat: bool, nodes: list[str], tmp_path: Path) -> None:
    take = "i = Constant <value_int = 1> () f = Gather <axis = 0> (x, i) j = Constant <value_ints = [0, 2]> ()"
    rows = f"{take} r = Gather <axis = 0> (f, j)" if flat else ""
    text = f"""g (float[rows, steps, 12] x, float[5, 12] w) => (float[{"two" if flat else "rows, steps"}, 5] y) {{
        {rows}
        t = Transpose <perm = [1, 0]> (w)
        y = MatMul ({"r" if flat else "x"}, t)
    }}"""
    assert normalised(text, tmp_path) == nodes
