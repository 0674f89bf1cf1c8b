"""A fit that is interrupted: its best head is not lost, and the interruption is not swallowed."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import swift_edge
from swift_edge.scoring import Head, load_head, save_head
from swift_edge.training import FitInterrupted, FitOptions, Store, fit_head

MakeStore = Callable[..., Store]
INTERRUPTIONS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
ENDLESS = FitOptions(weight_decay=0.03, max_iterations=1000, patience=1000)


@pytest.fixture(scope="module")
def store(make_store: MakeStore) -> Store:
    return make_store(problems=60, n=6, shard_bytes=20_000)


@pytest.fixture(scope="module")
def big(make_store: MakeStore) -> Store:
    """An iteration takes long enough for a signal to come between two."""
    return make_store(problems=400, n=8, width=64, most=24, signal=0.5)


def interrupting(*beginnings: str) -> Callable[[str], None]:
    """A report that interrupts at a line that begins so, and again at the next."""
    waiting = list(beginnings)

    def report(line: str) -> None:
        if waiting and line.startswith(waiting[0]):
            waiting.pop(0)
            raise KeyboardInterrupt

    return report


def interrupted(store: Store, options: FitOptions, at: str) -> Head:
    with pytest.raises(FitInterrupted) as caught:
        fit_head(store, options, report=interrupting(at))
    assert isinstance(caught.value, KeyboardInterrupt)
    assert not isinstance(caught.value, Exception)  # or a caller that survives errors would go on
    return caught.value.head


def assert_same_weights(one: Head, other: Head) -> None:
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.bias, other.bias)
    assert one.calibration == other.calibration


def test_an_interruption_brings_the_head_that_a_fit_of_so_many_iterations_gives(store: Store, tmp_path: Path) -> None:
    found = interrupted(store, ENDLESS, "iteration 20:")
    assert found.summary["interrupted"] == {"stage": "descent", "weight_decay": 0.03, "iteration": 20}
    assert found.summary["iterations"] == 20
    ended = fit_head(store, replace(ENDLESS, max_iterations=20))
    assert ended.summary["interrupted"] is None
    assert_same_weights(found, ended)
    assert found.calibration is not None
    ours, theirs = (
        {name: value for name, value in each.summary.items() if name not in ("interrupted", "options")}
        for each in (found, ended)
    )
    assert ours == theirs
    save_head(tmp_path / "head.npz", found)
    assert load_head(tmp_path / "head.npz").summary == found.summary


def test_the_exception_says_what_is_left_and_crosses_processes(store: Store) -> None:
    with pytest.raises(
        FitInterrupted, match=r"after iteration 10 with weight decay 0.03; .* attribute `head`"
    ) as caught:
        fit_head(store, ENDLESS, report=interrupting("iteration 10:"))
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(copied) == str(caught.value)
    assert_same_weights(copied.head, caught.value.head)


def test_of_all_weight_decays_so_far_the_best_is_kept(store: Store) -> None:
    options = replace(ENDLESS, weight_decay=None, weight_decays=(1e-3, 0.03, 100.0), max_iterations=15)
    reached = []

    def in_the_last(line: str) -> None:
        if line.startswith("iteration 10:"):
            reached.append(line)
            if len(reached) == 2:  # the strongest ends before that
                raise KeyboardInterrupt

    with pytest.raises(FitInterrupted) as caught:
        fit_head(store, options, report=in_the_last)
    summary = caught.value.head.summary
    assert summary["interrupted"] == {"stage": "descent", "weight_decay": 1e-3, "iteration": 10}
    weak, middle, strong = summary["search"]
    assert strong["auroc"] < min(middle["auroc"], weak["auroc"])
    best = max((middle, weak), key=lambda each: each["auroc"])
    assert summary["weight_decay"] == best["weight_decay"]
    assert summary["validation"]["within_problem_auroc"] == best["auroc"]


def test_a_convex_start_is_a_head_too(store: Store) -> None:
    options = replace(ENDLESS, weight_decay=None, weight_decays=(0.03, 100.0))
    found = interrupted(store, options, "weight decay 100:")
    place = found.summary["interrupted"]
    assert (place["stage"], place["weight_decay"]) == ("start", 100.0)
    assert place["iteration"] > 0
    assert (found.summary["iterations"], found.summary["best_iteration"]) == (0, 0)
    assert found.summary["search"] == [
        {"weight_decay": 100.0, "start_auroc": found.summary["start"]["within_problem_auroc"], "auroc": None}
    ]
    assert not found.weight[0].any()  # the gate weighs all alike
    assert found.weight[1].any()
    assert found.summary["validation"]["within_problem_auroc"] == pytest.approx(
        found.summary["start"]["within_problem_auroc"], abs=1e-3
    )


def test_before_anything_is_found_an_interruption_is_that_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_head(store, ENDLESS, report=interrupting("360 candidates"))
    assert type(caught.value) is KeyboardInterrupt

    def at_once(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    # After the zeros of the first convex start were judged, and before its first iteration ended.
    monkeypatch.setattr("scipy.optimize.minimize", at_once)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_head(store, ENDLESS)
    assert type(caught.value) is KeyboardInterrupt


def test_interrupted_again_it_does_without_the_head(store: Store) -> None:
    again = interrupting("iteration 10:", "interrupted after iteration 10")
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_head(store, ENDLESS, report=again)
    assert type(caught.value) is KeyboardInterrupt


@pytest.mark.skipif(os.name == "nt", reason="signals a process")
class TestProcess:
    OPTIONS = ("--weight-decay", "0.03", "--max-iterations", "1000", "--patience", "1000")

    def interrupted_fit(
        self, store: Store, out: Path, number: int, at: bytes, *more: str
    ) -> tuple[int, str, list[str]]:
        """Fit in a process that gets the signal at a line that begins so; returns status, stdout and stderr."""
        command = [sys.executable, "-W", "error", "-m", "swift_edge", "fit", str(store.path), "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1])}
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([*command, *self.OPTIONS, *more], env=environment, **pipes) as running:
            assert running.stderr is not None
            lines = []
            while line := running.stderr.readline():
                lines.append(line.decode().rstrip("\n"))
                if line.startswith(at):
                    running.send_signal(number)
                    break
            printed, rest = running.communicate()
        return running.returncode, printed.decode(), [*lines, *rest.decode().splitlines()]

    @pytest.mark.slow
    @pytest.mark.parametrize("number", INTERRUPTIONS)
    def test_the_best_head_is_written_and_the_status_is_130(self, big: Store, tmp_path: Path, number: int) -> None:
        out = tmp_path / "head.npz"
        status, printed, lines = self.interrupted_fit(big, out, number, b"iteration 10:")
        assert (status, printed) == (130, "")
        assert lines[-2:] == [f"the best head until then is in {out}", "interrupted"]
        (told,) = [line for line in lines if line.startswith("interrupted after iteration")]
        assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]
        head = load_head(out)
        iteration = head.summary["interrupted"]["iteration"]
        assert iteration >= 10
        assert told.startswith(f"interrupted after iteration {iteration} with weight decay 0.03; ")
        assert_same_weights(head, fit_head(big, replace(ENDLESS, max_iterations=iteration)))

    @pytest.mark.slow
    def test_the_best_head_is_written_where_nobody_listens_any_more(self, big: Store, tmp_path: Path) -> None:
        """As when a terminal is closed: the signal comes, and nothing can be told."""
        out = tmp_path / "head.npz"
        read, write = os.pipe()
        command = [sys.executable, "-m", "swift_edge", "fit", str(big.path), "--out", str(out), *self.OPTIONS]
        environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1])}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=write) as running:
            os.close(write)
            with os.fdopen(read) as lines:
                assert any(line.startswith("iteration 10:") for line in lines)
            running.send_signal(signal.SIGHUP)
            running.wait()
        assert running.returncode == 130
        assert load_head(out).summary["interrupted"]["iteration"] >= 10

    def test_where_nothing_is_found_nothing_is_written_and_the_file_before_stays(
        self, big: Store, tmp_path: Path
    ) -> None:
        out = tmp_path / "head.npz"
        out.write_text("mine")
        status, printed, lines = self.interrupted_fit(big, out, signal.SIGINT, b"3200 candidates", "--force")
        assert (status, printed) == (130, "")
        assert lines[-2:] == [f"no head is finished, so nothing is written to {out}", "interrupted"]
        assert out.read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]
