"""Tiny random models of every family that GGUF files are exported from, against llama.cpp.

    pip install llama-cpp-python
    python tests/bench/gguf_families.py FOLDER

Writes each as a file of F32 weights into FOLDER, reads it as `swift-edge export` does, and compares the logits of torch
with those of llama.cpp, which keeps keys and values in fp16.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

from gguf_files import ARCHITECTURES, VOCABULARY, byte_level_metadata, family_model, metadata_of, tensors_of, write_gguf

from swift_edge_export.checkpoint import read_checkpoint
from swift_edge_export.loading import load_model

IDS = list(range(3, 60))
YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
LONG = {"original_context_length": 512, "attn_factor": 1.05}
# Beside the families as they are: what only metadata says.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear rope": ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "qwen2, yarn": ("qwen2", {f"rope.scaling.{name}": value for name, value in YARN.items()}),
    "phi3, longrope within its short context": (
        "phi3-longrope",
        {"context_length": 1024} | {f"rope.scaling.{name}": value for name, value in LONG.items()},
    ),
    "gemma3, linear rope": ("gemma3", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "gemma3, another base in windows": ("gemma3", {"rope.freq_base_swa": 5000.0}),
    "gemma3, every second layer a window": ("gemma3", {"attention.sliding_window_pattern": 2}),
    "gemma3, soft cap": ("gemma3", {"final_logit_softcapping": 5.0}),
}


def file_of(family: str, changes: dict[str, Any], path: Path) -> Path:
    model, architecture = family_model(family), ARCHITECTURES[family]
    metadata = metadata_of(model.config, architecture) | byte_level_metadata()
    metadata |= {f"{architecture}.{name}": value for name, value in changes.items()}
    # llama.cpp wants a token for every row.
    missing = VOCABULARY - len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] += [f"unused {token}" for token in range(missing)]
    metadata["tokenizer.ggml.token_type"] += [5] * missing
    return write_gguf(path, metadata, tensors_of(model, architecture))


def compare(name: str, path: Path) -> None:
    with torch.no_grad():
        ours = load_model(read_checkpoint(str(path)))(torch.tensor([IDS])).logits[0].numpy()
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, flash_attn=False)
    model.eval(IDS)
    theirs = model.scores[: len(IDS)]
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    agreed = (ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean()
    print(f"{name:42} relative error {error:.1e}, most likely tokens agree at {agreed:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the files")
    folder = parser.parse_args().folder
    # llama.cpp's shortest context is longer than the short one of the family as it is.
    plain = {family: (family, dict[str, Any]()) for family in ARCHITECTURES if family != "phi3-longrope"}
    for number, (name, (family, changes)) in enumerate((plain | VARIANTS).items()):
        compare(name, file_of(family, changes, folder / f"{number}.gguf"))


if __name__ == "__main__":
    main()
