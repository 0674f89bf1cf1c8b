"""The default front door: `torch.onnx.export` traces the lowered model into an `onnx_ir` model with hidden states.

The graph it returns is as traced; `cleanup` rewrites it and `quantize` packs its weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Callable, Iterator

import onnx_ir as ir
import torch
from torch import nn
from transformers import PreTrainedModel

from swift_edge.errors import ExportError, UnsupportedModelError
from swift_edge_export.lowering import AttentionCall, KeysAndValuesAsGiven, TraceState, lowered

OPSET = 20
# onnxruntime 1.23 reads IR versions up to 11.
IR_VERSION = 10


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
            past_key_values=KeysAndValuesAsGiven(),
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


class DynamoEmitter:
    """Writes nodes through `torch.onnx.ops`, which the exporter turns into ONNX nodes as they are."""

    def group_query_attention(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `lowering.Emitter`."""
        inputs: list[torch.Tensor | None] = [
            call.query,
            call.key,
            call.value,
            call.past_key,
            call.past_value,
            call.row_lengths,
            call.total_length,
        ]
        inputs += call.rotary_tables or ()
        output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            inputs,
            attrs=dict(call.attributes),
            dtypes=[call.query.dtype, call.past_key.dtype, call.past_value.dtype],
            shapes=[call.query.shape, call.past_key.shape, call.past_value.shape],
            version=1,
        )
        return output, present_key, present_value

    def rms_norm(self, hidden_states: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `lowering.Emitter`."""
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            [hidden_states, scale],
            attrs={"axis": -1, "epsilon": epsilon, "stash_type": 1},
            dtype=hidden_states.dtype,
            shape=hidden_states.shape,
        )


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


def trace(model: PreTrainedModel, shape: GraphShape, report: Callable[[str], None], *, rotary: bool) -> ir.Model:
    """Trace `model` with `torch.onnx.export(dynamo=True)`; initialisers share the memory of the model's weights.

    `rotary` moves the rotary embedding into the attention nodes.

    Raises:
        UnsupportedModelError: the model cannot be lowered or traced; the message carries the reason.
    """
    inputs = sample_inputs(shape, model.dtype)
    past_names = shape.input_names()[4:]
    arguments = (*list(inputs.values())[:4], *(inputs[name] for name in past_names))
    shapes = [dict.fromkeys(dynamic_axes(name), torch.export.Dim.DYNAMIC) for name in inputs]
    dynamic_shapes = (*shapes[:4], tuple(shapes[4:]))
    with lowered(model, DynamoEmitter(), shape.context_length, rotary=rotary) as state, torch.no_grad(), quiet():
        try:
            program = torch.onnx.export(
                TracedModel(model, state, shape),
                arguments,
                dynamic_shapes=dynamic_shapes,
                input_names=list(inputs),
                output_names=shape.output_names(),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                optimize=True,
            )
        except Exception as error:
            raise unsupported(model, error) from error
    for note in state.notes:
        report(note)
    if program is None:
        raise ExportError("torch.onnx.export returned nothing; this needs torch 2.9 or newer")
    graph_model = program.model
    graph_model.ir_version = IR_VERSION
    return graph_model


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
    reason = " ".join(str(root).split())[:400] or type(root).__name__
    return UnsupportedModelError(f"{type(model).__name__} cannot be lowered or traced: {reason}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the tracers' progress lines, deprecation warnings and notes about absent packages out of the report."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
