"""The bundles that the tests of the runtime run, opened once."""

from pathlib import Path

import numpy as np
import pytest

from swift_edge.bundle import open_bundle
from swift_edge.head import Head
from swift_edge.session import ModelSession

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h4_l4"


@pytest.fixture(scope="session")
def stories() -> ModelSession:
    """Llama with rotary positions and grouped KV heads, 512 positions."""
    return ModelSession(open_bundle(STORIES), threads=1)


@pytest.fixture(scope="session")
def addition() -> ModelSession:
    """GPT-2 with learned positions, nine of them."""
    return ModelSession(open_bundle(ADDITION), threads=1)


@pytest.fixture(scope="session")
def stories_head() -> Head:
    """A head on some layers of the stories model and both token statistics; untrained, so that every input counts."""
    manifest = open_bundle(STORIES).manifest
    layers = (1, 3, 5)
    inputs = len(layers) * manifest.architecture.hidden_size + 2
    return Head(
        weight=np.random.default_rng(3).normal(0, 0.1, (2, inputs)).astype(np.float32),
        bias=np.array([0.2, -0.3], np.float32),
        layers=layers,
        token_statistics=("logprob", "entropy"),
        fingerprint=manifest.fingerprint,
        precision=manifest.precision.name,
    )
