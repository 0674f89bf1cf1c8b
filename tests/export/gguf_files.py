"""Writes GGUF files from models of transformers, as the converters of llama.cpp do: names, order of rows, metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import REQUIRED, make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel

gguf: Any = pytest.importorskip("gguf")  # the extra `optimum` does without

VOCABULARY = 320
CORPUS = ["the cat sat on the mat, and the dog sat on the cat", "I'm 12345 years old  and tall", "über die Brücke 你好"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What a family is called in these files, and the metadata that only it has.
ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "llama-3.x-rope": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "phi3": "phi3",
    "phi3-partial-rotary": "phi3",
    "phi3-longrope": "phi3",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "granite": "granite",
    "starcoder2": "starcoder2",
    "gpt2": "gpt2",
}


def family_model(family: str) -> PreTrainedModel:
    """A tiny model of a family as GGUF files can hold it."""
    config: Any = REQUIRED[family]()
    config.vocab_size = VOCABULARY
    config.pad_token_id = config.bos_token_id = None
    if family == "smollm3":  # these files do not say which layers have no positions: every fourth
        config.num_hidden_layers, config.no_rope_layers = 4, [1, 1, 1, 0]
        config.layer_types = ["full_attention"] * 4
    if family == "gemma2":
        config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    if family == "gemma3":
        config.num_hidden_layers = 6
        config.layer_types = ["sliding_attention"] * 5 + ["full_attention"]
    if family == "starcoder2":
        config.sliding_window = None
    return make_model(config)


def byte_level_tokenizer() -> Tokenizer:
    """Trained on a few words, with the cuts of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level_metadata() -> dict[str, Any]:
    """The keys of `byte_level_tokenizer`."""
    import json

    model = json.loads(byte_level_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if text.startswith("<|") else 1 for text in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def metadata_of(config: Any, architecture: str) -> dict[str, Any]:
    """What converters write of a config."""
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    full = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", heads),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": getattr(config, "norm_epsilon", getattr(config, "layer_norm_epsilon", None)),
        "rope.freq_base": full.get("rope_theta"),
        "rope.dimension_count": int(head_dim * full.get("partial_rotary_factor", 1.0)) if full else None,
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.value_length": getattr(config, "head_dim", None),
        "attention.scale": getattr(config, "attention_multiplier", None),
        "embedding_scale": getattr(config, "embedding_multiplier", None),
        "residual_scale": getattr(config, "residual_multiplier", None),
        "logit_scale": getattr(config, "logits_scaling", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "attention.sliding_window": config.sliding_window if architecture in ("gemma2", "gemma3") else None,
    }
    if full.get("rope_type") == "longrope":
        keys["rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
        factor = config.max_position_embeddings / full["original_max_position_embeddings"]
        keys["rope.scaling.attn_factor"] = float(
            np.sqrt(1 + np.log(factor) / np.log(full["original_max_position_embeddings"]))
        )
    named = {f"{architecture}.{name}": value for name, value in keys.items() if value is not None}
    return {"general.architecture": architecture, "general.name": "Tiny", **named}


def tensors_of(model: PreTrainedModel, architecture: str) -> dict[str, torch.Tensor]:
    """Weights under the names, and in the order, of these files."""
    config: Any = model.config
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors = {}
    for name, weight in model.named_parameters():  # tied ones once
        if architecture in ("llama", "granite", "smollm3") and (part := re.search(r"\.(q|k)_proj\.", name)):
            heads = config.num_attention_heads if part[1] == "q" else config.num_key_value_heads
            weight = weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            weight = weight + 1
        if architecture == "gpt2" and re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name):
            weight = weight.T
        found = names.get_name(name, (".weight", ".bias"))
        assert found is not None, name
        tensors[found] = weight.detach().contiguous()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, 16, 2) / 16)
        tensors["rope_freqs.weight"] = plain / model.model.rotary_emb.inv_freq  # type: ignore[operator, union-attr]
    if rope.get("rope_type") == "longrope":
        tensors["rope_factors_long.weight"] = torch.tensor(rope["long_factor"])
        tensors["rope_factors_short.weight"] = torch.tensor(rope["short_factor"])
    return tensors


def coded(weight: torch.Tensor, kind: str) -> np.ndarray[Any, Any]:
    """A weight in a type of these files; what has one axis, or no whole blocks, stays as it is."""
    array = weight.float().numpy()
    number = gguf.GGMLQuantizationType[kind]
    if array.ndim < 2 or array.shape[-1] % gguf.GGML_QUANT_SIZES[number][0]:
        return array
    return gguf.quants.quantize(array, number)


def decoded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """What a weight is once it was stored in a type."""
    array = coded(weight, kind)
    if array.dtype == np.float32:
        return weight.float()
    return torch.from_numpy(gguf.quants.dequantize(array, gguf.GGMLQuantizationType[kind]))


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    kind: Callable[[str], str] | str = "F32",
) -> Path:
    """Write a file of any metadata and tensors; `kind` says how each is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key != "general.architecture":
            add_value(writer, key, value)
    for name, weight in tensors.items():
        chosen = kind if isinstance(kind, str) else kind(name)
        array = coded(weight, chosen)
        plain = array.dtype in (np.float32, np.float16)
        writer.add_tensor(name, array, raw_dtype=None if plain else gguf.GGMLQuantizationType[chosen])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def family_file(family: str, path: Path, kind: str = "F32", **changes: Any) -> tuple[Path, PreTrainedModel]:
    """A file of a tiny model, and the model."""
    model = family_model(family)
    architecture = ARCHITECTURES[family]
    metadata = metadata_of(model.config, architecture) | byte_level_metadata() | changes
    return write_gguf(path, metadata, tensors_of(model, architecture), kind), model
