"""Make a checkpoint that figures are measured on: a real model's shape, random bfloat16 weights, no download.

    python tests/bench/random_checkpoint.py SHAPE FOLDER [--layers 2]

The tokenizer knows the words w0, w1, ...: a prompt of N words has N tokens. Two layers are enough to try something out.
The weights are written file by file: 8 B parameters take 16 GB of disk and 5 GB of memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

LLAMA_3: dict[str, Any] = {
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128_000,
    "eos_token_id": 128_009,
}
LLAMA_3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
    "rope_theta": 500_000.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, PretrainedConfig] = {
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=151_643,
        eos_token_id=151_645,
    ),
    "llama-3.2-3b": LlamaConfig(
        **LLAMA_3,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters=LLAMA_3_ROPE | {"factor": 32.0},
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": LlamaConfig(
        **LLAMA_3,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters=LLAMA_3_ROPE | {"factor": 8.0},
        tie_word_embeddings=False,
    ),
}
FILE_BYTES = 2 * 10**9
# Drawing billions of numbers takes minutes: these are drawn, and used over and over. Their count is a prime, so that no
# two rows of a matrix, nor two matrices, begin at the same number.
DRAWN = 33_554_393
# Where layers only ever add noise to noise, the errors of int4 grow from one to the next, until 32 of them give an
# output that has nothing to do with that of fp32. A trained model's layers change what they get by little: so do these,
# if what they get is large. A table that is the output layer as well has to stay small, or the model repeats itself.
EMBEDDING_SCALE = 1024


def make_checkpoint(config: PretrainedConfig, folder: Path) -> None:
    """Write config, random weights and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM" if config.model_type == "llama" else "Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    save_weights(config, folder)
    words = config.bos_token_id
    vocabulary = {f"w{index}": index for index in range(words)}
    vocabulary["<|begin|>"] = config.bos_token_id
    vocabulary["<|end|>"] = config.eos_token_id
    vocabulary["<|padding|>"] = config.bos_token_id + 1
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|padding|>")
    fast.save_pretrained(folder)


def save_weights(config: PretrainedConfig, folder: Path) -> None:
    """Write random weights, distributed as those of a new model, into files of at most 2 GB."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    parameters = dict(model.named_parameters())  # tied weights are there once
    files: list[list[str]] = [[]]
    for name, parameter in parameters.items():
        if files[-1] and sum(parameters[held].nbytes for held in files[-1]) + parameter.nbytes > FILE_BYTES:
            files.append([])
        files[-1].append(name)
    numbers = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).mul_(config.initializer_range).bfloat16()
    first = 0
    where: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        file = SAFE_WEIGHTS_NAME
        if len(files) > 1:
            file = file.replace(".", f"-{number:05}-of-{len(files):05}.")
        weights = {}
        for name in names:
            shape = parameters[name].shape
            if len(shape) == 1:
                weights[name] = torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
                continue
            repeats = -(-shape.numel() // DRAWN)
            weights[name] = numbers.roll(-first).repeat(repeats)[: shape.numel()].reshape(shape)
            if "embed_tokens" in name and not config.tie_word_embeddings:
                weights[name] = weights[name] * EMBEDDING_SCALE
            first += shape.numel()
        save_file(weights, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(files) > 1:
        size = sum(parameter.nbytes for parameter in parameters.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    arguments = parser.parse_args()
    chosen = SHAPES[arguments.shape]
    if arguments.layers is not None:
        chosen.num_hidden_layers = arguments.layers
        if getattr(chosen, "layer_types", None):
            chosen.layer_types = chosen.layer_types[: arguments.layers]
    make_checkpoint(chosen, arguments.folder)
