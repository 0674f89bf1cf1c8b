"""The weights of a GGUF file under the names, and in the order, that transformers has for them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from swift_edge_export.gguf.config import used_tensors
from swift_edge_export.gguf.container import Contents, Tensor, gguf_package
from swift_edge_export.gguf.tensors import INTEGERS, dequantized
from swift_edge_export.stored_tensor import StoredTensor

_SUFFIXES = (".weight", ".bias")
_QUERY_OR_KEY = re.compile(r"\.(q|k)_proj\.(weight|bias)$")
# Families of which llama.cpp turns neighbouring numbers of a head together, and transformers those of two halves.
_INTERLEAVED = ("llama", "granite", "smollm3")
# Norms of these multiply by one more than their weight; converters add it.
_ONE_MORE = ("gemma", "gemma2", "gemma3_text")
# Products of these are stored inputs first.
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A weight of the model in the file."""

    tensor: Tensor
    """as it is stored"""
    heads: int | None = None
    """outputs are so many heads, whose numbers lie in pairs; None where they lie as transformers has them"""
    transposed: bool = False
    """stored outputs first, and the model has it inputs first"""
    less: float = 0.0
    """what a converter added to every number"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight in the model."""
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    def read(self, rows: slice = slice(None)) -> torch.Tensor:
        """Some rows in float32."""
        if self.transposed:
            return dequantized(self.tensor).T[rows].contiguous()
        if self.heads is None:
            weight = dequantized(self.tensor, rows)
        else:
            weight = _halves(dequantized(self.tensor), self.heads)[rows]
        return weight - self.less if self.less else weight


class GgufWeights:
    """Tensors of a GGUF file by the names that transformers has for them; others keep their own."""

    one_by_one = True

    def __init__(self, contents: Contents, family: type[PreTrainedModel], config: PretrainedConfig) -> None:
        """List them; `family` and `config` say which weights there are."""
        self.name = contents.path.name
        self._places = dict(_placed(contents, family, config))
        self._tensors = {name: _stored(place) for name, place in self._places.items()}

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors by name."""
        return self._tensors

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a tensor as `dtype`."""
        return self._places[name].read().to(dtype)

    def read_rows(self, name: str, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Read some rows of a tensor as `dtype`."""
        return self._places[name].read(rows).to(dtype)

    def read_stored(self, name: str) -> torch.Tensor:
        """Read a tensor in float32, whatever blocks it is stored in."""
        return self._places[name].read()


def _stored(place: Place) -> StoredTensor:
    kind = place.tensor.kind
    return StoredTensor(place.tensor.path, place.shape, INTEGERS.get(kind, "float32"))


def _placed(contents: Contents, family: type[PreTrainedModel], config: PretrainedConfig) -> Iterator[tuple[str, Place]]:
    names = _names(contents, family, config)
    no_weights = used_tensors(contents)
    for name, tensor in contents.tensors.items():
        if name in names:
            yield names[name], _place(names[name], tensor, config)
        elif name not in no_weights:
            yield name, Place(tensor)


def _place(name: str, tensor: Tensor, config: Any) -> Place:
    kind = config.model_type
    part = _QUERY_OR_KEY.search(name)
    if kind in _INTERLEAVED and part is not None:
        return Place(tensor, config.num_attention_heads if part[1] == "q" else config.num_key_value_heads)
    if kind in _ONE_MORE and name.endswith("norm.weight"):
        return Place(tensor, less=1.0)
    return Place(tensor, transposed=kind == "gpt2" and _TRANSPOSED.search(name) is not None)


def _names(contents: Contents, family: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, str]:
    """transformers' names of the weights, by those in the file."""
    gguf = gguf_package()
    architecture = contents.metadata["general.architecture"]
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    maker: Callable[[PretrainedConfig], PreTrainedModel] = family
    with torch.device("meta"):
        own = maker(config).state_dict()
    names: dict[str, str] = {}
    for name in own:
        found = known.get_name(name, _SUFFIXES)
        if found is not None:
            names.setdefault(found, name)
    return names


def _halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of heads whose numbers lie in pairs, as transformers has them: first the first of each pair."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
