"""Every input of the seed corpus keeps the promises of its target: the smallest ones, and those that once did not."""

import importlib
import importlib.util
from pathlib import Path

import pytest
from run import HERE, NEEDS_TORCH, TARGETS

INPUTS = [path for path in sorted((HERE / "corpus").glob("*/*")) if path.is_file()]


def test_every_target_has_inputs() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_promise_is_kept(path: Path) -> None:
    name = path.parent.name
    if name in NEEDS_TORCH and importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    importlib.import_module(f"fuzz_{name}").target(path.read_bytes())
