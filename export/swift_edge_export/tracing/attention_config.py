"""What a model's config says of its attention: the windows of its layers, the context it holds, and what is refused."""

from __future__ import annotations

from transformers import PretrainedConfig

from swift_edge.errors import UnsupportedModelError

# What configs call the number of experts that a router chooses from.
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Rope types whose frequencies depend on the length: exact as a table only up to the length where they change.
_LENGTH_DEPENDENT_ROPE = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}


def buffer_head_dim(head_dim: int) -> int:
    """Width k of a head in the KV buffers: GroupQueryAttention takes multiples of 8, others are filled up to one."""
    return -(-head_dim // 8) * 8


def check_config(config: PretrainedConfig) -> None:
    """Refuse a model that its config alone shows to be out of reach, before its weights are loaded.

    Raises:
        UnsupportedModelError: a mixture of experts, or attention that `expected_windows` refuses.
    """
    experts = max(int(getattr(config, name, None) or 0) for name in _EXPERT_COUNTS)
    if experts > 1:
        raise UnsupportedModelError(
            f"{config.model_type} is a mixture of {experts} experts, whose routing cannot be traced; "
            "expected a dense model"
        )
    expected_windows(config)


def expected_windows(config: PretrainedConfig) -> dict[int, int | None]:
    """The attention window that the config states for each layer (None: all tokens before it).

    The masks that would show it are never built while tracing, so a layer that does not pass its window on would
    silently attend to everything: the attention compares what it is given with this.

    Raises:
        UnsupportedModelError: the config names a kind of attention other than full and sliding, or a bidirectional one.
    """
    if getattr(config, "use_bidirectional_attention", None) or getattr(config, "attention_chunk_size", None):
        raise UnsupportedModelError(
            f"{config.model_type} uses bidirectional or chunked attention, which GroupQueryAttention does not have"
        )
    window = getattr(config, "sliding_window", None)
    if hasattr(config, "use_sliding_window") and not config.use_sliding_window:
        window = None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * (
        config.num_hidden_layers
    )
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of the kinds {', '.join(others)}; "
            "expected full and sliding attention alone"
        )
    return {layer: window if kind == "sliding_attention" else None for layer, kind in enumerate(kinds)}


def exact_context_length(config: PretrainedConfig) -> tuple[int, str | None]:
    """Tokens up to which the traced graph equals the model, and a note where that is less than the config states.

    A rope whose frequencies change with the length is frozen at those of its first range.
    """
    stated = int(config.max_position_embeddings)
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    limits = []
    for rope in [parameters, *(inner for inner in parameters.values() if isinstance(inner, dict))]:
        attribute = _LENGTH_DEPENDENT_ROPE.get(str(rope.get("rope_type", rope.get("type", ""))))
        if attribute:
            limits.append(int(rope.get(attribute) or getattr(config, attribute, None) or stated))
    exact = min([stated, *limits])
    if exact == stated:
        return stated, None
    return (
        exact,
        f"context cut from {stated} to {exact} tokens: beyond that the rotary frequencies depend on the length",
    )
