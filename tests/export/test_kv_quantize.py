"""Keys and values in int8: a graph that computes nearly what it did, at every precision, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from families import REQUIRED, save_checkpoint

from swift_edge.bundle.folder import open_bundle
from swift_edge.bundle.manifest import Precision
from swift_edge.engine.providers import kv_cache_obstacle
from swift_edge.engine.session import ModelSession
from swift_edge.errors import ExportError, InvalidOptionError, ParityError, UnsupportedModelError
from swift_edge.scoring.head import Head, save_head
from swift_edge_export import preflight as room
from swift_edge_export import publish, streaming
from swift_edge_export.packing import kv_quantize
from swift_edge_export.publish import export_bundle
from swift_edge_export.tracing import dynamo as trace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_trace"),
    pytest.mark.skipif(
        kv_cache_obstacle(Precision("fp32", kv_cache="int8")) is not None, reason="onnxruntime lacks the kernels"
    ),
]
# Against the largest value of a position: a code is 1.5 / 127 of the largest key or value, and layers add up.
TOLERANCE = 0.15


def export(checkpoint: Path, out: Path, **options: Any) -> list[str]:
    report: list[str] = []
    export_bundle(str(checkpoint), out, kv_cache="int8", report=report.append, **options)
    return report


@pytest.fixture(scope="module")
def written(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    export(tiny_checkpoint, out)
    return out


# -- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-sliding", "gemma2", "phi3-partial-rotary", "gpt2"])
def test_a_family_computes_nearly_what_it_did(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "trace", trace.trace)  # families with the same weights do not have the same graph
    # Prefill in chunks, decode in place and rows of different lengths, each against torch's full forward pass.
    checkpoint = save_checkpoint(REQUIRED[family](), tmp_path / "checkpoint")
    report = export(checkpoint, tmp_path / "bundle")
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.precision == Precision("fp32", kv_cache="int8")
    errors = [error for check in manifest.parity["relative_error"].values() for error in check.values()]
    assert len(errors) == 6
    assert all(1e-4 < error < TOLERANCE for error in errors)
    # The graph was held to the tolerance of fp32 before.
    assert sum("largest relative error" in line for line in report) == 2
    assert any(line.startswith("calibrate keys and values") for line in report)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_other_precisions_lose_little_more(tiny_checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    plain = export_bundle(str(tiny_checkpoint), tmp_path / "plain", precision=precision)
    export(tiny_checkpoint, tmp_path / "bundle", precision=precision)
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.precision.name, manifest.precision.kv_cache) == (precision, "int8")
    assert manifest.precision.block_size == plain.precision.block_size
    assert plain.precision.kv_cache is None
    for check, figures in plain.parity["relative_error"].items():
        for name, error in figures.items():
            assert abs(manifest.parity["relative_error"][check][name] - error) < TOLERANCE


def test_scales_are_those_of_the_largest_numbers_that_were_seen(written: Path, tiny_bundle: Any) -> None:
    graph = ir.load(written / "model.onnx").graph
    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    types = {value.name: value.dtype for value in (*graph.inputs, *graph.outputs) if value.name}
    cached = {name for name in types if name.startswith(("past_key_values", "present"))}
    assert len(cached) == 8
    assert {types[name] for name in cached} == {ir.DataType.INT8}
    session = ModelSession(tiny_bundle.open(), threads=1)
    cache = session.new_cache(1, 100)
    session.prefill(cache, np.random.default_rng(7).integers(3, 90, 100))
    for node, keys, values in zip(nodes, cache.keys, cache.values, strict=True):
        assert node.attributes.get_string("k_quant_type") == node.attributes.get_string("v_quant_type") == "PER_CHANNEL"
        assert node.attributes.get_int("kv_cache_bit_width") == 8
        for place, floats in ((12, keys), (13, values)):
            value = node.inputs[place]
            assert value is not None
            assert value.const_value is not None
            scales = value.const_value.numpy()
            assert scales.shape == (1, 2, 1, 16)
            # A text that it was not calibrated on reaches most of the range, and hardly ever leaves it.
            reached = np.abs(floats[:, :, :100] / scales)
            assert 0.4 * 127 < reached.max() < 1.3 * 127
            assert (reached > 127).mean() < 1e-3
    # Both numbers of a pair that rotates have one scale: at some position either is as large as their length.
    key_scales = nodes[0].inputs[12].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(key_scales[..., :8], key_scales[..., 8:])


def test_what_is_silent_gets_a_scale_all_the_same() -> None:
    limits = np.array([[0.0, 12.7, 0.127], [0.0, 0.0, 0.0]], np.float32)  # [h, k]
    scales = kv_quantize._scales(limits)
    whole = 12.7 * kv_quantize.MARGIN / 127
    np.testing.assert_allclose(scales[0, 0, 0], [whole / 16, whole, whole / 16], rtol=1e-6)
    np.testing.assert_array_equal(scales[0, 1, 0], 1)


def test_a_large_model_that_is_read_in_parts_gets_the_same_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(REQUIRED["qwen2"](), tmp_path / "checkpoint")
    monkeypatch.setattr(streaming, "PLACEHOLDER_NUMBERS", 512)
    monkeypatch.setattr(trace, "FOLDED_NUMBERS", 256)
    export(checkpoint, tmp_path / "loaded", precision="int4", rounding="nearest")
    monkeypatch.setattr(room, "MOST_LOADED", 0)
    report = export(checkpoint, tmp_path / "streamed", precision="int4")
    assert any("reading one weight at a time" in line for line in report)
    loaded, streamed = (open_bundle(tmp_path / name).manifest for name in ("loaded", "streamed"))
    assert streamed.precision.kv_cache == "int8"
    assert streamed.files == loaded.files


def test_a_head_of_floating_point_keys_and_values_comes_along_with_a_warning(
    tiny_checkpoint: Path, tiny_bundle: Any, tmp_path: Path
) -> None:
    fingerprint = tiny_bundle.open().manifest.fingerprint
    head = Head(
        np.zeros((2, 64), np.float32), np.zeros(2, np.float32), layers=(1,), fingerprint=fingerprint, precision="fp32"
    )
    save_head(tmp_path / "some.npz", head)
    report = export(tiny_checkpoint, tmp_path / "bundle", head=tmp_path / "some.npz")
    assert any("at precision fp32, the bundle has fp32 with int8 keys and values" in line for line in report)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_way_to_keep_them_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    wrong: Any = "int4"
    with pytest.raises(InvalidOptionError, match=r"kv_cache 'int4' .* one of float, int8"):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", kv_cache=wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_onnxruntime_that_cannot_run_them_is_refused_before_anything_is_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.27.1")
    report: list[str] = []
    with pytest.raises(ExportError, match=r"need onnxruntime 1\.28 or newer, this is 1\.27\.1.*leave out --kv-cache"):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", kv_cache="int8", report=report.append)
    assert report == []
    assert list(tmp_path.iterdir()) == []


def test_scales_that_lose_the_model_are_refused_with_the_way_out(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_quantize, "MARGIN", 1e-3)  # nearly every number is cut off
    with pytest.raises(ParityError, match=r"fp32 with int8 keys and values graph .* chance .*leave out --kv-cache"):
        export(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_keys_that_something_else_reads_are_refused(tiny_bundle: Any, tmp_path: Path) -> None:
    model = ir.load(tiny_bundle.path / "model.onnx")
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.0.key")
    other = ir.node("Identity", [past])
    other.outputs[0].name = "other"
    model.graph.append(other)
    with pytest.raises(UnsupportedModelError, match="leave out --kv-cache int8"):
        kv_quantize._attention_layers(model.graph, 2)
