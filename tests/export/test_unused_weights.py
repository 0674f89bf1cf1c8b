"""What lies in the files of a checkpoint and would not be in the bundle is refused by name, loaded or streamed."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import REQUIRED, VOCABULARY, save_checkpoint
from safetensors.torch import load_file, save_file

from swift_edge.errors import ExportError
from swift_edge_export import preflight as room
from swift_edge_export import streaming
from swift_edge_export.checkpoint import read_checkpoint
from swift_edge_export.loading import fingerprint, load_model, stored_tensors
from swift_edge_export.publish import export_bundle
from swift_edge_export.streaming import StreamedModel

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1"


@pytest.fixture(params=["loaded", "streamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which weights are read."""
    monkeypatch.setattr(streaming, "PLACEHOLDER_NUMBERS", 512)
    if request.param == "streamed":
        monkeypatch.setattr(room, "MOST_LOADED", 0)
    return str(request.param)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **fields: Any) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | fields))


def refusal(folder: Path) -> str:
    """The one line with which an export of the folder is refused, before anything is traced."""
    report: list[str] = []
    with pytest.raises(ExportError) as caught:
        export_bundle(str(folder), folder.parent / "bundle", report=report.append)
    assert not any(line.startswith("trace") for line in report)
    assert not (folder.parent / "bundle").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def taken(folder: Path, way: str) -> tuple[str, list[str]]:
    """The fingerprint of what is taken from the files, and what is said of the rest."""
    checkpoint, notes = read_checkpoint(str(folder)), list[str]()
    if way == "loaded":
        return fingerprint(stored_tensors(load_model(checkpoint, notes.append))), notes
    streamed = StreamedModel(checkpoint)
    return fingerprint(streamed.weights()), streamed.notes


def as_codes(tensors: Tensors) -> None:
    """Store the projections as FP8 codes with scales."""
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name] = (tensors[name] * 100).to(torch.float8_e4m3fn)
        tensors[name.removesuffix("weight") + "weight_scale"] = torch.tensor(0.01)
        tensors[name.removesuffix("weight") + "input_scale"] = torch.tensor(1.0)


def add(**tensors: torch.Tensor) -> Callable[[Tensors], Any]:
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return lambda all_tensors: all_tensors.update(named)


ADAPTERS = {
    f"{LAYER}.self_attn.q_proj.lora_A.weight": torch.ones(4, 64),
    f"{LAYER}.self_attn.q_proj.lora_B.weight": torch.ones(64, 4),
}
BIASES = {f"model.layers.{layer}.self_attn.{each}_proj.bias": torch.ones(16) for layer in (0, 1) for each in "kv"}
UNUSED: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "fp8 with scales": (as_codes, r"holds 28 weights .*layers\.0\.mlp\.down_proj\.input_scale.* 25 more; .*quantised"),
    "biases": (
        lambda tensors: tensors.update(BIASES),
        r"holds 4 weights .*0\.self_attn\.k_proj\.bias.* use the config",
    ),
    "an adapter that was not merged": (lambda tensors: tensors.update(ADAPTERS), r"holds 2 weights .*lora_A.* merge"),
    "a layer too many": (
        lambda tensors: tensors.update(
            {name.replace(LAYER, "model.layers.2"): each.clone() for name, each in tensors.items() if LAYER in name}
        ),
        r"holds 9 weights that LlamaForCausalLM does not use, .*model\.layers\.2\.input_layernorm\.weight",
    ),
    "a value head": (add(v_head__summary__weight=torch.ones(1, 64)), r"holds 1 weight .*v_head\.summary\.weight"),
    "a classifier": (add(score__weight=torch.ones(2, 64)), r"holds 1 weight .*score\.weight"),
    "codes of 4 bits": (
        lambda tensors: tensors.update({f"{LAYER}.mlp.up_proj.qweight": torch.ones(8, 96, dtype=torch.int32)}),
        r"up_proj\.qweight; .*quantised",
    ),
    "what bitsandbytes leaves": (
        lambda tensors: tensors.update({f"{LAYER}.mlp.up_proj.weight.absmax": torch.ones(8)}),
        r"up_proj\.weight\.absmax; .*quantised",
    ),
    "a bias with the name of a mask": (
        lambda tensors: tensors.update({f"{LAYER}.self_attn.bias": torch.ones(64)}),
        r"self_attn\.bias",
    ),
}


@pytest.mark.parametrize("kind", UNUSED)
def test_weights_that_nothing_uses_are_refused_with_their_names(folder: Path, way: str, kind: str) -> None:
    change, words = UNUSED[kind]
    change_weights(folder, change)
    assert re.search(words, refusal(folder))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_codes_without_scales_are_refused(folder: Path, way: str, dtype: torch.dtype) -> None:
    name = f"{LAYER}.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors.update({name: (tensors[name] * 100).to(dtype)}))
    assert f"holds {name} as " in (message := refusal(folder))
    assert "codes without what they stand for" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_where_no_check_meets_them(
    folder: Path, way: str, value: float
) -> None:
    # The embedding of a token that the rows of the parity check happen not to hold.
    change_weights(folder, lambda tensors: tensors["model.embed_tokens.weight"][-1].fill_(value))
    assert "holds NaN or infinity in model.embed_tokens.weight" in refusal(folder)


@pytest.mark.skipif(not hasattr(transformers, "Gemma4TextConfig"), reason="the family is not there")
def test_what_a_model_keeps_beside_its_parameters_counts_as_weights_do(tmp_path: Path, way: str) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16}
    config = transformers.Gemma4TextConfig(
        **sizes, **heads, num_kv_shared_layers=0, hidden_size_per_layer_input=0, layer_types=["full_attention"] * 2
    )
    folder = save_checkpoint(config, tmp_path / "checkpoint")
    before, _ = taken(folder, way)
    change_weights(folder, lambda tensors: tensors[f"{LAYER}.layer_scalar"].fill_(0.5))
    assert taken(folder, way)[0] != before
    change_weights(folder, lambda tensors: tensors[f"{LAYER}.layer_scalar"].fill_(float("nan")))
    assert f"holds NaN or infinity in {LAYER}.layer_scalar" in refusal(folder)


HARMLESS: dict[str, tuple[str, Tensors, str]] = {
    "rotary frequencies": ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, ""),
    "masks": (
        "gpt2",
        {
            "h.0.attn.bias": torch.ones(1, 1, 128, 128, dtype=torch.bool),
            "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
        },
        "",
    ),
    "a vision tower": (
        "llama",
        {"vision_tower.blocks.0.weight": torch.ones(64, 64), "multi_modal_projector.weight": torch.ones(64, 64)},
        "2 weights for pictures or sound left out",
    ),
    "biases of zeros and what is empty": (
        "llama",
        {
            "model.layers.0.self_attn.q_proj.bias": torch.zeros(64),
            "model.layers.0.self_attn.q_proj._extra_state": torch.zeros(0, dtype=torch.uint8),
        },
        "",
    ),
    "a head that drafts": (
        "llama",
        {"mtp.layers.0.mlp.up_proj.weight": torch.ones(64, 64)},
        "1 weight for drafts of later tokens left out",
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_a_model_does_not_need_is_let_through_and_said(tmp_path: Path, way: str, kind: str) -> None:
    family, more, note = HARMLESS[kind]
    folder = save_checkpoint(REQUIRED[family](), tmp_path / "checkpoint")
    plain, _ = taken(folder, way)
    change_weights(folder, lambda tensors: tensors.update(more))
    again, notes = taken(folder, way)
    assert again == plain
    assert [line.partition(":")[0] for line in notes] == ([note] if note else [])


def test_a_layer_that_drafts_is_let_through_only_where_the_config_counts_it(folder: Path, way: str) -> None:
    drafting = {"model.layers.2.eh_proj.weight": torch.ones(64, 128), "model.layers.2.enorm.weight": torch.ones(64)}
    change_weights(folder, lambda tensors: tensors.update(drafting))
    assert "holds 2 weights" in refusal(folder)
    set_config(folder, num_nextn_predict_layers=1)
    _, notes = taken(folder, way)
    assert [line.partition(":")[0] for line in notes] == ["2 weights for drafts of later tokens left out"]


def under(prefix: str, *endings: str) -> Callable[[Tensors], Any]:
    """Put a prefix before all names, or before the last part of those that end so."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if not endings or name.endswith(endings)]:
            before, dot, last = name.rpartition(".") if endings else ("", "", name)
            tensors[f"{before}{dot}{prefix}{last}"] = tensors.pop(name)

    return change


INSTEAD: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "a compiled model": (
        under("_orig_mod."),
        r"_orig_mod\.lm_head.* _orig_mod\. stands before its names: save the model",
    ),
    "one of several processes": (under("module."), r"module\. stands before its names: save the model itself"),
    "a part of another": (under("language_model."), r"language_model\. stands before its names"),
    "what an adapter wraps": (
        under("base_layer.", "q_proj.weight"),
        r"lacks 2 .*q_proj\.weight; it holds .* merge the",
    ),
    "codes": (
        under("q", "up_proj.weight"),
        r"lacks 2 .*it holds .*up_proj\.qweight.* these belong to a quantised model",
    ),
    "fused projections": (
        lambda tensors: tensors.update({f"{LAYER}.mlp.both.weight": tensors.pop(f"{LAYER}.mlp.up_proj.weight")}),
        r"lacks 1 .*it holds model\.layers\.1\.mlp\.both\.weight instead; use the config that belongs to the weights$",
    ),
}


@pytest.mark.parametrize("kind", INSTEAD)
def test_what_lies_in_the_place_of_missing_weights_is_named(folder: Path, way: str, kind: str) -> None:
    change, words = INSTEAD[kind]
    change_weights(folder, change)
    assert re.search(words, refusal(folder))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_a_model_is_refused(folder: Path, way: str, name: str) -> None:
    (folder / name).write_text("{}")
    assert f"holds an adapter ({name}), which an export would leave out; merge it" in refusal(folder)


def test_a_folder_with_an_adapter_alone_is_refused_as_such(folder: Path, way: str) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "holds an adapter" in refusal(folder)


# -- several files ---------------------------------------------------------------------------------------------------


def index_of(folder: Path, where: dict[str, str]) -> None:
    document = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def split(folder: Path, **changed: torch.Tensor) -> None:
    """Split the weights over two files, the norm of the end in both; `changed` replaces it in the second."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(names)}
    for shard in sorted(set(where.values())):
        part = {name: tensors[name] for name in names if where[name] == shard}
        part["model.norm.weight"] = tensors["model.norm.weight"]
        if shard.startswith("model-00002"):
            part.update({name.replace("__", "."): each for name, each in changed.items()})
        save_file(part, folder / shard, metadata={"format": "pt"})
    index_of(folder, where)


def test_a_weight_in_two_shards_with_different_values_is_refused(folder: Path, way: str) -> None:
    split(folder, model__norm__weight=torch.full((64,), 3.0))
    assert "holds model.norm.weight in model-00001-of-00002.safetensors and in model-00002" in refusal(folder)


def test_a_weight_that_the_index_does_not_list_is_loaded_as_transformers_does(folder: Path, way: str) -> None:
    plain = taken(folder, way)
    split(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    index_of(folder, {name: shard for name, shard in index.items() if "up_proj" not in name})
    assert taken(folder, way) == plain


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"weight_map": {"a": "model-00009-of-00009.safetensors"}}', "has no model-00009-of-00009.safetensors, which"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "is no index of weights"),
        ('{"weight_map": ["a"]}', "is no index of weights"),
        ('{"weight_map": {"a": 5}}', "is no index of weights"),
        ("[]", "is no index of weights"),
        ("{", "is no index of weights"),
    ],
    ids=str,
)
def test_an_index_that_does_not_read_or_names_a_file_that_is_not_there_is_refused(
    folder: Path, way: str, content: str, words: str
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    assert words in refusal(folder)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "shards"])
def test_two_sets_of_weights_side_by_side_are_refused_only_where_they_differ(
    folder: Path, way: str, other: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    plain = taken(folder, way)
    if other == "shards":
        split(folder)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / other)
    assert taken(folder, way) == plain
    change_weights(folder, lambda tensors: tensors["lm_head.weight"].mul_(2))
    message = refusal(folder)
    assert message.startswith("model.safetensors and ")
    assert "with different values of lm_head.weight, and transformers loads the former" in message


def test_a_pickled_checkpoint_with_a_weight_too_many_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | ADAPTERS, folder / "pytorch_model.bin")
    assert "holds 2 weights" in refusal(folder)


def test_one_weight_under_two_names_is_refused_where_the_values_differ(folder: Path, way: str) -> None:
    change_weights(folder, lambda tensors: tensors.update({"norm.weight": torch.full((64,), 3.0)}))
    assert "holds norm.weight and model.norm.weight, names of one weight, with different values" in refusal(folder)


def test_one_weight_of_a_wrapped_model_under_two_names_is_refused_where_the_values_differ(
    tmp_path: Path, way: str
) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**sizes, **heads), vision_config={**vision, "image_size": 28}
    )
    folder = save_checkpoint(config, tmp_path / "checkpoint")
    names = ("language_model.model.norm.weight", "model.language_model.norm.weight")
    norm = next(tensor for name, tensor in load_file(folder / "model.safetensors").items() if name in names)
    plain = taken(folder, way)
    change_weights(folder, lambda tensors: tensors.update({name: norm.clone() for name in names}))
    assert taken(folder, way) == plain
    change_weights(folder, lambda tensors: tensors[names[1]].add_(1))
    assert re.search(r"holds \S+norm\.weight and \S+norm\.weight, names of one weight", refusal(folder))


@pytest.mark.parametrize("level", ["model", "state_dict"])
def test_a_pickle_with_the_weights_one_level_down_is_refused_with_what_it_holds(folder: Path, level: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({level: tensors, "step": 5}, folder / "pytorch_model.bin")
    assert f"does not read (it holds {level}, step; expected tensors by name)" in refusal(folder)


def test_a_pickle_that_would_run_code_is_refused_without_the_advice_to_run_it(folder: Path, way: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Path("x")}, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pytorch_model.bin" in message
    assert "no pickle of tensors alone" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_name_that_torch_would_search_for_minutes_is_refused_before(folder: Path, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x" * 70_000: torch.zeros(1)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert "pytorch_model.bin" in (message := refusal(folder))
    assert "its pickle holds a text of 70000 characters" in message


def test_weights_that_are_packed_are_refused_before_they_unpack(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "plain.bin")
    with zipfile.ZipFile(folder / "plain.bin") as plain, zipfile.ZipFile(folder / "pytorch_model.bin", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    assert "pytorch_model.bin" in (message := refusal(folder))
    assert "its tensors are packed" in message


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "modelopt", "nonsense", None])
def test_a_config_of_quantised_weights_is_refused(folder: Path, way: str, method: str | None) -> None:
    set_config(folder, quantization_config={"quant_method": method, "load_in_4bit": True})
    assert "has a quantization_config" in refusal(folder)
