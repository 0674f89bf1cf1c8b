"""What is read from a checkpoint before it is traced: ids, sampling, tokenizer, template; and what is refused there."""

from __future__ import annotations

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


def test_cutting_and_filling_left_from_training_do_not_travel(folder: Path, tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 12}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    change_tokenizer(folder, truncation=truncation, padding={**padding, "pad_to_multiple_of": None})
    assert len(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("abc").ids) == 12
    save_tokenizer(read_checkpoint(str(folder)), tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)
    assert len(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("abcdef").ids) == 6


@pytest.mark.parametrize("kept", ["in the config", "in a file", "among others", "not at all"])
def test_the_chat_template_travels(folder: Path, tmp_path: Path, kept: str) -> None:
    if kept == "in the config":
        change(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    elif kept == "in a file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
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
    assert tokenizer.encode_prompt(text, raw=True) == list(reference(text)["input_ids"])
    assert tokenizer.encode_response(text) == list(reference(text, add_special_tokens=False)["input_ids"])


@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_the_bundle_gives_messages_the_ids_that_transformers_gives_them(
    both: tuple[Any, Tokenizer], texts: list[str]
) -> None:
    reference, tokenizer = both
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
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
