"""Tiny random checkpoints of real config classes: one builder per family, seeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 96
TRANSFORMERS = tuple(int(part) for part in transformers.__version__.split(".")[:2])

# Small widths that still exercise what the family is about: heads of 16 so that rotary can be lowered, grouped KV
# heads, windows shorter than the sequences of the parity check.
_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.1 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
_HYBRID = ["sliding_attention", "full_attention", "sliding_attention"]


def _rope(parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Rope settings under the names that the installed transformers reads."""
    if TRANSFORMERS >= (5, 0):
        return {"rope_parameters": {**parameters, **more}}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    if scaling["rope_type"] == "longrope":  # before 5, these three and no others
        scaling = {"type": "longrope", **{name: scaling[name] for name in ("short_factor", "long_factor")}}
    return {"rope_theta": parameters["rope_theta"], "rope_scaling": scaling}


def _partial_rotary(factor: float) -> dict[str, Any]:
    if TRANSFORMERS >= (5, 0):
        return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}}
    return {"partial_rotary_factor": factor}


def _config(class_name: str, **changes: Any) -> Callable[[], transformers.PretrainedConfig]:
    def make() -> transformers.PretrainedConfig:
        return getattr(transformers, class_name)(**{**_LLAMA_LIKE, **changes})

    return make


# The families that have to export and pass parity.
REQUIRED: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": _config("LlamaConfig"),
    "llama-3.x-rope": _config("LlamaConfig", **_rope(_LLAMA3_ROPE)),
    "qwen2": _config("Qwen2Config", tie_word_embeddings=True),
    "qwen3": _config("Qwen3Config", head_dim=32),
    "mistral-sliding": _config("MistralConfig", sliding_window=7),
    "gemma2": _config("Gemma2Config", head_dim=16, sliding_window=6, query_pre_attn_scalar=16, layer_types=_HYBRID),
    "gemma3": _config("Gemma3TextConfig", head_dim=16, sliding_window=5, query_pre_attn_scalar=16, layer_types=_HYBRID),
    "phi3": _config("Phi3Config"),
    "phi3-partial-rotary": _config("Phi3Config", num_attention_heads=2, num_key_value_heads=1, **_partial_rotary(0.5)),
    "phi3-longrope": _config("Phi3Config", original_max_position_embeddings=64, **_rope(_LONG_ROPE, type="longrope")),
    "smollm3": _config("SmolLM3Config", no_rope_layers=[1, 0, 1]),
    "olmo2": _config("Olmo2Config"),
    "granite": _config(
        "GraniteConfig",
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=64, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        **({"rotary_pct": 0.5} if TRANSFORMERS < (5, 0) else _partial_rotary(0.5)),
    ),
    "starcoder2": _config("Starcoder2Config", sliding_window=9, use_bias=True),
    "llama-narrow-heads": _config("LlamaConfig", hidden_size=48),  # of 12, which no attention kernel takes
}
if TRANSFORMERS >= (5, 24):  # its attention could not be replaced before
    REQUIRED["gptj"] = lambda: transformers.GPTJConfig(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=64,
        n_layer=3,
        n_head=4,
        rotary_dim=8,
        bos_token_id=1,
        eos_token_id=2,
    )


def make_model(config: transformers.PretrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A model with random weights: every parameter moved off its initial value, so that no norm weight is one."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough that a wrong position or a lost window shows, whatever the initial scale was.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save_checkpoint(config: transformers.PretrainedConfig, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint folder of the kind `swift-edge export` takes, with a tokenizer of the same vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    make_model(config, seed).save_pretrained(folder)
    letters = {chr(33 + index): index for index in range(3, VOCABULARY - 3)}
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **letters}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    return folder
