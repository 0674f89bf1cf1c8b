"""Keeps a written graph's keys and values in int8, a scale for every channel, calibrated on text of the model's own.

Runs the graph through the runtime's own session, so that what is measured is what the attention nodes write into their
buffers: rotated, and computed at the precision of the bundle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from swift_edge.bundle.manifest import Bundle
from swift_edge.engine.session import ModelSession
from swift_edge.errors import ExportError, UnsupportedModelError
from swift_edge_export.packing.own_text import write_texts

TEXTS = 8
"""Texts that are written, side by side."""
TOKENS = 256
"""Tokens of each, or as many as the context holds."""
LARGEST_CODE = 127
MARGIN = 1.5
"""The largest number that has a code, as a multiple of the largest that was seen; what lies beyond is cut to it.

On the model in `models/small-steps` and problems that it was not calibrated on, a margin of 1 / 1.25 / 1.5 / 2 costs a
KL divergence of 7.6e-4 / 1.6e-4 / 0.6e-4 / 1.7e-4 a token: cutting off is worse than coarse steps.
"""
LEAST_SHARE = 1 / 16
"""No channel of a head has a scale below this share of the head's largest: one that was silent may yet speak, and so
fine a step next to a coarse one gains nothing."""
# Inputs of GroupQueryAttention, by their place.
_PAST_KEY, _PAST_VALUE, _COSINES, _KEY_SCALES, _VALUE_SCALES = 3, 4, 7, 12, 13


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """An attention node and what it says of its keys."""

    node: ir.Node
    rotated: int
    """leading dimensions of a key that the node itself turns, in pairs half of this apart; 0 where it turns none"""


def quantize_kv(bundle: Bundle, seed: int = 0) -> None:
    """Rewrite the graph of a bundle that is still being made: past and present become int8, their scales constants.

    A number x of channel c is kept as round(x / scale[c]), cut to [-128, 127]. Scales are float32 [1, h, 1, k].

    Raises:
        ExportError: keys or values are not finite on the model's own text.
        UnsupportedModelError: something other than an attention node reads or writes keys and values.
    """
    model = ir.load(bundle.model_path)
    layers = _attention_layers(model.graph, bundle.manifest.architecture.num_layers)
    key_limits, value_limits = _measure(bundle, [layer.rotated for layer in layers], seed)
    for number, layer in enumerate(layers):
        node = layer.node
        node.resize_inputs(_VALUE_SCALES + 1)
        for place, limits, part in (
            (_KEY_SCALES, key_limits[number], "key"),
            (_VALUE_SCALES, value_limits[number], "value"),
        ):
            node.replace_input_with(place, _constant(model.graph, f"{part}_scales.{number}", _scales(limits)))
        for value in (node.inputs[_PAST_KEY], node.inputs[_PAST_VALUE], node.outputs[1], node.outputs[2]):
            assert value is not None
            value.dtype = ir.DataType.INT8
        node.attributes.add(ir.AttrString("k_quant_type", "PER_CHANNEL"))
        node.attributes.add(ir.AttrString("v_quant_type", "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", 8))
    ir.save(model, bundle.model_path)


def _attention_layers(graph: ir.Graph, count: int) -> list[_Layer]:
    """The attention nodes in the order of their layers, each alone with its keys and values."""
    layers: dict[str, _Layer] = {}
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        past = [node.inputs[_PAST_KEY], node.inputs[_PAST_VALUE]]
        presents = list(node.outputs[1:3])
        alone = all(value is not None and value.is_graph_input() and len(value.uses()) == 1 for value in past)
        if not alone or not all(value.is_graph_output() and not value.uses() for value in presents):
            raise UnsupportedModelError(
                f"the node {node.name} is not alone with its keys and values, which int8 would take from others; "
                "leave out --kv-cache int8"
            )
        assert past[0] is not None
        rotated = 0
        if node.attributes.get_int("do_rotary", 0):
            table = node.inputs[_COSINES]
            assert table is not None
            assert table.const_value is not None
            rotated = 2 * int(table.const_value.shape.numpy()[-1])
        layers[str(past[0].name)] = _Layer(node, rotated)
    names = [f"past_key_values.{number}.key" for number in range(count)]
    if sorted(names) != sorted(layers):
        raise UnsupportedModelError(
            f"the graph has {len(layers)} attention nodes with keys and values of their own, expected {count}; "
            "leave out --kv-cache int8"
        )
    return [layers[name] for name in names]


def _measure(
    bundle: Bundle, rotated: Sequence[int], seed: int
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """The largest magnitudes [h, k] of keys and of values, layer by layer, while the model writes."""
    session = ModelSession(bundle)
    batch = write_texts(session, bundle, TEXTS, TOKENS, seed).cache
    key_limits = []
    for keys, turned in zip(batch.keys, rotated, strict=True):
        key_limits.append(_largest([_amplitudes(row, turned) for row in _valid(keys, batch.lengths)]))
    value_limits = [_largest(_valid(values, batch.lengths)) for values in batch.values]
    if not all(np.isfinite(limits).all() for limits in (*key_limits, *value_limits)):
        raise ExportError(
            "keys or values leave the range of their type on text that the model writes, so that they have no scale; "
            "use --precision fp32, int8 or int4, or leave out --kv-cache int8"
        )
    return key_limits, value_limits


def _valid(buffers: NDArray[np.generic], lengths: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """What the rows of a buffer [n, h, c, k] hold, as float32 [h, t, k] each."""
    return [buffers[row, :, :length].astype(np.float32) for row, length in enumerate(lengths)]


def _largest(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The largest magnitude of every channel [h, k] over the tokens of rows [h, t, k]."""
    limits: NDArray[np.float32] = np.max([np.abs(row).max(axis=1) for row in rows], axis=0)
    return limits


def _amplitudes(keys: NDArray[np.float32], rotated: int) -> NDArray[np.float32]:
    """Keys [h, t, k] with every turned number replaced by the length of its pair.

    A position turns each pair by an angle of its own: the length of the pair is what bounds both of its numbers at
    positions that no text of a few hundred tokens reaches.
    """
    half = rotated // 2
    lengths = np.hypot(keys[..., :half], keys[..., half:rotated])
    return np.concatenate([lengths, lengths, keys[..., rotated:]], axis=-1)


def _scales(limits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales [1, h, 1, k] from the largest magnitudes [h, k]; 1 throughout a head that is always zero."""
    heads = limits.max(axis=-1, keepdims=True)  # [h, 1]
    unguarded = np.maximum(limits, heads * LEAST_SHARE) * (MARGIN / LARGEST_CODE)
    scales: NDArray[np.float32] = np.where(heads > 0, unguarded, 1).astype(np.float32)
    return scales[None, :, None, :]


def _constant(graph: ir.Graph, name: str, array: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
