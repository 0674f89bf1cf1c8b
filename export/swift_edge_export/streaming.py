"""Checkpoints that are too large for the memory: a model of placeholders, whose weights are read one at a time.

A placeholder has the shape of a weight matrix and the memory of one number. The model can be traced with them, and run
inside `reading`, which puts every weight in its place for as long as its module computes. The traced graph gets tensors
that read the weight when its content is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Set
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from swift_edge.errors import ExportError, ParityError
from swift_edge.system import machine
from swift_edge_export.checkpoint import Checkpoint, unreadable
from swift_edge_export.loading import require_complete, require_enough, require_equal_ties, shortened, stored_tensors
from swift_edge_export.stored_tensor import StoredTensor, layer_number
from swift_edge_export.unused_weights import every_unused_weight_told, refuse_unused_weights
from swift_edge_export.weight_files import WeightFiles, same_values, weight_files

PLACEHOLDER_NUMBERS = 2**18
"""Tensors of two axes and at least so many numbers are left in their files."""
_COMPARED_NUMBERS = 2**24


@dataclasses.dataclass(frozen=True, slots=True)
class _Made:
    """A model that transformers made of placeholders."""

    model: PreTrainedModel
    """the model"""
    report: dict[str, Any]
    """what transformers reports: missing, mismatched and unexpected keys"""
    keys: dict[int, str]
    """names of tensors in the files, by the memory of their placeholders"""
    state: dict[str, torch.Tensor]
    """the tensors that it was made from"""


class StreamedModel:
    """A model of placeholders and the files that their weights are in."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, layers: int | None = None) -> None:
        """Make the model of the first `layers` layers, or of all; small tensors are read at once.

        Raises ExportError where the files lack a weight, hold another than the model wants, or one that nothing uses.
        """
        self.files = _readable_one_by_one(checkpoint)
        require_enough(checkpoint, self.files)
        self.notes: list[str] = []
        self._checkpoint, self._dtype = checkpoint, dtype
        self._config = checkpoint.config if layers is None else shortened(checkpoint.config, layers)
        large = {name for name, stored in self.files.tensors.items() if _is_large(stored)}
        made = self._make(large)
        ties, converted = self._equal_ties(made), self._converted(made)
        if ties or converted:
            del made
            made = self._make(large - converted, ties)
        require_complete(checkpoint.source, made.report)
        if layers is None:
            unexpected = made.report["unexpected_keys"]
            self.notes = refuse_unused_weights(checkpoint.source, self.files, unexpected, made.model)
        require_equal_ties(checkpoint.source, self.files, made.model)
        self.model = made.model
        self._keys = made.keys
        # A placeholder that nobody uses must not give its memory to another tensor.
        self._held = [made.state[name] for name in made.keys.values()]

    def require_contents(self, layer: int) -> None:
        """Let transformers load the content of one layer, and compare it with what is read here.

        Raises ParityError where they differ: transformers then does something with the weights of this family that is
        done to placeholders alone.
        """
        large = {name for name, stored in self.files.tensors.items() if _is_large(stored)}
        made = self._make({name for name in large if layer_number(name) != layer})
        read = {name for name, parameter in self.model.named_parameters() if parameter.data_ptr() in self._keys}
        self._require_same(
            {
                name: parameter
                for name, parameter in made.model.named_parameters()
                if name in read and parameter.data_ptr() not in made.keys
            }
        )

    def require_weights_of(self, model: PreTrainedModel) -> None:
        """Raise ParityError unless the weights of `model` are those that are read here."""
        self._require_same(dict(model.named_parameters()))

    def _require_same(self, weights: Mapping[str, nn.Parameter]) -> None:
        here = dict(self.model.named_parameters())
        for name, weight in sorted(weights.items()):
            if name not in here or not self._holds(here[name], weight):
                raise ParityError(
                    f"{name} of {self._checkpoint.source}, read on its own, is not what transformers makes of it; "
                    "export it on a machine with the memory to load it whole"
                )

    def _holds(self, parameter: nn.Parameter, weight: torch.Tensor) -> bool:
        """Whether a weight has these numbers; a few rows of it are read at a time."""
        name = self._keys.get(parameter.data_ptr())
        if name is None or parameter.shape != weight.shape:
            return torch.equal(parameter, weight)
        rows = max(1, _COMPARED_NUMBERS * len(weight) // weight.numel())
        return all(
            torch.equal(
                self.files.read_rows(name, slice(start, start + rows), weight.dtype), weight[start : start + rows]
            )
            for start in range(0, len(weight), rows)
        )

    def _make(self, placed: Set[str], ties: Mapping[str, str] = MappingProxyType({})) -> _Made:
        """Let transformers make the model of placeholders for the tensors `placed`, and of all others as they are.

        `ties` names tensors that share the placeholder of another.
        """
        state: dict[str, torch.Tensor] = {}
        keys: dict[int, str] = {}
        for name, stored in sorted(self.files.tensors.items()):
            if name not in placed:
                state[name] = self.files.read(name, self._dtype)
            elif name not in ties:
                # Not a number, so that it is equal to nothing, and that what is computed from it can be seen.
                value = 0.0 if name in ties.values() else math.nan
                state[name] = torch.full((), value, dtype=self._dtype).expand(stored.shape)
                keys[state[name].data_ptr()] = name
        state.update({name: state[other] for name, other in ties.items()})
        family: Any = self._checkpoint.family
        try:
            with every_unused_weight_told(family):
                model, report = family.from_pretrained(
                    None,
                    config=self._config,
                    state_dict=state,
                    dtype=self._dtype,
                    attn_implementation="eager",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused by name
                )
        except Exception as error:
            raise unreadable(self._checkpoint.source, error) from error
        return _Made(model.eval().requires_grad_(False), report, keys, state)

    def _equal_ties(self, made: _Made) -> dict[str, str]:
        """Tensors that the config ties to others, and that are equal to these in the files: transformers ties them."""
        parameters = dict(made.model.named_parameters(remove_duplicate=False))
        tied: dict[str, str] = made.model.get_expanded_tied_weights_keys(all_submodels=True)
        ties: dict[str, str] = {}
        for pair in tied.items():
            one, other = (made.keys.get(parameters[name].data_ptr()) for name in pair)
            # They are compared as transformers does, in fp32, whatever the type is that the model is made in.
            if one and other and one != other and same_values(self._fp32(one), self._fp32(other)):
                ties[one] = ties.get(other, other)
        return ties

    def _fp32(self, name: str) -> torch.Tensor:
        return self.files.read(name, torch.float32)

    def _converted(self, made: _Made) -> set[str]:
        """Tensors of the files that are no weights of the model as they stand: transformers makes some from them.

        They are read at once, since what is made from them has to be made from numbers; MemoryLimitError without room.
        """
        whole, converts = set(), False
        for parameter in made.model.parameters():
            name = made.keys.get(parameter.data_ptr())
            if name is not None and tuple(parameter.shape) == self.files.tensors[name].shape:
                whole.add(name)
            else:
                converts = converts or name is not None or bool(parameter.isnan().any())
        if not converts:
            return set()
        converted = set(made.keys.values()) - whole
        numbers = sum(math.prod(self.files.tensors[name].shape) for name in converted)
        machine.require_memory(
            3 * self._dtype.itemsize * numbers,
            f"converting weights of {self._checkpoint.name}",
            "export it on a machine with more memory",
        )
        return converted

    def weights(self, note: Callable[[float], None] = lambda _: None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and content of all that the files hold of the model, one at a time; see `reading` for `note`."""
        tensors = stored_tensors(self.model)
        for read, (name, tensor) in enumerate(tensors, start=1):
            yield name, self._content(tensor)
            note(read / len(tensors))

    @contextlib.contextmanager
    def reading(self, note: Callable[[float], None] = lambda _: None) -> Iterator[PreTrainedModel]:
        """Let the model compute: every module has its weights while its forward runs.

        `note` is told which share of the weights has been read, as if every one were needed once.
        """
        read = 0
        held: dict[tuple[nn.Module, str], nn.Parameter] = {}

        def fill(module: nn.Module, _: Any) -> None:
            nonlocal read
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.data_ptr() in self._keys:
                    read += 1
                    note(min(1.0, read / len(self._keys)))
                    held[module, name] = parameter
                    module.register_parameter(name, nn.Parameter(self._content(parameter), requires_grad=False))

        def empty(module: nn.Module, *_: Any) -> None:
            for name, _parameter in list(module.named_parameters(recurse=False)):
                if (placeholder := held.pop((module, name), None)) is not None:
                    module.register_parameter(name, placeholder)

        with contextlib.ExitStack() as undo:
            for module in self.model.modules():
                undo.callback(module.register_forward_pre_hook(fill).remove)
                undo.callback(module.register_forward_hook(empty, always_call=True).remove)
            yield self.model

    def attach(self, graph: ir.Model, prefix: str) -> None:
        """Let the initialisers of a traced graph read their content; `prefix` stands before the parameters' names."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, value in graph.graph.initializers.items():
            parameter = parameters.get(name.removeprefix(prefix))
            if parameter is None or parameter.data_ptr() not in self._keys or value.const_value is None:
                continue

            def read(parameter: nn.Parameter = parameter, name: str = name) -> ir.TensorProtocol:
                return ir.tensor(self._content(parameter).numpy(), name=name)

            tensor = value.const_value
            value.const_value = ir.LazyTensor(read, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name)

    def _content(self, parameter: torch.Tensor) -> torch.Tensor:
        key = self._keys.get(parameter.data_ptr())
        return parameter.detach() if key is None else self.files.read(key, parameter.dtype)


def layers_of_every_kind(config: Any) -> int:
    """How many of the first layers show every kind that the model has, at least two."""
    kinds: list[str] = getattr(config.get_text_config(), "layer_types", None) or []
    return max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])


def _readable_one_by_one(checkpoint: Checkpoint) -> WeightFiles:
    files = next(weight_files(checkpoint))
    if not files.one_by_one:
        raise ExportError(
            f"{checkpoint.source} has no {SAFE_WEIGHTS_NAME}, and is too large to be loaded whole here; "
            "save it with safetensors, or export it on a machine with more memory"
        )
    return files


def _is_large(stored: StoredTensor) -> bool:
    return len(stored.shape) > 1 and math.prod(stored.shape) >= PLACEHOLDER_NUMBERS
