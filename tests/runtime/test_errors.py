"""What all errors have in common: one line, of a length that a person reads."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swift_edge.errors import LONGEST_MESSAGE, TemplateError

ROOT = Path(__file__).parents[2]


def test_a_message_of_any_length_is_a_line_that_keeps_its_beginning_and_its_end() -> None:
    error = TemplateError("the template says " + "no\n" * 100_000 + "; repair it")
    assert len(str(error)) < LONGEST_MESSAGE
    assert "\n" not in str(error)
    assert str(error).startswith("the template says no no")
    assert str(error).endswith("; repair it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


@pytest.mark.parametrize("value", ["a" * 70_000, ["past_key_values.%d.value"] * 300])
def test_a_file_with_a_value_of_any_length_is_refused_in_a_line_that_a_person_reads(
    run: Callable[..., Any], tmp_path: Path, value: object
) -> None:
    inputs = {"input_ids": value}
    decoder = {"filename": "model.onnx", "inputs": inputs, "outputs": {}}
    config = {"model": {"decoder": decoder}, "search": {}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    outcome = run("inspect", tmp_path)
    assert outcome.status == 1
    assert "input_ids is" in outcome.err
    assert "expected 'input_ids'" in outcome.err
    assert len(outcome.err) < LONGEST_MESSAGE + 20


def test_a_name_of_any_length_that_the_system_refuses_is_told_in_a_line_that_a_person_reads(
    run: Callable[..., Any],
) -> None:
    outcome = run("pick", "Once", "-m", ROOT / "models" / "stories260k", "--explain", "a" * 5000)
    assert outcome.status == 1
    assert len(outcome.err) < LONGEST_MESSAGE + 20
