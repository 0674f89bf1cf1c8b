"""The config that transformers would have, from the metadata of a GGUF file; one function for each family.

Keys that no function asks for are refused unless they are off or known to say nothing about the arithmetic: a model
that leaves one aside computes something else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from transformers import PretrainedConfig

from swift_edge.errors import UnsupportedModelError
from swift_edge.records import shown
from swift_edge_export.gguf.container import Contents
from swift_edge_export.gguf.metadata import Metadata
from swift_edge_export.gguf.tensors import dequantized, same_codes

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
# Said of the file, or of how it came about, or the same again as another key or the tensors say.
_SAYING_NOTHING = (
    "vocab_size",
    "rope.scaling.finetuned",
    "rope.scaling.orig_ctx_len",
    "tensor_data_layout",
    "attention.causal",
    "pooling_type",
)
_OFF = (0, 0.0, False, "", "none")
# transformers refuses absurd numbers only after it has made a list of them.
_MOST_LAYERS = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class _Sizes:
    """What every family has."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner_width: int
    context_length: int
    vocab_size: int
    tied: bool

    def common(self) -> dict[str, Any]:
        """As transformers' configs call them."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner_width,
            "max_position_embeddings": self.context_length,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tied,
            # The tokenizer alone says what these are.
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }


class _Family:
    """Reads the metadata of one file; `prefix` stands before the keys of its architecture."""

    def __init__(self, contents: Contents, metadata: Metadata, architecture: str) -> None:
        self.contents = contents
        self.metadata = metadata
        self.architecture = architecture
        self.sizes = self._sizes()

    def key(self, name: str) -> str:
        """A key of this architecture."""
        return f"{self.architecture}.{name}"

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        return self.metadata.whole(self.key(name), default, least=least)

    def number(self, name: str, default: float | None = None) -> float:
        return self.metadata.number(self.key(name), default)

    def has(self, name: str) -> bool:
        return self.key(name) in self.metadata

    def holds(self, tensor: str) -> bool:
        """Whether the first layer has a tensor of that name."""
        return f"blk.0.{tensor}" in self.contents.tensors

    def refuse(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.contents.path} ({self.architecture}) {reason}")

    def _sizes(self) -> _Sizes:
        tensors = self.contents.tensors
        if EMBEDDING not in tensors or len(tensors[EMBEDDING].shape) != 2:
            raise self.refuse(f"has no {EMBEDDING} of two axes; expected a language model, whole and not an adapter")
        vocab_size = tensors[EMBEDDING].shape[0]
        heads, width = self.whole("attention.head_count"), self.whole("embedding_length")
        head_dim = self.whole("attention.key_length", max(1, width // heads))
        if self.whole("attention.value_length", head_dim) != head_dim:
            raise self.refuse("has keys and values of different widths; expected heads that are alike")
        if self.whole("block_count") > _MOST_LAYERS:
            raise self.metadata.wrong(self.key("block_count"), f"at most {_MOST_LAYERS} layers")
        if self.whole("expert_count", 0, least=0) > 1:
            raise self.refuse(
                f"is a mixture of {self.whole('expert_count')} experts, whose routing cannot be traced; "
                "expected a dense model"
            )
        return _Sizes(
            layers=self.whole("block_count"),
            width=width,
            heads=heads,
            kv_heads=self.whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            inner_width=self.whole("feed_forward_length"),
            context_length=self.whole("context_length"),
            vocab_size=vocab_size,
            tied=OUTPUT not in tensors or same_codes(tensors[OUTPUT], tensors[EMBEDDING]),
        )

    # -- rotary embeddings ---------------------------------------------------------------------------------------------

    def rope(self) -> dict[str, Any]:
        """Frequencies and how they are scaled, as `rope_parameters` of transformers 5."""
        base = self.number("rope.freq_base", 10000.0)
        plain: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
        plain |= self._partial()
        tensors = self.contents.tensors
        kind = self.metadata.text(self.key("rope.scaling.type"), "linear")
        factor = self.number("rope.scaling.factor", 1.0) if self.has("rope.scaling.factor") else 1.0
        if factor == 1.0 and self.has("rope.scale_linear"):
            factor = self.number("rope.scale_linear")
        original = self.whole("rope.scaling.original_context_length", self.sizes.context_length)
        attention = self.number("rope.scaling.attn_factor", 1.0)
        if LONG_FACTORS in tensors or SHORT_FACTORS in tensors:
            return plain | {
                "rope_type": "longrope",
                "long_factor": self._factors(LONG_FACTORS),
                "short_factor": self._factors(SHORT_FACTORS),
                "original_max_position_embeddings": original,
                "attention_factor": attention,
            }
        if attention != 1.0 and kind != "yarn":
            raise self.refuse(f"scales its attention by {attention} with a rope of the type {kind!r}; expected yarn")
        if kind == "yarn":
            defaults = (("beta_fast", 32.0), ("beta_slow", 1.0))
            return plain | {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "attention_factor": attention * (0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0),
                **{name: self.number(f"rope.scaling.yarn_{name}", value) for name, value in defaults},
            }
        if kind not in ("none", "linear"):
            raise self.refuse(f"has a rope of the type {kind!r}; expected none, linear, yarn or longrope")
        if ROPE_FACTORS in tensors:
            if kind == "linear" and factor != 1.0:
                raise self.refuse(f"has {ROPE_FACTORS} and a linear factor {factor} as well; expected one of both")
            # One divisor for every frequency, at any length: the same arithmetic under another name.
            factors = self._factors(ROPE_FACTORS)
            return plain | {
                "rope_type": "longrope",
                "long_factor": factors,
                "short_factor": factors,
                "original_max_position_embeddings": self.sizes.context_length,
                "attention_factor": 1.0,
            }
        if kind == "linear" and factor != 1.0:
            return plain | {"rope_type": "linear", "factor": factor}
        return plain

    def _partial(self) -> dict[str, Any]:
        """How much of a head is turned, where that is not all of it."""
        turned = self.whole("rope.dimension_count", self.sizes.head_dim)
        if turned > self.sizes.head_dim or turned % 2:
            raise self.metadata.wrong(self.key("rope.dimension_count"), f"an even number up to {self.sizes.head_dim}")
        return {} if turned == self.sizes.head_dim else {"partial_rotary_factor": turned / self.sizes.head_dim}

    def _factors(self, name: str) -> list[float]:
        if name not in self.contents.tensors:
            raise self.refuse(f"has factors of a long rope, but no {name}; download or convert it again")
        factors: list[float] = dequantized(self.contents.tensors[name]).reshape(-1).tolist()
        turned = self.whole("rope.dimension_count", self.sizes.head_dim)
        if len(factors) != turned // 2 or not all(0 < factor < math.inf for factor in factors):
            raise self.refuse(f"has a {name} that is not {turned // 2} numbers greater than zero; convert it again")
        return factors

    def whole_heads_are_turned(self) -> None:
        """Refuse a rope of a part of the heads, where the family has none."""
        if self._partial():
            raise self.refuse("turns a part of each head, which models of this family do not; convert it again")

    # -- sliding windows -----------------------------------------------------------------------------------------------

    def windows(self, window: int, pattern: int) -> dict[str, Any]:
        """Window and kinds of layers; `window` and `pattern` are what they are where the file says nothing."""
        window = self.whole("attention.sliding_window", window, least=0)
        name, layers = self.key("attention.sliding_window_pattern"), self.sizes.layers
        if isinstance(self.metadata.other(name), int) and not isinstance(self.metadata.other(name), bool):
            pattern = self.metadata.whole(name, least=0)
            stated = None
        else:
            stated = self.metadata.numbers(name, layers)
        slides = (
            [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
            if stated is None
            else [bool(value) for value in stated]
        )
        kinds = ["sliding_attention" if window and each else "full_attention" for each in slides]
        # transformers wants a window even where no layer has one.
        return {"sliding_window": window or self.sizes.context_length, "layer_types": kinds}


def _llama(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    return transformers.LlamaConfig(
        **family.sizes.common(),
        head_dim=family.sizes.head_dim,
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
        attention_bias=family.holds("attn_q.bias"),
        mlp_bias=family.holds("ffn_up.bias"),
    )


def _smollm3(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    # llama.cpp leaves every fourth layer without positions, whatever the file was made from; so does the only model.
    return transformers.SmolLM3Config(
        **family.sizes.common(),
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
        no_rope_layer_interval=4,
        use_sliding_window=False,
        attention_bias=family.holds("attn_q.bias"),
        mlp_bias=family.holds("ffn_up.bias"),
    )


def _granite(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    sizes = family.sizes
    return transformers.GraniteConfig(
        **sizes.common(),
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
        attention_multiplier=family.number("attention.scale", sizes.head_dim**-0.5),
        embedding_multiplier=family.number("embedding_scale", 1.0),
        residual_multiplier=family.number("residual_scale", 1.0),
        logits_scaling=family.number("logit_scale"),
        attention_bias=family.holds("attn_q.bias"),
        mlp_bias=family.holds("ffn_up.bias"),
    )


def _qwen2(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    return transformers.Qwen2Config(
        **family.sizes.common(),
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
        use_sliding_window=False,
    )


def _qwen3(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    return transformers.Qwen3Config(
        **family.sizes.common(),
        head_dim=family.sizes.head_dim,
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
        use_sliding_window=False,
        attention_bias=family.holds("attn_q.bias"),
    )


def _phi3(family: _Family) -> PretrainedConfig:
    rope = family.rope()
    # llama.cpp leaves the window of these models out, and so does a text no longer than it.
    window = family.whole("attention.sliding_window", 0, least=0)
    return transformers.Phi3Config(
        **family.sizes.common(),
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope,
        original_max_position_embeddings=rope.get("original_max_position_embeddings", family.sizes.context_length),
        sliding_window=window or None,
    )


def _gemma(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    return transformers.GemmaConfig(
        **family.sizes.common(),
        head_dim=family.sizes.head_dim,
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
    )


def _gemma2(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    sizes = family.sizes
    return transformers.Gemma2Config(
        **sizes.common(),
        **family.windows(window=4096, pattern=2),
        head_dim=sizes.head_dim,
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
        query_pre_attn_scalar=_query_scale(sizes, largest=46),
        attn_logit_softcapping=family.number("attn_logit_softcapping", 50.0),
        final_logit_softcapping=family.number("final_logit_softcapping", 30.0),
    )


def _gemma3(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    sizes = family.sizes
    sliding = {"rope_type": "default", "rope_theta": family.number("rope.freq_base_swa", 10000.0)}
    softcap = family.number("final_logit_softcapping") if family.has("final_logit_softcapping") else None
    return transformers.Gemma3TextConfig(
        **sizes.common(),
        **family.windows(window=0, pattern=6),
        head_dim=sizes.head_dim,
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"full_attention": family.rope(), "sliding_attention": sliding},
        query_pre_attn_scalar=_query_scale(sizes, largest=62),
        final_logit_softcapping=softcap,
    )


def _query_scale(sizes: _Sizes, largest: int) -> int:
    """What the queries are divided by, squared: the width of a head, but in the largest model that was published."""
    return sizes.width // sizes.heads if sizes.layers == largest else sizes.head_dim


def _olmo2(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    if family.whole("attention.sliding_window", 0, least=0):
        raise family.refuse("has layers with a sliding window, as OLMo 3; expected OLMo 2")
    family.metadata.other(family.key("attention.sliding_window_pattern"))
    return transformers.Olmo2Config(
        **family.sizes.common(),
        rms_norm_eps=family.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=family.rope(),
    )


def _starcoder2(family: _Family) -> PretrainedConfig:
    family.whole_heads_are_turned()
    return transformers.Starcoder2Config(
        **family.sizes.common(),
        norm_epsilon=family.number("attention.layer_norm_epsilon"),
        rope_parameters=family.rope(),
        sliding_window=None,
        use_bias=family.holds("attn_q.bias"),
    )


def _gpt2(family: _Family) -> PretrainedConfig:
    sizes = family.sizes
    return transformers.GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.context_length,
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        n_inner=sizes.inner_width,
        layer_norm_epsilon=family.number("attention.layer_norm_epsilon"),
        tie_word_embeddings=sizes.tied,
        bos_token_id=None,
        eos_token_id=None,
    )


FAMILIES: Mapping[str, Callable[[_Family], PretrainedConfig]] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "granite": _granite,
    "llama": _llama,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "starcoder2": _starcoder2,
}


def read_config(contents: Contents, metadata: Metadata) -> PretrainedConfig:
    """Make the config of transformers that computes what llama.cpp does with the file.

    Raises:
        UnsupportedModelError: another architecture, or one that does more than is known here.
        ExportError: a key is missing, or its value cannot be.
    """
    if transformers.__version__.startswith("4."):  # its configs pass over what those of 5 say of the rope
        raise UnsupportedModelError(
            f"{contents.path} is read with transformers 5, found {transformers.__version__}; "
            'use the default --exporter: pip install "swift-edge[export]"'
        )
    kind = metadata.text("general.type", "model")
    architecture = metadata.text("general.architecture")
    if kind != "model":
        raise UnsupportedModelError(f"{contents.path} holds a {shown(kind)}; expected a model")
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"{contents.path} is of the architecture {shown(architecture)}; expected one of {', '.join(FAMILIES)}: "
            "export the checkpoint that it was made from"
        )
    family = _Family(contents, metadata, architecture)
    config = FAMILIES[architecture](family)
    known = {family.key(name) for name in _SAYING_NOTHING}
    for key, value in metadata.unread(f"{architecture}.").items():
        if key not in known and not (isinstance(value, int | float | str) and value in _OFF):
            raise family.refuse(
                f"has {shown(value)} as {key}, which is not known here and may change what it computes; "
                "export the checkpoint that it was made from"
            )
    if not metadata.flag(family.key("attention.causal"), True):
        raise family.refuse("attends to what comes after a token as well; expected a causal LM")
    return config


def used_tensors(contents: Contents) -> set[str]:
    """Tensors that became a part of the config, and are no weights."""
    return {name for name in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS) if name in contents.tensors}
