"""What a fit learns from: several stores, parts of one, labels of one kind, and what cannot be used."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from swift_edge.errors import InvalidOptionError, StoreError, TrainingError
from swift_edge.training import FitOptions, Store, fit_head

MakeStore = Callable[..., Store]
QUICK = FitOptions(weight_decay=0.03, max_iterations=40, patience=10)


@pytest.fixture(scope="module")
def store(make_store: MakeStore) -> Store:
    return make_store(problems=60, n=6, shard_bytes=20_000)


def test_layers_that_are_not_in_the_store_are_named(store: Store) -> None:
    with pytest.raises(StoreError, match=r"holds hidden states 1, 3, but 2 are asked for.*--layers"):
        fit_head(store, replace(QUICK, layers=(1, 2)))


def test_a_store_without_features_is_refused(store: Store) -> None:
    bare = replace(store, info=replace(store.info, feature="none", layers=(), width=0))
    with pytest.raises(StoreError, match="without features"):
        fit_head(bare, QUICK)
    with pytest.raises(InvalidOptionError, match="no store"):
        fit_head([], QUICK)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [[True] * 3] * 5,
            "5 problems, 5 of them with correct candidates only and 0 with wrong ones only, 0 with both",
        ),
        ([[False] * 3] * 5, "5 problems, 0 of them .* 5 with wrong ones only"),
        ([[True] * 3, [False] * 3] * 3, "6 problems, 3 of them .* 3 with wrong ones only, 0 with both"),
        ([[True, False], [False], [True]], "1 with both; expected at least 2"),
        ([[True]], "1 problems"),
    ],
)
def test_labels_that_nothing_can_be_learned_from_are_told(
    make_store: MakeStore, labels: list[list[bool]], message: str
) -> None:
    with pytest.raises(TrainingError, match=f"{message}.*collect more problems") as caught:
        fit_head(make_store(problems=len(labels), labels=labels), QUICK)
    assert "\n" not in str(caught.value)


def test_few_problems_are_enough_to_go_on_and_the_notes_say_what_is_missing(make_store: MakeStore) -> None:
    lines: list[str] = []
    found = fit_head(make_store(problems=2, labels=[[True, False, True]] * 2), QUICK, report=lines.append)
    assert found.summary["problems"] == {"train": 2, "validation": 0, "calibration": 0}
    assert found.calibration is None
    assert found.summary["validation"] is None
    unsearched = fit_head(
        make_store(problems=2, labels=[[True, False, True]] * 2),
        replace(QUICK, weight_decay=None, weight_decays=(1, 2, 3)),
    )
    assert (unsearched.summary["weight_decay"], len(unsearched.summary["search"])) == (2, 1)
    assert any("not calibrated" in line for line in lines)
    assert found.summary["notes"] == [line.removeprefix("warning: ") for line in lines if line.startswith("warning")]
    found = fit_head(make_store(problems=4, labels=[[True, False, True]] * 4), QUICK)
    assert found.summary["problems"] == {"train": 2, "validation": 1, "calibration": 1}
    assert found.calibration is not None
    assert found.calibration.problems == 2
    assert any("too few" in note for note in found.summary["notes"])


def test_problems_with_one_label_take_part_in_the_loss_and_are_counted(make_store: MakeStore) -> None:
    labels = [[True, False]] * 20 + [[True, True]] * 7 + [[False, False]] * 5
    lines: list[str] = []
    found = fit_head(make_store(problems=32, labels=labels), QUICK, report=lines.append)
    assert found.summary["problems_with_both"] == 20
    assert (found.summary["problems_all_correct"], found.summary["problems_all_wrong"]) == (7, 5)
    assert any("20 with both labels, 7 all correct and 5 all wrong" in line for line in lines)


def test_an_interrupted_store_is_used_as_far_as_it_goes(make_store: MakeStore) -> None:
    lines: list[str] = []
    # Of the problems that were written those in complete shards are there.
    partial = make_store(problems=60, written=50, shard_bytes=2_000)
    assert not partial.complete
    assert partial.problems > 30
    found = fit_head(partial, QUICK, report=lines.append)
    (warning,) = [line for line in lines if "not complete" in line]
    assert f"{partial.problems} of 60 problems" in warning
    first, second = found.summary["notes"]
    assert first == warning.removeprefix("warning: ")
    assert second.startswith("the head does not tell foreign questions")
    assert sum(found.summary["problems"].values()) == partial.problems


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("norm", ["none", "rms"])
def test_a_feature_that_is_not_finite_is_found_with_shard_and_candidate(
    make_store: MakeStore, value: float, norm: str
) -> None:
    store = make_store(problems=20, shard_bytes=3_000)
    shard = store.shards[2]
    states = np.array(shard.states)
    states[shard.starts[4], 1, 2] = value
    np.save(store.path / "shard-00002.states.npy", states)
    damaged = shard.candidates[4]
    with pytest.raises(
        StoreError, match=rf"shard 2 of .* not finite, in candidate {damaged.index} of problem {damaged.problem};"
    ):
        fit_head(Store.open(store.path), replace(QUICK, norm=norm))
    # Where the layer is not read, it does not matter.
    fit_head(Store.open(store.path), replace(QUICK, layers=(1,), max_iterations=1))


def test_so_it_is_while_layers_are_tried(make_store: MakeStore) -> None:
    store = make_store(problems=40, shard_bytes=3_000)
    for number, shard in enumerate(store.shards):
        states = np.array(shard.states)
        states[:, 1, 2] = np.nan
        np.save(store.path / f"shard-{number:05d}.states.npy", states)
    with pytest.raises(StoreError, match="a feature that is not finite, in candidate"):
        fit_head(Store.open(store.path), replace(QUICK, layers="best"))


def test_candidates_without_a_token_that_counts_are_left_out(make_store: MakeStore) -> None:
    store = make_store(problems=40, most=3)
    lonely = sum(each.tokens == 1 for each in store.candidates)
    assert lonely
    lines: list[str] = []
    found = fit_head(store, replace(QUICK, includes_eos=False), report=lines.append)
    assert found.summary["candidates_without_tokens"] == lonely
    assert found.summary["candidates"] == len(store.candidates) - lonely
    assert found.summary["tokens"] == sum(each.tokens - 1 for each in store.candidates)
    assert any(f"{lonely} left out without tokens" in line for line in lines)
    assert not found.includes_eos
    assert fit_head(store, QUICK).summary["candidates_without_tokens"] == 0


def test_problems_can_be_limited_for_learning_curves(store: Store) -> None:
    few, more = (fit_head(store, replace(QUICK, problems=number)) for number in (10, 30))
    assert sum(few.summary["problems"].values()) == 10
    assert sum(more.summary["problems"].values()) == 30
    assert fit_head(store, replace(QUICK, problems=1000)).summary["candidates"] == len(store.candidates)
