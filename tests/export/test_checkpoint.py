"""What is read from a checkpoint before it is traced: ids, sampling, tokenizer, template; and what is refused there."""

from __future__ import annotations

import contextlib
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from families import REQUIRED, VOCABULARY, make_model, save_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from swift_edge.bundle.manifest import Bundle, Graph, HiddenStates, Manifest, Precision
from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.errors import ExportError, SwiftEdgeError, TokenizerError, UnsupportedModelError
from swift_edge.options import SamplingOptions
from swift_edge_export import parity
from swift_edge_export.checkpoint import Checkpoint, read_checkpoint, save_tokenizer
from swift_edge_export.loading import fingerprint, load_model

TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message['role'][0] }}:{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}a:{% endif %}"
)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    document = json.loads(file.read_text()) if file.exists() else {}
    document.update(fields)
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def refusal(folder: Path | str, kind: type[SwiftEdgeError] = ExportError) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(kind) as caught:
        load_model(read_checkpoint(str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- token ids and sampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_generation", "of_config", "eos_ids"),
    [
        ([7, 2, 5, 7], 2, (2, 7, 5)),
        (5, [6, 5], (2, 5, 6)),
        (None, None, (2,)),
    ],
)
def test_every_eos_id_is_kept_once_and_the_one_that_counts_comes_first(
    folder: Path, of_generation: Any, of_config: Any, eos_ids: tuple[int, ...]
) -> None:
    change(folder / "generation_config.json", eos_token_id=of_generation)
    change(folder / "config.json", eos_token_id=of_config)
    # Without a template, what generation stops at; with one, the tokenizer's own, which templates call eos_token.
    tokens = read_checkpoint(str(folder)).tokens
    assert (set(tokens.eos_ids), len(tokens.eos_ids)) == (set(eos_ids), len(eos_ids))
    assert tokens.eos_ids[0] == ([of_generation] if isinstance(of_generation, int) else of_generation or [2])[0]
    change(folder / "tokenizer_config.json", chat_template="{{ eos_token }}")
    tokens = read_checkpoint(str(folder)).tokens
    assert tokens.eos_ids == eos_ids
    assert (tokens.bos_id, tokens.pad_id) == (1, 0)


def test_a_bos_that_only_the_config_names_is_none(folder: Path) -> None:
    change(folder / "config.json", bos_token_id=1)
    change(folder / "tokenizer_config.json", bos_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert read_checkpoint(str(folder)).tokens.bos_id is None


@pytest.mark.parametrize("wanted", [True, False, None])
def test_bos_is_put_before_a_text_as_the_config_of_the_tokenizer_says(folder: Path, wanted: bool | None) -> None:
    change(folder / "tokenizer_config.json", add_bos_token=wanted)
    ids = read_checkpoint(str(folder)).tokenizer.backend_tokenizer.encode("AB").ids
    assert (ids[0] == 1) is bool(wanted)
    assert len(ids) == 2 + bool(wanted)


def test_a_config_around_a_text_config_says_no_ids_itself(tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**sizes, **heads, eos_token_id=[2, 9]),
        vision_config={**vision, "image_size": 28},
    )
    save_tokenizer_files(tmp_path)
    config.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(str(tmp_path))
    assert checkpoint.tokens.eos_ids == (2, 9)
    assert checkpoint.architecture.hidden_size == 64


def save_tokenizer_files(folder: Path) -> None:
    save_checkpoint(REQUIRED["llama"](), folder)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("stated", "sampling"),
    [
        # Nothing is recommended: as in the method's paper.
        ({}, SamplingOptions(temperature=1.0, top_p=0.9)),
        ({"do_sample": False, "temperature": 0.0}, SamplingOptions(temperature=1.0, top_p=0.9)),
        ({"repetition_penalty": 1.1}, SamplingOptions(temperature=1.0, top_p=0.9, repetition_penalty=1.1)),
        (
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
            SamplingOptions(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05),
        ),
        # What is recommended is not mixed with what is not.
        ({"temperature": 0.6}, SamplingOptions(temperature=0.6, top_p=1.0)),
        ({"min_p": 0.05}, SamplingOptions(temperature=1.0, top_p=1.0, min_p=0.05)),
        # Also where the numbers are those that transformers takes when nothing is said.
        ({"top_k": 50}, SamplingOptions(temperature=1.0, top_p=1.0, top_k=50)),
        ({"top_p": 1.0, "top_k": 0}, SamplingOptions(temperature=1.0, top_p=1.0)),
    ],
    ids=str,
)
def test_the_sampling_that_the_makers_recommend_travels(
    folder: Path, stated: dict[str, Any], sampling: SamplingOptions
) -> None:
    change(folder / "generation_config.json", **stated)
    assert read_checkpoint(str(folder)).sampling == sampling


def test_a_checkpoint_needs_no_generation_config_but_a_damaged_one_is_refused(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text('{"temperature": ')
    assert "generation_config.json" in refusal(folder)
    file.unlink()
    assert read_checkpoint(str(folder)).sampling == SamplingOptions(temperature=1.0, top_p=0.9)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("odd", [-1, VOCABULARY, 10**9, 2**70])
def test_an_eos_id_that_the_model_has_no_logit_for_is_left_out_and_said(folder: Path, file: str, odd: int) -> None:
    change(folder / file, eos_token_id=[5, odd])
    checkpoint = read_checkpoint(str(folder))
    assert 5 in checkpoint.tokens.eos_ids
    assert odd not in checkpoint.tokens.eos_ids
    assert f"eos_token_id of {file} is {odd}, the vocabulary has 0 to 95; left out" in checkpoint.notes


@pytest.mark.parametrize("odd", ["2", True, 2.0, [[2]], {"a": 2}, [2, None], [2, "x"]], ids=str)
def test_an_eos_id_that_is_no_whole_number_is_refused(folder: Path, odd: Any) -> None:
    change(folder / "generation_config.json", eos_token_id=odd)
    message = refusal(folder)
    assert message.startswith(f"eos_token_id of generation_config.json of {folder} is {json.dumps(odd)}; expected ids")


def test_a_padding_id_beyond_the_vocabulary_is_left_out_and_said(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    beyond = [added_token(f"<extra{number}>", number) for number in range(93, VOCABULARY + 1)]
    change_tokenizer(folder, added_tokens=[*document["added_tokens"], *beyond])
    change(folder / "tokenizer_config.json", pad_token="<extra96>")
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.tokens.pad_id is None
    assert "padding of the tokenizer is 96, the vocabulary has 0 to 95; left out" in checkpoint.notes


def test_a_model_that_no_token_ends_is_said_to_be_one(folder: Path) -> None:
    for file, name in (("config.json", "eos_token_id"), ("generation_config.json", "eos_token_id")):
        change(folder / file, **{name: -1})
    change(folder / "tokenizer_config.json", eos_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.tokens.eos_ids == ()
    assert any(note.startswith("no token ends a text") for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 10**400),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.7"),
        ("temperature", [0.7]),
        ("temperature", True),
        ("top_p", 7),
        ("top_p", -0.5),
        ("top_k", "5"),
        ("top_k", 5.5),
        ("min_p", 2),
        ("repetition_penalty", -3),
        ("repetition_penalty", 10**30),
    ],
    ids=str,
)
def test_a_recommendation_that_is_out_of_its_range_is_left_out_and_said(folder: Path, name: str, value: Any) -> None:
    change(folder / "generation_config.json", **{name: value})
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.sampling == SamplingOptions(temperature=1.0, top_p=0.9)
    (note,) = (note for note in checkpoint.notes if note.startswith(f"{name} of generation_config.json is "))
    assert note.endswith(": left out")


@pytest.mark.parametrize(
    ("name", "value", "off"),
    [
        ("stop_strings", ["A"], []),
        ("suppress_tokens", [40, 41], None),
        ("bad_words_ids", [[40]], []),
        ("no_repeat_ngram_size", 3, 0),
        ("typical_p", 0.5, 1.0),
        ("min_new_tokens", 5, None),
    ],
)
def test_a_recommendation_that_is_not_done_here_is_said(folder: Path, name: str, value: Any, off: Any) -> None:
    file = folder / "generation_config.json"
    change(file, **{name: value})
    (note,) = (note for note in read_checkpoint(str(folder)).notes if note.startswith(f"{name} of generation_config"))
    assert "which is not done here: left out" in note
    assert note.endswith("; give it with --stop") is (name == "stop_strings")
    file.write_text(json.dumps({name: off}))
    assert not any(name in note for note in read_checkpoint(str(folder)).notes)


# -- tokenizer -------------------------------------------------------------------------------------------------------


def change_tokenizer(folder: Path, vocabulary: dict[str, int] | None = None, **tokenizer: Any) -> None:
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["vocab"].update(vocabulary or {})
    document.update(tokenizer)
    file.write_text(json.dumps(document))


def added_token(name: str, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}


def test_a_tokenizer_whose_ids_exceed_the_vocabulary_is_refused(folder: Path) -> None:
    change_tokenizer(folder, {f"extra{number}": number for number in range(93, VOCABULARY + 4)})
    message = refusal(folder, TokenizerError)
    assert "has ids up to 99, the model's vocabulary ends at 95" in message
    assert "use the tokenizer that belongs to the model" in message


def test_an_added_token_beyond_the_vocabulary_is_a_note_unless_it_is_needed(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    beyond = [added_token(f"<extra{number}>", number) for number in range(93, VOCABULARY + 2)]
    change_tokenizer(folder, added_tokens=[*document["added_tokens"], *beyond])
    checkpoint = read_checkpoint(str(folder))
    assert any(note.startswith("2 of the tokenizer's added tokens") for note in checkpoint.notes)
    change(folder / "tokenizer_config.json", eos_token="<extra97>")
    assert "has ids up to 97" in refusal(folder, TokenizerError)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "copy tokenizer.json and tokenizer_config.json of the model" in refusal(folder, TokenizerError)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma3", "phi3", "gpt_neox"])
@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)], ids=str)
def test_a_family_whose_tokenizer_can_be_made_of_nothing_needs_its_files(
    tmp_path: Path, family: str, kept: tuple[str, ...]
) -> None:
    save_checkpoint(REQUIRED[family](), tmp_path)
    for file in tmp_path.iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors", *kept):
            file.unlink()
    message = refusal(tmp_path, TokenizerError)
    assert "has no tokenizer" in message
    assert "copy tokenizer.json and tokenizer_config.json of the model" in message


def test_a_tokenizer_without_a_vocabulary_is_refused(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    change_tokenizer(folder, model={**document["model"], "vocab": {"<pad>": 0}}, added_tokens=[])
    change(folder / "tokenizer_config.json", bos_token=None, eos_token=None, pad_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert "copy tokenizer.json" in refusal(folder, TokenizerError)


def test_a_named_template_is_used_where_it_is_the_only_one_and_none_is_the_default(folder: Path) -> None:
    change(folder / "tokenizer_config.json", chat_template=[{"name": "chat", "template": TEMPLATE}])
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.chat_template == TEMPLATE
    assert any("the chat template named chat is used" in note for note in checkpoint.notes)


def test_several_named_templates_of_which_none_is_the_default_are_refused(folder: Path) -> None:
    named = [{"name": name, "template": TEMPLATE} for name in ("tool_use", "rag")]
    change(folder / "tokenizer_config.json", chat_template=named)
    message = refusal(folder, TokenizerError)
    assert "has the chat templates rag, tool_use and none named default; name the one to use so" in message


@pytest.mark.parametrize("template", [5, ["a"], {"a": 1}, [{"name": "default", "template": 5}]], ids=str)
def test_a_template_that_is_no_text_is_refused(folder: Path, template: Any) -> None:
    change(folder / "tokenizer_config.json", chat_template=template)
    refusal(folder, TokenizerError)


def test_cutting_and_filling_left_from_training_do_not_travel(folder: Path, tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 12}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    change_tokenizer(folder, truncation=truncation, padding={**padding, "pad_to_multiple_of": None})
    assert len(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("abc").ids) == 12
    save_tokenizer(read_checkpoint(str(folder)), tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)
    assert len(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("abcdef").ids) == 6


@pytest.mark.parametrize("kept", ["in the config", "in a file", "among others", "of a processor", "not at all"])
def test_the_chat_template_travels(folder: Path, tmp_path: Path, kept: str) -> None:
    if kept == "in the config":
        change(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    elif kept == "in a file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    elif kept == "of a processor":
        change(folder / "chat_template.json", chat_template=TEMPLATE)
    elif kept == "among others":
        others = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEMPLATE}]
        change(folder / "tokenizer_config.json", chat_template=others)
    save_tokenizer(read_checkpoint(str(folder)), tmp_path)
    file = tmp_path / "chat_template.jinja"
    assert (file.read_text() if file.exists() else None) == (None if kept == "not at all" else TEMPLATE)


@pytest.fixture(scope="module", params=["adds BOS", "adds nothing"])
def both(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Tokenizer]:
    """transformers' tokenizer of a checkpoint, and the runtime's of what was saved from it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    source = Path(shutil.copytree(tiny_checkpoint, folder / "checkpoint"))
    if request.param == "adds BOS":
        backend = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        backend.save(str(source / "tokenizer.json"))
    change(source / "tokenizer_config.json", chat_template=TEMPLATE)
    checkpoint = read_checkpoint(str(source))
    save_tokenizer(checkpoint, folder)
    bundle = Bundle(
        path=folder,
        manifest=_manifest(checkpoint),
        model_path=folder / "model.onnx",
        tokenizer_path=folder / "tokenizer.json",
        chat_template=(folder / "chat_template.jinja").read_text(),
        head_path=None,
    )
    return transformers.AutoTokenizer.from_pretrained(source), Tokenizer(bundle)


def _manifest(checkpoint: Checkpoint) -> Manifest:
    return Manifest(
        base_model=checkpoint.name,
        base_revision=None,
        fingerprint="",
        architecture=checkpoint.architecture,
        precision=Precision("fp32"),
        hidden_states=HiddenStates(()),
        graph=Graph(kv="in-place"),
        tokens=checkpoint.tokens,
        sampling=checkpoint.sampling,
        files={},
        exporter={},
        parity={},
    )


# The tiny tokenizer knows these letters, and its special tokens where a text spells them out.
TEXTS = st.lists(st.sampled_from([*map(chr, range(36, 120)), "<s>", "</s>"]), min_size=1, max_size=12).map("".join)


@given(text=TEXTS)
def test_the_bundle_gives_a_text_the_ids_that_transformers_gives_it(both: tuple[Any, Tokenizer], text: str) -> None:
    reference, tokenizer = both
    plain = list(reference(text, add_special_tokens=False)["input_ids"])
    # But for the BOS that a text begins with already, which transformers puts before it once more.
    wanted = plain if plain[0] == reference.bos_token_id else list(reference(text)["input_ids"])
    assert tokenizer.encode_prompt(text, raw=True) == wanted
    assert tokenizer.encode_response(text) == plain


@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_the_bundle_gives_messages_the_ids_that_transformers_gives_them(
    both: tuple[Any, Tokenizer], texts: list[str]
) -> None:
    reference, tokenizer = both
    # Taking turns, so that the last one is the user's.
    roles = [("user", "assistant")[left % 2] for left in reversed(range(len(texts)))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    given = reference.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert tokenizer.encode_prompt(messages) == list(given["input_ids"] if hasattr(given, "keys") else given)
    if len(texts) == 1:
        assert tokenizer.encode_prompt(texts[0]) == tokenizer.encode_prompt(messages)


# -- refused ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_checkpoint_is_refused_with_what_it_holds(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    assert "holds generation_config.json, model.safetensors" in refusal(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds nothing; expected a transformers checkpoint" in refusal(empty)
    assert "model.safetensors is a file; expected" in refusal(folder / "model.safetensors")


def test_an_empty_name_is_no_model_least_of_all_the_one_in_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    read_checkpoint(".")
    with pytest.raises(ExportError, match="the name of the model is empty"):
        read_checkpoint("")


def test_a_damaged_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", ')
    assert str(folder) in refusal(folder)
    (folder / "config.json").write_text('{"model_type": "no-such-family"}')
    assert "no-such-family" in refusal(folder)


def test_a_missing_weights_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)


def test_a_damaged_weights_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert str(folder) in refusal(folder)


def test_missing_weights_are_refused_where_transformers_would_draw_random_ones(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    assert "lacks 2 of the model's weights, the first is model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=80)
    assert "mlp.down_proj.weight of shape [64, 96], its config makes it [64, 80]" in refusal(folder)


@pytest.mark.parametrize(
    ("config", "kind", "reason"),
    [
        (transformers.T5Config(vocab_size=VOCABULARY), UnsupportedModelError, "an encoder-decoder (t5)"),
        (transformers.ViTConfig(), UnsupportedModelError, "(vit) has a config without"),
        (
            transformers.CLIPTextConfig(vocab_size=VOCABULARY, hidden_size=64, num_attention_heads=4),
            UnsupportedModelError,
            "transformers has no causal LM for",
        ),
    ],
    ids=lambda value: value.model_type if isinstance(value, transformers.PretrainedConfig) else "",
)
def test_a_model_that_is_no_causal_lm_is_refused(
    folder: Path, config: transformers.PretrainedConfig, kind: type[SwiftEdgeError], reason: str
) -> None:
    config.save_pretrained(folder)
    assert reason in refusal(folder, kind)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 0),
        ("num_attention_heads", "4"),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 3),
        ("head_dim", -16),
        ("hidden_size", "64"),
        ("hidden_size", -64),
        ("hidden_size", 10**30),
        ("vocab_size", 0),
        ("vocab_size", -5),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -2),
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**400),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", None),
        ("max_position_embeddings", "128"),
        ("rope_parameters", 5),
        ("rope_parameters", {"rope_type": "nonsense", "rope_theta": 10000.0}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
        ("num_labels", 10**9),
        ("num_labels", float("inf")),
        ("hidden_act", "nonsense"),
        ("layer_types", ["mamba"] * 2),
        ("model_type", 5),
        ("model_type", "\ud800"),
        ("architectures", 5),
    ],
    ids=str,
)
def test_a_config_with_odd_values_is_refused_in_one_line_or_does_not_matter(
    folder: Path, name: str, value: Any
) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {name: value}))
    with contextlib.nullcontext() if name == "architectures" else pytest.raises(SwiftEdgeError) as caught:
        parity.record_reference(load_model(read_checkpoint(str(folder))), 128)
    if caught is not None:
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "flash_attention_2"},
        {"dtype": "float8_e4m3fn"},
        {"torch_dtype": "float8_e4m3fn", "dtype": None},
    ],
    ids=str,
)
def test_a_config_may_name_an_attention_or_a_type_of_another_machine(
    folder: Path, tiny_model: Any, fields: dict[str, Any]
) -> None:
    change(folder / "config.json", **fields)
    assert identity(load_model(read_checkpoint(str(folder)))) == identity(tiny_model)


def test_a_config_of_a_model_much_larger_than_its_files_is_refused_before_memory_is_taken(folder: Path) -> None:
    change(folder / "config.json", head_dim=10**6)
    assert "numbers, its config makes a model of " in refusal(folder)


@pytest.mark.parametrize("kind", [RuntimeError, AttributeError, ZeroDivisionError, KeyError, TypeError])
def test_whatever_a_config_raises_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def raises(self: Any) -> Any:
        raise kind("it depends on\nthe layer")

    # As the configs of models whose layers differ do, which keep no single value.
    property_that_raises = property(raises, lambda *_: None)
    monkeypatch.setattr(transformers.LlamaConfig, "num_key_value_heads", property_that_raises, raising=False)
    assert str(folder) in refusal(folder)


@pytest.mark.skipif(not hasattr(transformers, "Gemma4TextConfig"), reason="the family is not there")
def test_a_model_whose_layers_differ_in_size_is_refused_as_such(folder: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    transformers.Gemma4TextConfig(**sizes, head_dim=16, global_head_dim=32, layer_types=kinds).save_pretrained(folder)
    assert "has layers of different sizes" in refusal(folder, UnsupportedModelError)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[]", "5", "null", "{", "[" * 100_000, "9" * 5000, '{"a": ' + "9" * 5000 + "}"])
def test_a_json_file_that_holds_no_object_is_refused(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    assert str(folder / name) in refusal(folder)


def test_a_config_too_large_to_be_one_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(20 * 1024**3)
    assert "has 20.00 GiB; expected at most 16.0 MiB" in refusal(folder)


def test_a_hub_id_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("nobody-at-all/no-such-model")
    assert "nobody-at-all/no-such-model is no folder here and could not be read from the hub" in message
    assert "check the name, the connection, or log in" in message


def test_code_of_the_checkpoint_is_not_run_unasked(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "if you trust it: --trust-remote-code" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def identity(model: Any) -> str:
    return fingerprint(sorted(model.named_parameters()))


# -- fingerprint -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_values_not_of_the_type_they_were_saved_in(tmp_path: Path) -> None:
    config = REQUIRED["qwen2"]()  # its embedding is its output layer too
    model = make_model(config).to(torch.bfloat16)
    prints = set()
    for dtype in (torch.bfloat16, torch.float32):
        folder = save_checkpoint(config, tmp_path / str(dtype))
        model.to(dtype).save_pretrained(folder)
        prints.add(identity(load_model(read_checkpoint(str(folder)))))
    assert len(prints) == 1


def test_the_fingerprint_changes_with_any_weight_and_with_nothing_else(folder: Path, tiny_model: Any) -> None:
    first = identity(tiny_model)
    assert identity(load_model(read_checkpoint(str(folder)))) == first
    tensors = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.layers.0.input_layernorm.weight"):
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[-1] += 1e-3
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert identity(load_model(read_checkpoint(str(folder)))) != first


def test_a_fingerprint_holds_one_weight_at_a_time() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(3):
            assert not any(weight() is not None for weight in made), "the one before is still there"
            weight = torch.full((4,), float(number))
            made.append(weakref.ref(weight))
            yield f"weight {number}", weight
            del weight

    assert len(fingerprint(weights())) == 64
    assert len(made) == 3
