"""An existing head on other states: matched to another precision, calibrated, and refused where it does not belong."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge.bundle import Architecture, Graph, HiddenStates, Manifest, Precision, Tokens
from swift_edge.errors import HeadMismatchError, InvalidOptionError, StoreError, TrainingError
from swift_edge.options import SamplingOptions
from swift_edge.scoring import Calibration, Head, check_head, load_head, save_head
from swift_edge.training import FitOptions, Store, fit_head, recalibrate

MakeStore = Callable[..., Store]
LOCAL = {"problems": 120, "seed": 1}


@pytest.fixture(scope="module")
def head(make_store: MakeStore) -> Head:
    return fit_head(make_store(problems=60), FitOptions(weight_decay=0.03, max_iterations=40))


def test_another_precision_is_matched(head: Head, make_store: MakeStore) -> None:
    # The same states, moved and stretched, so that the head as it is goes astray.
    same = recalibrate(head, make_store(**LOCAL))
    lines: list[str] = []
    moved = make_store(**LOCAL, precision="int4", shift=1.5, stretch=0.5)
    found = recalibrate(head, moved, report=lines.append)
    assert (found.precision, found.fingerprint, found.base_model) == ("int4", head.fingerprint, head.base_model)
    record = found.summary["recalibration"]
    assert (record["from_precision"], record["to_precision"]) == ("fp32", "int4")
    ideal = same.summary["recalibration"]["after"]
    assert record["before"]["within_problem_auroc"] < ideal["within_problem_auroc"] - 0.05
    assert record["after"]["within_problem_auroc"] == pytest.approx(ideal["within_problem_auroc"], abs=0.02)
    assert record["before"]["calibration_error"] > record["after"]["calibration_error"] + 0.05
    assert record["after"]["calibration_error"] < 0.08
    (line,) = lines
    assert line.startswith("inputs matched from fp32 to int4; before: within-problem AUROC 0.")
    assert head.input_mean is not None
    assert found.input_mean is not None
    assert found.input_scale is not None
    assert head.input_scale is not None
    np.testing.assert_allclose(found.input_mean[:12], head.input_mean[:12] * 0.5 + 1.5, atol=0.4)
    np.testing.assert_allclose(found.input_scale[:3], head.input_scale[:3] * 0.5, rtol=0.2)
    # The fit's own figures stay.
    assert found.summary["validation"] == head.summary["validation"]


def test_matched_inputs_have_the_mean_and_scale_of_training(head: Head, make_store: MakeStore) -> None:
    store = make_store(**LOCAL, precision="int4", shift=1.5, stretch=0.5)
    found = recalibrate(head, store)
    states = np.concatenate([shard.states for shard in store.shards]).astype(np.float64).transpose(1, 0, 2)
    statistics = np.concatenate([shard.statistics for shard in store.shards]).astype(np.float64)
    raw = np.column_stack([*states, statistics[:, :2]])
    assert head.input_mean is not None
    assert head.input_scale is not None
    as_trained = (raw - raw.mean(axis=0)) / np.where(raw.std(axis=0) > 0, raw.std(axis=0), 1) * head.input_scale
    expected = (as_trained + head.input_mean) @ head.weight.T.astype(np.float64) + head.bias
    np.testing.assert_allclose(raw @ found.weight.T.astype(np.float64) + found.bias, expected, atol=2e-2)


def test_the_same_precision_changes_the_calibration_alone(head: Head, make_store: MakeStore) -> None:
    lines: list[str] = []
    found = recalibrate(head, make_store(**LOCAL), report=lines.append)
    np.testing.assert_array_equal(found.weight, head.weight)
    np.testing.assert_array_equal(found.bias, head.bias)
    assert found.input_mean is not None
    np.testing.assert_array_equal(found.input_mean, head.input_mean)
    assert found.calibration != head.calibration
    assert found.calibration is not None
    assert (found.calibration.problems, found.calibration.candidates) == (120, 720)
    record = found.summary["recalibration"]
    assert record["before"]["within_problem_auroc"] == record["after"]["within_problem_auroc"] > 0.9
    assert record["weights"] == "weights unchanged, the precision is the same"
    assert "unchanged" in lines[0]


def test_calibration_error_before_is_that_of_the_heads_own_curve(head: Head, make_store: MakeStore) -> None:
    store = make_store(**LOCAL)
    skewed = replace(head, calibration=Calibration(1.0, 3.0, 0.5, 0.0, 10, 2))
    found = recalibrate(skewed, store)
    record = found.summary["recalibration"]
    assert record["before"]["calibration_error"] > 0.3
    assert record["after"]["calibration_error"] < 0.08
    uncalibrated = recalibrate(replace(head, calibration=None), store)
    assert uncalibrated.summary["recalibration"]["before"]["calibration_error"] is None
    assert uncalibrated.calibration == found.calibration


def test_a_head_without_its_standardisation_is_calibrated_only_and_the_report_says_so(
    head: Head, make_store: MakeStore
) -> None:
    lines: list[str] = []
    bare = replace(head, input_mean=None, input_scale=None)
    found = recalibrate(bare, make_store(**LOCAL, precision="int4", shift=1.5, stretch=0.5), report=lines.append)
    np.testing.assert_array_equal(found.weight, head.weight)
    assert found.input_mean is None
    assert found.precision == "int4"
    assert any(
        line.startswith("warning: ") and "does not say how its inputs were standardised" in line for line in lines
    )
    assert len(found.summary["recalibration"]["notes"]) == 1


def test_the_result_is_a_head_file_without_a_warning_at_its_new_precision(
    head: Head, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(**LOCAL, precision="int4")
    manifest = Manifest(
        base_model="tiny/model",
        base_revision=None,
        fingerprint="ab" * 32,
        architecture=Architecture("llama", 3, 6, 2, 1, 2, 90, 64),
        precision=Precision("int4", 32, 4),
        hidden_states=HiddenStates((0, 1, 2, 3)),
        graph=Graph("in-place"),
        tokens=Tokens((1,)),
        sampling=SamplingOptions(),
        files={},
        exporter={},
        parity={},
    )
    assert len(check_head(head, manifest)) == 1
    for name in ("a", "b"):
        save_head(tmp_path / name, recalibrate(head, store, seed=4))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_head(tmp_path / "a")
    assert check_head(loaded, manifest) == []
    json.dumps(dict(loaded.summary), allow_nan=False)
    again = recalibrate(loaded, store)
    np.testing.assert_array_equal(again.weight, loaded.weight)


def test_a_store_without_a_task_made_the_head_forget_its_own(head: Head, make_store: MakeStore) -> None:
    # As a grader in Python leaves it; picks by that head then found no answers, and fell back to the best score.
    lines: list[str] = []
    bare = make_store(**LOCAL, task=None)
    found = recalibrate(head, bare, report=lines.append)
    assert head.summary["task"] == found.summary["task"] == "number"
    assert found.calibration is not None
    assert head.calibration is not None
    assert head.calibration.answers is not None
    assert found.calibration.answers is None
    assert any(line.startswith("warning: the store names no task") for line in lines)
    assert recalibrate(head, make_store(**LOCAL, task="exact")).summary["task"] == "exact"
    unknowing = replace(head, summary={name: value for name, value in head.summary.items() if name != "task"})
    assert recalibrate(unknowing, bare).summary["task"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "cd" * 32}, r"trained on tiny/model \(weights abababababab\), .* \(weights cdcdcdcdcdcd\)"),
        ({"width": 7}, "hidden of width 6, .* holds hidden of width 7"),
        ({"feature": "logits", "layers": ()}, "reads hidden of width 6, .* holds logits"),
    ],
)
def test_a_store_of_another_model_is_refused(
    head: Head, make_store: MakeStore, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HeadMismatchError, match=message) as caught:
        recalibrate(head, make_store(problems=4, **changes))
    assert "\n" not in str(caught.value)


def test_a_store_without_the_heads_layers_is_refused(head: Head, make_store: MakeStore) -> None:
    with pytest.raises(StoreError, match="but 1 are asked for"):
        recalibrate(head, make_store(problems=4, layers=(2, 3)))


def test_one_label_alone_is_refused(head: Head, make_store: MakeStore) -> None:
    for label in (True, False):
        with pytest.raises(TrainingError, match=f"{12 * label} of them correct"):
            recalibrate(head, make_store(problems=4, seed=1, labels=[[label] * 3] * 4))
    with pytest.raises(InvalidOptionError, match="memory_bytes"):
        recalibrate(head, make_store(problems=4), memory_bytes=10)


def test_a_feature_that_is_not_finite_is_refused(head: Head, make_store: MakeStore) -> None:
    store = make_store(problems=4, seed=1)
    states = np.array(store.shards[0].states)
    states[3, 1, 1] = math.inf
    np.save(store.path / "shard-00000.states.npy", states)
    with pytest.raises(StoreError, match="not finite"):
        recalibrate(head, Store.open(store.path))


def test_few_problems_and_an_interrupted_store_are_told(head: Head, make_store: MakeStore) -> None:
    lines: list[str] = []
    found = recalibrate(head, make_store(problems=50, seed=1, written=30, shard_bytes=2_000), report=lines.append)
    assert any("is not complete" in line for line in lines)
    assert any("rough calibration; 200 to 500" in line for line in lines)
    assert len(found.summary["recalibration"]["notes"]) == 2


@pytest.mark.parametrize("options", [{"gate": False}, {"norm": "rms"}, {"includes_eos": False}], ids=str)
def test_every_kind_of_head_can_be_recalibrated(make_store: MakeStore, options: dict[str, Any]) -> None:
    head = fit_head(make_store(problems=60), FitOptions(weight_decay=0.03, max_iterations=20, **options))
    found = recalibrate(head, make_store(**LOCAL, precision="int8", stretch=0.7))
    record = found.summary["recalibration"]
    assert record["after"]["within_problem_auroc"] >= record["before"]["within_problem_auroc"] - 0.01
    assert (found.gate, found.norm, found.includes_eos) == (head.gate, head.norm, head.includes_eos)


def hashed(store: Store, first: int) -> Store:
    """The same with hashes of prompts, as `collect` writes them; problem 0 has the hash of number `first`."""
    shards = [
        replace(
            shard,
            candidates=tuple(replace(each, prompt_hash=f"{first + each.problem:08x}") for each in shard.candidates),
        )
        for shard in store.shards
    ]
    return replace(store, shards=tuple(shards), candidates=tuple(each for shard in shards for each in shard.candidates))


def test_the_problems_that_the_head_was_trained_on_are_refused(head: Head, make_store: MakeStore) -> None:
    options = FitOptions(weight_decay=0.03, max_iterations=5)
    trained = fit_head([hashed(make_store(problems=60), 0), hashed(make_store(problems=10, seed=2), 100)], options)
    for store in (
        make_store(problems=60),  # written by an earlier version, as its copy would be: its data file tells
        hashed(make_store(problems=60), 0),
        hashed(make_store(problems=40, seed=1), 0),  # a part, and drawn anew
        hashed(make_store(problems=10, seed=5), 100),
    ):
        with pytest.raises(HeadMismatchError, match=r"trained on the problems of .* expected others"):
            recalibrate(trained, store)
    with pytest.raises(HeadMismatchError, match="trained on the problems of"):
        recalibrate(replace(head, summary={"data_sha256": [f"{1:064x}"]}), make_store(**LOCAL))


def test_problems_that_the_head_was_trained_on_are_left_out(make_store: MakeStore) -> None:
    head = fit_head(hashed(make_store(problems=60), 0), FitOptions(weight_decay=0.03, max_iterations=5))
    lines: list[str] = []
    found = recalibrate(head, hashed(make_store(problems=150, seed=1), 30), report=lines.append)
    assert "warning: 30 of 150 problems are left out, the head was trained on them" in lines
    assert found.summary["recalibration"]["problems"] == 120
    assert found.calibration is not None
    assert found.calibration.problems == 120
    # Only a part of the store was used.
    part = FitOptions(weight_decay=0.03, max_iterations=5, problems=40)
    head = fit_head(hashed(make_store(problems=60), 0), part)
    assert recalibrate(head, hashed(make_store(problems=60), 0)).summary["recalibration"]["problems"] == 20


def test_a_head_that_does_not_say_what_it_was_trained_on_is_told(head: Head, make_store: MakeStore) -> None:
    lines: list[str] = []
    recalibrate(replace(head, summary={}), make_store(**LOCAL), report=lines.append)
    assert any("does not say which problems it was trained on" in line for line in lines)
