import os
import platform
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # type: ignore[import-untyped]

from swift_edge.errors import ExportError, InvalidOptionError
from swift_edge_export.packing import quantize as quantize_module
from swift_edge_export.packing.quantize import Quantization, block_size_for, quantize
from swift_edge_export.packing.rounding import nearest

Array = npt.NDArray[Any]

# K, N: whole blocks; a padded last block; fewer inputs than a block, odd N; many blocks.
SHAPES = [(256, 64), (172, 33), (64, 65), (1100, 40)]


class GraphBuilder:
    """A small graph, node by node."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.inputs: dict[str, ir.Value] = {}
        self.initializers: list[ir.Value] = []

    def input(self, name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
        self.inputs[name] = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        return self.inputs[name]

    def array(self, name: str, array: Array) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        self.initializers.append(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        )
        return self.initializers[-1]

    def weight(self, name: str, *shape: int) -> ir.Value:
        return self.array(name, self.random.standard_normal(shape, dtype=np.float32) * 0.05)

    def node(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        self.nodes.append(ir.node(op_type, inputs, attributes))
        return self.nodes[-1].outputs[0]

    def model(self, **outputs: tuple[ir.Value, ir.DataType]) -> ir.Model:
        for name, (value, dtype) in outputs.items():
            value.name, value.type = name, ir.TensorType(dtype)
        graph = ir.Graph(
            list(self.inputs.values()),
            [value for value, _ in outputs.values()],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": 20},
            name="graph",
        )
        return ir.Model(graph, ir_version=10)


def product_model(form: str, inputs: int, outputs: int, seed: int = 0) -> ir.Model:
    """x [m, K] times a weight matrix, in the forms that exporters write."""
    build = GraphBuilder(seed)
    x = build.input("x", ir.DataType.FLOAT, ["m", inputs])
    stored = (inputs, outputs) if form in ("matmul", "gemm", "gemm with bias") else (outputs, inputs)
    weight = build.weight("weight", *stored)
    if form == "matmul":
        y = build.node("MatMul", x, weight)
    elif form == "transposed matmul":
        y = build.node("MatMul", x, build.node("Transpose", weight, perm=[1, 0]))
    elif form == "gemm":
        y = build.node("Gemm", x, weight)
    elif form == "transposed gemm with bias":
        y = build.node("Gemm", x, weight, build.weight("bias", outputs), transB=1)
    else:
        y = build.node("Gemm", x, weight, build.weight("bias", outputs))
    return build.model(y=(y, ir.DataType.FLOAT))


def tied_model(form: str, vocabulary: int = 101, width: int = 128) -> ir.Model:
    """Token embedding and output layer of the same weights."""
    build = GraphBuilder()
    ids = build.input("input_ids", ir.DataType.INT64, ["n", "s"])
    table = build.weight("table", vocabulary, width)
    embedded = build.node("Gather", table, ids, axis=0)
    if form == "transpose":
        logits = build.node("MatMul", embedded, build.node("Transpose", table, perm=[1, 0]))
    elif form == "folded copy":
        logits = build.node("MatMul", embedded, build.array("copy", content(table).T.copy()))
    else:
        flat = build.node("Reshape", embedded, build.array("flat", np.array([-1, width])))
        logits = build.node("Gemm", flat, table, transB=1)
    return build.model(embedded=(embedded, ir.DataType.FLOAT), logits=(logits, ir.DataType.FLOAT))


def content(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def dequantized(path: Path, op_type: str) -> Array:
    """What the packed weights of the only node of a type stand for, [N, K], computed in float64."""
    graph = ir.load(path).graph
    (node,) = [node for node in graph if node.op_type == op_type]
    codes_at, scales_at = (1, 2) if op_type == "MatMulNBits" else (0, 2)
    codes, scales = (content(node.inputs[at]) for at in (codes_at, scales_at))  # type: ignore[arg-type]
    bits, block_size = (node.attributes[name].as_int() for name in ("bits", "block_size"))
    codes = unpacked(codes, bits)
    if len(node.inputs) > 3:
        zero_points = unpacked(content(node.inputs[3]), bits)[:, : scales.shape[1]]  # type: ignore[arg-type]
    else:
        zero_points = np.full(scales.shape, 2 ** (bits - 1), np.float64)
    scales, zero_points = (np.repeat(each, block_size, axis=1) for each in (scales.astype(np.float64), zero_points))
    weights: Array = (codes - zero_points) * scales
    return weights[:, : node.attributes["K"].as_int()] if op_type == "MatMulNBits" else weights


def unpacked(packed: Array, bits: int) -> Array:
    """Numbers of 8 or 4 bits, [N, numbers], as float64."""
    numbers = packed.reshape(packed.shape[0], -1)
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], axis=-1).reshape(packed.shape[0], -1)
    return numbers.astype(np.float64)


def run(path: Path, **inputs: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def op_types(path: Path) -> list[str]:
    return [node.op_type for node in ir.load(path).graph]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["matmul", "transposed matmul", "gemm", "gemm with bias", "transposed gemm with bias"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_packed_product_is_the_product_with_the_dequantized_weights(
    tmp_path: Path, precision: Any, form: str, shape: tuple[int, int]
) -> None:
    model = product_model(form, *shape)
    bias = content(model.graph.initializers["bias"]) if "bias" in model.graph.initializers else 0.0
    x = np.random.default_rng(1).standard_normal((5, shape[0]), dtype=np.float32)
    for level in (0, 4):
        path = tmp_path / f"{level}.onnx"
        report = quantize(model, path, precision, accuracy_level=level)
        (node,) = [node for node in ir.load(path).graph if node.domain]
        assert node.attributes.get_int("accuracy_level", 0) == level
        weights = dequantized(path, "MatMulNBits")  # [N, K]
        expected = x.astype(np.float64) @ weights.T + bias
        # fp32 sums: relative to the sum of the absolute terms.
        tolerance = 1e-5 * (np.abs(x) @ np.abs(weights.T) + np.abs(bias))
        if level == 4:
            # Each activation is rounded to a multiple of its block's largest / 127: half of that at most, per term.
            block_size = node.attributes["block_size"].as_int()
            padded = np.pad(np.abs(x), ((0, 0), (0, -shape[0] % block_size)))
            largest = padded.reshape(len(x), -1, block_size).max(axis=2).repeat(block_size, axis=1)[:, : shape[0]]
            tolerance = tolerance + largest / 254 @ np.abs(weights.T)
        (y,) = run(path, x=x)
        assert (np.abs(y - expected) <= tolerance).all()
        (y,) = run(path, x=x[:1])  # one row has a kernel of its own
        assert (np.abs(y - expected[:1]) <= tolerance[:1]).all()
        assert "MatMul" not in op_types(path)
        assert (report.products, report.left_as_they_were) == (1, ())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_codes_that_fits_are_tried_with_are_those_of_the_kernel(
    tmp_path: Path, precision: Any, shape: tuple[int, int]
) -> None:
    model = product_model("matmul", *shape)
    quantize(model, tmp_path / "model.onnx", precision)
    (node,) = [node for node in ir.load(tmp_path / "model.onnx").graph if node.domain]
    bits, block_size = (node.attributes[name].as_int() for name in ("bits", "block_size"))
    weights = torch.from_numpy(content(model.graph.initializers["weight"]).T.copy())
    expected = dequantized(tmp_path / "model.onnx", "MatMulNBits")
    difference = np.abs(nearest(weights, bits, block_size).weights(shape[0]).numpy() - expected)
    assert (difference < 1e-5).mean() > 0.998  # but for numbers halfway between two codes


@pytest.mark.parametrize(("precision", "largest_error"), [("int8", 0.008), ("int4", 0.105)])
def test_packed_weights_are_near_the_weights(tmp_path: Path, precision: Any, largest_error: float) -> None:
    model = product_model("transposed matmul", 896, 200)
    weights = content(model.graph.initializers["weight"])
    quantize(model, tmp_path / "model.onnx", precision)
    error = np.linalg.norm(dequantized(tmp_path / "model.onnx", "MatMulNBits") - weights) / np.linalg.norm(weights)
    assert 0 < error < largest_error


@pytest.mark.parametrize("form", ["transpose", "folded copy", "gemm"])
@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_a_tied_table_is_stored_once_and_read_exactly(tmp_path: Path, precision: Any, bits: int, form: str) -> None:
    path = tmp_path / "model.onnx"
    report = quantize(tied_model(form, vocabulary=3001), path, precision)
    weights = dequantized(path, "MatMulNBits")  # [v, d]
    ids = np.array([[0, 3000, 17], [5, 5, 2999]])
    embedded, logits = run(path, input_ids=ids)
    np.testing.assert_array_equal(embedded, weights[ids].astype(np.float32))
    assert np.abs(logits.reshape(2, 3, -1) - embedded @ weights.T).max() < 0.1 * logits.std()
    assert (report.embeddings, report.shared_tables) == (1, 1)
    blocks = weights.size // 128
    packed = weights.size * bits // 8 + 4 * blocks + (blocks * bits // 8 if bits == 4 else 0)
    size = (tmp_path / "model.onnx.data").stat().st_size
    assert packed <= size == report.weight_bytes < packed + 4096


def test_a_tied_table_with_a_padded_block_is_cut_to_its_width(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    quantize(tied_model("transpose", width=172), path, "int4")
    embedded, _ = run(path, input_ids=np.array([[100, 1]]))
    np.testing.assert_array_equal(embedded[0], dequantized(path, "MatMulNBits")[[100, 1]].astype(np.float32))


def untied_model(vocabulary: int) -> ir.Model:
    build = GraphBuilder()
    ids = build.input("input_ids", ir.DataType.INT64, ["n", "s"])
    embedded = build.node("Gather", build.weight("table", vocabulary, 512), ids, axis=0)
    logits = build.node("MatMul", embedded, build.weight("output", 512, 64))
    return build.model(embedded=(embedded, ir.DataType.FLOAT), logits=(logits, ir.DataType.FLOAT))


def test_a_large_embedding_of_its_own_gets_eight_bits(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", untied_model(2000)
    report = quantize(model, path, "int4")
    embedded, _ = run(path, input_ids=np.array([[1999, 0]]))
    np.testing.assert_array_equal(embedded[0], dequantized(path, "GatherBlockQuantized")[[1999, 0]].astype(np.float32))
    exact = content(model.graph.initializers["table"])[[1999, 0]]
    assert np.linalg.norm(embedded[0] - exact) < 0.01 * np.linalg.norm(exact)
    assert (report.embeddings, report.shared_tables, report.left_as_they_were) == (1, 0, ())


def test_a_small_embedding_of_its_own_stays_fp32(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", untied_model(100)
    report = quantize(model, path, "int4")
    embedded, _ = run(path, input_ids=np.array([[99, 0]]))
    np.testing.assert_array_equal(embedded[0], content(model.graph.initializers["table"])[[99, 0]])
    assert (report.embeddings, report.left_as_they_were) == (0, ("table",))


def test_tables_read_by_position_and_rotary_products_stay_exact(tmp_path: Path) -> None:
    build = GraphBuilder()
    ids = build.input("input_ids", ir.DataType.INT64, ["n", "s"])
    positions = build.input("position_ids", ir.DataType.INT64, ["n", "s"])
    table = build.weight("positions", 4096, 512)
    last = build.array("last", np.array([-1]))
    column = build.node("Unsqueeze", build.node("Cast", positions, to=ir.DataType.FLOAT), last)
    angles = build.node("MatMul", column, build.weight("frequencies", 1, 32))
    hidden = build.node(
        "Add", build.node("Gather", table, positions), build.node("Gather", build.weight("t", 9, 512), ids)
    )
    y = build.node("MatMul", hidden, build.weight("output", 512, 64))
    outputs = {name: (value, ir.DataType.FLOAT) for name, value in (("angles", angles), ("hidden", hidden), ("y", y))}
    model = build.model(**outputs)
    path = tmp_path / "model.onnx"
    report = quantize(model, path, "int4")
    feeds = {"input_ids": np.array([[1, 8]]), "position_ids": np.array([[4095, 3]])}
    tensors = {name: content(value) for name, value in model.graph.initializers.items()}
    angles_found, hidden_found, _ = run(path, **feeds)
    np.testing.assert_array_equal(hidden_found[0], tensors["positions"][[4095, 3]] + tensors["t"][[1, 8]])
    np.testing.assert_allclose(angles_found[0], np.array([[4095.0], [3.0]]) * tensors["frequencies"], rtol=1e-6)
    assert set(report.left_as_they_were) == {"t", "frequencies"}


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_row_does_not_depend_on_the_others(tmp_path: Path, precision: Any) -> None:
    # onnxruntime's x86 kernels take rows in pairs; the last of an odd number goes through another kernel, which adds in
    # another order. So rows are bitwise the same in every even batch, and the odd one differs in fp32 rounding only.
    path = tmp_path / "model.onnx"
    quantize(product_model("matmul", 896, 1001), path, precision)
    random = np.random.default_rng(2)
    row, others = random.standard_normal((1, 896)), random.standard_normal((8, 896))
    seen: dict[str, list[Array]] = {"even": [], "odd": []}
    for rows in range(1, 9):
        for place in range(rows):
            x = (100 * others[:rows]).astype(np.float32)  # large neighbours: a shared scale would show at once
            x[place] = row
            (y,) = run(path, x=x)
            seen["even" if rows % 2 == 0 else "odd"].append(y[place])
    reference = seen["even"][0]
    if platform.machine() in ("x86_64", "AMD64"):
        assert all(np.array_equal(y, reference) for y in seen["even"])
    assert max(np.abs(y - reference).max() for y in seen["even"] + seen["odd"]) < 1e-5 * np.abs(reference).max()


@given(inputs=st.integers(1, 20_000), largest=st.sampled_from([16, 32, 64, 128, 256]))
def test_blocks_are_the_largest_that_waste_little(inputs: int, largest: int) -> None:
    def padding(size: int) -> float:
        return -inputs % size / (inputs + -inputs % size)

    size = block_size_for(inputs, largest)
    assert size in (16, 32, 64, 128, 256)
    assert size <= largest
    assert size == 16 or padding(size) <= 1 / 8
    assert size == largest or padding(2 * size) > 1 / 8
    assert size == 16 or size <= inputs * 8 / 7


def test_one_matrix_read_twice_is_stored_once(tmp_path: Path) -> None:
    build = GraphBuilder()
    x = build.input("x", ir.DataType.FLOAT, ["m", 256])
    weight = build.weight("weight", 256, 256)
    y = build.node("MatMul", build.node("MatMul", x, weight), weight)
    report = quantize(build.model(y=(y, ir.DataType.FLOAT)), tmp_path / "model.onnx", "int8")
    assert report.products == 2
    assert report.weight_bytes < 256 * 256 * 1.1


def test_memory_needed_does_not_grow_with_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_module, "CHUNK_BYTES", 1024**2)
    model = product_model("transposed matmul", 1024, 4099)
    whole = tmp_path / "whole.onnx"
    tracemalloc.start()
    quantize(model, whole, "int4")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 1024**2 < 1024 * 4099 * 4
    monkeypatch.setattr(quantize_module, "CHUNK_BYTES", 1024**3)
    quantize(model, tmp_path / "once.onnx", "int4")
    np.testing.assert_array_equal(dequantized(whole, "MatMulNBits"), dequantized(tmp_path / "once.onnx", "MatMulNBits"))


def test_a_graph_on_disk_gives_the_same_files_and_is_not_changed(tmp_path: Path) -> None:
    model = tied_model("transpose")
    before = [node.op_type for node in model.graph], sorted(model.graph.initializers)
    ir.save(model, tmp_path / "fp32.onnx", external_data="fp32.data")
    source = (tmp_path / "fp32.data").read_bytes()
    quantize(model, tmp_path / "a.onnx", "int4")
    quantize(tmp_path / "fp32.onnx", tmp_path / "b.onnx", "int4")
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    assert (tmp_path / "fp32.data").read_bytes() == source
    assert before == ([node.op_type for node in model.graph], sorted(model.graph.initializers))


def test_the_files_that_are_read_are_not_overwritten(tmp_path: Path) -> None:
    ir.save(tied_model("transpose"), tmp_path / "model.onnx", external_data="other.onnx.data")
    source = (tmp_path / "other.onnx.data").read_bytes()
    for target in ("model.onnx", "other.onnx"):
        with pytest.raises(InvalidOptionError, match="another path"):
            quantize(tmp_path / "model.onnx", tmp_path / target, "int4")
    assert (tmp_path / "other.onnx.data").read_bytes() == source


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    model = product_model("matmul", 64, 64)
    content(model.graph.initializers["weight"])[3, 3] = value
    with pytest.raises(ExportError, match="weight holds values that are not finite"):
        quantize(model, tmp_path / "model.onnx", "int8")


def test_a_graph_without_fp32_weights_is_refused(tmp_path: Path) -> None:
    build = GraphBuilder()
    x = build.input("x", ir.DataType.FLOAT16, ["m", 64])
    y = build.node("MatMul", x, build.array("half", np.zeros((64, 64), np.float16)))
    with pytest.raises(ExportError, match="fp32"):
        quantize(build.model(y=(y, ir.DataType.FLOAT16)), tmp_path / "model.onnx", "int8")


@pytest.mark.parametrize(
    "options", [{"precision": "int2"}, {"block_size": 8}, {"block_size": 96}, {"accuracy_level": 5}]
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=f"{next(iter(options))} is"):
        quantize(product_model("matmul", 64, 64), tmp_path / "model.onnx", **{"precision": "int4", **options})
    assert not list(tmp_path.iterdir())


def test_a_graph_traced_by_torch_is_packed_whole(tmp_path: Path) -> None:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    class TinyModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(300, 64)
            self.positions = nn.Embedding(32, 64)
            self.up = Conv1D(160, 64)  # type: ignore[no-untyped-call]
            self.down = nn.Linear(160, 64)
            self.output = nn.Linear(64, 300, bias=False)
            self.output.weight = self.embedding.weight

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            hidden = self.embedding(input_ids) + self.positions(position_ids)
            return self.output(hidden + self.down(torch.relu(self.up(hidden))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = TinyModel().eval()
    nn.init.normal_(model.up.bias)
    ids, positions = torch.tensor([[7, 299, 0], [1, 2, 3]]), torch.arange(3).repeat(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (ids, positions), input_names=["input_ids", "position_ids"], dynamo=True, verbose=False
        )
    assert program is not None
    path = tmp_path / "model.onnx"
    report = quantize(program.model, path, "int8")
    expected = Quantization(
        precision="int8",
        block_size=128,
        accuracy_level=4,
        products=3,
        embeddings=1,
        shared_tables=1,
        carried=0,
        zero_points=0,
        matrices=3,
        fitted_tokens=0,
        scaled=0,
        fed_back=0,
        left_as_they_were=(),
        weight_bytes=(tmp_path / "model.onnx.data").stat().st_size,
    )
    assert report == expected
    assert not {"MatMul", "Gemm", "Transpose"} & set(op_types(path))
    with torch.no_grad():
        reference = model(ids, positions).numpy()
    (logits,) = run(path, input_ids=ids.numpy(), position_ids=positions.numpy())
    assert np.abs(logits - reference).max() < 0.05 * reference.std()
