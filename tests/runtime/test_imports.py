"""What importing swift_edge does: nothing but define names."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import swift_edge
from swift_edge.bundle import open_bundle
from swift_edge.engine import ModelSession

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
DOORS = tuple(f"swift_edge.{name}" for name in ("bundle", "engine", "evaluation", "scoring", "selection", "training"))

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

ALL_DOORS = """
import sys
import swift_edge.cli
import swift_edge.bundle, swift_edge.engine, swift_edge.evaluation
import swift_edge.scoring, swift_edge.selection, swift_edge.training
heavy = {"torch", "transformers", "optimum", "onnx", "swift_edge_export"}
heavy |= {"onnxruntime", "tokenizers", "jinja2", "scipy", "matplotlib", "its_hub"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""

COMMAND_LINE = """
import sys
import swift_edge.cli
loaded = [name for name in sys.modules if name.startswith(("swift_edge.training", "swift_edge.evaluation"))]
assert not loaded, loaded
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


def test_neither_a_door_nor_the_command_line_loads_what_is_not_needed_yet() -> None:
    run(ALL_DOORS)


def test_the_command_line_loads_a_command_when_it_is_called() -> None:
    run(COMMAND_LINE)


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


def test_names_are_imported_from_where_they_live() -> None:
    """No file passes on names of another but the doors, for users and tests; product code does without them."""
    folders = ("swift_edge", "export", "tests", "models")
    sources = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources}
    modules: dict[str, set[str]] = {}  # the names that each takes from others
    for path, tree in trees.items():
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[1:] if parts[0] == "export" else parts).removesuffix(".__init__")
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        modules[name] = {alias.asname or alias.name for node in imports for alias in node.names}
    for path, tree in trees.items():
        is_product = path.relative_to(ROOT).parts[0] in ("swift_edge", "export")
        doors = {"swift_edge"} if is_product else {"swift_edge", *DOORS}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in modules and node.module not in doors:
                names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in modules}
                assert not names & modules[node.module], f"{path} line {node.lineno} has a name from {node.module}"


def test_public_names() -> None:
    assert swift_edge.__all__ == [
        "Answer",
        "Candidate",
        "CandidateBegun",
        "CandidateDropped",
        "CandidateFinished",
        "Event",
        "FailedPick",
        "Handle",
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
