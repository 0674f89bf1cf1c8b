"""What importing swift_edge does: nothing but define names."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import swift_edge
from swift_edge.bundle.folder import open_bundle
from swift_edge.engine.session import ModelSession

STORIES = Path(__file__).parents[2] / "models" / "stories260k"

SIDE_EFFECTS = """
import logging, os, sys, threading, warnings
import numpy  # a dependency, with habits of its own

def state():
    root = logging.root
    return dict(os.environ), root.level, list(root.handlers), threading.active_count(), list(warnings.filters)

before = state()
import swift_edge
assert state() == before, (before, state())
heavy = {"torch", "transformers", "optimum", "onnx", "swift_edge_export"}
heavy |= {"onnxruntime", "tokenizers", "jinja2", "click", "its_hub"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""

WHOLE_PICK = """
import os, sys
from swift_edge import Selector

class Watch:
    '''Sees the import of onnxruntime before it happens.'''
    seen = []
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            self.seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
Selector(sys.argv[1], threads=1).pick("Once upon a time", n=2, max_new_tokens=3)
assert Watch.seen == ["1"], Watch.seen
heavy = {"torch", "transformers", "optimum", "onnx", "swift_edge_export", "its_hub"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""

DENORMALS = """
import sys
from swift_edge import Selector
Selector(sys.argv[1], threads=2).pick("Once upon a time", n=2, max_new_tokens=3)
assert 1e-310 * 0.5 == 5e-311
"""


def run(program: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_importing_loads_nothing_heavy_and_changes_nothing() -> None:
    run(SIDE_EFFECTS)


def test_a_pick_needs_no_torch_and_switches_telemetry_off_before_onnxruntime_is_imported() -> None:
    run(WHOLE_PICK, str(STORIES))


def test_telemetry_is_switched_off_where_onnxruntime_was_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    calls: list[bool] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append(True))
    ModelSession(open_bundle(STORIES), threads=1)
    assert calls == [True]


def test_a_pick_leaves_the_arithmetic_of_the_calling_thread_as_it_was() -> None:
    run(DENORMALS, str(STORIES))


def test_public_names() -> None:
    assert swift_edge.__all__ == [
        "Candidate",
        "CandidateFinished",
        "Event",
        "PickOptions",
        "Picked",
        "Selection",
        "Selector",
        "SwiftEdgeError",
        "Timings",
        "TokenSampled",
        "Usage",
        "__version__",
    ]
    assert all(hasattr(swift_edge, name) for name in swift_edge.__all__)
