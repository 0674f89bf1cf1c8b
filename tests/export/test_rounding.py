"""Rounding that is fitted to text of the model's own: what it does to weights, and what it leaves of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from families import REQUIRED, save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge.bundle.folder import open_bundle
from swift_edge.engine.session import ModelSession
from swift_edge.errors import InvalidOptionError
from swift_edge_export.packing import calibration
from swift_edge_export.packing.own_text import turns_of, write_texts
from swift_edge_export.packing.rounding import feedback_factor, nearest, with_feedback
from swift_edge_export.publish import export_bundle

CONTEXT = 64


def wide_config(**options: Any) -> transformers.PretrainedConfig:
    """Whole blocks of 128 inputs, and narrower ones."""
    return transformers.LlamaConfig(
        vocab_size=96, hidden_size=128, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model some of whose channels are far larger than others, as those of trained ones are."""
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(wide_config())
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[7] = layer.post_attention_layernorm.weight[70] = 30.0
            layer.mlp.up_proj.weight[11] *= 40.0
        for weight in model.parameters():
            weight *= 2.0
    folder = tmp_path_factory.mktemp("wide")
    plain = save_checkpoint(wide_config(), folder / "checkpoint")
    model.save_pretrained(plain)
    return plain


def export(checkpoint: Path, out: Path, **options: Any) -> list[str]:
    report: list[str] = []
    export_bundle(str(checkpoint), out, report=report.append, **options)
    return report


# -- codes -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from([16, 32, 64]), st.integers(0, 2**31))
def test_inputs_that_have_nothing_to_do_with_each_other_get_the_nearest_codes(
    outputs: int, inputs: int, block_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(outputs, inputs, generator=generator)
    rounded = with_feedback(weights, feedback_factor(torch.eye(inputs)), 4, block_size)
    scales = rounded.scales.repeat_interleave(block_size, 1)[:, :inputs]
    zero_points = rounded.zero_points.float().repeat_interleave(block_size, 1)[:, :inputs]
    # Nothing within the range is further away than half a step; what was cut off is beyond it.
    away = (rounded.weights(inputs) - weights).abs() / scales
    inside = (weights / scales + zero_points >= -0.5) & (weights / scales + zero_points <= 15.5)
    assert (away[inside] <= 0.5 + 1e-4).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(20, 70), st.sampled_from([16, 32, 64]), st.integers(0, 2**31))
def test_errors_make_up_for_one_another_where_inputs_go_together(inputs: int, block_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(8, inputs, generator=generator)
    read = torch.randn(400, 6, generator=generator) @ torch.randn(6, inputs, generator=generator)
    read += 0.1 * torch.randn(400, inputs, generator=generator)
    fitted = with_feedback(weights, feedback_factor(read.T @ read / 400), 4, block_size)
    both = (fitted, nearest(weights, 4, block_size))
    lost = [((codes.weights(inputs) - weights) @ read.T).square().sum() for codes in both]
    assert lost[0] < 0.9 * lost[1]


def test_an_input_that_was_always_zero_takes_no_part() -> None:
    read = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    read[:, 5] = 0
    weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    rounded = with_feedback(weights, feedback_factor(read.T @ read / 100), 4, 16)
    assert rounded.weights(32).isfinite().all()


# -- what is left of a model -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quick_trace")
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_model_keeps_more_of_its_distribution(checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    export(checkpoint, tmp_path / "exact")
    export(checkpoint, tmp_path / "nearest", precision=precision, rounding="nearest")
    report = export(checkpoint, tmp_path / "fitted", precision=precision)
    assert any("matrices have other scales of their inputs" in line for line in report)
    assert any("error feedback" in line for line in report) is (precision == "int4")
    texts = np.random.default_rng(5).integers(3, 96, (6, CONTEXT))
    exact, plain, fitted = (logits(tmp_path / name, texts) for name in ("exact", "nearest", "fitted"))
    assert divergence(exact, fitted) < 0.8 * divergence(exact, plain)
    manifests = [open_bundle(tmp_path / name).manifest for name in ("nearest", "fitted")]
    assert [manifest.precision.fitted_tokens for manifest in manifests] == [None, calibration.TEXTS * CONTEXT]
    written = manifests[1].parity["written"]
    assert written["tokens"] > 20
    assert written["kl_divergence"] >= 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_trace")
def test_hidden_states_are_not_scaled(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "exact")
    export(checkpoint, tmp_path / "fitted", precision="int8")
    text = np.random.default_rng(5).integers(3, 96, CONTEXT)
    exact, fitted = (states(tmp_path / name, text) for name in ("exact", "fitted"))  # [l, s, d]
    # Of a channel's own size: a scale that nothing takes back would be a factor of several.
    size = np.abs(exact).max(axis=1)
    assert (np.abs(exact - fitted).max(axis=1) < 0.3 * size).mean() > 0.95


@pytest.mark.slow
@pytest.mark.usefixtures("quick_trace")
def test_gains_take_back_what_weights_were_scaled_by(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "exact")
    export(checkpoint, tmp_path / "fitted", precision="int8")
    exact, fitted = (gains(tmp_path / name) for name in ("exact", "fitted"))
    same = [np.array_equal(one, other) for one, other in zip(exact, fitted, strict=True)]
    assert same == [False] * 4 + [True]  # what the last norm gives is a hidden state


@pytest.mark.slow
@pytest.mark.usefixtures("quick_trace")
def test_a_model_that_is_read_in_parts_gets_the_nearest_codes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swift_edge_export.preflight.MOST_LOADED", 0.0)
    report = export(checkpoint, tmp_path / "bundle", precision="int4")
    assert open_bundle(tmp_path / "bundle").manifest.precision.fitted_tokens is None
    assert any("nearest code" in line for line in report)


def test_an_unknown_rounding_is_refused(tmp_path: Path) -> None:
    wrong: Any = "up"
    with pytest.raises(InvalidOptionError, match="rounding is 'up', expected one of calibrated, nearest"):
        export_bundle("nowhere", tmp_path / "bundle", precision="int4", rounding=wrong)


# -- text of its own -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quick_trace")
def test_questions_and_answers_stand_where_the_template_puts_them(tmp_path: Path) -> None:
    plain = save_checkpoint(REQUIRED["llama"](), tmp_path / "checkpoint")
    template = "{% for m in messages %}%%{{ m['content'] }}&{% endfor %}{% if add_generation_prompt %}'{% endif %}"
    (plain / "chat_template.jinja").write_text(template)
    export(plain, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    before, after = [ord("%") - 33] * 2, [ord("&") - 33, ord("'") - 33]
    turns = turns_of(bundle)
    assert [list(turns.before_question), list(turns.before_answer)] == [before, after]
    texts = [text.tolist() for text in write_texts(ModelSession(bundle), bundle, 8, 60).token_ids]
    assert all(text[:2] == before for text in texts[:4])
    assert len({text[0] for text in texts[4:]}) > 1
    ends = {after[0], *bundle.manifest.tokens.eos_ids}
    for text in texts[:4]:  # the first end is a question's, the second an answer's
        places = [place for place, token in enumerate(text) if token in ends]
        if places and places[0] + 2 < len(text):
            assert text[places[0] : places[0] + 2] == after
    assert any(after[0] in text for text in texts)


def logits(path: Path, texts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probabilities [n, s, v] of texts [n, s]."""
    session = ModelSession(open_bundle(path))
    found = np.stack([session.prefill(session.new_cache(1, CONTEXT), text, logits="all").logits for text in texts])
    exact = found.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    return normalised


def divergence(reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float((np.exp(reference) * (reference - other)).sum(axis=-1).mean())


def states(path: Path, text: NDArray[np.int64]) -> NDArray[np.float32]:
    """Hidden states [l, s, d] of a text [s]."""
    session = ModelSession(open_bundle(path))
    out = session.prefill(session.new_cache(1, CONTEXT), text, layers=session.layers)
    return out.hidden_states


def gains(path: Path) -> list[NDArray[Any]]:
    """The gains of a graph's norms, in its order."""
    norms = [node for node in ir.load(path / "model.onnx").graph if "SimplifiedLayerNormalization" in node.op_type]
    operands = [node.inputs[2 if node.op_type.startswith("Skip") else 1] for node in norms]
    return [value.const_value.numpy() for value in operands if value is not None and value.const_value is not None]
