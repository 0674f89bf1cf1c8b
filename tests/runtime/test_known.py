"""A head knows what it knows: of foreign questions it does not say how likely a pick is to be right."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picks import SMALL_STEPS, STORIES, bits

from swift_edge import Picked, Selector
from swift_edge.bundle import open_bundle
from swift_edge.errors import HeadFileError, HeadMismatchError, InvalidOptionError, TrainingError
from swift_edge.evaluation import evaluate
from swift_edge.explain import explain_page
from swift_edge.scoring import AnswerCalibration, Calibration, Head, KnownStates, load_head, save_head
from swift_edge.training import FitOptions, Store, collect, fit_head, know, recalibrate

MakeStore = Callable[..., Store]
CURVE = Calibration(4.0, -2.0, 0.4, 0.02, 400, 100, AnswerCalibration(0.7, -0.5, 0.02, 100))
FIT = FitOptions(weight_decay=0.03, max_iterations=20)
PROMPT = "Once upon a time"
SHORT: dict[str, Any] = {"n": 4, "max_new_tokens": 24, "seed": 3, "temperature": 1.8}


def knowing(head: Head, limit: float, layer: int = 3) -> Head:
    """The head with a calibration; everything is foreign to it with a small limit, and nothing with a large one."""
    random = np.random.default_rng(5)
    axes = np.linalg.qr(random.normal(size=(head.state_width, 3)))[0].T
    ones = np.ones(head.state_width)
    return replace(head, calibration=CURVE, known=KnownStates(0 * ones, ones, axes, layer, 4, limit, 40))


def opened(head: Head, **changes: Any) -> Selector:
    return Selector(STORIES, head=head, threads=1, **changes)


def test_scores_texts_and_picks_are_the_same_bits_whatever_the_head_knows(stories_head: Head) -> None:
    plain = opened(replace(stories_head, calibration=CURVE)).pick(PROMPT, **SHORT)
    for limit in (1e-9, 1e9):
        found = bits(opened(knowing(stories_head, limit)).pick(PROMPT, **SHORT))
        for mine, theirs in zip(found["candidates"], bits(plain)["candidates"], strict=True):
            assert mine.pop("distance") is not None
            assert theirs.pop("distance") is None
            assert mine == theirs
        assert found["ranked"] == [each.index for each in plain.ranked]


def test_the_distance_is_the_same_bits_alone_and_beside_others_and_by_every_door(stories_head: Head) -> None:
    selector = opened(knowing(stories_head, 1.0))
    alone = [each.distance for each in selector.pick(PROMPT, **SHORT).candidates]
    assert len(set(alone)) > 1
    together = list(selector.pick_many([PROMPT, "The dog", PROMPT], **SHORT, in_order=True))
    for selection in (together[0], together[2]):
        assert [each.distance for each in selection.candidates] == alone
    last = list(selector.stream(PROMPT, **SHORT))[-1]
    assert isinstance(last, Picked)
    assert [each.distance for each in last.selection.candidates] == alone
    # Candidates that begin while others go on have first tokens of their own, too.
    waves = selector.pick(PROMPT, n="auto", max_n=6, max_new_tokens=24, seed=3, temperature=1.8, prune="off")
    assert [each.distance for each in waves.candidates][:4] == alone
    assert all(each.distance is not None for each in waves.candidates)


def test_a_pick_looks_at_the_states_that_a_fit_looks_at(stories_head: Head, tmp_path: Path) -> None:
    head = knowing(stories_head, 1.0)
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": PROMPT, "answer": "x"}) + "\n")
    writing: dict[str, Any] = {name: value for name, value in SHORT.items() if name != "n"}
    collect(STORIES, tmp_path / "data.jsonl", tmp_path / "store", n=4, task="exact", layers=(3,), **writing)
    (shard,) = Store.open(tmp_path / "store").shards
    means = [shard.states[begin : begin + 4, 0].astype(np.float64).mean(axis=0) for begin in shard.starts[:-1]]
    assert head.known is not None
    picked = opened(head).pick(PROMPT, **SHORT)
    assert head.known.distances(means) == pytest.approx([each.distance for each in picked.candidates], rel=5e-3)


def test_a_given_text_is_as_far_as_one_that_was_written(stories_head: Head) -> None:
    selector = opened(knowing(stories_head, 1.0))
    written = selector.pick(PROMPT, **SHORT).candidates[0]
    # The text may be split into other tokens; its first ones are mostly the same.
    (given,) = selector.score(PROMPT, [written.text]).candidates
    assert given.distance == pytest.approx(written.distance, rel=0.3)


@pytest.mark.parametrize("task", [None, str.strip])
def test_of_a_foreign_pick_nothing_says_how_likely_it_is_right(stories_head: Head, task: Any) -> None:
    options = SHORT | {"max_new_tokens": 60, "stop": ["."], "task": task}
    known = opened(knowing(stories_head, 1e9)).pick(PROMPT, **options)
    foreign = opened(knowing(stories_head, 1e-9)).pick(PROMPT, **options)
    assert known.p_correct is not None
    assert known.warnings == ()
    assert foreign.best.index == known.best.index
    assert (foreign.p_correct, {each.posterior for each in foreign.answers} <= {None}) == (None, True)
    (warning,) = foreign.warnings
    assert warning.startswith("the question is foreign to the head")
    document = json.loads(json.dumps(foreign.to_dict()))
    assert document["p_correct"] is None
    assert document["warnings"] == [warning]
    assert document["candidates"][0]["distance"] > 1
    assert (foreign.abstained, known.abstained) == (False, False)


def test_a_foreign_pick_is_abstained_from(stories_head: Head) -> None:
    options = SHORT | {"max_new_tokens": 60, "stop": ["."], "min_confidence": 1e-9}
    assert opened(knowing(stories_head, 1e-9)).pick(PROMPT, **options).abstained
    assert not opened(knowing(stories_head, 1e9)).pick(PROMPT, **options).abstained


def test_auto_is_not_settled_by_the_evidence_of_foreign_candidates(stories_head: Head) -> None:
    # Different answers, each of them sure by its score: only a calibration that is believed ends that early.
    sure = replace(CURVE, slope=0.0, intercept=20.0, answers=AnswerCalibration(1.0, 20.0, 0.0, 100))
    options: dict[str, Any] = {"n": "auto", "max_n": 10, "max_new_tokens": 60, "stop": ["."], "task": str.strip}
    options |= {"min_confidence": 0.1, "prune": "off"}
    known = opened(replace(knowing(stories_head, 1e9), calibration=sure)).pick(PROMPT, **options)
    foreign = opened(replace(knowing(stories_head, 1e-9), calibration=sure)).pick(PROMPT, **options)
    assert known.stopped_because == "settled"
    assert (foreign.stopped_because, len(foreign.candidates)) == ("max_n", 10)


def test_the_page_of_a_foreign_pick_has_no_probability(stories_head: Head) -> None:
    options = SHORT | {"max_new_tokens": 60, "stop": ["."]}
    pages = {}
    for limit in (1e9, 1e-9):
        selector = opened(knowing(stories_head, limit))
        pages[limit] = explain_page(PROMPT, selector.pick(PROMPT, **options), selector.tokenizer)
    assert "P(correct) 0" in pages[1e9]
    assert "P(correct) unknown" in pages[1e-9]
    assert "P(correct) 0" not in pages[1e-9]


def test_a_file_keeps_what_a_head_knows(stories_head: Head, tmp_path: Path) -> None:
    head = knowing(stories_head, 0.25)
    save_head(tmp_path / "a", head)
    read = load_head(tmp_path / "a")
    assert read.known is not None
    assert head.known is not None
    for name in ("mean", "scale", "axes"):
        np.testing.assert_array_equal(getattr(read.known, name), getattr(head.known, name))
    assert (read.known.layer, read.known.tokens, read.known.limit, read.known.problems) == (3, 4, 0.25, 40)
    save_head(tmp_path / "b", read)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with np.load(tmp_path / "a") as archive:
        arrays = dict(archive)
    for name, array, message in (
        ("known_axes", None, "it has no known_axes"),
        ("known_mean", arrays["known_mean"][:-1], "of shapes"),
        ("known_mean", arrays["known_mean"] * np.nan, "not finite"),
        ("known_scale", arrays["known_scale"] * 0, "not positive"),
        ("known_axes", arrays["known_axes"].astype(np.float32), "its known_axes is float32, expected float16"),
    ):
        np.savez(
            tmp_path / "c.npz", **{each: value for each, value in (arrays | {name: array}).items() if value is not None}
        )
        with pytest.raises(HeadFileError, match=message):
            load_head(tmp_path / "c.npz")
    with pytest.raises(InvalidOptionError, match="the known layer is 2"):
        knowing(stories_head, 1.0, layer=2)


@pytest.fixture(scope="module")
def fitted(make_store: MakeStore) -> Head:
    return fit_head(make_store(problems=240, most=6, width=8), FIT)


def foreign_share(head: Head, store: Store) -> float:
    """Share of the candidates that are foreign."""
    assert head.known is not None
    place = store.info.layers.index(head.known.layer)
    means = [
        shard.states[begin : min(begin + head.known.tokens, end), place].astype(np.float64).mean(axis=0)
        for shard in store.shards
        for begin, end in zip(shard.starts[:-1], shard.starts[1:], strict=True)
    ]
    return float((head.known.distances(np.array(means)) > 1).mean())


def test_a_fitted_head_knows_its_own_problems_and_no_others(fitted: Head, make_store: MakeStore) -> None:
    assert fitted.known is not None
    assert (fitted.known.layer, fitted.known.problems) == (1, 72)  # the last but one, before the final norm
    own = make_store(problems=100, most=6, width=8, seed=9)
    assert 0.0 < foreign_share(fitted, own) < 0.12
    assert foreign_share(fitted, make_store(problems=20, most=6, width=8, seed=9, shift=6.0)) > 0.9


def test_recalibrating_tells_a_head_what_it_knows_now(fitted: Head, make_store: MakeStore) -> None:
    moved: dict[str, Any] = {"most": 6, "width": 8, "shift": 6.0}
    elsewhere = recalibrate(fitted, make_store(problems=200, seed=2, **moved))
    assert foreign_share(elsewhere, make_store(problems=100, seed=3, **moved)) < 0.15
    assert foreign_share(elsewhere, make_store(problems=100, seed=3, most=6, width=8)) > 0.9
    few = recalibrate(fitted, make_store(problems=40, seed=2, most=6, width=8))
    assert few.known is not None
    assert fitted.known is not None
    np.testing.assert_array_equal(few.known.axes, fitted.known.axes)
    assert few.known.problems == 40
    lines: list[str] = []
    rough = recalibrate(fitted, make_store(problems=10, seed=2, most=6, width=8), report=lines.append)
    assert rough.known is None
    assert any("does not tell foreign questions" in line for line in lines)


def test_a_head_that_knows_nothing_yet_is_told_without_another_calibration(fitted: Head, make_store: MakeStore) -> None:
    old = replace(fitted, known=None)
    told = know(old, make_store(problems=200, seed=4, most=6, width=8))
    assert told.known is not None
    assert told.calibration == old.calibration
    np.testing.assert_array_equal(told.weight, old.weight)
    with pytest.raises(TrainingError, match="at least 100 problems"):
        know(old, make_store(problems=30, seed=4, most=6, width=8))
    with pytest.raises(HeadMismatchError, match="expected the same weights"):
        know(old, make_store(problems=30, seed=4, most=6, width=8, fingerprint="cd" * 32))


def test_a_store_of_few_tokens_keeps_the_first_ones(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": PROMPT, "answer": "x"}) + "\n")
    collect(STORIES, tmp_path / "data.jsonl", tmp_path / "store", n=2, task="exact", layers=(5,), max_new_tokens=50,
            tokens_per_candidate=16)  # fmt: skip
    (shard,) = Store.open(tmp_path / "store").shards
    for begin, end in zip(shard.starts[:-1], shard.starts[1:], strict=True):
        positions = shard.positions[begin:end]
        assert len(positions) == 16
        assert positions[:4].tolist() == [0, 1, 2, 3]
        assert positions[-1] == 49
        gaps = np.diff(positions[3:])
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.slow
def test_a_test_stores_the_distances_that_a_pick_has_and_tells_how_many_are_foreign(
    stories_head: Head, tmp_path: Path
) -> None:
    head = knowing(stories_head, 1e-9)
    save_head(tmp_path / "head.npz", head)
    rows = [{"prompt": prompt, "answer": "x"} for prompt in (PROMPT, "The dog")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(
        STORIES, tmp_path / "data.jsonl", tmp_path / "out", task="text", sizes=(1, 2),
        heads={"mine": tmp_path / "head.npz"}, threads=1, resamples=100,
    )  # fmt: skip
    assert any(note.startswith("100.0% of the candidates are foreign to the head mine") for note in results["notes"])
    verdict = results["verdict"]["mine"]
    assert (verdict["outcome"], verdict["problems"]) == ("unknown", 2)
    assert (tmp_path / "out" / "results.md").read_text().rstrip().endswith(f"mine, {verdict['text']}")
    store = Store.open(tmp_path / "out" / "candidates")
    picked = opened(head).pick(PROMPT, n=2, max_new_tokens=512, seed=0)
    assert [each.distances["mine"] for each in store.candidates[:2]] == [each.distance for each in picked.candidates]


@pytest.mark.parametrize("question", ["2+2=", "Write a haiku about the sea.", "Who wrote Hamlet?"])
def test_the_shipped_head_does_not_vouch_for_foreign_questions(question: str) -> None:
    picked = Selector(SMALL_STEPS, threads=1).pick(question, n=8, max_new_tokens=96)
    assert picked.p_correct is None
    assert any("foreign" in warning or "cut off" in warning for warning in picked.warnings)


def test_the_shipped_head_has_the_scores_that_it_had() -> None:
    head = load_head(SMALL_STEPS / "head.npz")
    assert head.known is not None
    assert head.architecture == open_bundle(SMALL_STEPS).manifest.architecture
    question = "Trace the program?\nnums = [8, 19, 29]\nprint(nums[2] - nums[1] + nums[0])"
    told = Selector(SMALL_STEPS, threads=1).pick(question, n=8)
    untold = Selector(SMALL_STEPS, head=replace(head, known=None), threads=1).pick(question, n=8)
    assert told.p_correct == untold.p_correct
    assert [each.score for each in told.candidates] == [each.score for each in untold.candidates]
