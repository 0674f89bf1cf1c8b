"""The check before tracing: a lowering that changes what the model computes is found and undone, or refused."""

from __future__ import annotations

import pytest
import torch
import transformers
from families import REQUIRED, make_model
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from swift_edge.errors import UnsupportedModelError
from swift_edge_export.tracing.graph import GraphShape
from swift_edge_export.tracing.self_check import rotary_can_be_lowered


def graph_shape(model: PreTrainedModel) -> GraphShape:
    config = model.config
    heads = config.num_attention_heads
    return GraphShape(
        num_layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden_layers=tuple(range(config.num_hidden_layers + 1)),
        context_length=64,
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral-sliding", "phi3-partial-rotary", "smollm3", "gpt2"])
def test_a_plain_family_is_lowered_with_its_rotary(name: str) -> None:
    model = make_model(REQUIRED[name]())
    assert rotary_can_be_lowered(model, graph_shape(model)) is True


def test_a_norm_between_rotary_and_attention_leaves_the_rotary_as_traced() -> None:
    if not hasattr(transformers, "HunYuanDenseV1Config"):
        pytest.skip("this transformers has no HunYuan")
    config = transformers.HunYuanDenseV1Config(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = make_model(config)
    assert rotary_can_be_lowered(model, graph_shape(model)) is False


def test_attention_that_is_not_what_it_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(REQUIRED["llama"]())
    plain = modeling_llama.LlamaAttention.forward

    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        # What only the model's own attention does: a temperature that the attention interface never hears of.
        self.scaling = 0.25 if self.config._attn_implementation.startswith("swift") else 0.5
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="computes something else once its attention is lowered"):
        rotary_can_be_lowered(model, graph_shape(model))


def test_a_model_that_does_not_run_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(REQUIRED["llama"]())

    def broken(*_: object, **__: object) -> object:
        raise ValueError("the expert is\nmissing")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", broken)
    with pytest.raises(UnsupportedModelError, match="cannot be lowered or traced: the expert is missing"):
        rotary_can_be_lowered(model, graph_shape(model))
