"""The second front door: optimum's ONNX exporter traces the lowered model, for people whose tool chain is optimum.

The same lowering, the same inputs and outputs and the same cleanup as `trace`. optimum brings what it knows about a
family (its patches, the versions it needs) and runs the export; the inputs, the outputs and the forward are ours.
What TorchScript writes differently from the other door is `torchscript_graph`'s business.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import transformers
from transformers import PreTrainedModel

from swift_edge.errors import ExportError, MissingExtraError
from swift_edge_export.tracing.dynamo import IR_VERSION, OPSET, quiet
from swift_edge_export.tracing.graph import GraphShape, TracedModel, dynamic_axes, sample_inputs, unsupported
from swift_edge_export.tracing.lowering import AttentionCall, TraceState, lowered
from swift_edge_export.tracing.torchscript_graph import attach_weights, normalise

TASK = "text-generation"


def trace_with_optimum(
    model: PreTrainedModel,
    shape: GraphShape,
    report: Callable[[str], None],
    *,
    rotary: bool,
    folder: Path | None = None,
) -> ir.Model:
    """Trace `model` with optimum's ONNX exporter; initialisers share the memory of the model's weights.

    Args:
        model: the model in evaluation mode, on the CPU.
        shape: the sizes of the graph.
        report: called with what could not be lowered.
        rotary: move the rotary embedding into the attention nodes.
        folder: where a temporary folder for optimum's own file is made and removed; by default the system's place.

    Raises:
        MissingExtraError: optimum is not installed.
        UnsupportedModelError: the model cannot be lowered or traced; the message carries the reason.
    """
    export = _optimum("exporters.onnx.convert").export
    with (
        tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch,
        _configs_restored(model),
        lowered(model, TorchScriptEmitter(), shape.context_length, rotary=rotary) as state,
        torch.no_grad(),
        quiet(),
    ):
        path = Path(scratch) / "model.onnx"
        traced = _TracedForOptimum(model, state, shape)
        try:
            config = _export_config(model, shape, report)
            # Without constant folding the weights keep their names, and tied ones stay one.
            with _weights_left_out():
                export(traced, config, path, opset=OPSET, disable_dynamic_axes_fix=True, do_constant_folding=False)
        except Exception as error:
            raise unsupported(model, error) from error
        graph_model = ir.load(path)
        attach_weights(graph_model, traced.state_dict())
        normalise(graph_model, Path(scratch), report)
    for note in state.notes:
        report(note)
    graph_model.ir_version = IR_VERSION
    return graph_model


# -- what optimum is given -------------------------------------------------------------------------------------------


def _optimum(module: str) -> Any:
    """Import a module of optimum.

    Raises:
        MissingExtraError: it is not installed.
        ExportError: it does not work with the transformers that is installed.
    """
    try:
        return importlib.import_module(f"optimum.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "optimum":
            raise
        raise MissingExtraError("--exporter optimum", "optimum-onnx", "optimum") from error
    except ImportError as error:
        raise ExportError(
            f"optimum does not work with transformers {transformers.__version__} ({error}); "
            'run: pip install "swift-edge[optimum]"'
        ) from error


class _TracedForOptimum(TracedModel):
    """`TracedModel` as optimum wants it: with a config, and the past as one argument.

    Being the outermost module it also keeps the model's own forward from being replaced: optimum's version of it
    returns the last hidden state before the final norm.
    """

    def __init__(self, model: PreTrainedModel, state: TraceState, shape: GraphShape) -> None:
        super().__init__(model, state, shape)
        self.config = model.config

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logits_positions: torch.Tensor,
        past_key_values: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """See `TracedModel`."""
        return super().forward(input_ids, attention_mask, position_ids, logits_positions, *past_key_values)


class _BundleGraph:
    """Mixed into optimum's config of a family: the inputs and outputs of a bundle's graph in place of its own."""

    graph_shape: GraphShape
    float_type: torch.dtype

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Names and dynamic axes, in order."""
        return {name: dynamic_axes(name) for name in self.graph_shape.input_names()}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names and dynamic axes, in order."""
        return {name: dynamic_axes(name) for name in self.graph_shape.output_names()}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        """What the model is traced with, by the names of the forward's arguments."""
        del framework
        flat = sample_inputs(self.graph_shape, self.float_type)
        past = [flat.pop(name) for name in self.graph_shape.input_names() if name.startswith("past_key_values")]
        return {**flat, "past_key_values": past}


class _OwnForward:
    """Mixed into optimum's patcher of a family: its patches of operators stay, its wrapper of the forward does not."""

    orig_forward: Callable[..., Any]

    def __init__(self, config: Any, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(config, model, model_kwargs)  # type: ignore[call-arg]
        self.patched_forward = self.orig_forward


def _export_config(model: PreTrainedModel, shape: GraphShape, report: Callable[[str], None]) -> Any:
    """optimum's export config for the family, or its generic one for decoders, with our inputs and outputs."""
    _optimum("exporters.onnx.model_configs")  # registers the families
    model_type = model.config.get_text_config().model_type
    members: dict[str, Any] = {"graph_shape": shape, "float_type": model.dtype}
    try:
        constructor = _optimum("exporters.tasks").TasksManager.get_exporter_config_constructor(
            "onnx", model_type=model_type, task=f"{TASK}-with-past", library_name="transformers"
        )
        family = constructor.func
    except (KeyError, ValueError):
        report(f"optimum has no configuration for {model_type}: exported with its generic one for decoders")
        family = _optimum("exporters.onnx.config").TextDecoderWithPositionIdsOnnxConfig
        members["NORMALIZED_CONFIG_CLASS"] = _optimum("utils").NormalizedTextConfig
    members["_MODEL_PATCHER"] = type("Patcher", (_OwnForward, family._MODEL_PATCHER), {})
    config_class = type(f"{family.__name__}ForBundle", (_BundleGraph, family), members)
    return config_class(model.config, task=TASK, use_past=True, use_past_in_inputs=True)


@contextlib.contextmanager
def _weights_left_out() -> Iterator[None]:
    """Let torch write the graph alone, the weights as inputs of their names.

    Written out, they would pass through memory three times: four times the weights for a model of less than 2 GB.
    optimum has no option for it, so `torch.onnx.export`, which it calls, gets one.
    """
    original = torch.onnx.export
    torch.onnx.export = functools.partial(original, export_params=False)
    try:
        yield
    finally:
        torch.onnx.export = original


@contextlib.contextmanager
def _configs_restored(model: PreTrainedModel) -> Iterator[None]:
    """Put back what optimum changes in the configs of a model (`use_cache`, `return_dict`)."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = {identity: copy.copy(vars(config)) for identity, config in configs.items()}
    try:
        yield
    finally:
        for identity, config in configs.items():
            vars(config).clear()
            vars(config).update(before[identity])


# -- nodes written while tracing -------------------------------------------------------------------------------------


class _GroupQueryAttention(torch.autograd.Function):
    """Stands for one attention node; what it computes while tracing is read by nobody, only the shapes count."""

    @staticmethod
    def forward(ctx: Any, attributes: dict[str, int | float], *inputs: torch.Tensor) -> Any:
        del ctx, attributes
        query, past_key, past_value = inputs[0], inputs[3], inputs[4]
        return torch.zeros_like(query), torch.zeros_like(past_key), torch.zeros_like(past_value)

    @staticmethod
    def symbolic(graph: Any, attributes: dict[str, int | float], *inputs: Any) -> Any:
        typed = {f"{name}_{'f' if isinstance(value, float) else 'i'}": value for name, value in attributes.items()}
        outputs = graph.op("com.microsoft::GroupQueryAttention", *inputs, outputs=3, **typed)
        for output, like in zip(outputs, (inputs[0], inputs[3], inputs[4]), strict=True):
            output.setType(like.type())
        return outputs


class _RmsNorm(torch.autograd.Function):
    """Stands for one root-mean-square norm."""

    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor, scale: torch.Tensor, epsilon: float) -> Any:
        del ctx, scale, epsilon
        return torch.zeros_like(hidden_states)

    @staticmethod
    def symbolic(graph: Any, hidden_states: Any, scale: Any, epsilon: float) -> Any:
        attributes = {"axis_i": -1, "epsilon_f": epsilon, "stash_type_i": 1}
        output = graph.op("SimplifiedLayerNormalization", hidden_states, scale, **attributes)
        output.setType(hidden_states.type())
        return output


class TorchScriptEmitter:
    """Writes nodes through the `symbolic` of autograd functions, which the TorchScript exporter asks for them."""

    def group_query_attention(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `lowering.Emitter`."""
        inputs = [call.query, call.key, call.value, call.past_key, call.past_value, call.row_lengths, call.total_length]
        inputs += call.rotary_tables or ()
        output, present_key, present_value = _GroupQueryAttention.apply(call.attributes, *inputs)  # type: ignore[no-untyped-call]
        return output, present_key, present_value

    def rms_norm(self, hidden_states: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `lowering.Emitter`."""
        normed: torch.Tensor = _RmsNorm.apply(hidden_states, scale, epsilon)  # type: ignore[no-untyped-call]
        return normed
