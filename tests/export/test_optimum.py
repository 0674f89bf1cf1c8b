"""The second front door: every family through optimum's exporter, and what it leaves behind."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import transformers
from families import REQUIRED, VOCABULARY, make_model, save_checkpoint
from onnx_ir.tensor_adapters import TorchTensor
from transformers import PreTrainedModel

from swift_edge.errors import MissingExtraError, UnsupportedModelError
from swift_edge_export.publish import export_bundle
from swift_edge_export.rewriting.cleanup import clean
from swift_edge_export.tracing.graph import GraphShape, dynamic_axes
from swift_edge_export.tracing.optimum import trace_with_optimum

# Relative to the largest value of the tensor; measured 4e-7 to 1.2e-6.
TOLERANCE = 1e-5
SHAPE = GraphShape(num_layers=3, kv_heads=2, head_dim=16, hidden_layers=(0, 1, 2, 3), context_length=128)


def traced(model: PreTrainedModel, folder: Path | None = None) -> ir.Model:
    return trace_with_optimum(model, SHAPE, lambda _: None, rotary=True, folder=folder)


@pytest.mark.optimum
@pytest.mark.parametrize("family", sorted(REQUIRED))
def test_the_graph_computes_what_torch_computes(family: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(REQUIRED[family](), tmp_path / "checkpoint")
    manifest = export_bundle(str(checkpoint), tmp_path / "bundle", exporter="optimum")
    errors = manifest.parity["relative_error"]
    assert set(errors) == {"prefill in chunks", "decode in place", "rows of different lengths"}
    assert max(error for check in errors.values() for error in check.values()) < TOLERANCE
    assert manifest.exporter["exporter"] == "optimum"


@pytest.mark.optimum
def test_the_rewrites_apply_to_what_torchscript_writes() -> None:
    graph = traced(make_model(REQUIRED["phi3"]()))
    clean(graph, dynamic_axes)
    nodes = Counter(node.op_type for node in graph.graph)
    assert nodes["SkipSimplifiedLayerNormalization"] == 6
    assert nodes["SimplifiedLayerNormalization"] == 1
    assert nodes["Split"] == 3  # gate and up
    assert nodes["Reshape"] == 1  # the states at the positions of the logits
    assert nodes["Slice"] == nodes["Concat"] == nodes["Unsqueeze"] == nodes["Transpose"] == 0
    attention = [node for node in graph.graph if node.op_type == "GroupQueryAttention"]
    assert [node.inputs[1] for node in attention] == [None] * 3


@pytest.mark.optimum
def test_weights_share_the_memory_of_the_model_and_tied_ones_are_one(tmp_path: Path) -> None:
    model = make_model(REQUIRED["qwen2"]())
    graph = traced(model, tmp_path)
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    tensors = [value.const_value for value in graph.graph.initializers.values()]
    matrices = [tensor for tensor in tensors if isinstance(tensor, TorchTensor) and tensor.raw.dim() == 2]
    assert len(matrices) == 3 * 7 + 1  # seven projections a layer, and the embedding that is the output layer too
    assert {tensor.raw.data_ptr() for tensor in matrices} <= owned
    assert list(tmp_path.iterdir()) == []


@pytest.mark.optimum
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_torch_are_as_they_were_afterwards(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(REQUIRED["llama"]())
    before = {**model.config.to_dict(), "attention": model.config._attn_implementation}
    exporter = torch.onnx.export
    if fails:
        monkeypatch.setattr(model.model.layers[1], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM cannot be .*: division by zero"):
            traced(model)
    else:
        traced(model)
    assert {**model.config.to_dict(), "attention": model.config._attn_implementation} == before
    assert torch.onnx.export is exporter
    assert "forward" not in vars(model)


@pytest.mark.optimum
def test_a_model_whose_attention_cannot_be_replaced_is_refused() -> None:
    config = transformers.GPTJConfig(vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, rotary_dim=8)
    with pytest.raises(UnsupportedModelError, match="GPTJForCausalLM does not let its attention be replaced"):
        traced(make_model(config))


def test_without_optimum_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "optimum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optimum", None)
    with pytest.raises(MissingExtraError, match=r'pip install "swift-edge\[optimum\]"'):
        traced(make_model(REQUIRED["llama"]()))
