"""Where a GGUF file is, in which parts, and everything of it but the weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from swift_edge.errors import ExportError, InvalidOptionError, one_line
from swift_edge_export.gguf.config import read_config
from swift_edge_export.gguf.container import MAGIC, SUFFIX, Contents, damaged, read_contents
from swift_edge_export.gguf.metadata import Metadata
from swift_edge_export.gguf.tokenizer import read_tokenizer

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_MOST_PARTS = 1000
# What transformers calls the sampling that makers recommend.
_SAMPLING = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclasses.dataclass(frozen=True, slots=True)
class GgufModel:
    """What a GGUF file says, in the words of transformers."""

    contents: Contents
    """where the weights are"""
    config: PretrainedConfig
    """the config"""
    tokenizer: Any
    """the fast tokenizer, with its chat templates"""
    generation: Mapping[str, Any]
    """EOS ids and recommended sampling, as in a generation config"""
    notes: tuple[str, ...]
    """what the user should know"""


def is_gguf(source: str, file: str | None) -> bool:
    """Whether a model is read from a GGUF file: one was named, or `source` is one."""
    path = Path(source)
    if file is not None or path.suffix == SUFFIX:
        return True
    try:
        with path.open("rb") as content:
            return content.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(source: str, revision: str | None, file: str | None) -> GgufModel:
    """Read a file, or the file of that name in a folder or on the hub, up to its weights.

    Raises:
        InvalidOptionError: `file` is no name of a GGUF file, or `source` is a file itself.
        ExportError: there is no such file, or it cannot be what it says.
        UnsupportedModelError: another version, architecture or type.
        TokenizerError: a tokenizer of an unknown kind, or whose parts do not fit.
        MissingExtraError: the package `gguf` is not installed.
    """
    if file is not None:
        _check_name(source, file)

    def beside(name: str) -> Path:
        return _found(source, revision, name if file is None else str(PurePosixPath(file).with_name(name)))

    first = Path(source).name if file is None else PurePosixPath(file).name
    contents = _whole(first, beside)
    metadata = Metadata(contents)
    config = read_config(contents, metadata)
    read = read_tokenizer(contents, metadata, metadata.text("general.name", ""))
    generation: dict[str, Any] = {"eos_token_id": list(read.eos_ids)}
    for theirs, ours in _SAMPLING.items():
        if f"general.sampling.{theirs}" in metadata:
            generation[ours] = metadata.scalar(f"general.sampling.{theirs}")
    return GgufModel(contents, config, read.tokenizer, generation, read.notes)


def gguf_name(source: str, file: str | None) -> str:
    """What to call the model: the hub id, or the file's name without its ending."""
    if not Path(source).exists():
        return source
    return _PART.sub("", Path(file or source).name).removesuffix(SUFFIX)


def _check_name(source: str, file: str) -> None:
    path = PurePosixPath(file)
    if path.suffix != SUFFIX or path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file:
        raise InvalidOptionError(f"--file is {file!r}; expected the name of a {SUFFIX} file within {source}")
    if Path(source).is_file():
        raise InvalidOptionError(f"{source} is a file itself; leave out --file, or give the folder that holds {file}")


def _found(source: str, revision: str | None, name: str) -> Path:
    """The file called `name`: `source` itself, a neighbour of it, in it as a folder, or on the hub."""
    here = Path(source)
    if here.is_dir() or here.is_file() or here.suffix == SUFFIX:
        path = here / name if here.is_dir() else here.with_name(name)
        if not path.is_file():
            names = sorted(each.name for each in path.parent.glob(f"*{SUFFIX}"))[:6] if path.parent.is_dir() else []
            raise ExportError(f"there is no file {path}; its folder holds {', '.join(names) or f'no {SUFFIX} file'}")
        return path
    try:
        return Path(str(cached_file(source, name, revision=revision)))
    except OSError as error:
        raise ExportError(
            f"{name} of {source} could not be read from the hub ({one_line(error)}); check both names, the "
            "connection, or log in for a gated model"
        ) from error


def _whole(name: str, beside: Callable[[str], Path]) -> Contents:
    """The contents of a file, or of all parts that it is one of."""
    part = _PART.search(name)
    count = int(part[2]) if part else 1
    if not 1 <= count <= _MOST_PARTS:
        raise ExportError(f"{name} is one of {count} parts; expected 1 to {_MOST_PARTS}")
    names = (
        [f"{name[: part.start()]}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]
        if part
        else [name]
    )
    first, *others = (read_contents(beside(each)) for each in names)
    metadata = Metadata(first)
    stated = metadata.whole("split.count", count, least=0)
    if stated != count and not (stated == 0 and count == 1):
        raise damaged(first.path, f"says that it is one of {stated} parts, but is called {first.path.name}")
    tensors = dict(first.tensors)
    for other in others:
        twice = tensors.keys() & other.tensors.keys()
        if twice:
            raise damaged(other.path, f"has the tensor {min(twice)} of another part again")
        tensors |= other.tensors
    expected = metadata.whole("split.tensors.count", len(tensors), least=0)
    if part and expected != len(tensors):
        raise damaged(first.path, f"and its other parts hold {len(tensors)} tensors, not {expected}")
    return Contents(first.path, first.metadata, tensors)
