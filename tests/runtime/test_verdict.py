"""The verdict on a head: said by fit and eval, kept in the head, and followed by picks."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picks import STORIES

from swift_edge import PickOptions, Selector
from swift_edge.scoring import Calibration, Head, judge, load_head, save_head
from swift_edge.selection import Decision
from swift_edge.training import FitOptions, Store, fit_head

MakeStore = Callable[..., Store]
Run = Callable[..., Any]
FIT = FitOptions(weight_decay=0.03, max_iterations=40)
CURVE = Calibration(4.0, -2.0, 0.4, 0.02, 400, 100)


def verdict_on(store: Store) -> tuple[dict[str, Any], str]:
    lines: list[str] = []
    head = fit_head(store, FIT, report=lines.append)
    return dict(head.summary["verdict"]), lines[-1]


def test_a_head_that_pays_is_said_to_pay_with_numbers(make_store: MakeStore) -> None:
    verdict, line = verdict_on(make_store(problems=240, signal=2.5))
    assert (verdict["outcome"], verdict["problems"], verdict["rule"]) == ("ahead", 36, "calibrated")
    assert verdict["difference"]["low"] > 0
    assert verdict["accuracy"] - verdict["other_accuracy"] == pytest.approx(verdict["difference"]["value"])
    assert line == verdict["text"]
    assert line.startswith("verdict: the head pays: on 36 problems its pick (calibrated) is right in 0.")
    assert "use it" in line


def test_a_head_that_learned_nothing_is_not_praised_and_says_what_to_do_next(make_store: MakeStore) -> None:
    # Three of four answers are right, so that the commonest answer is, and labels have nothing to do with states.
    labels = [[True, True, False, True, False, True]] * 240
    verdict, line = verdict_on(make_store(problems=240, labels=labels, signal=0.0, stretch=0.001))
    assert verdict["outcome"] != "ahead"
    assert verdict["other"] in ("majority", "best-of-majority")
    assert "fit to about 510 training problems instead of 168" in line


def test_few_problems_are_no_verdict(make_store: MakeStore) -> None:
    verdict, line = verdict_on(make_store(problems=40))
    assert (verdict["outcome"], verdict["adds_nothing"]) == ("unknown", False)
    assert "6 problems are too few to say" in line


def chances(problems: int, **shares: float) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Rules that are right in the first so many of the problems."""
    return {
        name.replace("_of_", "-of-"): (np.arange(problems) < round(share * problems)).astype(np.float64)
        for name, share in shares.items()
    }


def test_another_way_to_pick_is_advised_only_where_it_is_ahead_beyond_doubt() -> None:
    better = judge(chances(100, best=0.6, vote=0.8, calibrated=0.6, majority=0.5), "calibrated", ["majority"])
    assert better.strategy == "vote"
    close = judge(chances(100, best=0.6, vote=0.62, calibrated=0.6, majority=0.5), "calibrated", ["majority"])
    assert close.strategy == "calibrated"
    none = judge(chances(100, calibrated=0.4, majority=0.7), "calibrated", ["majority"])
    assert (none.outcome, none.adds_nothing, none.strategy) == ("behind", True, "majority")


def test_the_number_of_problems_that_would_tell_grows_with_doubt() -> None:
    small = judge(chances(400, calibrated=0.51, majority=0.5) | {"majority": np.roll(np.arange(400) < 200, 7) * 1.0},
                  "calibrated", ["majority"])  # fmt: skip
    assert small.outcome == "unsure"
    assert "problems in all would tell" in str(small)
    hard = judge(chances(100, calibrated=0.1, majority=0.1), "calibrated", ["majority"], contrasts=0.2)
    assert "20% have right and wrong candidates" in str(hard)


@pytest.mark.parametrize("name", ["vote", "best", "majority", "calibrated"])
def test_auto_picks_as_was_best_on_the_problems_of_the_fit(name: str) -> None:
    summary = {"task": "number", "verdict": {"strategy": name}}
    head = Head(np.ones((2, 4), np.float32), np.zeros(2, np.float32), (1,), calibration=CURVE, summary=summary)
    assert Decision.of(head, PickOptions()).strategy == name
    # What a file says that no fit writes is passed over.
    for odd in ("ranking", ["vote"], None, 3):
        assert Decision.of(replace(head, summary=summary | {"verdict": {"strategy": odd}}), PickOptions()).strategy == (
            "calibrated"
        )
    assert Decision.of(replace(head, summary=summary | {"verdict": 3}), PickOptions()).strategy == "calibrated"


def test_inspect_says_what_a_head_is_worth(run: Run, stories_head: Head, tmp_path: Path) -> None:
    shutil.copytree(STORIES, tmp_path / "bundle")
    verdict = judge(chances(100, best=0.6, mean_logprob=0.4), "best", ["mean_logprob"]).to_dict()
    save_head(tmp_path / "bundle" / "head.npz", replace(stories_head, summary={"verdict": verdict}))
    assert "the head pays: on 100 problems" in run("inspect", tmp_path / "bundle").out
    document = json.loads(run("inspect", tmp_path / "bundle", "--json").out)
    assert document["head"]["verdict"] == verdict["text"]
    save_head(tmp_path / "bundle" / "head.npz", replace(stories_head, summary={"verdict": [1]}))
    assert "verdict" not in run("inspect", tmp_path / "bundle").out


def test_a_head_that_adds_nothing_is_not_used_in_silence(stories_head: Head, tmp_path: Path) -> None:
    verdict = judge(chances(100, best=0.4, mean_logprob=0.6), "best", ["mean_logprob"]).to_dict()
    save_head(tmp_path / "head.npz", replace(stories_head, summary={"verdict": verdict}))
    picked = Selector(STORIES, head=str(tmp_path / "head.npz"), threads=1).pick("Once", n=2, max_new_tokens=2)
    (warning,) = picked.warnings
    assert "on the 100 problems that it was validated on, mean_logprob, which needs no head, was as good" in warning
    assert "--signal mean_logprob --strategy best" in warning
    assert load_head(tmp_path / "head.npz").summary["verdict"]["text"].startswith("verdict: the head does not pay")
    good = judge(chances(100, best=0.6, mean_logprob=0.4), "best", ["mean_logprob"]).to_dict()
    head = replace(stories_head, summary={"verdict": json.loads(json.dumps(good))})
    assert Selector(STORIES, head=head, threads=1).pick("Once", n=2, max_new_tokens=2).warnings == ()
