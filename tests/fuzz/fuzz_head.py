"""A head file: its archive, its arrays, its metadata, whether it fits a model, and what it computes."""

import io
import zipfile

import numpy as np
import promise
from fixtures import STORIES
from folders import scratch, unpack

from swift_edge.bundle import open_bundle
from swift_edge.scoring import Head, check_head, load_head, save_head

MANIFEST = open_bundle(STORIES).manifest


def archive(files: dict[str, bytes]) -> bytes:
    """The files as an archive of numpy's; `metadata.json` becomes the array of one text that it is."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as written:
        for name, content in files.items():
            if name == "metadata.json":
                name, content = "metadata.npy", _text_array(content.decode("utf-8", "replace"))
            written.writestr(name, content)
    return packed.getvalue()


def _text_array(text: str) -> bytes:
    array = io.BytesIO()
    np.save(array, np.array(text))
    return array.getvalue()


def target(data: bytes) -> None:
    files = unpack(data)
    with scratch() as folder:
        path = folder / "head.npz"
        path.write_bytes(files["raw.npz"] if "raw.npz" in files else archive(files))
        head = promise.kept(lambda: load_head(path))
        if head is None:
            return
        promise.kept(lambda: check_head(head, MANIFEST))
        _evaluate(head)
        promise.kept(lambda: save_head(folder / "again.npz", head))
        promise.check_no_leftovers(folder)
        if (folder / "again.npz").exists():
            save_head(folder / "twice.npz", load_head(folder / "again.npz"))
            same = (folder / "again.npz").read_bytes() == (folder / "twice.npz").read_bytes()
            promise.require(same, "a head changes when it is read and written")


def _evaluate(head: Head) -> None:
    slices = max(1, len(head.layers))
    if slices * head.state_width > 10**6:
        return
    states = np.ones((slices, 3, head.state_width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        result = promise.kept(lambda: head.evaluate(states)) if not head.token_statistics else None
    if result is not None:
        gates, rewards = result
        promise.require(gates.shape == rewards.shape == (3,), "gates and rewards, one per token")
        promise.require(bool(((gates >= 0) & (gates <= 1)).all()), f"gates are {gates}")
    if head.calibration is not None:
        for score in (-1e30, -1.0, 0.0, 2.5, 1e30):
            chance = head.calibration.chance(score)
            promise.require(chance is None or 0 <= chance <= 1, f"the chance at {score} is {chance}")
