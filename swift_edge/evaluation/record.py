"""What a test was run with, so that it can be done again: files by their hashes, versions, the machine."""

import hashlib
import platform
from pathlib import Path
from typing import Any

from swift_edge import __version__
from swift_edge.system.machine import default_threads


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def machine_facts() -> dict[str, Any]:
    """Processor, cores and system, as far as they can be told."""
    return {
        "processor": _processor(),
        "cores": default_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    import numpy
    import onnxruntime  # type: ignore[import-untyped]

    return {
        "swift-edge": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
