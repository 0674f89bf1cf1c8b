"""Make an environment for each peer, and its model from one random checkpoint; what is there already is kept.

    python tests/bench/peers/environments.py FOLDER [--peers NAME,NAME] [--layers 2]

Run it with the interpreter of the project's own environment (extra `export`), which makes the checkpoint and the
bundles of swift-edge. The folder lies outside the project and takes about 8 GB. llama.cpp is compiled for this
processor, which takes some minutes and a C++ compiler. Two layers are for trying everything out, in a folder of its
own, which may have the `environments` of another as a link.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import CHECKPOINT, ENVIRONMENTS, MODELS, OUT, PEERS, SCRIPTS, Environment, Model, Peer, chosen

HERE = Path(__file__).resolve().parent
CHECKPOINT_NAME = "checkpoint"
AGREEMENT_NAME = "agreement.json"


def interpreter(folder: Path, environment: str | None) -> str:
    """The Python of an environment; the project's own is the one that runs this."""
    return sys.executable if environment is None else str(folder / "environments" / environment / "bin" / "python")


def model_path(folder: Path, peer: Peer) -> Path:
    """Where a peer's model lies."""
    return folder / CHECKPOINT_NAME if peer.model is None else folder / "models" / peer.model


def record_of(model: Path) -> Path:
    """Where it is written what making a model took."""
    return model.with_name(f"{model.name}.made.json")


def made_of(folder: Path, peer: Peer) -> dict[str, Any]:
    """What making a peer's model took; no two makings are alike in it."""
    record: dict[str, Any] = json.loads(record_of(model_path(folder, peer)).read_text())
    return record


def make_environment(folder: Path, environment: Environment) -> None:
    """Make the virtual environment and install into it, unless just that has been done."""
    place = folder / "environments" / environment.name
    done = place / "installed.json"
    wanted = json.dumps(environment.installs)
    if done.is_file() and done.read_text() == wanted:
        return
    say(f"environment {environment.name}")
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    for packages in environment.installs:
        pip = [interpreter(folder, environment.name), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(pip, check=True)
    done.write_text(wanted)


def make_checkpoint(folder: Path, layers: int) -> None:
    """Write the random checkpoint, unless it is there."""
    command = [sys.executable, str(HERE.parent / "random_checkpoint.py"), "qwen2.5-0.5b", OUT, "--layers", str(layers)]
    make(folder / CHECKPOINT_NAME, command)


def make_model(folder: Path, model: Model) -> None:
    """Make a model from the checkpoint, unless it is there."""
    words = {CHECKPOINT: str(folder / CHECKPOINT_NAME), SCRIPTS: str(HERE)}
    command = [interpreter(folder, model.environment), *model.command]
    make(folder / "models" / model.name, [replaced(word, words) for word in command])


def make(target: Path, command: list[str]) -> None:
    """Run the command that writes `target`, beside it at first, and note processor seconds, peak memory and size."""
    if target.exists():
        return
    say(target.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"partial.{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.unlink(missing_ok=True)
    process = subprocess.Popen([replaced(word, {OUT: str(partial)}) for word in command], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{target.name} could not be made: exit status {process.returncode} of {command}")
    shutil.rmtree(partial / "cache", ignore_errors=True)
    taken = {
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "bytes": size_bytes(partial),
    }
    record_of(target).write_text(json.dumps(taken))
    partial.rename(target)


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def replaced(word: str, words: dict[str, str]) -> str:
    """A word of a command with what stands for something replaced."""
    for name, value in words.items():
        word = word.replace(name, value)
    return word


def say(what: str) -> None:
    """Tell what is being made."""
    print(f"making {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Make everything that the peers need."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", type=chosen, default=list(PEERS), help="names with commas between them")
    parser.add_argument("--layers", type=int, default=24, help="of the model, where it is not there yet")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    needed = {peer.family.environment for peer in arguments.peers}
    make_checkpoint(folder, arguments.layers)
    for environment in ENVIRONMENTS:
        if environment.name in needed:
            make_environment(folder, environment)
    for model in MODELS:
        if model.name in {peer.model for peer in arguments.peers}:
            make_model(folder, model)


if __name__ == "__main__":
    main()
