"""Before anything is traced: does the lowered model still compute what the model computes?

The nodes that a tracer would write are computed by torch instead, on a few random tokens, and compared with the model
as it is. A family that does something between its rotary embedding and its attention (a norm of the rotated queries,
say) shows here, and is traced with its rotary embedding as written.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from swift_edge.errors import UnsupportedModelError
from swift_edge_export.tracing.graph import GraphShape, TracedModel, unsupported
from swift_edge_export.tracing.lowering import AttentionCall, lowered, rotate_halves

CHECKED_TOKENS = 12
TOLERANCE = 1e-4


class EagerEmitter:
    """Computes what `GroupQueryAttention` and `SimplifiedLayerNormalization` are defined to compute, without a past."""

    def group_query_attention(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `lowering.Emitter`; the present key and value are the past's buffers, not written to."""
        rows, steps, _ = call.query.shape
        heads, kv_heads = int(call.attributes["num_heads"]), int(call.attributes["kv_num_heads"])
        query = call.query.reshape(rows, steps, heads, -1).transpose(1, 2)  # [n, heads, s, k]
        key = call.key.reshape(rows, steps, kv_heads, -1).transpose(1, 2)  # [n, h, s, k]
        value = call.value.reshape(rows, steps, kv_heads, -1).transpose(1, 2)  # [n, h, s, k]
        if call.rotary_tables is not None:
            cosines, sines = (torch.cat((table, table), dim=-1)[None, :steps] for table in call.rotary_tables)
            query, key = rotate_halves(query, cosines, sines), rotate_halves(key, cosines, sines)
        key, value = (states.repeat_interleave(heads // kv_heads, dim=1) for states in (key, value))
        weights = query @ key.transpose(2, 3) * call.attributes["scale"]  # [n, heads, s, s]
        softcap = call.attributes.get("softcap")
        if softcap:
            weights = softcap * torch.tanh(weights / softcap)
        distance = torch.arange(steps)[:, None] - torch.arange(steps)
        window = call.attributes.get("local_window_size", steps)
        weights = weights.masked_fill((distance < 0) | (distance >= window), float("-inf"))
        output = weights.softmax(-1) @ value
        return output.transpose(1, 2).reshape(rows, steps, -1), call.past_key, call.past_value

    def rms_norm(self, hidden_states: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `lowering.Emitter`."""
        mean_square = hidden_states.float().pow(2).mean(-1, keepdim=True)
        return (hidden_states.float() * torch.rsqrt(mean_square + epsilon) * scale.float()).to(hidden_states.dtype)


def rotary_can_be_lowered(model: PreTrainedModel, shape: GraphShape) -> bool:
    """Whether the lowered fp32 model computes the same with its rotary embedding inside the attention node.

    Raises:
        UnsupportedModelError: not even without; or the lowering refuses the model.
    """
    errors = []
    for rotary in (True, False):
        try:
            errors.append(_largest_error(model, shape, rotary))
        except Exception as error:
            raise unsupported(model, error) from error
        if errors[-1] <= TOLERANCE:
            return rotary
    raise UnsupportedModelError(
        f"{type(model).__name__} computes something else once its attention is lowered to GroupQueryAttention "
        f"(relative error {errors[-1]:.1e}, expected at most {TOLERANCE:.0e}): its attention is not plain, "
        "or something stands between it and the layer"
    )


def _largest_error(model: Any, shape: GraphShape, rotary: bool) -> float:
    """The largest relative error of logits and hidden states, lowered against as it is."""
    tokens = min(CHECKED_TOKENS, shape.context_length)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    mask, positions = torch.ones_like(ids), torch.arange(tokens)[None]
    past = [torch.zeros(1, shape.kv_heads, tokens, shape.head_dim, dtype=model.dtype)] * (2 * shape.num_layers)
    with torch.no_grad():
        outputs = model(ids, output_hidden_states=True, use_cache=False)
        expected = [outputs.logits[0], *(outputs.hidden_states[layer] for layer in shape.hidden_layers)]
        with lowered(model, EagerEmitter(), shape.context_length, rotary=rotary) as state:
            try:
                flat = TracedModel(model, state, shape)(ids, mask, positions, torch.arange(tokens), *past)
            except Exception as error:
                raise unsupported(model, error) from error
    actual = [flat[0], *flat[1 + 2 * shape.num_layers :]]
    errors = [
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        for one, other in zip(actual, expected, strict=True)
    ]
    return max(error if error == error else float("inf") for error in errors)  # NaN is no agreement
