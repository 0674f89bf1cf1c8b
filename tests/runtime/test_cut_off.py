"""A response that the limit of tokens cut off is no answer: to picks, to their probability, to stores and to tests."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picks import SMALL_STEPS

from swift_edge import Selector
from swift_edge.engine import OpenedModel
from swift_edge.evaluation.sampled import Sampled
from swift_edge.options import PickOptions
from swift_edge.results import Candidate
from swift_edge.scoring import AnswerCalibration, Calibration, Head
from swift_edge.selection import Decision
from swift_edge.training import FitOptions, Store, collect, fit_head, recalibrate

QUESTION = (
    "One day Theo owns 29 carrots. Theo has 4 carrots more than Odette. As it happens, Odette got 8 fewer carrots than "
    "Teresa. What number of carrots does Teresa have?"
)
CURVE = Calibration(4.0, -2.0, 0.4, 0.02, 400, 100, AnswerCalibration(0.7, -0.5, 0.02, 100))
HEAD = Head(np.ones((2, 4), np.float32), np.zeros(2, np.float32), layers=(1,), fingerprint="f", calibration=CURVE)


@pytest.fixture(scope="module")
def solver() -> Selector:
    return Selector(SMALL_STEPS, threads=1)


def candidate(index: int, text: str, score: float, reason: Any = "stop") -> Candidate:
    dropped = "behind" if reason == "dropped" else None
    return Candidate(index, text, (1,), score, -1.0, reason, dropped_because=dropped, cut_off=reason == "length")


def test_stumps_alone_give_no_probability_and_abstain(solver: Selector) -> None:
    picked = solver.pick(QUESTION, n=8, max_new_tokens=12, min_confidence=0.9)
    assert {each.finish_reason for each in picked.candidates} == {"length"}
    assert (picked.p_correct, picked.abstained, picked.answers) == (None, True, ())
    assert picked.best.score == max(each.score for each in picked.candidates)
    (warning,) = picked.warnings
    assert "all 8 candidates were cut off at max_new_tokens, 12: ask for more" in warning
    assert solver.pick("hi", n=4, max_new_tokens=1).p_correct is None
    assert "the only candidate was cut off" in solver.pick("2+2=", n=1, max_new_tokens=1).warnings[0]


def test_a_context_that_is_full_says_so(solver: Selector) -> None:
    prompt = "carrots " * 400
    full = solver.token_count(prompt)
    prompt = "carrots " * (400 * 480 // full)
    picked = solver.pick(prompt, n=2, max_new_tokens=500, seed=1)
    if all(each.cut_off for each in picked.candidates):
        assert "the context of 512 tokens is full: shorten the prompt" in picked.warnings[0]


def test_a_pick_goes_on_for_answers_that_are_whole_and_puts_them_first(solver: Selector) -> None:
    assert solver.pick(QUESTION, n="auto", max_new_tokens=12).stopped_because == "max_n"
    # By the signal alone four equal stumps would leave nothing to gain.
    by_signal = solver.pick(QUESTION, n="auto", max_n=6, max_new_tokens=1, temperature=0.01, signal="mean_logprob")
    assert (by_signal.stopped_because, len(by_signal.candidates)) == ("max_n", 6)
    # At 36 tokens one kind of response is just whole, the other lacks its end.
    picked = solver.pick(QUESTION, n=8, max_new_tokens=37)
    whole = [each.is_whole for each in picked.ranked]
    assert whole == sorted(whole, reverse=True)
    assert any(whole)
    assert not all(whole)
    voters = {index for answer in picked.answers for index in answer.candidates}
    assert voters == {each.index for each in picked.candidates if each.is_whole}
    assert picked.p_correct == picked.answers[0].posterior
    assert all(each.cut_off == (each.finish_reason == "length") for each in picked.candidates)


@pytest.mark.parametrize("strategy", ["auto", "best", "majority", "vote", "calibrated", "best-of-majority"])
def test_whatever_the_strategy_a_stump_has_no_vote_and_comes_after_whole_ones(strategy: Any) -> None:
    rows = [
        candidate(0, "is 7", 3.0, "length"),
        candidate(1, "is 7", 2.0, "length"),
        candidate(2, "is 8", 0.1),
        candidate(3, "is 9", 9.0, "dropped"),
        candidate(4, "is 8", 0.2),
    ]
    decision = Decision.of(HEAD, PickOptions(task="number", strategy=strategy))
    decided = decision.apply(rows)
    assert decided.ranked == (4, 2, 0, 1, 3)
    assert [(each.text, each.candidates) for each in decided.answers] == [("8", (4, 2))]
    alone = decision.apply([replace(rows[4], index=0), replace(rows[2], index=1)])
    assert decided.p_correct == alone.p_correct
    stumps = decision.apply(rows[:2])
    assert (stumps.ranked, stumps.answers, stumps.p_correct) == ((0, 1), (), None)


def test_without_a_task_whole_ones_come_first_too_and_an_external_judge_still_judges_stumps_alone() -> None:
    rows = [candidate(0, "a", 3.0, "length"), candidate(1, "b", 1.0)]
    assert Decision.of(None, PickOptions()).apply(rows).ranked == (1, 0)
    judged = PickOptions(external=lambda texts: [float(text == "b") for text in texts])
    stumps = [rows[0], replace(rows[1], finish_reason="length", cut_off=True)]
    assert Decision.of(None, replace(judged, strategy="scaling")).apply(stumps).ranked == (0, 1)
    assert Decision.of(HEAD, PickOptions()).apply(stumps).p_correct is None


def test_a_whole_response_without_an_answer_is_not_right() -> None:
    decided = Decision.of(HEAD, PickOptions(task="number", min_confidence=0.1)).apply([candidate(0, "no idea", 9.0)])
    assert (decided.p_correct, decided.abstained) == (0.0, True)


def test_the_command_abstains_and_counts_whole_candidates(run: Callable[..., Any]) -> None:
    quick = ("-m", SMALL_STEPS, "--threads", 1)
    found = run("pick", QUESTION, *quick, "-n", 8, "--max-new-tokens", 12, "--min-confidence", 0.9)
    assert (found.status, found.out) == (3, "")
    assert "all 8 candidates were cut off" in found.err
    assert "P(correct)" not in found.err


def test_texts_to_score_are_whole(solver: Selector) -> None:
    scored = solver.score(QUESTION, ["So: \\boxed{33}", "4 more: 29 -"])
    assert not any(each.cut_off for each in scored.candidates)
    assert scored.p_correct is not None


def test_a_model_without_an_end_ends_at_the_limit(tmp_path: Path) -> None:
    bundle = tmp_path / "endless"
    shutil.copytree(SMALL_STEPS, bundle)
    manifest = json.loads((bundle / "swift_edge.json").read_text())
    manifest["tokens"]["eos_ids"] = []
    (bundle / "swift_edge.json").write_text(json.dumps(manifest))
    selector = Selector(bundle, threads=1)
    picked = selector.pick(QUESTION, n=2, max_new_tokens=38)
    assert {each.finish_reason for each in picked.candidates} == {"length"}
    assert picked.p_correct is not None
    assert len(picked.answers) > 0
    # With a stop string there is an end that it has not come to.
    assert selector.pick(QUESTION, n=2, max_new_tokens=38, stop=["never"]).p_correct is None


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Problems, and a store of candidates that are in part cut off, after they have given their answer."""
    folder = tmp_path_factory.mktemp("short")
    rows = [{"question": QUESTION.replace("29", str(number)), "answer": str(number + 4)} for number in range(25, 33)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = OpenedModel.open(SMALL_STEPS, threads=1)
    collect(opened, folder / "data.jsonl", folder / "store", n=4, task="number", max_new_tokens=37, layers=[6])
    return folder / "data.jsonl", folder / "store"


@pytest.mark.slow
def test_a_store_has_no_answer_of_a_stump_and_an_earlier_one_is_read_so(short: tuple[Path, Path]) -> None:
    store = Store.open(short[1])
    stumps = [each for each in store.candidates if each.finish_reason == "length"]
    assert 0 < len(stumps) < len(store.candidates)
    assert all(each.cut_off and not each.correct and each.answer is None for each in stumps)
    assert not any(each.cut_off for each in store.candidates if each.finish_reason == "stop")
    lines = sorted(short[1].glob("*.jsonl"))[0]
    before = lines.read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    for row in rows:
        row |= {"correct": True, "answer": "33"} if row["finish_reason"] == "length" else {}
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Store.open(short[1]).candidates == store.candidates
    lines.write_text(before)


@pytest.mark.slow
def test_rules_that_are_judged_pick_no_stump(short: tuple[Path, Path]) -> None:
    store, task = Store.open(short[1]), Decision.of(None, PickOptions(task="number")).task
    assert task is not None
    sampled = Sampled.read(store, task, {})
    stumps = np.array([each.cut_off for each in store.candidates]).reshape(sampled.answers.shape)
    assert (sampled.answers[stumps] == -1).all()
    for scores in (sampled.mean_logprob, sampled.self_certainty, sampled.n_tokens):
        assert (np.isnan(scores) == stumps).all()


def test_a_calibration_hears_whole_candidates_alone(make_store: Callable[..., Store]) -> None:
    store = make_store(problems=60, n=4, seed=3)
    head = fit_head(store)
    local = make_store(problems=60, n=4, seed=4)
    plain = recalibrate(head, local)
    assert plain.calibration is not None
    # The same, and beside them stumps of every problem, which say nothing.
    cut = [
        replace(each, cut_off=each.index == 3, correct=each.correct and each.index != 3) for each in local.candidates
    ]
    shard = replace(local.shards[0], candidates=tuple(cut))
    assert len(local.shards) == 1
    fewer = recalibrate(head, replace(local, shards=(shard,), candidates=tuple(cut)))
    assert fewer.calibration is not None
    assert fewer.calibration.candidates == 180
    assert fewer.calibration.base_rate == pytest.approx(
        np.mean([each.correct for each in local.candidates if each.index != 3])
    )


def test_a_head_is_not_trained_on_stumps(make_store: Callable[..., Store]) -> None:
    plain = make_store(problems=60, n=4, seed=3)
    (shard,) = plain.shards
    cut = tuple(
        replace(each, cut_off=each.index == 3, correct=each.correct and each.index != 3) for each in plain.candidates
    )
    other = np.array(shard.states)
    for place, each in enumerate(cut):
        if each.cut_off:
            other[shard.starts[place] : shard.starts[place + 1]] *= -3
    weights, options = [], FitOptions(weight_decay=0.03, validation_share=0.0)
    for states in (shard.states, other):
        changed = replace(shard, candidates=cut, states=states)
        head = fit_head(replace(plain, shards=(changed,), candidates=cut), options)
        weights.append(head.weight)
        assert head.summary["candidates_cut_off"] == 60
    np.testing.assert_array_equal(*weights)
    assert np.abs(weights[0] - fit_head(plain, options).weight).max() > 0


def test_the_report_counts_from_one_and_folds_candidates_that_say_the_same(run: Callable[..., Any]) -> None:
    asked = ("pick", QUESTION, "-m", SMALL_STEPS, "-n", 8, "--max-new-tokens", 37, "--threads", 1, "--json")
    found = run(*asked)
    picked = json.loads(found.out)
    texts = Counter(each["text"] for each in picked["candidates"])
    lines = found.err.splitlines()
    rows = [line.split() for line in lines[1 : lines.index(next(each for each in lines if each.startswith("answer")))]]
    assert len(rows) == len(texts) < 8
    assert rows[0][:4] == ["1", str(picked["best"] + 1), "of", "8"]
    first = max(texts, key=texts.__getitem__)
    same = [str(index + 1) for index in picked["ranked"] if picked["candidates"][index]["text"] == first]
    assert any(f"; x{len(same)}, with {', '.join(same[1:])}" in line for line in lines)
    whole = sum(each["finish_reason"] == "stop" for each in picked["candidates"])
    assert f"{picked['answers'][0]['support']} of {whole} candidate" in found.err
