"""What tests of shared picks have in common: where bundles are, and a selection down to its last bit."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swift_edge import Candidate, Selection

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
SMALL_STEPS = ROOT / "models" / "small-steps"
INT8_KEYS_AND_VALUES = ROOT / "tests" / "data" / "int8-keys-and-values"
PATIENCE_S = 120.0
"""What is not there by then never comes."""


def bits(selection: Selection) -> dict[str, Any]:
    """Everything but the time it took, so that equal ones are equal bit for bit."""
    document = selection.to_dict()
    del document["timings"], document["prompt_index"]
    document["candidates"] = [bits_of_candidate(each) for each in selection.candidates]
    document["answers"] = [{name: exact(value) for name, value in asdict(each).items()} for each in selection.answers]
    document["p_correct"] = exact(selection.p_correct)
    return document


def bits_of_candidate(candidate: Candidate) -> dict[str, Any]:
    """The same of a candidate."""
    document = candidate.to_dict()
    document |= {name: exact(getattr(candidate, name)) for name in ("score", "logprob", "self_certainty")}
    for name in ("gates", "rewards"):
        values = getattr(candidate, name)
        document[name] = None if values is None else (str(values.dtype), values.tobytes())
    return document


def exact(value: Any) -> Any:
    """A number as its hexadecimal digits, anything else as it is."""
    return value.hex() if isinstance(value, float) else value


def endless_bundle(folder: Path) -> Path:
    """A bundle that writes `<|end|>` and goes on."""
    bundle = folder / "endless"
    shutil.copytree(SMALL_STEPS, bundle)
    manifest = json.loads((bundle / "swift_edge.json").read_text())
    manifest["tokens"]["eos_ids"] = []
    (bundle / "swift_edge.json").write_text(json.dumps(manifest))
    return bundle
