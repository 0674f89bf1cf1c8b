"""The weight files of a checkpoint: which of them transformers loads, and the tensors that they hold."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from swift_edge.errors import MIB, ExportError, one_line
from swift_edge.system.documents import parse_json, read_text
from swift_edge_export.checkpoint import Checkpoint
from swift_edge_export.gguf.weights import GgufWeights
from swift_edge_export.pickles import refuse_long_texts
from swift_edge_export.stored_tensor import StoredTensor

INDEX_BYTES = 64 * MIB
"""Most of an index: one of 100,000 tensors has 10 MB."""
_OTHER_SPELLINGS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class WeightFiles(Protocol):
    """The weights of a checkpoint by name; they are read when they are asked for."""

    name: str
    """what to call them"""

    @property
    def one_by_one(self) -> bool:
        """Whether one can be read without the others."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors by their names."""

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a tensor as `dtype`."""

    def read_rows(self, name: str, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Read some rows of a tensor as `dtype`."""

    def read_stored(self, name: str) -> torch.Tensor:
        """Read a tensor in the type that it is stored in, or in float32 where that has no numbers of its own."""


class TorchFiles:
    """Tensors in the files that transformers loads of a checkpoint."""

    def __init__(self, source: str, name: str, paths: Sequence[Path]) -> None:
        """List the tensors of `paths`; raises ExportError where a file does not read, or two hold one name."""
        self.name = name
        self._source = source
        self._tensors: dict[str, StoredTensor] = {}
        for path in paths:
            for tensor, stored in _listed(source, path):
                other = self._tensors.setdefault(tensor, stored)
                if other is not stored and not same_values(self._read(tensor, other), self._read(tensor, stored)):
                    raise ExportError(
                        f"{source} holds {tensor} in {other.path.name} and in {path.name}, with different values; "
                        "remove the file that is out of date, or save the checkpoint again"
                    )

    @property
    def one_by_one(self) -> bool:
        """Whether all files are of safetensors; pickles are read whole."""
        return all(stored.path.suffix == ".safetensors" for stored in self._tensors.values())

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors by their names in the files."""
        return self._tensors

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a tensor as `dtype`."""
        return self._read(name, self._tensors[name]).to(dtype)

    def read_rows(self, name: str, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Read some rows of a tensor as `dtype`."""
        path = self._tensors[name].path
        if path.suffix != ".safetensors":
            return self.read_stored(name)[rows].to(dtype)
        with _refusals(self._source, path), _opened(path) as file:
            part: torch.Tensor = file.get_slice(name)[rows]
        return part.to(dtype)

    def read_stored(self, name: str) -> torch.Tensor:
        """Read a tensor in the type that it is stored in."""
        return self._read(name, self._tensors[name])

    def _read(self, name: str, stored: StoredTensor) -> torch.Tensor:
        # Opened anew each time: a file is mapped, and what was read of it would stay in memory as long as it is open.
        with _refusals(self._source, stored.path):
            if stored.path.suffix != ".safetensors":
                return _loaded(stored.path)[name].clone()
            with _opened(stored.path) as file:
                tensor: torch.Tensor = file.get_tensor(name)
            return tensor


def weight_files(checkpoint: Checkpoint) -> Iterator[WeightFiles]:
    """The complete sets of weights of a folder, the one that transformers loads first; of a hub id that one alone.

    Raises ExportError where there is none, an index that does not read, or files that transformers would load together.
    """
    source = checkpoint.source
    if checkpoint.gguf is not None:
        yield GgufWeights(checkpoint.gguf, checkpoint.family, checkpoint.config)
        return
    folder = Path(source)
    if folder.is_dir() and any(folder.glob("shard-*-model-*-of-*.safetensors")):
        raise ExportError(
            f"{source} holds the shards of a distributed training; expected a model saved as a whole: load it with "
            "transformers, and save it with save_pretrained"
        )
    # The order in which transformers looks for them; a config may name a file of its own.
    names = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    own = getattr(checkpoint.config, "transformers_weights", None)
    if own is not None and (not isinstance(own, str) or Path(own).name != own):
        raise ExportError(
            f"the config of {source} has transformers_weights {own!r}; expected the name of a file beside it"
        )
    found = False
    for name in [own, *names] if own else names:
        if found and not folder.exists():  # nothing is downloaded for a comparison
            return
        path = _file(checkpoint, name)
        if path is None:
            continue
        shards = [name] if not name.endswith(".index.json") else _shards(source, path)
        paths = [_file(checkpoint, shard) for shard in shards]
        if None not in paths:
            yield TorchFiles(source, name, [path for path in paths if path is not None])
        elif not found:  # else it is left over from another way of saving, and not loaded
            raise ExportError(
                f"{source} has no {shards[paths.index(None)]}, which {name} lists; download or save it again"
            )
        found = True
    if not found:
        raise ExportError(
            f"{source} has no weights: neither {SAFE_WEIGHTS_NAME} nor any of {', '.join(names[1:])}; "
            "download or save the checkpoint again"
        )


def refuse_other_weights(checkpoint: Checkpoint) -> WeightFiles:
    """The weights that transformers loads; ExportError where another set in the folder holds different values.

    Nobody knows then which are meant.
    """
    loaded, *others = weight_files(checkpoint)
    for other in others:
        for name in sorted(loaded.tensors.keys() & other.tensors.keys()):
            if not same_values(loaded.read_stored(name), other.read_stored(name)):
                raise ExportError(
                    f"{loaded.name} and {other.name} lie side by side in {checkpoint.source} with different values of "
                    f"{name}, and transformers loads the former; remove the one that is out of date"
                )
    return loaded


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to the narrower of their types."""
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype and one.dtype.itemsize == 1:  # torch does not compare all of these
        return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(narrow), other.to(narrow))


def _shards(source: str, index: Path) -> list[str]:
    try:
        shards = sorted(set(parse_json(read_text(index, INDEX_BYTES), "it", strict=False)["weight_map"].values()))
        if not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards) or not shards:
            raise ValueError("expected names of files in weight_map")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{index.name} of {source} is no index of weights ({type(error).__name__}: {one_line(error)}); "
            "download or save the checkpoint again"
        ) from error
    return shards


def _listed(source: str, path: Path) -> Iterator[tuple[str, StoredTensor]]:
    with _refusals(source, path):
        if path.suffix == ".safetensors":
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - no dict
                    tensor = file.get_slice(name)
                    dtype = str(tensor.get_dtype())
                    yield name, StoredTensor(path, tuple(tensor.get_shape()), _OTHER_SPELLINGS.get(dtype, dtype))
        else:
            with path.open("rb") as file:
                refuse_long_texts(file)  # once, and not for each tensor that is read
            for name, tensor in _loaded(path).items():
                yield name, StoredTensor(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _loaded(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a pickled file, mapped where its format allows that; no code in it is run."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # Torch never packs them; it would map the packed bytes as numbers, or unpack them to any size.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its tensors are packed; expected them as torch.save writes them")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # written by a torch before 1.6
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}; expected tensors by name")
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:  # a training loop's own format has them one level down
        raise ValueError(f"it holds {', '.join(map(str, list(content)[:3])) or 'nothing'}; expected tensors by name")
    return tensors


def _file(checkpoint: Checkpoint, name: str) -> Path | None:
    revision = checkpoint.revision if not Path(checkpoint.source).exists() else None
    path = cached_file(
        checkpoint.source,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _opened(path: Path) -> Any:
    return safe_open(str(path), framework="pt")


@contextlib.contextmanager
def _refusals(source: str, path: Path) -> Iterator[None]:
    """Tell what the libraries raise about a file as an ExportError."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        # torch advises to load a pickle with the code that is in it; nobody should.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "no pickle of tensors alone" if unsafe else one_line(error)
        raise ExportError(
            f"{path.name} of {source} does not read ({reason}); download or save the checkpoint again"
        ) from error
