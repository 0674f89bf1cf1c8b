"""What the traced graph takes and gives, whichever door it comes through: names, sizes, and the model around them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from swift_edge.errors import UnsupportedModelError, one_line
from swift_edge_export.tracing.lowering import TraceState


@dataclasses.dataclass(frozen=True, slots=True)
class GraphShape:
    """The sizes of the graph's tensors that do not change from call to call."""

    num_layers: int
    """attention layers, each with a key and a value buffer"""
    kv_heads: int
    """h"""
    head_dim: int
    """k"""
    hidden_layers: tuple[int, ...]
    """which hidden states are outputs, transformers numbering"""
    context_length: int
    """tokens, prompt and response together"""

    def input_names(self) -> list[str]:
        """The graph's inputs in order."""
        names = ["input_ids", "attention_mask", "position_ids", "logits_positions"]
        for layer in range(self.num_layers):
            names += [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        return names

    def output_names(self) -> list[str]:
        """The graph's outputs in order."""
        names = ["logits"]
        for layer in range(self.num_layers):
            names += [f"present.{layer}.key", f"present.{layer}.value"]
        return names + [f"hidden_states.{layer}" for layer in self.hidden_layers]


class KeysAndValuesAsGiven:
    """Stands where a transformers cache would: hands the new keys and values straight back, since the attention node
    itself writes them into the KV buffers.

    transformers 5.24 gave two things other names: what a model calls its cache (`cache_argument`), and what a layer
    tells the cache besides (`kwargs`, which was `cache_kwargs`).
    """

    is_compileable = False

    @staticmethod
    def cache_argument(model: PreTrainedModel) -> str:
        """The argument by which a model takes its cache; code that comes with a checkpoint may keep the old name."""
        return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def update(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `key` and `value` unchanged."""
        del layer_idx, cache_kwargs, kwargs
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions always come from `position_ids`."""
        del layer_idx
        return 0


class TracedModel(nn.Module):
    """The graph's inputs and outputs around a lowered causal LM, flat lists both."""

    def __init__(self, model: PreTrainedModel, state: TraceState, shape: GraphShape) -> None:
        """Take the model inside `lowered`, the state that this gave, and the sizes of the graph."""
        super().__init__()
        self.model = model
        self.state = state
        self.shape = shape

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logits_positions: torch.Tensor,
        *past: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Names and shapes as in the bundle's `model.onnx`; `past` is key and value of each layer in turn."""
        self.state.begin(list(zip(past[::2], past[1::2], strict=True)), attention_mask, logits_positions)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{KeysAndValuesAsGiven.cache_argument(self.model): KeysAndValuesAsGiven()},
            use_cache=True,
            output_hidden_states=True,
            return_dict=True,
        )
        missing = sorted(set(range(self.shape.num_layers)) - set(self.state.present))
        if missing:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layers {missing} have no attention that could be lowered; "
                "a model that mixes attention with other kinds of layers is not supported"
            )
        hidden_states = outputs.hidden_states
        if hidden_states is None or len(hidden_states) != self.shape.num_layers + 1:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} returns {len(hidden_states or ())} hidden states, "
                f"expected {self.shape.num_layers + 1} (the embeddings and one for each layer)"
            )
        flat = [outputs.logits]
        for layer in range(self.shape.num_layers):
            flat += self.state.present[layer]
        return flat + [hidden_states[layer] for layer in self.shape.hidden_layers]


def sample_inputs(shape: GraphShape, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs for tracing: 2 rows of 3 tokens after 4; no dynamic size is 0 or 1, which tracing would take for fixed."""
    rows, steps, past, capacity = 2, 3, 4, 9
    inputs = {
        "input_ids": torch.zeros(rows, steps, dtype=torch.int64),
        "attention_mask": torch.ones(rows, past + steps, dtype=torch.int64),
        "position_ids": torch.arange(past, past + steps).repeat(rows, 1),
        "logits_positions": torch.tensor([0, 2, 3, 4, 5]),
    }
    for name in shape.input_names()[4:]:
        inputs[name] = torch.zeros(rows, shape.kv_heads, capacity, shape.head_dim, dtype=dtype)
    return inputs


def dynamic_axes(name: str) -> dict[int, str]:
    """The dynamic axes of a graph input or output by name."""
    if name.startswith(("past_key_values", "present")):
        return {0: "rows", 2: "capacity"}
    if name in ("logits_positions", "logits"):
        return {0: "positions"}
    return {0: "rows", 1: "total"} if name == "attention_mask" else {0: "rows", 1: "steps"}


def unsupported(model: PreTrainedModel, error: BaseException) -> UnsupportedModelError:
    """The refusal for a model that does not trace, with the first reason that was given for it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        if isinstance(cause, UnsupportedModelError):
            return cause
    root = chain[-1]
    reason = one_line(root) or type(root).__name__
    return UnsupportedModelError(f"{type(model).__name__} cannot be lowered or traced: {reason}")
