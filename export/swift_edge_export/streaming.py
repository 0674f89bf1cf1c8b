"""Checkpoints that are too large for the memory: a model of placeholders, whose weights are read one at a time.

A placeholder has the shape of a weight matrix and the memory of one number. The model can be traced with them, and run
inside `reading`, which puts every weight in its place for as long as its module computes. The traced graph gets tensors
that read the weight when its content is asked for.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from swift_edge.errors import ExportError
from swift_edge_export.checkpoint import Checkpoint

PLACEHOLDER_NUMBERS = 2**18
"""Tensors of two axes and at least so many numbers are left in their files."""


class WeightFiles:
    """The safetensors files of a checkpoint, in which tensors are read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Find the files, on the hub or in a folder; raises ExportError where there are none."""
        index = _file(checkpoint, SAFE_WEIGHTS_INDEX_NAME)
        if index is not None:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            shards = [SAFE_WEIGHTS_NAME]
        self._paths: dict[str, Path] = {}
        self._shapes: dict[str, list[int]] = {}
        for shard in shards:
            path = _file(checkpoint, shard)
            if path is None:
                raise ExportError(
                    f"{checkpoint.source} has no {shard}, and is too large to be loaded whole here; "
                    "save it with safetensors, or export it on a machine with more memory"
                )
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - no dict
                    self._paths[name], self._shapes[name] = path, file.get_slice(name).get_shape()

    def names(self) -> list[str]:
        """Names of all tensors."""
        return sorted(self._paths)

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a tensor as `dtype`."""
        # Opened anew each time: a file is mapped, and what was read of it would stay in memory as long as it is open.
        with _opened(self._paths[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.to(dtype)


class StreamedModel:
    """A model of placeholders and the files that their weights are in."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, layers: int | None = None) -> None:
        """Make the model of the first `layers` layers, or of all; small tensors are read at once.

        Raises ExportError where the files lack a weight, or hold another than the model wants.
        """
        self.files = WeightFiles(checkpoint)
        config = checkpoint.config if layers is None else _shortened(checkpoint.config, layers)
        state: dict[str, torch.Tensor] = {}
        self._keys: dict[int, str] = {}  # by the memory of the placeholder
        for name in self.files.names():
            shape = self.files.shape(name)
            if len(shape) > 1 and torch.Size(shape).numel() >= PLACEHOLDER_NUMBERS:
                state[name] = torch.zeros((), dtype=dtype).expand(shape)
                self._keys[state[name].data_ptr()] = name
            else:
                state[name] = self.files.read(name, dtype)
        self._held = list(state.values())  # a placeholder that nobody uses must not give its memory to another tensor
        maker: Any = AutoModelForCausalLM
        with torch.device("meta"):
            family: Any = type(maker.from_config(config, trust_remote_code=checkpoint.trust_remote_code))
        model, report = family.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
        )
        if report["missing_keys"] or report["mismatched_keys"]:
            first = min([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])])
            raise ExportError(
                f"{checkpoint.source} lacks weights of the model, or has them in another shape, such as {first}; "
                "download or save the checkpoint again"
            )
        self.model: PreTrainedModel = model.eval().requires_grad_(False)

    def weights(self, note: Callable[[float], None] = lambda _: None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and content of all weights in the order of their names, one at a time; see `reading` for `note`."""
        parameters = sorted(self.model.named_parameters())
        for read, (name, parameter) in enumerate(parameters, start=1):
            yield name, self._content(parameter)
            note(read / len(parameters))

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

    def _content(self, parameter: nn.Parameter) -> torch.Tensor:
        key = self._keys.get(parameter.data_ptr())
        return parameter.detach() if key is None else self.files.read(key, parameter.dtype)


def layers_of_every_kind(config: Any) -> int:
    """How many of the first layers show every kind that the model has, at least two."""
    kinds: list[str] = getattr(config.get_text_config(), "layer_types", None) or []
    return max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])


def _shortened(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


def _file(checkpoint: Checkpoint, name: str) -> Path | None:
    revision = checkpoint.revision if not Path(checkpoint.source).exists() else None
    path = cached_file(checkpoint.source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _opened(path: Path) -> Any:
    return safe_open(str(path), framework="pt")
