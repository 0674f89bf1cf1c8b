"""Weights that were quantised before are packed as they are, and not rounded a second time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf_files import family_file, gguf
from graph_builder import GraphBuilder
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # type: ignore[import-untyped]

from swift_edge_export.packing.grid import grid_codes
from swift_edge_export.packing.quantize import Quantization, quantize
from swift_edge_export.publish import export_bundle

Array = npt.NDArray[Any]
# Which types of these files fit into how many bits.
HELD = [("Q4_0", 4), ("Q4_0", 8), ("Q5_0", 8), ("Q8_0", 8)]


def stored(kind: str, outputs: int = 24, inputs: int = 64, seed: int = 0, spread: float = 0.1) -> Array:
    """Weights [N, K] after they were stored in a type."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(spread)
    weights[random.random(outputs) < 0.1] = 0
    number = gguf.GGMLQuantizationType[kind]
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(weights, number), number))


def taken_apart(codes: Array, scales: Array, bits: int) -> Array:
    """Weights [N, K] from codes as MatMulNBits reads them."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    numbers = codes.astype(np.float32) - np.float32(2 ** (bits - 1))
    return np.asarray((numbers * scales[..., None]).reshape(len(codes), -1))


@pytest.mark.parametrize(("kind", "bits"), HELD)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(1e-3, 1e3))
def test_codes_give_the_weights_back_exactly(kind: str, bits: int, seed: int, spread: float) -> None:
    weights = stored(kind, seed=seed, spread=spread)
    exact = grid_codes(weights.T, bits, 32)
    assert exact is not None
    np.testing.assert_array_equal(taken_apart(*exact, bits), weights)


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 4), ("Q5_0", 4), ("Q4_1", 4), ("Q4_1", 8), ("Q6_K", 4)])
def test_weights_of_another_grid_have_none(kind: str, bits: int) -> None:
    weights = stored("Q8_0" if kind == "Q6_K" else kind, inputs=256)
    assert grid_codes(weights.T, bits, 32) is None
    random = np.random.default_rng(0).standard_normal((256, 24), dtype=np.float32)
    assert grid_codes(random, bits, 32) is None


def test_both_ends_of_a_grid_at_once_do_not_fit() -> None:
    weights = np.zeros((32, 1), np.float32)
    weights[:2, 0] = 8, -8
    weights[2, 0] = 1
    assert grid_codes(weights, 4, 32) is None
    weights[1, 0] = -7
    assert grid_codes(weights, 4, 32) is not None
    weights[3, 0] = np.nan
    assert grid_codes(weights, 4, 32) is None


def product(weights: Array, path: Path, bits: int) -> tuple[Quantization, float]:
    """Pack x @ weights.T, and how far the packed product is from it."""
    build = GraphBuilder()
    x = build.input("x", ["n", weights.shape[1]])
    y = build.node("MatMul", x, build.array(weights.T.copy(), "weight"))
    precision: Any = {4: "int4", 8: "int8"}[bits]
    quantization = quantize(build.model(y), path, precision, accuracy_level=0)
    (given_,) = onnxruntime.InferenceSession(path).run(None, build.feed)
    expected = build.feed["x"] @ weights.T
    return quantization, float(np.abs(given_ - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("kind", "bits"), HELD)
def test_a_packed_product_is_the_product_with_the_weights(kind: str, bits: int, tmp_path: Path) -> None:
    quantization, error = product(stored(kind, inputs=256), tmp_path / "model.onnx", bits)
    assert (quantization.carried, quantization.matrices) == (1, 1)
    assert error < 1e-5


def test_one_block_elsewhere_and_the_matrix_is_rounded(tmp_path: Path) -> None:
    weights = stored("Q4_0", inputs=256)
    weights[-1, -32:] = np.random.default_rng(1).standard_normal(32, dtype=np.float32)
    quantization, error = product(weights, tmp_path / "model.onnx", 4)
    assert quantization.carried == 0
    assert error > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("Q4_0", "int4"), ("Q8_0", "int8"), ("Q4_1", "int4")])
def test_the_manifest_says_how_many_matrices_kept_their_codes(kind: str, precision: Any, tmp_path: Path) -> None:
    report: list[str] = []
    path, _ = family_file("llama", tmp_path / "model.gguf", kind)
    manifest = export_bundle(str(path), tmp_path / "bundle", precision=precision, report=report.append)
    # Of three layers: queries, keys and values as one matrix, output, gate, up, down; and the output layer.
    assert manifest.precision.carried == (None if kind == "Q4_1" else 3 * 5 + 1)
    assert manifest.precision.zero_points == (3 * 5 + 1 if kind == "Q4_1" else None)
    assert any("exactly those of the model" in line for line in report) is (kind != "Q4_1")
