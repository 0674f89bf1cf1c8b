"""Timing picks: the figures are those of the picks that were made, and the shapes those that were asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swift_edge.errors import InvalidOptionError
from swift_edge.evaluation import Shape, bench

STORIES = str(Path(__file__).parents[2] / "models" / "stories260k")
SHAPES = [Shape(n, 8, 6) for n in (1, 4)]


def test_every_shape_is_timed_and_its_parts_add_up() -> None:
    done: list[tuple[int, int]] = []
    results = bench(STORIES, SHAPES, rounds=3, threads=1, progress=lambda *state: done.append(state))
    assert done == [(count, 6) for count in range(1, 7)]
    assert json.loads(json.dumps(results)) == results
    assert results["scored_by"] == "a random head"
    for shape, figures in zip(SHAPES, results["shapes"], strict=True):
        assert (figures["n"], figures["prompt_tokens"], figures["new_tokens"]) == (shape.n, 8, 6)
        for name in ("pick_s", "prefill_s", "first_token_s", "step_s", "head_share", "tokens_per_s"):
            assert 0 < figures[name]["low"] <= figures[name]["median"] <= figures[name]["high"], name
        assert figures["prefill_s"]["median"] + 6 * figures["step_s"]["median"] < figures["pick_s"]["high"] * 1.5
    assert "times_faster_than_one_by_one" not in results["shapes"][0]
    assert results["shapes"][1]["times_faster_than_one_by_one"]["median"] > 0


def test_the_command_shows_a_line_for_every_shape(run: Callable[..., Any]) -> None:
    options = ("--prompt-tokens", "8", "--new-tokens", "6", "--rounds", "1", "--threads", "1")
    outcome = run("bench", "-m", STORIES, "-n", "1,4", *options)
    assert outcome.status == 0, outcome.err
    rows = [line for line in outcome.out.splitlines() if line.startswith("| 8 | 6 |")]
    assert [row.split("|")[3].strip() for row in rows] == ["1", "4"]


def test_shapes_that_do_not_fit_are_refused() -> None:
    for shape in (Shape(1, 0, 4), Shape(1, 500, 20)):
        with pytest.raises(InvalidOptionError, match="context holds 512"):
            bench(STORIES, [shape], rounds=1, threads=1)
    with pytest.raises(InvalidOptionError, match="rounds is 0"):
        bench(STORIES, SHAPES, rounds=0)
