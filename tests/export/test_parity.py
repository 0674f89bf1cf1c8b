"""Parity finds what is wrong with a graph, whatever it is, and refuses what is not good enough for its precision."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from families import REQUIRED, make_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedModel

from swift_edge.bundle.manifest import Bundle
from swift_edge.errors import ExportError, ParityError
from swift_edge_export.parity import (
    FP16_TOLERANCE,
    FP32_TOLERANCE,
    Parity,
    ReferenceRow,
    _Comparison,
    compare,
    record_reference,
)

CHECKS = ("prefill in chunks", "decode in place", "rows of different lengths")


@pytest.fixture(scope="module")
def reference(tiny_model: PreTrainedModel) -> list[ReferenceRow]:
    return record_reference(tiny_model, tiny_model.config.max_position_embeddings)


@pytest.fixture
def changed(tiny_bundle: Any, tmp_path: Path) -> Callable[[Callable[[ir.Graph], None]], Bundle]:
    """A bundle whose graph is the tiny one after a change."""

    def make(change: Callable[[ir.Graph], None]) -> Bundle:
        bundle: Bundle = tiny_bundle.open()
        model = ir.load(bundle.model_path)
        change(model.graph)
        ir.save(model, tmp_path / "model.onnx")
        return dataclasses.replace(bundle, path=tmp_path, model_path=tmp_path / "model.onnx")

    return make


def set_weight(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> None:
    graph.initializers[name].const_value = ir.tensor(array, name=name)


def array_of(graph: ir.Graph, name: str) -> np.ndarray[Any, Any]:
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return np.array(tensor.numpy())


def products(graph: ir.Graph) -> list[str]:
    """The names of the weights of all linear layers."""
    names = [node.inputs[1].name for node in graph if node.op_type in ("MatMul", "Gemm") and node.inputs[1] is not None]
    return [name for name in names if name is not None]


# -- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_exported_graph_passes_all_three_checks(tiny_bundle: Any, reference: list[ReferenceRow]) -> None:
    parity = compare(tiny_bundle.open(), reference)
    assert tuple(parity.figures) == CHECKS
    assert all(set(figures) == {"logits", "hidden_states"} for figures in parity.figures.values())
    assert 0 < parity.worst < 1e-5
    # Every position of the longest row, and the second half of each row of the batch.
    lengths = [len(row.token_ids) for row in reference]
    assert parity.positions == lengths[0] + sum(length - length // 2 for length in lengths)
    parity.require("fp32")
    assert parity.greedy_agreement == 1.0
    published = tiny_bundle.open().manifest.parity
    assert published.keys() == parity.to_dict().keys()
    assert published["relative_error"].keys() == parity.figures.keys()


def test_one_number_of_any_linear_layer_is_found(
    changed: Callable[[Callable[[ir.Graph], None]], Bundle], tiny_bundle: Any, reference: list[ReferenceRow]
) -> None:
    names = products(ir.load(tiny_bundle.path / "model.onnx").graph)
    assert len(names) == 2 * 5 + 1  # packed QKV, output, gate, up, down of two layers, and the output layer
    for name in names:

        def change(graph: ir.Graph, name: str = name) -> None:
            array = array_of(graph, name)
            array[3, 5] += 1e-2
            set_weight(graph, name, array)

        parity = compare(changed(change), reference)
        assert parity.finite
        assert all(figures["logits"] > FP32_TOLERANCE for figures in parity.figures.values()), name
        with pytest.raises(ParityError, match="the fp32 graph differs from the torch model: relative error"):
            parity.require("fp32")


@pytest.mark.parametrize("part", ["key", "value"])
def test_kv_buffers_of_swapped_layers_are_found(
    changed: Callable[[Callable[[ir.Graph], None]], Bundle], reference: list[ReferenceRow], part: str
) -> None:
    def swap(graph: ir.Graph) -> None:
        by_name = {value.name: value for value in graph.inputs}
        first, second = (by_name[f"past_key_values.{layer}.{part}"] for layer in (0, 1))
        first.name, second.name = second.name, first.name

    parity = compare(changed(swap), reference)
    # A whole prompt at once needs no past; every way that has one shows it.
    assert all(parity.figures[check]["logits"] > FP32_TOLERANCE for check in CHECKS)
    with pytest.raises(ParityError):
        parity.require("fp32")


def test_hidden_states_of_swapped_layers_are_found_where_the_logits_are_right(
    changed: Callable[[Callable[[ir.Graph], None]], Bundle], reference: list[ReferenceRow]
) -> None:
    def swap(graph: ir.Graph) -> None:
        by_name = {value.name: value for value in graph.outputs}
        first, second = (by_name[f"hidden_states.{layer}"] for layer in (1, 2))
        first.name, second.name = second.name, first.name

    parity = compare(changed(swap), reference)
    assert all(figures["logits"] < 1e-5 for figures in parity.figures.values())
    with pytest.raises(ParityError, match="of hidden_states in"):
        parity.require("fp32")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_nan_and_infinity_are_refused_at_every_precision(
    changed: Callable[[Callable[[ir.Graph], None]], Bundle],
    reference: list[ReferenceRow],
    value: float,
    precision: str,
) -> None:
    def change(graph: ir.Graph) -> None:
        name = products(graph)[-1]
        array = array_of(graph, name)
        array.flat[7] = value
        set_weight(graph, name, array)

    parity = compare(changed(change), reference)
    assert not parity.finite
    assert math.isinf(parity.worst)
    with pytest.raises(ParityError, match=f"the {precision} graph computes NaN or infinity") as caught:
        parity.require(precision)
    assert ("leave the range of float16" in str(caught.value)) == (precision == "fp16")


def test_agreement_at_chance_is_refused(
    changed: Callable[[Callable[[ir.Graph], None]], Bundle], reference: list[ReferenceRow]
) -> None:
    def always_the_same(graph: ir.Graph) -> None:
        name = products(graph)[-1]
        set_weight(graph, name, np.zeros_like(array_of(graph, name)))

    parity = compare(changed(always_the_same), reference)
    assert parity.greedy_agreement == pytest.approx(parity.chance_agreement)
    for precision in ("int8", "int4"):
        with pytest.raises(ParityError, match="which chance could give as well"):
            parity.require(precision)


def test_a_model_that_always_says_the_same_is_no_chance_agreement(
    changed: Callable[[Callable[[ir.Graph], None]], Bundle], tiny_model: PreTrainedModel
) -> None:
    model = copy.deepcopy(tiny_model)
    model.lm_head.weight.zero_()

    def always_the_same(graph: ir.Graph) -> None:
        name = products(graph)[-1]
        set_weight(graph, name, np.zeros_like(array_of(graph, name)))

    parity = compare(changed(always_the_same), record_reference(model, 64))
    assert (parity.greedy_agreement, parity.chance_agreement) == (1.0, 1.0)
    for precision in ("fp32", "fp16", "int8", "int4"):
        parity.require(precision)


# -- the judgement ---------------------------------------------------------------------------------------------------


def parity_of(error: float = 0.0, agreement: float = 1.0, chance: float = 0.05, finite: bool = True) -> Parity:
    figures = {check: {"logits": 0.0, "hidden_states": 0.0} for check in CHECKS}
    figures["decode in place"]["hidden_states"] = error
    return Parity(figures, agreement, chance, finite, 100)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", FP32_TOLERANCE), ("fp16", FP16_TOLERANCE)])
def test_the_worst_figure_decides_at_full_and_half_precision(precision: str, limit: float) -> None:
    parity_of(limit).require(precision)
    with pytest.raises(ParityError, match=r"of hidden_states in decode in place, expected at most .*e-0\d"):
        parity_of(limit * 1.01).require(precision)
    for packed in ("int8", "int4"):
        parity_of(limit * 100).require(packed)


@given(wanted=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_chance_is_what_shuffled_tokens_agree_on(wanted: list[int], seed: int) -> None:
    given = np.random.default_rng(seed).permutation(wanted)
    row = ReferenceRow(np.array(wanted), np.eye(4, dtype=np.float32)[wanted], np.zeros((1, len(wanted), 1), np.float32))
    comparison = _Comparison([])
    comparison.add("check", row, slice(None), np.eye(4, dtype=np.float32)[given], None)
    parity = comparison.result()
    everywhere = np.mean([one == other for one in wanted for other in given])
    assert parity.chance_agreement == pytest.approx(float(everywhere))
    assert parity.greedy_agreement == np.mean(np.array(wanted) == given)


def test_the_table_names_every_check_and_the_manifest_takes_the_figures() -> None:
    parity = parity_of(3e-7, agreement=0.875)
    lines = parity.table()
    assert [line for line in lines if "3.00e-07" in line] == [lines[1 + CHECKS.index("decode in place")]]
    assert "87.5% of 100 positions (chance 5.0%)" in lines[-1]
    assert parity.to_dict()["relative_error"]["decode in place"] == {"logits": 0.0, "hidden_states": 3e-7}


# -- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_length", [2, 3, 9, 40, 128])
def test_the_reference_fits_the_context_and_has_rows_of_different_lengths(
    tiny_model: PreTrainedModel, context_length: int
) -> None:
    rows = record_reference(tiny_model, context_length)
    lengths = [len(row.token_ids) for row in rows]
    assert lengths == sorted(set(lengths), reverse=True)
    assert 2 <= lengths[-1] <= lengths[0] == min(context_length, 40)
    for row in rows:
        assert row.logits.shape == (len(row.token_ids), 96)
        assert row.hidden_states.shape == (3, len(row.token_ids), 64)


def test_the_reference_is_the_same_each_time_and_draws_from_nobody_elses_numbers(tiny_model: PreTrainedModel) -> None:
    state = torch.random.get_rng_state()
    first, second = (record_reference(tiny_model, 20) for _ in range(2))
    assert all((one.token_ids == two.token_ids).all() for one, two in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_a_checkpoint_recommends_for_generation_does_not_matter_and_is_kept(tiny_model: PreTrainedModel) -> None:
    expected = record_reference(tiny_model, 20)
    recommended = GenerationConfig(
        num_beams=2, stop_strings=["a"], repetition_penalty=3.0, max_length=5, eos_token_id=list(range(90))
    )
    kept, tiny_model.generation_config = tiny_model.generation_config, recommended
    try:
        rows = record_reference(tiny_model, 20)
        assert tiny_model.generation_config is recommended
    finally:
        tiny_model.generation_config = kept
    assert [row.token_ids.tolist() for row in rows] == [row.token_ids.tolist() for row in expected]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_computes_nan_itself_is_refused_in_one_line(value: float) -> None:
    model = make_model(REQUIRED["gpt2"]())
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3] = value
    with pytest.raises(ExportError, match="GPT2LMHeadModel does not run in torch") as caught:
        record_reference(model, 64)
    assert "\n" not in str(caught.value)


def test_nan_behind_the_last_sampled_token_is_found_too(tiny_model: PreTrainedModel) -> None:
    (row,) = record_reference(tiny_model, 2)
    first, sampled = row.token_ids
    assert first != sampled
    model = copy.deepcopy(tiny_model)
    model.model.embed_tokens.weight[sampled] = math.nan
    with pytest.raises(ExportError, match="it computes NaN or infinity"):
        record_reference(model, 2)


def test_agreement_a_little_above_chance_is_chance() -> None:
    # Unrelated tokens agree more often than expected half of the time: two standard errors say nothing.
    with pytest.raises(ParityError, match="which chance could give as well"):
        parity_of(agreement=0.09, chance=0.05).require("int4")
    parity_of(agreement=0.2, chance=0.05).require("int4")
    parity_of(agreement=0.95, chance=0.93).require("int4")  # a model that nearly always says the same


def test_a_large_first_position_does_not_hide_the_others() -> None:
    states = np.ones((2, 5, 8), np.float32)  # [L + 1, s, d]
    states[:, 0] = 1e4
    row = ReferenceRow(np.arange(5), np.ones((5, 3), np.float32), states)
    comparison = _Comparison([0, 1])
    wrong = states.copy()
    wrong[:, 3] = 0.0
    comparison.add("prefill in chunks", row, slice(0, 5), row.logits, wrong)
    assert comparison.result().worst == pytest.approx(1.0)
