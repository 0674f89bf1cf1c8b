"""Kills the stages of the work with SIGKILL, at moments drawn over their whole duration, and looks at what is left.

    python tests/fuzz/kills.py                      20 kills, of all stages in turn
    python tests/fuzz/kills.py --kills 500          more, and so on
    python tests/fuzz/kills.py --stages export fit  some stages
    python tests/fuzz/kills.py --seed 7             other moments

Every stage is a command of its own process, run once undisturbed for its result and its duration. Of the kills every
other one comes at a moment drawn uniformly over that duration; the rest comes within milliseconds of the appearance of
a new file, when most is under way. Afterwards each output has to be absent, as it was, or whole; the same command, run
again, has to succeed, to leave nothing half-written, and to give what the undisturbed run gave. The exit status is 1
where that is not so; the folders of such kills are kept. Export needs torch, and is left out where that is absent.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
ADDITION: Final = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
CHECKPOINT: Final = ROOT / "tests" / "data" / "checkpoints" / "addition-gpt2-h1_l1"
LEFTOVERS: Final = (".partial", ".tmp", ".old")
"""Endings of what is not complete."""
LOCK: Final = ".lock"
"""Ending of a file that says who writes to a place, and may stay."""
VOLATILE: Final = ("timings.json", "results.json", "results.md", "economy.png", "economy.svg")
"""Outputs that hold times, which no two runs share."""
LOOK_S: Final = 0.001
MOST_S: Final = 600.0

Tree = dict[str, bytes]
"""The files below a folder, by path."""


@dataclass(frozen=True)
class Stage:
    """A command, and the folder it starts in."""

    name: str
    arguments: Sequence[str]
    """Of `swift-edge`, in the folder."""
    output: str
    """What it writes: a file or a folder."""
    furniture: Callable[[Path], None]
    """Puts what it needs into its folder."""
    grows: bool = False
    """Whether a part of the output is of use: a store, and a test's folder with a store in it."""


@dataclass
class Reference:
    """An undisturbed run."""

    before: Tree
    after: Tree
    seconds: float


@dataclass
class Tally:
    """What became of the kills of a stage."""

    kills: int = 0
    writing: int = 0
    """Kills that came when new files were there, and the command was not done."""
    late: int = 0
    """Moments at which the command had ended already: these are no kills."""
    states: dict[str, int] = field(default_factory=lambda: {"absent": 0, "old": 0, "partial": 0, "new": 0})
    leftovers: int = 0
    """Kills that left something half-written, for the next run to clear."""
    failures: list[str] = field(default_factory=list)


def tree(folder: Path) -> Tree:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stable(files: Tree, output: str) -> Tree:
    """The output's files that two runs share; of a manifest, what does not say when and how fast."""
    kept = {}
    for name, content in files.items():
        inside = name == output or name.startswith(f"{output}/")
        if not inside or name.rpartition("/")[2] in VOLATILE or name.endswith(LOCK):
            continue
        if name.endswith(".html") or name.endswith("swift_edge.json"):
            content = b"there"
        kept[name] = content
    return kept


def start(stage: Stage, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own session."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
    environment |= {"SWIFT_EDGE_CACHE": "off", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder.parent / f"{folder.name}.err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "swift_edge", *stage.arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )


def said(folder: Path) -> str:
    """What the last command in a folder wrote to stderr."""
    return (folder.parent / f"{folder.name}.err").read_text(encoding="utf-8", errors="replace")


def undisturbed(stage: Stage, folder: Path) -> Reference:
    """Run the stage once."""
    folder.mkdir()
    stage.furniture(folder)
    before, began = tree(folder), time.monotonic()
    status = start(stage, folder).wait(MOST_S)
    if status != 0:
        sys.exit(f"{stage.name} does not run undisturbed (exit status {status}): {said(folder)}")
    return Reference(before, tree(folder), time.monotonic() - began)


def kill_once(stage: Stage, reference: Reference, folder: Path, number: random.Random, tally: Tally) -> str | None:
    """Start the stage, kill it at some moment, and check what is left; returns what is wrong."""
    folder.mkdir()
    stage.furniture(folder)
    process = start(stage, folder)
    if number.random() < 0.5:
        moment = number.uniform(0, reference.seconds * 1.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
    else:
        _wait_for_file(process, folder, set(reference.before), number.randrange(1, 4))
        time.sleep(number.choice((0.0, 0.0, number.uniform(0, 0.005), number.uniform(0, 0.1))))
    alive = process.poll() is None
    process.kill()
    process.wait()
    orphans = _members(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if not alive:
        tally.late += 1
        return None
    tally.kills += 1
    after = tree(folder)
    tally.writing += bool(after.keys() - reference.before.keys())
    left = [name for name in _entries(folder) if name.endswith(LEFTOVERS)]
    tally.leftovers += bool(left)
    if orphans:
        return f"processes outlived it: {orphans}"
    state = _state(stage, reference, after)
    if state is None:
        return (
            f"the output is neither absent, nor as it was, nor whole: {sorted(after.keys() - reference.before.keys())}"
        )
    tally.states[state] += 1
    complaint = _readable(stage, folder, state)
    if complaint is not None:
        return complaint
    return _again(stage, reference, folder, state)


def _wait_for_file(process: subprocess.Popen[bytes], folder: Path, before: set[str], appearances: int) -> None:
    """Wait until something new has appeared in the folder so many times, or the process ends."""
    seen = {*before}
    while process.poll() is None and appearances:
        now = set(_entries(folder))
        appearances -= bool(now - seen - {path.rpartition("/")[0] for path in before})
        seen |= now
        time.sleep(LOOK_S)


def _entries(folder: Path) -> list[str]:
    """Paths of all files and folders; what goes away meanwhile is passed over."""
    found = []
    for parent, folders, files in os.walk(folder):
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in folders + files]
    return found


def _members(session: int) -> list[int]:
    """Processes of a session that are alive a moment after its leader was killed."""
    deadline, alive = time.monotonic() + 5, [0]
    while alive and time.monotonic() < deadline:
        alive = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError):
                state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state != "Z":
                    alive.append(int(path.parent.name))
        time.sleep(0.02)
    return alive


def _state(stage: Stage, reference: Reference, after: Tree) -> str | None:
    """Whether the output is absent, as it was (old), new and whole, or a part where that is of use; None if neither."""
    now = stable(after, stage.output)
    old, new = stable(reference.before, stage.output), stable(reference.after, stage.output)
    if now == new and (not stage.grows or not any(name.endswith(LEFTOVERS) for name in now)):
        return "new" if now != old else "old"
    if now == old:
        return "old" if now else "absent"
    return "partial" if stage.grows else None


def _readable(stage: Stage, folder: Path, state: str) -> str | None:
    """What is there can be opened; returns why not."""
    from swift_edge.bundle import open_bundle
    from swift_edge.errors import SwiftEdgeError
    from swift_edge.scoring import load_head
    from swift_edge.training import Store

    output = folder / stage.output
    if state == "absent":
        return None
    try:
        if output.suffix == ".npz":
            load_head(output)
        elif output.name == "bundle":
            open_bundle(output)
        elif (output / "store.json").exists():
            Store.open(output)
        elif (output / "candidates" / "store.json").exists():
            Store.open(output / "candidates")
        for path in output.glob("*.json") if output.is_dir() else ():
            json.loads(path.read_bytes())
    except (SwiftEdgeError, ValueError) as error:
        return f"what is left does not read: {error}"
    return None


def _again(stage: Stage, reference: Reference, folder: Path, state: str) -> str | None:
    """Run the same command again; returns what is wrong with that."""
    status = start(stage, folder).wait(MOST_S)
    told = said(folder)
    if status != 0:
        # Killed between the last write and the end: the output is there, and is refused as one that exists.
        refused = state == "new" and ("exist" in told or "already" in told)
        return None if refused else f"run again, it ends with {status}: {told.strip()[-300:]}"
    after = tree(folder)
    left = [name for name in _entries(folder) if name.endswith(LEFTOVERS)]
    untold = [name for name in left if Path(name).name not in told]
    if untold:
        return f"run again, it leaves {', '.join(untold)}, and says nothing of it"
    now, wanted = stable(after, stage.output), stable(reference.after, stage.output)
    differing = sorted(name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name))
    differing = [name for name in differing if not name.endswith(LEFTOVERS)]
    return f"run again, it gives another {', '.join(differing)}" if differing else None


def stages(furniture: Path) -> list[Stage]:
    """The stages; `furniture` holds what they need, made once."""

    def copies(*names: str, **renamed: str) -> Callable[[Path], None]:
        def put(folder: Path) -> None:
            for source, name in [*((name, name) for name in names), *((renamed[name], name) for name in renamed)]:
                if (furniture / source).is_dir():
                    shutil.copytree(furniture / source, folder / name)
                else:
                    shutil.copyfile(furniture / source, folder / Path(name).with_suffix(Path(source).suffix))

        return put

    collect = (
        "collect",
        "-m",
        "model",
        "--data",
        "train.jsonl",
        "--task",
        "number",
        "-n",
        "4",
        "--max-new-tokens",
        "4",
    )
    found = [
        Stage("collect", (*collect, "--out", "store"), "store", copies("model", "train.jsonl"), grows=True),
        Stage(
            "collect, going on",
            (*collect, "--out", "store"),
            "store",
            copies("model", "train.jsonl", store="part"),
            grows=True,
        ),
        Stage(
            "collect --force",
            (*collect, "--out", "store", "--force"),
            "store",
            copies("model", "train.jsonl", store="other"),
            grows=True,
        ),
        Stage(
            "collect --responses",
            ("collect", "-m", "model", "--responses", "responses.jsonl", "--out", "store"),
            "store",
            copies("model", "responses.jsonl"),
            grows=True,
        ),
        Stage("fit", ("fit", "store", "--out", "head.npz", "--max-iterations", "20"), "head.npz", copies("store")),
        Stage(
            "fit --force",
            ("fit", "store", "--out", "head.npz", "--max-iterations", "20", "--force"),
            "head.npz",
            copies("store", head="older.npz"),
        ),
        Stage(
            "recalibrate",
            ("recalibrate", "head.npz", "other", "--out", "new.npz"),
            "new.npz",
            copies("other", head="head.npz"),
        ),
        Stage(
            "eval",
            (
                "eval",
                "-m",
                "model",
                "--data",
                "test.jsonl",
                "--task",
                "number",
                "-n",
                "1,2",
                "--max-new-tokens",
                "4",
                "--out",
                "test",
            ),
            "test",
            copies("model", "test.jsonl"),
            grows=True,
        ),
        Stage(
            "pick --explain",
            ("pick", "331970", "-m", "model", "-n", "2", "--max-new-tokens", "3", "--explain", "page.html"),
            "page.html",
            copies("model"),
        ),
        Stage(
            "convert-head",
            ("convert-head", "swift.safetensors", "--bundle", "model", "--out", "new.npz"),
            "new.npz",
            copies("model", "swift.safetensors"),
        ),
    ]
    if all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "onnxscript")):
        found.insert(0, Stage("export", ("export", str(CHECKPOINT), "--out", "bundle"), "bundle", lambda _: None))
        forced = ("export", str(CHECKPOINT), "--out", "bundle", "--precision", "fp16", "--force")
        found.insert(1, Stage("export --force", forced, "bundle", copies(bundle="model")))
    return found


def furnish(folder: Path) -> None:
    """Make what the stages need: a model, problems, stores, heads."""
    from seeds import as_lines

    numbers = random.Random(0)

    def problems(count: int) -> bytes:
        pairs = [(numbers.randint(100, 999), numbers.randint(100, 999)) for _ in range(count)]
        return as_lines(*({"prompt": f"{a}{b}", "answer": a + b} for a, b in pairs))

    shutil.copytree(ADDITION, folder / "model")
    for name in ("train", "test", "other"):
        (folder / f"{name}.jsonl").write_bytes(problems(24))
    rows = [{"prompt": "331970", "completions": ["1301", "1300"], "correctness": [1, 0]} for _ in range(12)]
    (folder / "responses.jsonl").write_bytes(as_lines(*rows))
    (folder / "swift.safetensors").write_bytes(_swift_head())
    options = ("-m", "model", "--task", "number", "-n", "4", "--max-new-tokens", "4")
    _run(folder, "collect", *options, "--data", "train.jsonl", "--out", "store")
    _run(folder, "collect", *options, "--data", "other.jsonl", "--out", "other")
    _run(folder, "fit", "store", "--out", "head.npz", "--max-iterations", "20")
    _run(folder, "fit", "store", "--out", "older.npz", "--max-iterations", "2")
    _leave_a_part(folder)


def _swift_head() -> bytes:
    """A head as SWIFT's own code writes it, for the model."""
    architecture = json.loads((ADDITION / "swift_edge.json").read_text(encoding="utf-8"))["architecture"]
    inputs = (architecture["num_layers"] + 1) * architecture["hidden_size"]
    header: dict[str, Any] = {
        "fused_layer.weight": {"dtype": "F32", "shape": [2, inputs], "data_offsets": [0, 8 * inputs]},
        "fused_layer.bias": {"dtype": "F32", "shape": [2], "data_offsets": [8 * inputs, 8 * inputs + 8]},
    }
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + bytes(8 * inputs + 8)


def _leave_a_part(folder: Path) -> None:
    """The store of a collect that was killed in the middle."""
    from swift_edge.training import Store

    whole = Store.open(folder / "store")
    part = folder / "part"
    shutil.copytree(folder / "store", part)
    (part / "timings.json").unlink(missing_ok=True)
    for path in sorted(part.glob("shard-*")):
        content = path.read_bytes()
        path.unlink()
        cut = len(content) * 2 // 3
        path.with_name(f"{path.name}.partial").write_bytes(content[:cut])
    if not whole.complete:
        sys.exit("the store that the stages need is not complete")


def _run(folder: Path, *arguments: str) -> None:
    stage = Stage("furniture", arguments, "", lambda _: None)
    status = start(stage, folder).wait(MOST_S)
    if status != 0:
        sys.exit(f"{' '.join(arguments)} ends with {status}: {said(folder)}")


def main() -> None:
    """Kill, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills of all stages together (20)")
    parser.add_argument("--stages", nargs="*", metavar="NAME", help="stages whose names begin so; all by default")
    parser.add_argument("--seed", type=int, default=0, help="other moments")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="stages at a time")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the folders of failures go (a temporary one)")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="swift-edge-kills-"))
    keep = arguments.keep or work / "failures"
    keep.mkdir(parents=True, exist_ok=True)
    (work / "furniture").mkdir()
    furnish(work / "furniture")
    chosen = [
        stage
        for stage in stages(work / "furniture")
        if not arguments.stages or stage.name.startswith(tuple(arguments.stages))
    ]
    tallies = {stage.name: Tally() for stage in chosen}
    shares = dict.fromkeys(tallies, 0)
    for name in itertools.islice(itertools.cycle(shares), arguments.kills):
        shares[name] += 1

    def run(stage: Stage) -> None:
        _kill_often(stage, shares[stage.name], work, keep, random.Random(f"{arguments.seed} {stage.name}"), tallies)

    try:
        with ThreadPoolExecutor(arguments.jobs) as side_by_side:
            list(side_by_side.map(run, chosen))
    finally:
        report(tallies)
        shutil.rmtree(work / "furniture")
        if not any(tally.failures for tally in tallies.values()):
            shutil.rmtree(work)
    sys.exit(1 if any(tally.failures for tally in tallies.values()) else 0)


def _kill_often(
    stage: Stage, kills: int, work: Path, keep: Path, number: random.Random, tallies: dict[str, Tally]
) -> None:
    """Kill a stage so many times; moments that came too late are drawn again, some times."""
    if not kills:
        return
    tally = tallies[stage.name]
    name = "".join(letter if letter.isalnum() else "-" for letter in stage.name)
    reference = undisturbed(stage, work / f"{name}-reference")
    for attempt in itertools.count():
        if tally.kills >= kills or tally.late > 3 * kills + 10:
            break
        folder = work / f"{name}-{attempt}"
        wrong = kill_once(stage, reference, folder, number, tally)
        if wrong is None:
            shutil.rmtree(folder)
        else:
            tally.failures.append(wrong)
            shutil.move(folder, keep / folder.name)
            print(f"{stage.name}: {wrong}\n    kept in {keep / folder.name}", flush=True)
    shutil.rmtree(work / f"{name}-reference")


def report(tallies: dict[str, Tally]) -> None:
    """Print the table."""
    print("| stage | kills | while writing | too late | absent | old | part | new | left something | failures |")
    print("|---|" + "---:|" * 9)
    for name, tally in tallies.items():
        cells = [tally.kills, tally.writing, tally.late, *tally.states.values(), tally.leftovers, len(tally.failures)]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    print(
        f"{sum(tally.kills for tally in tallies.values())} kills, "
        f"{sum(len(tally.failures) for tally in tallies.values())} failures"
    )


if __name__ == "__main__":
    main()
