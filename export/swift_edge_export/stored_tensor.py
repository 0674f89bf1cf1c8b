"""What a file says of a tensor, before it is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Types whose numbers are the weights themselves; those of any other type are codes of something."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is, and what its file says of it."""

    path: Path
    """the file"""
    shape: tuple[int, ...]
    """its shape"""
    dtype: str
    """its type, one of `FLOATS` or as the file calls it"""


def layer_number(name: str) -> int | None:
    """The first number in the name of a tensor, which is that of its layer."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
