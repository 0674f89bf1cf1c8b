"""Best of 8 on a real checkpoint, against a straightforward torch program that scores the same candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from swift_edge import Selector
from swift_edge_export.publish import export_bundle

pytestmark = pytest.mark.slow

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoints" / "addition-gpt2-h1_l1"
PROMPTS = [f"{first:03d}{second:03d}" for first, second in np.random.default_rng(2).integers(0, 1000, (200, 2))]


@pytest.fixture(scope="module")
def selector(tmp_path_factory: pytest.TempPathFactory) -> Selector:
    out = tmp_path_factory.mktemp("addition") / "bundle"
    export_bundle(str(CHECKPOINT), out)
    return Selector(out)


def test_best_of_8_by_mean_logprob_lands_where_torch_lands(selector: Selector) -> None:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    right = {"first": 0, "best": 0, "any": 0}
    for prompt in PROMPTS:
        picked = selector.pick(prompt, n=8, max_new_tokens=4, temperature=1.0, top_p=1.0, signal="mean_logprob")
        answers = torch.tensor([candidate.token_ids for candidate in picked.candidates])  # [8, 4]
        prompt_ids = torch.tensor([[int(digit) for digit in prompt]] * 8)  # the vocabulary is the ten digits
        with torch.no_grad():
            # Nine positions: the last digit of the answer is predicted, but there is no place to feed it.
            logits = model(torch.cat((prompt_ids, answers[:, :-1]), dim=1)).logits[:, 5:]  # [8, 4, 10]
        logprobs = logits.log_softmax(-1).gather(-1, answers[:, :, None])[:, :, 0].mean(-1).numpy()  # [8]
        np.testing.assert_allclose([candidate.score for candidate in picked.candidates], logprobs, rtol=0, atol=1e-4)
        assert all(candidate.unscored_tokens == 1 for candidate in picked.candidates)
        assert all(candidate.finish_reason == "length" for candidate in picked.candidates)
        # Two candidates with the same digits have the same score: torch may name the other one.
        assert picked.best.token_ids == tuple(answers[int(logprobs.argmax())].tolist())
        truth = f"{int(prompt[:3]) + int(prompt[3:]):04d}"
        right["first"] += picked.candidates[0].text == truth
        right["best"] += picked.best.text == truth
        right["any"] += any(candidate.text == truth for candidate in picked.candidates)
    # Published for this checkpoint at temperature 1: pass@1 0.40, pass@8 0.95; 200 prompts, three standard errors.
    assert abs(right["first"] / 200 - 0.40) < 0.104
    assert abs(right["any"] / 200 - 0.95) < 0.046
    assert right["best"] > right["first"]
