"""The default front door: `torch.onnx.export` traces the lowered model into an `onnx_ir` model with hidden states.

The graph it returns is as traced; `cleanup` rewrites it and `quantize` packs its weights.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from swift_edge.errors import ExportError, MissingExtraError
from swift_edge_export.tracing.graph import GraphShape, TracedModel, dynamic_axes, sample_inputs, unsupported
from swift_edge_export.tracing.lowering import AttentionCall, lowered

OPSET = 20
PARAMETERS = "model."
# onnxruntime 1.23 reads IR versions up to 11.
IR_VERSION = 10


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


# A constant that is larger than this stays as it is: folding would make another of it, for every weight.
FOLDED_NUMBERS = 2**14


def trace(model: PreTrainedModel, shape: GraphShape, report: Callable[[str], None], *, rotary: bool) -> ir.Model:
    """Trace `model` with `torch.onnx.export(dynamo=True)`; initialisers share the memory of the model's weights.

    Its parameters are initialisers called `PARAMETERS` and then as in the model.

    `rotary` moves the rotary embedding into the attention nodes.

    Raises:
        UnsupportedModelError: the model cannot be lowered or traced; the message carries the reason.
        MissingExtraError: torch is there, but not what its exporter writes graphs with.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingExtraError("export --exporter dynamo", "onnxscript", "export")
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
                optimize=False,
            )
        except Exception as error:
            raise unsupported(model, error) from error
    for note in state.notes:
        report(note)
    if program is None:
        raise ExportError("torch.onnx.export returned nothing; this needs torch 2.9 or newer")
    graph_model = program.model
    graph_model.ir_version = IR_VERSION
    optimizer: Any = importlib.import_module("onnxscript.optimizer")
    optimizer.optimize_ir(graph_model, should_fold=_is_small)
    return graph_model


def _is_small(node: ir.Node) -> bool | None:
    """Leave it to the optimiser whether a node with small inputs is computed now; no other is."""
    constants = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    return None if all(constant.size <= FOLDED_NUMBERS for constant in constants) else False


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
