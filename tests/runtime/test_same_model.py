"""One random model written by three exporters: this one, optimum's command line, onnxruntime-genai's model builder.

Same prompt, same seed, same candidates, though one of them concatenates keys and values at every step.
"""

from pathlib import Path

import numpy as np
import pytest

from swift_edge import Selection, Selector
from swift_edge.errors import HeadMismatchError
from swift_edge.scoring import Head

FOLDERS = Path(__file__).parents[1] / "data" / "same-model"
PROMPT = "ABCABDE"
# The folders bring different defaults along.
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "top_k": 0, "seed": 4}


def picked(name: str) -> Selection:
    return Selector(FOLDERS / name).pick(PROMPT, n=5, max_new_tokens=24, **SAMPLING)


@pytest.mark.parametrize("name", ["optimum", "onnxruntime-genai"])
def test_candidates_are_those_of_our_own_bundle(name: str) -> None:
    ours, theirs = picked("swift-edge"), picked(name)
    assert ours.warnings == ()
    assert [c.token_ids for c in theirs.candidates] == [c.token_ids for c in ours.candidates]
    np.testing.assert_allclose(
        [c.logprob for c in theirs.candidates], [c.logprob for c in ours.candidates], rtol=0, atol=1e-3
    )
    assert theirs.best.index == ours.best.index
    assert "no hidden states" in theirs.warnings[0]


@pytest.mark.parametrize("name", ["optimum", "onnxruntime-genai"])
def test_given_texts_score_the_same(name: str) -> None:
    texts = ["FGH", "ABCAB", "Q"]
    ours, theirs = (Selector(FOLDERS / folder).score(PROMPT, texts) for folder in ("swift-edge", name))
    np.testing.assert_allclose(
        [c.score for c in theirs.candidates], [c.score for c in ours.candidates], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", ["optimum", "onnxruntime-genai"])
def test_a_head_on_hidden_states_is_refused_and_one_on_logits_scores(name: str) -> None:
    facts = {
        "bias": np.zeros(2, np.float32),
        "token_statistics": (),
        "gate": True,
        "includes_eos": False,
        "calibration": None,
        "fingerprint": "",
        "precision": "fp32",
        "base_model": "tiny-random-llama",
        "summary": {},
    }
    random = np.random.default_rng(0)
    on_states = Head(weight=random.standard_normal((2, 64), np.float32), layers=(1, 2), feature="hidden", **facts)
    with pytest.raises(HeadMismatchError, match="hidden states"):
        Selector(FOLDERS / name, head=on_states).pick(PROMPT, n=2, max_new_tokens=3, **SAMPLING)
    on_logits = Head(weight=random.standard_normal((2, 96), np.float32), layers=(), feature="logits", **facts)
    scores = []
    for folder in ("swift-edge", name):
        selection = Selector(FOLDERS / folder, head=on_logits).pick(PROMPT, n=3, max_new_tokens=9, **SAMPLING)
        scores.append([candidate.score for candidate in selection.candidates])
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-4)
    assert len(set(scores[0])) == 3
