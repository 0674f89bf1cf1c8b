"""What the lowering touches it puts back; what it cannot express exactly it leaves as traced or refuses in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import transformers
from families import REQUIRED, VOCABULARY, make_model, save_checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from swift_edge.errors import UnsupportedModelError
from swift_edge_export.publish import export_bundle
from swift_edge_export.tracing.attention_config import check_config, exact_context_length, expected_windows
from swift_edge_export.tracing.lowering import ATTENTION_NAME, lowered
from swift_edge_export.tracing.self_check import EagerEmitter

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_LIKE: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}


# -- the model afterwards --------------------------------------------------------------------------------------------


class Snapshot:
    """Everything of a model that the lowering touches, and what the model computes."""

    def __init__(self, model: PreTrainedModel) -> None:
        with torch.no_grad():
            outputs = model(torch.arange(3, 15)[None], output_hidden_states=True)
        self.tensors = [outputs.logits, *outputs.hidden_states]
        self.attention = model.config._attn_implementation
        self.buffers = sorted(name for name, _ in model.named_buffers())
        self.forwards = {name: module.forward for name, module in model.named_modules()}
        namespace = vars(__import__(type(model).__module__, fromlist=["_"]))
        self.rotary = namespace.get("apply_rotary_pos_emb")

    def same_as(self, other: Snapshot) -> bool:
        return (
            all(torch.equal(one, two) for one, two in zip(self.tensors, other.tensors, strict=True))
            and (self.attention, self.buffers, self.rotary) == (other.attention, other.buffers, other.rotary)
            and self.forwards == other.forwards
        )


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3-partial-rotary", "gpt2"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was_after_the_lowering_also_when_that_fails(family: str, fails: bool) -> None:
    model = make_model(REQUIRED[family]())
    before = Snapshot(model)
    with pytest.raises(RuntimeError, match="on the way") if fails else torch.no_grad():  # noqa: SIM117
        with lowered(model, EagerEmitter(), 64, rotary=True):
            assert model.config._attn_implementation == ATTENTION_NAME
            assert {name: module.forward for name, module in model.named_modules()} != before.forwards
            if fails:
                raise RuntimeError("on the way")
    assert Snapshot(model).same_as(before)


@pytest.mark.parametrize("family", ["falcon", "gpt_neo"])
def test_a_model_that_is_refused_is_as_it_was(family: str) -> None:
    model = make_model(REFUSED[family][0])
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError), lowered(model, EagerEmitter(), 64, rotary=True):
        pass
    assert Snapshot(model).same_as(before)


def test_the_attention_works_nowhere_but_in_a_trace(tiny_model: PreTrainedModel) -> None:
    query = torch.zeros(1, 4, 3, 16)
    with pytest.raises(RuntimeError, match="outside of a trace"):
        ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME](tiny_model.model.layers[0].self_attn, query, query, query, None)


# -- left as traced, and still exact ---------------------------------------------------------------------------------


def attention_attributes(bundle: Path) -> list[set[str]]:
    return [set(node.attributes) for node in ir.load(bundle / "model.onnx").graph if "GroupQuery" in node.op_type]


@pytest.mark.slow
def test_a_norm_that_is_not_plain_is_left_as_traced(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LeaningRMSNorm(modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + 0.01 * hidden_states.mean(-1, keepdim=True)

    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", LeaningRMSNorm)
    report: list[str] = []
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", report=report.append)
    assert any("not plain root-mean-square: LeaningRMSNorm" in line for line in report)
    assert not {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"} & {
        node.op_type for node in ir.load(tmp_path / "bundle" / "model.onnx").graph
    }
    assert manifest.parity["relative_error"]["decode in place"]["hidden_states"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # The attention node turns multiples of 16 dimensions; these heads are narrower.
        (transformers.LlamaConfig(**SMALL, head_dim=8), "it turns 8 of 8 dimensions"),
        # Neighbouring dimensions are a pair, not the two halves of a head; with glm4 in one half of the head only.
        (transformers.Cohere2Config(**SMALL, sliding_window=6), "its pairs are not the two halves of a head"),
        (transformers.Glm4Config(**SMALL, head_dim=32), "its pairs are not the two halves of a head"),
    ],
    ids=["narrow heads", "cohere2", "glm4"],
)
def test_a_rotary_embedding_that_the_node_does_not_have_is_left_as_traced(
    config: PretrainedConfig, reason: str, tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(config, tmp_path / "checkpoint")
    report: list[str] = []
    manifest = export_bundle(str(checkpoint), tmp_path / "bundle", report=report.append)
    assert any(f"rotary embedding left as traced: {reason}" in line for line in report)
    assert not any("do_rotary" in names for names in attention_attributes(tmp_path / "bundle"))
    assert max(error for check in manifest.parity["relative_error"].values() for error in check.values()) < 1e-5


def test_a_plain_model_gets_everything_lowered(tiny_bundle: Any) -> None:
    assert all("do_rotary" in names for names in attention_attributes(tiny_bundle.path))
    assert not any("left as traced" in line for line in tiny_bundle.report)


# -- what a config says ----------------------------------------------------------------------------------------------

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (transformers.LlamaConfig(**SMALL), [None, None]),
        (transformers.MistralConfig(**SMALL, sliding_window=7), [7, 7]),
        (transformers.MistralConfig(**SMALL, sliding_window=None), [None, None]),
        (transformers.Gemma2Config(**SMALL, sliding_window=6, layer_types=[SLIDING, FULL]), [6, None]),
        (transformers.Cohere2Config(**SMALL, sliding_window=5, layer_types=[FULL, SLIDING]), [None, 5]),
        (transformers.Qwen2Config(**SMALL, use_sliding_window=False, sliding_window=6), [None, None]),
        (
            transformers.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1),
            [None, 6],
        ),
        (transformers.LlamaConfig(**SMALL, use_sliding_window=False, sliding_window=6), [None, None]),
        (transformers.GPT2Config(**GPT2_LIKE), [None, None]),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else str(value),
)
def test_the_window_of_each_layer_is_the_one_its_config_states(
    config: PretrainedConfig, windows: list[int | None]
) -> None:
    assert expected_windows(config) == dict(enumerate(windows))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.Llama4TextConfig(**SMALL, attention_chunk_size=8), "bidirectional or chunked"),
        (transformers.Gemma3TextConfig(**SMALL, use_bidirectional_attention=True), "bidirectional or chunked"),
        (transformers.Qwen3NextConfig(**SMALL, layer_types=["linear_attention", FULL]), "linear_attention"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else None,
)
def test_attention_of_another_kind_is_refused(config: PretrainedConfig, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        expected_windows(config)


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_a_mixture_of_experts_is_refused_and_a_model_with_one_expert_is_not(name: str) -> None:
    config = transformers.LlamaConfig(**SMALL)
    for experts in (None, 0, 1):
        setattr(config, name, experts)
        check_config(config)
    setattr(config, name, 8)
    with pytest.raises(UnsupportedModelError, match="llama is a mixture of 8 experts"):
        check_config(config)


def rope(rope_type: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **more}}


LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("config", "exact"),
    [
        (transformers.LlamaConfig(**SMALL), 64),
        (transformers.GPT2Config(**GPT2_LIKE), 64),
        (transformers.LlamaConfig(**SMALL, **rope("llama3", **LLAMA3)), 64),
        (transformers.LlamaConfig(**SMALL, **rope("linear", factor=4.0)), 64),
        (transformers.LlamaConfig(**SMALL, **rope("dynamic", factor=2.0)), 64),
        (
            transformers.Phi3Config(
                **SMALL, original_max_position_embeddings=16, **rope("longrope", **LONG, type="longrope")
            ),
            16,
        ),
        (
            transformers.LlamaConfig(**SMALL, **rope("longrope", **LONG, original_max_position_embeddings=24)),
            24,
        ),
    ],
    ids=["default", "learned", "llama3", "linear", "dynamic", "longrope of phi3", "longrope"],
)
def test_the_context_ends_where_the_rotary_frequencies_change(config: PretrainedConfig, exact: int) -> None:
    length, note = exact_context_length(config)
    assert length == exact
    assert (note is None) == (exact == 64)
    assert note is None or f"from 64 to {exact} tokens" in note


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"s_aux": torch.zeros(4)}, "arguments that are not understood: s_aux"),
        ({"position_bias": torch.zeros(1), "head_mask": 1}, "not understood: head_mask, position_bias"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "an attention mask of its own"),
        ({"dropout": 0.1}, "not plain causal attention"),
        ({"is_causal": False}, "not plain causal attention"),
        ({"value": torch.zeros(1, 2, 3, 8)}, "heads of different widths"),
        ({"sliding_window": 4}, "over a window of 4 tokens where its config says None"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_attention_that_the_node_cannot_express_is_refused(
    tiny_model: PreTrainedModel, change: dict[str, Any], reason: str
) -> None:
    layer = tiny_model.model.layers[0].self_attn
    query, key = torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, 16)
    given = {"query": query, "key": key, "value": key, "attention_mask": None, "scaling": 0.25}
    attention = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
    with lowered(tiny_model, EagerEmitter(), 64, rotary=False) as state:
        state.begin([(key, key)] * 2, torch.ones(1, 3, dtype=torch.int64), torch.arange(1))
        with pytest.raises(UnsupportedModelError, match=reason):
            attention(layer, **{**given, **change})
        output, _ = attention(layer, **given, output_attentions=False, is_causal=True, position_ids=torch.arange(3))
        assert output.shape == (1, 3, 4, 16)
        with pytest.raises(UnsupportedModelError, match="runs attention layer 0 twice"):
            attention(layer, **given)


def test_a_layer_that_does_not_pass_its_window_on_is_refused(tmp_path: Path) -> None:
    # Llama's attention knows no windows: such a model attends to everything, whatever its config promises.
    checkpoint = save_checkpoint(transformers.LlamaConfig(**SMALL, sliding_window=6), tmp_path / "checkpoint")
    with pytest.raises(UnsupportedModelError, match="window of None tokens where its config says 6"):
        export_bundle(str(checkpoint), tmp_path / "bundle")
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "bloom": (
        transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4),
        "rotary or learned",
    ),
    "mpt": (transformers.MptConfig(vocab_size=VOCABULARY, d_model=64, n_heads=4, n_layers=2), "rotary or learned"),
    "falcon": (
        transformers.FalconConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
        ),
        "FalconForCausalLM does not let its attention be replaced",
    ),
    "gpt_neo": (
        transformers.GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
            max_position_embeddings=64,
        ),
        "GPTNeoForCausalLM does not let its attention be replaced",
    ),
    "gpt_oss": (
        transformers.GptOssConfig(**SMALL, head_dim=16, num_local_experts=4),
        "gpt_oss is a mixture of 4 experts",
    ),
    "mixtral": (transformers.MixtralConfig(**SMALL, num_local_experts=4), "mixtral is a mixture of 4 experts"),
    "qwen3_moe": (transformers.Qwen3MoeConfig(**SMALL, num_experts=4), "qwen3_moe is a mixture of 4 experts"),
    "mamba": (
        transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2),
        "mamba.* has a config without max_position_embeddings",
    ),
    "llama4": (
        transformers.Llama4TextConfig(**SMALL, head_dim=16, num_local_experts=1, attention_chunk_size=8),
        "llama4_text uses bidirectional or chunked attention",
    ),
    "qwen3_next": (
        transformers.Qwen3NextConfig(**SMALL, head_dim=16, num_experts=0),
        "qwen3_next has layers of the kinds linear_attention",
    ),
    "diffllama": (transformers.DiffLlamaConfig(**SMALL), "DiffLlamaAttention runs attention layer 0 twice"),
}


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_cannot_be_lowered_is_refused_and_nothing_is_written(family: str, tmp_path: Path) -> None:
    config, reason = REFUSED[family]
    checkpoint = save_checkpoint(config, tmp_path / "checkpoint")
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        export_bundle(str(checkpoint), tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
