"""A checkpoint that is read one weight at a time becomes the bundle that it becomes when it is loaded whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import REQUIRED, save_checkpoint
from safetensors.torch import load_file, save_file

from swift_edge.errors import ExportError
from swift_edge_export import preflight as room
from swift_edge_export import streaming
from swift_edge_export.checkpoint import read_checkpoint
from swift_edge_export.loading import fingerprint, load_model
from swift_edge_export.publish import export_bundle
from swift_edge_export.streaming import StreamedModel, layers_of_every_kind
from swift_edge_export.tracing import dynamo as trace


@pytest.fixture(autouse=True)
def small_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices of tiny models count as large."""
    monkeypatch.setattr(streaming, "PLACEHOLDER_NUMBERS", 512)
    monkeypatch.setattr(trace, "FOLDED_NUMBERS", 256)


@pytest.fixture
def streamed_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is small enough to be loaded whole."""
    monkeypatch.setattr(room, "MOST_LOADED", 0)


def sharded(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Split the weights of a checkpoint over two files, as those of large models are."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    names = sorted(tensors)
    where = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for shard in set(where.values()):
        part = {name: tensors[name] for name in names if where[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3"])
def test_a_streamed_model_computes_what_the_loaded_one_does(family: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(sharded(save_checkpoint(REQUIRED[family](), tmp_path / "checkpoint"))))
    loaded, streamed = load_model(checkpoint), StreamedModel(checkpoint)
    ids = torch.arange(3, 20)[None]
    shares: list[float] = []
    with torch.no_grad(), streamed.reading(shares.append) as model:
        given, wanted = (each(ids, output_hidden_states=True) for each in (model, loaded))
    torch.testing.assert_close(given.logits, wanted.logits, rtol=0, atol=0)
    for one, other in zip(given.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert fingerprint(streamed.weights()) == fingerprint(sorted(loaded.named_parameters()))
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    # Afterwards the weights are gone again.
    held = sum(parameter.untyped_storage().nbytes() for parameter in streamed.model.parameters())
    assert held < sum(parameter.nbytes for parameter in loaded.parameters()) / 4


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_no_weight_file_stays_mapped(tmp_path: Path) -> None:
    folder = sharded(save_checkpoint(REQUIRED["llama"](), tmp_path / "checkpoint"), torch.bfloat16)
    streamed = StreamedModel(read_checkpoint(str(folder)))
    shares: list[float] = []
    for name, weight in streamed.weights(shares.append):
        assert weight.dtype == torch.float32, name
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "precision"), [("llama", "int4"), ("qwen2", "fp32"), ("gemma3", "fp16")])
def test_the_bundle_is_the_one_of_the_loaded_model(
    family: str, precision: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = sharded(save_checkpoint(REQUIRED[family](), tmp_path / "checkpoint"))
    loaded = export_bundle(str(folder), tmp_path / "loaded", precision=precision)
    request.getfixturevalue("streamed_exports")
    report: list[str] = []
    streamed = export_bundle(str(folder), tmp_path / "streamed", precision=precision, report=report.append)
    assert any("reading one weight at a time" in line for line in report)
    assert any("layers in fp32" in line for line in report)
    assert streamed.fingerprint == loaded.fingerprint
    assert streamed.files == loaded.files  # sizes and hashes: the same bytes
    assert streamed.parity["greedy_agreement"] > 0.3


def test_a_layer_of_every_kind_is_compared() -> None:
    assert layers_of_every_kind(REQUIRED["llama"]()) == 2
    config = REQUIRED["gemma3"]()
    config.layer_types = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert layers_of_every_kind(config) == 6


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_refused_on_its_first_layers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed_exports: None
) -> None:
    attach = StreamedModel.attach

    def wrong(self: StreamedModel, graph: Any, prefix: str) -> None:
        attach(self, graph, prefix)
        first = next(value for name, value in graph.graph.initializers.items() if "up_proj" in name)
        first.const_value = type(first.const_value)(
            lambda: streaming.ir.tensor(torch.randn(*first.shape.numpy()).numpy()), first.dtype, first.shape
        )

    monkeypatch.setattr(StreamedModel, "attach", wrong)
    with pytest.raises(ExportError, match="relative error"):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_weights_that_are_not_there_or_not_in_safetensors_are_named(tmp_path: Path) -> None:
    folder = save_checkpoint(REQUIRED["llama"](), tmp_path / "checkpoint")
    checkpoint = read_checkpoint(str(folder))
    tensors = load_file(folder / "model.safetensors")
    lacking = {name: tensor for name, tensor in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"lacks 1 of .* model\.layers\.1\.mlp\.up_proj\.weight"):
        StreamedModel(checkpoint)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"has no model\.safetensors, and is too large"):
        StreamedModel(checkpoint)
