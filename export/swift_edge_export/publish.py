"""The whole export on one page: read a checkpoint, trace it, pack it, compare it with torch, publish the bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.metadata
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from swift_edge import __version__
from swift_edge.bundle.folder import staging_folder, write_bundle
from swift_edge.bundle.manifest import (
    HEAD_NAME,
    MODEL_NAME,
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    Bundle,
    Graph,
    HiddenStates,
    Manifest,
    Precision,
)
from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.checks import parse_layers
from swift_edge.engine.providers import kv_cache_obstacle
from swift_edge.errors import (
    ExportError,
    InvalidOptionError,
    ParityError,
    SwiftEdgeError,
    TokenizerError,
    one_line,
)
from swift_edge.scoring.head import check_head, load_head
from swift_edge.system.machine import memory_for
from swift_edge_export import parity
from swift_edge_export.checkpoint import Checkpoint, read_checkpoint, save_tokenizer
from swift_edge_export.loading import fingerprint, finite, load_first_layers, load_model, stored_tensors
from swift_edge_export.packing import kv_quantize, quantize
from swift_edge_export.packing.calibration import measure_inputs
from swift_edge_export.packing.own_text import turns_of
from swift_edge_export.preflight import require_room
from swift_edge_export.progress import stage
from swift_edge_export.rewriting.cleanup import clean
from swift_edge_export.streaming import StreamedModel, layers_of_every_kind
from swift_edge_export.tracing.dynamo import PARAMETERS, trace
from swift_edge_export.tracing.graph import GraphShape, dynamic_axes
from swift_edge_export.tracing.self_check import rotary_can_be_lowered
from swift_edge_export.weight_files import refuse_other_weights

PRECISIONS = ("fp32", "fp16", "int8", "int4")
EXPORTERS = ("dynamo", "optimum")
KV_CACHES = ("float", "int8")
ROUNDINGS = ("calibrated", "nearest")
# Weights smaller than this travel inside model.onnx, so that a small bundle has one file less.
INLINE_MODEL_BYTES = 32 * 1024**2
_RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "onnx-ir",
    "onnxscript",
    "optimum",
    "optimum-onnx",
    "onnxruntime",
    "gguf",
)


@memory_for("the export")
def export_bundle(
    model: str,
    out: Path,
    *,
    precision: Literal["fp32", "fp16", "int8", "int4"] = "fp32",
    layers: str = "all",
    head: Path | None = None,
    kv_cache: Literal["float", "int8"] = "float",
    exporter: Literal["dynamo", "optimum"] = "dynamo",
    revision: str | None = None,
    file: str | None = None,
    trust_remote_code: bool = False,
    block_size: int | None = None,
    rounding: Literal["calibrated", "nearest"] = "calibrated",
    replace: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Export a causal LM from a folder, hub id or GGUF file to a bundle folder `out`.

    Args:
        model: folder or hub id of a transformers causal LM, or a GGUF file.
        out: the folder to write; nothing is there until the bundle is complete and has passed its parity check.
        precision: type of the stored weights; int8 and int4 are weight-only, in blocks.
        layers: which hidden states are outputs: `all`, `last:K`, or indices such as `0,4,8`.
        head: a head file to put into the bundle.
        kv_cache: `float` keeps keys and values in the type of the activations, `int8` in a quarter of float32's memory,
            rounded with scales that are fitted here.
        exporter: who traces: `dynamo` is torch.onnx.export, `optimum` is optimum's TorchScript exporter.
        revision: commit, tag or branch on the hub.
        file: name of a GGUF file in the folder or on the hub, which is read instead of a checkpoint.
        trust_remote_code: run code that comes with the checkpoint.
        block_size: weights that share a scale, for int8 and int4; a power of two, by default 128.
        rounding: how int8 and int4 round weights: `calibrated` fits scales and rounding to text that the model writes,
            `nearest` takes the nearest code, which is what is done where weights are read one at a time, too.
        replace: write over a bundle that is there already.
        report: called with each line of the report as it is known.

    Raises:
        SwiftEdgeError: a leaf that says what was found; `out` is as it was before.
    """
    if precision not in PRECISIONS or kv_cache not in KV_CACHES or exporter not in EXPORTERS:
        raise InvalidOptionError(
            f"precision is {precision!r}, kv_cache {kv_cache!r} and exporter {exporter!r}; expected one of "
            f"{', '.join(PRECISIONS)}, one of {', '.join(KV_CACHES)} and one of {', '.join(EXPORTERS)}"
        )
    if rounding not in ROUNDINGS:
        raise InvalidOptionError(f"rounding is {rounding!r}, expected one of {', '.join(ROUNDINGS)}")
    if rounding != ROUNDINGS[0] and precision not in quantize.BITS:
        raise InvalidOptionError(f"rounding is {rounding!r}, but {precision} has no codes: leave it out")
    if block_size is not None and precision not in quantize.BITS:
        raise InvalidOptionError(f"block_size is {block_size}, but {precision} has no blocks: leave it out")
    packing: Literal["int8", "int4"] | None = precision if precision == "int8" or precision == "int4" else None
    if packing is not None:
        quantize.check_options(packing, block_size or quantize.BLOCK_SIZE, quantize.ACCURACY_LEVEL)
    obstacle = kv_cache_obstacle(Precision(precision, kv_cache=_cache_precision(kv_cache)))
    if obstacle is not None:
        raise ExportError(f"{obstacle}, or leave out --kv-cache int8")
    logging: Any = transformers_logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    loaded_head = load_head(head) if head is not None else None
    started = time.perf_counter()
    with staging_folder(out, replace=replace) as staging:
        if head is not None:  # what is checked is what is published, whatever becomes of the file meanwhile
            shutil.copyfile(head, staging / HEAD_NAME)
            loaded_head = load_head(staging / HEAD_NAME)
        with stage("read config and tokenizer", report):
            checkpoint = read_checkpoint(model, revision, file=file, trust_remote_code=trust_remote_code)
        shape = _graph_shape(checkpoint, layers)
        save_tokenizer(checkpoint, staging)
        first = _manifest(checkpoint, shape, "", exporter, precision)
        _require_prompt(_staged(staging, first, checkpoint), checkpoint.source)
        streamed = require_room(checkpoint, staging, precision, exporter, rounding, report)

        def begin_manifest(identity: str) -> Manifest:
            manifest = _manifest(checkpoint, shape, identity, exporter, precision)
            precision_with_cache = dataclasses.replace(manifest.precision, kv_cache=_cache_precision(kv_cache))
            published = dataclasses.replace(manifest, precision=precision_with_cache)
            for warning in check_head(loaded_head, published) if loaded_head is not None else ():
                report(f"  {warning}")
            return manifest

        # From here on only the graph holds the weights.
        if streamed:
            manifest, reference, graph = _from_files(checkpoint, shape, precision, report, begin_manifest, staging)
        else:
            loaded = _from_memory(checkpoint, shape, precision, exporter, report, begin_manifest, staging)
            manifest, reference, graph = loaded
        with stage("rewrite graph", report):
            before = len(graph.graph)
            applied = clean(graph, dynamic_axes)
            after = len(graph.graph)
        report(f"  {before} nodes became {after}: " + ", ".join(f"{times} {name}" for name, times in applied.items()))
        fit = None
        if packing is not None and rounding == "calibrated" and streamed:
            report("  weights that are read one at a time get their nearest codes")
        elif packing is not None and rounding == "calibrated":
            fit = _fit_rounding(graph, _staged(staging, manifest, checkpoint), packing, block_size, report)
        with stage(f"write {precision} weights", report) as note:
            packed = _write_graph(graph, staging, packing, block_size, note, fit)
        del graph
        gc.collect()
        if packed is not None:
            stored = Precision(
                precision,
                packed.block_size,
                packed.accuracy_level,
                carried=packed.carried or None,
                zero_points=packed.zero_points or None,
                fitted_tokens=packed.fitted_tokens or None,
            )
            if packed.fitted_tokens:
                feedback = f"; {packed.fed_back} were rounded with error feedback" if packed.fed_back else ""
                report(f"  {packed.scaled} of {packed.matrices} matrices have other scales of their inputs{feedback}")
            if packed.carried:
                report(
                    f"  {packed.carried} of {packed.matrices} matrices are exactly those of the model, codes and all"
                )
            manifest = dataclasses.replace(manifest, precision=stored)
        figures = _judge(_staged(staging, manifest, checkpoint), reference, report)
        if kv_cache == "int8":
            # The graph has shown that it computes what the model does; from here on it is a matter of rounding.
            with stage("calibrate keys and values", report):
                kv_quantize.quantize_kv(_staged(staging, manifest, checkpoint))
            precision_with_cache = dataclasses.replace(manifest.precision, kv_cache=kv_cache)
            manifest = dataclasses.replace(manifest, precision=precision_with_cache)
            figures = _judge(_staged(staging, manifest, checkpoint), reference, report)
        if (loss := figures.clear_loss) is not None:
            higher = "a higher --precision or a smaller --block-size"
            report(
                f"  warning: {loss}; "
                + (f"{higher} keeps more" if kv_cache == "float" else f"{higher}, or --kv-cache float, keeps more")
            )
        with stage("hash files", report):
            manifest = write_bundle(staging, dataclasses.replace(manifest, parity=figures.to_dict()))
    megabytes = sum(file.size for file in manifest.files.values()) / 1e6
    report(f"{out}: {megabytes:.1f} MB, {time.perf_counter() - started:.1f} s")
    return manifest


_Traced = tuple[Manifest, Sequence[parity.ReferenceRow], ir.Model]
"""What the torch model gave: whose weights it has, what it computes, and its graph with the weights."""


def _from_memory(
    checkpoint: Checkpoint,
    shape: GraphShape,
    precision: str,
    exporter: str,
    report: Callable[[str], None],
    begin_manifest: Callable[[str], Manifest],
    staging: Path,
) -> _Traced:
    """Load the model as a whole and trace it; `begin_manifest` refuses a fingerprint that is not wanted."""
    with stage("load weights", report):
        model = load_model(checkpoint, lambda line: report(f"  {line}"))
        identity = fingerprint(finite(checkpoint.source, stored_tensors(model)))
    manifest = begin_manifest(identity)
    with stage("run torch for reference", report):
        conversation = None
        if precision in quantize.BITS:  # what they lose shows where they are used
            turns = turns_of(_staged(staging, manifest, checkpoint))
            conversation = parity.Conversation(turns, manifest.tokens.eos_ids, manifest.sampling)
        context_length = checkpoint.architecture.context_length
        reference = parity.record_reference(model, context_length, conversation=conversation)
    rotary = _check_lowering(model, shape, report)
    with stage(f"trace with {exporter}", report):
        if precision == "fp16":
            _halve(model)
        graph = _trace(model, shape, exporter, report, rotary)
    return manifest, reference, graph


def _from_files(
    checkpoint: Checkpoint,
    shape: GraphShape,
    precision: str,
    report: Callable[[str], None],
    begin_manifest: Callable[[str], Manifest],
    staging: Path,
) -> _Traced:
    """Trace a model of placeholders, and let the graph read the weights from their files one by one.

    That the graph computes what the model does is shown exactly on the first layers, as transformers loads them; on the
    whole model it can only be shown at the precision that fits into memory.
    """
    with stage("read weights", report) as note:
        refuse_other_weights(checkpoint)
        whole = StreamedModel(checkpoint)
        for line in whole.notes:
            report(f"  {line}")
        identity = fingerprint(finite(checkpoint.source, whole.weights(note)))
    manifest = begin_manifest(identity)
    count = min(layers_of_every_kind(checkpoint.config), shape.num_layers)
    few = StreamedModel(checkpoint, layers=count)
    few_shape = dataclasses.replace(shape, num_layers=count, hidden_layers=tuple(range(count + 1)))
    with few.reading() as model:
        rotary = _check_lowering(model, few_shape, report)
    with stage(f"run {count} layers in torch", report):
        reference = _first_layers_as_loaded(checkpoint, few, count)
        whole.require_contents(shape.num_layers - 1)
    with stage(f"trace {count} layers", report):
        graph = _trace(few.model, few_shape, "dynamo", report, rotary)
        few.attach(graph, PARAMETERS)
        clean(graph, dynamic_axes)
    with stage(f"compare {count} layers in fp32", report) as note, tempfile.TemporaryDirectory(dir=staging) as folder:
        _write_graph(graph, Path(folder), None, None, note)
        architecture = dataclasses.replace(checkpoint.architecture, num_layers=count)
        few_manifest = _manifest(checkpoint, few_shape, identity, "dynamo", "fp32")
        bundle = _staged(Path(folder), dataclasses.replace(few_manifest, architecture=architecture), checkpoint)
        figures = _compare(bundle, reference)
    report(f"  largest relative error {figures.worst:.2e}")
    figures.require("fp32")
    del few, graph
    with stage("run torch for reference", report) as note, whole.reading(note) as model:
        reference = parity.record_reference(model, shape.context_length, own_samples=False)
    with stage("trace with dynamo", report):
        if precision == "fp16":
            whole = StreamedModel(checkpoint, torch.float16)
        graph = _trace(whole.model, shape, "dynamo", report, rotary)
        whole.attach(graph, PARAMETERS)
    return manifest, reference, graph


def _first_layers_as_loaded(checkpoint: Checkpoint, few: StreamedModel, count: int) -> list[parity.ReferenceRow]:
    """What the first layers compute as transformers loads them; ParityError unless `few` has the same weights."""
    loaded = load_first_layers(checkpoint, count)
    few.require_weights_of(loaded)
    return parity.record_reference(loaded, checkpoint.architecture.context_length, own_samples=False)


def _check_lowering(model: PreTrainedModel, shape: GraphShape, report: Callable[[str], None]) -> bool:
    """Whether the rotary embedding can move into the attention node."""
    with stage("check the lowering", report):
        rotary = rotary_can_be_lowered(model, shape)
    if not rotary:
        report("  rotary embedding left as traced: something stands between it and the attention")
    return rotary


def _manifest(
    checkpoint: Checkpoint,
    shape: GraphShape,
    identity: str,
    exporter: str,
    precision: Literal["fp32", "fp16", "int8", "int4"],
) -> Manifest:
    """What the bundle says about itself, as far as it is known before it is written."""
    return Manifest(
        base_model=checkpoint.name,
        base_revision=checkpoint.revision,
        fingerprint=identity,
        architecture=checkpoint.architecture,
        precision=Precision(precision),
        hidden_states=HiddenStates(shape.hidden_layers),
        graph=Graph(kv="in-place"),
        tokens=checkpoint.tokens,
        sampling=checkpoint.sampling,
        files={},
        exporter={"exporter": exporter, **_versions()},
        parity={},
    )


def _graph_shape(checkpoint: Checkpoint, layers: str) -> GraphShape:
    architecture = checkpoint.architecture
    return GraphShape(
        num_layers=architecture.num_layers,
        kv_heads=architecture.num_key_value_heads,
        head_dim=architecture.head_dim,
        hidden_layers=parse_layers(layers, range(architecture.num_layers + 1)),
        context_length=architecture.context_length,
    )


def _require_prompt(bundle: Bundle, source: str) -> None:
    """Raise TokenizerError where the runtime can make no prompt: the bundle would be complete, and every pick fail."""
    tokenizer = Tokenizer(bundle)
    user = {"role": "user", "content": "1"}
    # Some templates insist on a system message.
    prompts: list[Any] = [[user], [{"role": "system", "content": "1"}, user]] if bundle.chat_template else ["1"]
    errors = []
    for prompt in prompts:
        try:
            tokenizer.encode_prompt(prompt)
            return
        except SwiftEdgeError as error:
            errors.append(str(error).replace(str(bundle.path), source))
    raise TokenizerError(f"no prompt can be made with the tokenizer and the chat template of {source}: {errors[0]}")


def _halve(model: PreTrainedModel) -> None:
    """Turn the weights into float16, but not the rotary frequencies: times a long position their error is radians."""
    rotary = [module for module in model.modules() if "RotaryEmbedding" in type(module).__name__]
    frequencies = [(module, name, buffer) for module in rotary for name, buffer in module.named_buffers(recurse=False)]
    nn.Module.half(model)
    for module, name, buffer in frequencies:
        setattr(module, name, buffer)


def _trace(
    model: PreTrainedModel, shape: GraphShape, exporter: str, report: Callable[[str], None], rotary: bool
) -> ir.Model:
    def note(line: str) -> None:
        report(f"  {line}")

    if exporter == "optimum":
        from swift_edge_export.tracing.optimum import trace_with_optimum  # its extra excludes the default one

        return trace_with_optimum(model, shape, note, rotary=rotary)
    return trace(model, shape, note, rotary=rotary)


def _write_graph(
    graph: ir.Model,
    folder: Path,
    packing: Literal["int8", "int4"] | None,
    block_size: int | None,
    note: Callable[[float], None],
    fit: quantize.Fit | None = None,
) -> quantize.Quantization | None:
    path = folder / MODEL_NAME
    if packing is not None:
        return quantize.quantize(graph, path, packing, block_size=block_size or quantize.BLOCK_SIZE, fit=fit, note=note)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    external = None if size <= INLINE_MODEL_BYTES else f"{MODEL_NAME}.data"
    ir.save(graph, path, external_data=external, callback=lambda _, progress: note(progress.index / progress.total))
    return None


def _fit_rounding(
    graph: ir.Model,
    bundle: Bundle,
    packing: Literal["int8", "int4"],
    block_size: int | None,
    report: Callable[[str], None],
) -> quantize.Fit:
    """Let a draft of the bundle write text, and fit rounding to what it reads; `graph` can only be packed then."""
    size = block_size or quantize.BLOCK_SIZE
    with tempfile.TemporaryDirectory(dir=bundle.path) as folder:
        path = Path(folder) / MODEL_NAME
        with stage("write a draft", report) as note:
            quantize.quantize(graph, path, "int8", block_size=size, note=note)
        precision = dataclasses.replace(bundle.manifest.precision, name="int8")
        manifest = dataclasses.replace(bundle.manifest, precision=precision)
        draft = dataclasses.replace(bundle, path=Path(folder), model_path=path, manifest=manifest)
        with stage("let it write text", report) as note:
            read = measure_inputs(draft, moments=packing == "int4", note=note)
    with stage("fit scales", report) as note:
        return quantize.fit_rounding(graph, read, packing, block_size=size, note=note)


def _cache_precision(kv_cache: str) -> Literal["int8"] | None:
    """The manifest's word for an option."""
    return "int8" if kv_cache == "int8" else None


def _judge(bundle: Bundle, reference: Sequence[parity.ReferenceRow], report: Callable[[str], None]) -> parity.Parity:
    """Compare, report the figures, and refuse a graph that is not good enough for its precision."""
    precision = bundle.manifest.precision
    with stage("compare with torch", report):
        figures = _compare(bundle, reference)
    for line in figures.table():
        report(f"  {line}")
    figures.require(
        precision.label, "use a higher --precision" if precision.kv_cache is None else "leave out --kv-cache int8"
    )
    return figures


def _compare(bundle: Bundle, reference: Sequence[parity.ReferenceRow]) -> parity.Parity:
    """Compare, and refuse a graph that onnxruntime does not open or run."""
    try:
        return parity.compare(bundle, reference)
    except Exception as error:
        # What onnxruntime said, without the session's words around it: they name a folder that is about to go.
        reason = one_line(error.__cause__ or error)
        raise ParityError(f"the exported graph does not run: {reason}; try the other --exporter") from error


def _staged(staging: Path, manifest: Manifest, checkpoint: Checkpoint) -> Bundle:
    """The bundle as it will be, opened before its files are listed."""
    return Bundle(
        path=staging,
        manifest=manifest,
        model_path=staging / MODEL_NAME,
        tokenizer_path=staging / TOKENIZER_NAME,
        chat_template=checkpoint.chat_template if (staging / TEMPLATE_NAME).exists() else None,
        head_path=None,
    )


def _versions() -> dict[str, str]:
    versions = {"swift-edge": __version__}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
