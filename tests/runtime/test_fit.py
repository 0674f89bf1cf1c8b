"""Fitting: a known signal is learned, noise is not, and neither memory nor the order of the work changes the head."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_scores import scores_of

from swift_edge.engine import TokenStatistics
from swift_edge.errors import InvalidOptionError, MissingExtraError, StoreError
from swift_edge.scoring import Head, load_head, save_head, within_problem_auroc
from swift_edge.training import FitOptions, Store, fit_head

MakeStore = Callable[..., Store]
QUICK = FitOptions(weight_decay=0.03, max_iterations=40, patience=10)


@pytest.fixture(scope="module")
def store(make_store: MakeStore) -> Store:
    return make_store(problems=60, n=6, shard_bytes=20_000)


@pytest.fixture(scope="module")
def head(store: Store) -> Head:
    return fit_head(store, QUICK)


def auroc(head: Head, store: Store) -> float:
    labels, problems = zip(*((each.correct, each.problem) for each in store.candidates), strict=True)
    return within_problem_auroc(scores_of(head, store), labels, problems)


@pytest.mark.parametrize("options", [{}, {"norm": "rms"}, {"prefixes": 0}, {"layers": (1,)}], ids=str)
def test_a_known_signal_is_learned(store: Store, make_store: MakeStore, options: dict[str, Any]) -> None:
    fresh = make_store(problems=40, seed=1)
    found = fit_head(store, replace(QUICK, **options))
    assert auroc(found, fresh) > 0.93
    assert found.layers == options.get("layers", (1, 3))
    assert found.norm == options.get("norm", "none")


@pytest.mark.parametrize("loss", ["bce", "hinge", "pairwise", "infonca", "nca"])
def test_every_loss_learns_it(store: Store, make_store: MakeStore, loss: Any) -> None:
    fresh = make_store(problems=40, seed=1)
    assert auroc(fit_head(store, replace(QUICK, loss=loss, pairwise_weight=0.0)), fresh) > 0.93


def test_the_gate_finds_the_tokens_that_tell(head: Head, store: Store, make_store: MakeStore) -> None:
    fresh = make_store(problems=40, seed=1)
    plain = fit_head(store, replace(QUICK, gate=False))
    assert plain.weight.shape[0] == 1
    assert not plain.gate
    assert 0.6 < auroc(plain, fresh) < auroc(head, fresh) - 0.05
    states = np.array(fresh.shards[0].states[:200]).transpose(1, 0, 2)
    marked = states[0, :, 0] > 0
    gates, _ = head.evaluate(states, TokenStatistics(np.zeros(200) - 1, np.ones(200)))
    assert gates[marked].mean() > 2 * gates[~marked].mean()


def test_layers_without_the_signal_do_not_learn_it(store: Store, make_store: MakeStore) -> None:
    blind = fit_head(store, replace(QUICK, layers=(3,), token_statistics=()))
    assert abs(auroc(blind, make_store(problems=120, seed=1)) - 0.5) < 0.08


def test_the_layers_that_say_most_are_found(make_store: MakeStore) -> None:
    several = make_store(problems=80, layers=(1, 3, 5, 7, 9, 11))  # the signal is in the first
    found = fit_head(several, replace(QUICK, layers="best"))
    assert found.layers[0] == 1
    assert len(found.layers) < 4
    tried = found.summary["layers_tried"]
    assert tuple(tried[0]["layers"]) == found.layers
    alone = {each["layers"][0]: each["auroc"] for each in tried if len(each["layers"]) == 1}
    assert set(alone) == {1, 3, 5, 7, 9, 11}
    assert alone[1] > 0.75
    assert max(alone[layer] for layer in (3, 5, 7, 9, 11)) < 0.65
    assert auroc(found, make_store(problems=120, seed=1, layers=(1, 3, 5, 7, 9, 11))) > 0.75


def test_random_labels_are_not_learned_and_are_calibrated_to_their_rate(make_store: MakeStore) -> None:
    noise = make_store(problems=60, random_labels=True)
    found = fit_head(noise, QUICK)
    # Over 60 problems of nine pairs chance has a standard deviation of about 0.03.
    assert abs(auroc(found, make_store(problems=60, random_labels=True, seed=1)) - 0.5) < 0.1
    assert found.calibration is not None
    chances = found.calibration.probability(scores_of(found, noise))
    assert 0.3 < np.quantile(chances, 0.1) <= np.quantile(chances, 0.9) < 0.7


@pytest.mark.slow
def test_token_statistics_are_inputs(make_store: MakeStore) -> None:
    settings = {"problems": 60, "layers": (1,), "signal": 0.0}
    plain, telling = make_store(**settings), make_store(**settings)
    for shard in telling.shards:
        path = telling.path / "shard-00000.statistics.npy"
        labels = np.repeat([each.correct for each in shard.candidates], np.diff(shard.starts))
        changed = np.array(shard.statistics)
        changed[:, 0] += labels
        np.save(path, changed)
    telling = Store.open(telling.path)
    assert auroc(fit_head(plain, QUICK), plain) < 0.8
    assert auroc(fit_head(telling, QUICK), telling) > 0.95
    assert auroc(fit_head(telling, replace(QUICK, token_statistics=("entropy",))), telling) < 0.8
    only = fit_head(telling, replace(QUICK, token_statistics=("logprob",)))
    assert only.weight.shape[1] == 6 + 1
    assert auroc(only, telling) > 0.95


def test_logits_make_a_head_on_logits(make_store: MakeStore) -> None:
    logits = make_store(feature="logits", layers=(), width=9, problems=50)
    found = fit_head(logits, QUICK)
    assert (found.feature, found.layers, found.state_width) == ("logits", (), 9)
    assert auroc(found, logits) > 0.9
    with pytest.raises(InvalidOptionError, match="norm rms is for hidden states"):
        fit_head(logits, replace(QUICK, norm="rms"))
    with pytest.raises(StoreError, match="holds logits, layers"):
        fit_head(logits, replace(QUICK, layers=(1,)))


def test_the_same_store_and_options_give_the_same_file(store: Store, head: Head, tmp_path: Path) -> None:
    for name, each in (("a", head), ("b", fit_head(store, QUICK))):
        save_head(tmp_path / name, each)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_head(tmp_path / "a")
    assert loaded.summary == head.summary
    assert json.loads(json.dumps(dict(head.summary), allow_nan=False)) == head.summary
    other = fit_head(store, replace(QUICK, seed=1))
    assert not np.array_equal(other.weight, head.weight)


def test_the_head_says_what_it_was_fitted_to(head: Head, store: Store) -> None:
    assert (head.base_model, head.fingerprint, head.precision) == ("tiny/model", "ab" * 32, "fp32")
    assert head.token_statistics == ("logprob", "entropy")
    assert head.input_mean is not None
    assert head.input_scale is not None
    assert head.input_mean.shape == head.input_scale.shape == (14,)
    assert head.input_mean[8] == pytest.approx(500, abs=1)
    assert (head.input_mean[9], head.input_scale[9]) == (5, 1)  # constant
    summary = head.summary
    assert sum(summary["problems"].values()) == 60
    assert summary["candidates"] == len(store.candidates)
    assert summary["candidates_correct"] == sum(each.correct for each in store.candidates)
    assert summary["tokens"] == sum(each.tokens for each in store.candidates)
    assert summary["data_sha256"] == [store.info.data_sha256]
    assert summary["weight_decay"] == 0.03
    assert summary["options"]["loss"] == "bce"
    assert "memory_bytes" not in summary["options"]
    assert 0 < summary["best_iteration"] <= summary["iterations"] <= 40
    figures = summary["validation"]
    assert figures["pass_at_1"] < figures["majority"] <= figures["oracle"]
    assert figures["best"] > figures["pass_at_1"]
    assert summary["start"]["within_problem_auroc"] < figures["within_problem_auroc"]
    assert summary["calibration_error"] == head.calibration.error if head.calibration else False


@pytest.mark.parametrize("memory_bytes", [2**20, 2**20 + 200_000, 3 * 2**19])
@pytest.mark.parametrize("options", [{}, {"gate": False, "prefixes": 0, "norm": "rms"}], ids=str)
def test_memory_changes_nothing_but_rounding(make_store: MakeStore, memory_bytes: int, options: dict[str, Any]) -> None:
    store = make_store(problems=60, n=6, width=60, shard_bytes=100_000)
    chosen = replace(QUICK, weight_decay=1.0, max_iterations=6, **options)
    plenty, little = fit_head(store, chosen), fit_head(store, replace(chosen, memory_bytes=memory_bytes))
    scale = np.abs(plenty.weight).max()
    np.testing.assert_allclose(little.weight, plenty.weight, atol=2e-3 * scale)
    np.testing.assert_allclose(scores_of(little, store), scores_of(plenty, store), atol=2e-3)
    if chosen.gate:  # where the loss is convex, the last digit decides at which step nothing becomes better
        assert little.summary["iterations"] == plenty.summary["iterations"]


def test_split_by_problem_leaks_nothing(make_store: MakeStore) -> None:
    # The label is the problem's own secret: a vector that only this problem has tells its right candidates. A split by
    # candidates would learn it by heart; a split by problems cannot.
    store = make_store(problems=40, n=8, width=64, layers=(1,), signal=0.0)
    random = np.random.default_rng(5)
    secrets = random.normal(0, 3, (40, 64))
    for shard in store.shards:
        states = np.array(shard.states)
        for place, candidate in enumerate(shard.candidates):
            sign = 1 if candidate.correct else -1
            states[shard.starts[place] : shard.starts[place + 1], 0] += (sign * secrets[candidate.problem]).astype("f2")
        np.save(store.path / "shard-00000.states.npy", states)
    found = fit_head(Store.open(store.path), replace(QUICK, weight_decay=1e-3, gate=False, prefixes=0))
    assert found.summary["train"]["within_problem_auroc"] > 0.9
    assert found.summary["validation"]["within_problem_auroc"] < 0.85


def test_stores_of_the_same_data_share_its_problems(make_store: MakeStore) -> None:
    first = make_store(problems=30, seed=0)
    second = make_store(problems=30, seed=5, data_sha256=first.info.data_sha256)
    other = make_store(problems=30, seed=6)
    found = fit_head([first, second, other], QUICK)
    assert found.summary["candidates"] == 3 * 180
    assert sum(found.summary["problems"].values()) == 60
    assert auroc(found, make_store(problems=40, seed=1)) > 0.93


def test_weight_decay_is_chosen_by_validation(store: Store) -> None:
    lines: list[str] = []
    found = fit_head(store, replace(QUICK, weight_decay=None, weight_decays=(1e-3, 100.0)), report=lines.append)
    weak, strong = found.summary["search"]
    assert (weak["weight_decay"], strong["weight_decay"]) == (1e-3, 100.0)
    assert weak["auroc"] > strong["auroc"]
    assert found.summary["weight_decay"] == 1e-3
    assert found.summary["validation"]["within_problem_auroc"] == weak["auroc"]
    cheap = replace(QUICK, weight_decay=None, weight_decays=(1e-3, 100.0), search="start")
    searched = fit_head(store, cheap).summary["search"]
    assert [each["auroc"] is None for each in searched].count(True) == 1
    assert all(each["start_auroc"] is not None for each in searched)


def test_of_weight_decays_that_are_equally_good_the_strongest_is_taken(make_store: MakeStore) -> None:
    easy = make_store(problems=40, signal=20.0)
    found = fit_head(easy, replace(QUICK, weight_decay=None, weight_decays=(1e-2, 1e-4, 1e-3)))
    assert [each["auroc"] for each in found.summary["search"]] == [1.0] * 3
    assert found.summary["weight_decay"] == 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "mse"},
        {"pairwise_weight": -1.0},
        {"pairwise_weight": math.nan},
        {"token_statistics": ("self_certainty",)},
        {"token_statistics": ("logprob", "logprob")},
        {"token_statistics": "logprob"},
        {"norm": "layer"},
        {"prefixes": -1},
        {"prefixes": 1.5},
        {"prefixes": 10**11},
        {"prefix_weight": -0.1},
        {"weight_decay": -1.0},
        {"weight_decay": None, "weight_decays": ()},
        {"weight_decay": None, "weight_decays": (1.0, math.inf)},
        {"max_iterations": 0},
        {"patience": 0},
        {"seed": -1},
        {"seed": True},
        {"problems": 1},
        {"validation_share": 1.0},
        {"validation_share": 0.6, "calibration_share": 0.5},
        {"search": "none"},
        {"memory_bytes": 1000},
        {"layers": ()},
        {"layers": (3, 1)},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=r"is .*; expected"):
        replace(QUICK, **changes)


def test_options_are_plain_data() -> None:
    json.dumps(asdict(FitOptions()), allow_nan=False)


def test_without_scipy_the_extra_is_named_before_anything_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"swift-edge\[train\]"):
        fit_head(store, QUICK)
