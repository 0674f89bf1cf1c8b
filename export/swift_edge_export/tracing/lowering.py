"""What a causal LM is turned into while it is traced: attention, root-mean-square norms and rotary embeddings become
single ONNX Runtime nodes.

The lowering patches a transformers model for as long as it is traced and puts everything back afterwards. It does not
know which tracer runs (an `Emitter` writes the nodes) and never edits a finished graph (`cleanup` does).

Every replacement is exact or is not made: a norm or a rotary function is lowered only where a numeric self-check with
random inputs reproduces the module, and attention that asks for anything `GroupQueryAttention` cannot express is
refused with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swift_edge.errors import UnsupportedModelError
from swift_edge_export.tracing.attention_config import buffer_head_dim, expected_windows

ATTENTION_NAME = "swift_edge_group_query_attention"
# The rotary kernel of GroupQueryAttention reads the table in vectors of 8 pairs.
ROTARY_DIM_MULTIPLE = 16
# Attention keywords that carry no mathematics of their own: positions, flags and what the caller wants returned.
_INERT_KEYWORDS = frozenset(
    {
        "cache_position",
        "position_ids",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "is_causal",
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionCall:
    """One attention layer as the model asked for it, in the terms of `GroupQueryAttention`."""

    query: torch.Tensor
    """[n, s, heads * k]"""
    key: torch.Tensor
    """[n, s, h * k]"""
    value: torch.Tensor
    """[n, s, h * k]"""
    past_key: torch.Tensor
    """[n, h, c, k]"""
    past_value: torch.Tensor
    """[n, h, c, k]"""
    row_lengths: torch.Tensor
    """int32 [n], valid tokens of each row after this step, minus one"""
    total_length: torch.Tensor
    """int32 scalar, the width of the attention mask"""
    rotary_tables: tuple[torch.Tensor, torch.Tensor] | None
    """cosine and sine [context, rotary dims / 2], or None where the keys arrive rotated or need no rotation"""
    attributes: dict[str, int | float]
    """attributes of the node"""


class Emitter(Protocol):
    """Writes ONNX Runtime nodes into the graph of one tracer."""

    def group_query_attention(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Emit attention; returns output [n, s, heads * k] and the present key and value [n, h, c, k]."""

    def rms_norm(self, hidden_states: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Emit a root-mean-square norm over the last axis; same shape as the input."""


@dataclasses.dataclass
class TraceState:
    """What the patched model reads and fills in while it is traced."""

    emitter: Emitter
    past: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    row_lengths: torch.Tensor | None = None
    total_length: torch.Tensor | None = None
    logits_positions: torch.Tensor | None = None
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = dataclasses.field(default_factory=dict)
    pending_rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    expected_windows: dict[int, int | None] = dataclasses.field(default_factory=dict)

    def begin(
        self,
        past: Sequence[tuple[torch.Tensor, torch.Tensor]],
        attention_mask: torch.Tensor,
        logits_positions: torch.Tensor,
    ) -> None:
        """Set the inputs of one traced call and forget the outputs of the last."""
        self.past = past
        self.row_lengths = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        self.total_length = torch.scalar_tensor(attention_mask.shape[1], dtype=torch.int32)
        self.logits_positions = logits_positions
        self.present = {}
        self.pending_rotary = None


# The trace that is running, if any: transformers finds the attention by name and hands it nothing of ours.
_active: list[TraceState] = []


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [n, heads, s, k], key and value [n, h, s, k] -> [n, s, heads, k]."""
    state = _active[-1] if _active else None
    if state is None or state.row_lengths is None or state.total_length is None:
        raise RuntimeError(f"{ATTENTION_NAME} was called outside of a trace")
    family = type(module).__name__
    if attention_mask is not None:
        raise UnsupportedModelError(
            f"{family} builds an attention mask of its own, which GroupQueryAttention cannot take"
        )
    # An argument that is None or off says nothing: mixtures of experts pass such flags through their attention.
    unknown = sorted(
        name
        for name, value in others.items()
        if name not in _INERT_KEYWORDS and value is not None and value is not False
    )
    if unknown:
        raise UnsupportedModelError(
            f"{family} passes attention arguments that are not understood: {', '.join(unknown)}"
        )
    if dropout or others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModelError(f"{family} is not plain causal attention (dropout {dropout}, or not causal)")
    rows, _, steps, _ = query.shape
    # Plain numbers: TorchScript hands out traced sizes, which would become arithmetic inside the graph.
    num_heads, head_dim, kv_heads = int(query.shape[1]), int(query.shape[3]), int(key.shape[1])
    if value.shape[-1] != head_dim or key.shape[-1] != head_dim:
        raise UnsupportedModelError(
            f"{family} has heads of different widths (query {head_dim}, key {key.shape[-1]}, value {value.shape[-1]})"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    if layer in state.present or layer >= len(state.past):
        raise UnsupportedModelError(
            f"{family} runs attention layer {layer} twice or beyond the {len(state.past)} layers"
        )
    expected = state.expected_windows.get(layer)
    if expected != sliding_window:
        raise UnsupportedModelError(
            f"{family} {layer} attends over a window of {sliding_window} tokens where its config says {expected}"
        )
    attributes: dict[str, int | float] = {
        "num_heads": num_heads,
        "kv_num_heads": kv_heads,
        "scale": float(head_dim**-0.5 if scaling is None else scaling),
    }
    if sliding_window is not None:
        attributes["local_window_size"] = int(sliding_window)
    if softcap:
        attributes["softcap"] = float(softcap)
    tables, state.pending_rotary = state.pending_rotary, None
    if tables is not None:
        attributes["do_rotary"] = 1
    past_key, past_value = state.past[layer]
    # Zeros at the end of every head change no product of queries and keys, and are cut off the output again.
    width = buffer_head_dim(head_dim)
    if width > head_dim:
        query, key, value = (nn.functional.pad(states, (0, width - head_dim)) for states in (query, key, value))
    output, present_key, present_value = state.emitter.group_query_attention(
        AttentionCall(
            query=query.transpose(1, 2).reshape(rows, steps, num_heads * width),
            key=key.transpose(1, 2).reshape(rows, steps, kv_heads * width),
            value=value.transpose(1, 2).reshape(rows, steps, kv_heads * width),
            past_key=past_key,
            past_value=past_value,
            row_lengths=state.row_lengths,
            total_length=state.total_length,
            rotary_tables=tables,
            attributes=attributes,
        )
    )
    state.present[layer] = (present_key, present_value)
    output = output.reshape(rows, steps, num_heads, width)
    return output[..., :head_dim] if width > head_dim else output, None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, _attention)


@contextlib.contextmanager
def lowered(model: PreTrainedModel, emitter: Emitter, context_length: int, *, rotary: bool) -> Iterator[TraceState]:
    """Patch `model` for tracing, and restore it on the way out whatever happens; `rotary` lowers that too.

    Raises:
        UnsupportedModelError: the model's attention cannot be replaced.
    """
    state = TraceState(emitter, expected_windows=expected_windows(model.config.get_text_config()))
    previous = model.config._attn_implementation
    with contextlib.ExitStack() as undo:
        if getattr(model, "_supports_attention_backend", False) or getattr(model, "_supports_sdpa", False):
            undo.callback(model.set_attn_implementation, previous)
            model.set_attn_implementation(ATTENTION_NAME)
        if model.config._attn_implementation != ATTENTION_NAME:  # a model may also pass over the request
            raise UnsupportedModelError(
                f"{type(model).__name__} does not let its attention be replaced, "
                "so it cannot be lowered to GroupQueryAttention"
            )
        _lower_norms(model, state, undo)
        if rotary:
            _lower_rotary(model, state, undo, context_length)
        _gather_logits(model, state, undo)
        _active.append(state)
        undo.callback(_active.pop)
        yield state


def _replace(undo: contextlib.ExitStack, owner: nn.Module | ModuleType, name: str, replacement: Any) -> None:
    """Set an attribute and register the way back; an attribute that came from the class is deleted again."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, getattr(owner, name))
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, replacement)


# -- root-mean-square norms ------------------------------------------------------------------------------------------


def _lower_norms(model: PreTrainedModel, state: TraceState, undo: contextlib.ExitStack) -> None:
    left_as_traced: set[str] = set()
    for module in model.modules():
        if "RMSNorm" not in type(module).__name__:
            continue
        lowerable = _norm_scale(module)
        if lowerable is None:
            left_as_traced.add(type(module).__name__)
            continue
        scale, epsilon = lowerable
        module.register_buffer("_lowered_scale", scale, persistent=False)
        undo.callback(delattr, module, "_lowered_scale")

        def forward(hidden_states: torch.Tensor, module: nn.Module = module, epsilon: float = epsilon) -> torch.Tensor:
            return state.emitter.rms_norm(hidden_states, module._lowered_scale, epsilon)  # type: ignore[arg-type]

        _replace(undo, module, "forward", forward)
    if left_as_traced:
        state.notes.append(f"norms left as traced, not plain root-mean-square: {', '.join(sorted(left_as_traced))}")


def _norm_scale(module: nn.Module) -> tuple[torch.Tensor, float] | None:
    """Scale [width] and epsilon with which `x / sqrt(mean(x^2) + epsilon) * scale` reproduces the module, or None."""
    epsilon = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    weight = getattr(module, "weight", None)
    if not isinstance(epsilon, float) or not isinstance(weight, torch.Tensor) or weight.dim() != 1:
        return None
    probe = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            expected = module(probe.to(weight.dtype)).float()
        except (RuntimeError, TypeError):  # more inputs than one, or another layout: not a plain norm
            return None
        normed = probe * torch.rsqrt(probe.pow(2).mean(-1, keepdim=True) + epsilon)
        tolerance = 1e-5 if weight.dtype == torch.float32 else 1e-2
        for scale in (weight.detach(), (weight.detach().float() + 1.0).to(weight.dtype)):
            if torch.allclose(normed * scale.float(), expected, rtol=tolerance, atol=tolerance):
                return scale.clone(), epsilon
    return None


# -- rotary embeddings -----------------------------------------------------------------------------------------------


def _lower_rotary(model: PreTrainedModel, state: TraceState, undo: contextlib.ExitStack, context_length: int) -> None:
    """Let rotary modules hand out whole tables and the family's rotary function put them aside for the next attention.

    The tables travel through the model's own plumbing, so a layer gets the table that its layer type asks for, and a
    layer without rotary gets none.
    """
    rotary_modules = [module for module in model.modules() if "RotaryEmbedding" in type(module).__name__]
    namespace = sys.modules[type(model).__module__]
    apply_rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = vars(namespace).get("apply_rotary_pos_emb")
    if not rotary_modules or apply_rotary is None:
        return
    originals = {id(module): module.forward for module in rotary_modules}
    reason = _rotary_obstacle(model, rotary_modules, apply_rotary)
    if reason is not None:
        state.notes.append(f"rotary embedding left as traced: {reason}")
        return

    for module in rotary_modules:

        def forward(
            hidden_states: torch.Tensor,
            position_ids: torch.Tensor | None = None,
            layer_type: str | None = None,
            module: nn.Module = module,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            del hidden_states, position_ids  # the node derives the positions from the row lengths
            suffix = layer_type or "all"
            return getattr(module, f"_cosines_{suffix}"), getattr(module, f"_sines_{suffix}")

        for layer_type in _rotary_layer_types(model, module):
            probe = torch.zeros(1, dtype=model.dtype)
            positions = torch.arange(context_length)[None]
            extra = () if layer_type is None else (layer_type,)
            with torch.no_grad():
                cosines, sines = originals[id(module)](probe, positions, *extra)
            half = cosines.shape[-1] // 2
            for name, table in (("_cosines", cosines), ("_sines", sines)):
                buffer = f"{name}_{layer_type or 'all'}"
                module.register_buffer(buffer, table[0, :, :half].contiguous(), persistent=False)
                undo.callback(delattr, module, buffer)
        _replace(undo, module, "forward", forward)

    def put_aside(
        query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state.pending_rotary = (cosines, sines)
        return query, key

    _replace(undo, namespace, "apply_rotary_pos_emb", put_aside)


def _rotary_layer_types(model: PreTrainedModel, module: nn.Module) -> list[str | None]:
    """The layer types a rotary module keeps frequencies for; [None] where it has one set for all."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    return sorted({kind for kind in kinds if hasattr(module, f"{kind}_inv_freq")}) or [None]


def _rotary_obstacle(
    model: PreTrainedModel,
    rotary_modules: Sequence[nn.Module],
    apply_rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> str | None:
    """Why the rotary function cannot move into the attention node, or None: a self-check with random inputs."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 5, head_dim, generator=generator) for heads in (2, 1))
    for module in rotary_modules:
        for layer_type in _rotary_layer_types(model, module):
            extra = () if layer_type is None else (layer_type,)
            with torch.no_grad():
                try:
                    cosines, sines = module(torch.zeros(1), torch.arange(5)[None], *extra)
                except (RuntimeError, TypeError, ValueError):
                    return "it does not give cosines and sines by position alone"
                rotary_dim = cosines.shape[-1]
                if cosines.dim() != 3 or rotary_dim % ROTARY_DIM_MULTIPLE or rotary_dim > head_dim:
                    return f"it turns {rotary_dim} of {head_dim} dimensions, not a multiple of {ROTARY_DIM_MULTIPLE}"
                # Some families cut the rotary part out of the heads first and join the rest on afterwards.
                parts = (query[..., :rotary_dim], key[..., :rotary_dim])
                if not any(_turns_halves(apply_rotary, probes, cosines, sines) for probes in ((query, key), parts)):
                    return "its pairs are not the two halves of a head"
    return None


def _turns_halves(
    apply_rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    probes: tuple[torch.Tensor, torch.Tensor],
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> bool:
    """Whether a rotary function takes query and key [n, h, s, k] and does what the attention node does."""
    try:
        actual = apply_rotary(*probes, cosines, sines)
    except (RuntimeError, TypeError):
        return False
    expected = (rotate_halves(tensor, cosines, sines) for tensor in probes)
    return all(torch.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in zip(expected, actual, strict=True))


def rotate_halves(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary embedding as the attention node computes it: states [n, h, s, k], tables [n, s, rotary dims]."""
    half = cosines.shape[-1] // 2
    first, second, rest = states[..., :half], states[..., half : 2 * half], states[..., 2 * half :]
    cosine, sine = cosines[:, None, :, :half], sines[:, None, :, :half]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)


# -- logits where they are asked for ---------------------------------------------------------------------------------


def _gather_logits(model: PreTrainedModel, state: TraceState, undo: contextlib.ExitStack) -> None:
    """Let the output layer see only the positions asked for: [n, s, d] becomes [m, d], and the logits [m, v]."""
    untyped: Any = model
    output_layer = untyped.get_output_embeddings()
    if not isinstance(output_layer, nn.Module):
        raise UnsupportedModelError(f"{type(model).__name__} has no output layer that turns states into logits")
    original = output_layer.forward

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        if state.logits_positions is None:
            raise RuntimeError("the positions of the logits were not set")
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits: torch.Tensor = original(flat.index_select(0, state.logits_positions))
        return logits

    _replace(undo, output_layer, "forward", forward)
