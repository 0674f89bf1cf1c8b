"""Write a checkpoint as an OpenVINO model with int4 weights: symmetric, groups of 128, every matrix.

    python write_openvino.py CHECKPOINT FOLDER

Without a tokenizer: token ids go in and come out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig


def write(checkpoint: Path, folder: Path) -> None:
    """Export, pack and save; embedding and output layer are packed to 4 bits, too, as swift-edge does it."""
    packing = OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0, all_layers=True)
    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, quantization_config=packing)
    model.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.checkpoint, arguments.folder)
