"""A checkpoint that is read one weight at a time becomes the bundle that it becomes when it is loaded whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import REQUIRED, TRANSFORMERS, save_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from swift_edge.bundle.folder import open_bundle
from swift_edge.engine.session import ModelSession
from swift_edge.errors import ExportError, ParityError
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
@pytest.mark.parametrize(
    ("family", "precision"), [("llama", "int4"), ("gemma3", "fp16"), *((family, "fp32") for family in sorted(REQUIRED))]
)
def test_the_bundle_is_the_one_of_the_loaded_model(
    family: str, precision: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = sharded(save_checkpoint(REQUIRED[family](), tmp_path / "checkpoint"))
    options: dict[str, Any] = {"precision": precision} | ({"rounding": "nearest"} if precision == "int4" else {})
    loaded = export_bundle(str(folder), tmp_path / "loaded", **options)
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
    with pytest.raises(ExportError, match=r"has no weights: neither model\.safetensors nor"):
        StreamedModel(checkpoint)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"has no model\.safetensors, and is too large"):
        StreamedModel(checkpoint)


# -- what transformers decides by a look at the weights ---------------------------------------------------------------


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def one_model(folder: Path) -> tuple[Any, StreamedModel]:
    """Loaded and streamed, with the same fingerprint and the same logits."""
    checkpoint = read_checkpoint(str(folder))
    loaded, streamed = load_model(checkpoint), StreamedModel(checkpoint)
    assert fingerprint(streamed.weights()) == fingerprint(sorted(loaded.named_parameters()))
    streamed.require_contents(checkpoint.architecture.num_layers - 1)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), streamed.reading() as model:
        torch.testing.assert_close(model(ids).logits, loaded(ids).logits, rtol=0, atol=0)
    return loaded, streamed


def another_output(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).clone()


OUTPUTS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "another": another_output,
    "an equal one": lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}),
    "none": lambda tensors: tensors.pop("lm_head.weight", None),
    "that alone": lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}),
}


@pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="ties by the config alone")
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_layer_is_tied_by_what_the_file_holds(output: str, tmp_path: Path) -> None:
    folder = save_checkpoint(REQUIRED["qwen2"](), tmp_path / "checkpoint")
    change_weights(folder, OUTPUTS[output])
    loaded, streamed = one_model(folder)
    table, layer = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
    assert loaded.config.tie_word_embeddings
    assert torch.equal(table, layer) is (output != "another")
    streamed_table, streamed_layer = streamed.model.get_input_embeddings(), streamed.model.get_output_embeddings()
    assert (streamed_table.weight is streamed_layer.weight) is (table is layer)


@pytest.mark.slow
@pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="ties by the config alone")
def test_an_output_layer_that_the_config_ties_wrongly_is_exported_as_transformers_loads_it(
    tmp_path: Path, streamed_exports: None
) -> None:
    folder = save_checkpoint(REQUIRED["qwen2"](), tmp_path / "checkpoint")
    change_weights(folder, another_output)
    export_bundle(str(folder), tmp_path / "bundle")
    session = ModelSession(open_bundle(tmp_path / "bundle"), threads=1)
    ids = torch.arange(3, 20)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids[None]).logits[0].numpy()
    given = session.prefill(session.new_cache(1, 1), ids.numpy(), logits="all").logits
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let transformers convert weights of Llama while it loads them."""
    mapping = pytest.importorskip("transformers.conversion_mapping")

    def convert(*conversions: Any) -> None:
        own = mapping.get_checkpoint_conversion_mapping
        monkeypatch.setattr(
            mapping,
            "get_checkpoint_conversion_mapping",
            lambda kind: list(conversions) if kind == "llama" else own(kind),
        )

    return convert


def test_weights_that_transformers_makes_from_others_are_made_from_what_the_file_holds(
    converted: Callable[..., None], tmp_path: Path
) -> None:
    core = pytest.importorskip("transformers.core_model_loading")
    folder = save_checkpoint(REQUIRED["llama"](), tmp_path / "checkpoint")
    plain = fingerprint(StreamedModel(read_checkpoint(str(folder))).weights())

    def fuse(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(3):
            parts = [tensors.pop(f"model.layers.{layer}.mlp.{each}_proj.weight") for each in ("gate", "up")]
            tensors[f"model.layers.{layer}.mlp.both.weight"] = torch.cat(parts)
            half = tensors.pop(f"model.layers.{layer}.mlp.down_proj.weight").chunk(2, dim=1)
            for number, each in enumerate(half):
                tensors[f"model.layers.{layer}.mlp.down{number}.weight"] = each.contiguous()

    change_weights(folder, fuse)
    converted(
        core.WeightConverter(
            source_patterns="mlp.both.weight",
            target_patterns=["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            operations=[core.Chunk(dim=0)],
        ),
        core.WeightConverter(
            source_patterns=["mlp.down0.weight", "mlp.down1.weight"],
            target_patterns="mlp.down_proj.weight",
            operations=[core.Concatenate(dim=1)],
        ),
    )
    _, streamed = one_model(folder)
    assert fingerprint(streamed.weights()) == plain
    assert len(streamed._keys) == 2 + 3 * 4, "the embedding, the output layer, four of the attention in each layer"


def test_a_conversion_that_placeholders_do_not_show_is_refused(
    converted: Callable[..., None], tmp_path: Path, streamed_exports: None
) -> None:
    core = pytest.importorskip("transformers.core_model_loading")

    class Turned(core.ConversionOps):  # type: ignore[misc]
        """A view of the same shape and memory, of a square matrix."""

        def convert(self, input_dict: dict[str, Any], *, target_patterns: list[str], **_: Any) -> dict[str, Any]:
            return {target_patterns[0]: next(iter(input_dict.values()))[0].T}

    folder = save_checkpoint(REQUIRED["llama"](), tmp_path / "checkpoint")
    converted(
        core.WeightConverter(source_patterns="q_proj.weight", target_patterns="q_proj.weight", operations=[Turned()])
    )
    with pytest.raises(ParityError, match=r"q_proj\.weight .* is not what transformers makes of it"):
        export_bundle(str(folder), tmp_path / "bundle")
    with pytest.raises(ParityError, match=r"layers\.2\.self_attn\.q_proj\.weight"):
        StreamedModel(read_checkpoint(str(folder))).require_contents(2)
