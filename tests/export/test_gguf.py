"""A model from a GGUF file is the model that the file was made from: families, types of blocks, what is refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import (
    ARCHITECTURES,
    byte_level_metadata,
    decoded,
    family_file,
    family_model,
    metadata_of,
    tensors_of,
    write_gguf,
)

from swift_edge.errors import ExportError, InvalidOptionError, SwiftEdgeError, UnsupportedModelError
from swift_edge.options import SamplingOptions
from swift_edge_export import preflight, streaming
from swift_edge_export.checkpoint import read_checkpoint
from swift_edge_export.loading import fingerprint, load_model, stored_tensors
from swift_edge_export.publish import export_bundle
from swift_edge_export.streaming import StreamedModel
from swift_edge_export.tracing import dynamo

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_file("llama", tmp_path_factory.mktemp("gguf") / "llama.gguf")[0]


def changed(tmp_path: Path, family: str = "llama", **changes: Any) -> Path:
    """A file with other metadata; None leaves a key out. Dots in keys are written as two underscores."""
    model, architecture = family_model(family), ARCHITECTURES[family]
    metadata = metadata_of(model.config, architecture) | byte_level_metadata()
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return write_gguf(tmp_path / "model.gguf", metadata, tensors_of(model, architecture))


def refusal(path: Path, kind: type[SwiftEdgeError] = ExportError, file: str | None = None) -> str:
    with pytest.raises(kind) as caught:
        load_model(read_checkpoint(str(path), file=file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- families and types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_a_file_becomes_the_model_that_it_was_made_from(family: str, kind: str, tmp_path: Path) -> None:
    path, model = family_file(family, tmp_path / "model.gguf", kind)
    stored = tensors_of(model, ARCHITECTURES[family])
    with torch.no_grad():
        _store(model, ARCHITECTURES[family], kind)
        expected = model(IDS, output_hidden_states=True)
        loaded = load_model(read_checkpoint(str(path)))
        given = loaded(IDS, output_hidden_states=True)
    assert type(loaded) is type(model)
    assert len(stored) > 10
    for one, other in zip(given.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given.logits, expected.logits, rtol=1e-4, atol=1e-4)


def _store(model: Any, architecture: str, kind: str) -> None:
    """Give the model the weights that are left of its own once they were stored."""
    for name, weight in model.named_parameters():
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weight.copy_(decoded(weight.T, kind).T)
        else:
            weight.copy_(decoded(weight, kind))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_blocks_of_every_type_are_taken_apart(kind: str, tmp_path: Path) -> None:
    path, model = family_file("qwen3", tmp_path / "model.gguf", kind)
    with torch.no_grad():
        _store(model, "qwen3", kind)
    assert fingerprint(stored_tensors(load_model(read_checkpoint(str(path))))) == fingerprint(stored_tensors(model))


def test_an_output_layer_of_its_own_is_not_tied(tmp_path: Path) -> None:
    model = family_model("qwen2")
    tensors = tensors_of(model, "qwen2")
    metadata = metadata_of(model.config, "qwen2") | byte_level_metadata()
    embedding = tensors["token_embd.weight"]
    same = write_gguf(tmp_path / "same.gguf", metadata, tensors | {"output.weight": embedding})
    other = write_gguf(tmp_path / "other.gguf", metadata, tensors | {"output.weight": embedding + 1})
    assert read_checkpoint(str(same)).config.tie_word_embeddings is True
    loaded: Any = load_model(read_checkpoint(str(other)))
    torch.testing.assert_close(loaded.lm_head.weight.detach(), embedding + 1, rtol=0, atol=0)
    torch.testing.assert_close(loaded.model.embed_tokens.weight.detach(), embedding, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_weights_are_read_one_at_a_time(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PLACEHOLDER_NUMBERS", 512)
    checkpoint = read_checkpoint(str(family_file(family, tmp_path / "model.gguf", "Q8_0")[0]))
    streamed, loaded = StreamedModel(checkpoint), load_model(checkpoint)
    streamed.require_weights_of(loaded)
    assert fingerprint(streamed.weights()) == fingerprint(stored_tensors(loaded))
    held = sum(parameter.untyped_storage().nbytes() for parameter in streamed.model.parameters())
    assert held < sum(parameter.nbytes for parameter in loaded.parameters()) / 4


@pytest.mark.slow
@pytest.mark.parametrize("way", ["loaded", "streamed"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_bundle_is_the_one_of_a_checkpoint_with_these_weights(
    family: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamo, "FOLDED_NUMBERS", 256)  # the matrices of tiny models count as large
    path, model = family_file(family, tmp_path / "model.gguf", "Q8_0")
    with torch.no_grad():
        _store(model, ARCHITECTURES[family], "Q8_0")
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    read_checkpoint(str(path)).tokenizer.save_pretrained(folder)
    plain = export_bundle(str(folder), tmp_path / "plain")
    if way == "streamed":
        monkeypatch.setattr(streaming, "PLACEHOLDER_NUMBERS", 512)
        monkeypatch.setattr(preflight, "MOST_LOADED", 0)
    report: list[str] = []
    manifest = export_bundle(str(path), tmp_path / "bundle", report=report.append)
    assert any("reading one weight at a time" in line for line in report) is (way == "streamed")
    assert manifest.architecture == plain.architecture
    assert manifest.base_model == "model"
    weights = [name for name in manifest.files if name.startswith("model.onnx")]
    # Gemma's norms were stored with one added, which costs their last bit.
    if family == "llama":
        assert manifest.fingerprint == plain.fingerprint
        assert [manifest.files[name] for name in weights] == [plain.files[name] for name in weights]
    assert manifest.parity["greedy_agreement"] == 1.0


# -- metadata --------------------------------------------------------------------------------------------------------


def test_what_the_makers_recommend_is_read(tmp_path: Path) -> None:
    path = changed(
        tmp_path, general__sampling__temp=0.6, general__sampling__top_k=20, general__sampling__penalty_repeat=1.05
    )
    sampling = read_checkpoint(str(path)).sampling
    assert sampling == SamplingOptions(temperature=0.6, top_p=1.0, top_k=20, repetition_penalty=1.05)


def test_an_answer_ends_with_every_token_that_ends_one(tmp_path: Path) -> None:
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    changes = {"tokenizer__ggml__eot_token_id": tokens.index("the"), "tokenizer__ggml__eom_token_id": 10**6}
    checkpoint = read_checkpoint(str(changed(tmp_path, **changes)))
    # EOS, the end of a turn that is named, then <|im_end|>, which is known by how it is written.
    assert checkpoint.tokens.eos_ids == (0, tokens.index("the"), 2)
    assert checkpoint.tokens.bos_id == 0
    assert checkpoint.chat_template is not None


def test_templates_have_names(tmp_path: Path) -> None:
    named = {"tokenizer__chat_template__tool_use": "{{ 'tools' }}"}
    assert "im_start" in str(read_checkpoint(str(changed(tmp_path, **named))).chat_template)
    alone = changed(tmp_path, tokenizer__chat_template=None, **named)
    assert read_checkpoint(str(alone)).chat_template == "{{ 'tools' }}"


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"general__architecture": "mamba"}, "architecture"),
        ("llama", {"llama__expert_count": 8}, "mixture of 8 experts"),
        ("llama", {"llama__attention__causal": False}, "causal"),
        ("llama", {"llama__attention__clamp_kqv": 8.0}, "clamp_kqv"),
        ("llama", {"llama__attention__value_length": 8}, "different widths"),
        ("llama", {"llama__rope__scaling__type": "dynamic"}, "rope of the type 'dynamic'"),
        ("llama", {"llama__rope__dimension_count": 8}, "turns a part of each head"),
        ("llama", {"general__type": "adapter"}, "expected a model"),
        ("olmo2", {"olmo2__attention__sliding_window": 16}, "sliding window"),
    ],
)
def test_a_model_that_does_more_is_refused(family: str, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in refusal(changed(tmp_path, family, **changes), UnsupportedModelError)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"llama__block_count": None}, "lacks llama.block_count"),
        ({"llama__block_count": 0}, "0 as llama.block_count"),
        ({"llama__block_count": 4_000_000_000}, "at most 1000 layers"),
        ({"llama__block_count": 2}, "does not use"),
        ({"llama__block_count": 4}, "lacks"),
        ({"llama__attention__head_count": "four"}, "as llama.attention.head_count"),
        ({"llama__attention__head_count": [4, 4, 2]}, "the same for every layer"),
        ({"llama__embedding_length": 4_000_000_000}, "holds"),
        ({"llama__rope__freq_base": float("nan")}, "greater than zero"),
        ({"tokenizer__ggml__tokens": ["a"]}, "1 tokens"),
        ({"general__name": 7}, "expected a text"),
    ],
)
def test_metadata_that_cannot_be_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in refusal(changed(tmp_path, **changes))


def test_a_weight_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    model = family_model("llama")
    metadata = metadata_of(model.config, "llama") | byte_level_metadata()
    tensors = tensors_of(model, "llama") | {"blk.0.attn_sinks.weight": torch.ones(4)}
    assert "blk.0.attn_sinks.weight" in refusal(write_gguf(tmp_path / "model.gguf", metadata, tensors))


# -- where the file is -----------------------------------------------------------------------------------------------


def test_a_file_in_a_folder_is_named(llama_file: Path, tmp_path: Path) -> None:
    shutil.copy(llama_file, tmp_path / "a.gguf")
    assert "name the one to export with --file" in refusal(tmp_path)
    checkpoint = read_checkpoint(str(tmp_path), file="a.gguf")
    assert checkpoint.name == "a"
    assert "its folder holds a.gguf" in refusal(tmp_path, file="b.gguf")
    for wrong in ("../a.gguf", "a.bin", "/a.gguf"):
        assert "--file" in refusal(tmp_path, InvalidOptionError, file=wrong)
    assert "--file" in refusal(tmp_path / "a.gguf", InvalidOptionError, file="a.gguf")


def test_parts_are_one_model(tmp_path: Path) -> None:
    model = family_model("llama")
    metadata = metadata_of(model.config, "llama") | byte_level_metadata()
    tensors = tensors_of(model, "llama")
    names = sorted(tensors)
    parts = [{name: tensors[name] for name in names[place::3]} for place in range(3)]
    for number, part in enumerate(parts):
        split = {"split.no": number, "split.count": 3, "split.tensors.count": len(names)}
        own = metadata if number == 0 else {"general.architecture": "llama"}
        write_gguf(tmp_path / f"tiny-0000{number + 1}-of-00003.gguf", own | split, part)
    second = tmp_path / "tiny-00002-of-00003.gguf"
    checkpoint = read_checkpoint(str(second))
    assert checkpoint.name == "tiny"
    assert fingerprint(stored_tensors(load_model(checkpoint))) == fingerprint(stored_tensors(model))
    second.rename(tmp_path / "elsewhere.gguf")
    assert "tiny-00002-of-00003.gguf" in refusal(tmp_path / "tiny-00001-of-00003.gguf")
    shutil.copy(tmp_path / "tiny-00003-of-00003.gguf", second)
    assert "of another part again" in refusal(tmp_path / "tiny-00001-of-00003.gguf")


def test_without_the_package_the_line_says_what_to_install(llama_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SwiftEdgeError, match=r'pip install "swift-edge\[export\]"'):
        read_checkpoint(str(llama_file))
