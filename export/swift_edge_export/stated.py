"""What the files of a checkpoint state, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from swift_edge.errors import ExportError
from swift_edge.records import shown
from swift_edge.system.documents import DocumentError, read_json


def read_stated(source: str, revision: str | None, name: str) -> dict[str, Any]:
    """What a JSON file of the checkpoint states, and nothing else; empty without the file."""
    try:
        # transformers' own classes fill in defaults, which cannot be told from what the makers wrote afterwards.
        file = cached_file(source, name, revision=revision)
    except OSError:
        return {}
    try:
        stated = read_json(Path(str(file)), strict=False)
    except DocumentError as error:
        raise ExportError(f"{error}: repair or remove it") from error
    if not isinstance(stated, dict):
        raise ExportError(f"{file} holds {shown(stated)}; expected a JSON object: repair or remove it")
    return stated
