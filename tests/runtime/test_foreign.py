"""Folders that optimum and onnxruntime-genai write, as far as their configuration files go."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from swift_edge import errors
from swift_edge.bundle import Architecture, Bundle, Graph, HiddenStates, Tokens, open_bundle
from swift_edge.options import SamplingOptions

LLAMA = {
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "vocab_size": 500,
}

GENAI: dict[str, Any] = {
    "model": {
        "bos_token_id": 1,
        "context_length": 512,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "head_size": 16,
            "hidden_size": 64,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
            "num_attention_heads": 8,
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
        },
        "eos_token_id": [2, 7],
        "pad_token_id": 3,
        "type": "llama",
        "vocab_size": 500,
    },
    "search": {"do_sample": False, "past_present_share_buffer": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0},
}

SIZES = Architecture("llama", 5, 64, 8, 4, 16, 500, 512)


def folder_with(root: Path, documents: dict[str, object], graph: str = "model.onnx") -> Path:
    for name, document in documents.items():
        (root / name).write_text(json.dumps(document))
    (root / graph).parent.mkdir(exist_ok=True)
    (root / graph).write_bytes(b"graph")
    (root / "tokenizer.json").write_text("{}")
    return root


def genai(root: Path, *path: str, value: object = None) -> Path:
    """A genai folder with one value of its configuration replaced, or taken out where `value` is None."""
    document = copy.deepcopy(GENAI)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if path and value is None:
        del inner[path[-1]]
    elif path:
        inner[path[-1]] = value
    return folder_with(root, {"genai_config.json": document})


def test_a_genai_folder_opens_with_a_shared_buffer_and_no_hidden_states(tmp_path: Path) -> None:
    bundle = open_bundle(genai(tmp_path))
    manifest = bundle.manifest
    assert bundle.origin == "onnxruntime-genai"
    assert bundle.model_path == tmp_path / "model.onnx"
    assert manifest.architecture == SIZES
    assert manifest.graph == Graph("in-place")
    assert manifest.hidden_states == HiddenStates(())
    assert manifest.tokens == Tokens((2, 7), 1, 3)
    assert (manifest.fingerprint, manifest.precision.name) == ("", "unknown")
    # top_k 50 is what the builder writes where nobody asked for sampling.
    assert manifest.sampling == SamplingOptions()


def test_a_genai_folder_without_a_shared_buffer_concatenates(tmp_path: Path) -> None:
    folder = genai(tmp_path, "search", "past_present_share_buffer", value=False)
    assert open_bundle(folder).manifest.graph == Graph("concatenated")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("model", "decoder", "inputs", "input_ids"), None, "inputs.input_ids is missing; expected 'input_ids'"),
        (("model", "decoder", "inputs", "position_ids"), "places", "inputs.position_ids is 'places'"),
        (("model", "decoder", "inputs", "block_table"), "block_table", "inputs has 'block_table', which this runtime"),
        (("model", "decoder", "outputs", "present_key_names"), "k.%d", "outputs.present_key_names is 'k.%d'"),
        (("model", "decoder", "outputs", "present_conv_names"), "c.%d", "outputs has 'present_conv_names'"),
        (("model", "decoder", "sliding_window"), {"window_size": 64}, "model.decoder.sliding_window"),
        (("model", "decoder", "head_size"), None, "head_size is missing; expected an integer"),
        (("model", "decoder", "head_size"), "16", 'head_size is "16"; expected an integer'),
        (("model", "decoder", "head_size"), 0, "architecture.head_dim is 0; expected an integer of at least 1"),
        (("model", "decoder"), None, "decoder is missing; expected an object"),
        (
            ("model", "decoder", "num_hidden_layers"),
            10**6,
            "architecture.num_layers is 1000000; expected an integer of at",
        ),
        (("model", "context_length"), 10**400, "context_length is 1000"),
        (("model", "vocab_size"), float("nan"), "vocab_size is NaN; expected an integer"),
        (("model", "decoder", "inputs", "input_ids"), [1] * 10**5, "inputs.input_ids is [1, 1, 1, "),
        (("model", "eos_token_id"), [2] * 10**5 + ["2"], "eos_token_id is [2, 2, 2, "),
        (("model", "eos_token_id"), ["2"], 'eos_token_id is ["2"]'),
    ],
)
def test_a_genai_folder_that_cannot_be_served_says_why(
    tmp_path: Path, path: tuple[str, ...], value: object, said: str
) -> None:
    with pytest.raises(errors.ManifestError) as caught:
        open_bundle(genai(tmp_path, *path, value=value))
    assert said in str(caught.value)
    assert "genai_config.json" in str(caught.value)


def test_a_genai_graph_may_not_lie_outside(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsafePathError):
        open_bundle(genai(tmp_path, "model", "decoder", "filename", value="../model.onnx"))


def optimum(root: Path, generation: object = None, graph: str = "model.onnx", **changes: object) -> Bundle:
    documents: dict[str, object] = {"config.json": LLAMA | changes}
    if generation is not None:
        documents["generation_config.json"] = generation
    return open_bundle(folder_with(root, documents, graph))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "which is not a relative path"),
        ("/model.onnx", "which is not a relative path"),
        ("a\0", "which is not a relative path"),
        ("../model.onnx", "which leads out of the folder"),
        ("x" * 300, "cannot be read"),
        ("x" * 5000, "which has 5000 characters"),
        ("absent.onnx", "has no absent.onnx"),
    ],
)
def test_a_graph_of_an_odd_name_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(errors.BundleError, match=said) as caught:
        open_bundle(genai(tmp_path, "model", "decoder", "filename", value=name))
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("temperature", [10**400, float("nan"), float("inf"), "1", [1]])
def test_sampling_that_no_model_has_is_one_line(tmp_path: Path, temperature: object) -> None:
    with pytest.raises(errors.ManifestError, match=r"generation_config.json: temperature is ") as caught:
        optimum(tmp_path, generation={"do_sample": True, "temperature": temperature})
    assert len(str(caught.value)) < 500


def test_ids_that_the_model_cannot_write_end_nothing(tmp_path: Path) -> None:
    tokens = optimum(tmp_path, eos_token_id=[2, 50256, -1, 2, 10**30], bos_token_id=50256).manifest.tokens
    assert tokens == Tokens((2,), None, None)


def test_names_that_are_no_names_are_passed_over(tmp_path: Path) -> None:
    manifest = optimum(tmp_path, model_type=["llama"] * 10**5, _name_or_path="x" * 5000).manifest
    assert (manifest.architecture.model_type, manifest.base_model) == ("unknown", tmp_path.resolve().name)


def test_an_optimum_folder_opens_with_concatenated_kv_and_no_hidden_states(tmp_path: Path) -> None:
    bundle = optimum(tmp_path)
    assert bundle.origin == "optimum"
    assert bundle.manifest.architecture == SIZES
    assert bundle.manifest.graph == Graph("concatenated")
    assert bundle.manifest.hidden_states == HiddenStates(())
    assert bundle.manifest.tokens == Tokens((2,), 1, None)
    assert bundle.chat_template is None


def test_generation_config_wins_and_its_sampling_travels(tmp_path: Path) -> None:
    generation = {"do_sample": True, "eos_token_id": [7, 2], "temperature": 0.6, "top_p": 0.95, "top_k": 0}
    manifest = optimum(tmp_path, generation).manifest
    assert manifest.tokens.eos_ids == (7, 2)
    assert manifest.sampling == SamplingOptions(temperature=0.6, top_p=0.95)


def test_sampling_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        errors.ManifestError, match=r"generation_config\.json: top_k is '5'; expected an integer from 0 to"
    ):
        optimum(tmp_path, {"do_sample": True, "top_k": "5"})


def test_sizes_that_the_configuration_leaves_out_follow_from_the_others(tmp_path: Path) -> None:
    sizes = optimum(tmp_path, num_key_value_heads=None, head_dim=None).manifest.architecture
    assert (sizes.num_key_value_heads, sizes.head_dim) == (8, 8)


def test_the_names_of_gpt2_are_known(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 4, "n_head": 2, "n_embd": 64, "n_positions": 9, "vocab_size": 10}
    bundle = open_bundle(folder_with(tmp_path, {"config.json": config}))
    assert bundle.manifest.architecture == Architecture("gpt2", 4, 64, 2, 2, 32, 10, 9)
    assert bundle.manifest.tokens == Tokens(())


def test_a_size_that_is_missing_is_named_with_all_its_names(tmp_path: Path) -> None:
    with pytest.raises(errors.ManifestError, match="max_position_embeddings or n_positions is missing"):
        optimum(tmp_path, max_position_embeddings=None)


def test_the_sizes_of_a_model_that_sees_pictures_are_one_level_down(tmp_path: Path) -> None:
    bundle = open_bundle(folder_with(tmp_path, {"config.json": {"model_type": "both", "text_config": LLAMA}}))
    assert bundle.manifest.architecture == SIZES


@pytest.mark.parametrize("graph", ["onnx/model.onnx", "model_quantized.onnx"])
def test_the_graph_may_have_another_place_or_name(tmp_path: Path, graph: str) -> None:
    assert optimum(tmp_path, graph=graph).model_path == tmp_path / graph


def test_graphs_in_two_parts_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "decoder_with_past_model.onnx").write_bytes(b"")
    with pytest.raises(
        errors.UnknownFolderError, match=r"decoder_model\.onnx, decoder_with_past_model\.onnx; expected"
    ):
        optimum(tmp_path, graph="decoder_model.onnx")


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    folder = genai(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(errors.UnknownFolderError, match=r"has no tokenizer\.json"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ a }}", "{{ a }}"),
        ([{"name": "tool_use", "template": "{{ b }}"}, {"name": "default", "template": "{{ a }}"}], "{{ a }}"),
        ([{"name": "tool_use", "template": "{{ b }}"}], None),
    ],
)
def test_the_template_is_found_in_the_tokenizer_configuration(
    tmp_path: Path, template: object, expected: str | None
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert optimum(tmp_path).chat_template == expected


def test_a_template_file_wins(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ b }}"}))
    (tmp_path / "chat_template.jinja").write_text("{{ a }}")
    assert optimum(tmp_path).chat_template == "{{ a }}"


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    folder = genai(tmp_path)
    (folder / "genai_config.json").write_text(text)
    with pytest.raises(errors.ManifestError, match=r"genai_config\.json"):
        open_bundle(folder)
