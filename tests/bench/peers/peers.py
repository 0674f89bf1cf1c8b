"""The peers that swift-edge is timed beside: what each needs, how its model is made, what it leaves to others.

Every peer runs in an environment of its own; nothing here is a dependency of the project.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import dataclass

CHECKPOINT = "{checkpoint}"
"""Stands for the folder of the checkpoint in the command that makes a model."""
OUT = "{out}"
"""Stands for what that command is to write."""
SCRIPTS = "{scripts}"
"""Stands for the folder of these scripts."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment."""

    name: str
    """Its folder."""
    installs: tuple[tuple[str, ...], ...]
    """Arguments of one `pip install` after the other: torch first, so that nothing else chooses its build."""


@dataclass(frozen=True, slots=True)
class Model:
    """The checkpoint in the form that a peer reads."""

    name: str
    """Its folder or file."""
    environment: str | None
    """Environment in which it is made; None is that of the project."""
    command: tuple[str, ...]
    """Arguments of the interpreter."""


@dataclass(frozen=True, slots=True)
class Family:
    """What all peers with the same worker have in common."""

    worker: str
    """Script that answers requests."""
    environment: str | None
    """Environment that runs it; None is that of the project."""
    scores: str
    """How candidates are scored."""
    shares_prompt: str
    """How often the prompt is read for N candidates."""
    drops_rows: str
    """What becomes of a candidate that has ended."""
    hidden_states: str
    """Which hidden states can be read."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One column of the comparison."""

    name: str
    """What it is called."""
    family: Family
    """What it has in common with others."""
    model: str | None
    """Model that it reads; None is the checkpoint itself."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the worker."""
    reference: str = "swift-edge-int4"
    """The swift-edge whose time it is compared with: the one of the same bit width, int4 where there is none."""


TORCH = ("torch==2.13.0",)

ENVIRONMENTS = (
    Environment("transformers", (TORCH, ("transformers==5.23.0", "numpy==2.4.6"))),
    Environment(
        "genai",
        (
            TORCH,
            (
                "onnxruntime-genai==0.18.0",
                "onnxruntime==1.32.0",
                "onnx==1.23.2",
                "onnx-ir==1.1.0",
                "transformers==5.23.0",
            ),
        ),
    ),
    Environment("llama", (("llama-cpp-python==0.3.36", "gguf==0.19.0"),)),
    Environment(
        "openvino",
        (
            TORCH,
            ("openvino-genai==2026.4.1.0", "nncf==3.4.0", "transformers==5.5.4", "requests==2.33.1"),
            # It asks for torchvision, which a language model has no use for and which wants a torch of its own.
            ("--no-deps", "optimum-intel==2.2.0", "optimum==2.3.0"),
        ),
    ),
)

MODELS = (
    *(
        Model(
            f"swift-edge-{precision}",
            None,
            ("-m", "swift_edge", "export", CHECKPOINT, "--out", OUT, "--precision", precision),
        )
        for precision in ("int4", "int8")
    ),
    *(
        Model(
            f"genai-int4-block{block}",
            "genai",
            (
                *("-m", "onnxruntime_genai.models.builder", "-i", CHECKPOINT, "-o", OUT, "-p", "int4", "-e", "cpu"),
                *("-c", f"{OUT}/cache", "--extra_options", f"block_size={block}", "accuracy_level=4"),
                # The last two are off unless asked for: logits of the prompt's last token alone, and one packed table
                # for embedding and output layer.
                *("include_hidden_states=true", "prune_lm_head=true", "op_types_to_quantize=MatMul/Gather"),
            ),
        )
        for block in (128, 32)
    ),
    *(
        Model(f"llama-{kind}.gguf", "llama", (f"{SCRIPTS}/write_gguf.py", CHECKPOINT, OUT, "--type", kind))
        for kind in ("q4_0", "q8_0")
    ),
    Model("openvino-int4", "openvino", (f"{SCRIPTS}/write_openvino.py", CHECKPOINT, OUT)),
)

SWIFT_EDGE = Family("worker_swift_edge.py", None, "in the same pass", "once", "leave the batch", "all")
TRANSFORMERS = Family(
    "worker_transformers.py", "transformers", "in a second pass", "N times", "run on to the longest",
    "all, in the second pass",
)  # fmt: skip
GENAI = Family("worker_genai.py", "genai", "no", "N times", "run on to the longest", "the last one")
LLAMA = Family("worker_llama.py", "llama", "no", "once", "leave the batch", "none while it writes")
OPENVINO = Family("worker_openvino.py", "openvino", "no", "once", "leave the batch", "none")

PEERS = (
    Peer("swift-edge-int4", SWIFT_EDGE, "swift-edge-int4"),
    Peer("swift-edge-int8", SWIFT_EDGE, "swift-edge-int8", reference="swift-edge-int4"),
    Peer("transformers-bf16", TRANSFORMERS, None, ("--dtype", "bfloat16")),
    Peer("transformers-fp32", TRANSFORMERS, None, ("--dtype", "float32")),
    Peer("genai-int4-block128", GENAI, "genai-int4-block128"),
    Peer("genai-int4-block32", GENAI, "genai-int4-block32"),
    Peer("llama-q4_0", LLAMA, "llama-q4_0.gguf"),
    Peer("llama-q8_0", LLAMA, "llama-q8_0.gguf", reference="swift-edge-int8"),
    Peer("openvino-int4", OPENVINO, "openvino-int4"),
)


def chosen(text: str) -> list[Peer]:
    """The peers of a list of names with commas; for argparse, which shows the error."""
    names = {peer.name: peer for peer in PEERS}
    unknown = [name for name in text.split(",") if name not in names]
    if unknown:
        raise ArgumentTypeError(f"there is no peer {unknown[0]}; expected some of {', '.join(names)}")
    return [peer for peer in PEERS if peer.name in text.split(",")]
