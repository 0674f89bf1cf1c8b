"""Whether two sets of weights are of one base model: the same architecture and sizes under the same name.

A model travels as a hub repository, a folder, a GGUF file or a quantised copy of these. Their weights, and so their
fingerprints, differ; what a head learned from one mostly holds for the others.
"""

import re
from typing import Final

from swift_edge.bundle.manifest import Architecture

_COMPARED: Final = (
    "model_type",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""What kin share. A vocabulary may be padded, and a context cut short, without another model."""
_ANY_MODELS: Final = frozenset({"", "model", "checkpoint", "final", "latest", "main", "out", "output"})
"""Names of folders that say nothing about the model in them."""
_FORMAT: Final = re.compile(
    r"[\s._-](?:i?q[1-8](?:_[0-9a-z]+)*"  # q4_k_m, iq2_xs
    r"|(?:bf|fp|f|int|nf|mxfp)\d+|w\d+a\d+|\d+-?bits?"
    r"|awq|gptq|gguf|ggml|exl2|mlx|onnx|bnb|hf|quant(?:i[sz]ed)?)$"
)
"""How the weights are stored, at the end of a name."""
_SEPARATORS: Final = re.compile(r"[\s_-]+|(?<!\d)\.|\.(?!\d)")
"""What stands between words of a name; a point within a number is part of it."""


def plain_name(name: str) -> str:
    """A model's name without its owner or folder, and without what says how its weights are stored.

    Case and what separates words do not count. `instruct`, `chat` and the like do: those are other models.

    >>> plain_name("Qwen/Qwen2.5-Coder-0.5B-Instruct")
    'qwen2.5coder0.5binstruct'
    >>> plain_name("models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf") == plain_name("Qwen2.5 Coder 0.5B Instruct AWQ")
    True
    """
    last = re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1].lower()
    while (shorter := _FORMAT.sub("", last)) != last:
        last = shorter
    return _SEPARATORS.sub("", last)


def other_weights(fingerprint: str, other: str) -> bool:
    """Whether two fingerprints are of different weights; an empty one is unknown, and may be of the same."""
    return bool(fingerprint and other) and fingerprint != other


def are_kin(name: str, architecture: Architecture | None, other_name: str, other: Architecture | None) -> bool:
    """Whether two models are the same but for their weights; never where one does not say its name or its sizes."""
    if architecture is None or other is None or plain_name(name) in _ANY_MODELS:
        return False
    same = all(getattr(architecture, field) == getattr(other, field) for field in _COMPARED)
    return same and plain_name(name) == plain_name(other_name)
